"""`medrec tune`: search the settings of a recommender."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestration.options import (
    DEFAULT_HOME,
    RUNS,
    CohortOption,
    ConceptsOption,
    ConfigArgument,
    FeaturesOption,
    HomeOption,
    JsonOption,
    QuietOption,
    SetOption,
    open_stages,
)

ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with a search; an error if it is not there.")
]
WarmStartOption = Annotated[
    list[str] | None,
    typer.Option(
        "--warm-start",
        help="Earlier search whose trials this one starts from.",
        autocompletion=RUNS,
    ),
]
TrialsOption = Annotated[
    int | None,
    typer.Option("--trials", min=1, help="Complete trials wanted; more than before, also later."),
]
PickOption = Annotated[
    str | None,
    typer.Option("--pick", help="Objective that decides which trial becomes best.yaml."),
]


def tune(
    config: ConfigArgument,
    cohort: CohortOption,
    features: FeaturesOption = None,
    concepts: ConceptsOption = None,
    resume: ResumeOption = False,
    trials: TrialsOption = None,
    warm_start: WarmStartOption = None,
    pick: PickOption = None,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search hyper-parameters with Ray Tune and Optuna; the same command resumes a search."""
    from medrec.config import TuneConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    settings = load_config(config, TuneConfig, overrides or ())
    run = stages.tune(
        settings,
        stages.cohort(cohort),
        stages.features(features),
        stages.concepts(concepts),
        resume=resume,
        n_trials=trials,
        warm=tuple(stages.run(name) for name in warm_start or ()),
        pick=pick,
    )
    options = {"cohort": cohort, "features": features, "concepts": concepts}
    stages.show_trials(run, options | {"home": None if home == DEFAULT_HOME else str(home)})
