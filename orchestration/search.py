"""Hyper-parameter search with Ray Tune and Optuna, whatever is searched.

The Optuna study, a journal file in the run's folder, is the only record. To resume, no Ray state is
restored: trials that a dead session left running are marked as failed and their parameters are
queued again, and a fresh Tuner runs what is left. Pruning is the scheduler's job (ASHA); Optuna
hears of final values only.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
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

from medrec.config import Choice, FloatRange, IntRange, SearchConfig
from medrec.runs import Run
from orchestration.cluster import check_shared, ensure_ray, require
from quantum.base import ResourceError, TransientError

OnTrial = Callable[[int, int, str], None]
Params = dict[str, Any]
TRIALS = "trials.parquet"
_JOURNAL, _DETAILS = "study.journal", "trials.jsonl"


@dataclass(frozen=True)
class Search:
    """What is searched.

    Parameters
    ----------
    config : SearchConfig
        With at least one objective.
    trial : callable
        Body of a trial, called in a Ray worker with parameters and ``settings``; a function of a
        module. It calls `report_epoch` after every epoch.
    settings : dict
        Plain values for the body.
    epochs : int
        Longest trial.
    note : str
        Format of a progress display's note, filled in from the last numbers of a trial.
    """

    config: SearchConfig[Any]
    trial: Callable[[Params, dict[str, Any]], None]
    settings: dict[str, Any]
    epochs: int
    note: str


def run_trials(run: Run, search: Search, on_trial: OnTrial | None = None) -> pd.DataFrame:
    """Run the trials that a search still lacks and write ``trials.parquet``.

    Parameters
    ----------
    on_trial : callable, optional
        Called with (trials complete, trials wanted, note).

    Returns
    -------
    pandas.DataFrame
        See `trials_table`.

    Raises
    ------
    ResourceError
        If the cluster is too small, or all trials failed.
    TransientError
        If some trials failed.
    """
    config = search.config
    study = open_study(run.folder, config)
    adopt_dead_trials(study)
    left = config.n_trials - len(complete_trials(study))
    if on_trial is not None:
        on_trial(config.n_trials - left, config.n_trials, "")
    if left > 0:
        ray = ensure_ray()
        require(ray, cpus=config.cpus_per_trial)
        check_shared(ray, run.folder)
        _run_session(run, search, left, on_trial)
    study = open_study(run.folder, config)
    done = len(complete_trials(study))
    if done < config.n_trials:
        raise TransientError(
            f"{config.n_trials - done} of {config.n_trials} trials failed; "
            "the same command tries again"
        )
    table = trials_table(study, config, run.folder)
    table.to_parquet(run.folder / TRIALS, index=False)
    return table


def search_report(config: SearchConfig[Any], table: pd.DataFrame) -> dict[str, Any]:
    """Objectives, number of trials, and the best of them (the Pareto front)."""
    return {
        "objectives": [item.model_dump() for item in config.objectives],
        "n_trials": len(table),
        "best": table[table["pareto"]].to_dict("records"),
    }


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


def open_study(folder: Path, config: SearchConfig[Any]) -> optuna.Study:
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


def trials_table(study: optuna.Study, config: SearchConfig[Any], folder: Path) -> pd.DataFrame:
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


def _params_key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)


# --------------------------------------------------------------------------- one session


def _run_session(run: Run, search: Search, left: int, on_trial: OnTrial | None) -> None:
    from ray import tune

    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = search.config
    settings = {**search.settings, "details": str((run.folder / _DETAILS).resolve())}
    trainable = tune.with_resources(
        tune.with_parameters(search.trial, settings=settings), {"CPU": config.cpus_per_trial}
    )
    finished = config.n_trials - left
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_suggestions(run.folder, config),
            scheduler=_scheduler(config, search.epochs),
            num_samples=left,
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{run.digest[:12]}-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=str((run.folder / "ray").resolve()),
            verbose=0,
            callbacks=[_Progress(finished, config.n_trials, search.note, on_trial)],
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


def _suggestions(folder: Path, config: SearchConfig[Any]) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    # a resumed search must not draw the numbers of its first session again
    seed = config.seed + 1000 * len(open_study(folder, config).trials)
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    first, several = config.objectives[0], len(config.objectives) > 1
    return OptunaSearch(
        space={path: to_distribution(item) for path, item in config.space.items()},
        metric=[o.metric for o in config.objectives] if several else first.metric,
        mode=[o.mode for o in config.objectives] if several else first.mode,
        study_name=config.name,
        storage=_storage(folder),
        sampler=samplers[config.sampler](),
    )


def _scheduler(config: SearchConfig[Any], epochs: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    if config.asha is None:
        return None
    first = config.objectives[0]
    return ASHAScheduler(
        time_attr="epochs",
        metric=first.metric,
        mode=first.mode,
        max_t=epochs,
        grace_period=min(config.asha.grace_epochs, epochs),
        reduction_factor=config.asha.reduction_factor,
    )


class _Progress(Callback):
    """Counts finished trials and tells a listener, which stays in this process."""

    def __init__(self, finished: int, wanted: int, note: str, listener: OnTrial | None) -> None:
        self.finished, self.wanted, self.note, self.listener = finished, wanted, note, listener

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks; a terminal cannot be."""
        return {**vars(self), "listener": None}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count one."""
        self.finished += 1
        if self.listener is not None:
            result = trial.last_result
            note = self.note.format_map(result) if result else ""
            self.listener(self.finished, self.wanted, note)


# --------------------------------------------------------------------------- inside a trial


@dataclass
class TrialLog:
    """Tells Ray Tune about the epochs of a trial, and the run's folder how far it came.

    Parameters
    ----------
    settings : dict
        Those that the body of the trial was called with.
    epochs : int
        What the trial has if nothing stops it.
    """

    params: Params
    settings: dict[str, Any]
    epochs: int
    start: float = field(default_factory=time.perf_counter, init=False)

    def epoch(self, done: int, values: dict[str, float]) -> None:
        """Report the objectives after so many epochs."""
        from ray import tune

        detail = {
            "params": self.params,
            "epochs": done,
            "full_budget": done == self.epochs,
            "seconds": round(time.perf_counter() - self.start, 2),
        }
        with Path(self.settings["details"]).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(detail, sort_keys=True) + "\n")
        tune.report({**values, "epochs": done})
