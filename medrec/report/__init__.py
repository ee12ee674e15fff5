"""One self-contained HTML page about a cohort, its runs and its molecules."""

from __future__ import annotations

from medrec.report.build import build_report

__all__ = ["build_report"]
