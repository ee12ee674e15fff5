"""One call from a SMILES to orbitals, ELF map and features: the library's front door.

`calculate` runs the stages of `quantum.pipeline` in this process, on the store of the command
`medrec features add` or in memory. For a memory limit and a deadline use that command, which gives
each molecule a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from quantum.base import (
    ConvergenceError,
    DiskFullError,
    InputError,
    IntegrityError,
    MedrecError,
    ProgramMissingError,
    ResourceError,
    StoreError,
    TransientError,
)
from quantum.geometry import Geometry, read_structure
from quantum.molecule import Species, species_from_smiles
from quantum.pipeline import STAGES, Outcome, Task, compute_features
from quantum.schema import LEVELS, PipelineSpec, Resources
from quantum.show import drawing_html as _drawing
from quantum.show import facts_html, flattest_plane, note_html
from quantum.store import MemoryStore, Record, StoreLike, open_store
from quantum.threads import limit_threads
from quantum.units import BOHR_IN_ANGSTROM

_ERRORS: dict[str, type[MedrecError]] = {
    kind.kind: kind
    for kind in (
        ConvergenceError,
        DiskFullError,
        InputError,
        IntegrityError,
        ProgramMissingError,
        ResourceError,
        StoreError,
        TransientError,
    )
}


@dataclass(frozen=True)
class Calculation:
    """A finished molecule. Arrays are those of the store; lengths here are in Angstrom.

    Attributes
    ----------
    species : Species
        What was calculated; salts are stripped, see `quantum.molecule`.
    level : str
        Name of the level, ``custom`` for settings of your own.
    cached : bool
        Whether everything was found in the store.
    seconds : float
        Wall-clock time; 0 if it was found.
    conformer, scf, elf_record, feature_record : Record
        What each stage stored.
    """

    species: Species
    level: str
    spec: PipelineSpec
    cached: bool
    seconds: float
    conformer: Record
    scf: Record
    elf_record: Record
    feature_record: Record

    @property
    def energy_hartree(self) -> float:
        """Total energy."""
        return float(self.scf.scalars["energy_hartree"])

    @property
    def gap_hartree(self) -> float | None:
        """LUMO minus HOMO; None where one of them does not exist."""
        value = self.scf.scalars["gap_hartree"]
        return None if value is None else float(value)

    @property
    def elf(self) -> npt.NDArray[np.float32]:
        """Electron localisation function (nx, ny, nz), 0 to 1."""
        return self.elf_record.arrays["elf"]

    @property
    def density_au(self) -> npt.NDArray[np.float32]:
        """Electron density (nx, ny, nz), electrons per cubic bohr."""
        return self.elf_record.arrays["rho"]

    @cached_property
    def axes_angstrom(self) -> tuple[npt.NDArray[np.float64], ...]:
        """Coordinates of the grid's points along the three principal axes."""
        origin = self.elf_record.scalars["origin_bohr"]
        spacing = float(self.elf_record.scalars["spacing_bohr"])
        return tuple(
            (start + spacing * np.arange(n)) * BOHR_IN_ANGSTROM
            for start, n in zip(origin, self.elf.shape, strict=True)
        )

    @cached_property
    def atoms(self) -> pd.DataFrame:
        """``element``, ``x``, ``y``, ``z`` (Angstrom, principal axes), ``charge`` (Mulliken)."""
        from rdkit.Chem import GetPeriodicTable

        table, arrays = GetPeriodicTable(), self.scf.arrays
        coords = arrays["coords_bohr"] * BOHR_IN_ANGSTROM
        frame = pd.DataFrame(coords, columns=["x", "y", "z"])
        symbols = [table.GetElementSymbol(int(z)) for z in arrays["atomic_numbers"]]
        frame.insert(0, "element", symbols)
        return frame.assign(charge=arrays["charges_mulliken"])

    @cached_property
    def features(self) -> pd.Series[float]:
        """Fixed-length features by name."""
        names = self.feature_record.scalars["names"]
        return pd.Series(
            self.feature_record.arrays["vector"], index=names, name=self.species.smiles
        )

    def __repr__(self) -> str:
        how = "cached" if self.cached else f"{self.seconds:.1f} s"
        return f"Calculation({self.species.smiles!r}, level={self.level!r}, {how})"

    def _repr_html_(self) -> str:
        scalars = self.scf.scalars
        rows: list[tuple[str, Any]] = [
            ("SMILES", self.species.smiles),
            (
                "level",
                f"{self.level}: {self.spec.calculation.method}/{self.spec.calculation.basis}",
            ),
            ("energy", f"{self.energy_hartree:.6f} Hartree"),
            ("HOMO, LUMO", _pair(scalars["homo_hartree"], scalars["lumo_hartree"])),
            ("gap", _hartree(self.gap_hartree)),
            ("dipole", f"{scalars['dipole_norm_au']:.3f} a.u."),
            ("ELF grid", " x ".join(map(str, self.elf.shape))),
            ("features", len(self.features)),
            ("time", "found in the store" if self.cached else f"{self.seconds:.1f} s"),
        ]
        numbers = self.elf_record.arrays["atomic_numbers"]
        coords = self.elf_record.arrays["coords_bohr"] * BOHR_IN_ANGSTROM
        plane = flattest_plane(self.elf, self.axes_angstrom, numbers, coords)
        pictures = [_drawing(self.species.smiles), plane.html("ELF")]
        below = note_html("Single conformer in vacuum; see docs/quantum.md for what it supports.")
        title = f"{self.species.formula}, {self.species.n_atoms} atoms"
        return facts_html(title, rows, beside=pictures, below=below)


