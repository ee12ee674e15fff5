"""Exchange-correlation energy and potential by small blocks of quadrature points.

The points of an atom-centred quadrature are grouped by place; each group multiplies only the basis
functions that reach it. Basis functions are kept from one cycle to the next as far as the memory
allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantum.backends import Array
from quantum.backends.blocks import Indices, Reach, bisect

_POINTS = 512  # per block
_LEAST_WEIGHTED_DENSITY = 1e-14


@dataclass
class _Block:
    points: Array
    weights: Array
    shells: Indices
    rows: Indices
    kept: npt.NDArray[Any] | None = field(default=None, repr=False)


class Quadrature:
    """Numerical integration of an LDA or GGA functional.

    Parameters
    ----------
    mol : pyscf.gto.Mole
        Molecule and basis set.
    level : int
        PySCF's quality level of the atom-centred quadrature.
    functional : str
        Functional in libxc's names; only its local part is integrated here.
    cut : float
        Value below which a basis function counts as absent in a block.
    dtype : numpy dtype
        Precision of basis functions and their products; sums over points are in double.
    memory_mb : float
        How much may be kept of the basis functions' values between cycles.
    """

    def __init__(
        self,
        mol: Any,
        level: int,
        functional: str,
        cut: float,
        dtype: npt.DTypeLike,
        memory_mb: float,
    ) -> None:
        from pyscf.dft import gen_grid, numint

        grids = gen_grid.Grids(mol)
        grids.level = level
        grids.build(with_non0tab=False, sort_grids=False)
        self._reach = Reach(mol, cut)
        self._numint = numint.NumInt()
        self._kind = self._numint._xc_type(functional)
        self._functional, self._dtype = functional, np.dtype(dtype)
        self._left = memory_mb * 1e6
        self.n_points = len(grids.weights)
        self._blocks = [
            block
            for index in bisect(grids.coords, _POINTS)
            if (block := self._make_block(grids.coords[index], grids.weights[index])) is not None
        ]

    def _make_block(self, points: Array, weights: Array) -> _Block | None:
        shells = self._reach.near(points.min(axis=0), points.max(axis=0))
        if len(shells) == 0:
            return None
        return _Block(points, weights, shells, self._reach.functions(shells))

    def _functions(self, block: _Block) -> npt.NDArray[Any]:
        if block.kept is not None:
            return block.kept
        derivative = 0 if self._kind == "LDA" else 1
        values = self._reach.evaluate(block.points, block.shells, derivative).astype(
            self._dtype, copy=False
        )
        if values.nbytes <= self._left:
            block.kept = values
            self._left -= values.nbytes
        return values

    def release(self) -> None:
        """Forget the kept values."""
        for block in self._blocks:
            block.kept = None

    def integrate(self, densities: Array) -> tuple[float, float, Array]:
        """Electrons, energy and potential matrix of spin densities.

        Parameters
        ----------
        densities : ndarray (S, N, N)
            Density matrix (S = 1: total; S = 2: alpha and beta).

        Returns
        -------
        electrons : float
        energy_hartree : float
        potential : ndarray (S, N, N)
        """
        small = densities.astype(self._dtype)
        potential = np.zeros(densities.shape)
        electrons = energy = 0.0
        for block in self._blocks:
            ao = self._functions(block)
            where = np.ix_(block.rows, block.rows)
            rho = np.stack([_density(ao, d[where]) for d in small])
            weighted = rho[:, 0].sum(axis=0) * block.weights
            if weighted.sum() < _LEAST_WEIGHTED_DENSITY:
                continue
            per_electron, slope = self._numint.eval_xc_eff(
                self._functional,
                rho[0] if len(rho) == 1 else rho,
                deriv=1,
                xctype=self._kind,
                spin=len(rho) - 1,
            )[:2]
            electrons += float(weighted.sum())
            energy += float(weighted @ per_electron)
            slope = np.reshape(slope, rho.shape) * block.weights
            slope[:, 0] *= 0.5
            for out, factor in zip(potential, slope.astype(self._dtype), strict=True):
                weighted_ao = ao[0] * factor[0]
                for k in range(1, len(ao)):
                    weighted_ao += ao[k] * factor[k]
                out[where] += ao[0] @ weighted_ao.T
        return electrons, energy, potential + potential.transpose(0, 2, 1)


def _density(ao: npt.NDArray[Any], density: npt.NDArray[Any]) -> Array:
    """Density, and its gradient if ``ao`` has derivatives, at the points of a block."""
    product = density @ ao[0]
    rho = np.empty((len(ao), ao.shape[2]))
    for k, values in enumerate(ao):
        rho[k] = np.einsum("ig,ig->g", product, values)
    rho[1:] *= 2.0
    return rho
