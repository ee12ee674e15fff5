"""Hyper-parameter search with Ray Tune and Optuna.

The Optuna study, a journal file in the run's folder, is the only record. To resume, no Ray state is
restored: trials that a dead session left running are marked as failed and their parameters are
queued again, and a fresh Tuner runs what is left. Pruning is the scheduler's job (ASHA); Optuna
hears of final values only.
"""

from __future__ import annotations

import copy
import json
import logging
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune import Callback

from medrec.concepts.table import ConceptTable
from medrec.config import Choice, FloatRange, IntRange, TrainConfig, TuneConfig
from medrec.data.cohort import Cohort
from medrec.fitting import LearningData, build_learning_data, fit, fit_context
from medrec.molecules.features import FeatureTable
from medrec.runs import Home, Run
from medrec.training import feature_sets_of, uses_concepts, uses_molecules
from orchestration.cluster import check_shared, ensure_ray, require
from quantum.base import ConfigError, ResourceError, TransientError

OnTrial = Callable[[int, int, str], None]
METRICS = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")
_JOURNAL, _DETAILS = "study.journal", "trials.jsonl"


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
    with run.recording(seeds={"optuna": config.seed, "torch": config.base.seed}):
        study = open_study(run.folder, config)
        adopt_dead_trials(study)
        left = config.n_trials - len(complete_trials(study))
        if on_trial is not None:
            on_trial(config.n_trials - left, config.n_trials, "")
        if left > 0:
            ray = ensure_ray()
            require(ray, cpus=config.cpus_per_trial)
            check_shared(ray, run.folder)
            _run_session(config, cohort, features, concepts, run, left, on_trial)
        study = open_study(run.folder, config)
        done = len(complete_trials(study))
        if done < config.n_trials:
            raise TransientError(
                f"{config.n_trials - done} of {config.n_trials} trials failed; "
                "the same command tries again"
            )
        table = trials_table(study, config, run.folder)
        table.to_parquet(run.folder / "trials.parquet", index=False)
        best = [trial.number for trial in study.best_trials]
        run.finish(
            {
                "objectives": [item.model_dump() for item in config.objectives],
                "n_trials": len(table),
                "best": table[table["number"].isin(best)].to_dict("records"),
            }
        )
    return run


def _check_objectives(config: TuneConfig) -> None:
    unknown = [item.metric for item in config.objectives if item.metric not in METRICS]
    if unknown:
        raise ConfigError(f"objective {unknown[0]!r} is none of: {', '.join(METRICS)}")


# --------------------------------------------------------------------------- the study


def to_distribution(dimension: FloatRange | IntRange | Choice) -> BaseDistribution:
    """Optuna distribution of one search dimension."""
    if isinstance(dimension, FloatRange):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.type == "loguniform")
    if isinstance(dimension, IntRange):
        return IntDistribution(dimension.low, dimension.high)
    return CategoricalDistribution(list(dimension.values))


def _storage(folder: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return JournalStorage(JournalFileBackend(str(folder / _JOURNAL)))


def open_study(folder: Path, config: TuneConfig) -> optuna.Study:
    """Open the study of a run, or create it."""
    return optuna.create_study(
        storage=_storage(folder),
        study_name=config.name,
        directions=["maximize" if o.mode == "max" else "minimize" for o in config.objectives],
        load_if_exists=True,
    )


def complete_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials with values."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def adopt_dead_trials(study: optuna.Study) -> int:
    """Queue the parameters of trials that a dead session left running; mark those as failed.

    Returns
    -------
    int
        How many there were.
    """
    dead = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in dead:
        if trial.params:
            study.enqueue_trial(trial.params, skip_if_exists=False)
        study.tell(trial.number, state=TrialState.FAIL)
    return len(dead)


def trials_table(study: optuna.Study, config: TuneConfig, folder: Path) -> pd.DataFrame:
    """One row per complete trial.

    Returns
    -------
    pandas.DataFrame
        ``number``, ``params.*``, one column per objective, ``epochs``, ``full_budget`` (False if
        ASHA stopped it early), ``seconds``, ``pareto``.
    """
    details = {
        _params_key(item["params"]): item for item in map(json.loads, _lines(folder / _DETAILS))
    }
    best = {trial.number for trial in study.best_trials}
    rows = []
    for trial in complete_trials(study):
        detail = details.get(_params_key(trial.params), {})
        rows.append(
            {
                "number": trial.number,
                **{f"params.{name}": value for name, value in trial.params.items()},
                **{o.metric: v for o, v in zip(config.objectives, trial.values, strict=True)},
                "epochs": detail.get("epochs"),
                "full_budget": bool(detail.get("full_budget", False)),
                "seconds": detail.get("seconds"),
                "pareto": trial.number in best,
            }
        )
    return pd.DataFrame(rows)


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line for line in text.splitlines() if line.endswith("}")]


