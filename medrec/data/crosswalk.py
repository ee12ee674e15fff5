"""Codes of one cohort in the spelling of another: the other ICD version, or a near relative.

A code is looked for as it is; then through the General Equivalence Mappings between ICD-9-CM and
ICD-10-CM (and the procedure crosswalk to ICD-10-PCS); then among the known codes of its category
(first three characters; four of ICD-10-PCS), where the one with the longest common beginning is
taken. Drugs need none of this: ATC is one space.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import polars as pl

from medrec.data.schema import Vocabulary, data_root
from medrec.data.tables import read_table

WAYS = ("same", "crosswalk", "category", "unknown")
_FILES = {
    "diagnoses": "crosswalk_diagnoses.csv.gz",
    "procedures": "crosswalk_procedures.csv.gz",
}


def split_label(label: str) -> tuple[str, str]:
    """``icd9:4019`` to ("9", "4019"); a code without its version gives ("", code).

    Whatever has another prefix, such as the path of a treatment, keeps it as its version.
    """
    system, colon, code = label.partition(":")
    if not colon:
        return "", label
    return system.removeprefix("icd"), code


@dataclass(frozen=True)
class Equivalents:
    """ICD-9 codes of ICD-10 codes and the reverse, for one kind of concept.

    Parameters
    ----------
    kind : str
        ``diagnoses`` or ``procedures``.
    folder : pathlib.Path, optional
        Holds the crosswalks; by default the shipped one.
    """

    kind: str
    folder: Path | None = None

    @cached_property
    def _pairs(self) -> pl.DataFrame:
        path = (self.folder or data_root() / "knowledge") / _FILES[self.kind]
        return read_table(path, ("icd9", "icd10")).drop_nulls().unique().sort("icd9", "icd10")

    @cached_property
    def _of(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {"9": {}, "10": {}}
        for nine, ten in self._pairs.iter_rows():
            found["9"].setdefault(nine, []).append(ten)
            found["10"].setdefault(ten, []).append(nine)
        return found

    def of(self, version: str, code: str) -> list[str]:
        """Labels of the equivalents in the other version."""
        other = {"9": "icd10", "10": "icd9"}.get(version)
        if other is None:
            return []
        return [f"{other}:{item}" for item in self._of[version].get(code, [])]


@dataclass(frozen=True)
class Translation:
    """From codes of one cohort to codes of a vocabulary.

    Attributes
    ----------
    code : dict of str to str or None
        Code of the vocabulary, or None where there is no relative.
    way : dict of str to str
        One of `WAYS` for each code.
    """

    code: dict[str, str | None]
    way: dict[str, str]

    def shares(self, occurrences: Iterable[str]) -> dict[str, float]:
        """Share of occurrences by way; sums to 1, or is empty without occurrences."""
        counts = dict.fromkeys(WAYS, 0)
        for item in occurrences:
            counts[self.way[item]] += 1
        total = sum(counts.values())
        return {way: n / total for way, n in counts.items()} if total else {}


def translate(
    codes: Iterable[str], vocabulary: Vocabulary, equivalents: Equivalents
) -> Translation:
    """Find each code, or its nearest relative, in a vocabulary.

    Parameters
    ----------
    codes : iterable of str
        In the cohort's spelling, such as ``icd10:I10``.
    """
    category = _by_category(vocabulary)
    found: dict[str, str | None] = {}
    ways: dict[str, str] = {}
    for label in dict.fromkeys(codes):
        found[label], ways[label] = _nearest(label, vocabulary, category, equivalents)
    return Translation(found, ways)


def _nearest(
    label: str,
    vocabulary: Vocabulary,
    category: dict[tuple[str, str], list[str]],
    equivalents: Equivalents,
) -> tuple[str | None, str]:
    version, code = split_label(label)
    if vocabulary.index(label) is not None:
        return label, "same"
    if vocabulary.index(code) is not None:  # a vocabulary without versions
        return code, "same"
    others = equivalents.of(version, code)
    for other in others:
        for spelling in (other, split_label(other)[1]):
            if vocabulary.index(spelling) is not None:
                return spelling, "crosswalk"
    for relative in (label, *others):
        version, code = split_label(relative)
        near = category.get((version, _stem(version, code)), [])
        near = near or category.get(("", _stem(version, code)), [])
        if near:
            return max(near, key=lambda item: _closeness(code, item)), "category"
    return None, "unknown"


def _closeness(code: str, label: str) -> tuple[int, int]:
    """Longer common beginning first, then the more general code."""
    other = split_label(label)[1]
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(code, other, strict=False))
    )
    return common, -len(other)


def _stem(version: str, code: str) -> str:
    # ICD-10-PCS codes have seven characters; their root operation is the third, the part the fourth
    if version == "10" and len(code) == 7 and code.isalnum() and "." not in code:
        return code[:4]
    return code[:3]


def _by_category(vocabulary: Vocabulary) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for label in vocabulary.codes:
        version, code = split_label(label)
        if version in ("", "9", "10"):
            found.setdefault((version, _stem(version, code)), []).append(label)
    return found
