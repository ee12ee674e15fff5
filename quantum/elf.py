"""The electron localisation function: frame, grid, formula, slices. Pure numpy, no program.

Becke and Edgecombe, J. Chem. Phys. 92, 5397 (1990); Savin et al. for Kohn-Sham densities. With
spin densities rho_s, their gradients and tau = 1/2 sum |grad phi|^2::

    D   = sum_s ( tau_s - |grad rho_s|^2 / (8 rho_s) )
    D_h = 3/10 (6 pi^2)^(2/3) sum_s rho_s^(5/3)
    ELF = 1 / (1 + ((D + delta) / D_h)^2)

which is the usual closed-shell expression when both spins agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantum.base import IntegrityError
from quantum.schema import GridSpec

Array = npt.NDArray[np.float64]
_UNIFORM = 0.3 * (6.0 * np.pi**2) ** (2.0 / 3.0)  # kinetic energy of one spin of a uniform gas
_THIN = 1e-14  # spin density below which there is nothing to localise


@dataclass(frozen=True)
class Box:
    """Grid points of a molecule in its own frame, all in Bohr."""

    axes: tuple[Array, Array, Array]
    coords_bohr: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def cell_volume(self) -> float:
        """Volume that a point stands for, Bohr^3."""
        return float(np.prod([axis[1] - axis[0] for axis in self.axes]))

    @property
    def origin_bohr(self) -> Array:
        """First point."""
        return np.array([axis[0] for axis in self.axes])

    def points(self) -> Array:
        """All points, shape (G, 3), in C order."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1).reshape(-1, 3)


def principal_frame(
    atomic_numbers: npt.ArrayLike, coords_bohr: Array
) -> tuple[Array, Array, Array]:
    """Turn a molecule into its principal-axis frame.

    Axes are the eigenvectors of the covariance of the nuclei, weighted by atomic number, longest
    extent first. The first two point to the side where the weighted third moment is positive; the
    third makes the frame right-handed, so that a chiral molecule keeps its hand. Molecules with a
    symmetry that leaves an axis or a sign open get one of the equivalent frames.

    Returns
    -------
    coords : ndarray (A, 3)
        Coordinates in the new frame, Bohr.
    rotation : ndarray (3, 3)
        Rows are the new axes: ``coords = (old - centre) @ rotation.T``.
    centre : ndarray (3,)
        Origin of the new frame in old coordinates.
    """
    weights = np.asarray(atomic_numbers, dtype=float)
    centre = weights @ coords_bohr / weights.sum()
    moved = coords_bohr - centre
    if len(moved) == 1:
        return moved, np.eye(3), centre
    covariance = (moved * weights[:, None]).T @ moved / weights.sum()
    _, vectors = np.linalg.eigh(covariance)
    rotation = vectors.T[::-1].copy()
    for axis in range(2):
        if weights @ (moved @ rotation[axis]) ** 3 < 0:
            rotation[axis] *= -1
    rotation[2] = np.cross(rotation[0], rotation[1])
    return moved @ rotation.T, rotation, centre


def build_box(coords_bohr: Array, spec: GridSpec) -> Box:
    """Points around a molecule that already is in its frame; the box is centred on its extent."""
    axes = []
    for column in coords_bohr.T:
        middle = 0.5 * (column.min() + column.max())
        half = 0.5 * (column.max() - column.min()) + spec.margin_bohr
        n = int(np.ceil(half / spec.spacing_bohr))
        axes.append(middle + spec.spacing_bohr * np.arange(-n, n + 1))
    return Box((axes[0], axes[1], axes[2]), coords_bohr)


def spin_resolved(fields: npt.NDArray[Any]) -> Array:
    """Density quantities of alpha and beta, (2, 5, ...), from total ones (1, 5, ...) if need be."""
    both = fields if len(fields) == 2 else np.concatenate([fields / 2, fields / 2])
    return both.astype(float, copy=False)


