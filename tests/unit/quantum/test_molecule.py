"""SMILES to species: salts, ions, charge, spin, stereo."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem

from quantum.base import InputError, ResourceError
from quantum.conformers import embed
from quantum.molecule import explicit_mol, species_from_smiles
from quantum.schema import ConformerSpec
from quantum.units import BOHR_IN_ANGSTROM


@pytest.mark.parametrize(
    ("smiles", "expected", "charge", "multiplicity"),
    [
        ("CCO", "CCO", 0, 1),
        ("[K+].[Cl-]", "[K+]", 1, 1),
        ("[Na+].[Cl-]", "[Na+]", 1, 1),
        ("CC(=O)[O-].[Na+]", "CC(=O)[O-]", -1, 1),
        ("CN(C)CCOC(c1ccccc1)c1ccccc1.Cl", "CN(C)CCOC(c1ccccc1)c1ccccc1", 0, 1),
        ("C[N+](C)(C)CCO.[Cl-]", "C[N+](C)(C)CCO", 1, 1),
        ("[O]N=O", "[O]N=O", 0, 2),
        ("OC(=O)C.OCC(O)CO", "OCC(O)CO", 0, 1),
    ],
)
def test_standardisation_keeps_the_active_species(smiles, expected, charge, multiplicity):
    species = species_from_smiles(smiles)
    assert species.smiles == Chem.CanonSmiles(expected)
    assert (species.charge, species.multiplicity) == (charge, multiplicity)


@pytest.mark.parametrize("smiles", ["", "   ", "not a molecule", "C1CC", "[13C", "C*"])
def test_bad_smiles_are_input_errors(smiles: str):
    with pytest.raises(InputError, match="SMILES"):
        species_from_smiles(smiles)


def test_the_same_molecule_written_twice_has_one_key():
    assert species_from_smiles("OCC").key == species_from_smiles("CCO").key
    assert species_from_smiles("C[C@H](N)C(=O)O").key != species_from_smiles("C[C@@H](N)C(=O)O").key


def test_conformer_is_3d_keeps_stereo_and_has_sane_bonds():
    species = species_from_smiles("C[C@H](N)C(=O)O")
    coords, facts = embed(species, ConformerSpec(n_conformers=2))
    assert facts["method"] == "etkdgv3+mmff94s"
    assert np.linalg.matrix_rank(coords - coords.mean(axis=0), tol=0.1) == 3
    mol = explicit_mol(species)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    for i, xyz in enumerate(coords * BOHR_IN_ANGSTROM):
        conformer.SetAtomPosition(i, xyz.tolist())
    mol.AddConformer(conformer)
    Chem.AssignStereochemistryFrom3D(mol)
    assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == species.smiles


def test_conformers_are_reproducible():
    species = species_from_smiles("CC(=O)Nc1ccc(O)cc1")
    first, _ = embed(species, ConformerSpec(n_conformers=2))
    second, _ = embed(species, ConformerSpec(n_conformers=2))
    np.testing.assert_array_equal(first, second)


def test_atoms_need_no_embedding_and_giants_are_refused():
    coords, facts = embed(species_from_smiles("[Mg+2]"), ConformerSpec())
    assert coords.shape == (1, 3)
    assert facts["method"] == "atom"
    with pytest.raises(ResourceError, match="limit 3"):
        embed(species_from_smiles("CCCCC"), ConformerSpec(max_heavy_atoms=3))