def calculate(
    smiles: str | None = None,
    level: str | PipelineSpec = "fast",
    *,
    structure: str | Path | None = None,
    charge: int = 0,
    store: str | Path | StoreLike | None = None,
    threads: int = 1,
    memory_mb: int = 4000,
) -> Calculation:
    """Compute one molecule in this process, or find it in a store.

    Parameters
    ----------
    smiles : str, optional
        The molecule; a conformer is embedded.
    level : str or PipelineSpec
        ``fast``, ``standard``, ``tight``, or settings of your own.
    structure : path, optional
        Geometry file in place of a SMILES (.xyz, .sdf, .mol); ``charge`` belongs to it.
    store : path, URL or store, optional
        Where stages are looked up and kept: the ``store`` folder of a home, ``s3://...``; by
        default nothing is kept.
    threads : int
        Of the native libraries.
    memory_mb : int
        What the SCF may plan with, units of 2^20 bytes.

    Returns
    -------
    Calculation

    Raises
    ------
    InputError
        If the molecule, the level or a number is not as expected.
    ConvergenceError, ResourceError, ProgramMissingError, MedrecError
        What stopped a stage; the message names the stage.
    """
    name, spec = _level(level)
    for label, value in (("threads", threads), ("memory_mb", memory_mb)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{label} is {value!r}; expected an integer of at least 1")
    species, geometry = _molecule(smiles, structure, charge)
    task = Task(species=species, spec=spec, geometry=geometry)
    opened = _open(store)
    with limit_threads(threads):
        outcome = compute_features(task, opened, Resources(threads=threads, memory_mb=memory_mb))
    if outcome.status == "failed":
        raise _error(outcome, species)
    records = [opened.get(task.keys[stage]) for stage in STAGES]
    return Calculation(species, name, spec, outcome.status == "present", outcome.seconds, *records)


def _level(level: str | PipelineSpec) -> tuple[str, PipelineSpec]:
    if isinstance(level, PipelineSpec):
        return next((name for name, spec in LEVELS.items() if spec == level), "custom"), level
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}; expected one of: {', '.join(LEVELS)}")
    return level, LEVELS[level]


def _molecule(
    smiles: str | None, structure: str | Path | None, charge: int
) -> tuple[Species, Geometry | None]:
    if (smiles is None) == (structure is None):
        raise InputError("expected either a SMILES or structure=FILE, got both or none")
    if structure is not None:
        return read_structure(Path(structure), charge)
    if not isinstance(smiles, str):
        raise InputError(f"SMILES is of type {type(smiles).__name__}; expected text")
    return species_from_smiles(smiles), None


def _open(store: str | Path | StoreLike | None) -> StoreLike:
    if store is None:
        return MemoryStore()
    return open_store(store) if isinstance(store, str | Path) else store


def _error(outcome: Outcome, species: Species) -> MedrecError:
    kind = _ERRORS.get(outcome.kind, MedrecError)
    stage = outcome.stage or "calculation"
    return kind(f"{stage} of {species.smiles} failed ({outcome.kind}): {outcome.message}")


def _hartree(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f} Hartree"


def _pair(low: float | None, high: float | None) -> str:
    first, second = ("-" if item is None else f"{item:.4f}" for item in (low, high))
    return f"{first}, {second} Hartree"
