"""Molecules of a home folder for the page: those of its cohorts and of its feature tables."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from medrec.runs import Home
from medrec.view.replies import NotThereError, folders
from quantum.base import InputError, MedrecError
from quantum.molecule import Species, species_from_smiles

MOST_FOUND = 60


@dataclass
class Entry:
    """One species and where it occurs.

    Attributes
    ----------
    names : dict of str to str
        Substances with this structure: name to ATC code of level 5.
    structures : list of tuple of str
        ATC class and SMILES as the cohorts write them.
    classes : dict of str to list of str
        Per cohort the ATC classes that hold it.
    tables : dict of str to int
        Per feature table its row.
    """

    smiles: str
    species: Species | None = None
    names: dict[str, str] = field(default_factory=dict)
    structures: list[tuple[str, str]] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    n_atoms: int = 0
    has_elf: bool = False
    has_map: bool = False
    has_conformer: bool = False

    @property
    def title(self) -> str:
        """Shortest name (that of the substance without a salt), or the structure."""
        names = sorted(self.names, key=lambda name: (len(name), name))
        return names[0].capitalize() if names else self.smiles

    def codes(self) -> list[str]:
        """ATC codes of its classes in any cohort, without repetition."""
        return sorted({code for found in self.classes.values() for code in found})


@dataclass(frozen=True)
class MoleculeIndex:
    """Species by key, class names per ATC code, and structures that could not be used."""

    entries: dict[str, Entry]
    class_names: dict[str, str]
    dropped: list[dict[str, str]]

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {
            key: " ".join(
                [*entry.names, *(self.class_names.get(c, "") for c in entry.codes())]
            ).casefold()
            for key, entry in self.entries.items()
        }

    def search(self, text: str, only: str = "") -> dict[str, Any]:
        """Species whose name, class, ATC code or structure fits; all for an empty text.

        Parameters
        ----------
        only : str
            ``elf`` for those with ELF features, ``map`` for those with a stored map.
        """
        keys = self._matches(text.strip())
        if only:
            flag = {"elf": "has_elf", "map": "has_map"}.get(only, "has_conformer")
            keys = [key for key in keys if getattr(self.entries[key], flag)]
        shown = [self._row(key) for key in keys[:MOST_FOUND]]
        return {"n": len(keys), "of": len(self.entries), "rows": shown}

    def _matches(self, text: str) -> list[str]:
        ordered = sorted(self.entries, key=lambda key: self._rank(key, text))
        if not text:
            return ordered
        words = text.casefold().split()
        found = [key for key in ordered if self._fits(key, text, words)]
        return found or self._by_structure(text)

    def _rank(self, key: str, text: str) -> tuple[bool, bool, bool, str]:
        entry, start = self.entries[key], text.casefold()
        first = any(name.casefold().startswith(start) for name in entry.names)
        return not (start and first), not entry.has_map, not entry.names, entry.title

    def _fits(self, key: str, text: str, words: list[str]) -> bool:
        entry = self.entries[key]
        codes = [*entry.names.values(), *entry.codes()]
        if text in (key, entry.smiles) or any(code.startswith(text.upper()) for code in codes):
            return True
        return all(word in self._texts[key] for word in words)

    def _by_structure(self, text: str) -> list[str]:
        """The species of a SMILES, and those that contain it."""
        from rdkit import Chem
        from rdkit.rdBase import BlockLogs

        with BlockLogs():
            pattern = Chem.MolFromSmiles(text)
            if pattern is None or pattern.GetNumAtoms() == 0:
                return []
            try:
                own = species_from_smiles(text).key
            except InputError:
                own = ""
            keys = [
                key
                for key in sorted(self.entries, key=lambda item: self.entries[item].n_atoms)
                if key == own  # a salt's species lacks the ion that is in the pattern
                or (
                    (mol := Chem.MolFromSmiles(self.entries[key].smiles)) is not None
                    and mol.HasSubstructMatch(pattern)
                )
            ]
        return sorted(keys, key=lambda key: key != own)

    def _row(self, key: str) -> dict[str, Any]:
        entry = self.entries[key]
        codes = entry.codes()
        return {
            "key": key,
            "title": entry.title,
            "smiles": entry.smiles,
            "classes": [{"atc": c, "name": self.class_names.get(c, "")} for c in codes],
            "n_atoms": entry.n_atoms,
            "has_conformer": entry.has_conformer,
            "has_elf": entry.has_elf,
            "has_map": entry.has_map,
        }

    def entry(self, key: str) -> Entry:
        """One species.

        Raises
        ------
        NotThereError
            If no cohort and no feature table has it.
        """
        if key not in self.entries:
            raise NotThereError("no molecule of that key in the cohorts and feature tables")
        return self.entries[key]


class Molecules:
    """The index of a home folder, made on first use and again when a folder was added."""

    def __init__(self, home: Home) -> None:
        self._home, self._lock = home, threading.Lock()
        self._made: tuple[tuple[str, ...], MoleculeIndex] | None = None

    def index(self) -> MoleculeIndex:
        """The index of what is there now."""
        cohorts, tables = folders(self._home.cohorts), folders(self._home.features)
        state = tuple(path.name for path in (*cohorts, *tables))
        with self._lock:
            if self._made is None or self._made[0] != state:
                self._made = (state, _build(cohorts, tables))
            return self._made[1]


def _build(cohorts: list[Path], tables: list[Path]) -> MoleculeIndex:
    entries: dict[str, Entry] = {}
    class_names: dict[str, str] = {}
    dropped: list[dict[str, str]] = []
    substances = _substances()
    keys: dict[str, str] = {}
    for folder in cohorts:
        for atc, name in _pairs(folder / "drugs.parquet", "atc", "name"):
            class_names.setdefault(atc, name)
        for atc, smiles in _pairs(folder / "molecules.parquet", "atc", "smiles"):
            try:
                key = _add(entries, keys, smiles, substances)
            except InputError as error:
                note = {"cohort": folder.name, "atc": atc, "smiles": smiles, "reason": str(error)}
                dropped.append(note)
                continue
            of_cohort = entries[key].classes.setdefault(folder.name, [])
            if atc not in of_cohort:
                of_cohort.append(atc)
            if (atc, smiles) not in entries[key].structures:
                entries[key].structures.append((atc, smiles))
    for folder in tables:
        _add_table(entries, folder)
    return MoleculeIndex(entries, class_names, dropped)


def _pairs(file: Path, first: str, second: str) -> list[tuple[str, str]]:
    """Two columns of a table as text; none where the file cannot be read."""
    try:
        table = pd.read_parquet(file, columns=[first, second])
    except (OSError, ValueError, KeyError):
        return []
    return [(str(a), str(b)) for a, b in zip(table[first], table[second], strict=True)]


def _substances() -> dict[str, dict[str, str]]:
    """Names and ATC codes of the shipped substances, by structure as it is written there."""
    from medrec.data.codes import CodeMaps
    from medrec.data.molecule_table import read_substances
    from medrec.data.schema import data_root

    found: dict[str, dict[str, str]] = {}
    try:
        table = read_substances(data_root() / "molecules")
        atc_names = CodeMaps(data_root() / "codes").atc_names
    except MedrecError:
        return found
    for atc, name, smiles in table.select("atc5", "name", "smiles").iter_rows():
        names = found.setdefault(str(smiles), {})
        for spelling in (name, atc_names.get(atc, name)):
            names.setdefault(str(spelling).casefold(), str(atc))
    return found


def _add(
    entries: dict[str, Entry],
    keys: dict[str, str],
    smiles: str,
    substances: dict[str, dict[str, str]],
) -> str:
    """Key of the species of a structure, entered if it is new."""
    if smiles not in keys:
        species = species_from_smiles(smiles)
        keys[smiles] = species.key
        entry = entries.setdefault(species.key, Entry(species.smiles, species))
        entry.n_atoms = species.n_atoms
        for name, atc in substances.get(smiles, {}).items():
            entry.names.setdefault(name, atc)
    return keys[smiles]


def _add_table(entries: dict[str, Entry], folder: Path) -> None:
    columns = ["species_key", "smiles", "n_atoms", "has_conformer", "has_elf", "elf_key"]
    try:
        table = pd.read_parquet(folder / "species.parquet", columns=columns)
    except (OSError, ValueError, KeyError):
        return
    for row, item in enumerate(table.to_dict("records")):
        entry = entries.setdefault(str(item["species_key"]), Entry(str(item["smiles"])))
        entry.tables[folder.name] = row
        entry.n_atoms = int(item["n_atoms"])
        entry.has_conformer |= bool(item["has_conformer"])
        entry.has_elf |= bool(item["has_elf"])
        entry.has_map |= isinstance(item["elf_key"], str)


# --------------------------------------------------------------------------- interactions


def interactions(home: Home, entry: Entry, class_names: dict[str, str]) -> list[dict[str, Any]]:
    """Interactions of the classes that hold a molecule, worst first, per cohort."""
    from medrec.data.ddi import SEVERITY_NAMES

    rows = []
    for cohort, codes in entry.classes.items():
        table = pd.read_parquet(home.cohorts / cohort / "ddi.parquet")
        for a, b, grade in zip(table["atc_a"], table["atc_b"], table["severity"], strict=True):
            for own, other in ((a, b), (b, a)):
                if own in codes and other not in codes:
                    rows.append(
                        {
                            "cohort": cohort,
                            "atc": str(own),
                            "other": str(other),
                            "name": class_names.get(str(other), ""),
                            "severity": int(grade),
                            "severity_name": SEVERITY_NAMES[int(grade)],
                        }
                    )
    return sorted(rows, key=lambda row: (-row["severity"], row["cohort"], row["atc"], row["other"]))
