"""Search over the settings of a recommender; see `orchestration.search`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from medrec.concepts.table import ConceptTable
from medrec.config import TrainConfig, TuneConfig
from medrec.data.cohort import Cohort
from medrec.fitting import LearningData, build_learning_data, choose_device, fit, fit_context
from medrec.molecules.features import FeatureTable
from medrec.runs import Home, Run
from medrec.training import feature_sets_of, uses_concepts, uses_molecules
from orchestration.search import (
    OnTrial,
    Params,
    Search,
    SearchRequest,
    TrialLog,
    at_work,
    check_sampler,
    is_complete,
    open_search,
    open_study,
    run_trials,
    search_report,
    trials_table,
)
from orchestration.search_export import BEST, check_pick, export_best
from quantum.base import ConfigError

METRICS = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")
_BEST_VALUES = "best_values"


def run_tune(
    config: TuneConfig,
    cohort: Cohort,
    home: Home,
    features: FeatureTable | None,
    on_trial: OnTrial | None = None,
    concepts: ConceptTable | None = None,
    request: SearchRequest = SearchRequest(),
    pick: str | None = None,
) -> Run:
    """Search in a run folder, go on with a search of the same name, or find it finished.

    Parameters
    ----------
    concepts : ConceptTable, optional
        For models that read the codes of medical concepts.
    on_trial : callable, optional
        Called with (trials complete, trials wanted, note).
    request : SearchRequest
        Whether the search must be there, how many trials, from which searches it starts.
    pick : str, optional
        Objective that decides which trial is ``best.yaml``; the first one by default.

    Returns
    -------
    Run
        With ``trials.parquet``, ``trials_history.parquet``, ``best.yaml`` (a `TrainConfig`), and
        the best trials (the Pareto front) in its report.
    """
    _check_objectives(config)
    check_sampler(config)
    check_pick(config, pick)
    inputs = {"cohort": cohort.digest} | ({"features": features.digest} if features else {})
    inputs |= {"concepts": concepts.digest} if concepts else {}
    run, warm = open_search(home, config, inputs, request)
    if not is_complete(run, config, request):
        settings = {
            "config": config.model_dump(mode="json"),
            "cohort": str(cohort.folder.resolve()),
            "features": str(features.folder.resolve()) if features else None,
            "concepts": str(concepts.folder.resolve()) if concepts else None,
        }
        note = "Jaccard {jaccard:.3f}"
        search = Search(config, _trial, settings, _most_epochs(config), note, warm)
        with at_work(run, seeds={"optuna": config.seed, "torch": config.base.seed}) as lease:
            table = run_trials(run, search, lease, on_trial, request)
            export_best(run, config, table)
            run.finish(search_report(config, table, run.folder))
    if pick is not None or not (run.folder / BEST).exists():
        study = open_study(run.folder, config)
        export_best(run, config, trials_table(study, config, run.folder), pick)
    return run


def _most_epochs(config: TuneConfig) -> int:
    path = "optim.epochs"
    return int(max(config.limits(path))) if path in config.space else config.base.optim.epochs


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


def _trial(params: Params, settings: dict[str, Any], log: TrialLog) -> None:
    """Body of one trial; reports the best epoch so far, so that all objectives belong together."""
    import torch

    from medrec.models import build_model
    from medrec.models.base import Recommender

    search = TuneConfig.model_validate(settings["config"])
    config = search.with_params(params)
    config = config.model_copy(update={"seed": config.seed + log.repeat})
    device = choose_device("cuda" if search.gpus_per_trial else "cpu")
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
    data = replace(data, context=data.context.to(device))
    model = build_model(config, data.context)
    if not isinstance(model, Recommender):
        raise ConfigError(f"model '{config.model.name}' has nothing to search")
    resume = log.resumed()
    best = {"jaccard": -1.0} if resume is None else resume.pop(_BEST_VALUES)

    def report(row: dict[str, Any], make_state: Callable[[], dict[str, Any]]) -> None:
        nonlocal best
        values = {name: float(row[f"val_{name}"]) for name in METRICS}
        best = values if not values["jaccard"] <= best["jaccard"] else best
        log.epoch(
            int(row["epoch"]) + 1,
            best,
            config.optim.epochs,
            lambda: {**make_state(), _BEST_VALUES: best},
        )

    state = None if resume is None else _with_settings(resume, config)
    fit(config, data, model.to(device), report=report, resume=state, device=device)


def _with_settings(state: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """State of another member of a population, with this one's settings of the optimiser."""
    for group in state["optimiser"]["param_groups"]:
        group["lr"], group["weight_decay"] = config.optim.lr, config.optim.weight_decay
    return state
