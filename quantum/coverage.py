"""Which drugs have a species that can be calculated, and why the others have none.

`classify` judges one SMILES, `coverage_table` a drug list. The reasons, in the order in which they
are looked for:

========================  =========================================================================
``biologic``, ``polymer``  no SMILES, and the list's molecule type says why (also ``mixture``)
``no structure``           no SMILES, and nothing says why
``polymer``                two or more dummy atoms: a repeat unit
``input``                  does not parse, one dummy atom (attachment point), query atoms
``element``                an element without def2 basis set; a complex of a transition metal, whose
                           geometry and spin state neither SMILES nor force field knows; a complex
                           drawn in parts; a free atom other than a noble gas
``mixture``                several organic substances, none a common counter-ion or solvent
``too large``              more heavy atoms than are embedded
========================  =========================================================================

A structure outweighs the molecule type: a small peptide of type *Protein* with a SMILES is defined.
Radionuclides are calculated as their element; the label stays in the SMILES.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Literal

import pandas as pd
from rdkit import Chem

from quantum.base import DataError, Frozen, InputError
from quantum.molecule import Species, competing_fragments, parse_smiles, species_from_smiles

Reason = Literal["no structure", "biologic", "polymer", "element", "too large", "mixture", "input"]
_BASIS_ELEMENTS = frozenset({*range(1, 58), *range(72, 87)})  # def2 in PySCF: no Ce-Lu, up to Rn
_TRANSITION_METALS = frozenset({*range(21, 31), *range(39, 49), *range(57, 81), *range(89, 113)})
_NOBLE_GASES = frozenset({2, 10, 18, 36, 54, 86})
_BIOLOGIC_WORDS = frozenset(
    {"antibody", "protein", "peptide", "enzyme", "cell", "gene", "vaccine", "biologic"}
    | {"oligonucleotide", "oligosaccharide"}
)
_INPUT_COLUMNS = ("atc", "name", "identifier", "smiles", "molecule_type")
_DTYPES = {
    "atc": "str",
    "name": "str",
    "identifier": "str",
    "defined": "bool",
    "reason": "str",
    "detail": "str",
    "formula": "str",
    "charge": "Int64",
    "multiplicity": "Int64",
    "n_heavy_atoms": "Int64",
    "smiles": "str",
}


class Coverage(Frozen):
    """Whether a substance has a species, else why not.

    Attributes
    ----------
    state : {"defined", "no structure", "biologic", "polymer", "element", "too large", "mixture", \
"input"}
        ``defined``, or the reason.
    message : str
        What was found, with its value; empty if defined.
    species : quantum.molecule.Species or None
        What is calculated; only if defined.
    """

    state: Literal["defined"] | Reason
    message: str = ""
    species: Species | None = None

    @property
    def defined(self) -> bool:
        """Whether there is a species to calculate."""
        return self.state == "defined"


def classify(
    smiles: str | None, *, max_heavy_atoms: int = 150, molecule_type: str | None = None
) -> Coverage:
    """Judge one structure; never raises for what the text holds.

    Parameters
    ----------
    smiles : str or None
        None, empty or blank: the substance has no structure.
    max_heavy_atoms : int
        As in `quantum.schema.ConformerSpec`.
    molecule_type : str, optional
        ChEMBL's molecule type; used only where there is no SMILES.
    """
    if smiles is None or not smiles.strip():
        return _without_structure(molecule_type)
    try:
        dummies = sum(atom.GetAtomicNum() == 0 for atom in parse_smiles(smiles).GetAtoms())
        if dummies > 1:
            return Coverage(state="polymer", message=f"{dummies} dummy atoms, a repeat unit")
        species = species_from_smiles(smiles)
        competing = competing_fragments(smiles)
    except InputError as error:
        return Coverage(state="input", message=str(error))
    trouble = _element_trouble(species)
    if trouble:
        return Coverage(state="element", message=trouble)
    if len(competing) > 1:
        message = f"{len(competing)} organic substances: {' and '.join(competing)}"
        return Coverage(state="mixture", message=message)
    if species.n_heavy_atoms > max_heavy_atoms:
        message = f"{species.n_heavy_atoms} heavy atoms, limit {max_heavy_atoms}"
        return Coverage(state="too large", message=message)
    return Coverage(state="defined", species=species)


def _without_structure(molecule_type: str | None) -> Coverage:
    kind = (molecule_type or "").strip() or "unknown"
    words = set(re.findall("[a-z]+", kind.lower()))
    state: Reason = "no structure"
    if "polymer" in words:
        state = "polymer"
    elif "combination" in words:
        state = "mixture"
    elif words & _BIOLOGIC_WORDS:
        state = "biologic"
    return Coverage(state=state, message=f"no SMILES; molecule type '{kind}'")


def _element_trouble(species: Species) -> str:
    """What is wrong with the elements of a species, or an empty text."""
    numbers = sorted(set(species.atomic_numbers))
    uncovered = [number for number in numbers if number not in _BASIS_ELEMENTS]
    if uncovered:
        return f"no def2 basis set for {_symbols(uncovered)} in {species.smiles}"
    metals = [number for number in numbers if number in _TRANSITION_METALS]
    if metals and species.n_atoms > 1:
        return f"complex of {_symbols(metals)}, geometry and spin state not known: {species.smiles}"
    if "." in species.smiles:
        return f"metal complex drawn without its bonds: {species.smiles}"
    if species.n_atoms == 1 and species.charge == 0 and numbers[0] not in _NOBLE_GASES:
        return f"a free atom of {_symbols(numbers)} is not the substance, a solid or a liquid"
    return ""


def _symbols(numbers: list[int]) -> str:
    table = Chem.GetPeriodicTable()
    return ", ".join(table.GetElementSymbol(number) for number in numbers)


# --------------------------------------------------------------------------- a drug list


def coverage_table(drugs: pd.DataFrame, *, max_heavy_atoms: int = 150) -> pd.DataFrame:
    """Judge a drug list: one row per ATC code and drug.

    Parameters
    ----------
    drugs : pandas.DataFrame
        Columns ``atc``, ``name``, ``identifier``, ``smiles``, ``molecule_type``; the last two may
        be missing or empty in a row. Repeated rows count once.
    max_heavy_atoms : int
        As in `classify`.

    Returns
    -------
    pandas.DataFrame
        Columns ``atc``, ``name``, ``identifier``, ``defined``, ``reason``, ``detail``, ``formula``,
        ``charge``, ``multiplicity``, ``n_heavy_atoms``, ``smiles`` (of the species), sorted by the
        first three. Where ``defined``, reason and detail are empty; elsewhere what describes the
        species is.

    Raises
    ------
    DataError
        If a column is absent, or an ATC code and identifier have several structures.
    """
    absent = [column for column in _INPUT_COLUMNS if column not in drugs.columns]
    if absent:
        raise DataError(
            f"drug list lacks column(s) {', '.join(absent)}; expected {', '.join(_INPUT_COLUMNS)}"
        )
    unique = drugs.loc[:, list(_INPUT_COLUMNS)].drop_duplicates()
    repeated = unique[unique.duplicated(["atc", "identifier"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise DataError(
            f"drug list has {len(repeated)} repeated pair(s) of ATC code and identifier with other "
            f"content, first {first['atc']} {first['identifier']}; expected one row for each"
        )
    rows = [_row(record, max_heavy_atoms) for record in unique.to_dict("records")]
    table = pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)
    return table.sort_values(["atc", "name", "identifier"], ignore_index=True)


def _row(record: Mapping[Hashable, object], max_heavy_atoms: int) -> dict[str, object]:
    coverage = classify(
        _text_or_none(record["smiles"]),
        max_heavy_atoms=max_heavy_atoms,
        molecule_type=_text_or_none(record["molecule_type"]),
    )
    species = coverage.species
    return {
        **{column: record[column] for column in ("atc", "name", "identifier")},
        "defined": coverage.defined,
        "reason": "" if coverage.defined else coverage.state,
        "detail": coverage.message,
        "formula": species.formula if species else "",
        "charge": species.charge if species else pd.NA,
        "multiplicity": species.multiplicity if species else pd.NA,
        "n_heavy_atoms": species.n_heavy_atoms if species else pd.NA,
        "smiles": species.smiles if species else "",
    }


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None
