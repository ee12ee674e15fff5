"""Basins of the ELF: which maximum a point belongs to, and what the basins hold.

Silvi and Savin, Nature 371, 683 (1994). Each grid point points to the highest of its 26 neighbours;
following the pointers leads to an attractor. On a grid of 0.4 Bohr the populations are good to a
few hundredths of an electron for valence basins, which is enough for statistics, not for a
topological study.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from quantum.elf import Array, Box

KINDS = ("core", "hydrogen", "bond", "lone_pair")
_CORE_BOHR = 0.7  # an attractor nearer to a heavy nucleus belongs to its core
_HYDROGEN_BOHR = 1.0
_BOND_ANGLE_COSINE = -0.5  # seen from the attractor, two bonded nuclei are further apart than this
_SMALLEST_POPULATION = 0.05


@dataclass(frozen=True)
class Basins:
    """Basins of a molecule, largest population first.

    Attributes
    ----------
    position_bohr : ndarray (B, 3)
        Attractors.
    elf : ndarray (B,)
        ELF at the attractor.
    population : ndarray (B,)
        Electrons in the basin.
    kind : ndarray (B,) of int
        Index into `KINDS`.
    """

    position_bohr: Array
    elf: Array
    population: Array
    kind: npt.NDArray[np.int64]


def find_basins(
    elf: Array, rho: Array, box: Box, numbers: npt.NDArray[np.int_], rho_cut_au: float
) -> Basins:
    """Partition the points with enough density into basins of the ELF.

    Parameters
    ----------
    elf, rho : ndarray (nx, ny, nz)
        On the points of ``box``.
    numbers : ndarray (A,)
        Atomic numbers; positions come from the box.
    rho_cut_au : float
        Points below this density belong to no basin.
    """
    counted = (rho >= rho_cut_au).ravel()
    root = _climb(np.where(rho >= rho_cut_au, elf, -1.0))
    roots, label = np.unique(root[counted], return_inverse=True)
    population = np.bincount(label, rho.ravel()[counted]) * box.cell_volume
    position = np.stack(
        [axis[i] for axis, i in zip(box.axes, np.unravel_index(roots, elf.shape), strict=True)], -1
    )
    kept = np.flatnonzero(population > _SMALLEST_POPULATION)
    kept = kept[np.argsort(-population[kept], kind="stable")]
    kind = np.array([_kind(position[i], box.coords_bohr, numbers) for i in kept], dtype=np.int64)
    peak = np.asarray(elf.ravel()[roots[kept]], dtype=float)
    return Basins(position[kept], peak, np.asarray(population[kept], dtype=float), kind)


def _climb(values: Array) -> npt.NDArray[np.int64]:
    """Flat index of the local maximum that each point's steepest way up leads to."""
    padded = np.pad(values, 1, constant_values=-np.inf)
    index = np.pad(np.arange(values.size).reshape(values.shape), 1, constant_values=-1)
    inner = tuple(slice(1, -1) for _ in range(3))
    best, target = padded[inner].copy(), index[inner].copy()
    for offset in product((-1, 0, 1), repeat=3):
        moved = tuple(slice(1 + o, n - 1 + o) for o, n in zip(offset, padded.shape, strict=True))
        higher = padded[moved] > best
        best[higher], target[higher] = padded[moved][higher], index[moved][higher]
    root: npt.NDArray[np.int64] = target.ravel()
    while True:
        further = root[root]
        if np.array_equal(further, root):
            return root
        root = further


def _kind(position: Array, coords: Array, numbers: npt.NDArray[np.int_]) -> int:
    """Core, hydrogen, bond or lone pair, from the nuclei around an attractor."""
    away = coords - position
    distance = np.linalg.norm(away, axis=1)
    nearest = int(distance.argmin())
    if numbers[nearest] > 2 and distance[nearest] < _CORE_BOHR:
        return KINDS.index("core")
    if numbers[nearest] == 1 and distance[nearest] < _HYDROGEN_BOHR:
        return KINDS.index("hydrogen")
    near = np.flatnonzero(distance < distance[nearest] + 1.5)
    unit = away[near] / np.maximum(distance[near], 1e-9)[:, None]
    between = (unit @ unit.T).min() < _BOND_ANGLE_COSINE
    return KINDS.index("bond" if between else "lone_pair")
