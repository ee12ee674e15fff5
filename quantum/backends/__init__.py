"""Quantum-chemistry programs behind one contract. Importing this loads none of them.

A backend solves the SCF and keeps the orbitals; densities at points always come from our own
evaluator (`quantum.backends.orbitals`), so that ELF has one formula and one code path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantum.base import InputError
from quantum.schema import CalculationSpec, Resources

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Nuclei, charge and spin of one calculation, in Bohr."""

    atomic_numbers: tuple[int, ...]
    coords_bohr: Array
    charge: int
    multiplicity: int


@dataclass
class SCFResult:
    """A converged self-consistent field.

    Attributes
    ----------
    energy_hartree : float
        Total energy.
    mo_coeff : ndarray (S, N, M)
        Orbital coefficients per spin channel (S = 1 closed shell, 2 open shell), in the order of
        PySCF's spherical basis functions.
    mo_occ, mo_energy_hartree : ndarray (S, M)
        Occupations and orbital energies.
    dipole_au : ndarray (3,)
        In the frame of the input coordinates, relative to the centre of nuclear charge.
    charges_mulliken : ndarray (A,)
        Atomic charges.
    arrays : dict
        ``quadrupole_au`` (3, 3) traceless, ``charges_loewdin`` (A,), ``spin_populations`` (A,),
        ``mayer_bond_orders`` (A, A).
    facts : dict
        Cycles, remedies, program version, integrated electron count.
    """

    energy_hartree: float
    mo_coeff: Array
    mo_occ: Array
    mo_energy_hartree: Array
    dipole_au: Array
    charges_mulliken: Array
    arrays: dict[str, Array] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """A quantum-chemistry program."""

    def available(self) -> bool:
        """Tell whether the program is on this machine."""

    def version(self) -> str:
        """Version of the program."""

    def run_scf(
        self,
        problem: Problem,
        spec: CalculationSpec,
        resources: Resources,
        remedies: Sequence[str] = (),
    ) -> SCFResult:
        """Solve the SCF, or raise one of the errors of `quantum.base`."""


def get_backend(name: str) -> Backend:
    """Return a backend by name; its program loads on first use.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    if name == "pyscf":
        from quantum.backends.pyscf_backend import PySCFBackend

        return PySCFBackend()
    if name == "psi4":
        from quantum.backends.psi4_backend import Psi4Backend

        return Psi4Backend()
    raise InputError(f"unknown backend '{name}', expected: pyscf, psi4")
