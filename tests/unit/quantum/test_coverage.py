"""Which drugs have a species: all of ChEMBL's approved drugs, and drugs checked by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from pyscf import gto
from rdkit import Chem

from quantum.base import DataError
from quantum.coverage import (
    _BASIS_ELEMENTS,
    Coverage,
    Reason,
    classify,
    coverage_table,
)
from quantum.molecule import species_from_smiles

MOLECULES = Path(__file__).resolve().parents[3] / "data" / "molecules"


@pytest.fixture(scope="module")
def drugs() -> pd.DataFrame:
    table = pd.read_parquet(MOLECULES / "chembl_approved_drugs.parquet")
    table = table.rename(columns={"pref_name": "name", "molecule_chembl_id": "identifier"})
    return table.assign(atc="V")


@pytest.fixture(scope="module")
def covered(drugs: pd.DataFrame) -> pd.DataFrame:
    return coverage_table(drugs)


# --------------------------------------------------------------------------- the whole table


def test_every_approved_drug_is_defined_or_says_why_not(drugs, covered):
    assert len(covered) == len(drugs) == 2628
    assert Counter(covered["reason"]) == {"": 2612, "mixture": 14, "element": 2}
    undefined = covered[~covered["defined"]]
    assert set(undefined["reason"]) <= set(get_args(Reason))
    assert (undefined["detail"] != "").all()
    assert undefined[["charge", "multiplicity", "n_heavy_atoms"]].isna().all(axis=None)
    assert covered[covered["defined"]][["charge", "multiplicity"]].notna().all(axis=None)


def test_the_undefined_ones_are_mixtures_by_nature_and_radium(covered):
    names = covered.groupby("reason")["name"].apply(set)
    assert names["element"] == {"RADIUM DICHLORIDE", "RADIUM RA 223 DICHLORIDE"}
    assert names["mixture"] == {
        "ACRISORCIN",
        "ERGOLOID",
        "ERGOLOID MESYLATES",
        "GENTAMICIN",
        "GENTAMICIN SULFATE",
        "MONOCTANOIN",
        "OMEGA-3-ACID ETHYL ESTERS",
        "OMEGA-3-CARBOXYLIC ACIDS",
        "PYRETHRINS",
        "SEVELAMER",
        "SEVELAMER CARBONATE",
        "SPINOSAD",
        "VERTEPORFIN",
    }


def test_the_species_of_a_species_is_itself(covered):
    for row in covered[covered["defined"]].itertuples():
        again = species_from_smiles(row.smiles)
        assert again.smiles == row.smiles, row.name
        assert (again.charge, again.multiplicity) == (row.charge, row.multiplicity), row.name


def _stereo(mol: Chem.Mol) -> tuple[int, int]:
    """Specified stereo centres and double bonds."""
    centres = Chem.FindMolChiralCenters(mol, useLegacyImplementation=False)
    bonds = sum(bond.GetStereo() > Chem.BondStereo.STEREOANY for bond in mol.GetBonds())
    return len(centres), bonds


def test_stereo_isotopes_and_charge_are_those_of_the_parent_fragment(drugs, covered):
    given = dict(zip(drugs["identifier"], drugs["smiles"], strict=True))
    defined = covered[covered["defined"]]
    without_parent, stereo_centres = [], 0
    for row in defined.itertuples():
        parts = Chem.GetMolFrags(Chem.MolFromSmiles(given[row.identifier]), asMols=True)
        parents = [part for part in parts if Chem.MolToSmiles(part) == row.smiles]
        if not parents:
            without_parent.append(row.name)
            continue
        species, parent = Chem.MolFromSmiles(row.smiles), parents[0]
        assert _stereo(species) == _stereo(parent), row.name
        assert row.charge == Chem.GetFormalCharge(parent), row.name
        isotopes = [Counter(a.GetIsotope() for a in mol.GetAtoms()) for mol in (species, parent)]
        assert isotopes[0] == isotopes[1], row.name
        stereo_centres += _stereo(species)[0]
    assert stereo_centres > 4500  # else the test compares nothing
    # only metals drawn with bonds have no fragment of their own
    assert sorted(without_parent) == ["ALUMINUM HYDROXIDE", "MAGNESIUM OXIDE", "TALC", "TALC"]


def test_charges_and_spins_are_sensible(drugs, covered):
    given = dict(zip(drugs["identifier"], drugs["smiles"], strict=True))
    defined = covered[covered["defined"]]
    assert defined["charge"].between(-5, 3).all()
    for row in defined[
        ~defined["name"].isin(["ALUMINUM HYDROXIDE", "MAGNESIUM OXIDE"])
    ].itertuples():
        total = Chem.GetFormalCharge(Chem.MolFromSmiles(given[row.identifier]))
        assert total == row.charge or "." in given[row.identifier], row.name  # else no partner
    open_shell = defined.set_index("name")["multiplicity"].loc[lambda spin: spin > 1]
    assert open_shell.to_dict() == {"NITRIC OXIDE": 2, "OXYGEN": 3}


def test_the_published_table_of_molerec_has_a_verdict_for_every_structure():
    table = json.loads((MOLECULES / "atc3_to_smiles.molerec.json").read_text())
    structures = {smiles for many in table.values() for smiles in many}
    states = Counter(classify(smiles).state for smiles in structures)
    # carboplatin, nitroprusside, cyanocobalamin; charcoal, calcium and silver as one neutral atom;
    # ivermectin and sevelamer as two substances each
    assert states == {"defined": 252, "element": 6, "mixture": 2}


# --------------------------------------------------------------------------- by hand

IN_TABLE = {
    "METFORMIN HYDROCHLORIDE": ("CN(C)C(=N)NC(=N)N", "C4H11N5", 0, 1),
    "LITHIUM CARBONATE": ("[Li+]", "Li+", 1, 1),
    "LITHIUM CITRATE": ("[Li+]", "Li+", 1, 1),
    "MAGNESIUM SULFATE": ("[Mg+2]", "Mg+2", 2, 1),
    "CALCIUM GLUCONATE": ("[Ca+2]", "Ca+2", 2, 1),
    "SODIUM THIOSULFATE": ("O=S([O-])([O-])=S", "O3S2-2", -2, 1),
    "WARFARIN SODIUM": ("CC(=O)CC(c1ccccc1)c1c([O-])c2ccccc2oc1=O", "C19H15O4-", -1, 1),
    "ATORVASTATIN CALCIUM": (
        "CC(C)c1c(C(=O)Nc2ccccc2)c(-c2ccccc2)c(-c2ccc(F)cc2)n1CC[C@@H](O)C[C@@H](O)CC(=O)[O-]",
        "C33H34FN2O5-",
        -1,
        1,
    ),
    "MORPHINE SULFATE": (
        "CN1CC[C@]23c4c5ccc(O)c4O[C@H]2[C@@H](O)C=C[C@H]3[C@H]1C5",
        "C17H19NO3",
        0,
        1,
    ),
    "VALPROATE SODIUM": ("CCCC(CCC)C(=O)[O-]", "C8H15O2-", -1, 1),
    "DIVALPROEX SODIUM": ("CCCC(CCC)C(=O)[O-]", "C8H15O2-", -1, 1),
    "SODIUM IODIDE I 123": ("[123I-]", "I-", -1, 1),
    "RUBIDIUM CHLORIDE RB 82": ("[82Rb+]", "Rb+", 1, 1),
    "CHOLINE C-11": ("C[N+](C)([11CH3])CCO", "C5H14NO+", 1, 1),
    "IOBENGUANE SULFATE I 131": ("N=C(N)NCc1cccc([131I])c1", "C8H10IN3", 0, 1),
    "NITRIC OXIDE": ("[N]=O", "NO", 0, 2),
    "OXYGEN": ("O=O", "O2", 0, 3),
    "XENON": ("[Xe]", "Xe", 0, 1),
    "SULFADIAZINE, SILVER": ("Nc1ccc(S(=O)(=O)[N-]c2ncccn2)cc1", "C10H9N4O2S-", -1, 1),
    "METHENAMINE HIPPURATE": ("C1N2CN3CN1CN(C2)C3", "C6H12N4", 0, 1),
    "FOSFOMYCIN TROMETHAMINE": ("C[C@@H]1O[C@@H]1P(=O)(O)O", "C3H7O4P", 0, 1),
    "DIMENHYDRINATE": ("CN(C)CCOC(c1ccccc1)c1ccccc1", "C17H21NO", 0, 1),
    "IMIPRAMINE PAMOATE": ("CN(C)CCCN1c2ccccc2CCc2ccccc21", "C19H24N2", 0, 1),
    "BRETYLIUM TOSYLATE": ("CC[N+](C)(C)Cc1ccccc1Br", "C11H17BrN+", 1, 1),
}


@pytest.mark.parametrize("name", IN_TABLE)
def test_drugs_of_the_table_checked_by_hand(covered, name: str):
    smiles, formula, charge, multiplicity = IN_TABLE[name]
    rows = covered[covered["name"] == name]
    assert len(rows)
    for row in rows.itertuples():
        assert row.smiles == Chem.CanonSmiles(smiles)
        assert (row.formula, row.charge, row.multiplicity) == (formula, charge, multiplicity)


PAMOIC = "O=C(O)c1cc2ccccc2c(Cc2c(O)c(C(=O)O)cc3ccccc23)c1O"
AMOXICILLIN = "CC1(C)S[C@@H]2[C@H](NC(=O)[C@H](N)c3ccc(O)cc3)C(=O)N2[C@H]1C(=O)O"
CLAVULANATE = "O=C([O-])[C@H]1/C(=C/CO)O[C@@H]2CC(=O)N12"


@pytest.mark.parametrize(
    ("drug", "smiles", "state", "found"),
    [
        ("metformin embonate", f"CN(C)C(=N)NC(=N)N.{PAMOIC}", "defined", "C4H11N5"),
        ("potassium chloride", "[K+].[Cl-]", "defined", "K+"),
        ("iodide (131I)", "[131I-].[Na+]", "defined", "I-"),
        ("heavy water", "[2H]O[2H]", "defined", "H2O"),
        ("ferrous sulfate", "[Fe+2].O=S(=O)([O-])[O-]", "defined", "Fe+2"),
        ("amoxicillin", f"{AMOXICILLIN}.O.O.O", "defined", "C16H19N3O5S"),
        ("with clavulanate", f"{AMOXICILLIN}.{CLAVULANATE}.[K+]", "mixture", "2 organic"),
        ("cisplatin", "N->[Pt](<-N)(Cl)Cl", "element", "complex of Pt"),
        ("cisplatin in parts", "N.N.[Cl-].[Cl-].[Pt+2]", "element", "complex of Pt"),
        (
            "auranofin",
            "CCP(CC)(CC)=[Au]S[C@@H]1O[C@H](COC(C)=O)[C@@H](OC(C)=O)[C@H](OC(C)=O)[C@H]1OC(C)=O",
            "element",
            "complex of Au",
        ),
        (
            "gadopentetate",
            "[Gd+3].O=C([O-])CN(CCN(CC(=O)[O-])CC(=O)[O-])CCN(CC(=O)O)CC(=O)[O-].[Na+]",
            "element",
            "no def2 basis set for Gd",
        ),
        (
            "indium pentetate",
            "[111In+3].O=C([O-])CN(CCN(CC(=O)[O-])CC(=O)[O-])CCN(CC(=O)O)CC(=O)O",
            "element",
            "without its bonds",
        ),
        ("activated charcoal", "[C]", "element", "free atom of C"),
        ("macrogol", "*OCCO*", "polymer", "2 dummy atoms"),
        ("attachment point", "*CCO", "input", "dummy atom: '*CCO'"),
        ("not a SMILES", "insulin", "input", "does not parse: 'insulin'"),
        ("titin's start", "NCC(=O)" * 60 + "O", "too large", "241 heavy atoms, limit 150"),
    ],
)
def test_drugs_outside_the_table_checked_by_hand(drug: str, smiles: str, state: str, found: str):
    coverage = classify(smiles)
    assert coverage.state == state, drug
    if state == "defined":
        assert coverage.species is not None
        assert (coverage.species.formula, coverage.message) == (found, "")
    else:
        assert coverage.species is None
        assert found in coverage.message


def test_cyanocobalamin_keeps_cobalt_and_cyanide():
    table = json.loads((MOLECULES / "atc3_to_smiles.molerec.json").read_text())
    (smiles,) = (text for text in table["B03B"] if "[Co" in text)
    species = species_from_smiles(smiles)
    assert {"[Co+3]", "[C-]#N"} < set(species.smiles.split("."))
    assert "complex of Co" in classify(smiles).message


@pytest.mark.parametrize(
    ("drug", "molecule_type", "state"),
    [
        ("insulin", "Protein", "biologic"),
        ("adalimumab", "Antibody", "biologic"),
        ("nusinersen", "Oligonucleotide", "biologic"),
        ("trastuzumab emtansine", "Antibody drug conjugate", "biologic"),
        ("tisagenlecleucel", "Cell", "biologic"),
        ("enoxaparin", "Oligosaccharide", "biologic"),
        ("enoxaparin, type not known", "Unknown", "no structure"),
        ("cellulose is no cell", "Cellulose", "no structure"),
        ("colestyramine", "Polymer", "polymer"),
        ("no type", None, "no structure"),
    ],
)
@pytest.mark.parametrize("smiles", [None, "", "  "])
def test_without_a_structure_the_molecule_type_gives_the_reason(
    drug: str, molecule_type: str | None, state: str, smiles: str | None
):
    coverage = classify(smiles, molecule_type=molecule_type)
    assert (coverage.state, coverage.species) == (state, None), drug
    assert (molecule_type or "unknown") in coverage.message


def test_a_structure_outweighs_the_molecule_type_and_the_limit_is_the_callers():
    assert classify("CCO", molecule_type="Protein").defined
    assert classify("CCO", max_heavy_atoms=3).defined
    assert classify("CCO", max_heavy_atoms=2) == Coverage(
        state="too large", message="3 heavy atoms, limit 2"
    )


@pytest.mark.filterwarnings("ignore:Basis may be available")
def test_the_basis_elements_are_those_that_pyscf_has():
    table = Chem.GetPeriodicTable()
    for number in range(1, 93):
        symbol = table.GetElementSymbol(number)
        try:
            found = bool(gto.basis.load("def2-svp", symbol))
        except (KeyError, RuntimeError):
            found = False
        assert found == (number in _BASIS_ELEMENTS), symbol


# --------------------------------------------------------------------------- the table


def _list(*rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["atc", "name", "identifier", "smiles", "molecule_type"])


def test_a_row_per_code_and_drug_sorted_with_both_kinds_of_row():
    ethanol = ("V03AB16", "ethanol", "C2", "CCO", "Small molecule")
    table = coverage_table(
        _list(
            ethanol,
            ("A10AB01", "insulin", "C1", None, "Protein"),
            ("D08AX08", "ethanol", "C2", "OCC", "Small molecule"),
            ("B01AB05", "enoxaparin", "C3", float("nan"), float("nan")),
            ethanol,
        )
    )
    assert list(table["atc"]) == ["A10AB01", "B01AB05", "D08AX08", "V03AB16"]
    assert list(table["reason"]) == ["biologic", "no structure", "", ""]
    assert list(table["smiles"]) == ["", "", "CCO", "CCO"]
    assert list(table["defined"]) == [False, False, True, True]
    assert table["n_heavy_atoms"].dtype == "Int64"
    assert table["n_heavy_atoms"].tolist()[2:] == [3, 3]


def test_an_empty_list_gives_an_empty_table_with_all_columns():
    table = coverage_table(_list())
    assert len(table) == 0
    assert "n_heavy_atoms" in table.columns


def test_a_missing_column_and_two_structures_for_one_drug_are_data_errors():
    with pytest.raises(DataError, match="molecule_type"):
        coverage_table(_list().drop(columns="molecule_type"))
    twice = _list(("A", "x", "C1", "C", "Small molecule"), ("A", "x", "C1", "CC", "Small molecule"))
    with pytest.raises(DataError, match=r"1 repeated pair.*A C1"):
        coverage_table(twice)
