"""Pre-training and property prediction in a run folder: in this process, or on Ray Train workers.

Both ways call the same engine, write the same folder and read each other's checkpoints: the number
of workers is no part of a run's name, so a run may go on with others than it began with. One worker
without a GPU or a cluster needs no Ray and does not start it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from medrec.config import MoleculePretrainRunConfig, PropertyRunConfig, ScalingConfig
from medrec.config_molecules import MoleculePretrainConfig, PropertyConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.pretrain.engine import fit
from medrec.pretrain.problem import Problem
from medrec.pretrain.tasks import pretrain_problem
from medrec.properties.finetune import evaluate_property, property_problem
from medrec.runs import Home, Run, RunKind
from orchestration.cluster import ADDRESS_VARIABLE
from orchestration.tracking import tracking
from orchestration.workers import (
    MakeState,
    Pace,
    RayReporter,
    State,
    last_state,
    ray_folder,
    run_workers,
    states_on_disk,
    stop_for,
    stop_reason,
)
from quantum.base import InputError, MedrecError

OnStep = Callable[[int, int, str], None]
RunConfig = MoleculePretrainRunConfig | PropertyRunConfig
Task = MoleculePretrainConfig | PropertyConfig

PREDICTIONS, PROPERTIES = "predictions.parquet", "properties.parquet"
_ATOMS = ("heavy atoms alone", "all atoms")

# the same again on any worker and after any restart
_FINAL_KINDS = frozenset({"input", "config", "data", "convergence"})


@dataclass(frozen=True)
class Job:
    """What is fitted; travels to workers as folders and settings.

    Parameters
    ----------
    start : Path or None
        Folder of the run whose encoder a fine-tuning starts from.
    """

    task: Task
    library: Path
    start: Path | None = None

    @property
    def kind(self) -> RunKind:
        """Kind of its run."""
        return "pretrain" if isinstance(self.task, MoleculePretrainConfig) else "property"

    def problem(self) -> Problem:
        """Load what is fitted; the same on every worker.

        Raises
        ------
        InputError
            If library, task and start do not fit each other.
        """
        library = MoleculeLibrary.load(self.library)
        if isinstance(self.task, MoleculePretrainConfig):
            return pretrain_problem(self.task, library)
        return property_problem(self.task, library, self._start_state())

    def _start_state(self) -> State | None:
        return None if self.start is None else start_state(Run.load(self.start))

    def as_settings(self) -> dict[str, Any]:
        """Plain values, for another process."""
        return {
            "kind": self.kind,
            "task": self.task.model_dump(mode="json"),
            "library": str(self.library.resolve()),
            "start": None if self.start is None else str(self.start.resolve()),
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Job:
        """Inverse of `as_settings`."""
        kind = MoleculePretrainConfig if settings["kind"] == "pretrain" else PropertyConfig
        start = settings["start"]
        return cls(
            kind.model_validate(settings["task"]),
            Path(settings["library"]),
            None if start is None else Path(start),
        )


def start_state(run: Run) -> State:
    """Exported encoder of a finished run.

    Raises
    ------
    InputError
        If the run has none, or is not finished.
    """
    if run.kind not in ("pretrain", "property"):
        raise InputError(f"run {run.name} is of kind {run.kind}; expected a pre-training run")
    if not run.is_finished:
        raise InputError(f"run {run.name} is not finished: {run.record()['status']}")
    state = run.load_checkpoint("best")
    if state is None:
        raise InputError(f"run {run.name} has no checkpoint 'best'")
    return state


def run_fit(
    config: RunConfig,
    library: MoleculeLibrary,
    home: Home,
    start: Run | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """Pre-train or fine-tune in a run folder, go on with an interrupted run, or find it finished.

    Parameters
    ----------
    start : Run, optional
        Whose encoder a fine-tuning starts from.
    on_step : callable, optional
        Called about once a second with (steps done, steps in all, note).

    Returns
    -------
    Run
        With checkpoint ``best``, the export for users of the encoder; after a fine-tuning also
        ``predictions.parquet`` (test molecules) and ``properties.parquet`` (metrics).

    Raises
    ------
    InputError
        If library, task and start do not fit each other.
    ResourceError, TransientError
        See `orchestration.workers.run_workers`.
    """
    job = Job(config.task, library.folder, None if start is None else start.folder)
    inputs = {"library": library.digest} | ({"pretrained": start.digest} if start else {})
    run = Run.open(home, job.kind, config.task.name, config.task, inputs)
    if run.is_finished:
        return run
    scaling = config.scaling
    seeds = {"torch": config.task.fit.seed}
    with run.recording(seeds=seeds, scaling=scaling.model_dump()), tracking(run):
        problem = job.problem()
        listener = _Listener(on_step, config.task.fit.epochs, _steps_of(problem, config.task))
        if runs_here(scaling):
            state = _fit_here(job, problem, run, listener)
        else:
            settings = {
                **job.as_settings(),
                "run": str(run.folder.resolve()),
                "threads": scaling.cpus_per_worker,
            }
            state = run_workers(
                _worker, settings, scaling, run, listener.epoch, listener.progress_of
            )
        problem.model.load_state_dict(state["best"])
        run.save_checkpoint("best", problem.model.export())
        run.finish(_report(job, problem, run, state, scaling))
    run.checkpoint_file("last").unlink(missing_ok=True)
    shutil.rmtree(ray_folder(run), ignore_errors=True)
    return run


def runs_here(scaling: ScalingConfig) -> bool:
    """Whether a fit needs no Ray."""
    return scaling.num_workers == 1 and not scaling.use_gpu and not os.environ.get(ADDRESS_VARIABLE)


def _steps_of(problem: Problem, task: Task) -> int:
    return -(-len(problem.rows) // task.fit.batch_size)


class _Listener:
    """Turns epochs and steps into one count for a progress display."""

    def __init__(self, on_step: OnStep | None, epochs: int, steps: int) -> None:
        self.on_step, self.epochs, self.steps = on_step, epochs, steps
        self.last = -1

    def epoch(self, row: dict[str, Any]) -> None:
        self._at(int(row["epoch"]) + 1, 0, row)

    def progress(self, epoch: int, step: int, numbers: dict[str, float]) -> None:
        self._at(epoch, step, numbers)

    def progress_of(self, row: dict[str, Any]) -> None:
        self.progress(row["epoch"], row["step"], row["numbers"])

    def _at(self, epoch: int, step: int, numbers: dict[str, Any]) -> None:
        done = epoch * self.steps + step
        if self.on_step is None or done == self.last:
            return
        self.last = done
        shown = [f"loss {numbers['loss']:.4g}"] if "loss" in numbers else []
        if "molecules_per_s" in numbers:
            shown.append(f"{numbers['molecules_per_s']:.0f} molecules/s")
        self.on_step(done, self.epochs * self.steps, ", ".join(shown))


# --------------------------------------------------------------------------- checkpoints


def later(*states: State | None) -> State | None:
    """The state that is furthest on; None if there is none."""
    present = [state for state in states if state is not None]
    return max(present, key=lambda state: (state["epoch"], state["step"]), default=None)


def _begin(run: Run, resume: State | None) -> None:
    """Drop the metrics of epochs that are done again."""
    run.keep_metrics_until(-1 if resume is None else int(resume["epoch"]) - 1)


# --------------------------------------------------------------------------- in this process


class _RunReporter:
    """Reports to a run folder of this process."""

    def __init__(self, run: Run, listener: _Listener) -> None:
        self.run, self.listener, self.pace = run, listener, Pace()

    def epoch(self, metrics: dict[str, Any], make_state: MakeState) -> None:
        self.run.append_metrics(metrics)
        if self.pace.is_due():
            self.checkpoint(make_state)
        self.listener.epoch(metrics)

    def checkpoint(self, make_state: MakeState) -> None:
        with self.pace.saving():
            self.run.save_checkpoint("last", make_state())

    def progress(self, epoch: int, step: int, n_steps: int, numbers: dict[str, float]) -> None:
        self.listener.progress(epoch, step, numbers)

    def wants_checkpoint(self) -> bool:
        return False


def _fit_here(job: Job, problem: Problem, run: Run, listener: _Listener) -> State:
    resume = later(run.load_checkpoint("last"), next(states_on_disk(run), None))
    _begin(run, resume)
    reporter = _RunReporter(run, listener)
    state: State = fit(problem, job.task.fit, reporter=reporter, resume=resume)
    run.save_checkpoint("last", state)  # a kill during the evaluation does not cost the last epochs
    return state


# --------------------------------------------------------------------------- Ray Train workers


def _worker(settings: dict[str, Any]) -> None:
    """Body of one Ray Train worker."""
    run = Run.load(Path(settings["run"]))
    if stop_reason(run) is not None:
        return
    torch.set_num_threads(settings["threads"])
    try:
        _fit_on_worker(Job.from_settings(settings), run)
    except MedrecError as error:
        if error.kind in _FINAL_KINDS:
            stop_for(run, error)
        raise


def _fit_on_worker(job: Job, run: Run) -> None:
    from ray import train
    from ray.train.torch import get_device, prepare_model

    rank = train.get_context().get_world_rank()
    # what a fit in one process left does not change while workers run, so all take the same
    resume = later(last_state(train.get_checkpoint()), run.load_checkpoint("last"))
    if rank == 0:
        _begin(run, resume)
    reporter = RayReporter(run, rank)
    state = fit(
        job.problem(),
        job.task.fit,
        reporter=reporter,
        wrap_model=prepare_model,
        resume=resume,
        rank=rank,
        world_size=train.get_context().get_world_size(),
        device=get_device(),
    )
    reporter.checkpoint(lambda: state)


# --------------------------------------------------------------------------- results


def _report(
    job: Job, problem: Problem, run: Run, state: State, scaling: ScalingConfig
) -> dict[str, Any]:
    """Summary numbers of a run; a fine-tuning is evaluated on its test part first."""
    rows = run.metrics()
    report: dict[str, Any] = {
        "model": job.task.encoder.kind,
        "library": problem.library.name,
        "hydrogens": problem.library.hydrogens,
        "n_train": len(problem.rows),
        "parameters": sum(item.numel() for item in problem.model.parameters()),
        "epochs": len(rows),
        "best_epoch": int(state["best_epoch"]),
        "score": problem.score_name or "loss",
        "best_score": _number(state["best_score"]),
        "loss": _number(rows["loss"].iloc[-1]),
        "molecules_per_s": round(float(rows["molecules_per_s"].median()), 1),
        "seconds": round(float(rows["seconds"].sum()), 3),
        "workers": scaling.num_workers,
    }
    if isinstance(job.task, MoleculePretrainConfig):
        return {**report, "task": job.task.task.kind}
    device = "cuda" if scaling.use_gpu and torch.cuda.is_available() else "cpu"
    predictions, summary = evaluate_property(problem, job.task, state["best"], device)
    predictions.to_parquet(run.folder / PREDICTIONS, index=False)
    summary.to_parquet(run.folder / PROPERTIES, index=False)
    rows_of = summary.astype(object).where(summary.notna(), None)
    notes = [*getattr(problem.model, "notes", ()), *_other_atoms(job, problem.library)]
    return {**report, "test": rows_of.to_dict("records"), "notes": notes}


def _other_atoms(job: Job, library: MoleculeLibrary) -> list[str]:
    """Note that an encoder was trained on molecules with other atoms."""
    trained = None if job.start is None else Run.load(job.start).report().get("hydrogens")
    if trained in (None, library.hydrogens):
        return []
    theirs, ours = (_ATOMS[bool(item)] for item in (trained, library.hydrogens))
    return [f"the encoder was trained on {theirs}, the library has {ours}"]


def _number(value: Any) -> float | None:
    """A finite number, or None: JSON has no other."""
    return float(value) if pd.notna(value) and abs(float(value)) != float("inf") else None
