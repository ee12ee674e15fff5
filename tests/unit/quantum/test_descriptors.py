"""Charges, bond orders, basins, feature sets and cube files, against what is known of molecules."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from quantum.base import InputError, IntegrityError
from quantum.basins import KINDS, find_basins
from quantum.cubes import cube_text
from quantum.descriptors import FEATURE_SETS, Molecule, compute_feature_vector, feature_sets
from quantum.elf import Box
from quantum.molecule import species_from_smiles
from quantum.pipeline import Task, compute_features
from quantum.schema import FIELD_OF_SET, CalculationSpec, FeatureSpec, GridSpec, PipelineSpec
from quantum.stages import box_of
from quantum.store import MemoryStore, Record

SPEC = PipelineSpec(
    calculation=CalculationSpec(method="pbe", grid_level=1, convergence_hartree=1e-7),
    grid=GridSpec(spacing_bohr=0.3, extra_fields=("gradient", "lol", "tau", "esp")),
    features=FeatureSpec(volume_points=24),
)


@cache
def records(smiles: str) -> dict[str, Record]:
    task, store = Task(species=species_from_smiles(smiles), spec=SPEC), MemoryStore()
    outcome = compute_features(task, store)
    assert outcome.status == "done", outcome.message
    return {stage: store.get(key) for stage, key in task.keys.items()}


def test_bond_orders_of_ethene_methanol_and_carbon_monoxide():
    orders = records("C=C")["scf"].arrays["mayer_bond_orders"]
    assert orders[0, 1] == pytest.approx(2.0, abs=0.1)
    assert orders[0, 2:4].max() == pytest.approx(0.97, abs=0.06)
    np.testing.assert_allclose(orders, orders.T, atol=1e-12)
    assert not np.diag(orders).any()
    assert records("CO")["scf"].arrays["mayer_bond_orders"][0, 1] == pytest.approx(1.0, abs=0.12)
    assert records("[C-]#[O+]")["scf"].arrays["mayer_bond_orders"][0, 1] > 2.2


@pytest.mark.parametrize(("smiles", "charge"), [("CO", 0), ("C[NH3+]", 1), ("CC(=O)[O-]", -1)])
def test_charges_sum_to_the_total_and_have_the_right_signs(smiles: str, charge: int):
    arrays = records(smiles)["scf"].arrays
    for name in ("charges_mulliken", "charges_loewdin"):
        assert arrays[name].sum() == pytest.approx(charge, abs=1e-8)
    if smiles == "CO":
        assert arrays["charges_loewdin"][1] < -0.1  # the oxygen
        assert arrays["charges_loewdin"][-1] > 0.05  # its hydrogen


def test_the_spin_of_a_radical_sits_on_its_centre():
    spins = records("[CH3]")["scf"].arrays["spin_populations"]
    assert spins.sum() == pytest.approx(1.0, abs=1e-8)
    assert spins[0] > 0.9


def test_dipole_and_quadrupole_of_known_molecules():
    assert records("O")["scf"].scalars["dipole_norm_au"] == pytest.approx(0.78, abs=0.08)
    benzene = records("c1ccccc1")["scf"]
    assert benzene.scalars["dipole_norm_au"] < 0.02
    values = np.sort(np.linalg.eigvalsh(benzene.arrays["quadrupole_au"]))
    assert values.sum() == pytest.approx(0.0, abs=1e-9)
    assert values[0] == pytest.approx(-5.7, abs=1.0)  # perpendicular; measured about -6.5 e Bohr^2


def test_basins_of_water_are_a_core_two_hydrogens_and_lone_pairs():
    record = records("O")["elf"]
    arrays = record.arrays
    basins = find_basins(
        arrays["elf"].astype(float),
        arrays["rho"].astype(float),
        box_of(record),
        arrays["atomic_numbers"],
        1e-3,
    )
    kinds = [KINDS[kind] for kind in basins.kind]
    assert kinds.count("core") == 1
    assert kinds.count("hydrogen") == 2
    assert kinds.count("lone_pair") in (1, 2)
    hydrogen = basins.population[[k == "hydrogen" for k in kinds]]
    np.testing.assert_allclose(hydrogen, 1.65, atol=0.2)
    lone = basins.population[[k == "lone_pair" for k in kinds]].sum()
    assert lone == pytest.approx(4.2, abs=0.5)


def test_a_basin_of_a_single_hill_holds_everything():
    axis = np.arange(-3.0, 3.01, 0.5)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    hill = np.exp(-(x**2 + y**2 + (z - 0.5) ** 2))
    box = Box((axis, axis, axis), np.array([[0.0, 0.0, 0.5]]))
    basins = find_basins(hill, np.ones_like(hill), box, np.array([1]), 0.5)
    assert basins.population.tolist() == [pytest.approx(13**3 * 0.125)]
    np.testing.assert_allclose(basins.position_bohr, [[0.0, 0.0, 0.5]])
    assert KINDS[basins.kind[0]] == "hydrogen"


def test_sets_cover_the_vector_and_say_what_they_say():
    features = records("CO")["features"]
    sets = feature_sets(SPEC.features)
    assert tuple(sets) == tuple(name for name in FEATURE_SETS if name not in FIELD_OF_SET)
    names = [name for of_set in sets.values() for name in of_set]
    assert names == features.scalars["names"]
    assert len(names) == len(set(names)) == len(features.arrays["vector"])
    values = dict(zip(names, features.arrays["vector"], strict=True))
    assert sum(v for k, v in values.items() if k.startswith("elf_volume_bin")) == pytest.approx(1)
    assert sum(v for k, v in values.items() if k.startswith("elf_charge_bin")) == pytest.approx(1)
    assert sum(v for k, v in values.items() if "charge" in k and "_bin_" in k) == pytest.approx(3)
    assert not any(k.startswith("basin_core_electrons") for k in names)
    assert values["share_atoms_C"] == pytest.approx(1 / 6)
    assert values["basin_core_per_heavy_atom"] == pytest.approx(1.0)
    assert values["valence_C_mean"] == pytest.approx(3.9, abs=0.2)
    assert values["unpaired_electrons"] == 0
    assert values["gap_hartree"] == pytest.approx(
        values["lumo_hartree"] - values["homo_hartree"], abs=1e-5
    )
    volume = features.arrays["volume"]
    assert volume.shape == (3, 24, 24, 24)
    assert volume[0].max() <= 1.0
    assert volume[1].max() > 0.3


def test_a_map_without_density_is_refused():
    axis = np.arange(3.0)
    nothing = Molecule(
        np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), Box((axis,) * 3, np.zeros((1, 3))),
        np.array([1]), {}, {},
    )  # fmt: skip
    with pytest.raises(IntegrityError, match="no grid point"):
        compute_feature_vector(nothing, FeatureSpec())


def test_volumes_need_the_gradient():
    with pytest.raises(ValueError, match="gradient"):
        PipelineSpec(features=FeatureSpec(volume_points=8))


def test_extra_fields_are_stored_and_physical():
    arrays = records("O")["elf"].arrays
    shape = arrays["elf"].shape
    assert all(arrays[name].shape == shape for name in ("gradient", "lol", "tau", "esp"))
    assert 0 <= arrays["lol"].min() <= arrays["lol"].max() <= 1
    assert arrays["tau"].min() >= 0
    assert arrays["esp"].max() > 5  # at the nuclei
    assert arrays["esp"].min() < -0.05  # at the lone pairs


def test_a_cube_file_is_read_back_by_another_program(tmp_path):
    from pyscf.tools import cubegen

    record = records("O")["elf"]
    text = cube_text(
        record.arrays["elf"], box_of(record), record.arrays["atomic_numbers"], "ELF of water\nx"
    )
    path = tmp_path / "x.cube"
    path.write_text(text)
    reader = cubegen.Cube.__new__(cubegen.Cube)
    reader.mol = None
    values = reader.read(str(path))
    np.testing.assert_allclose(values, record.arrays["elf"], atol=1e-5)
    np.testing.assert_allclose(reader.boxorig, box_of(record).origin_bohr, atol=1e-5)
    lines = text.splitlines()
    assert lines[0] == "ELF of water"
    assert lines[2].split()[0] == "3"
    assert lines[6].split()[0] == str(record.arrays["atomic_numbers"][0])
    assert max(map(len, lines)) <= 80
    with pytest.raises(InputError, match="shape"):
        cube_text(np.zeros((2, 2, 2)), box_of(record), np.array([1]), "x")
