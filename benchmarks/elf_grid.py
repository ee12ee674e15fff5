"""ELF on a grid: our tiles with shell screening against PySCF's plain evaluation.

Both get the same orbitals and the same points (0.25 Angstrom, 3 Angstrom around the nuclei), in one
process with one thread; the peer is `eval_ao` and `eval_rho2` in blocks. Where rho is at least
1e-3 a.u. they must agree to 1e-5.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
from pathlib import Path

import numpy as np
from drugs import DRUGS, chosen, cpu_seconds, problem_of
from pyscf import lib
from pyscf.dft import numint
from record import Figure, publish

from quantum.backends.orbitals import density_on_box
from quantum.backends.pyscf_backend import PySCFBackend, build_mol
from quantum.elf import Box, build_box, compute_elf
from quantum.schema import LEVELS, GridSpec, Resources
from quantum.units import ANGSTROM_IN_BOHR

SPEC = LEVELS["fast"].calculation  # only to have orbitals; both evaluations get the same
GRID = GridSpec(spacing_bohr=0.25 * ANGSTROM_IN_BOHR, margin_bohr=3.0 * ANGSTROM_IN_BOHR)
GOALS = {"warfarin": 8.0, "atorvastatin": 20.0}
MEMORY_GOAL_GB = 0.5


def plain(mol, coeff, occ, points):
    blocks = []
    for start in range(0, len(points), 20_000):
        ao = numint.eval_ao(mol, points[start : start + 20_000], deriv=1)
        blocks.append(numint.eval_rho2(mol, ao, coeff, occ, xctype="MGGA", with_lapl=False))
    return np.concatenate(blocks, axis=1)


def compare(name: str) -> list[Figure]:
    _, problem = problem_of(name)
    scf = PySCFBackend().run_scf(problem, SPEC, Resources(threads=1, memory_mb=12_000))
    box, mol = build_box(problem.coords_bohr, GRID), build_mol(problem, SPEC)
    orbitals = scf.mo_coeff, scf.mo_occ
    plain_s, reference = cpu_seconds(lambda: plain(mol, *(x[0] for x in orbitals), box.points()))
    expected = compute_elf(reference.reshape(1, 5, *box.shape), 1e-5)
    dense = reference[0].reshape(box.shape) >= 1e-3
    figures = []
    for precision, goal in (("single", GOALS.get(name)), ("double", None)):
        runs = [
            cpu_seconds(lambda p=precision: density_on_box(mol, *orbitals, box.axes, p))
            for _ in range(3)
        ]
        our_s, fields = min(runs, key=lambda run: run[0])
        deviation = float(np.abs(compute_elf(fields, 1e-5) - expected)[dense].max())
        ratio = plain_s / our_s
        label = f"{name}, {precision} ({dense.size:,} points)"
        met = None if goal is None else ratio >= goal
        figures += [
            Figure(f"ELF grid, {label}", our_s, "CPU s", plain_s, ratio, goal, met),
            Figure(f"deviation, {label}", deviation, "1", None, None, 1e-5, deviation <= 1e-5),
        ]
    return figures


def memory() -> Figure:
    """Memory that a grid of 128^3 points needs above the orbitals, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True
    )
    gigabytes = float(done.stdout.split()[-1])
    name = "memory above the orbitals, 128^3 points, single"
    return Figure(name, gigabytes, "GB", None, None, MEMORY_GOAL_GB, gigabytes <= MEMORY_GOAL_GB)


def peak_gigabytes() -> float:
    """Peak memory of this process; getrusage would hand down the parent's."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return float(line.split()[1]) * 1024 / 1e9


def measure_memory() -> None:
    _, problem = problem_of("warfarin")
    mol = build_mol(problem, SPEC)
    half = np.ptp(problem.coords_bohr, axis=0) / 2 + GRID.margin_bohr
    axes = tuple(np.linspace(-h, h, 128) for h in half)
    coeff, occ = np.eye(mol.nao)[None], np.zeros((1, mol.nao))
    occ[0, : mol.nelectron // 2] = 2.0
    before = peak_gigabytes()
    fields = density_on_box(mol, coeff, occ, Box(axes, problem.coords_bohr).axes, "single")
    after = peak_gigabytes()
    assert fields.shape == (1, 5, 128, 128, 128)
    print(after - before)


def main() -> None:
    lib.num_threads(1)
    if "--memory" in sys.argv:
        measure_memory()
        return
    names = chosen(("metformin", "paracetamol", "aspirin", "furosemide", *GOALS))
    figures = [figure for name in names if name in DRUGS for figure in compare(name)]
    publish("elf_grid", [*figures, memory()])


if __name__ == "__main__":
    main()
