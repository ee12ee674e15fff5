"""The command `medrec study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.options import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    QuietOption,
    SeedsOption,
    SetOption,
    SplitsOption,
    WorkersOption,
    open_stages,
)


def study(
    config: Annotated[Path, typer.Argument(help="Study, such as configs/studies/bimorec.yaml.")],
    records: Annotated[
        Path | None, typer.Option(help="Cohort configuration in place of the study's own.")
    ] = None,
    splits: SplitsOption = None,
    seeds: SeedsOption = None,
    workers: WorkersOption = 1,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML page to write.")] = None,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a paper's system and its ablations, from raw records to a table and a page.

    Every part is found by name when it was finished before. With --records the same study runs on
    other records, such as your full MIMIC; --set changes every training configuration.
    """
    from orchestration.many import parse_numbers
    from orchestration.study import load_plan, run_study

    plan = load_plan(
        config,
        records,
        parse_numbers(seeds, "--seeds"),
        parse_numbers(splits, "--splits"),
        overrides,
    )
    stages = open_stages(home, as_json, quiet)
    with stages.terminal.summary():
        run_study(plan, stages, workers, out)
