"""Maps of the viewer: codes, grids and budgets against hand calculation."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from medrec.report.elf_volumes import (
    DENSITY_SCALE,
    ELF_SCALE,
    Scale,
    SurfacePotential,
    Volume,
    coarsen,
    crop,
    encode,
    fit,
    potential_codes,
    size_of,
    volume_of_cube,
    volume_of_record,
)
from quantum.base import IntegrityError
from quantum.elf import build_box, principal_frame, resample
from quantum.schema import GridSpec
from quantum.store import Record
from quantum.units import ANGSTROM_IN_BOHR

CENTRE = np.array([0.3, -0.2, 0.1])
WIDTH = 0.8


def gaussian(spacing: float = 0.2, half: float = 4.0, **more) -> Volume:
    """exp(-r^2 / 2 w^2) about `CENTRE`; the density is the same field."""
    n = round(2 * half / spacing) + 1
    axes = [-half + shift + spacing * np.arange(n) for shift in (0.05, 0.0, -0.05)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    square = (x - CENTRE[0]) ** 2 + (y - CENTRE[1]) ** 2 + (z - CENTRE[2]) ** 2
    field = np.exp(-square / (2 * WIDTH**2))
    origin = np.array([axis[0] for axis in axes])
    return Volume(field, field, origin, spacing, np.array([8], np.int16), CENTRE[None], **more)


def test_codes_are_within_half_a_step():
    values = np.linspace(0.0, 1.0, 1001)
    error = np.abs(ELF_SCALE.decode(ELF_SCALE.encode(values)) - values)
    assert error.max() <= 0.5 / 255 + 1e-12
    assert error.max() > 0.45 / 255  # the bound is not a loose one
    rho = np.geomspace(1e-4, 10.0, 2001)
    ratio = DENSITY_SCALE.decode(DENSITY_SCALE.encode(rho)) / rho
    assert np.abs(np.log10(ratio)).max() <= 0.5 * 5 / 255 + 1e-12
    assert np.abs(ratio - 1).max() < 0.023


def test_codes_by_hand():
    assert Scale("linear", -1.0, 1.0).encode(np.array([-3.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [
        0,
        0,
        128,  # 127.5 is rounded to the even neighbour
        255,
        255,
    ]
    # five decades in 255 steps: 51 codes a decade
    assert DENSITY_SCALE.encode(np.array([0.0, 1e-4, 1e-3, 1.0, 10.0])).tolist() == [
        0,
        0,
        51,
        204,
        255,
    ]


def test_cut_and_coarse_grids_keep_places():
    whole = gaussian()
    cut = crop(whole)
    # rho = 1e-4 at r = w sqrt(2 ln 1e4) = 3.43; the centre is 0.3 off, so something is cut
    assert all(a < b for a, b in zip(cut.rho.shape[1:], whole.rho.shape[1:], strict=True))
    assert cut.rho.sum() == pytest.approx(whole.rho.sum(), rel=1e-4)
    for volume in (whole, cut, coarsen(cut, 0.35)):
        weight = volume.rho.ravel()
        mean = weight @ volume.points() / weight.sum()
        np.testing.assert_allclose(mean, CENTRE, atol=0.005)
        spread = np.sqrt(weight @ (volume.points() - mean) ** 2 / weight.sum())
        np.testing.assert_allclose(spread, WIDTH, rtol=0.03)
    assert coarsen(cut, 0.1) is cut
    assert coarsen(cut, 0.35).spacing == 0.35


def test_document_holds_codes_in_c_order():
    volume = gaussian(0.5)
    document = encode(volume)
    codes = np.frombuffer(zlib.decompress(base64.b64decode(document["elf"])), np.uint8)
    assert document["shape"] == list(volume.elf.shape)
    got = ELF_SCALE.decode(codes.reshape(document["shape"]))
    assert np.abs(got - volume.elf).max() <= 0.5 / 255 + 1e-12
    index = (3, 7, 5)
    place = np.array(document["origin"]) + document["spacing"] * np.array(index)
    expected = np.exp(-((place - CENTRE) ** 2).sum() / (2 * WIDTH**2))
    assert got[index] == pytest.approx(expected, abs=0.002)
    assert document["atoms"] == [["O", *CENTRE]]
    assert document["esp"] is None
    assert document["esp_range"] is None


def test_potential_is_carried_to_near_points_only():
    # a sphere of points with the potential of a dipole along z, largest 0.04
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(4000, 3))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    values = 0.04 * direction[:, 2]
    known = SurfacePotential(CENTRE + 2.0 * direction, values)
    volume = gaussian(0.25, potential=known)
    codes, scale = potential_codes(volume)
    radius = np.linalg.norm(volume.points() - CENTRE, axis=1)
    filled = codes.ravel() > 0
    assert filled[np.abs(radius - 2.0) < 0.2].all()
    assert not filled[np.abs(radius - 2.0) > 0.45].any()
    cosine = ((volume.points() - CENTRE)[:, 2] / radius)[filled]
    shown = (codes.ravel()[filled].astype(float) - 128) / 127 * scale.high
    assert scale.high == pytest.approx(np.abs(values).max())
    assert np.abs(shown - 0.04 * cosine).max() < 0.003
    assert potential_codes(gaussian()) is None


def record(**arrays) -> Record:
    volume = gaussian(0.5)
    return Record(
        key="",
        stage="elf",
        request={},
        scalars={
            "origin_bohr": (volume.origin * ANGSTROM_IN_BOHR).tolist(),
            "spacing_bohr": 0.5 * ANGSTROM_IN_BOHR,
            "shape": list(volume.elf.shape),
        },
        arrays={
            "elf": volume.elf.astype(np.float32),
            "rho": volume.rho.astype(np.float32),
            "coords_bohr": volume.coords * ANGSTROM_IN_BOHR,
            "atomic_numbers": volume.numbers,
            **arrays,
        },
        provenance={},
    )


def test_a_record_is_read_in_angstrom():
    expected = gaussian(0.5)
    plain = volume_of_record(record())
    np.testing.assert_allclose(plain.origin, expected.origin, atol=1e-6)
    assert plain.spacing == pytest.approx(0.5)
    np.testing.assert_allclose(plain.coords, CENTRE[None], atol=1e-6)
    assert plain.potential is None
    # the flat index of a point leads to its place
    index = np.ravel_multi_index((2, 9, 4), expected.elf.shape)
    stored = volume_of_record(
        record(surface_index=np.array([index]), surface_esp=np.array([0.02], np.float32))
    ).potential
    np.testing.assert_allclose(
        stored.points[0], expected.origin + 0.5 * np.array([2, 9, 4]), atol=1e-6
    )
    assert stored.values_au == pytest.approx([0.02])


def test_a_potential_on_all_points_is_read_on_the_surface():
    volume = gaussian(0.5)
    stored = volume_of_record(record(esp=np.full(volume.elf.shape, 0.01, np.float32))).potential
    radius = np.linalg.norm(stored.points - CENTRE, axis=1)
    # rho = 0.001 at r = w sqrt(2 ln 1000) = 2.974; the window is 0.0007 to 0.0014
    low, high = (WIDTH * np.sqrt(-2 * np.log(x)) for x in (0.0014, 0.0007))
    assert len(radius) > 10
    assert (radius > low - 1e-6).all()
    assert (radius < high + 1e-6).all()


def water_cube(n: int = 24):
    """A cube like that of the feature table, of Gaussians on the nuclei of bent HOX."""
    numbers = np.array([8, 1, 17], np.int16)
    coords = np.array([[0.0, 0.1, 0.0], [-0.5, 0.9, 0.0], [1.7, 0.0, 0.1]])
    grid = GridSpec(spacing_bohr=0.4, margin_bohr=4.0)
    framed, _, _ = principal_frame(numbers, coords * ANGSTROM_IN_BOHR)
    box = build_box(framed, grid)
    distance = np.linalg.norm(box.points()[:, None] - framed[None], axis=-1)
    rho = (numbers * np.exp(-(distance**2))).sum(axis=1).reshape(box.shape)
    cube = resample(np.stack([rho / rho.max(), rho, rho]), n)
    return cube, numbers, coords, grid


def test_a_cube_lies_on_its_molecule():
    cube, numbers, coords, grid = water_cube()
    volume = volume_of_cube(cube, numbers, coords, grid)
    top = volume.points()[volume.rho.argmax()]
    chlorine = volume.coords[2]
    assert np.abs(top - chlorine).max() <= 0.5 * volume.spacing + 1e-6
    gaps = np.linalg.norm(volume.coords[:, None] - volume.coords[None], axis=-1)
    np.testing.assert_allclose(gaps, np.linalg.norm(coords[:, None] - coords[None], axis=-1))


def test_a_cube_of_another_geometry_is_refused():
    cube, numbers, coords, grid = water_cube()
    with pytest.raises(IntegrityError, match="do not belong together"):
        volume_of_cube(np.roll(cube, 7, axis=1), numbers, coords, grid)


def test_budget():
    volumes = [gaussian(0.2), gaussian(0.2, half=3.0), gaussian(0.5, half=2.0)]
    free = fit(volumes)
    assert free.spacing == 0.0
    assert free.n_left_out == 0
    full = sum(size_of(document) for document in free.documents)
    coarse = fit(volumes, full - 1)
    assert coarse.spacing > 0.2
    assert coarse.n_left_out == 0
    assert sum(size_of(document) for document in coarse.documents) <= full - 1
    assert coarse.documents[2] == free.documents[2]  # already wide, so untouched
    sizes = [size_of(document) for document in fit(volumes, 0).documents if document]
    assert sizes == []
    least = fit(volumes, size_of(free.documents[2]))
    assert [document is not None for document in least.documents] == [False, False, True]
    assert least.n_left_out == 2