def compute_elf(fields: npt.NDArray[Any], delta_au: float) -> Array:
    """ELF from density quantities.

    Parameters
    ----------
    fields : ndarray (S, 5, ...)
        Total (S = 1, closed shell) or per spin (S = 2): rho, three gradient components, tau, in
        atomic units.
    delta_au : float
        Added to the Pauli excess D; damps the ELF where the density is thin. 0 is the definition.

    Returns
    -------
    ndarray (...)
        Between 0 and 1; 0 where there is no density.
    """
    rounding = 1e-12 if fields.dtype == np.float64 else 1e-6
    fields = spin_resolved(fields)
    rho, gradient, tau = fields[:, 0], fields[:, 1:4], fields[:, 4]
    safe = np.maximum(rho, _THIN)
    weizsaecker = (gradient**2).sum(axis=1) / (8.0 * safe)
    excess = np.where(rho > _THIN, np.maximum(tau - weizsaecker, 0.0), 0.0).sum(axis=0)
    uniform = _UNIFORM * (safe ** (5.0 / 3.0)).sum(axis=0)
    chi = (excess + delta_au) / uniform
    # a single electron in a channel has an excess of pure rounding noise: clean it relative to tau
    noise = rounding * tau.sum(axis=0)
    chi = np.where(excess <= noise, delta_au / uniform, chi)
    return np.where(rho.sum(axis=0) > _THIN, 1.0 / (1.0 + chi**2), 0.0)


def compute_lol(fields: npt.NDArray[Any]) -> Array:
    """Localised orbital locator, between 0 and 1 (Schmider and Becke, J. Mol. Struct. 527, 51).

    ``LOL = t / (1 + t)`` with ``t`` the ratio of the uniform gas's kinetic energy density to tau,
    each summed over the spins; 1/2 for the uniform gas.

    Parameters
    ----------
    fields : ndarray (S, 5, ...)
        As in `compute_elf`.
    """
    fields = spin_resolved(fields)
    rho, tau = np.maximum(fields[:, 0], 0.0), fields[:, 4].sum(axis=0)
    uniform = _UNIFORM * (rho ** (5.0 / 3.0)).sum(axis=0)
    total = uniform + tau
    return np.where(total > 0, uniform / np.where(total > 0, total, 1.0), 0.0)


def total_density(fields: npt.NDArray[Any]) -> Array:
    """Rho (...) of density quantities (S, 5, ...)."""
    return np.asarray(fields[:, 0].sum(axis=0, dtype=float))


def gradient_norm(fields: npt.NDArray[Any]) -> Array:
    """``|grad rho|`` (...) of density quantities (S, 5, ...)."""
    return np.sqrt((fields[:, 1:4].sum(axis=0, dtype=float) ** 2).sum(axis=0))


def check_elf(elf: Array) -> None:
    """Refuse values outside [0, 1] or not finite.

    Raises
    ------
    IntegrityError
        With the range found.
    """
    if not np.isfinite(elf).all() or elf.min() < 0.0 or elf.max() > 1.0:
        raise IntegrityError(
            f"ELF spans {np.nanmin(elf):.4g} to {np.nanmax(elf):.4g}; expected 0 to 1"
        )


def slices(volume: Array, n: int) -> tuple[Array, Array, Array]:
    """Cut ``n`` equally spaced planes out of a box along each axis.

    Returns
    -------
    three ndarray
        Shapes (n, ny, nz), (n, nx, nz), (n, nx, ny).
    """
    planes = []
    for axis in range(3):
        index = np.linspace(0, volume.shape[axis] - 1, n).round().astype(int)
        planes.append(np.moveaxis(np.take(volume, index, axis=axis), axis, 0))
    return planes[0], planes[1], planes[2]


def resample(channels: npt.NDArray[Any], n: int) -> npt.NDArray[np.float32]:
    """Fields (C, nx, ny, nz) on a cube of ``n`` points along each edge, (C, n, n, n).

    The longest side of the box fills the cube and the others are centred, so that shapes keep
    their proportions; outside the box is 0. Trilinear.
    """
    from scipy.ndimage import map_coordinates

    shape = np.array(channels.shape[1:])
    step = (shape.max() - 1) / max(n - 1, 1)
    at = [(np.arange(n) - (n - 1) / 2) * step + (size - 1) / 2 for size in shape]
    grid = np.meshgrid(*at, indexing="ij")
    return np.stack(
        [map_coordinates(c, grid, order=1, mode="constant", cval=0.0) for c in channels]
    ).astype(np.float32)
