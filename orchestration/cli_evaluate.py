"""`medrec evaluate` and `medrec compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.options import (
    DEFAULT_HOME,
    RUNS,
    HardOption,
    HomeOption,
    JsonOption,
    QuietOption,
    RunArgument,
    open_stages,
)


def refuse_together(option: str, others: dict[str, object]) -> None:
    """Refuse options that another one would silently leave without effect.

    Raises
    ------
    InputError
    """
    from quantum.base import InputError

    given = [name for name, value in others.items() if value]
    if given:
        raise InputError(f"{option} writes no file; expected it without {', '.join(given)}")


def evaluate(
    run: RunArgument,
    figure: Annotated[
        Path | None, typer.Option(help="Write the reliability plot to this HTML file.")
    ] = None,
    hard: HardOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print every metric of one run with its 95 % interval, from the stored per-visit rows.

    Beside the metrics: set sizes, calibration, interactions by severity, and what published
    scripts would print for the same predictions. With --hard the test part is decoded anew, without
    forbidden pairs, and the cost is printed.
    """
    stages = open_stages(home, as_json, quiet)
    if hard is not None:
        refuse_together("--hard", {"--figure": figure})
        from orchestration.safety import show_hard

        found = stages.run(run)
        with stages.terminal.progress("decode", None):
            show_hard(stages, found, hard)
        return
    stages.show_evaluation(stages.run(run), figure)


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Training runs on one cohort.", autocompletion=RUNS)
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Run or model that differences refer to; default the first.", autocompletion=RUNS
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every column to this CSV file.")] = None,
    latex: Annotated[
        Path | None, typer.Option(help="Write a LaTeX table (booktabs) to this file.")
    ] = None,
    bold: Annotated[
        bool, typer.Option("--bold", help="LaTeX: print the highest value of a column in bold.")
    ] = False,
    severity: Annotated[
        bool, typer.Option("--severity", help="DDI rate of every grade beside the Jaccard.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare runs: intervals, paired differences, tests, ground-truth and chance DDI.

    Runs that differ in seed or split alone are one row, with the spread over seeds and over splits.
    """
    stages = open_stages(home, as_json, quiet)
    found = [stages.run(name) for name in runs]
    if severity:
        refuse_together("--severity", {"--csv": csv, "--latex": latex, "--bold": bold})
        from orchestration.safety import show_severity

        show_severity(stages, found, reference)
        return
    cohort = stages.cohort_of(found[0])
    stages.show_comparison(found, cohort, reference, csv=csv, latex=latex, bold=bold)
