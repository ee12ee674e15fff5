"""Hyper-parameter search with Ray Tune and Optuna, whatever is searched.

The Optuna study, a journal file in the run's folder, is the only record. To resume, no Ray state is
restored: trials that a dead session left running are marked as failed and their parameters are
queued again, and a fresh Tuner runs what is left. Pruning is the scheduler's job; Optuna hears of
final values only. A lease keeps two sessions from working on one study.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medrec.config import SearchConfig
from medrec.runs import Home, Run
from orchestration.cluster import check_shared, ensure_ray, require
from orchestration.search_journal import JOURNAL, repair_journal
from orchestration.search_lease import Lease
from orchestration.search_pbt import run_population
from orchestration.search_schedulers import check_sampler
from orchestration.search_session import OnTrial, run_session
from orchestration.search_space import Params, to_distribution
from orchestration.search_study import (
    adopt_dead_trials,
    check_wanted,
    complete_trials,
    earlier_trials,
    open_study,
    queue_grid,
    raise_wanted,
    wanted_trials,
    warm_start,
)
from orchestration.search_tables import (
    HISTORY,
    TRIALS,
    best_number,
    history_table,
    records,
    trials_table,
)
from orchestration.search_trial import TrialLog, TrialPlan
from orchestration.tracking import tracking
from quantum.base import InputError, ResourceError, TransientError, digest

__all__ = [
    "HISTORY",
    "TRIALS",
    "OnTrial",
    "Params",
    "Search",
    "SearchRequest",
    "TrialLog",
    "adopt_dead_trials",
    "at_work",
    "best_number",
    "check_sampler",
    "complete_trials",
    "is_complete",
    "open_search",
    "open_study",
    "records",
    "run_trials",
    "search_report",
    "slots_of",
    "to_distribution",
    "trials_table",
]


@dataclass(frozen=True)
class Search:
    """What is searched.

    Parameters
    ----------
    config : SearchConfig
        With at least one objective.
    trial : callable
        Body of a trial, called in a Ray worker with parameters, ``settings`` and a `TrialLog`; a
        function of a module. It calls `TrialLog.epoch` after every epoch.
    settings : dict
        Plain values for the body.
    epochs : int
        Longest trial.
    note : str
        Format of a progress display's note, filled in from the last numbers of a trial.
    warm : sequence of Run
        Earlier searches to start from.
    """

    config: SearchConfig[Any]
    trial: Callable[[Params, dict[str, Any], TrialLog], None]
    settings: dict[str, Any]
    epochs: int
    note: str
    warm: Sequence[Run] = ()

    def plan(self) -> TrialPlan:
        """What travels to the trials."""
        return TrialPlan(
            self.trial,
            self.settings,
            tuple(item.metric for item in self.config.objectives),
            threads=max(1, int(self.config.cpus_per_trial)),
            repeats=self.config.repeats,
            keep_states=self.config.rule == "pbt",
        )


@dataclass(frozen=True)
class SearchRequest:
    """What a caller asks of a search beside its configuration.

    Parameters
    ----------
    resume : bool
        The search must be there already.
    n_trials : int, optional
        More complete trials than the configuration asks for.
    warm : tuple of Run
        Earlier searches to start from, beside those that the configuration names.
    warn : callable
        Told of repairs.
    """

    resume: bool = False
    n_trials: int | None = None
    warm: tuple[Run, ...] = ()
    warn: Callable[[str], None] = field(default=warnings.warn)


NOTHING_ASKED = SearchRequest()


def open_search(
    home: Home, config: SearchConfig[Any], inputs: dict[str, str], request: SearchRequest
) -> tuple[Run, list[Run]]:
    """Run folder of a search, and the earlier searches that it starts from.

    Raises
    ------
    InputError, ConfigError
        If it is to be resumed and is not there, or an earlier one is not or asks something else.
    """
    named = [Run.load(home.find(home.runs, name)) for name in config.warm_start]
    warm = list({run.digest: run for run in [*named, *request.warm]}.values())
    for earlier in warm if config.objectives else ():
        earlier_trials(earlier, config)
    if warm:
        inputs = {**inputs, "warm_start": "+".join(sorted(run.digest for run in warm))}
    key = config.key()
    if request.resume:
        _must_exist(home, config.name, key, inputs)
    return Run.open(home, "tune", config.name, key, inputs), warm


def _must_exist(home: Home, name: str, key: SearchConfig[Any], inputs: dict[str, str]) -> None:
    settings = key.model_dump(mode="json")
    wanted = f"{name}-{digest({'kind': 'tune', 'config': settings, 'inputs': inputs})[:8]}"
    if (home.runs / wanted / "run.json").exists():
        return
    there = [
        path.parent.name
        for path in sorted(home.runs.glob("*/run.json"))
        if Run.load(path.parent).kind == "tune"
    ]
    known = ", ".join(there) or "none"
    raise InputError(
        f"no search {wanted} to resume in {home.runs}; there is: {known}. Another configuration, "
        "cohort or feature table makes another search; without --resume it is begun"
    )


def is_complete(run: Run, config: SearchConfig[Any], request: SearchRequest) -> bool:
    """Whether a search is finished and nobody asks for more trials.

    Raises
    ------
    ConfigError
        If fewer trials are asked for than there are to be.
    """
    if request.n_trials is None:
        return run.is_finished
    if not run.is_finished and not (run.folder / JOURNAL).exists():
        check_wanted(config.n_trials, config, request.n_trials)
        return False
    before = wanted_trials(open_study(run.folder, config), config)
    check_wanted(before, config, request.n_trials)
    return run.is_finished and request.n_trials == before


@contextmanager
def at_work(run: Run, **facts: Any) -> Iterator[Lease]:
    """Hold a search and mark its run as running; ``facts`` as in `Run.recording`.

    Raises
    ------
    TransientError
        If another session works on it.
    """
    with Lease(run.folder) as lease, run.recording(**facts), tracking(run):
        yield lease


def run_trials(
    run: Run,
    search: Search,
    lease: Lease,
    on_trial: OnTrial | None = None,
    request: SearchRequest = NOTHING_ASKED,
) -> pd.DataFrame:
    """Run the trials that a search still lacks; write ``trials.parquet`` and its history.

    Parameters
    ----------
    lease : Lease
        Held; see `at_work`.
    on_trial : callable, optional
        Called with (trials complete, trials wanted, note).

    Returns
    -------
    pandas.DataFrame
        See `trials_table`.

    Raises
    ------
    ConfigError
        Before the first trial, if sampler, objectives and earlier searches do not fit.
    ResourceError
        If the cluster is too small, or all trials failed.
    TransientError
        If too many trials failed, or another session works on the search.
    """
    config = search.config
    check_sampler(config)
    for earlier in search.warm:
        earlier_trials(earlier, config)
    repair_journal(run.folder, request.warn)
    study = open_study(run.folder, config)
    if request.n_trials is not None:
        raise_wanted(study, config, request.n_trials)
    warm_start(study, config, search.warm)
    adopt_dead_trials(study)
    _run_what_is_left(run, search, lease, on_trial)
    study = open_study(run.folder, config)
    table = trials_table(study, config, run.folder)
    table.to_parquet(run.folder / TRIALS, index=False)
    history_table(study, run.folder).to_parquet(run.folder / HISTORY, index=False)
    shutil.rmtree(run.folder / "ray", ignore_errors=True)
    return table


def _run_what_is_left(run: Run, search: Search, lease: Lease, on_trial: OnTrial | None) -> None:
    """Sessions until all trials are complete; failed ones are made up for, within limits."""
    config, failures = search.config, list[str]()
    for session in itertools.count():
        study = open_study(run.folder, config)
        done, wanted = len(complete_trials(study)), wanted_trials(study, config)
        if on_trial is not None and not session:
            on_trial(done, wanted, "")
        # a point of a grid and a member of a population have no substitute
        fixed = config.sampler == "grid" or config.rule == "pbt"
        missing = wanted - done - (len(failures) if fixed else 0)
        if missing <= 0 and len(failures) <= config.failures_allowed:
            return
        _check_failures(failures, done, wanted, config)
        if config.sampler == "grid" and not session:
            queue_grid(study, config)
        found = _one_session(run, search, lease, on_trial, done, wanted, failures)
        failures += found
        if lease.lost():
            raise TransientError("another session took over this search; this one has stopped")
        if not found and len(complete_trials(open_study(run.folder, config))) == done:
            raise TransientError(
                f"{wanted - done} of {wanted} trials are missing and none could be run; "
                "the same command tries again"
            )


def _check_failures(failures: list[str], done: int, wanted: int, config: SearchConfig[Any]) -> None:
    if len(failures) <= config.failures_allowed:
        return
    if not done:
        raise ResourceError(f"all {len(failures)} trials failed; the first: {failures[0]}")
    raise TransientError(
        f"{len(failures)} trials failed, more than the {config.failures_allowed} of "
        f"max_failed_trials; the first: {failures[0]}. {done} of {wanted} trials are complete "
        "and kept; the same command tries again"
    )


def _one_session(
    run: Run, search: Search, lease: Lease, on_trial: OnTrial | None, done: int, wanted: int,
    failures: list[str],
) -> list[str]:  # fmt: skip
    config = search.config
    ray = ensure_ray()
    require(ray, cpus=config.cpus_per_trial, gpus=config.gpus_per_trial)
    check_shared(ray, run.folder)
    slots = config.max_concurrent or slots_of(ray.cluster_resources(), config)
    if config.rule == "pbt":
        return run_population(
            run, config, search.plan(), search.note, lease=lease, on_trial=on_trial
        )
    return run_session(
        run, config, search.plan(), search.epochs, search.note,
        finished=done, wanted=wanted, failures_allowed=config.failures_allowed - len(failures),
        lease=lease, slots=slots, on_trial=on_trial,
    )  # fmt: skip


def slots_of(resources: dict[str, float], config: SearchConfig[Any]) -> int:
    """Trials that a cluster holds at a time, at least one."""
    counts = [resources.get("CPU", 0) / config.cpus_per_trial]
    if config.gpus_per_trial:
        counts.append(resources.get("GPU", 0) / config.gpus_per_trial)
    return max(1, int(min(counts) + 1e-9))


def search_report(
    config: SearchConfig[Any], table: pd.DataFrame, folder: Path | None = None
) -> dict[str, Any]:
    """Objectives, numbers of trials, the best of them (the Pareto front), and the warm start."""
    report = {
        "objectives": [item.model_dump() for item in config.objectives],
        "n_trials": int((table["state"] == "complete").sum()),
        "n_failed": int((table["state"] == "failed").sum()),
        "best": records(table[table["pareto"]]),
    }
    if folder is not None:
        study = open_study(folder, config)
        report["warm_start"] = [vars(item) for item in warm_start(study, config, ())]
    return report
