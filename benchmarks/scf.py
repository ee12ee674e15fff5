"""SCF of the reference drugs: our screened route against PySCF's own, one thread, CPU seconds.

The peer is PySCF's RKS B3LYP/def2-SVP with density fitting, quadrature level 3 and conv_tol 1e-6.
Ours has the same functional, basis, auxiliary basis and final quadrature. ELF of both is compared
on the points where rho is at least 1e-3 a.u.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from drugs import chosen, cpu_seconds, elf_of, problem_of
from pyscf import dft, lib
from record import Figure, publish

from quantum.backends.pyscf_backend import PySCFBackend, build_mol
from quantum.elf import build_box
from quantum.schema import LEVELS, Resources

SPEC = LEVELS["standard"].calculation
RESOURCES = Resources(threads=1, memory_mb=12_000)


def plain_route(problem):
    mf = dft.RKS(build_mol(problem, SPEC, RESOURCES.memory_mb)).density_fit()
    mf.xc = "b3lyp"
    mf.grids.level = 3
    mf.conv_tol = 1e-6
    mf.kernel()
    if not mf.converged:
        raise SystemExit("the plain route did not converge")
    return mf


def main() -> None:
    lib.num_threads(1)
    figures, ours_total, plain_total, worst = [], 0.0, 0.0, 0.0
    for name in chosen():
        species, problem = problem_of(name)
        our_s, ours = cpu_seconds(lambda p=problem: PySCFBackend().run_scf(p, SPEC, RESOURCES))
        plain_s, plain = cpu_seconds(lambda p=problem: plain_route(p))
        box = build_box(problem.coords_bohr, LEVELS["standard"].grid)
        elf, _ = elf_of(problem, SPEC, ours.mo_coeff, ours.mo_occ, box)
        reference, rho = elf_of(problem, SPEC, plain.mo_coeff[None], plain.mo_occ[None], box)
        deviation = float(abs(elf - reference)[rho >= 1e-3].max())
        energy = abs(ours.energy_hartree - float(plain.e_tot))
        ours_total, plain_total = ours_total + our_s, plain_total + plain_s
        worst = max(worst, deviation)
        label = f"{name} ({species.n_atoms} atoms, {ours.facts['n_basis_functions']} functions)"
        figures += [
            Figure(f"SCF, {label}", our_s, "CPU s", plain_s, plain_s / our_s),
            Figure(f"ELF deviation, {name}", deviation, "1", None, None, 0.005, deviation <= 0.005),
            Figure(f"energy deviation, {name}", energy, "Hartree"),
        ]
        print(
            f"{label}: {our_s:.1f} against {plain_s:.1f} CPU s, ratio {plain_s / our_s:.2f}, "
            f"ELF {deviation:.1e}, energy {energy:.1e}",
            flush=True,
        )
    ratio = plain_total / ours_total
    total = Figure("SCF, sum of the set", ours_total, "CPU s", plain_total, ratio, 3.0, ratio >= 3)
    limit = Figure("ELF deviation, largest", worst, "1", None, None, 0.005, worst <= 0.005)
    publish("scf", [total, limit, *figures])


if __name__ == "__main__":
    main()
