"""Workers of Ray Train: start them, follow them, find their last checkpoint, explain their errors.

What is trained is the caller's: a loop that knows no Ray, called in a worker's body. Ray restarts
lost workers, and the body starts from the last checkpoint that was reported. A driver that was
killed finds it again, because Ray's folder lies in the run's own and its name is the run's digest.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from medrec.config import ScalingConfig
from medrec.runs import Run
from orchestration.cluster import check_shared, ensure_ray, require
from quantum.base import (
    InputError,
    MedrecError,
    TransientError,
    read_json,
    write_bytes_atomic,
    write_json_atomic,
)

State = dict[str, Any]
OnEpoch = Callable[[dict[str, Any]], None]
OnProgress = Callable[[dict[str, Any]], None]
MakeState = Callable[[], State]

_STATE = "state.pt"
_PROGRESS, _STOPPED = "progress.json", "stopped.json"
# with Ray's 60 s a group that lost a node stands still for a minute before it goes on smaller
_ELASTIC_START_TIMEOUT_S = "20"
_ASK_EVERY = 32
_SAVING_SHARE = 0.05
_BEFORE_DEADLINE_MS = 20_000


def ray_folder(run: Run) -> Path:
    """Where Ray keeps what belongs to a run."""
    return run.folder / "ray"


def run_workers(
    worker: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    scaling: ScalingConfig,
    run: Run,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
) -> State:
    """Run a function on all workers and wait.

    Parameters
    ----------
    worker : callable
        Body of one worker; gets ``settings``.
    on_epoch : callable, optional
        Called with the lines that a worker adds to the run's metrics.
    on_progress : callable, optional
        Called with what a worker passes to `tell_progress`.

    Returns
    -------
    dict
        State of the last checkpoint.

    Raises
    ------
    ResourceError
        If the cluster lacks the workers or GPUs asked for.
    TransientError
        If workers kept failing; the same command goes on from the last checkpoint.
    """
    if scaling.min_workers is not None:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _ELASTIC_START_TIMEOUT_S)
    ray = ensure_ray()
    least = scaling.min_workers or scaling.num_workers
    require(ray, cpus=least * scaling.cpus_per_worker, gpus=least if scaling.use_gpu else 0)
    check_shared(ray, run.folder)

    from ray import train

    trainer = _trainer(worker, settings, scaling, run)
    (run.folder / _STOPPED).unlink(missing_ok=True)
    try:
        with _follow(run, on_epoch, on_progress), warnings.catch_warnings(), _own_signals():
            warnings.simplefilter("ignore")
            result = trainer.fit()
    except train.TrainingFailedError as error:
        raise stop_reason(run) or _explain(error, scaling.max_failures) from error
    stopped = stop_reason(run)
    if stopped is not None:
        raise stopped
    state = last_state(result.checkpoint)
    if state is None:
        raise TransientError(f"training of {run.name} ended without a checkpoint; run it again")
    return state


def _trainer(
    worker: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    scaling: ScalingConfig,
    run: Run,
) -> Any:
    from ray import train
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    least, most = scaling.min_workers, scaling.num_workers
    n_workers: Any = most if least is None else (least, most)
    return TorchTrainer(
        worker,
        train_loop_config=settings,
        scaling_config=train.ScalingConfig(
            num_workers=n_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker}
            | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=train.RunConfig(
            name=run.digest[:16],
            storage_path=str(ray_folder(run).resolve()),
            failure_config=train.FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
    )


# --------------------------------------------------------------------------- checkpoints


@contextmanager
def as_checkpoint(state: State | None) -> Iterator[Any]:
    """Give a state as what `ray.train.report` takes; None stays None."""
    from ray import train

    if state is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes_atomic(Path(folder) / _STATE, buffer.getvalue())
        yield train.Checkpoint.from_directory(folder)


def last_state(checkpoint: Any) -> State | None:
    """State of a checkpoint of Ray Train; None if there is none."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return _load(Path(folder) / _STATE)


