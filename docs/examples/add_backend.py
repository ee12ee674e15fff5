"""A complete backend: closed-shell Hartree-Fock in numpy, on PySCF's integrals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh

from quantum.backends import Problem, SCFResult
from quantum.backends.properties import finish
from quantum.backends.pyscf_backend import build_mol
from quantum.base import ConvergenceError, InputError, package_versions
from quantum.schema import CalculationSpec, Resources

_DAMPING = 0.3


# --8<-- [start:backend]
class PlainHartreeFock:
    """Roothaan's equations with damping: slow, exact integrals, closed shells only."""

    def available(self) -> bool:
        """Tell whether the program is on this machine."""
        return package_versions("pyscf")["pyscf"] is not None

    def version(self) -> str:
        """Version of the program; it becomes part of the record."""
        return "1"

    def run_scf(
        self,
        problem: Problem,
        spec: CalculationSpec,
        resources: Resources,
        remedies: Sequence[str] = (),
    ) -> SCFResult:
        """Solve the SCF.

        Raises
        ------
        InputError
            If the request is not closed-shell Hartree-Fock.
        ConvergenceError
            With the energies of the last cycles; the pipeline then tries its remedies.
        """
        if spec.method.lower() != "hf" or problem.multiplicity != 1:
            raise InputError(
                f"this backend has closed-shell 'hf' alone, was asked for '{spec.method}' with "
                f"multiplicity {problem.multiplicity}"
            )
        mol = build_mol(problem, spec, resources.memory_mb)
        overlap = mol.intor_symmetric("int1e_ovlp")
        core = mol.intor_symmetric("int1e_kin") + mol.intor_symmetric("int1e_nuc")
        pairs = mol.intor("int2e")
        n_occupied = mol.nelectron // 2
        density, energies, fock = np.zeros_like(core), [], core
        for cycle in range(spec.max_cycles):
            levels, orbitals = eigh(fock, overlap)
            occupied = orbitals[:, :n_occupied]
            new = 2.0 * occupied @ occupied.T
            density = new if cycle == 0 else (1 - _DAMPING) * new + _DAMPING * density
            coulomb = np.einsum("pqrs,rs->pq", pairs, density)
            exchange = np.einsum("prqs,rs->pq", pairs, density)
            fock = core + coulomb - 0.5 * exchange
            energy = 0.5 * np.sum(density * (core + fock)) + mol.energy_nuc()
            energies.append(float(energy))
            if cycle and abs(energies[-1] - energies[-2]) < 0.01 * spec.convergence_hartree:
                break
        else:
            raise ConvergenceError(f"not converged in {spec.max_cycles} cycles", energies[-5:])
        occupations = np.zeros(len(levels))
        occupations[:n_occupied] = 2.0
        facts = {"program": "plain", "program_version": self.version(), "cycles": len(energies)}
        return finish(mol, energies[-1], orbitals[None], occupations[None], levels[None], facts)


# --8<-- [end:backend]
