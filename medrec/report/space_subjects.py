"""What the points of the molecule space are: molecules and drug classes, drawn and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from medrec.data.cohort import Cohort
from medrec.data.molecule_table import read_substances
from medrec.data.schema import Vocabulary, data_root
from medrec.molecules.drugs import DrugMolecules, ddi_matrix
from medrec.molecules.features import FeatureTable
from medrec.report.pretrained import cohort_molecules
from medrec.report.space_drawing import structure_svg
from medrec.report.space_views import MOLECULE
from quantum.base import InputError, MedrecError
from quantum.molecule import species_from_smiles

MOST_MOLECULES = 600
"""Of a larger cohort those of the classes with the most visits are on the map."""
MOST_BYTES = 1_500_000
"""Of all drawings together; molecules of rarer classes go without one."""


@dataclass(frozen=True)
class Subjects:
    """What the points of the maps are, as the page's script reads it.

    Attributes
    ----------
    drugs : DrugMolecules
        Those on the map, at most `MOST_MOLECULES`.
    molecules : list of dict
        ``name``, ``formula``, ``atc`` (codes of the substance), ``classes`` (places in ``classes``,
        most visits first), ``elf``, ``svg`` or None. In the order of ``drugs``.
    classes : list of dict
        ``atc``, ``name``, ``visits``, ``degree`` (interacting classes), ``molecules``.
    n_left_out : int
        Molecules of the cohort that are not on the map.
    """

    drugs: DrugMolecules
    molecules: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    n_left_out: int = 0
    groups: list[str] = field(default_factory=list)

    @property
    def n_drawn(self) -> int:
        """Molecules with a drawing."""
        return sum(item["svg"] is not None for item in self.molecules)

    def visits(self, kind: str, place: int) -> int:
        """Visits of a class, or of the most frequent class of a molecule."""
        item = self.molecules[place] if kind == MOLECULE else None
        return int(self.classes[item["classes"][0] if item else place]["visits"])

    def group(self, kind: str, place: int) -> str:
        """ATC main group of a point."""
        return self.groups[place] if kind == MOLECULE else str(self.classes[place]["atc"])[:1]

    def has_elf(self, kind: str, place: int) -> bool:
        """Whether a molecule, or any molecule of a class, has ELF features."""
        if kind == MOLECULE:
            return bool(self.molecules[place]["elf"])
        return any(self.molecules[i]["elf"] for i in self.classes[place]["molecules"])


def describe(
    cohort: Cohort, features: FeatureTable | None, most_bytes: int = MOST_BYTES
) -> Subjects:
    """Molecules and classes of a cohort with what the card says about them.

    Parameters
    ----------
    most_bytes : int
        Of all drawings together.
    """
    codes, drugs = cohort_molecules(cohort)
    named = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
    counted = cohort.visits["drugs"].explode().value_counts()
    degree = ddi_matrix(cohort, Vocabulary(codes)).sum(axis=1, dtype=np.int64)
    classes: list[dict[str, Any]] = [
        {
            "atc": code,
            "name": str(named.get(code, "")),
            "visits": int(counted.get(code, 0)),
            "degree": int(degree[i]),
            "molecules": [],
        }
        for i, code in enumerate(codes)
    ]
    members = [
        sorted(np.flatnonzero(column).tolist(), key=lambda c: (-classes[c]["visits"], c))
        for column in drugs.projection.T
    ]
    most = sorted(range(len(drugs)), key=lambda i: (-classes[members[i][0]]["visits"], i))
    kept = sorted(most[:MOST_MOLECULES])
    shown = DrugMolecules(
        tuple(drugs.smiles[i] for i in kept),
        tuple(drugs.species[i] for i in kept),
        drugs.projection[:, kept],
    )
    has_elf = (
        np.zeros(len(kept), dtype=bool) if features is None else features.align(shown.species)[1]
    )
    substances = _substances(cohort)
    molecules: list[dict[str, Any]] = []
    for place, (old, smiles) in enumerate(zip(kept, shown.smiles, strict=True)):
        found = substances.get(smiles, [])
        for number in members[old]:
            classes[number]["molecules"].append(place)
        molecules.append(
            {
                "name": min((name for _, name in found), key=lambda n: (len(n), n), default=""),
                "formula": CalcMolFormula(Chem.MolFromSmiles(smiles)),
                "atc": sorted({atc for atc, _ in found}),
                "classes": members[old],
                "elf": bool(has_elf[place]),
                "svg": None,
            }
        )
    places = {old: place for place, old in enumerate(kept)}
    _draw(molecules, shown.smiles, [places[i] for i in most if i in places], most_bytes)
    groups = [codes[item["classes"][0]][:1] for item in molecules]
    return Subjects(shown, molecules, classes, len(drugs) - len(kept), groups)


def _draw(
    molecules: list[dict[str, Any]], smiles: Sequence[str], order: Sequence[int], most_bytes: int
) -> None:
    """Add drawings in an order until the bytes are used up."""
    left = most_bytes
    for place in order:
        svg = structure_svg(smiles[place])
        if len(svg) > left:
            return
        left -= len(svg)
        molecules[place]["svg"] = svg


def _substances(cohort: Cohort) -> dict[str, list[tuple[str, str]]]:
    """ATC level-5 codes and names per standardised SMILES, of the cohort's classes.

    A cohort keeps structures without their names, which are in the table that it took them from.
    """
    try:
        known = read_substances(data_root() / "molecules").to_pandas()
    except MedrecError:  # the page is worth having without names
        return {}
    own = cohort.molecules[["atc", "smiles"]]
    joined: pd.DataFrame = own.merge(known, on="smiles")
    joined = joined[[a.startswith(b) for a, b in zip(joined["atc5"], joined["atc"], strict=True)]]
    found: dict[str, list[tuple[str, str]]] = {}
    standard: dict[str, str] = {}
    for smiles, atc, name in zip(joined["smiles"], joined["atc5"], joined["name"], strict=True):
        if smiles not in standard:
            try:
                standard[smiles] = species_from_smiles(smiles).smiles
            except InputError:
                continue
        found.setdefault(standard[smiles], []).append((str(atc), str(name).lower()))
    return found
