"""The library's front door to molecules: one call, the pipeline's own numbers, clear errors."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import quantum
from quantum.base import ConvergenceError, InputError, ResourceError
from quantum.molecule import Species, species_from_smiles
from quantum.pipeline import Outcome, Task, plan
from quantum.schema import LEVELS, CalculationSpec, PipelineSpec
from quantum.show import facts_html, flattest_plane, png_bytes, table_html
from quantum.store import Record, Store
from quantum.units import BOHR_IN_ANGSTROM


@pytest.fixture(scope="module")
def water(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, quantum.Calculation]:
    folder = tmp_path_factory.mktemp("water") / "store"
    return folder, quantum.calculate("O", store=folder)


def test_import_loads_nothing_heavy():
    code = (
        "import sys, quantum; dir(quantum);"
        "print([m for m in ('numpy', 'pandas', 'rdkit', 'pydantic', 'pyscf', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert set(quantum.__all__) <= set(dir(quantum))
    for name in quantum.__all__:
        assert getattr(quantum, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'calcluate'"):
        quantum.calcluate  # noqa: B018


def test_the_call_and_the_command_share_names_and_objects(water):
    folder, result = water
    keys = plan(species_from_smiles("O"), LEVELS["fast"])
    store = Store(folder)
    assert all(store.has(key) for key in keys.values())
    np.testing.assert_array_equal(store.get(keys["elf"]).arrays["elf"], result.elf)
    assert not result.cached


def test_the_second_call_finds_the_first(water):
    folder, first = water
    again = quantum.calculate("[H]O[H]", store=str(folder))
    assert again.cached
    assert again.seconds == 0.0
    assert again.energy_hartree == first.energy_hartree
    assert "found in the store" in again._repr_html_()


def test_numbers_are_those_of_water(water):
    result = water[1]
    atoms = result.atoms.set_index("element")
    assert list(result.atoms.columns) == ["element", "x", "y", "z", "charge"]
    bonds = np.linalg.norm(
        atoms.loc["H", ["x", "y", "z"]].to_numpy(float)
        - atoms.loc["O", ["x", "y", "z"]].to_numpy(float),
        axis=1,
    )
    assert bonds == pytest.approx([0.97, 0.97], abs=0.02)  # Angstrom, MMFF94s
    assert atoms["charge"].sum() == pytest.approx(0.0, abs=1e-3)
    assert atoms.loc["O", "charge"] < -0.1
    assert -77.0 < result.energy_hartree < -76.0
    step = [axis[1] - axis[0] for axis in result.axes_angstrom]
    electrons = result.density_au.sum() * np.prod(np.array(step) / BOHR_IN_ANGSTROM)
    assert electrons == pytest.approx(10.0, rel=0.1)  # a uniform grid misses part of the core
    assert 0.0 <= result.elf.min() < 0.1 < 0.9 < result.elf.max() <= 1.0
    assert result.features["basin_core_per_heavy_atom"] == pytest.approx(1.0)


def test_a_geometry_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "water.xyz"
    path.write_text("3\nwater\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n")
    seen: list[Task] = []

    def stop(task: Task, *_: object) -> Outcome:
        seen.append(task)
        return Outcome(
            species_key="", status="failed", stage="scf", kind="convergence", message="m"
        )

    monkeypatch.setattr("quantum.api.compute_features", stop)
    with pytest.raises(ConvergenceError, match=r"scf of O failed \(convergence\): m"):
        quantum.calculate(structure=path, threads=2)
    assert seen[0].geometry is not None
    assert seen[0].geometry.array()[0, 2] == pytest.approx(0.117)


@pytest.mark.parametrize(
    ("kind", "error"), [("resource", ResourceError), ("crash", quantum.MedrecError)]
)
def test_a_failure_is_an_error_of_its_kind(monkeypatch: pytest.MonkeyPatch, kind, error):
    outcome = Outcome(species_key="", status="failed", stage="elf", kind=kind, message="why")
    monkeypatch.setattr("quantum.api.compute_features", lambda *_: outcome)
    with pytest.raises(error, match=rf"elf of CO failed \({kind}\): why"):
        quantum.calculate("CO")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("",), "SMILES is empty"),
        (("C(",), "does not parse"),
        ((), "either a SMILES or structure"),
        ((7,), "type int"),
        (("CO", "best"), "fast, standard, tight"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(InputError, match=words):
        quantum.calculate(*arguments)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_number_of_threads(threads):
    with pytest.raises(InputError, match="threads"):
        quantum.calculate("CO", threads=threads)


def test_settings_of_ones_own_are_a_level(monkeypatch: pytest.MonkeyPatch):
    from quantum.api import _level

    spec = PipelineSpec(calculation=CalculationSpec(method="hf"))
    assert _level(spec) == ("custom", spec)
    assert _level(LEVELS["tight"])[0] == "tight"


# --------------------------------------------------------------------------- views


def test_views_hold_facts_and_no_colours_of_their_own(water):
    html = water[1]._repr_html_()
    for text in ("fast: pbe/def2-svp", "Hartree", "features", "data:image/svg+xml;base64,"):
        assert text in html
    assert len(html) < 60_000
    for view in (html, water[1].species._repr_html_(), water[1].scf._repr_html_()):
        assert "background" not in view.split("data:image")[0]
        assert "<script" not in view
    assert "H2O" in water[1].species._repr_html_()
    assert "mo_coeff" in water[1].scf._repr_html_()


def test_texts_are_escaped():
    evil = "<script>alert(1)</script>"
    record = Record(key="a", stage=evil, request={}, scalars={evil: evil}, warnings=[evil])
    views = [
        facts_html(evil, [(evil, evil)]),
        table_html([evil], [[evil]], evil),
        record._repr_html_(),
    ]
    for view in views:
        assert "<script>" not in view
        assert "&lt;script&gt;" in view
    odd = Species(smiles="C", charge=0, multiplicity=1, inchikey=evil)
    assert "<script>" not in odd._repr_html_()


def test_a_picture_is_read_back_by_another_program():
    values = np.array([[0.0, 1.0], [0.5, 2.0]])
    picture = Image.open(io.BytesIO(png_bytes(values))).convert("RGB")
    assert picture.size == (2, 2)
    assert picture.getpixel((0, 0)) == (68, 1, 84)  # viridis at 0
    assert picture.getpixel((1, 0)) == picture.getpixel((1, 1)) == (253, 231, 37)  # and at 1
    middle = np.array(picture.getpixel((0, 1)))
    assert np.abs(middle - [33, 145, 140]).max() <= 2  # at 1/2


def test_the_plane_runs_through_the_atoms():
    axes = [np.linspace(-3, 3, 13), np.linspace(-2, 2, 9), np.linspace(-1, 1, 5)]
    values = axes[0][:, None, None] + 10 * axes[1][None, :, None] + 100 * axes[2][None, None, :]
    numbers = np.array([6, 6, 8, 1])
    coords = np.array([[-2, 0, 0.5], [0, 1.5, 0.5], [2, 0, 0.5], [0, 0, -1.0]])
    plane = flattest_plane(values, axes, numbers, coords)
    assert plane.values.shape == (13, 9)
    np.testing.assert_allclose(plane.values, axes[0][:, None] + 10 * axes[1][None, :] + 50)
    assert plane.numbers.tolist() == [6, 6, 8]  # the hydrogen is far from the plane
    np.testing.assert_allclose(plane.coords, coords[:3, :2])
    turned = flattest_plane(
        values.transpose(1, 0, 2), [axes[i] for i in (1, 0, 2)], numbers, coords[:, [1, 0, 2]]
    )
    np.testing.assert_allclose(turned.values, plane.values)  # the longer axis lies across
