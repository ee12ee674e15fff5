"""Coulomb and exchange matrices from density fitting, kept sparse and in single precision.

With an auxiliary basis P, ``(mu nu|lam sig) = sum_Q B[Q, mu nu] B[Q, lam sig]``,
``B = L^-1 (Q|mu nu)`` and ``(P|Q) = L L^T`` (Whitten, J. Chem. Phys. 58, 4496 (1973); Weigend,
Phys. Chem. Chem. Phys. 4, 4285 (2002)). Pairs of functions that do not overlap are never made:
atoms are grouped by place and only near groups are paired. The exchange matrix is built from the
occupied orbitals.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from quantum.backends import Array
from quantum.base import ResourceError

_ATOMS = 6  # per group
_WORK_BYTES = 3e7  # of half-transformed integrals: should stay in the cache
_SUMMED = 16


@dataclass
class _Group:
    """Functions of a group of atoms (``rows``) with the near functions up to and including it.

    ``values`` has shape (auxiliary functions, near functions, rows); the rows' own functions are
    the last of the near ones.
    """

    rows: slice
    near: list[slice]
    values: npt.NDArray[Any]

    @property
    def n_before(self) -> int:
        """Near functions that belong to earlier groups."""
        return int(self.values.shape[1] - self.values.shape[2])


class _Metric:
    """The factor L of the Coulomb metric of the auxiliary basis, applied as ``L^-1``.

    The functions of one atom are made orthonormal first, in double precision. What remains is so
    well conditioned that it can be solved in single precision. In-place work saves touching fresh
    memory, which costs as much as the arithmetic.
    """

    def __init__(self, auxiliary: Any, dtype: np.dtype[Any]) -> None:
        metric = auxiliary.intor("int2c2e")
        self._atoms = [slice(int(a), int(b)) for a, b in auxiliary.aoslice_by_atom()[:, 2:]]
        self._atom_factors = [scipy.linalg.cholesky(metric[a, a], lower=True) for a in self._atoms]
        for atom, factor in zip(self._atoms, self._atom_factors, strict=True):
            metric[atom] = scipy.linalg.solve_triangular(factor, metric[atom], lower=True)
            metric[:, atom] = scipy.linalg.solve_triangular(factor, metric[:, atom].T, lower=True).T
        self._factor = scipy.linalg.cholesky(metric, lower=True)
        self._small_factor = self._factor.astype(dtype)

    def orthonormalise(self, values: Array) -> None:
        """Bring integrals (auxiliary functions, ...) to orthonormal ones per atom, in place."""
        flat = values.reshape(len(values), -1)
        for atom, factor in zip(self._atoms, self._atom_factors, strict=True):
            scipy.linalg.blas.dtrsm(
                1.0, factor, flat[atom].T, side=1, lower=1, trans_a=1, overwrite_b=1
            )

    def finish(self, values: npt.NDArray[Any]) -> None:
        """Complete ``L^-1`` on orthonormalised integrals, in place and in their precision."""
        solve = scipy.linalg.get_blas_funcs("trsm", dtype=values.dtype)
        flat = values.reshape(len(values), -1)
        solve(1.0, self._small_factor, flat.T, side=1, lower=1, trans_a=1, overwrite_b=1)

    def fit(self, vector: Array) -> Array:
        """Fit coefficients of orthonormalised integrals (auxiliary functions,), in double."""
        solved: Array = scipy.linalg.cho_solve((self._factor, True), vector)
        return solved


class FittedIntegrals:
    """Three-index integrals of near pairs, and what is built of them.

    Parameters
    ----------
    mol : pyscf.gto.Mole
        Atoms must be in an order in which neighbours in the list are neighbours in space, see
        `quantum.backends.blocks.bisect`.
    auxiliary : pyscf.gto.Mole
        Auxiliary basis on the same atoms.
    cut : float
        Two groups of atoms are paired if functions of theirs overlap by more.
    dtype : numpy dtype
        Precision of the stored integrals and of all products.
    memory_mb : float
        Limit for the stored integrals.
    for_exchange : bool
        Without exchange the fit is applied to vectors only, which saves most of its cost.

    Raises
    ------
    ResourceError
        If the integrals do not fit into the memory.
    """

    def __init__(
        self,
        mol: Any,
        auxiliary: Any,
        cut: float,
        dtype: npt.DTypeLike,
        memory_mb: float,
        *,
        for_exchange: bool = True,
    ) -> None:
        self.n_auxiliary = int(auxiliary.nao)
        self._n = int(mol.nao)
        self._dtype = np.dtype(dtype)
        self._metric = _Metric(auxiliary, self._dtype)
        self._for_exchange = for_exchange
        groups = _atom_groups(mol)
        pairs = _near_groups(mol, groups, cut)
        self._require_memory(mol, groups, pairs, memory_mb)
        scratch = np.empty(self._largest_block(mol, groups, pairs))
        self._groups = [
            self._build(mol, auxiliary, groups, a, near, scratch) for a, near in enumerate(pairs)
        ]

    def _largest_block(
        self, mol: Any, groups: list[tuple[int, int]], pairs: list[list[int]]
    ) -> int:
        """Numbers in the largest block of integrals that is made at a time."""
        sizes = []
        for a, near in enumerate(pairs):
            rows = _functions(mol, *groups[a])
            for run in _merge([groups[b] for b in near]):
                columns = _functions(mol, *run)
                sizes.append((columns.stop - columns.start) * (rows.stop - rows.start))
        return self.n_auxiliary * max(sizes)

    def _require_memory(
        self, mol: Any, groups: list[tuple[int, int]], pairs: list[list[int]], memory_mb: float
    ) -> None:
        sizes = [g.stop - g.start for g in (_functions(mol, *group) for group in groups)]
        n = sum(sizes[a] * sizes[b] for a, near in enumerate(pairs) for b in near)
        need = n * self.n_auxiliary * self._dtype.itemsize / 1e6
        if need > memory_mb:
            raise ResourceError(
                f"the fitted integrals need {need:.0f} MB at {self._n} basis functions, "
                f"limit {memory_mb:.0f} MB; raise resources.memory_mb"
            )

    def _build(
        self,
        mol: Any,
        auxiliary: Any,
        groups: list[tuple[int, int]],
        a: int,
        near: list[int],
        scratch: Array,
    ) -> _Group:
        from pyscf.gto import moleintor

        both = mol + auxiliary
        kind = "int3c2e_cart" if mol.cart else "int3c2e_sph"
        rows = _functions(mol, *groups[a])
        columns = [_functions(mol, *run) for run in _merge([groups[b] for b in near])]
        n_near = sum(c.stop - c.start for c in columns)
        n_rows = rows.stop - rows.start
        values = np.empty((self.n_auxiliary, n_near, n_rows), dtype=self._dtype)
        shells, tables = _shells(mol, *groups[a]), (both._atm, both._bas, both._env)
        at = 0
        for run, column in zip(_merge([groups[b] for b in near]), columns, strict=True):
            width = column.stop - column.start
            window = (*shells, *_shells(mol, *run), mol.nbas, both.nbas)
            out = scratch[: self.n_auxiliary * width * n_rows]
            made = moleintor.getints3c(kind, *tables, window, 1, "s1", out=out)
            block = made.transpose(2, 1, 0)
            self._metric.orthonormalise(block)
            values[:, at : at + width] = block
            at += width
        if self._for_exchange:
            self._metric.finish(values)
        group = _Group(rows, columns, values)
        own = group.values[:, group.n_before :]
        own += own.transpose(0, 2, 1).copy()  # rounding must not break the symmetry
        own *= 0.5
        return group

    def coulomb(self, density: Array) -> Array:
        """Coulomb matrix of a symmetric density matrix (N, N)."""
        fitted = np.zeros(self.n_auxiliary)
        for group in self._groups:
            block = np.concatenate([density[c, group.rows] for c in group.near])
            block[: group.n_before] *= 2.0
            fitted += self._flat(group) @ block.ravel().astype(self._dtype)
        if not self._for_exchange:
            fitted = self._metric.fit(fitted)
        fitted_small = fitted.astype(self._dtype)
        out = np.zeros((self._n, self._n))
        for group in self._groups:
            block = (fitted_small @ self._flat(group)).reshape(group.values.shape[1:])
            at = 0
            for column in group.near:
                part = block[at : at + column.stop - column.start]
                out[column, group.rows] = part
                out[group.rows, column] = part.T
                at += len(part)
        return 0.5 * (out + out.T)

    def _flat(self, group: _Group) -> npt.NDArray[Any]:
        return group.values.reshape(self.n_auxiliary, -1)

    def exchange(self, orbitals: Array) -> Array:
        """Exchange matrix of a density matrix ``C C^T``, from its factor.

        Parameters
        ----------
        orbitals : ndarray (N, O)
            Occupied orbitals, each times the square root of its occupation.
        """
        c = np.ascontiguousarray(orbitals, dtype=self._dtype)
        n, n_occupied = c.shape
        total = np.zeros((n, n))
        if n_occupied == 0:
            return total
        add = scipy.linalg.get_blas_funcs("syrk", dtype=self._dtype)
        step = max(1, int(_WORK_BYTES / self._dtype.itemsize / (n * n_occupied)))
        for start in range(0, self.n_auxiliary, step):
            half = self._half_transformed(slice(start, start + step), c)
            for first in range(0, len(half), _SUMMED):  # short sums, or single precision drifts
                part = np.zeros((n, n), dtype=self._dtype, order="F")
                for matrix in half[first : first + _SUMMED]:
                    part = add(1.0, matrix.T, beta=1.0, c=part, trans=1, lower=1, overwrite_c=1)
                total += part
        lower = np.tril(total)
        return lower + np.tril(lower, -1).T

    def _half_transformed(self, chunk: slice, c: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``sum_nu B[Q, mu nu] C[nu, i]`` for some auxiliary functions, shape (Q, N, O)."""
        size = len(range(*chunk.indices(self.n_auxiliary)))
        half = np.zeros((size, *c.shape), dtype=self._dtype)
        for group in self._groups:
            values = group.values[chunk]
            near = np.concatenate([c[column] for column in group.near])
            half[:, group.rows] += np.matmul(values.transpose(0, 2, 1), near)
            before = np.matmul(values[:, : group.n_before], c[group.rows])
            at = 0
            for column in group.near:
                width = min(column.stop, group.rows.start) - column.start
                if width > 0:
                    half[:, column.start : column.start + width] += before[:, at : at + width]
                    at += width
        return half


