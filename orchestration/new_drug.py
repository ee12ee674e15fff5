"""`medrec features add`: one new drug, from a SMILES or a geometry to stored features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medrec.data.molecule_table import read_drug_list
from medrec.data.schema import data_root
from medrec.runs import Home
from orchestration.console import Terminal, pairs_table
from quantum.base import InputError, MedrecError
from quantum.child import run_in_child
from quantum.cost import n_basis_functions, predicted_cpu_s
from quantum.cubes import write_cube
from quantum.geometry import Geometry, read_structure
from quantum.molecule import Species, species_from_smiles
from quantum.pipeline import Outcome, Task
from quantum.schema import LEVELS, Resources
from quantum.stages import box_of
from quantum.store import Record

_CUBES = ("elf", "rho", "lol", "esp", "gradient", "tau")
_UNITS = ("_hartree", "_au")
_COLUMNS = ("atc", "name", "identifier", "smiles")


class NewDrugError(MedrecError):
    """The calculation of a new drug ended in a failure record."""

    exit_code = 4


@dataclass(frozen=True)
class NewDrug:
    """A finished drug: its task, its records and how it went."""

    task: Task
    outcome: Outcome
    scf: Record
    elf: Record
    features: Record
    seconds: float


def add_drug(
    home: Home,
    smiles: str | None,
    structure: Path | None,
    charge: int,
    level: str,
    resources: Resources,
    terminal: Terminal,
) -> NewDrug:
    """Compute a drug in a child process with a memory and a time limit, or find it.

    Raises
    ------
    InputError
        If not exactly one of SMILES and structure is given, or the level is unknown.
    NewDrugError
        With the failure's stage, kind and message.
    """
    species, geometry = _what(smiles, structure, charge)
    if level not in LEVELS:
        raise InputError(f"unknown level '{level}', expected one of: {', '.join(LEVELS)}")
    spec = LEVELS[level]
    task = Task(species=species, spec=spec, geometry=geometry)
    estimate = predicted_cpu_s(species, spec.calculation)
    terminal.say(
        f"{species.formula}: {species.n_atoms} atoms, {n_basis_functions(species)} basis functions "
        f"(def2-SVP), about {estimate:.0f} CPU seconds at the level {level}"
    )
    start = time.perf_counter()
    store = home.open_store()
    outcome = run_in_child(task, store.location, resources)
    if outcome.status == "failed":
        raise NewDrugError(
            f"{outcome.stage or 'calculation'} failed ({outcome.kind}): {outcome.message}"
        )
    scf, elf, features = (store.get(task.keys[stage]) for stage in ("scf", "elf", "features"))
    return NewDrug(task, outcome, scf, elf, features, time.perf_counter() - start)


def _what(
    smiles: str | None, structure: Path | None, charge: int
) -> tuple[Species, Geometry | None]:
    if (smiles is None) == (structure is None):
        raise InputError("give either a SMILES or --structure FILE")
    if structure is not None:
        return read_structure(structure, charge)
    return species_from_smiles(smiles or ""), None


def show_drug(done: NewDrug, terminal: Terminal, cubes: Path | None) -> None:
    """Print the main numbers; write cube files if a folder is given."""
    names = ("energy_hartree", "homo_hartree", "lumo_hartree", "gap_hartree", "dipole_norm_au")
    facts: dict[str, Any] = {
        "species": done.task.species.smiles,
        "formula": done.task.species.formula,
        "charge": done.task.species.charge,
        "multiplicity": done.task.species.multiplicity,
        "status": done.outcome.status,
        **{name: done.scf.scalars[name] for name in names},
        "remedies": ", ".join(done.scf.scalars["remedies"]) or "none",
        "elf_grid": " x ".join(map(str, done.elf.scalars["shape"])),
        "features": len(done.features.arrays["vector"]),
        "features_key": done.task.keys["features"],
        "seconds": round(done.seconds, 2),
    }
    if cubes is not None:
        facts["cubes"] = [path.name for path in write_cubes(done, cubes)]
    vector = done.features.arrays["vector"].tolist()
    document = {**facts, "vector": dict(zip(done.features.scalars["names"], vector, strict=True))}
    shown = {name: _text(name, value) for name, value in facts.items()}
    terminal.result(document, pairs_table(shown.items()))


def _text(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:.6f}" if isinstance(value, float) and name.endswith(_UNITS) else value


def write_cubes(done: NewDrug, folder: Path) -> list[Path]:
    """Write the stored fields of a drug as Gaussian cube files."""
    box, written = box_of(done.elf), []
    for name in _CUBES:
        if name not in done.elf.arrays:
            continue
        path = folder / f"{done.task.species.inchikey or done.task.species.key[:12]}_{name}.cube"
        title = f"{name} of {done.task.species.smiles}"
        write_cube(path, done.elf.arrays[name], box, done.elf.arrays["atomic_numbers"], title)
        written.append(path)
    return written


def read_drugs(path: Path | None) -> pd.DataFrame:
    """Table of drugs for the coverage: the shipped one, or the user's.

    Raises
    ------
    InputError
        If the file cannot be read or lacks a column.
    """
    if path is None:
        return read_drug_list(data_root())
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"not readable as a table: {path} ({type(error).__name__})") from error
    lacking = [name for name in _COLUMNS if name not in table.columns]
    if lacking:
        raise InputError(f"{path} lacks the columns {lacking}; expected {list(_COLUMNS)}")
    return table.assign(molecule_type=table.get("molecule_type"))
