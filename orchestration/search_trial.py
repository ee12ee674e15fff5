"""What happens inside a trial: threads, seeds one after another, reports, failures told as values.

A trial never raises: Ray would run it again, which does not help an error of the program. It
reports the kind and the first line of the error instead.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.search_space import Params
from quantum.base import MedrecError

NUMBER = "trial_number"
FAILED = "failure"
_STATE_FILE = "state.pt"
MakeState = Callable[[], dict[str, Any]]


class NotFiniteError(MedrecError):
    """An objective is not a finite number."""

    kind = "not_finite"


@dataclass(frozen=True)
class TrialPlan:
    """Settings of every trial of a search.

    Parameters
    ----------
    trial : callable
        Body of a trial, ``trial(params, settings, log)``; a function of a module.
    settings : dict
        Plain values for the body.
    objectives : tuple of str
        Metrics that are averaged over the seeds.
    threads : int
    repeats : int
        Seeds of a trial.
    keep_states : bool
        Whether trials hand over checkpoints (population based training).
    """

    trial: Callable[[Params, dict[str, Any], TrialLog], None]
    settings: dict[str, Any]
    objectives: tuple[str, ...]
    threads: int = 1
    repeats: int = 1
    keep_states: bool = False


@dataclass
class TrialLog:
    """A trial's link to the search; one for each seed.

    Parameters
    ----------
    repeat : int
        Which seed of the trial, from 0. Only the first one can be stopped early.
    repeats : int
    keep_states : bool
        Whether states given to `epoch` are kept.
    """

    repeat: int = 0
    repeats: int = 1
    keep_states: bool = False
    start: float = field(default_factory=time.perf_counter)
    last: dict[str, float] | None = field(default=None, init=False)
    epochs: int = field(default=0, init=False)
    went_on: bool = field(default=False, init=False)

    def epoch(
        self,
        done: int,
        values: dict[str, float],
        budget: int,
        make_state: MakeState | None = None,
    ) -> None:
        """Report all metrics after so many epochs.

        Parameters
        ----------
        budget : int
            Epochs that the trial has if nothing stops it. With several seeds the report of the
            first one's last epoch waits for the others, because a trial ends with it.
        make_state : callable, optional
            Makes what another trial goes on from.

        Raises
        ------
        NotFiniteError
            If a value is not a finite number.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"{name} is {value} after epoch {done}")
        self.last, self.epochs = values, done
        if self.repeat > 0 or (self.repeats > 1 and done >= budget):
            return
        self._send({**values, "epochs": done, "budget": budget}, make_state)

    def resumed(self) -> dict[str, Any] | None:
        """State of the trial that this one goes on from; None at a fresh start."""
        from ray import tune

        checkpoint = tune.get_checkpoint() if self.keep_states else None
        if checkpoint is None:
            return None
        self.went_on = True
        import torch

        with checkpoint.as_directory() as folder:
            state: dict[str, Any] = torch.load(
                Path(folder) / _STATE_FILE, map_location="cpu", weights_only=True
            )
        return state

    def _send(self, row: dict[str, Any], make_state: MakeState | None = None) -> None:
        from ray import tune

        row = {**row, "trial_seconds": round(time.perf_counter() - self.start, 3)}
        if make_state is None or not self.keep_states:
            tune.report(row)
            return
        import torch

        with tempfile.TemporaryDirectory() as folder:
            torch.save(make_state(), Path(folder) / _STATE_FILE)
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(folder))


def run_trial(config: dict[str, Any], plan: TrialPlan) -> None:
    """Trainable of Ray Tune."""
    from ray import tune

    params = {path: value for path, value in config.items() if path != NUMBER}
    try:
        with threads_pinned(plan.threads):
            _run_seeds(params, plan)
    except Exception as error:  # noqa: BLE001 - whatever a trial does, the search goes on
        tune.report({FAILED: describe(error)})


def _run_seeds(params: Params, plan: TrialPlan) -> None:
    start = time.perf_counter()
    logs = []
    for repeat in range(plan.repeats):
        log = TrialLog(repeat, plan.repeats, plan.keep_states, start)
        plan.trial(params, plan.settings, log)
        if log.last is None and log.went_on:
            return  # the last exchange of a population came after its last epoch
        if log.last is None:
            raise NotFiniteError("the trial ended without a report")
        logs.append(log)
    if plan.repeats == 1:
        return
    finals = [log.last for log in logs if log.last is not None]
    mean = {name: statistics.fmean(row[name] for row in finals) for name in finals[0]}
    std = {f"std.{name}": statistics.stdev(row[name] for row in finals) for name in plan.objectives}
    row: dict[str, Any] = {**mean, **std, "epochs": logs[0].epochs, "budget": logs[0].epochs}
    row |= {f"first.{name}": value for name, value in finals[0].items()}
    logs[0]._send(row)


def describe(error: BaseException) -> str:
    """Kind and first line of an error, at most 200 characters."""
    kind = error.kind if isinstance(error, MedrecError) else type(error).__name__
    lines = str(error).strip().splitlines()
    return f"{kind}: {lines[0] if lines else 'no message'}"[:200]


@contextmanager
def threads_pinned(n: int) -> Iterator[None]:
    """Native thread pools and PyTorch with so many threads inside the block.

    A worker that is used again keeps the pools of its first task, whatever Ray was asked for.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(n):
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)
