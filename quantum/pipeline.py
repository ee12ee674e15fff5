"""The stages in order: conformer → SCF → ELF map → features, each found by its key or computed.

``compute_features`` takes one species through the stages and never raises for chemistry: a failure
is an `Outcome` with a kind, and a record in the store. ``run_many`` does that for a list, on
whatever `Executor` it is given.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import pandas as pd

from quantum.base import Frozen, MedrecError, digest
from quantum.geometry import Geometry
from quantum.molecule import Species
from quantum.schema import PipelineSpec, Resources
from quantum.stages import run_conformer, run_elf, run_features, run_scf
from quantum.store import Failure, Record, StoreLike

Stage = Literal["conformer", "scf", "elf", "features"]
STAGES: tuple[Stage, ...] = ("conformer", "scf", "elf", "features")
# raise a stage's version when what it computes changes; its results get new names then
STAGE_VERSIONS: dict[Stage, int] = {"conformer": 2, "scf": 2, "elf": 2, "features": 3}
_STORE_FORMAT = 1


class Task(Frozen):
    """One species and the stages it goes through; what executors hand to workers."""

    species: Species
    spec: PipelineSpec
    stages: tuple[Stage, ...] = STAGES
    geometry: Geometry | None = None

    @property
    def keys(self) -> dict[Stage, str]:
        """Keys of all stages."""
        return plan(self.species, self.spec, self.geometry)


class Outcome(Frozen):
    """How a task ended; small, so that it travels well.

    ``status`` is ``present`` (nothing to do), ``done`` or ``failed``; a failure names its stage
    and kind.
    """

    species_key: str
    status: Literal["present", "done", "failed"]
    stage: str = ""
    kind: str = ""
    message: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Runs a function over items, here or elsewhere."""

    def run(
        self, function: Callable[[Task], Outcome], items: Sequence[Task]
    ) -> Iterator[tuple[Task, Outcome]]:
        """Yield items with their outcomes as they finish; an exception becomes an outcome."""


def plan(
    species: Species, spec: PipelineSpec, geometry: Geometry | None = None
) -> dict[Stage, str]:
    """Keys of all stages; they follow from the request alone, before anything runs.

    Parameters
    ----------
    geometry : Geometry, optional
        Coordinates from outside, in place of an embedding.
    """
    settings: dict[Stage, Any] = {
        "conformer": spec.conformer,
        "scf": spec.calculation,
        "elf": spec.grid,
        "features": spec.features,
    }
    keys: dict[Stage, str] = {}
    parent = species.key if geometry is None else digest([species.key, geometry.coords_angstrom])
    for stage in STAGES:
        parent = digest(
            {
                "format": _STORE_FORMAT,
                "stage": stage,
                "version": STAGE_VERSIONS[stage],
                "settings": settings[stage].model_dump(mode="json"),
                "inputs": [parent],
            }
        )
        keys[stage] = parent
    return keys


# --------------------------------------------------------------------------- one species


def compute_features(task: Task, store: StoreLike, resources: Resources = Resources()) -> Outcome:
    """Take one species through its stages; what the store holds is not computed again.

    A failure of kind ``input`` that was recorded before is returned without another try.
    """
    start = time.perf_counter()
    keys = task.keys
    if all(store.has(keys[stage]) for stage in task.stages):
        return Outcome(species_key=task.species.key, status="present")
    for stage in task.stages:
        if store.has(keys[stage]):
            continue
        known = store.failure(keys[stage])
        if known is not None and known.kind == "input":
            return _failed(task, stage, known.kind, known.message, start)
        try:
            store.put(_run_stage(stage, task, keys, store, resources))
        except MedrecError as error:
            record_failure(store, task, stage, error.kind, str(error))
            return _failed(task, stage, error.kind, str(error), start)
        except MemoryError:
            message = f"out of memory ({task.species.n_atoms} atoms)"
            record_failure(store, task, stage, "resource", message)
            return _failed(task, stage, "resource", message, start)
    return Outcome(species_key=task.species.key, status="done", seconds=time.perf_counter() - start)


