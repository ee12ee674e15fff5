"""`medrec study`: a paper's system with its ablations, from raw records to a table and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medrec.config import (
    CohortConfig,
    ConceptConfig,
    FeatureRunConfig,
    PretrainRunConfig,
    StudyConfig,
    StudySystem,
    TrainConfig,
)
from medrec.loading import load_config
from medrec.runs import Run
from orchestration.many import Job, train_many, variants
from orchestration.stages import Stages
from quantum.base import ConfigError

if TYPE_CHECKING:
    from medrec.concepts.table import ConceptTable
    from medrec.data.cohort import Cohort
    from medrec.molecules.features import FeatureTable


@dataclass(frozen=True)
class Plan:
    """A study with every file that it names, validated before anything runs."""

    config: StudyConfig
    records: CohortConfig
    features: FeatureRunConfig | None
    pretrain: dict[str, PretrainRunConfig]
    concepts: dict[str, ConceptConfig]
    train: tuple[TrainConfig, ...]

    def jobs(self) -> list[tuple[StudySystem, TrainConfig]]:
        """Every system on every split with every seed."""
        return [
            (system, config)
            for system, base in zip(self.config.systems, self.train, strict=True)
            for config in variants([base], self.config.splits, self.config.seeds)
        ]


def load_plan(
    path: Path,
    records: Path | None = None,
    seeds: list[int] | None = None,
    splits: list[int] | None = None,
    overrides: list[str] | None = None,
) -> Plan:
    """Read a study and all files that it names.

    Parameters
    ----------
    records : Path, optional
        Cohort configuration in place of the study's own.
    overrides : list of str
        ``key.path=value`` for every training configuration.

    Raises
    ------
    ConfigError
        If a file does not validate, or the reference is none of the systems.
    """
    config = load_config(path, StudyConfig)
    changed = {"seeds": tuple(seeds or ()), "splits": tuple(splits or ())}
    config = config.model_copy(update={key: value for key, value in changed.items() if value})
    folder = path.parent
    plan = Plan(
        config,
        load_config(records or folder / config.records, CohortConfig),
        load_config(folder / config.features, FeatureRunConfig) if config.features else None,
        {
            name: load_config(folder / name, PretrainRunConfig)
            for name in _named(config, "pretrain")
        },
        {name: load_config(folder / name, ConceptConfig) for name in _named(config, "concepts")},
        tuple(
            load_config(folder / system.train, TrainConfig, [*system.overrides, *(overrides or ())])
            for system in config.systems
        ),
    )
    names = [item.name for item in plan.train]
    if config.reference not in names:
        raise ConfigError(
            f"{path}: reference '{config.reference}' is none of the systems: {', '.join(names)}"
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: two systems have one name: {', '.join(sorted(names))}")
    if plan.pretrain and plan.features is None:
        raise ConfigError(f"{path}: pre-training needs the molecules' features; set 'features'")
    return plan


def _named(config: StudyConfig, kind: str) -> list[str]:
    """Files that systems name, each once."""
    names = (getattr(system, kind) for system in config.systems)
    return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class _Inputs:
    """What the stages before training have made."""

    cohort: Cohort
    features: FeatureTable | None
    pretrained: dict[str, Run]
    concepts: dict[str, ConceptTable]

    def of(self, system: StudySystem) -> dict[str, Any]:
        """Inputs of one system's runs."""
        return {
            "features": self.features,
            "pretrained": self.pretrained[system.pretrain] if system.pretrain else None,
            "concepts": self.concepts[system.concepts] if system.concepts else None,
        }


def run_study(
    plan: Plan,
    stages: Stages,
    workers: int = 1,
    page: Path | None = None,
    *,
    report: bool = True,
) -> list[Run]:
    """Run a study; every finished part is found by name.

    Parameters
    ----------
    page : Path, optional
        Where the page goes; by default among the reports.
    report : bool
        False writes no page.

    Returns
    -------
    list of Run
        The training runs.
    """
    terminal = stages.terminal
    inputs = _prepare(plan, stages)
    with terminal.stage("train, evaluate, compare"):
        runs = _train(plan, inputs, stages, workers)
        reference = next(run.name for run in runs if run.config()["name"] == plan.config.reference)
        stages.show_comparison(runs, inputs.cohort, reference)
    if report:
        path = stages.report([*runs, *inputs.pretrained.values()], inputs.features, page)
        terminal.say(f"report: {path}")
    return runs


def _prepare(plan: Plan, stages: Stages) -> _Inputs:
    terminal = stages.terminal
    with terminal.stage("prepare: records to cohort"):
        cohort = stages.prepare(plan.records)
    features = None
    if plan.features is not None:
        with terminal.stage("features: molecules, conformers, maps"):
            features = stages.run_features(plan.features, [cohort])
    pretrained: dict[str, Run] = {}
    for name, config in plan.pretrain.items():
        assert features is not None  # load_plan has seen to it
        with terminal.stage(f"pretrain: {config.task.name}"):
            pretrained[name] = stages.pretrain(config, cohort, features)
    concepts: dict[str, ConceptTable] = {}
    for name, concept_config in plan.concepts.items():
        with terminal.stage(f"concepts: {concept_config.name}"):
            concepts[name] = stages.build_concepts(concept_config, cohort)
    return _Inputs(cohort, features, pretrained, concepts)


def _train(plan: Plan, inputs: _Inputs, stages: Stages, workers: int) -> list[Run]:
    jobs = plan.jobs()
    if workers == 1:
        return [stages.train(config, inputs.cohort, **inputs.of(system)) for system, config in jobs]
    places = [
        Job(
            config,
            str(inputs.cohort.folder.resolve()),
            str(stages.home.root.resolve()),
            **{
                kind: str(item.folder.resolve()) if item is not None else None
                for kind, item in inputs.of(system).items()
            },
        )
        for system, config in jobs
    ]
    return train_many(places, workers, stages.terminal)
