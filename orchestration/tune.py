"""Search over the settings of a recommender; see `orchestration.search`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from medrec.concepts.table import ConceptTable
from medrec.config import TuneConfig
from medrec.data.cohort import Cohort
from medrec.fitting import LearningData, build_learning_data, fit, fit_context
from medrec.molecules.features import FeatureTable
from medrec.runs import Home, Run
from medrec.training import feature_sets_of, uses_concepts, uses_molecules
from orchestration.search import OnTrial, Params, Search, TrialLog, run_trials, search_report
from quantum.base import ConfigError

METRICS = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")


def run_tune(
    config: TuneConfig,
    cohort: Cohort,
    home: Home,
    features: FeatureTable | None,
    on_trial: OnTrial | None = None,
    concepts: ConceptTable | None = None,
) -> Run:
    """Search in a run folder, go on with a search of the same name, or find it finished.

    Parameters
    ----------
    concepts : ConceptTable, optional
        For models that read the codes of medical concepts.
    on_trial : callable, optional
        Called with (trials complete, trials wanted, note).

    Returns
    -------
    Run
        With ``trials.parquet`` and the best trials (the Pareto front) in its report.
    """
    _check_objectives(config)
    key = config.model_copy(update={"max_concurrent": 1, "cpus_per_trial": 1})
    inputs = {"cohort": cohort.digest} | ({"features": features.digest} if features else {})
    inputs |= {"concepts": concepts.digest} if concepts else {}
    run = Run.open(home, "tune", config.name, key, inputs)
    if run.is_finished:
        return run
    settings = {
        "config": config.model_dump(mode="json"),
        "cohort": str(cohort.folder.resolve()),
        "features": str(features.folder.resolve()) if features else None,
        "concepts": str(concepts.folder.resolve()) if concepts else None,
    }
    search = Search(config, _trial, settings, config.base.optim.epochs, "Jaccard {jaccard:.3f}")
    with run.recording(seeds={"optuna": config.seed, "torch": config.base.seed}):
        table = run_trials(run, search, on_trial)
        run.finish(search_report(config, table))
    return run


def _check_objectives(config: TuneConfig) -> None:
    unknown = [item.metric for item in config.objectives if item.metric not in METRICS]
    if unknown:
        raise ConfigError(f"objective {unknown[0]!r} is none of: {', '.join(METRICS)}")


@lru_cache(maxsize=2)
def _load(
    cohort: str,
    features: str | None,
    split: int,
    molecules: bool,
    feature_sets: tuple[str, ...] | None,
    concepts: str | None,
) -> LearningData:
    """Data of a worker, kept for its next trial."""
    table = FeatureTable.load(Path(features)) if features else None
    return build_learning_data(
        Cohort.load(Path(cohort)),
        split,
        table,
        molecules=molecules,
        feature_sets=feature_sets,
        concepts=ConceptTable.load(Path(concepts)) if concepts else None,
    )


def _trial(params: Params, settings: dict[str, Any]) -> None:
    """Body of one trial; reports the best epoch so far, so that all objectives belong together."""
    import torch

    from medrec.models import build_model
    from medrec.models.base import Recommender

    torch.set_num_threads(1)
    config = TuneConfig.model_validate(settings["config"]).with_params(params)
    data = _load(
        settings["cohort"],
        settings["features"],
        config.split,
        uses_molecules(config),
        feature_sets_of(config),
        settings["concepts"] if uses_concepts(config) else None,
    )
    torch.manual_seed(config.seed)
    data = fit_context(config, data)
    model = build_model(config, data.context)
    if not isinstance(model, Recommender):
        raise ConfigError(f"model '{config.model.name}' has nothing to search")
    log, best = TrialLog(params, settings, config.optim.epochs), {"jaccard": -1.0}

    def report(row: dict[str, Any], make_state: Callable[[], dict[str, Any]]) -> None:
        nonlocal best
        values = {name: float(row[f"val_{name}"]) for name in METRICS}
        best = values if values["jaccard"] > best["jaccard"] else best
        log.epoch(int(row["epoch"]) + 1, best)

    fit(config, data, model, report=report)
