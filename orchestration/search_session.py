"""One session of a search: a Ray Tune run that asks the study for trials until it has enough.

The study hears of final values only. Failures come as values from the trials themselves; what kills
a whole process is seen here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray.tune import Callback
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from medrec.config import SearchConfig
from medrec.runs import Run
from orchestration.search_lease import Lease
from orchestration.search_schedulers import build_sampler, build_stopper
from orchestration.search_space import optuna_space
from orchestration.search_study import DETAIL, FAILURE, open_storage, open_study
from orchestration.search_tables import LOG
from orchestration.search_trial import FAILED, NUMBER, TrialPlan, run_trial

OnTrial = Callable[[int, int, str], None]
LARGEST_SESSION = 500  # Tune's own book-keeping grows with the trials of a run
START_S = 120.0  # a process has this beside `trial_timeout_s` for its start and its first report
LOST = "lost: the process of the trial died twice"


class Log:
    """Appends what trials report to the search's folder; the driver alone writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end_torn_line()

    def _end_torn_line(self) -> None:
        with self.path.open("ab+") as handle:
            if handle.tell():
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    handle.write(b"\n")

    def write(self, number: int, result: dict[str, Any], params: dict[str, Any] | None) -> None:
        """Add one epoch of a trial."""
        row: dict[str, Any] = {"number": number, "epoch": int(result["epochs"])}
        row["seconds"] = result.get("trial_seconds")
        row |= reported_values(result)
        row |= {f"params.{path}": value for path, value in (params or {}).items()}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, sort_keys=True) + "\n")


def reported_values(result: dict[str, Any]) -> dict[str, float]:
    """Metrics of an epoch; where several seeds were averaged, those of the first one."""
    ours = set(result) - _TUNE_KEYS
    first = {name.removeprefix("first."): result[name] for name in ours if name[:6] == "first."}
    if first:
        return first
    return {
        name: result[name]
        for name in ours
        if isinstance(result[name], float) and "/" not in name and name[:4] != "std."
    }


_TUNE_KEYS = {
    "epochs", "budget", "trial_seconds", "time_this_iter_s", "time_total_s",
    "time_since_restore", "timestamp", "done", "iterations_since_restore", "training_iteration",
}  # fmt: skip


