"""Geometries from files and from embedding: what is refused, and with which reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from quantum.base import InputError, ResourceError
from quantum.conformers import choose, embed, embed_ensemble
from quantum.geometry import Geometry, check_geometry, read_structure
from quantum.molecule import explicit_mol, species_from_smiles
from quantum.pipeline import Task, compute_features, plan
from quantum.schema import CalculationSpec, ConformerSpec, GridSpec, PipelineSpec
from quantum.store import MemoryStore
from quantum.units import BOHR_IN_ANGSTROM

ETHANOL = species_from_smiles("CCO")
ALANINE = species_from_smiles("C[C@H](N)C(=O)O")


def angstrom(smiles: str) -> np.ndarray:
    coords, _ = embed(species_from_smiles(smiles), ConformerSpec(n_conformers=1))
    return coords * BOHR_IN_ANGSTROM


def as_sdf(smiles: str, coords: np.ndarray, path: Path, order: list[int] | None = None) -> Path:
    mol = explicit_mol(species_from_smiles(smiles))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    for i, point in enumerate(coords):
        conformer.SetAtomPosition(i, point.tolist())
    mol.AddConformer(conformer)
    if order:
        mol = Chem.RenumberAtoms(mol, order)
    path.write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    return path


def as_xyz(smiles: str, coords: np.ndarray, path: Path) -> Path:
    symbols = [atom.GetSymbol() for atom in explicit_mol(species_from_smiles(smiles)).GetAtoms()]
    rows = [f"{s} {x:.6f} {y:.6f} {z:.6f}" for s, (x, y, z) in zip(symbols, coords, strict=True)]
    path.write_text("\n".join([str(len(rows)), "made for a test", *rows]) + "\n")
    return path


@pytest.mark.parametrize("smiles", ["CCO", "C[C@H](N)C(=O)O", "C/C=C/Cl", "C[NH3+]", "CC(=O)[O-]"])
def test_an_sdf_gives_species_and_coordinates_in_any_atom_order(smiles: str, tmp_path: Path):
    coords = angstrom(smiles)
    order = np.random.default_rng(0).permutation(len(coords)).tolist()
    species, geometry = read_structure(as_sdf(smiles, coords, tmp_path / "x.sdf", order))
    assert species == species_from_smiles(smiles)
    check_geometry(species, geometry.array())
    mine = np.sort(np.linalg.norm(coords[:, None] - coords, axis=-1).ravel())
    theirs = geometry.array()
    theirs = np.sort(np.linalg.norm(theirs[:, None] - theirs, axis=-1).ravel())
    np.testing.assert_allclose(theirs, mine, atol=2e-3)


def test_an_xyz_needs_the_charge_of_an_ion(tmp_path: Path):
    path = as_xyz("C[NH3+]", angstrom("C[NH3+]"), tmp_path / "x.xyz")
    species, _ = read_structure(path, charge=1)
    assert species == species_from_smiles("C[NH3+]")
    with pytest.raises(InputError, match="total charge 0"):
        read_structure(path)


def test_a_drawing_is_refused_with_the_reason(tmp_path: Path):
    mol = explicit_mol(ETHANOL)
    rdDepictor.Compute2DCoords(mol)
    flat = np.array(mol.GetConformer().GetPositions())
    with pytest.raises(InputError, match=r"drawing, not a geometry.*PubChem"):
        read_structure(as_sdf("CCO", flat, tmp_path / "x.sdf"))
    # without hydrogens, as PubChem's default record
    heavy = Chem.MolFromSmiles("CC(=O)Nc1ccc(O)cc1")
    rdDepictor.Compute2DCoords(heavy)
    (tmp_path / "y.sdf").write_text(Chem.MolToMolBlock(heavy) + "$$$$\n")
    with pytest.raises(InputError, match="drawing, not a geometry"):
        read_structure(tmp_path / "y.sdf")


def test_a_flat_molecule_is_not_a_drawing(tmp_path: Path):
    coords = angstrom("c1ccccc1")
    axes = np.linalg.svd(coords - coords.mean(axis=0))[2]
    flat = (coords - coords.mean(axis=0)) @ axes.T
    flat[:, 2] = 0.0
    species, _ = read_structure(as_sdf("c1ccccc1", flat, tmp_path / "x.sdf"))
    assert species.smiles == "c1ccccc1"


def test_missing_hydrogens_are_named(tmp_path: Path):
    coords = angstrom("CCO")
    mol = Chem.RemoveHs(
        Chem.MolFromMolBlock((as_sdf("CCO", coords, tmp_path / "a.sdf")).read_text())
    )
    (tmp_path / "b.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    with pytest.raises(InputError, match=r"all its hydrogens|drawing"):
        read_structure(tmp_path / "b.sdf")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.pdb", "", "unknown structure format"),
        ("x.xyz", "nonsense\n", "not readable as XYZ"),
        ("x.sdf", "nonsense\n$$$$\n", "does not parse|holds 0"),
    ],
)
def test_unreadable_files_say_so(name: str, text: str, words: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_structure(tmp_path / name)
    with pytest.raises(InputError, match="file not found"):
        read_structure(tmp_path / "absent.sdf")


def test_impossible_coordinates_are_refused():
    good = angstrom("CCO")
    check_geometry(ETHANOL, good)
    with pytest.raises(InputError, match="coordinates in Bohr"):
        check_geometry(ETHANOL, good / BOHR_IN_ANGSTROM)
    with pytest.raises(InputError, match="nanometre"):
        check_geometry(ETHANOL, good / 10)
    broken = good.copy()
    broken[3, 1] = np.nan
    with pytest.raises(InputError, match="not numbers"):
        check_geometry(ETHANOL, broken)
    overlapping = good.copy()
    overlapping[-1] = overlapping[4] + 0.05  # the hydroxyl H onto a CH3 one
    with pytest.raises(InputError, match=r"overlap|bond"):
        check_geometry(ETHANOL, overlapping)
    with pytest.raises(InputError, match=r"shape \(3, 3\)"):
        check_geometry(ETHANOL, good[:3])
    with pytest.raises(ValueError, match="not all finite"):
        Geometry(coords_angstrom=((float("inf"), 0.0, 0.0),), source="x")


def test_the_other_hand_and_the_other_side_are_refused():
    coords = angstrom("C[C@H](N)C(=O)O")
    check_geometry(ALANINE, coords)
    with pytest.raises(InputError, match=r"1 stereo elements.*centre"):
        check_geometry(ALANINE, coords * [1, 1, -1])
    trans, cis = species_from_smiles("C/C=C/C"), species_from_smiles("C/C=C\\C")
    with pytest.raises(InputError, match=r"stereo elements.*bond"):
        check_geometry(trans, angstrom(cis.smiles))


def test_an_ensemble_is_sorted_weighed_pruned_and_reproducible():
    spec = ConformerSpec(n_conformers=30, prune_rmsd_angstrom=0.3)
    ensemble = embed_ensemble(species_from_smiles("CCCCO"), spec)
    energies, weights = ensemble.energies_kcal_mol, ensemble.weights
    assert len(energies) > 3
    assert energies[0] == 0.0
    assert (np.diff(energies) >= 0).all()
    assert energies[-1] <= spec.energy_window_kcal_mol
    assert weights.sum() == pytest.approx(1.0)
    ratio = np.exp(-energies[1] / (1.987204259e-3 * 298.15))
    assert weights[1] / weights[0] == pytest.approx(ratio)
    again = embed_ensemble(species_from_smiles("CCCCO"), spec)
    np.testing.assert_array_equal(again.coords_bohr, ensemble.coords_bohr)
    narrow = embed_ensemble(
        species_from_smiles("CCCCO"), spec.model_copy(update={"prune_rmsd_angstrom": 2.0})
    )
    assert len(narrow.weights) < len(weights)
    second = choose(ensemble, spec.model_copy(update={"rank": 1}), ETHANOL)
    np.testing.assert_array_equal(second, ensemble.coords_bohr[1])
    with pytest.raises(InputError, match="rank 400"):
        choose(ensemble, spec.model_copy(update={"rank": 400}), ETHANOL)


def test_uff_is_the_fallback_where_mmff_has_no_parameters():
    _, facts = embed(species_from_smiles("OB(O)c1ccccc1"), ConformerSpec(n_conformers=1))
    assert facts["method"] == "etkdgv3+uff"


def test_a_400_atom_peptide_is_a_resource_failure_at_once():
    glycines = "N" + "CC(=O)N" * 57 + "CC(=O)O"
    species = species_from_smiles(glycines)
    assert species.n_atoms > 400
    with pytest.raises(ResourceError, match="heavy atoms, limit 150"):
        embed(species, ConformerSpec())


SMALL = PipelineSpec(
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=0.9, margin_bohr=3.0),
)


def test_a_given_geometry_goes_through_the_pipeline_under_its_own_key():
    coords = angstrom("O")
    geometry = Geometry(coords_angstrom=tuple(map(tuple, coords.tolist())), source="hand")
    water = species_from_smiles("O")
    task = Task(species=water, spec=SMALL, geometry=geometry)
    assert task.keys["conformer"] != plan(water, SMALL)["conformer"]
    store = MemoryStore()
    assert compute_features(task, store).status == "done"
    record = store.get(task.keys["conformer"])
    assert record.scalars["method"] == "given"
    np.testing.assert_allclose(record.arrays["coords_bohr"] * BOHR_IN_ANGSTROM, coords)
    stretched = Geometry(coords_angstrom=tuple(map(tuple, (coords * 3).tolist())), source="hand")
    outcome = compute_features(Task(species=water, spec=SMALL, geometry=stretched), store)
    assert (outcome.stage, outcome.kind) == ("conformer", "input")


def test_no_basis_for_an_element_is_a_failure_record_and_neighbours_live():
    store = MemoryStore()
    spec = SMALL.model_copy(update={"calculation": CalculationSpec(method="hf", basis="6-31g")})
    iodine, water = species_from_smiles("CI"), species_from_smiles("O")
    outcomes = [compute_features(Task(species=s, spec=spec), store) for s in (iodine, water)]
    assert (outcomes[0].status, outcomes[0].stage, outcomes[0].kind) == ("failed", "scf", "input")
    assert "6-31g" in outcomes[0].message
    assert "'I'" in outcomes[0].message
    assert outcomes[1].status == "done"


def test_an_odd_electron_count_with_multiplicity_one_is_refused():
    water = species_from_smiles("O")
    wrong = water.model_copy(update={"charge": 1})
    outcome = compute_features(Task(species=wrong, spec=SMALL), MemoryStore())
    assert (outcome.status, outcome.kind) == ("failed", "input")
    assert "multiplicity 1" in outcome.message


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        (ConformerSpec(n_conformers=1, optimise="gfn2-xtb"), "gfn2-xtb"),
        (
            ConformerSpec(n_conformers=1, optimise="dft", optimise_basis="sto-3g"),
            "pbe/sto-3g",
        ),
    ],
)
def test_optimisation_lowers_the_energy_and_keeps_the_molecule(settings, label):
    from quantum.optimise import _dft_surface, _xtb_surface

    species = species_from_smiles("CO")
    start, _ = embed(species, settings)
    spec = PipelineSpec(conformer=settings)
    store = MemoryStore()
    task = Task(species=species, spec=spec, stages=("conformer",))
    assert compute_features(task, store).status == "done"
    record = store.get(task.keys["conformer"])
    assert record.scalars["optimised_with"] == label
    assert record.scalars["optimisation_steps"] >= 1
    surface = _xtb_surface(species) if label == "gfn2-xtb" else _dft_surface(species, settings)
    before, gradient = surface(start)
    after, flat = surface(record.arrays["coords_bohr"])
    assert after < before
    assert after == pytest.approx(record.scalars["optimised_energy_hartree"], abs=1e-5)
    assert np.abs(flat).max() < 1e-3 < np.abs(gradient).max()
    # the gradient is the slope of the energy
    step = np.zeros_like(start)
    step[0, 0] = 1e-3
    numeric = (surface(start + step)[0] - surface(start - step)[0]) / 2e-3
    assert gradient[0, 0] == pytest.approx(numeric, abs=2e-4)
