"""The electron localisation function: frame, grid, formula, features. Pure numpy, no program.

Becke and Edgecombe, J. Chem. Phys. 92, 5397 (1990); Savin et al. for Kohn-Sham densities. With
spin densities rho_s, their gradients and tau = 1/2 sum |grad phi|^2::

    D   = sum_s ( tau_s - |grad rho_s|^2 / (8 rho_s) )
    D_h = 3/10 (6 pi^2)^(2/3) sum_s rho_s^(5/3)
    ELF = 1 / (1 + ((D + delta) / D_h)^2)

which is the usual closed-shell expression when both spins agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantum.base import IntegrityError
from quantum.schema import FeatureSpec, GridSpec

Array = npt.NDArray[np.float64]
_THIN = 1e-14  # spin density below which there is nothing to localise
_ELEMENTS = (1, 6, 7, 8)  # groups of their own; every other element is one group
_GROUPS = ("H", "C", "N", "O", "other")
_SHELLS_BOHR = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


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


def compute_elf(fields: Array, delta_au: float) -> Array:
    """ELF from spin-resolved density quantities.

    Parameters
    ----------
    fields : ndarray (2, 5, ...)
        Per spin: rho, three gradient components, tau, in atomic units.
    delta_au : float
        Added to the Pauli excess D; damps the ELF where the density is thin. 0 is the definition.

    Returns
    -------
    ndarray (...)
        Between 0 and 1; 0 where there is no density.
    """
    rho, gradient, tau = fields[:, 0], fields[:, 1:4], fields[:, 4]
    safe = np.maximum(rho, _THIN)
    weizsaecker = (gradient**2).sum(axis=1) / (8.0 * safe)
    excess = np.where(rho > _THIN, np.maximum(tau - weizsaecker, 0.0), 0.0).sum(axis=0)
    uniform = 0.3 * (6.0 * np.pi**2) ** (2.0 / 3.0) * (safe ** (5.0 / 3.0)).sum(axis=0)
    chi = (excess + delta_au) / uniform
    # a single electron in a channel has an excess of pure rounding noise: clean it relative to tau
    noise = 1e-12 * tau.sum(axis=0)
    chi = np.where(excess <= noise, delta_au / uniform, chi)
    return np.where(rho.sum(axis=0) > _THIN, 1.0 / (1.0 + chi**2), 0.0)


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


def feature_names(spec: FeatureSpec) -> list[str]:
    """Names of the numbers that `compute_features` returns, in order."""
    names = [f"elf_volume_bin_{i:02d}" for i in range(spec.n_bins)]
    names += [f"elf_charge_bin_{i:02d}" for i in range(spec.n_bins)]
    for group in _GROUPS:
        names += [f"elf_mean_{group}_shell_{i}" for i in range(len(_SHELLS_BOHR) - 1)]
    names += [f"share_atoms_{group}" for group in _GROUPS]
    return [
        *names,
        "elf_mean",
        "elf_std",
        "log_volume_bohr3",
        "log_n_electrons",
        "homo_hartree",
        "lumo_hartree",
        "gap_hartree",
        "dipole_norm_au",
        "charge",
    ]


def compute_feature_vector(
    elf: Array,
    rho: Array,
    box: Box,
    atomic_numbers: npt.ArrayLike,
    scalars: dict[str, float],
    spec: FeatureSpec,
) -> npt.NDArray[np.float32]:
    """Fixed-length description of an ELF map that does not depend on the molecule's placement.

    Histograms of ELF values by volume and by charge, the mean ELF in spherical shells around the
    atoms of each element group, composition, and the scalars of the SCF.

    Parameters
    ----------
    elf, rho : ndarray (nx, ny, nz)
        On the points of ``box``.
    scalars : dict
        ``n_electrons``, ``homo_hartree``, ``lumo_hartree``, ``gap_hartree``, ``dipole_norm_au``,
        ``charge``.
    """
    counted = rho.ravel() >= spec.rho_cut_au
    values, density = elf.ravel()[counted], rho.ravel()[counted]
    if values.size == 0:
        raise IntegrityError(f"no grid point has a density above {spec.rho_cut_au:g} a.u.")
    edges = np.linspace(0.0, 1.0, spec.n_bins + 1)
    by_volume = np.histogram(values, edges)[0] / values.size
    by_charge = np.histogram(values, edges, weights=density)[0] / density.sum()
    volume = values.size * _cell_volume(box)
    numbers = np.asarray(atomic_numbers)
    shells = _shell_means(elf.ravel()[counted], box.points()[counted], box.coords_bohr, numbers)
    share = [np.mean(numbers == z) for z in _ELEMENTS]
    tail = [
        values.mean(),
        values.std(),
        np.log(volume),
        np.log(scalars["n_electrons"]),
        *(scalars[n] for n in ("homo_hartree", "lumo_hartree", "gap_hartree", "dipole_norm_au")),
        scalars["charge"],
    ]
    vector = np.concatenate([by_volume, by_charge, shells, share, [1.0 - sum(share)], tail])
    return vector.astype(np.float32)


def _cell_volume(box: Box) -> float:
    return float(np.prod([axis[1] - axis[0] for axis in box.axes]))


def _shell_means(
    values: Array, points: Array, coords: Array, numbers: npt.NDArray[np.int_]
) -> Array:
    """Mean ELF per element group and distance shell; 0 where a shell is empty."""
    sums = np.zeros((len(_GROUPS), len(_SHELLS_BOHR) - 1))
    counts = np.zeros_like(sums)
    for number, centre in zip(numbers, coords, strict=True):
        group = _ELEMENTS.index(number) if number in _ELEMENTS else len(_ELEMENTS)
        near = np.flatnonzero(np.abs(points - centre).max(axis=1) < _SHELLS_BOHR[-1])
        distance = np.linalg.norm(points[near] - centre, axis=1)
        sums[group] += np.histogram(distance, _SHELLS_BOHR, weights=values[near])[0]
        counts[group] += np.histogram(distance, _SHELLS_BOHR)[0]
    return (sums / np.maximum(counts, 1.0)).ravel()
