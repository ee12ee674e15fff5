"""Space cut into small pieces: blocks of points and of atoms, and the shells that reach them.

A basis function matters only near its atom. Everything that is fast in this package rests on that:
points and atoms are grouped by place, and a group meets only the shells that reach it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from quantum.backends import Array

Indices = npt.NDArray[np.int64]


def bisect(points: Array, largest: int) -> list[Indices]:
    """Group points by place: halve along the longest side until a group is small enough.

    Parameters
    ----------
    points : ndarray (G, 3)
        Positions.
    largest : int
        Most points in a group.

    Returns
    -------
    list of ndarray
        Indices of each group; neighbours in the list are neighbours in space.
    """
    groups: list[Indices] = []
    stack = [np.arange(len(points))]
    while stack:
        index = stack.pop()
        if len(index) <= largest:
            groups.append(index)
            continue
        extent = np.ptp(points[index], axis=0)
        half = len(index) // 2
        order = np.argpartition(points[index, int(extent.argmax())], half)
        stack += [index[order[half:]], index[order[:half]]]
    return groups


def shell_radii_bohr(mol: Any, cut: float) -> Array:
    """Distance beyond which each shell's radial part (and its slope) stays below ``cut``."""
    r = np.linspace(0.05, 40.0, 800)
    radii = np.empty(mol.nbas)
    for shell in range(mol.nbas):
        exponents = mol.bas_exp(shell)
        weights = np.abs(mol.bas_ctr_coeff(shell)).sum(axis=1)
        momentum = mol.bas_angular(shell)
        radial = r**momentum * (weights * np.exp(-exponents * r[:, None] ** 2)).sum(axis=1)
        slope = 2.0 * exponents.max() * r * radial * (r > 4) + radial
        above = np.flatnonzero(np.maximum(radial, np.minimum(slope, 10 * radial)) > cut)
        radii[shell] = r[above[-1]] if len(above) else 0.0
    return radii


class Reach:
    """Which shells of a molecule reach a box in space.

    Parameters
    ----------
    mol : pyscf.gto.Mole
        The basis functions.
    cut : float
        Value below which a basis function counts as absent.
    """

    def __init__(self, mol: Any, cut: float) -> None:
        self._mol = copy.copy(mol)  # its table of shells is cut down for each evaluation
        self._shells = mol._bas
        self._radii = shell_radii_bohr(mol, cut)
        self._centres = mol.atom_coords()[[mol.bas_atom(shell) for shell in range(mol.nbas)]]
        locations = mol.ao_loc_nr()
        self._owner = np.repeat(np.arange(mol.nbas), np.diff(locations))

    def near(self, low: Array, high: Array) -> Indices:
        """Shells that reach the box between two corners, Bohr."""
        gap = np.maximum(np.maximum(low - self._centres, self._centres - high), 0.0)
        return np.flatnonzero(np.einsum("ij,ij->i", gap, gap) < self._radii**2)

    def functions(self, shells: Indices) -> Indices:
        """Indices of the basis functions of some shells."""
        return np.flatnonzero(np.isin(self._owner, shells))

    def evaluate(self, points: Array, shells: Indices, derivative: int = 1) -> npt.NDArray[Any]:
        """Values, and first derivatives if wanted, of the functions of some shells.

        Returns
        -------
        ndarray (1 or 4, n, G)
            Value and d/dx, d/dy, d/dz; points are contiguous, as libcint makes them.
        """
        self._mol._bas = np.ascontiguousarray(self._shells[shells])
        name = f"GTOval_{'cart' if self._mol.cart else 'sph'}_deriv{derivative}"
        values = self._mol.eval_gto(name, points)
        return (values[None] if derivative == 0 else values).transpose(0, 2, 1)