class StudySearch(OptunaSearch):
    """Optuna's study as Tune's searcher, with a count of what is still wanted.

    Parameters
    ----------
    n_before : int
        Trials of any state that the study has.
    wanted : int
        Complete trials that this session is to add.
    failures_allowed : int
        Failed ones that it makes up for.
    """

    def __init__(
        self,
        folder: Path,
        config: SearchConfig[Any],
        n_before: int,
        *,
        wanted: int,
        failures_allowed: int,
        lease: Lease,
        on_complete: Callable[[int, dict[str, Any]], None],
    ) -> None:
        first, several = config.objectives[0], len(config.objectives) > 1
        super().__init__(
            space=optuna_space(config.space),
            metric=[o.metric for o in config.objectives] if several else first.metric,
            mode=[o.mode for o in config.objectives] if several else first.mode,
            study_name=config.name,
            storage=open_storage(folder),
            sampler=build_sampler(config, n_before),
        )
        self.config, self.lease, self.on_complete = config, lease, on_complete
        self.study: Any = self._ot_study  # with our sampler
        self.wanted, self.failures_allowed = wanted, failures_allowed
        self.complete, self.failures = 0, list[str]()
        self.live: set[str] = set()
        self.ended = False
        self.reasons: dict[str, str] = {}
        self.ended_early: dict[str, bool] = {}

    # ------------------------------------------------------------------ what Tune calls

    def suggest(self, trial_id: str) -> Any:
        """Next trial; None while the running ones may suffice, FINISHED when they have."""
        over = len(self.failures) > self.failures_allowed or self.lease.lost()
        grid_gone = self.config.sampler == "grid" and not self._queued()
        if over or grid_gone or self.complete + len(self.live) >= self.wanted:
            self.ended = not self.live
            return Searcher.FINISHED if self.ended else None
        params = super().suggest(trial_id)
        self.live.add(trial_id)
        return {**(params or {}), NUMBER: self.number_of(trial_id)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The study hears of final values only."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study; of a lost process `fail` tells it, with the reason."""
        if trial_id not in self.live or error:
            return
        result = result or {}
        failure = result.get(FAILED) or self._missing(result)
        if failure:
            self.fail(trial_id, str(failure))
            return
        early = self.ended_early.get(trial_id, False) and result["epochs"] < result["budget"]
        detail = {
            "epochs": int(result["epochs"]),
            "full_budget": not early,
            "seconds": result.get("trial_seconds"),
        }
        names = [o.metric for o in self.config.objectives if f"std.{o.metric}" in result]
        if names:
            detail["std"] = {name: result[f"std.{name}"] for name in names}
        values = [float(result[o.metric]) for o in self.config.objectives]
        if self._tell(trial_id, DETAIL, detail, values):
            self.complete += 1
            self.on_complete(self.complete, result)

    def fail(self, trial_id: str, reason: str) -> None:
        """Mark a trial as failed."""
        if trial_id in self.live and self._tell(trial_id, FAILURE, reason, None):
            self.failures.append(reason)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from its study, never from a snapshot of Tune."""
        Path(checkpoint_path).write_bytes(b"")

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles searchers; studies, threads and terminals cannot be."""
        return {}

    # ------------------------------------------------------------------ study

    def number_of(self, trial_id: str) -> int:
        """Optuna's number of a trial of Tune."""
        return int(self._ot_trials[trial_id].number)

    def _queued(self) -> int:
        states = (TrialState.WAITING,)
        return len(self.study.get_trials(deepcopy=False, states=states))

    def _missing(self, result: dict[str, Any]) -> str | None:
        for item in self.config.objectives:
            value = result.get(item.metric)
            if not isinstance(value, int | float):
                return f"{LOST} or reported no {item.metric}"
            if not math.isfinite(value):
                return f"not_finite: {item.metric} is {value}"
        return None

    def _tell(self, trial_id: str, name: str, fact: Any, values: list[float] | None) -> bool:
        self.live.discard(trial_id)
        trial = self._ot_trials.pop(trial_id)
        if self.lease.lost():
            return False  # the trial belongs to the session that took over
        trial.set_user_attr(name, fact)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        self.study.tell(trial, values, state=state)
        return True


class Watch(Callback):
    """Writes the log, ends trials that hang, and tells why a process was lost."""

    def __init__(self, searcher: StudySearch, log: Log, timeout_s: float | None) -> None:
        self.searcher, self.log, self.timeout_s = searcher, log, timeout_s
        self.heard: dict[str, float] = {}
        self.began: set[str] = set()
        self.timed_out: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The clock of a trial begins when its process does."""
        self.heard[trial.trial_id] = time.monotonic()
        self.began.discard(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an epoch.

        ``done`` in a report that is not the last one's repetition is the stopping rule's decision.
        """
        self.heard[trial.trial_id] = time.monotonic()
        self.began.add(trial.trial_id)
        self.searcher.ended_early[trial.trial_id] = bool(result.get("done"))
        if FAILED not in result and trial.trial_id in self.searcher.live:
            self.log.write(self.searcher.number_of(trial.trial_id), result, None)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look for trials that were silent for too long; called several times a second."""
        if self.timeout_s is None:
            return
        now = time.monotonic()
        for trial in trials:
            allowed = self.timeout_s + (0 if trial.trial_id in self.began else START_S)
            if trial.status != "RUNNING":
                self.heard.pop(trial.trial_id, None)
            elif now - self.heard.setdefault(trial.trial_id, now) > allowed:
                self._end(trial)

    def _end(self, trial: Any) -> None:
        import ray

        actor = trial.temporary_state.ray_actor
        if actor is None or trial.trial_id in self.timed_out:
            return
        self.timed_out.add(trial.trial_id)
        self.searcher.reasons[trial.trial_id] = (
            f"timed out: no report for {self.timeout_s:g} s (trial_timeout_s)"
        )
        # a hanging trial would hang again: failures so far stay below this from now on
        trial.max_failures = 0
        ray.kill(actor)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A process is lost for good."""
        reason = self.searcher.reasons.pop(trial.trial_id, LOST)
        self.searcher.fail(trial.trial_id, reason)


def run_session(
    run: Run,
    config: SearchConfig[Any],
    plan: TrialPlan,
    epochs: int,
    note: str,
    *,
    finished: int,
    wanted: int,
    failures_allowed: int,
    lease: Lease,
    slots: int,
    on_trial: OnTrial | None,
) -> list[str]:
    """Add trials to a search's study.

    Parameters
    ----------
    finished, wanted : int
        Complete trials there are, and there are to be in the end.
    failures_allowed : int
        Failed trials that are made up for.
    slots : int
        Trials at a time.

    Returns
    -------
    list of str
        Reasons of the failed trials.
    """
    size = min(wanted - finished, LARGEST_SESSION)

    def count(done: int, result: dict[str, Any]) -> None:
        if on_trial is not None:
            on_trial(finished + done, wanted, note.format_map(result))

    searcher = StudySearch(
        run.folder, config, len(open_study(run.folder, config).trials), wanted=size,
        failures_allowed=failures_allowed, lease=lease, on_complete=count,
    )  # fmt: skip
    watch = Watch(searcher, Log(run.folder / LOG), config.trial_timeout_s)
    tune_all(
        run, config, plan, [watch],
        search_alg=searcher, scheduler=build_stopper(config, epochs),
        num_samples=size + failures_allowed + slots + 1,
        max_concurrent_trials=slots, reuse_actors=True,
    )  # fmt: skip
    if not searcher.ended and not lease.lost():
        raise KeyboardInterrupt  # Tune stops its trials at Ctrl-C, and returns
    return searcher.failures


def tune_all(
    run: Run,
    config: SearchConfig[Any],
    plan: TrialPlan,
    callbacks: list[Any],
    param_space: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Run Tune with our resources; ``settings`` are those of `ray.tune.TuneConfig`."""
    from ray import tune

    _quiet()
    resources = {"CPU": config.cpus_per_trial}
    if config.gpus_per_trial:
        resources["GPU"] = config.gpus_per_trial
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, plan=plan), resources),
        param_space=param_space or {},
        tune_config=tune.TuneConfig(**settings),
        run_config=tune.RunConfig(
            name=f"{run.digest[:12]}-{uuid.uuid4().hex[:8]}",
            storage_path=str((run.folder / "ray").resolve()),
            verbose=0,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    with warnings.catch_warnings(), own_handlers():
        warnings.simplefilter("ignore")
        tuner.fit()


@contextmanager
def own_handlers() -> Iterator[None]:
    """Put signal handlers back: Tune leaves its own, which would swallow a later Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _quiet() -> None:
    """Tune's own logs and files are read by nobody; a failed trial reports no metric."""
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
