"""ELF maps small enough for a page: cut, coarsened if need be, eight bits per point.

A code ``c`` from 0 to 255 of a scale from ``low`` to ``high`` means ``low + (high - low) c / 255``:
of the value itself (ELF, potential) or of its decimal logarithm (density). So ELF is within 1/510
of the stored map, and a density within 2.3 %.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from quantum.base import IntegrityError
from quantum.maps import cube_frame, surface_potential
from quantum.schema import GridSpec
from quantum.store import Record
from quantum.units import ANGSTROM_IN_BOHR, BOHR_IN_ANGSTROM

Array = npt.NDArray[np.float64]
BUDGET_BYTES = 6_000_000
"""Of all maps of a page, as they stand in it (compressed, base64)."""
SPACINGS_ANGSTROM = (0.0, 0.24, 0.3, 0.38, 0.48)
"""Tried in this order until the maps fit; 0 leaves the stored grid."""
DENSITY_FLOOR_AU = 1e-4
"""A map is cut to the box around the points of this density; ELF is below 0.01 outside."""
_NUCLEAR_AU = (
    0.1  # a density below this at a nucleus means that map and atoms do not belong together
)
_REACH = 1.6  # grid steps over which a surface value is carried to a grid point


@dataclass(frozen=True)
class Scale:
    """What the 256 codes of a field mean."""

    kind: Literal["linear", "log10"]
    low: float
    high: float

    def encode(self, values: Array) -> npt.NDArray[np.uint8]:
        """Nearest codes; values beyond the ends take the end."""
        if self.kind == "log10":
            values = np.log10(np.maximum(values, 10.0**self.low))
        part = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        return np.round(255 * part).astype(np.uint8)

    def decode(self, codes: npt.NDArray[np.uint8]) -> Array:
        """Values of codes."""
        values = self.low + (self.high - self.low) * codes.astype(float) / 255
        return np.asarray(10.0**values if self.kind == "log10" else values, dtype=float)


ELF_SCALE = Scale("linear", 0.0, 1.0)
DENSITY_SCALE = Scale("log10", -4.0, 1.0)


@dataclass(frozen=True)
class SurfacePotential:
    """Electrostatic potential at points around the surface rho = 0.001 e/Bohr^3.

    Attributes
    ----------
    points : ndarray (S, 3)
        Angstrom.
    values_au : ndarray (S,)
        Hartree per elementary charge.
    """

    points: Array
    values_au: Array


@dataclass(frozen=True)
class Volume:
    """ELF and density of one molecule on a regular grid.

    Attributes
    ----------
    elf, rho : ndarray (nx, ny, nz)
        Dimensionless, and e/Bohr^3.
    origin : ndarray (3,)
        First point, Angstrom.
    spacing : float
        Angstrom.
    numbers, coords : ndarray (A,), (A, 3)
        Atomic numbers, and positions in Angstrom.
    potential : SurfacePotential or None
        Where it was computed.
    """

    elf: Array
    rho: Array
    origin: Array
    spacing: float
    numbers: npt.NDArray[np.int16]
    coords: Array
    potential: SurfacePotential | None = None

    def points(self) -> Array:
        """All points, shape (G, 3), C order, Angstrom."""
        index = np.moveaxis(np.indices(self.elf.shape), 0, -1).reshape(-1, 3)
        return np.asarray(self.origin + self.spacing * index)


def volume_of_record(record: Record) -> Volume:
    """Volume of a stored ELF map, with the potential if the map holds one."""
    known = surface_potential(record)
    return Volume(
        elf=record.arrays["elf"].astype(float),
        rho=record.arrays["rho"].astype(float),
        origin=np.array(record.scalars["origin_bohr"], dtype=float) * BOHR_IN_ANGSTROM,
        spacing=float(record.scalars["spacing_bohr"]) * BOHR_IN_ANGSTROM,
        numbers=record.arrays["atomic_numbers"],
        coords=record.arrays["coords_bohr"] * BOHR_IN_ANGSTROM,
        potential=None
        if known is None
        else SurfacePotential(known[0] * BOHR_IN_ANGSTROM, known[1].astype(float)),
    )


def volume_of_cube(
    channels: npt.NDArray[Any],
    numbers: npt.NDArray[np.int16],
    coords: npt.NDArray[Any],
    grid: GridSpec,
) -> Volume:
    """Volume of a cube that `quantum.elf.resample` made for image encoders.

    Parameters
    ----------
    channels : ndarray (C, p, p, p)
        ELF and rho first.
    coords : ndarray (A, 3)
        Conformer, Angstrom, in any frame.
    grid : GridSpec
        Of the map that was resampled.

    Raises
    ------
    IntegrityError
        If the density is not at the nuclei.
    """
    framed, origin, spacing = cube_frame(
        numbers, coords.astype(float) * ANGSTROM_IN_BOHR, grid, channels.shape[-1]
    )
    volume = Volume(
        elf=channels[0].astype(float),
        rho=channels[1].astype(float),
        origin=origin * BOHR_IN_ANGSTROM,
        spacing=spacing * BOHR_IN_ANGSTROM,
        numbers=numbers,
        coords=framed * BOHR_IN_ANGSTROM,
    )
    heavy = numbers > 1 if (numbers > 1).any() else numbers > 0
    least = _at(volume.rho, (volume.coords[heavy] - volume.origin) / volume.spacing).min()
    if least < _NUCLEAR_AU:
        raise IntegrityError(
            f"density at a nucleus is {least:.2g} e/Bohr^3, expected {_NUCLEAR_AU} or more: "
            "the stored volume and the conformer do not belong together"
        )
    return volume


def _at(values: Array, index: Array) -> Array:
    """Trilinear values at fractional indices (N, 3)."""
    return np.asarray(map_coordinates(values, index.T, order=1, mode="nearest"))


def crop(volume: Volume) -> Volume:
    """Cut to the box around the points with a density, one point wider."""
    inside = np.argwhere(volume.rho >= DENSITY_FLOOR_AU)
    if not len(inside):
        return volume
    low = np.maximum(inside.min(axis=0) - 1, 0)
    high = np.minimum(inside.max(axis=0) + 2, volume.rho.shape)
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return replace(
        volume,
        elf=volume.elf[part],
        rho=volume.rho[part],
        origin=volume.origin + volume.spacing * low,
    )


def coarsen(volume: Volume, spacing: float) -> Volume:
    """On a grid of a wider spacing (Angstrom) over the same box; the same if it is not wider.

    Trilinear, of the logarithm where it is a density.
    """
    if spacing <= volume.spacing:
        return volume
    extent = volume.spacing * (np.array(volume.elf.shape) - 1)
    shape = np.floor(extent / spacing).astype(int) + 1
    shift = 0.5 * (extent - spacing * (shape - 1))
    index = np.moveaxis(np.indices(tuple(shape)), 0, -1).reshape(-1, 3)
    at = (shift + spacing * index) / volume.spacing
    floor = 10.0**DENSITY_SCALE.low
    log_rho = _at(np.log(np.maximum(volume.rho, floor)), at).reshape(shape)
    return replace(
        volume,
        elf=_at(volume.elf, at).reshape(shape),
        rho=np.exp(log_rho),
        origin=volume.origin + shift,
        spacing=spacing,
    )


def potential_codes(volume: Volume) -> tuple[npt.NDArray[np.uint8], Scale] | None:
    """Codes of the potential at grid points near the surface.

    A point within 1.6 grid steps of stored ones takes the mean of the four nearest, weighted by
    the inverse of the squared distance. Code 0 marks points that are not near the surface;
    codes 1 to 255 span the scale, so that 128 is no potential.

    Returns
    -------
    codes : ndarray (nx, ny, nz) of uint8
    scale : Scale
        In Hartree per elementary charge; ``low`` belongs to code 1.
    """
    if volume.potential is None:
        return None
    known = volume.potential
    largest = float(np.abs(known.values_au).max()) or 1.0
    tree = cKDTree(known.points)
    near = min(4, len(known.points))
    distance, index = tree.query(
        volume.points(), k=list(range(1, near + 1)), distance_upper_bound=_REACH * volume.spacing
    )
    found = np.isfinite(distance)
    weight = np.where(found, 1.0 / (np.where(found, distance, 1.0) ** 2 + 1e-6), 0.0)
    values = np.append(known.values_au, 0.0)[index]
    total = weight.sum(axis=1)
    mean = (weight * values).sum(axis=1) / np.where(total > 0, total, 1.0)
    codes = np.where(total > 0, np.round(128 + 127 * mean / largest), 0).astype(np.uint8)
    return codes.reshape(volume.elf.shape), Scale("linear", -largest, largest)


def encode(volume: Volume) -> dict[str, Any]:
    """JSON document of a volume: grid, atoms, and codes as base64 of zlib data in C order."""
    table = Chem.GetPeriodicTable()
    potential = potential_codes(volume)
    return {
        "shape": list(volume.elf.shape),
        "origin": [round(float(x), 4) for x in volume.origin],
        "spacing": round(volume.spacing, 6),
        "atoms": [
            [table.GetElementSymbol(int(z)), *(round(float(x), 3) for x in xyz)]
            for z, xyz in zip(volume.numbers, volume.coords, strict=True)
        ],
        "elf": _pack(ELF_SCALE.encode(volume.elf)),
        "rho": _pack(DENSITY_SCALE.encode(volume.rho)),
        "esp": None if potential is None else _pack(potential[0]),
        "esp_range": None if potential is None else potential[1].high,
    }


def _pack(codes: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(codes.tobytes(), 9)).decode("ascii")


def size_of(document: dict[str, Any]) -> int:
    """Bytes of the fields of a document."""
    return sum(len(document[name] or "") for name in ("elf", "rho", "esp"))


@dataclass(frozen=True)
class Fitted:
    """Documents within a budget; None for a volume that is left out.

    Attributes
    ----------
    spacing : float
        Grids finer than this were coarsened to it, Angstrom; 0 if none was.
    """

    documents: list[dict[str, Any] | None]
    spacing: float

    @property
    def n_left_out(self) -> int:
        """How many did not fit."""
        return sum(document is None for document in self.documents)


def fit(volumes: Sequence[Volume], budget: int = BUDGET_BYTES) -> Fitted:
    """Encode volumes on the finest grid of `SPACINGS_ANGSTROM` on which all fit the budget.

    If they do not fit on the coarsest one either, the smallest documents stay.
    """
    cut = [crop(volume) for volume in volumes]
    documents: list[dict[str, Any]] = []
    for spacing in SPACINGS_ANGSTROM:
        documents = [encode(coarsen(volume, spacing)) for volume in cut]
        if sum(map(size_of, documents)) <= budget:
            return Fitted(list(documents), spacing)
    kept: list[dict[str, Any] | None] = [None] * len(documents)
    total = 0
    for i in sorted(range(len(documents)), key=lambda i: size_of(documents[i])):
        total += size_of(documents[i])
        if total > budget:
            break
        kept[i] = documents[i]
    return Fitted(kept, SPACINGS_ANGSTROM[-1])
