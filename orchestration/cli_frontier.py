"""The command `medrec frontier`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.options import (
    COHORTS,
    DEFAULT_HOME,
    RUNS,
    SEVERITIES,
    ConceptsOption,
    FeaturesOption,
    HomeOption,
    JsonOption,
    PretrainedOption,
    QuietOption,
    SeedsOption,
    SetOption,
    WorkersOption,
    open_stages,
)


def frontier(
    systems: Annotated[
        list[str],
        typer.Argument(
            help="Training configurations (.yaml) and finished runs.", autocompletion=RUNS
        ),
    ],
    cohort: Annotated[
        str | None,
        typer.Option(help="Cohort to train on; of runs it is their own.", autocompletion=COHORTS),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="DDI targets; every configuration is trained at each: 0.02,0.05,0.1."),
    ] = None,
    post_hoc: Annotated[
        bool, typer.Option("--post-hoc", help="Curves of one training: a penalty at decoding.")
    ] = False,
    strengths: Annotated[
        str | None, typer.Option(help="Strengths of that penalty, such as 0,0.1,0.2,0.5.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="DDI rates to compare at; default five that all reach.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Curve that differences refer to; default the first.")
    ] = None,
    severity: Annotated[
        str | None,
        typer.Option(
            help="Rate of this severity in place of the DDI rate: contraindicated.",
            autocompletion=SEVERITIES,
        ),
    ] = None,
    seeds: SeedsOption = None,
    features: FeaturesOption = None,
    pretrained: PretrainedOption = None,
    concepts: ConceptsOption = None,
    workers: WorkersOption = 1,
    figure: Annotated[
        Path | None, typer.Option(help="Figure to write: .html, or .png with kaleido.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Trade Jaccard against DDI rate: whole curves, compared at equal DDI rates.

    With --targets every configuration is trained at each DDI target. With --post-hoc one training
    gives a curve: interactions are penalised at decoding, without training again.
    """
    from medrec.evaluation.hard_mode import parse_grade
    from orchestration.frontier import (
        FrontierRequest,
        build_curves,
        check_figure,
        load_systems,
        parse_values,
        show_frontier,
    )
    from orchestration.many import parse_numbers
    from quantum.base import InputError

    stages = open_stages(home, as_json, quiet)
    check_figure(figure)
    configs, runs = load_systems(stages, systems, overrides or [])
    request = FrontierRequest(
        configs,
        runs,
        parse_values(targets, "--targets"),
        post_hoc,
        parse_values(strengths, "--strengths"),
        parse_numbers(seeds, "--seeds"),
        None if severity is None else parse_grade(severity),
    )
    request.check()
    rates = parse_values(at, "--at")
    if cohort is None and not runs:
        raise InputError("configurations need records; expected --cohort")
    prepared = stages.cohort(cohort) if cohort else stages.cohort_of(runs[0])
    if any(run.inputs.get("cohort") != prepared.digest for run in runs):
        raise InputError(f"a run was not trained on cohort {prepared.name}; expected one cohort")
    with stages.terminal.summary():
        curves = build_curves(
            request,
            stages,
            workers,
            cohort=prepared,
            features=stages.features(features),
            pretrained=stages.run(pretrained) if pretrained else None,
            concepts=stages.concepts(concepts),
        )
        show_frontier(stages, curves, rates, reference, request.grade, figure)
