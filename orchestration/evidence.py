"""What `medrec evaluate` and `medrec compare` print and write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medrec.runs import Run
from orchestration.console import Terminal, frame_table, pairs_table
from quantum.base import write_text_atomic

if TYPE_CHECKING:
    from medrec.data.cohort import Cohort


def records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows for JSON, which knows no NaN: missing numbers are null."""
    return [
        {key: None if value != value else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def show_evaluation(terminal: Terminal, run: Run, figure: Path | None = None) -> None:
    """Print every metric of one run with its interval, and tables about its rows."""
    from medrec.data.ddi import SEVERITY_NAMES
    from medrec.evaluation import describe
    from medrec.evaluation.atc_classes import class_table
    from medrec.evaluation.compare import evaluation_table, load_rows
    from medrec.evaluation.coverage import coverage_note, coverage_table

    rows, report = load_rows(run), run.report()
    tables = {
        "metrics": evaluation_table(run),
        "set_sizes": describe.set_sizes(rows),
        "reliability": describe.reliability(rows),
        "ddi_by_severity": describe.ddi_by_severity(rows, SEVERITY_NAMES),
        "legacy_definitions": describe.legacy_definitions(rows),
        "drugs_by_map": coverage_table(report),
        "atc_level_3_classes": class_table(report),
    }
    facts = {
        "run": run.name,
        "preset": report["preset"],
        "split": f"{report['split']} ({str(report['split_digest'])[:8]})",
        "threshold": report.get("threshold"),
        "patients": int(rows["patient"].nunique()),
        "visits": len(rows),
    }
    if (note := coverage_note([report])) is not None:
        facts["drugs with a map"] = note
    if figure is not None:
        _write_figure(figure, run, tables["reliability"])
        terminal.say(f"reliability plot: {figure}")
    shown = [
        frame_table(table, name.replace("_", " ")) for name, table in tables.items() if len(table)
    ]
    document = {**facts, **{name: records(table) for name, table in tables.items()}}
    terminal.result(document, pairs_table(facts.items()), *shown)


def _write_figure(path: Path, run: Run, table: pd.DataFrame) -> None:
    from medrec.report.figures import reliability

    figure = reliability({str(run.report()["model"]): table})
    write_text_atomic(path, figure.to_html(include_plotlyjs=True, full_html=True))


def show_comparison(
    terminal: Terminal,
    runs: list[Run],
    cohort: Cohort,
    reference: str | None = None,
    *,
    csv: Path | None = None,
    latex: Path | None = None,
    bold: bool = False,
) -> None:
    """Print the comparison table with its header and caution; write it as CSV and LaTeX."""
    from medrec.evaluation.compare import compare_runs
    from medrec.evaluation.export import to_csv, to_latex

    comparison = compare_runs(runs, cohort, reference=reference)
    if csv is not None:
        write_text_atomic(csv, to_csv(comparison))
        terminal.say(f"CSV: {csv}")
    if latex is not None:
        write_text_atomic(latex, to_latex(comparison, bold_best=bold))
        terminal.say(f"LaTeX: {latex}")
    terminal.result(
        {
            "header": comparison.header,
            "facts": comparison.facts,
            "reference": comparison.reference,
            "rows": records(comparison.table),
        },
        pairs_table(comparison.header.items()),
        frame_table(comparison.display(), "test part"),
    )
