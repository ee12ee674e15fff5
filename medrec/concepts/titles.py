"""What a concept of a cohort is: its code system, and words that describe it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from medrec.concepts.knowledge import KnowledgeTables
from medrec.data.codes import CodeMaps
from quantum.base import InputError

SYSTEMS = ("dx9", "dx10", "px9", "px10", "path", "atc")
"""ICD-9-CM and ICD-10-CM diagnoses, ICD-9-CM and ICD-10-PCS procedures, treatment paths, ATC."""

_LABEL = re.compile(r"(?:(icd9|icd10|path):)?(.*)", re.DOTALL)
_ICD9_DIAGNOSIS = re.compile(r"\d{3,5}|V\d{2,4}|E\d{3,4}")
_ICD9_PROCEDURE = re.compile(r"\d{2,4}")
_ATC5_LENGTH = 7


class Concept(NamedTuple):
    """A code and the system (of `SYSTEMS`) that it belongs to."""

    system: str
    code: str

    @property
    def node(self) -> str:
        """Name of its node in a graph: ``dx9:4019``."""
        return f"{self.system}:{self.code}"


@dataclass(frozen=True)
class Titles:
    """Descriptions of the concepts of one kind.

    Attributes
    ----------
    texts : tuple of str
        Never empty; a concept without any title is described by its code.
    sources : tuple of str
        Per concept: ``own`` title, that of a ``relative`` (a subdivision or a broader code), of
        its ``category``, or ``none``.
    """

    texts: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the concepts by source."""
        counts = Counter(self.sources)
        return {source: count / len(self.sources) for source, count in sorted(counts.items())}


@dataclass(frozen=True)
class Describer:
    """Looks concepts up in the shipped tables.

    Parameters
    ----------
    maps : CodeMaps
        Titles of ICD codes, names of ATC codes.
    tables : KnowledgeTables
        Titles of ICD categories.
    """

    maps: CodeMaps
    tables: KnowledgeTables

    def concept(self, kind: str, label: str) -> Concept:
        """Take a cohort's spelling apart.

        A label without a version belongs to the version whose table has it, ICD-9 before ICD-10,
        or else to the one whose form it has.

        Raises
        ------
        InputError
            If the kind is none of diagnoses, procedures, drugs.
        """
        if kind == "drugs":
            return Concept("atc", label)
        if kind not in ("diagnoses", "procedures"):
            raise InputError(f"kind '{kind}'; expected diagnoses, procedures or drugs")
        found = _LABEL.fullmatch(label)
        assert found is not None, "the pattern matches any text"
        system, code = found.groups()
        short = "dx" if kind == "diagnoses" else "px"
        if system == "path" or (system is None and "|" in code):
            return Concept("path", code)
        if system is not None:
            return Concept(f"{short}{system.removeprefix('icd')}", code)
        return Concept(f"{short}{self._guess_version(kind, code)}", code)

    def _guess_version(self, kind: str, code: str) -> int:
        system = "diagnosis" if kind == "diagnoses" else "procedure"
        for version in (9, 10):
            if code in self._known[system, version]:
                return version
        form = _ICD9_DIAGNOSIS if kind == "diagnoses" else _ICD9_PROCEDURE
        return 9 if form.fullmatch(code) else 10

    @cached_property
    def _known(self) -> dict[tuple[str, int], frozenset[str]]:
        return {
            (system, version): frozenset(self.maps.icd_codes(system, version))
            for system in ("diagnosis", "procedure")
            for version in (9, 10)
        }

    def titles(self, kind: str, labels: Sequence[str]) -> Titles:
        """Describe the concepts of one kind, in the order given."""
        found = [self.describe(self.concept(kind, label)) for label in labels]
        return Titles(tuple(text for text, _ in found), tuple(source for _, source in found))

    def describe(self, concept: Concept) -> tuple[str, str]:
        """Text and source of one concept; see `Titles`."""
        system, code = concept
        if system == "path":
            return " ".join(code.split("|")), "own"
        if system == "atc":
            return self._drug_class(code)
        kind = "diagnosis" if system.startswith("dx") else "procedure"
        title = self.maps.title(kind, code, int(system[2:]))
        if title:
            text, _, mark = title.partition(" [of ")
            return text, "relative" if mark else "own"
        category = self._category(system, code)
        return (category, "category") if category else (code, "none")

    def _category(self, system: str, code: str) -> str:
        table = {"dx9": self.tables.icd9, "dx10": self.tables.icd10}.get(system, {})
        lengths = range(len(code), 2, -1)
        return next((table[code[:n]].title for n in lengths if code[:n] in table), "")

    def _drug_class(self, code: str) -> tuple[str, str]:
        """Name of an ATC class and of the substances in it."""
        names = self.maps.atc_names
        known = next((code[:n] for n in (7, 5, 4, 3, 1) if code[:n] in names), None)
        if known is None:
            return code, "none"
        own = known == code
        members = dict.fromkeys(names[item] for item in self.members(code) if item != code)
        text = f"{names[known]}: {', '.join(members)}" if members else names[known]
        return text, "own" if own else "relative"

    def members(self, atc: str) -> list[str]:
        """Substances (ATC level 5) of an ATC class, sorted; a substance is its own member."""
        if len(atc) >= _ATC5_LENGTH:
            return [atc]
        inner = self._substances.get(atc[:3], [])
        return [item for item in inner if item.startswith(atc)]

    @cached_property
    def _substances(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for code in sorted(self.maps.atc_names):
            if len(code) == _ATC5_LENGTH:
                found[code[:3]].append(code)
        return dict(found)
