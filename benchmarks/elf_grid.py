"""ELF on a grid: our tiles with shell screening against PySCF's plain evaluation.

Both get the same orbitals and the same points, in one process with one thread, and must agree to
1e-5 where rho is at least 1e-3 a.u.; otherwise the benchmark stops.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np
from pyscf.dft import numint
from record import Figure, publish

from quantum.backends import Problem
from quantum.backends.orbitals import density_on_box
from quantum.backends.pyscf_backend import PySCFBackend, build_mol
from quantum.conformers import embed
from quantum.elf import build_box, compute_elf, principal_frame
from quantum.molecule import species_from_smiles
from quantum.schema import CalculationSpec, ConformerSpec, GridSpec, Resources

DRUGS = {
    "metformin": "CN(C)C(=N)NC(N)=N",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
}
SPEC = CalculationSpec(method="pbe", grid_level=0, convergence_hartree=1e-5)
GRID = GridSpec(spacing_bohr=0.25 / 0.529177, margin_bohr=3.0 / 0.529177)


def fastest(function, repeats: int):
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def main() -> None:
    figures = []
    for name, smiles in DRUGS.items():
        species = species_from_smiles(smiles)
        coords, _ = embed(species, ConformerSpec(n_conformers=1))
        coords, _, _ = principal_frame(species.atomic_numbers, coords)
        problem = Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)
        scf = PySCFBackend().run_scf(problem, SPEC, Resources(threads=1))
        box, mol = build_box(coords, GRID), build_mol(problem, SPEC)

        def ours(mol=mol, scf=scf, box=box):
            return density_on_box(mol, scf.mo_coeff, scf.mo_occ, box.axes)

        def plain(mol=mol, scf=scf, points=box.points()):
            blocks = []
            for start in range(0, len(points), 20_000):
                ao = numint.eval_ao(mol, points[start : start + 20_000], deriv=1)
                orbitals = (scf.mo_coeff[0], scf.mo_occ[0])
                rho = numint.eval_rho2(mol, ao, *orbitals, xctype="MGGA", with_lapl=False)
                blocks.append(rho)
            return np.concatenate(blocks, axis=1)

        our_s, fields = fastest(ours, 3)
        plain_s, reference = fastest(plain, 2)
        half = (reference / 2).reshape(5, *box.shape)
        expected = compute_elf(np.stack([half, half]), 1e-5)
        dense = reference[0].reshape(box.shape) >= 1e-3
        deviation = float(np.abs(compute_elf(fields, 1e-5) - expected)[dense].max())
        if deviation > 1e-5:
            raise SystemExit(f"{name}: ELF deviates by {deviation:.2e}, expected below 1e-5")
        n = int(np.prod(box.shape))
        ratio = plain_s / our_s
        figures.append(
            Figure(f"ELF grid, {name} ({n:,} points)", our_s, "s", plain_s, ratio, 3.0, ratio >= 3)
        )
    publish("elf_grid", figures)


if __name__ == "__main__":
    main()
