"""The shipped tables of ``data/knowledge``: hierarchies, groups, crosswalks, diseases, indications.

Codes are upper case without dots, except in `KnowledgeTables.disease_references`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from medrec.data.tables import read_table

FILES = (
    "icd9_categories.csv.gz",
    "icd10_categories.csv.gz",
    "ccs_diagnoses.csv.gz",
    "ccs_procedures.csv.gz",
    "ccs_procedure_groups.csv.gz",
    "crosswalk_diagnoses.csv.gz",
    "crosswalk_procedures.csv.gz",
    "disease_terms.csv.gz",
    "disease_references.csv.gz",
    "indications.csv.gz",
    "label_indications.csv.gz",
)
INDICATIONS = {"DM": "treats", "SYM": "relieves"}
"""Categories of PharmacotherapyDB that are indications; NOT says that a pair is none."""

ICD9_PROCEDURE_CHAPTERS = {
    (0, 0): "Procedures and interventions, not elsewhere classified",
    (1, 5): "Operations on the nervous system",
    (6, 7): "Operations on the endocrine system",
    (8, 16): "Operations on the eye",
    (17, 17): "Other miscellaneous diagnostic and therapeutic procedures",
    (18, 20): "Operations on the ear",
    (21, 29): "Operations on the nose, mouth and pharynx",
    (30, 34): "Operations on the respiratory system",
    (35, 39): "Operations on the cardiovascular system",
    (40, 41): "Operations on the hemic and lymphatic system",
    (42, 54): "Operations on the digestive system",
    (55, 59): "Operations on the urinary system",
    (60, 64): "Operations on the male genital organs",
    (65, 71): "Operations on the female genital organs",
    (72, 75): "Obstetrical procedures",
    (76, 84): "Operations on the musculoskeletal system",
    (85, 86): "Operations on the integumentary system",
    (87, 99): "Miscellaneous diagnostic and therapeutic procedures",
}
"""Chapters of ICD-9-CM volume 3 by their two-digit categories."""

ICD10_PROCEDURE_SECTIONS = {
    "0": "Medical and surgical",
    "1": "Obstetrics",
    "2": "Placement",
    "3": "Administration",
    "4": "Measurement and monitoring",
    "5": "Extracorporeal or systemic assistance and performance",
    "6": "Extracorporeal or systemic therapies",
    "7": "Osteopathic",
    "8": "Other procedures",
    "9": "Chiropractic",
    "B": "Imaging",
    "C": "Nuclear medicine",
    "D": "Radiation therapy",
    "F": "Physical rehabilitation and diagnostic audiology",
    "G": "Mental health",
    "H": "Substance abuse treatment",
    "X": "New technology",
}
"""First characters of ICD-10-PCS."""


class Category(NamedTuple):
    """Place of a category of diagnoses; block "" where a chapter has no blocks."""

    title: str
    block: str
    chapter: str


class Term(NamedTuple):
    """Term of the Disease Ontology."""

    name: str
    parents: tuple[str, ...]


@dataclass(frozen=True)
class KnowledgeTables:
    """The tables, each read when it is first asked for.

    Parameters
    ----------
    folder : pathlib.Path
        Holds the `FILES`.
    """

    folder: Path

    def _rows(self, name: str, *columns: str) -> list[tuple[str, ...]]:
        table = read_table(self.folder / f"{name}.csv.gz", columns).select(columns)
        return table.fill_null("").rows()

    @cached_property
    def icd9(self) -> dict[str, Category]:
        """ICD-9-CM diagnosis category (three characters, four with E) to its place."""
        rows = self._rows("icd9_categories", "category", "title", "block", "chapter")
        return {code: Category(*place) for code, *place in rows}

    @cached_property
    def icd10(self) -> dict[str, Category]:
        """ICD-10-CM code with subdivisions to its title; of three characters: to its place."""
        rows = self._rows("icd10_categories", "code", "title", "block", "chapter")
        return {code: Category(*place) for code, *place in rows}

    @cached_property
    def ccs_diagnoses(self) -> dict[str, tuple[str, str]]:
        """ICD-9-CM diagnosis to number and name of its CCS group."""
        rows = self._rows("ccs_diagnoses", "code", "ccs", "name")
        return {code: (group, name) for code, group, name in rows}

    @cached_property
    def ccs_procedures(self) -> dict[str, str]:
        """ICD-10-PCS code to the number of its CCS group."""
        return dict(self._rows("ccs_procedures", "code", "ccs"))  # type: ignore[arg-type]

    @cached_property
    def ccs_procedure_groups(self) -> dict[str, tuple[str, str]]:
        """Number of a CCS group of procedures to its name and chapter."""
        rows = self._rows("ccs_procedure_groups", "ccs", "name", "chapter")
        return {group: (name, chapter) for group, name, chapter in rows}

    @cached_property
    def diagnoses_9_to_10(self) -> dict[str, list[tuple[str, bool]]]:
        """ICD-9-CM diagnosis to ICD-10-CM codes, each with whether it is exact."""
        found = defaultdict(list)
        for old, new, exact in self._rows("crosswalk_diagnoses", "icd9", "icd10", "exact"):
            found[old].append((new, exact == "1"))
        return dict(found)

    @cached_property
    def diagnoses_10_to_9(self) -> dict[str, list[tuple[str, bool]]]:
        """The other direction."""
        found = defaultdict(list)
        for old, pairs in self.diagnoses_9_to_10.items():
            for new, exact in pairs:
                found[new].append((old, exact))
        return dict(found)

    @cached_property
    def procedures_9_to_10(self) -> dict[str, list[str]]:
        """ICD-9-CM procedure to ICD-10-PCS codes."""
        found = defaultdict(list)
        for old, new in self._rows("crosswalk_procedures", "icd9", "icd10"):
            found[old].append(new)
        return dict(found)

    @cached_property
    def disease_terms(self) -> dict[str, Term]:
        """Disease Ontology number to its term."""
        rows = self._rows("disease_terms", "doid", "name", "parents")
        return {
            doid: Term(name, tuple(item for item in parents.split("|") if item))
            for doid, name, parents in rows
        }

    @cached_property
    def disease_references(self) -> list[tuple[str, str, str]]:
        """Disease Ontology number, system (``ICD9``, ``ICD10``, ``UMLS``), code as published."""
        rows = self._rows("disease_references", "doid", "system", "code")
        return [(doid, system, code) for doid, system, code in rows]

    @cached_property
    def indications(self) -> list[tuple[str, str, str]]:
        """Drug name, relation of `INDICATIONS`, disease number; pairs with NOT are left out."""
        rows = self._rows("indications", "drug", "category", "doid_id")
        return [(drug, INDICATIONS[kind], doid) for drug, kind, doid in rows if kind in INDICATIONS]

    @cached_property
    def label_indications(self) -> list[tuple[str, str]]:
        """Ingredient name and UMLS concept of a disease, from drug labels."""
        rows = self._rows("label_indications", "drug", "disease_cui")
        return [(drug, concept) for drug, concept in rows]
