"""Try a recommender on a patient typed into the page. Nothing of the patient is kept or logged."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pandas as pd

from medrec.runs import Home, Run
from quantum.base import InputError, read_json

if TYPE_CHECKING:
    from medrec.training import LoadedRun

KINDS = ("diagnoses", "procedures", "drugs")
_SYSTEM = {"diagnoses": "diagnosis", "procedures": "procedure"}
MOST_FOUND = 20
MOST_CODES = 2000
_KEPT = 3


class Predictors:
    """Loaded runs, the last used few of them; one is loaded at a time."""

    def __init__(self, home: Home) -> None:
        self._home, self._lock = home, threading.Lock()
        self._loaded: OrderedDict[str, LoadedRun] = OrderedDict()

    def get(self, run: Run) -> LoadedRun:
        """The predictor of a finished training run.

        Raises
        ------
        InputError
            As `medrec.training.load_predictor`.
        """
        with self._lock:
            if run.digest not in self._loaded:
                from medrec.training import load_predictor

                self._loaded[run.digest] = load_predictor(run, self._home)
            self._loaded.move_to_end(run.digest)
            while len(self._loaded) > _KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[run.digest]


class Vocabularies:
    """Codes and titles of the runs that were asked for; needs no model."""

    def __init__(self, home: Home) -> None:
        self._home, self._lock = home, threading.Lock()
        self._tables: dict[str, dict[str, list[tuple[str, str]]]] = {}

    def of(self, run: Run) -> dict[str, list[tuple[str, str]]]:
        """Pairs of code and title per kind, in the order of the codes.

        Raises
        ------
        InputError
            If the run has no vocabulary or its cohort is gone.
        """
        with self._lock:
            if run.digest not in self._tables:
                self._tables[run.digest] = self._read(run)
            return self._tables[run.digest]

    def _read(self, run: Run) -> dict[str, list[tuple[str, str]]]:
        if run.kind != "train" or not run.is_finished:
            raise InputError(f"run {run.name} is no finished training run; expected one")
        codes = read_json(run.folder / "vocabulary.json")
        folder = self._home.by_digest(self._home.cohorts, run.inputs["cohort"])
        table = pd.read_parquet(folder / "codes.parquet")
        drugs = pd.read_parquet(folder / "drugs.parquet")
        titles = {"drugs": _titles(drugs["atc"], drugs["name"])}
        for kind, system in _SYSTEM.items():
            own = table[table["system"] == system]
            titles[kind] = _titles(own["code"], own["title"])
        return {
            kind: [(code, titles[kind].get(code, "")) for code in codes[kind]] for kind in KINDS
        }


def _titles(codes: pd.Series, titles: pd.Series) -> dict[str, str]:
    return {
        str(code): str(title) if isinstance(title, str) else ""
        for code, title in zip(codes, titles, strict=True)
    }


def search_codes(pairs: list[tuple[str, str]], text: str) -> list[dict[str, str]]:
    """Codes that begin with a text (with or without dots and ICD version), then titles with it.

    Parameters
    ----------
    pairs : list of (code, title)
    text : str
        What was typed; every word of it must be in the title.
    """
    plain = text.strip().replace(".", "").casefold()
    words = text.casefold().split()
    ranked = []
    for code, title in pairs:
        own, lower = code.casefold(), title.casefold()
        bare = own.rpartition(":")[2]
        if plain and (own.startswith(plain) or bare.startswith(plain)):
            ranked.append((0, len(own), code, title))
        elif all(word in lower for word in words):
            at_start = bool(words) and lower.startswith(words[0])
            ranked.append((1 if at_start else 2, len(lower), code, title))
    return [{"code": code, "title": title} for _, _, code, title in sorted(ranked)[:MOST_FOUND]]


def describe_codes(
    loaded: LoadedRun, pairs: dict[str, list[tuple[str, str]]], codes: dict[str, list[str]]
) -> dict[str, list[dict[str, Any]]]:
    """What the model makes of codes as a user writes them: its own spelling and title, or unknown.

    Raises
    ------
    InputError
        If there are more than `MOST_CODES`.
    """
    from medrec.recommend import Document, Visit, resolve_codes

    if sum(len(found) for found in codes.values()) > MOST_CODES:
        raise InputError(f"too many codes; expected at most {MOST_CODES}")
    found: dict[str, list[dict[str, Any]]] = {}
    for number, kind in enumerate(KINDS):
        titles = dict(pairs[kind])
        found[kind] = []
        for code in codes.get(kind, []):
            document = Document(visits=(Visit.model_validate({kind: (code,)}),))
            resolved = resolve_codes(document, loaded.vocabularies)[0][number][0]
            match = resolved[0] if resolved else None
            title = titles.get(match, "") if match else ""
            found[kind].append({"code": code, "match": match, "title": title})
    return found
