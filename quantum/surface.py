"""The molecular surface rho = 0.001 e/bohr^3 on a grid, and the statistics of a potential on it.

Politzer, Murray and others: J. Phys. Chem. 97, 9369 (1993) for the variances and their balance,
Bader et al., J. Am. Chem. Soc. 109, 7968 (1987) for the surface. No mesh is made. By the coarea
formula, grid points in a thin window of rho, each weighted by ``|grad ln rho|``, integrate over
the surfaces in the window::

    integral of f |grad ln rho| dV  =  integral over ln rho of (integral of f dA)

so dividing by the window's width in ln rho gives the mean over its surfaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantum.base import IntegrityError
from quantum.elf import Array, Box

WINDOW_AU = (0.0007, 0.0014)  # geometric mean 0.001
_STRONG_AU = 0.03  # about 19 kcal/mol: beyond are lone pairs and acidic hydrogens
_LARGEST_AU = 0.25  # histograms end here; ions reach it
_LINEAR_AU = 0.02  # bins are even below, and widen above
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STATISTICS = (
    "mean",
    "std",
    "skewness",
    "min",
    "max",
    "mean_positive",
    "mean_negative",
    "std_positive",
    "std_negative",
    "variance_total",
    "balance",
    "balanced_variance",
    "average_deviation",
    "area_positive",
    "area_above_strong",
    "area_below_strong",
    "log_area_bohr2",
    *(f"quantile_{round(100 * q):02d}" for q in _QUANTILES),
)


@dataclass(frozen=True)
class Surface:
    """Grid points around the surface.

    Attributes
    ----------
    index : ndarray (S,) of int
        Flat indices into the box, C order.
    area_bohr2 : ndarray (S,)
        Surface that each stands for; the sum is the molecule's area.
    """

    index: npt.NDArray[np.int64]
    area_bohr2: Array


def find_surface(rho: Array, gradient: Array, box: Box) -> Surface:
    """Points with a density within `WINDOW_AU`, and their areas.

    Parameters
    ----------
    rho, gradient : ndarray (nx, ny, nz)
        Density and the norm of its gradient on the points of ``box``, a.u.

    Raises
    ------
    IntegrityError
        If no point is within the window: the margin is too small or the spacing too wide.
    """
    flat = rho.ravel()
    low, high = WINDOW_AU
    index = np.flatnonzero((flat >= low) & (flat <= high))
    if not len(index):
        raise IntegrityError(
            f"no grid point has a density of {low:g} to {high:g} a.u.; "
            "grid.margin_bohr is too small or grid.spacing_bohr too large"
        )
    thinness = gradient.ravel()[index] / flat[index]
    return Surface(index, thinness * box.cell_volume / np.log(high / low))


def potential_statistics(esp: Array, area: Array) -> Array:
    """Numbers of a potential on a surface, in the order of `STATISTICS`.

    A part that is absent (an ion's surface may have one sign only) has mean and spread 0; the
    share of the area tells it from a part that is weak.

    Parameters
    ----------
    esp, area : ndarray (S,)
        Hartree per elementary charge; Bohr^2.
    """
    share = area / area.sum()
    mean = float(share @ esp)
    std = float(np.sqrt(share @ (esp - mean) ** 2))
    positive = esp > 0
    mean_up, variance_up = _part(esp[positive], share[positive])
    mean_down, variance_down = _part(esp[~positive], share[~positive])
    total = variance_up + variance_down
    balance = variance_up * variance_down / total**2 if total > 0 else 0.0
    return np.array(
        [
            mean,
            std,
            float(share @ (esp - mean) ** 3) / std**3 if std > 0 else 0.0,
            esp.min(),
            esp.max(),
            mean_up,
            mean_down,
            np.sqrt(variance_up),
            np.sqrt(variance_down),
            total,
            balance,
            balance * total,
            share @ np.abs(esp - mean),
            share[positive].sum(),
            share[esp > _STRONG_AU].sum(),
            share[esp < -_STRONG_AU].sum(),
            np.log(area.sum()),
            *_quantiles(esp, share),
        ]
    )


def potential_histogram(esp: Array, area: Array, n_bins: int) -> Array:
    """Share of the area by potential; values beyond the ends count in the last bins."""
    reach = np.arcsinh(_LARGEST_AU / _LINEAR_AU)
    scaled = np.clip(np.arcsinh(esp / _LINEAR_AU), -reach, reach)
    counts = np.histogram(scaled, np.linspace(-reach, reach, n_bins + 1), weights=area)[0]
    return np.asarray(counts / area.sum())


def _part(values: Array, share: Array) -> tuple[float, float]:
    """Mean and variance of one sign's part."""
    if not len(values):
        return 0.0, 0.0
    mean = float(share @ values / share.sum())
    return mean, float(share @ (values - mean) ** 2 / share.sum())


def _quantiles(values: Array, share: Array) -> Array:
    order = np.argsort(values)
    ordered, weights = values[order], share[order]
    return np.asarray(np.interp(_QUANTILES, np.cumsum(weights) - weights / 2, ordered))
