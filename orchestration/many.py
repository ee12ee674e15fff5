"""Many training runs: configurations x splits x seeds, one after the other or as Ray tasks.

One recommender does not fill a machine, so many of them run side by side, one process and one
thread each. Every run has its own folder: what is finished is found, what fails does not stop the
others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medrec.config import TrainConfig
from medrec.runs import Home, Run
from orchestration.console import Terminal
from quantum.base import InputError, MedrecError, ResourceError, TransientError


@dataclass(frozen=True)
class Job:
    """One training run to do; paths as text, so that it travels to a worker."""

    config: TrainConfig
    cohort: str
    home: str
    features: str | None = None
    pretrained: str | None = None
    concepts: str | None = None

    @property
    def label(self) -> str:
        """What the run is called in progress and messages."""
        return f"{self.config.name} split {self.config.split} seed {self.config.seed}"


def parse_numbers(text: str | None, option: str) -> list[int]:
    """Whole numbers of an option such as ``0,1,2`` or ``0-4``; none gives an empty list.

    Raises
    ------
    InputError
        If a part is neither a number nor a range.
    """
    numbers: list[int] = []
    for part in (text or "").replace(" ", "").split(","):
        low, _, high = part.partition("-")
        if part and not (low.isdigit() and (high or low).isdigit()):
            raise InputError(f"{option} has '{part}'; expected numbers such as 0,1,2 or 0-4")
        if part:
            numbers += range(int(low), int(high or low) + 1)
    return list(dict.fromkeys(numbers))


def variants(
    configs: Sequence[TrainConfig], splits: Sequence[int], seeds: Sequence[int]
) -> list[TrainConfig]:
    """Every configuration on every split with every seed; its own where none are given."""
    return [
        config.model_copy(update={"split": split, "seed": seed})
        for config in configs
        for split in (splits or [config.split])
        for seed in (seeds or [config.seed])
    ]


def run_job(job: Job) -> str:
    """Do one run, or find it finished; returns its name."""
    from medrec.concepts.table import ConceptTable
    from medrec.data.cohort import Cohort
    from medrec.molecules.features import FeatureTable
    from medrec.training import run_training
    from orchestration.tracking import tracking

    features = FeatureTable.load(Path(job.features)) if job.features else None
    pretrained = Run.load(Path(job.pretrained)) if job.pretrained else None
    concepts = ConceptTable.load(Path(job.concepts)) if job.concepts else None
    run = run_training(
        job.config,
        Cohort.load(Path(job.cohort)),
        Home(Path(job.home)),
        features=features,
        pretrained=pretrained,
        concepts=concepts,
        during=tracking,
    )
    return run.name


def _remote_job(job: Job) -> tuple[str, str]:
    """Body of a Ray task: the run's name, or the kind of error and its message."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return "done", run_job(job)
    except MedrecError as error:
        return error.kind, str(error)


def _outcomes(ray: Any, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, str, str]]:
    remote = ray.remote(num_cpus=1, max_retries=2, retry_exceptions=False)(_remote_job)
    waiting = list(jobs)[::-1]
    running: dict[Any, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                running[remote.remote(job)] = job
            done, _ = ray.wait(list(running), num_returns=1, timeout=5)
            for reference in done:
                job = running.pop(reference)
                try:
                    status, text = ray.get(reference)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                    status, text = "transient", f"lost worker ({type(error).__name__})"
                except ray.exceptions.OutOfMemoryError:
                    status, text = "resource", "out of memory"
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause or error
                    status, text = "unknown", f"{type(cause).__name__}: {cause}"
                yield job, status, text
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def try_many(
    jobs: Sequence[Job], workers: int, terminal: Terminal
) -> tuple[dict[Job, str], dict[Job, tuple[str, str]]]:
    """Run jobs as Ray tasks, at most ``workers`` at a time; what fails does not stop the others.

    Returns
    -------
    found : dict of Job to str
        Names of the finished runs.
    failed : dict of Job to (kind of error, message)
    """
    from orchestration.cluster import check_shared, local_ray, require

    found: dict[Job, str] = {}
    failed: dict[Job, tuple[str, str]] = {}
    with local_ray() as ray, terminal.progress("train", len(jobs)) as step:
        require(ray, cpus=workers)
        check_shared(ray, Path(jobs[0].home))
        for job, status, text in _outcomes(ray, jobs, workers):
            if status == "done":
                found[job] = text
            else:
                failed[job] = status, text
            step.advance(job.label)
    return found, failed


def train_many(jobs: Sequence[Job], workers: int, terminal: Terminal) -> list[Run]:
    """Run jobs as Ray tasks, at most ``workers`` at a time.

    Returns
    -------
    list of Run
        In the order of the jobs.

    Raises
    ------
    ResourceError, TransientError
        After everything else is finished, if some jobs failed; says which and why.
    """
    found, failed = try_many(jobs, workers, terminal)
    if failed:
        kinds = {status for status, _ in failed.values()}
        kind = TransientError if kinds == {"transient"} else ResourceError
        raise kind(
            f"{len(failed)} of {len(jobs)} runs failed, the others are finished: "
            + "; ".join(f"{job.label}: {status}: {text}" for job, (status, text) in failed.items())
        )
    return [Run.load(Home(Path(job.home)).runs / found[job]) for job in jobs]
