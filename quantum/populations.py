"""Charges, bond orders and multipoles of a density matrix. Pure numpy: no program.

Everything follows from the overlap matrix ``S``, the spin density matrices ``D`` and the atom that
each basis function belongs to, so every backend gives the same numbers for the same orbitals.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def density_matrices(mo_coeff: Array, mo_occ: Array) -> Array:
    """Spin density matrices (2, N, N) of orbitals per spin channel (S, N, M)."""
    matrices = np.einsum("spi,si,sqi->spq", mo_coeff, mo_occ, mo_coeff)
    if len(matrices) == 1:
        return np.concatenate([matrices / 2, matrices / 2])
    return np.asarray(matrices)


def mulliken_charges(
    density: Array, overlap: Array, owner: npt.NDArray[np.int64], nuclear: Array
) -> Array:
    """Mulliken charges (A,), elementary charges (J. Chem. Phys. 23, 1833 (1955)).

    Parameters
    ----------
    density : ndarray (2, N, N)
        Alpha and beta.
    overlap : ndarray (N, N)
    owner : ndarray (N,)
        Atom of each basis function.
    nuclear : ndarray (A,)
        Charge of each nucleus, without the electrons of a core potential.
    """
    gross = np.einsum("pq,qp->p", density.sum(axis=0), overlap)
    return nuclear - np.bincount(owner, gross, minlength=len(nuclear))


def loewdin_charges(
    density: Array, overlap: Array, owner: npt.NDArray[np.int64], nuclear: Array
) -> Array:
    """Löwdin charges (A,), from the symmetrically orthogonalised basis."""
    values, vectors = np.linalg.eigh(overlap)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    gross = np.einsum("pq,qr,rp->p", root, density.sum(axis=0), root, optimize=True)
    return nuclear - np.bincount(owner, gross, minlength=len(nuclear))


def spin_populations(density: Array, overlap: Array, owner: npt.NDArray[np.int64]) -> Array:
    """Mulliken spin populations (A,): alpha minus beta electrons."""
    gross = np.einsum("pq,qp->p", density[0] - density[1], overlap)
    return np.asarray(np.bincount(owner, gross, minlength=int(owner.max()) + 1), dtype=float)


def mayer_bond_orders(density: Array, overlap: Array, owner: npt.NDArray[np.int64]) -> Array:
    """Mayer bond orders (A, A), zero on the diagonal (Chem. Phys. Lett. 97, 270 (1983))."""
    n_atoms = int(owner.max()) + 1
    member = np.zeros((len(owner), n_atoms))
    member[np.arange(len(owner)), owner] = 1.0
    orders = np.zeros((n_atoms, n_atoms))
    for matrix in density:
        product = matrix @ overlap
        orders += 2.0 * (member.T @ (product * product.T) @ member)
    np.fill_diagonal(orders, 0.0)
    return orders


def traceless_quadrupole(second_moments: Array) -> Array:
    """Traceless quadrupole (3, 3) from second moments (3, 3): Q = (3 M - tr(M)) / 2."""
    return 1.5 * second_moments - 0.5 * np.trace(second_moments) * np.eye(3)