def _atom_groups(mol: Any) -> list[tuple[int, int]]:
    """Ranges of consecutive atoms, of nearly equal length."""
    n = -(-mol.natm // _ATOMS)
    edges = np.linspace(0, mol.natm, n + 1).round().astype(int)
    return [(int(a), int(b)) for a, b in pairwise(edges)]


def _near_groups(mol: Any, groups: list[tuple[int, int]], cut: float) -> list[list[int]]:
    """For each group, itself and the earlier groups whose functions overlap with its own."""
    overlap = np.abs(mol.intor("int1e_ovlp"))
    slices = [_functions(mol, *group) for group in groups]
    return [
        [b for b in range(a + 1) if b == a or overlap[slices[a], slices[b]].max() > cut]
        for a in range(len(groups))
    ]


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that follow each other."""
    merged: list[tuple[int, int]] = []
    for first, last in ranges:
        if merged and merged[-1][1] == first:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return merged


def _functions(mol: Any, first_atom: int, last_atom: int) -> slice:
    by_atom = mol.aoslice_by_atom()
    return slice(int(by_atom[first_atom, 2]), int(by_atom[last_atom - 1, 3]))


def _shells(mol: Any, first_atom: int, last_atom: int) -> tuple[int, int]:
    by_atom = mol.aoslice_by_atom()
    return int(by_atom[first_atom, 0]), int(by_atom[last_atom - 1, 1])
