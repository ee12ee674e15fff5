"""SMILES to species: salts, ions, charge, spin, stereo."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem

from quantum.base import InputError, ResourceError
from quantum.conformers import embed
from quantum.molecule import competing_fragments, explicit_mol, species_from_smiles
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


PAMOATE = "O=C(O)c1cc2ccccc2c(Cc2c(O)c(C(=O)O)cc3ccccc23)c1O"
METFORMIN = "CN(C)C(=N)NC(=N)N"
CITRATE = "O=C([O-])CC(O)(CC(=O)[O-])C(=O)[O-]"
GLUCONATE = "OC[C@@H](O)[C@@H](O)[C@H](O)[C@@H](O)C(=O)[O-]"


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        (f"{METFORMIN}.{METFORMIN}.{PAMOATE}", METFORMIN),  # 9 heavy atoms beside 29
        (f"{METFORMIN}.{PAMOATE.replace('C(=O)O', 'C(=O)[O-]')}", METFORMIN),
        ("NCCS.O=C(O)C(O)C(O)C(=O)O", "NCCS"),
        ("NCCS.O=C(O)[C@H](O)[C@@H](O)C(=O)O", "NCCS"),  # the list knows no stereo
        (PAMOATE, PAMOATE),  # nothing else left
        ("CCO.O", "CCO"),
        ("C[N+](C)(C)CCO.[Br-]", "C[N+](C)(C)CCO"),
        ("C1CNCCN1.O=C(O)CC(O)(CC(=O)O)C(=O)O", "C1CNCCN1"),  # the listed drug of two listed
        ("C[N+](C)(C)CCO.O=C([O-])c1ccccc1O", "O=C([O-])c1ccccc1O"),  # choline salicylate
        (f"{CITRATE}.[Li+].[Li+].[Li+]", "[Li+]"),
        (f"{CITRATE}.[Na+].[Na+].[Na+]", CITRATE),
        (f"{GLUCONATE}.{GLUCONATE}.[Ca+2]", "[Ca+2]"),
        ("OC(=O)[O-].[Na+]", "O=C([O-])O"),
        ("OC(=O)[O-].[K+]", "[K+]"),
        ("[I-].[K+]", "[I-]"),
        ("[F-].[Na+]", "[F-]"),
        ("[Na+].O=N[O-]", "O=N[O-]"),
        ("[NH4+].[Cl-]", "[NH4+]"),
    ],
)
def test_counter_ions_are_chosen_only_when_nothing_else_is_left(smiles: str, expected: str):
    assert species_from_smiles(smiles).smiles == Chem.CanonSmiles(expected)


@pytest.mark.parametrize(
    ("smiles", "expected", "charge"),
    [
        ("CC(=O)O[Na]", "CC(=O)[O-]", -1),
        ("[Na]Cl", "[Na+]", 1),
        ("O[Al](O)O", "[Al+3]", 3),
        ("O=[Mg]", "[Mg+2]", 2),
        ("Cl[Ra]Cl", "[Ra+2]", 2),
        ("Nc1ccc(S(=O)(=O)[N-]c2ncccn2)cc1.[Ag+]", "Nc1ccc(S(=O)(=O)[N-]c2ncccn2)cc1", -1),
        ("[Fe+2].[O-]S(=O)(=O)[O-].O", "[Fe+2]", 2),
        ("[La+3].[La+3].O=C([O-])[O-].O=C([O-])[O-].O=C([O-])[O-]", "[La+3]", 3),
    ],
)
def test_salts_of_metals_are_ions(smiles: str, expected: str, charge: int):
    species = species_from_smiles(smiles)
    assert (species.smiles, species.charge) == (Chem.CanonSmiles(expected), charge)


@pytest.mark.parametrize(
    ("smiles", "formula", "charge"),
    [
        ("N->[Pt](<-N)(Cl)Cl", "H6Cl2N2Pt", 0),
        ("[NH3+][Pt-2]([NH3+])(Cl)Cl", "H6Cl2N2Pt", 0),
        ("N.N.Cl[Pt]Cl", "H6Cl2N2Pt", 0),
        ("N.N.[Cl-].[Cl-].[Pt+2]", "H6Cl2N2Pt", 0),
        ("O=C1O[Pt]OC1=O.N[C@@H]1CCCC[C@H]1N.O", "C8H14N2O4Pt", 0),  # oxaliplatin
        ("[Au+].[Na+].[Na+].[S-]C(CC(=O)[O-])C(=O)[O-]", "C4H3AuO4S-2", -2),
        ("[Na+].O=[99Tc](=O)(=O)[O-]", "O4Tc-", -1),
        (
            "[Gd+3].[Na+].[Na+].O=C([O-])CN(CCN(CC(=O)[O-])CC(=O)[O-])CCN(CC(=O)[O-])CC(=O)[O-]",
            "C14H18GdN3O10-2",
            -2,
        ),
        ("O=N[Fe-2](C#N)(C#N)(C#N)(C#N)C#N.[Na+].[Na+].O.O", "C5FeN6O-2", -2),
    ],
)
def test_metal_complexes_stay_whole(smiles: str, formula: str, charge: int):
    species = species_from_smiles(smiles)
    assert (species.formula, species.charge) == (formula, charge)
    assert species_from_smiles(species.smiles) == species


@pytest.mark.parametrize(
    ("smiles", "multiplicity"),
    [
        ("[N]=O", 2),
        ("C[N]C", 2),
        ("CC1(C)CCCC(C)(C)N1[O]", 2),
        ("[O][O]", 3),
        ("O=O", 3),
        ("[CH2]", 3),
        ("[C-]#[O+]", 1),
        ("O=S=O", 1),
        ("O=[Se](O)O", 1),
        ("[Xe]", 1),
        ("[H]", 2),
        ("[C]", 3),
        ("[N]", 4),
        ("[K+]", 1),
        ("[I-]", 1),
        ("[Bi+3]", 1),
        ("[Ag+]", 1),
        ("[Fe+2]", 5),
        ("[Fe+3]", 6),
        ("[Cu+2]", 2),
        ("[Gd+3]", 8),
    ],
)
def test_multiplicity_follows_the_radical_electrons_and_hund(smiles: str, multiplicity: int):
    species = species_from_smiles(smiles)
    assert species.multiplicity == multiplicity
    electrons = sum(species.atomic_numbers) - species.charge
    assert (electrons - (multiplicity - 1)) % 2 == 0


@pytest.mark.parametrize("smiles", ["Oc1ccccn1", "O=c1cccc[nH]1", "CC(=O)C", "CC(O)=C"])
def test_no_tautomer_is_changed(smiles: str):
    assert species_from_smiles(smiles).smiles == Chem.CanonSmiles(smiles)


def test_isotopes_are_kept_and_a_labelled_ion_is_no_counter_ion():
    assert species_from_smiles("[131I-].[Na+]").smiles == "[131I-]"
    assert species_from_smiles("[82Rb+].[Cl-]").smiles == "[82Rb+]"
    heavy = species_from_smiles("[2H]O[2H]")
    assert (heavy.smiles, heavy.n_atoms, heavy.n_heavy_atoms) == ("[2H]O[2H]", 3, 1)
    assert heavy.key != species_from_smiles("O").key


@pytest.mark.parametrize(
    ("smiles", "what"), [("CC~C", "query"), ("[#6]C", "query"), ("*CC*", "dummy"), ("[H+]", "elec")]
)
def test_what_is_no_molecule_is_refused_with_the_reason(smiles: str, what: str):
    with pytest.raises(InputError, match=what) as caught:
        species_from_smiles(smiles)
    assert smiles in str(caught.value)


@pytest.mark.parametrize(
    ("smiles", "number"),
    [
        ("CCN.CCCCCO", 2),
        ("C[C@H](N)Cc1ccccc1.C[C@@H](N)Cc1ccccc1", 1),  # stereoisomers
        ("CCCC(CCC)C(=O)O.CCCC(CCC)C(=O)[O-].[Na+]", 1),  # protonation states
        ("CCCN.CS(=O)(=O)O.O", 1),
        ("N.N.Cl[Pt]Cl", 0),
        ("[Na+].[Cl-]", 0),
    ],
)
def test_competing_fragments_tell_mixtures_from_salts(smiles: str, number: int):
    assert len(competing_fragments(smiles)) == number


@pytest.mark.parametrize(
    ("smiles", "key"),
    [
        ("O", "042ffc810207e115b84a1d1bf8a21d79c8aadd25d10a351811c7c3d9468bc280"),
        (
            "CC(=O)Oc1ccccc1C(=O)O",
            "6c1d6bb91f72c22909ac5a7223f5c1ec9f702abe4334551004dba33eab46b750",
        ),
    ],
)
def test_keys_of_ordinary_molecules_never_change(smiles: str, key: str):
    assert species_from_smiles(smiles).key == key  # a change makes every stored result unreachable


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
