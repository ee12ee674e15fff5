"""The command `medrec cross`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.options import (
    DEFAULT_HOME,
    RUNS,
    CohortOption,
    FeaturesOption,
    HomeOption,
    JsonOption,
    QuietOption,
    SeedsOption,
    SetOption,
    SplitsOption,
    WorkersOption,
    open_stages,
)


def cross(
    config: Annotated[Path, typer.Argument(help="Cross table, such as configs/cross/small.yaml.")],
    cohort: CohortOption,
    features: FeaturesOption = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Pre-training run, for the rows that start from one.", autocompletion=RUNS
        ),
    ] = None,
    splits: SplitsOption = None,
    seeds: SeedsOption = None,
    workers: WorkersOption = 1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for CSV, JSON and figure.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train every recommender with every representation of molecules, and compare.

    Differences are paired on the same test patients, to a reference representation and to the same
    one with shuffled molecules (the null test). Finished runs are found; a run that fails does not
    lose the others. --set changes every recommender that is named by a file.
    """
    from orchestration.cross import load_cross, run_cross, show_cross
    from orchestration.many import parse_numbers

    stages = open_stages(home, as_json, quiet)
    plan, bases = load_cross(
        config,
        parse_numbers(seeds, "--seeds"),
        parse_numbers(splits, "--splits"),
        overrides or (),
    )
    prepared = stages.cohort(cohort)
    table = stages.features(features)
    start = stages.run(pretrained) if pretrained else None
    folder = out or stages.home.reports / f"cross_{plan.name}-{prepared.folder.name}"
    with stages.terminal.summary():
        result = run_cross(plan, bases, stages, prepared, table, start, workers)
        show_cross(plan, result, stages, folder)
    if result.failed:
        raise typer.Exit(4)
