"""`medrec evaluate` and `medrec compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.options import DEFAULT_HOME, HomeOption, JsonOption, open_stages


def evaluate(
    run: Annotated[str, typer.Argument(help="Training run.")],
    figure: Annotated[
        Path | None, typer.Option(help="Write the reliability plot to this HTML file.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Print every metric of one run with its 95 % interval, from the stored per-visit rows.

    Beside the metrics: set sizes, calibration, interactions by severity, and what published
    scripts would print for the same predictions.
    """
    stages = open_stages(home, as_json)
    stages.show_evaluation(stages.run(run), figure)


def compare(
    runs: Annotated[list[str], typer.Argument(help="Training runs on one cohort.")],
    reference: Annotated[
        str | None, typer.Option(help="Run or model that differences refer to; default the first.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every column to this CSV file.")] = None,
    latex: Annotated[
        Path | None, typer.Option(help="Write a LaTeX table (booktabs) to this file.")
    ] = None,
    bold: Annotated[
        bool, typer.Option("--bold", help="LaTeX: print the highest value of a column in bold.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: intervals, paired differences, tests, ground-truth and chance DDI.

    Runs that differ in seed or split alone are one row, with the spread over seeds and over splits.
    """
    stages = open_stages(home, as_json)
    found = [stages.run(name) for name in runs]
    cohort = stages.cohort_of(found[0])
    stages.show_comparison(found, cohort, reference, csv=csv, latex=latex, bold=bold)