def states_on_disk(run: Run) -> Iterator[State]:
    """States that workers of a run reported, whatever became of their driver; newest first."""
    files = ray_folder(run).glob(f"*/checkpoint_*/{_STATE}")
    for path in sorted(files, key=lambda item: item.stat().st_mtime, reverse=True):
        # a copy that a kill cut short is no checkpoint
        with suppress(RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
            yield _load(path)


def _load(path: Path) -> State:
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


# --------------------------------------------------------------------------- errors and signals


def stop_for(run: Run, error: MedrecError) -> None:
    """Leave word that a run cannot go on: Ray would start the workers again only to fail again."""
    write_json_atomic(run.folder / _STOPPED, {"kind": error.kind, "message": str(error)})


def stop_reason(run: Run) -> MedrecError | None:
    """What `stop_for` left, as an error of its class."""
    path = run.folder / _STOPPED
    if not path.exists():
        return None
    left = read_json(path)
    classes: list[type[MedrecError]] = [InputError, *MedrecError.__subclasses__()]
    kind = next((item for item in classes if item.kind == left["kind"]), InputError)
    return kind(left["message"])


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give the signal handlers back after Ray Train, and let its Ctrl-C be one."""
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {item: signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as error:  # what Train's own handler makes of Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        if in_main:
            for item, handler in handlers.items():
                signal.signal(item, handler)


def _explain(error: Exception, max_failures: int) -> MedrecError:
    """Give a worker's own error its class back; everything else counts as passing."""
    for inner in getattr(error, "worker_failures", {}).values():
        cause = getattr(inner, "cause", inner)
        if isinstance(cause, MedrecError):
            return cause
    text = str(error).strip().splitlines()
    return TransientError(
        f"training workers failed more than {max_failures} times; last: "
        f"{text[-1] if text else type(error).__name__}. The same command goes on from the last "
        "checkpoint"
    )


# --------------------------------------------------------------------------- preemption


class Preemption:
    """Wants a checkpoint when a node is to be taken away, and another shortly before it is.

    With the first alone the work between notice and end would be lost.
    """

    def __init__(self) -> None:
        self.calls, self.wanted_last = 0, False
        self.seen: Any = None

    def wants_checkpoint(self) -> bool:
        """Tell whether to save now; every worker calls it equally often."""
        from ray import train

        before = self.seen
        if self.calls % _ASK_EVERY == 0:
            self.seen = train.get_preemption_info()  # waits for all workers
        self.calls += 1
        if self.seen is None:
            return False
        if self.seen != before:
            self.wanted_last = False
            return True
        deadline = self.seen.deadline_ms
        if deadline is None or self.wanted_last:
            return False
        self.wanted_last = time.time() * 1000 > deadline - _BEFORE_DEADLINE_MS
        return self.wanted_last


# --------------------------------------------------------------------------- reporting


class Pace:
    """Keeps the saving after epochs to a small share of the time, however short they are."""

    def __init__(self) -> None:
        self.cost, self.end = 0.0, time.monotonic()

    def is_due(self) -> bool:
        """Tell whether enough time went by since the last one."""
        return time.monotonic() - self.end >= self.cost / _SAVING_SHARE

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time a saving."""
        start = time.monotonic()
        yield
        self.end = time.monotonic()
        self.cost = self.end - start


class RayReporter:
    """Reports of one worker; all workers report equally often, the first brings what is kept."""

    def __init__(self, run: Run, rank: int) -> None:
        self.run, self.rank = run, rank
        self.pace, self.preemption = Pace(), Preemption()

    def epoch(self, metrics: dict[str, Any], make_state: MakeState) -> None:
        """Add a line to the run's metrics; save if it is time."""
        if self.rank == 0:
            self.run.append_metrics(metrics)
        self._report(metrics["epoch"], make_state if self.pace.is_due() else None)

    def checkpoint(self, make_state: MakeState) -> None:
        """Save."""
        self._report(-1, make_state)

    def _report(self, epoch: int, make_state: MakeState | None) -> None:
        from ray import train

        if self.rank != 0 or make_state is None:
            train.report({"epoch": epoch})
            return
        with self.pace.saving(), as_checkpoint(make_state()) as checkpoint:
            train.report({"epoch": epoch}, checkpoint=checkpoint)

    def progress(self, epoch: int, step: int, n_steps: int, numbers: dict[str, float]) -> None:
        """Leave numbers for the driver."""
        if self.rank == 0:
            tell_progress(self.run, {"epoch": epoch, "step": step, "numbers": numbers})

    def wants_checkpoint(self) -> bool:
        """Tell whether a node is to be taken away."""
        return self.preemption.wants_checkpoint()


# --------------------------------------------------------------------------- following


def tell_progress(run: Run, numbers: dict[str, Any]) -> None:
    """Leave numbers for the driver, which may be on another machine; called once a second."""
    write_json_atomic(run.folder / _PROGRESS, numbers)


@contextmanager
def _follow(
    run: Run, on_epoch: OnEpoch | None, on_progress: OnProgress | None = None
) -> Iterator[None]:
    """Call listeners for what a worker adds to the run's metrics, and for its progress."""
    stop = threading.Event()
    progress = run.folder / _PROGRESS
    progress.unlink(missing_ok=True)

    def loop() -> None:
        last, seen = -1, None
        while not stop.wait(0.5):
            if on_epoch is not None:
                row = _last_row(run)
                if row is not None and int(row["epoch"]) != last:
                    last = int(row["epoch"])
                    on_epoch(row)
            if on_progress is not None and progress.exists():
                now = read_json(progress)
                if now != seen:
                    seen = now
                    on_progress(now)

    thread = threading.Thread(target=loop, daemon=True)
    if on_epoch is not None or on_progress is not None:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        progress.unlink(missing_ok=True)


def _last_row(run: Run) -> dict[str, Any] | None:
    metrics = run.metrics()
    if metrics.empty:
        return None
    return {str(name): value for name, value in metrics.iloc[-1].items()}
