"""One-electron properties of stored orbitals, the same for every program."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantum.backends import Array, SCFResult
from quantum.base import IntegrityError
from quantum.populations import (
    density_matrices,
    loewdin_charges,
    mayer_bond_orders,
    mulliken_charges,
    spin_populations,
    traceless_quadrupole,
)

_ELECTRON_TOLERANCE = 5e-3  # share of the electrons that the quadrature may miss


def finish(
    mol: Any,
    energy_hartree: float,
    mo_coeff: Array,
    mo_occ: Array,
    mo_energy_hartree: Array,
    facts: dict[str, Any],
) -> SCFResult:
    """Check the orbitals and add the properties that follow from them.

    Parameters
    ----------
    mol : pyscf.gto.Mole
        Molecule and basis set in the order of the orbitals' rows.
    mo_coeff, mo_occ, mo_energy_hartree : ndarray (S, N, M), (S, M), (S, M)
        Orbitals per spin channel.

    Raises
    ------
    IntegrityError
        If the orbitals are not orthonormal, or the density on a quadrature does not hold the right
        number of electrons.
    """
    overlap = mol.intor_symmetric("int1e_ovlp")
    for coeff in mo_coeff:
        error = float(np.abs(coeff.T @ overlap @ coeff - np.eye(coeff.shape[1])).max())
        if error > 1e-5:
            raise IntegrityError(
                f"orbitals are not orthonormal in the basis set: deviation {error:.1e}; "
                "expected below 1e-5"
            )
    electrons = _integrate_density(mol, mo_coeff, mo_occ)
    if abs(electrons - mol.nelectron) > _ELECTRON_TOLERANCE * max(mol.nelectron, 1):
        raise IntegrityError(
            f"density integrates to {electrons:.4f} electrons, expected {mol.nelectron}"
        )
    density = density_matrices(mo_coeff, mo_occ)
    owner = np.repeat(np.arange(mol.natm), np.diff(mol.aoslice_by_atom()[:, 2:]).ravel())
    nuclear = mol.atom_charges().astype(float)
    dipole, quadrupole = _multipoles(mol, density.sum(axis=0), nuclear)
    return SCFResult(
        energy_hartree=energy_hartree,
        mo_coeff=mo_coeff,
        mo_occ=mo_occ,
        mo_energy_hartree=mo_energy_hartree,
        dipole_au=dipole,
        charges_mulliken=mulliken_charges(density, overlap, owner, nuclear),
        arrays={
            "quadrupole_au": quadrupole,
            "charges_loewdin": loewdin_charges(density, overlap, owner, nuclear),
            "spin_populations": spin_populations(density, overlap, owner),
            "mayer_bond_orders": mayer_bond_orders(density, overlap, owner),
        },
        facts={
            **facts,
            "n_electrons": int(mol.nelectron),
            "electrons_integrated": round(float(electrons), 6),
            "n_basis_functions": int(mol.nao),
        },
    )


def _multipoles(mol: Any, density: Array, nuclear: Array) -> tuple[Array, Array]:
    """Dipole (3,) and traceless quadrupole (3, 3) about the centre of nuclear charge, a.u."""
    coords = mol.atom_coords()
    origin = nuclear @ coords / max(nuclear.sum(), 1e-9)
    with mol.with_common_origin(origin):
        first = mol.intor_symmetric("int1e_r", comp=3)
        second = mol.intor_symmetric("int1e_rr", comp=9).reshape(3, 3, mol.nao, mol.nao)
    moved = coords - origin
    dipole = nuclear @ moved - np.einsum("kpq,qp->k", first, density)
    moments = np.einsum("a,ai,aj->ij", nuclear, moved, moved) - np.einsum(
        "ijpq,qp->ij", second, density
    )
    return dipole, traceless_quadrupole(moments)


def _integrate_density(mol: Any, coeff: Array, occ: Array) -> float:
    """Electrons on an atom-centred quadrature (a uniform grid does not resolve the cores)."""
    from pyscf.dft import gen_grid

    from quantum.backends.blocks import Reach, bisect

    grids = gen_grid.Grids(mol)
    grids.level = 0
    grids.build(with_non0tab=False, sort_grids=False)
    reach = Reach(mol, 1e-6)
    occupied = [c[:, n > 0] * np.sqrt(n[n > 0]) for c, n in zip(coeff, occ, strict=True)]
    total = 0.0
    for index in bisect(grids.coords, 1000):
        points = grids.coords[index]
        shells = reach.near(points.min(axis=0), points.max(axis=0))
        if len(shells) == 0:
            continue
        ao = reach.evaluate(points, shells, 0)[0]
        rows = reach.functions(shells)
        for orbitals in occupied:
            phi = orbitals[rows].T @ ao
            total += float(np.einsum("ig,ig,g->", phi, phi, grids.weights[index]))
    return total
