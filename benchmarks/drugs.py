"""The reference set of drugs, 19 to 76 atoms, and what several benchmarks do with them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from quantum.backends import Problem
from quantum.backends.orbitals import density_on_box
from quantum.backends.pyscf_backend import build_mol
from quantum.conformers import embed
from quantum.elf import Box, compute_elf, principal_frame, total_density
from quantum.molecule import Species, species_from_smiles
from quantum.schema import LEVELS, CalculationSpec

DRUGS = {
    "metformin": "CN(C)C(=N)NC(N)=N",
    "acetylcysteine": "CC(=O)N[C@@H](CS)C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "ibuprofen": "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
    "furosemide": "NS(=O)(=O)c1cc(C(=O)O)c(NCc2ccco2)cc1Cl",
    "diazepam": "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21",
    "metoprolol": "COCCc1ccc(OCC(O)CNC(C)C)cc1",
    "warfarin": "CC(=O)CC(c1ccccc1)c1c(O)c2ccccc2oc1=O",
    "amoxicillin": "CC1(C)S[C@@H]2[C@H](NC(=O)[C@H](N)c3ccc(O)cc3)C(=O)N2[C@H]1C(=O)O",
    "atorvastatin": "CC(C)c1n(CC[C@@H](O)C[C@@H](O)CC(=O)O)c(-c2ccc(F)cc2)c(-c2ccccc2)"
    "c1C(=O)Nc1ccccc1",
}


def chosen(default: Iterable[str] = DRUGS) -> list[str]:
    """Drugs named on the command line, or the default."""
    names = sys.argv[1:] or list(default)
    unknown = [name for name in names if name not in DRUGS]
    if unknown:
        raise SystemExit(f"unknown drugs {unknown}, expected some of: {', '.join(DRUGS)}")
    return names


def problem_of(name: str) -> tuple[Species, Problem]:
    """Species and geometry of a drug, at the standard level's conformer settings."""
    species = species_from_smiles(DRUGS[name])
    coords, _ = embed(species, LEVELS["standard"].conformer)
    coords, _, _ = principal_frame(species.atomic_numbers, coords)
    problem = Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)
    return species, problem


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def elf_of(
    problem: Problem, spec: CalculationSpec, coeff: Any, occ: Any, box: Box, delta_au: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """ELF and rho of orbitals on a box, in double precision."""
    fields = density_on_box(build_mol(problem, spec), coeff, occ, box.axes)
    return compute_elf(fields, delta_au), total_density(fields)
