"""The chain from records to a page: demo, prepare, pretrain, train, recommend, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.options import (
    DEFAULT_HOME,
    FEATURES,
    RUNS,
    CohortOption,
    ConceptsOption,
    ConfigArgument,
    FeaturesOption,
    HardOption,
    HomeOption,
    JsonOption,
    PretrainedOption,
    QuietOption,
    RunArgument,
    SeedsOption,
    SetOption,
    SplitsOption,
    WorkersOption,
    open_stages,
)


def demo(
    config: Annotated[Path, typer.Argument(help="Which files the demo runs.")] = Path(
        "configs/demo.yaml"
    ),
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run the whole chain on the open MIMIC demo: records, molecules, models, report.

    Everything is found by name: a second call finishes in seconds, and an interrupted one goes on
    where it stopped.
    """
    from orchestration.demo import run_demo

    stages = open_stages(home, as_json, quiet)
    if not as_json:
        run_demo(config, stages)
        return
    with stages.terminal.gathered() as documents:
        page = run_demo(config, stages)
    stages.terminal.result({"stages": documents, "report": str(page)})


def prepare(
    config: ConfigArgument,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn raw tables into a cohort, with a count after every filter."""
    from medrec.config import CohortConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    cohort = stages.prepare(load_config(config, CohortConfig, overrides or ()))
    stages.show_cohort(cohort)


def pretrain(
    config: ConfigArgument,
    cohort: CohortOption,
    features: Annotated[
        str,
        typer.Option("--features", help="Feature table with conformers.", autocompletion=FEATURES),
    ],
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pre-train the 2D and 3D molecule encoders through Ray Train."""
    from medrec.config import PretrainRunConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    run = stages.pretrain(
        load_config(config, PretrainRunConfig, overrides or ()),
        stages.cohort(cohort),
        stages.feature_table(features),
    )
    stages.show_run(run)


def train(
    configs: Annotated[list[Path], typer.Argument(help="One or more training configurations.")],
    cohort: CohortOption,
    features: FeaturesOption = None,
    pretrained: PretrainedOption = None,
    concepts: ConceptsOption = None,
    splits: SplitsOption = None,
    seeds: SeedsOption = None,
    workers: WorkersOption = 1,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train recommenders, select on validation, evaluate once on the test part.

    With --splits and --seeds every configuration runs on every split with every seed.
    """
    from medrec.config import TrainConfig
    from medrec.loading import load_config
    from orchestration.many import parse_numbers, variants

    stages = open_stages(home, as_json, quiet)
    loaded = [load_config(path, TrainConfig, overrides or ()) for path in configs]
    wanted = variants(loaded, parse_numbers(splits, "--splits"), parse_numbers(seeds, "--seeds"))
    prepared, table = stages.cohort(cohort), stages.features(features)
    start = stages.run(pretrained) if pretrained else None
    codes = stages.concepts(concepts)
    with stages.terminal.summary():
        runs = stages.train_all(wanted, prepared, table, start, workers, codes)
        with stages.terminal.timed("compare"):
            stages.show_comparison(runs, prepared, stages.usual_reference(runs))


def recommend(
    run: RunArgument,
    visits: Annotated[Path, typer.Argument(help="Patient's visits as JSON; - for standard input.")],
    top: Annotated[int, typer.Option(min=1, help="How many drugs to print.")] = 20,
    hard: HardOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rank drugs for one patient's latest visit and name the interacting pairs.

    Research use only, not for clinical decisions.
    """
    stages = open_stages(home, as_json, quiet)
    found = stages.run(run)
    stages.recommend(found, visits, top, hard)


def report(
    runs: Annotated[
        list[str],
        typer.Argument(help="Training, tuning and pre-training runs.", autocompletion=RUNS),
    ],
    features: FeaturesOption = None,
    with_patient: Annotated[
        bool, typer.Option(help="Show one test patient of restricted records too.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file to write.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write one self-contained HTML page about runs, their cohort and their molecules."""
    stages = open_stages(home, as_json, quiet)
    opened = [stages.run(name) for name in runs]
    table = stages.features(features)
    with stages.terminal.progress("report", None):
        path = stages.report(opened, table, out, with_patient)
    stages.terminal.result({"report": str(path)}, f"report: {path}")
