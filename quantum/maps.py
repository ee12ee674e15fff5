"""Where the points of stored maps lie, for readers that draw them. No program, no calculation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantum.elf import Array, build_box, principal_frame
from quantum.schema import GridSpec
from quantum.store import Record
from quantum.surface import WINDOW_AU


def cube_frame(
    atomic_numbers: npt.ArrayLike, coords_bohr: Array, grid: GridSpec, n: int
) -> tuple[Array, Array, float]:
    """Frame of a cube of ``n`` points along each edge that `quantum.elf.resample` made.

    Parameters
    ----------
    coords_bohr : ndarray (A, 3)
        Nuclei in any frame, Bohr.
    grid : GridSpec
        Of the map that was resampled.

    Returns
    -------
    coords : ndarray (A, 3)
        Nuclei in the frame of the cube, Bohr.
    origin : ndarray (3,)
        First point, Bohr.
    spacing : float
        Between points, Bohr.
    """
    framed, _, _ = principal_frame(atomic_numbers, coords_bohr)
    box = build_box(framed, grid)
    spacing = (max(box.shape) - 1) / (n - 1) * grid.spacing_bohr
    centre = np.array([0.5 * (axis[0] + axis[-1]) for axis in box.axes])
    return framed, centre - 0.5 * (n - 1) * spacing, spacing


def surface_potential(record: Record) -> tuple[Array, npt.NDArray[Any]] | None:
    """Electrostatic potential of a stored map around the surface rho = 0.001 e/Bohr^3.

    Returns
    -------
    points : ndarray (S, 3)
        Bohr.
    values : ndarray (S,)
        Hartree per elementary charge. None instead of both where the map holds no potential.
    """
    rho = record.arrays["rho"].ravel()
    if "surface_esp" in record.arrays:
        index, values = record.arrays["surface_index"], record.arrays["surface_esp"]
    elif "esp" in record.arrays:
        index = np.flatnonzero((rho >= WINDOW_AU[0]) & (rho <= WINDOW_AU[1]))
        values = record.arrays["esp"].ravel()[index]
    else:
        return None
    if not len(index):
        return None
    steps = np.stack(np.unravel_index(index, record.arrays["rho"].shape), axis=-1)
    origin = np.array(record.scalars["origin_bohr"], dtype=float)
    return origin + float(record.scalars["spacing_bohr"]) * steps, values
