"""The stages in order: conformer → SCF → ELF map → features, each found by its key or computed.

``compute_features`` takes one species through the stages and never raises for chemistry: a failure
is an `Outcome` with a kind, and a record in the store.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from quantum.base import DiskFullError, Frozen, IntegrityError, MedrecError, TransientError, digest
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
_INPUTS: dict[Stage, tuple[Stage, ...]] = {
    "conformer": (),
    "scf": ("conformer",),
    "elf": ("scf",),
    "features": ("scf", "elf"),
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Task(Frozen):
    """One species and the stages it goes through; what executors hand to workers."""

    species: Species
    spec: PipelineSpec
    stages: tuple[Stage, ...] = STAGES
    geometry: Geometry | None = None

    @cached_property
    def keys(self) -> dict[Stage, str]:
        """Keys of all stages."""
        return plan(self.species, self.spec, self.geometry)

    def forget_keys(self) -> None:
        """Free the keys, of which there are many in a long run; they are made again when wanted."""
        self.__dict__.pop("keys", None)


class Outcome(Frozen):
    """How a task ended; small, so that it travels well.

    ``status`` is ``present`` (nothing to do), ``done``, ``failed``, or ``elsewhere``: another
    driver is at work on it, and ``message`` is its claim. A failure names its stage and kind.
    ``stages`` lists what was computed here. ``peak_mb`` (2^20 bytes) and ``cpu_s`` are those of
    the process that computed, and ``node`` says where, if known.
    """

    species_key: str
    status: Literal["present", "done", "failed", "elsewhere"]
    stage: str = ""
    kind: str = ""
    message: str = ""
    seconds: float = 0.0
    stages: tuple[str, ...] = ()
    peak_mb: float = 0.0
    cpu_s: float = 0.0
    node: str = ""


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


# --------------------------------------------------------------------------- claims


class Claims:
    """Claims of one owner, renewed by a thread while any is held.

    The thread stays for the next claim, since starting one takes as long as a small commit, and
    ends when nothing has been held for a while.

    Parameters
    ----------
    owner : str
        Name of the driver, without spaces.
    beat_s : float
        Seconds between two renewals.
    """

    def __init__(self, owner: str, beat_s: float = 10.0) -> None:
        self.owner, self.beat_s = owner, beat_s
        self._held: dict[str, tuple[StoreLike, int]] = {}
        self._lock = threading.Lock()
        self._is_renewing = False

    @contextlib.contextmanager
    def hold(self, store: StoreLike, key: str) -> Iterator[str | None]:
        """Claim a key for a block; yields what another holder wrote, or None if it is ours."""
        seen = store.claim(key, self.owner)
        if seen is not None:
            yield seen
            return
        with self._lock:
            self._held[key] = store, 0
            if not self._is_renewing:
                self._is_renewing = True
                threading.Thread(target=self._renew, daemon=True).start()
        try:
            yield None
        finally:
            with self._lock:  # a renewal after the release would claim it again
                self._held.pop(key, None)
            with contextlib.suppress(OSError, MedrecError):
                store.release(key, self.owner)

    def _renew(self) -> None:
        while True:
            time.sleep(self.beat_s)
            with self._lock:
                if not self._held:
                    self._is_renewing = False
                    return
                for key, (store, beat) in self._held.items():
                    self._held[key] = store, beat + 1
                    with contextlib.suppress(OSError, MedrecError):
                        store.renew(key, self.owner, beat + 1)


# --------------------------------------------------------------------------- one species


def compute_features(
    task: Task, store: StoreLike, resources: Resources = Resources(), claims: Claims | None = None
) -> Outcome:
    """Take one species through its stages; what the store holds is not computed again.

    A failure of kind ``input`` that was recorded before is returned without another try. An
    earlier object that turns out damaged is set aside and computed again, once.

    Parameters
    ----------
    claims : Claims, optional
        Marks what is being computed, so that another driver does not compute it at the same time.
    """
    start = time.perf_counter()
    computed: list[str] = []
    outcome = _compute(task, store, resources, claims, computed)
    if outcome.kind == IntegrityError.kind and outcome.stage not in computed:
        outcome = _compute(task, store, resources, claims, computed)
    seconds = time.perf_counter() - start if outcome.status != "present" else 0.0
    return outcome.model_copy(update={"seconds": seconds, "stages": tuple(computed)})


def _compute(
    task: Task,
    store: StoreLike,
    resources: Resources,
    claims: Claims | None,
    computed: list[str],
) -> Outcome:
    keys, species = task.keys, task.species.key
    try:
        left = open_stages(task, store)
    except MedrecError as error:
        return _failed(task, task.stages[0], error.kind, str(error))
    for stage in left:
        key = keys[stage]
        try:
            known = store.failure(key)
            if known is not None and known.kind == "input":
                return _failed(task, stage, known.kind, known.message)
            with claims.hold(store, key) if claims else contextlib.nullcontext() as holder:
                if holder:
                    return Outcome(
                        species_key=species, status="elsewhere", stage=stage, message=holder
                    )
                if claims and store.has(key):
                    continue
                with _scratch():
                    record = _run_stage(stage, task, keys, store, resources)
                store.put(record)
                computed.append(stage)
        except MedrecError as error:
            record_failure(store, task, stage, error.kind, str(error))
            return _failed(task, stage, error.kind, str(error))
        except MemoryError:
            message = f"out of memory ({task.species.n_atoms} atoms)"
            record_failure(store, task, stage, "resource", message)
            return _failed(task, stage, "resource", message)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return _failed(task, stage, DiskFullError.kind, f"no space left in {store.location}")
    return Outcome(species_key=species, status="done" if computed else "present")


@contextlib.contextmanager
def _scratch() -> Iterator[None]:
    """A full disk while a stage computes is this machine's trouble and not the store's."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise TransientError(f"no space left here for temporary files: {error}") from error


