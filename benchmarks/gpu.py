"""DFT on a GPU through gpu4pyscf against PySCF on the CPU: parity and seconds per drug.

Needs a CUDA device and gpu4pyscf; without them it says so and ends with exit code 3. The peer is
the program's own route on the CPU cores of the same machine.
"""

from __future__ import annotations

import os
import time

from drugs import chosen, elf_of, problem_of
from record import Figure, publish

from quantum.backends.pyscf_backend import PySCFBackend
from quantum.base import ProgramMissingError
from quantum.elf import build_box
from quantum.schema import LEVELS, CalculationSpec, Resources

SPEC = CalculationSpec(method="b3lyp", basis="def2-svp", grid_level=3, convergence_hartree=1e-8)
DEFAULT = ("paracetamol", "aspirin", "furosemide", "warfarin")


def timed(problem, spec):
    start = time.perf_counter()
    cores = len(os.sched_getaffinity(0))
    result = PySCFBackend().run_scf(problem, spec, Resources(threads=cores, memory_mb=32_000))
    return time.perf_counter() - start, result


def main() -> None:
    figures = []
    on_gpu = SPEC.model_copy(update={"device": "gpu"})
    for name in chosen(DEFAULT):
        species, problem = problem_of(name)
        try:
            if not figures:
                timed(problem, on_gpu)  # the first call compiles
            gpu_s, gpu = timed(problem, on_gpu)
        except ProgramMissingError as error:
            print(f"no GPU benchmark: {error}")
            raise SystemExit(3) from None
        cpu_s, cpu = timed(problem, SPEC)
        box = build_box(problem.coords_bohr, LEVELS["standard"].grid)
        elf, rho = elf_of(problem, SPEC, cpu.mo_coeff, cpu.mo_occ, box)
        other, _ = elf_of(problem, SPEC, gpu.mo_coeff, gpu.mo_occ, box)
        energy = abs(gpu.energy_hartree - cpu.energy_hartree)
        deviation = float(abs(elf - other)[rho >= 1e-3].max())
        label = f"{name} ({species.n_atoms} atoms)"
        figures += [
            Figure(f"SCF on the GPU, {label}", gpu_s, "s", cpu_s, cpu_s / gpu_s),
            Figure(f"energy, {name}", energy, "Hartree", None, None, 1e-6, energy <= 1e-6),
            Figure(f"ELF, {name}", deviation, "1", None, None, 1e-4, deviation <= 1e-4),
        ]
    publish("gpu", figures)


if __name__ == "__main__":
    main()
