"""One self-contained HTML page about a cohort, its runs and its molecules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medrec.report.build import build_report

__all__ = ["build_report"]


def __getattr__(name: str) -> Any:
    """Load the page and the models behind it when it is wanted; one figure needs neither."""
    if name != "build_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from medrec.report.build import build_report

    return build_report
