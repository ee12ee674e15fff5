"""The stages in order: conformer → SCF → ELF map → features, each found by its key or computed.

``compute_features`` takes one species through the stages and never raises for chemistry: a failure
is an `Outcome` with a kind, and a record in the store. ``run_many`` does that for a list, on
whatever `Executor` it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from quantum.backends import Problem, SCFResult, get_backend
from quantum.base import ConvergenceError, Frozen, MedrecError, digest, provenance
from quantum.conformers import embed
from quantum.elf import (
    Box,
    build_box,
    check_elf,
    compute_elf,
    compute_feature_vector,
    feature_names,
    principal_frame,
)
from quantum.molecule import Species
from quantum.recovery import ladder
from quantum.schema import PipelineSpec, Resources
from quantum.store import Failure, Record, StoreLike

Stage = Literal["conformer", "scf", "elf", "features"]
STAGES: tuple[Stage, ...] = ("conformer", "scf", "elf", "features")
# raise a stage's version when what it computes changes; its results get new names then
STAGE_VERSIONS: dict[Stage, int] = {"conformer": 1, "scf": 1, "elf": 1, "features": 1}
_STORE_FORMAT = 1


class Task(Frozen):
    """One species and the stages it goes through; what executors hand to workers."""

    species: Species
    spec: PipelineSpec
    stages: tuple[Stage, ...] = STAGES


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


def plan(species: Species, spec: PipelineSpec) -> dict[Stage, str]:
    """Keys of all stages; they follow from the request alone, before anything runs."""
    settings: dict[Stage, Any] = {
        "conformer": spec.conformer,
        "scf": spec.calculation,
        "elf": spec.grid,
        "features": spec.features,
    }
    keys: dict[Stage, str] = {}
    parent = species.key
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


# --------------------------------------------------------------------------- stages


def _run_conformer(species: Species, spec: PipelineSpec, key: str) -> Record:
    coords, facts = embed(species, spec.conformer)
    return Record(
        key=key,
        stage="conformer",
        request=_request(species, spec.conformer),
        scalars=facts,
        arrays={
            "coords_bohr": coords,
            "atomic_numbers": np.array(species.atomic_numbers, dtype=np.int16),
        },
        provenance=provenance("rdkit"),
    )


def _run_scf(
    species: Species, spec: PipelineSpec, key: str, conformer: Record, resources: Resources
) -> Record:
    coords, _, _ = principal_frame(species.atomic_numbers, conformer.arrays["coords_bohr"])
    problem = Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)
    result = _solve(problem, spec, resources)
    homo, lumo = _frontier(result)
    return Record(
        key=key,
        stage="scf",
        request=_request(species, spec.calculation),
        scalars={
            "energy_hartree": result.energy_hartree,
            "homo_hartree": homo,
            "lumo_hartree": lumo,
            "gap_hartree": None if homo is None or lumo is None else lumo - homo,
            "dipole_norm_au": float(np.linalg.norm(result.dipole_au)),
            **result.facts,
        },
        arrays={
            "coords_bohr": coords,
            "atomic_numbers": np.array(species.atomic_numbers, dtype=np.int16),
            "mo_coeff": result.mo_coeff,
            "mo_occ": result.mo_occ,
            "mo_energy_hartree": result.mo_energy_hartree,
            "dipole_au": result.dipole_au,
            "charges_mulliken": result.charges_mulliken,
        },
        provenance=provenance("pyscf"),
    )


def _solve(problem: Problem, spec: PipelineSpec, resources: Resources) -> SCFResult:
    """Climb the ladder of remedies; the last failure carries its energies."""
    backend = get_backend(spec.calculation.backend)
    last: ConvergenceError | None = None
    for remedies in ladder():
        try:
            return backend.run_scf(problem, spec.calculation, resources, remedies)
        except ConvergenceError as error:
            last = error
    assert last is not None
    raise last


def _frontier(result: SCFResult) -> tuple[float | None, float | None]:
    occupied = result.mo_occ > 0
    energies = result.mo_energy_hartree
    homo = float(energies[occupied].max()) if occupied.any() else None
    lumo = float(energies[~occupied].min()) if (~occupied).any() else None
    return homo, lumo


def _run_elf(species: Species, spec: PipelineSpec, key: str, scf: Record) -> Record:
    from quantum.backends.orbitals import density_on_box
    from quantum.backends.pyscf_backend import build_mol

    coords = scf.arrays["coords_bohr"]
    box = build_box(coords, spec.grid)
    problem = Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)
    mol = build_mol(problem, spec.calculation)
    fields = density_on_box(mol, scf.arrays["mo_coeff"], scf.arrays["mo_occ"], box.axes)
    elf = compute_elf(fields, spec.grid.delta_au)
    check_elf(elf)
    return Record(
        key=key,
        stage="elf",
        request=_request(species, spec.grid),
        scalars={
            "origin_bohr": box.origin_bohr.tolist(),
            "spacing_bohr": spec.grid.spacing_bohr,
            "shape": list(box.shape),
        },
        arrays={
            "elf": elf.astype(np.float32),
            "rho": fields[:, 0].sum(axis=0).astype(np.float32),
            "coords_bohr": coords,
            "atomic_numbers": np.array(species.atomic_numbers, dtype=np.int16),
        },
        provenance=provenance("pyscf"),
    )


def _run_features(
    species: Species, spec: PipelineSpec, key: str, scf: Record, elf: Record
) -> Record:
    box = box_of(elf)
    names = ("n_electrons", "homo_hartree", "lumo_hartree", "gap_hartree", "dipole_norm_au")
    scalars = {name: float(scf.scalars[name] or 0.0) for name in names}
    vector = compute_feature_vector(
        elf.arrays["elf"].astype(float),
        elf.arrays["rho"].astype(float),
        box,
        species.atomic_numbers,
        {**scalars, "charge": float(species.charge)},
        spec.features,
    )
    return Record(
        key=key,
        stage="features",
        request=_request(species, spec.features),
        scalars={"names": feature_names(spec.features)},
        arrays={"vector": vector},
        provenance=provenance(),
    )


def box_of(record: Record) -> Box:
    """Grid of a stored ELF map."""
    origin, spacing = record.scalars["origin_bohr"], record.scalars["spacing_bohr"]
    axes = [
        start + spacing * np.arange(n)
        for start, n in zip(origin, record.scalars["shape"], strict=True)
    ]
    return Box((axes[0], axes[1], axes[2]), record.arrays["coords_bohr"])


def _request(species: Species, settings: Frozen) -> dict[str, Any]:
    return {
        "species": species.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
    }


# --------------------------------------------------------------------------- one species


def compute_features(task: Task, store: StoreLike, resources: Resources = Resources()) -> Outcome:
    """Take one species through its stages; what the store holds is not computed again.

    A failure of kind ``input`` that was recorded before is returned without another try.
    """
    start = time.perf_counter()
    keys = plan(task.species, task.spec)
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
    species, spec, key = task.species, task.spec, keys[stage]
    if stage == "conformer":
        return _run_conformer(species, spec, key)
    if stage == "scf":
        return _run_scf(species, spec, key, store.get(keys["conformer"]), resources)
    if stage == "elf":
        return _run_elf(species, spec, key, store.get(keys["scf"]))
    return _run_features(species, spec, key, store.get(keys["scf"]), store.get(keys["elf"]))


def record_failure(store: StoreLike, task: Task, stage: Stage, kind: str, message: str) -> None:
    """Write a failure under the key of the stage that has no result."""
    key = plan(task.species, task.spec)[stage]
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
        keys = plan(task.species, task.spec)
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
        keys = plan(task.species, task.spec)
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