def _run_stage(
    stage: Stage, task: Task, keys: dict[Stage, str], store: StoreLike, resources: Resources
) -> Record:
    species, spec = task.species, task.spec
    if stage == "conformer":
        record = run_conformer(species, spec, task.geometry)
    elif stage == "scf":
        record = run_scf(species, spec, store.get(keys["conformer"]), resources)
    elif stage == "elf":
        record = run_elf(species, spec, store.get(keys["scf"]))
    else:
        record = run_features(species, spec, store.get(keys["scf"]), store.get(keys["elf"]))
    return record.model_copy(update={"key": keys[stage]})


def record_failure(store: StoreLike, task: Task, stage: Stage, kind: str, message: str) -> None:
    """Write a failure under the key of the stage that has no result."""
    key = task.keys[stage]
    with contextlib.suppress(OSError):  # on a full disk the outcome still says what happened
        store.put_failure(Failure(key=key, stage=stage, kind=kind, message=message))


def _failed(task: Task, stage: Stage, kind: str, message: str, start: float) -> Outcome:
    return Outcome(
        species_key=task.species.key,
        status="failed",
        stage=stage,
        kind=kind,
        message=message,
        seconds=time.perf_counter() - start,
    )


# --------------------------------------------------------------------------- many species


class SerialExecutor:
    """Runs everything here, one after the other."""

    def run(
        self, function: Callable[[Task], Outcome], items: Sequence[Task]
    ) -> Iterator[tuple[Task, Outcome]]:
        """Yield items with their outcomes in order; an exception becomes an outcome."""
        for item in items:
            try:
                yield item, function(item)
            except Exception as error:  # noqa: BLE001 - the executor boundary
                yield item, unknown_failure(item, error)


def unknown_failure(task: Task, error: BaseException) -> Outcome:
    """Outcome of a task whose function broke in an unforeseen way."""
    return Outcome(
        species_key=task.species.key,
        status="failed",
        kind="unknown",
        message=f"{type(error).__name__}: {error}",
    )


def wanted(tasks: Iterable[Task], store: StoreLike, retry: Sequence[str] = ()) -> list[Task]:
    """Tasks with something left to do: not finished, and not failed (unless of a retried kind)."""
    left = []
    for task in tasks:
        keys = task.keys
        open_stages = [stage for stage in task.stages if not store.has(keys[stage])]
        if not open_stages:
            continue
        failures = [store.failure(keys[stage]) for stage in open_stages]
        blocked = [f for f in failures if f is not None and f.kind not in retry]
        if not blocked:
            left.append(task)
    return left


def run_many(
    tasks: Sequence[Task],
    function: Callable[[Task], Outcome],
    executor: Executor,
    on_outcome: Callable[[Task, Outcome], None] | None = None,
) -> list[Outcome]:
    """Run tasks on an executor and collect their outcomes as they finish."""
    outcomes = []
    for task, outcome in executor.run(function, tasks):
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(task, outcome)
    return outcomes


def status(tasks: Iterable[Task], store: StoreLike) -> pd.DataFrame:
    """Count per stage what is present, failed (by kind) and missing.

    Returns
    -------
    pandas.DataFrame
        Columns ``stage``, ``state`` (``present``, ``failed: KIND``, ``missing``), ``species``.
    """
    rows = []
    for task in tasks:
        keys = task.keys
        for stage in task.stages:
            failure = None if store.has(keys[stage]) else store.failure(keys[stage])
            state = "present" if store.has(keys[stage]) else "missing"
            rows.append((stage, f"failed: {failure.kind}" if failure else state))
    table = pd.DataFrame(rows, columns=["stage", "state"])
    counted = table.value_counts(["stage", "state"]).rename("species").reset_index()
    order = {stage: i for i, stage in enumerate(STAGES)}
    return counted.sort_values(
        ["stage", "state"], key=lambda c: c.map(order) if c.name == "stage" else c
    ).reset_index(drop=True)