def _params_key(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


# --------------------------------------------------------------------------- one session


def _run_session(
    config: TuneConfig,
    cohort: Cohort,
    features: FeatureTable | None,
    concepts: ConceptTable | None,
    run: Run,
    left: int,
    on_trial: OnTrial | None,
) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # a resumed search must not draw the numbers of its first session again
    seed = config.seed + 1000 * len(open_study(run.folder, config).trials)
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    first, several = config.objectives[0], len(config.objectives) > 1
    search = OptunaSearch(
        space={path: to_distribution(item) for path, item in config.space.items()},
        metric=[o.metric for o in config.objectives] if several else first.metric,
        mode=[o.mode for o in config.objectives] if several else first.mode,
        study_name=config.name,
        storage=_storage(run.folder),
        sampler=samplers[config.sampler](),
    )
    scheduler = None
    if config.asha is not None:
        scheduler = ASHAScheduler(
            time_attr="epochs",
            metric=first.metric,
            mode=first.mode,
            max_t=config.base.optim.epochs,
            grace_period=min(config.asha.grace_epochs, config.base.optim.epochs),
            reduction_factor=config.asha.reduction_factor,
        )
    settings = {
        "base": config.base.model_dump(mode="json"),
        "cohort": str(cohort.folder.resolve()),
        "features": str(features.folder.resolve()) if features else None,
        "concepts": str(concepts.folder.resolve()) if concepts else None,
        "details": str((run.folder / _DETAILS).resolve()),
    }
    trainable = tune.with_resources(
        tune.with_parameters(_trial, settings=settings), {"CPU": config.cpus_per_trial}
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=left,
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{run.digest[:12]}-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=str((run.folder / "ray").resolve()),
            verbose=0,
            callbacks=[_Progress(config.n_trials - left, config.n_trials, on_trial)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = tuner.fit()
    errors = results.errors
    if errors and len(errors) == left:
        text = str(errors[0]).strip().splitlines()
        raise ResourceError(f"all {left} trials failed; the first: {text[-1] if text else '?'}")


class _Progress(Callback):
    """Counts finished trials and tells a listener, which stays in this process."""

    def __init__(self, finished: int, wanted: int, listener: OnTrial | None) -> None:
        self.finished, self.wanted, self.listener = finished, wanted, listener

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks; a terminal cannot be."""
        return {"finished": self.finished, "wanted": self.wanted, "listener": None}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count one."""
        self.finished += 1
        if self.listener is not None:
            value = (trial.last_result or {}).get("jaccard")
            note = f"Jaccard {value:.3f}" if value is not None else ""
            self.listener(self.finished, self.wanted, note)


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


def with_params(base: dict[str, Any], params: dict[str, Any]) -> TrainConfig:
    """Training configuration of a trial: dotted paths set in a copy of the base."""
    tree = copy.deepcopy(base)
    for path, value in params.items():
        node = tree
        *parents, last = path.split(".")
        for part in parents:
            node = node[part]
        node[last] = value
    return TrainConfig.model_validate(tree)


def _trial(params: dict[str, Any], settings: dict[str, Any]) -> None:
    """Body of one trial; reports the best epoch so far, so that all objectives belong together."""
    import torch
    from ray import tune

    from medrec.models import build_model
    from medrec.models.base import Recommender

    torch.set_num_threads(1)
    config = with_params(settings["base"], params)
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
    start, best = time.perf_counter(), {"jaccard": -1.0}

    def report(row: dict[str, Any], make_state: Callable[[], dict[str, Any]]) -> None:
        nonlocal best
        values = {name: float(row[f"val_{name}"]) for name in METRICS}
        best = values if values["jaccard"] > best["jaccard"] else best
        epochs = int(row["epoch"]) + 1
        detail = {
            "params": params,
            "epochs": epochs,
            "full_budget": epochs == config.optim.epochs,
            "seconds": round(time.perf_counter() - start, 2),
        }
        with Path(settings["details"]).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(detail, sort_keys=True) + "\n")
        tune.report({**best, "epochs": epochs})

    fit(config, data, model, report=report)
