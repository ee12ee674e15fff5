"""`medrec demo`: every stage in order, each found by name when it was finished before."""

from __future__ import annotations

from pathlib import Path

from medrec.config import (
    CohortConfig,
    DemoConfig,
    FeatureRunConfig,
    PretrainRunConfig,
    TrainConfig,
    TuneConfig,
)
from medrec.loading import load_config
from orchestration.stages import Stages


def run_demo(path: Path, stages: Stages) -> Path:
    """Run records → features → pre-training → search → training → report.

    Parameters
    ----------
    path : Path
        A `DemoConfig`; the files it names are relative to it.

    Returns
    -------
    Path
        The HTML report.

    Raises
    ------
    ConfigError
        Before anything runs, if one of the named files does not validate.
    """
    plan = load_config(path, DemoConfig)
    folder = path.parent
    cohort_config = load_config(folder / plan.cohort, CohortConfig)
    feature_config = load_config(folder / plan.features, FeatureRunConfig)
    pretrain_config = load_config(folder / plan.pretrain, PretrainRunConfig)
    tune_config = load_config(folder / plan.tune, TuneConfig)
    train_configs = [load_config(folder / name, TrainConfig) for name in plan.train]

    terminal = stages.terminal
    with terminal.stage("1/6 prepare: records to cohort"):
        cohort = stages.prepare(cohort_config)
        stages.show_cohort(cohort)
    with terminal.stage("2/6 features: conformers, DFT, ELF"):
        features = stages.run_features(feature_config, [cohort])
        stages.show_features(features)
    with terminal.stage("3/6 pretrain: 2D and 3D encoders, Ray Train"):
        pretrained = stages.pretrain(pretrain_config, cohort, features)
        stages.show_run(pretrained)
    with terminal.stage("4/6 tune: Ray Tune and Optuna"):
        search = stages.tune(tune_config, cohort, features)
        stages.show_trials(search)
    with terminal.stage("5/6 train, evaluate, compare"):
        runs = [stages.train(item, cohort, features, pretrained) for item in train_configs]
        stages.show_comparison(runs, cohort)
    with terminal.stage("6/6 report"):
        page = stages.report([*runs, search, pretrained], features, None)
    if not terminal.quiet:
        terminal.out.print(terminal.timing_table())
    terminal.out.print(f"report: {page}", soft_wrap=True)
    terminal.say(f"try: medrec recommend {runs[-1].name} data/example_patient.json")
    return page