def open_stages(task: Task, store: StoreLike) -> list[Stage]:
    """Stages of a task without a result, and missing ones that they need.

    An input can be missing though an earlier task had computed it: a damaged object is set aside.
    """
    keys = task.keys
    there = store.present(keys.values())
    left = {stage for stage in task.stages if keys[stage] not in there}
    for stage in reversed(STAGES):
        if stage in left:
            left |= {item for item in _INPUTS[stage] if keys[item] not in there}
    return [stage for stage in STAGES if stage in left]


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


# nothing is wrong with a request that met one of these
PASSING = ("transient", "disk_full", "store", "program_missing")


def record_failure(store: StoreLike, task: Task, stage: Stage, kind: str, message: str) -> None:
    """Write a failure under the key of the stage that has no result.

    Not for `PASSING` kinds, which are the machine's fault.
    """
    if kind in PASSING:
        return
    key = task.keys[stage]
    # on a full disk or without a store the outcome still says what happened
    with contextlib.suppress(OSError, MedrecError):
        store.put_failure(Failure(key=key, stage=stage, kind=kind, message=message))


def _failed(task: Task, stage: Stage, kind: str, message: str) -> Outcome:
    return Outcome(
        species_key=task.species.key, status="failed", stage=stage, kind=kind, message=message
    )


# --------------------------------------------------------------------------- many species


def wanted(
    tasks: Iterable[Task],
    store: StoreLike,
    retry: Sequence[str] = (),
    attempts: Mapping[str, int] | None = None,
) -> list[Task]:
    """Tasks with something left to do: not finished, and not failed (unless of a retried kind).

    The store is asked for all keys at once. Of equal tasks one is kept.

    Parameters
    ----------
    attempts : mapping, optional
        How often a kind of failure may be met; one that was recorded less often is no end yet.
    """
    planned = [(task, plan(task.species, task.spec, task.geometry)) for task in tasks]
    every = {keys[stage] for task, keys in planned for stage in task.stages}
    there = store.present(every)
    final = {
        key
        for key, failure in store.failures(every - there).items()
        if failure.kind not in retry and failure.attempts >= (attempts or {}).get(failure.kind, 1)
    }
    left: dict[str, Task] = {}
    for task, keys in planned:
        still = {keys[stage] for stage in task.stages} - there
        if still and not still & final:
            left.setdefault(keys[task.stages[-1]], task)
    return list(left.values())


def status(tasks: Iterable[Task], store: StoreLike) -> pd.DataFrame:
    """Count per stage what is present, failed (by kind) and missing.

    Returns
    -------
    pandas.DataFrame
        Columns ``stage``, ``state`` (``present``, ``failed: KIND``, ``missing``), ``species``.
    """
    planned = [(task, task.keys) for task in tasks]
    every = {keys[stage] for task, keys in planned for stage in task.stages}
    there = store.present(every)
    failures = store.failures(every - there)
    rows = []
    for task, keys in planned:
        for stage in task.stages:
            key = keys[stage]
            state = f"failed: {failures[key].kind}" if key in failures else "missing"
            rows.append((stage, "present" if key in there else state))
    table = pd.DataFrame(rows, columns=["stage", "state"])
    counted = table.value_counts(["stage", "state"]).rename("species").reset_index()
    order = {stage: i for i, stage in enumerate(STAGES)}
    return counted.sort_values(
        ["stage", "state"], key=lambda c: c.map(order) if c.name == "stage" else c
    ).reset_index(drop=True)
