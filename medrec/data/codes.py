"""Code systems: prescriptions to ATC by four routes, ICD versions, titles.

Every route reports how many prescription rows it covers, alone and in the order of use. A route
maps a code to a *set* of ATC level-5 codes; what happens to sets is the caller's choice.

========  =======================================================================================
gsn       Generic Sequence Number → ATC, from a table of 4,770 numbers.
ndc       The one NDC that the same table holds per GSN; other NDCs through their RxNorm concept:
          NDC → RxCUI → ATC codes of the NDCs of that RxCUI whose ATC is known.
name      The drug's name, freed of strengths, salts and forms, against the names of ATC level 5.
rxcui     NDC → RxCUI → ATC by the user's own maps (`medrec.data.drug_maps`).
========  =======================================================================================
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl

from medrec.data.drug_codes import (
    find_ndc,
    fitting,
    ndc_spelling,
    normalise_ndc,
)
from medrec.data.drug_maps import DrugMaps
from medrec.data.drug_names import (
    SALT_WORDS,
    name_candidates,
    normalise_name,
    without_salt,
)
from medrec.data.rxnorm import RxNorm
from medrec.data.schema import ATC_CHARACTERS
from medrec.data.tables import read_lines, read_table
from quantum.base import InputError

AtcMap = Mapping[str, frozenset[str]]
_TITLE_FILES = {
    ("diagnosis", 9): "CMS32_DESC_LONG_DX.txt.gz",
    ("procedure", 9): "CMS32_DESC_LONG_SG.txt.gz",
    ("diagnosis", 10): "icd10cm-codes-2024.txt.gz",
    ("procedure", 10): "icd10pcs-codes-2024.txt.gz",
}
CODE_FILES = (
    "atc_names.csv.gz",
    "drug_name_synonyms.csv",
    "gsn_atc_ndc_mapping.csv.gz",
    "ndc11_to_rxcui.csv.gz",
    "CMS32_DESC_LONG_DX.txt.gz",
    "CMS32_DESC_LONG_SG.txt.gz",
    "icd10cm-codes-2024.txt.gz",
    "icd10pcs-codes-2024.txt.gz",
)

_ATC5 = re.compile(r"[A-Z]\d\d[A-Z][A-Z]\d\d")


def normalise_gsn(text: str) -> tuple[str, ...]:
    """GSNs as six digits each; one field may list several, parted by blanks."""
    parts = (part for part in re.split(r"[\s,;]+", text.strip()) if part.isdigit())
    return tuple(dict.fromkeys(part.zfill(6) for part in parts if int(part)))


def icd_label(code: str, version: int, prefix: bool) -> str:
    """Code as it stands in a cohort: ``icd9:4019`` with the version, ``4019`` without.

    Version 0 marks the path of a treatment, which is no ICD code: ``path:renal|dialysis``.
    """
    system = f"icd{version}" if version else "path"
    return f"{system}:{code}" if prefix else code


@dataclass(frozen=True)
class CodeMaps:
    """The shipped code tables.

    Parameters
    ----------
    folder : pathlib.Path
        Holds the `CODE_FILES`.
    user : DrugMaps or RxNorm, optional
        The user's maps, for the route ``rxcui``.
    """

    folder: Path
    user: DrugMaps | RxNorm | None = None

    @cached_property
    def atc_names(self) -> dict[str, str]:
        """ATC code of any level to its name; the first name where the table has several."""
        table = read_table(self.folder / "atc_names.csv.gz", ("atc_code", "atc_name"))
        pairs = table.iter_rows()
        names: dict[str, str] = {}
        for code, name in pairs:
            names.setdefault(code, name)
        return names

    @cached_property
    def by_name(self) -> AtcMap:
        """Normalised substance name to its ATC level-5 codes."""
        table = read_table(self.folder / "atc_names.csv.gz", ("atc_code", "atc_name"))
        found: dict[str, set[str]] = {}
        for code, name in table.iter_rows():
            if not _ATC5.fullmatch(code):
                continue
            for spelling in {normalise_name(name), without_salt(normalise_name(name))}:
                # "sodium", "calcium": what is left of a mixture after its salt words is no name
                if spelling and (" " in spelling or spelling not in SALT_WORDS):
                    found.setdefault(spelling, set()).add(code)
        synonyms = read_table(self.folder / "drug_name_synonyms.csv", ("name", "atc"))
        for name, codes in synonyms.iter_rows():
            found[normalise_name(name)] = set(codes.split("|"))
        return {name: frozenset(codes) for name, codes in found.items()}

    @cached_property
    def _formulary(self) -> pl.DataFrame:
        return read_table(self.folder / "gsn_atc_ndc_mapping.csv.gz", ("gsn", "atc", "ndc"))

    @cached_property
    def by_gsn(self) -> AtcMap:
        """Six-digit GSN to ATC codes (level 5, or less deep where the table has no more)."""
        found: dict[str, set[str]] = {}
        for gsn, atc, _ in self._formulary.iter_rows():
            for number in normalise_gsn(gsn):
                found.setdefault(number, set()).add(atc)
        return {gsn: frozenset(codes) for gsn, codes in found.items()}

    @cached_property
    def ndc_to_rxcui(self) -> dict[str, str]:
        """NDC of 11 digits to RxNorm concept."""
        table = read_table(self.folder / "ndc11_to_rxcui.csv.gz", ("ndc11", "rxcui"))
        return {ndc: rxcui for ndc, rxcui in table.iter_rows() if ndc and rxcui}

    @cached_property
    def by_ndc(self) -> AtcMap:
        """NDC of 11 digits to ATC codes, directly or through the RxNorm concept."""
        found: dict[str, set[str]] = {}
        for _, atc, text in self._formulary.iter_rows():
            ndc = normalise_ndc(text or "")
            if ndc:
                found.setdefault(ndc, set()).add(atc)
        of_concept: dict[str, set[str]] = {}
        for ndc, rxcui in self.ndc_to_rxcui.items():
            of_concept.setdefault(rxcui, set()).update(found.get(ndc, ()))
        for ndc, rxcui in self.ndc_to_rxcui.items():
            if ndc not in found and of_concept[rxcui]:
                found[ndc] = of_concept[rxcui]
        return {ndc: frozenset(codes) for ndc, codes in found.items()}

    def look_up(self, route: str, gsn: str | None, ndc: str | None, drug: str | None) -> set[str]:
        """ATC codes of one prescription by one route; empty if the route does not know it."""
        return set(self.in_order(route, gsn, ndc, drug))

    def in_order(
        self, route: str, gsn: str | None, ndc: str | None, drug: str | None
    ) -> tuple[str, ...]:
        """Codes of `look_up`, in code order; by ``rxcui`` in the order of the user's file."""
        if route == "rxcui":
            return find_ndc(ndc or "", self.ndc_map(route)) or ()
        found: set[str] = set()
        if route == "gsn":
            found = found.union(*(self.by_gsn.get(n, ()) for n in normalise_gsn(gsn or "")))
        elif route == "ndc":
            found = set(find_ndc(ndc or "", self.by_ndc) or ())
        else:
            spellings = (item for item in name_candidates(drug or "") if item in self.by_name)
            found = set(self.by_name.get(next(spellings, ""), ()))
        return tuple(sorted(found))

    def ndc_map(self, route: str) -> Mapping[str, tuple[str, ...]]:
        """NDC of 11 digits to ATC codes as a route uses it; empty for routes without NDC.

        Raises
        ------
        InputError
            If the route is ``rxcui`` and there are no maps of the user.
        """
        if route == "rxcui":
            if self.user is None:
                raise InputError(
                    "drug_routes has 'rxcui' without maps; expected drug_maps.rxcui_to_atc, the "
                    "path of a CSV with RXCUI and ATC4, or drug_maps.rxnorm"
                )
            return self.user.by_ndc
        if route == "ndc":
            return {ndc: tuple(sorted(codes)) for ndc, codes in self.by_ndc.items()}
        return {}

    # ------------------------------------------------------------------ titles

    @cached_property
    def _title_tables(self) -> dict[tuple[str, int], tuple[dict[str, str], list[str]]]:
        return {}

    def _titles(self, system: str, version: int) -> tuple[dict[str, str], list[str]]:
        """Code to title, and the codes sorted; a table is read when it is first asked for."""
        tables = self._title_tables
        if (system, version) not in tables:
            lines = read_lines(self.folder / _TITLE_FILES[system, version])
            parts = (line.split(None, 1) for line in lines)
            titles = {part[0]: part[1].strip() for part in parts if len(part) == 2}
            tables[system, version] = titles, sorted(titles)
        return tables[system, version]

    def title(self, system: str, code: str, version: int) -> str:
        """Title of an ICD code; "" if the tables know neither it nor a relative.

        A code that was subdivided since has the title of its first subdivision, a code that is
        too deep that of the longest beginning of it that has one; both are marked.
        """
        if version == 0:
            return code.rsplit("|", 1)[-1]
        table, codes = self._titles(system, version)
        if code in table:
            return table[code]
        place = bisect.bisect_left(codes, code)
        if place < len(codes) and codes[place].startswith(code):
            return f"{table[codes[place]]} [of {codes[place]}]"
        for length in range(len(code) - 1, 2, -1):
            if code[:length] in table:
                return f"{table[code[:length]]} [of {code[:length]}]"
        return ""

    def icd_codes(self, system: str, version: int) -> list[str]:
        """All codes of a system, sorted."""
        return self._titles(system, version)[1]


# --------------------------------------------------------------------------- prescriptions


@dataclass(frozen=True)
class MappedPrescriptions:
    """Prescription rows with their ATC classes.

    Parameters
    ----------
    rows : polars.DataFrame
        ``subject``, ``admission``, ``key`` (rows with the same ATC codes have the same), ``n``
        (prescription rows with this key).
    classes : polars.DataFrame
        ``key``, ``atc5`` (as deep as known), ``atc`` (cut to the level); only mapped keys.
    coverage : pandas.DataFrame
        ``route``, ``rows``, ``share`` (in the order of use) and ``rows_alone``, ``share_alone``;
        the last line, ``unmapped``, is what no route knows.
    """

    rows: pl.DataFrame
    classes: pl.DataFrame
    coverage: pd.DataFrame


def map_prescriptions(
    prescriptions: pl.DataFrame, maps: CodeMaps, routes: Sequence[str], policy: str, level: int
) -> MappedPrescriptions:
    """Prescription rows to ATC classes of one level.

    Parameters
    ----------
    routes : sequence of str
        Tried in order; the first that knows the row decides.
    policy : {"all", "first", "systemic_first"}
        A row with several classes counts for all of them; for the first in code order (by
        ``rxcui``: in the order of the user's file); or for those whose place in the body is that
        of the row's ``route``, all if none is or the table has no routes.
    level : {3, 4, 5}
        WHO level; codes that are less deep count as unmapped.
    """
    named = ["gsn", "ndc", "drug"]
    if policy == "systemic_first" and "route" in prescriptions.columns:
        named.append("route")
    # a hospital has thousands of distinct drugs and millions of rows: map the former only
    coded = prescriptions.select(
        "subject", "admission", *(pl.col(name).cast(pl.Categorical) for name in named)
    )
    keys = coded.group_by(named).len("n").sort(pl.col(named).cast(pl.String))
    counts = dict.fromkeys((*routes, "unmapped"), 0)
    alone = dict.fromkeys(routes, 0)
    look_up = cache(maps.in_order)
    key_of: dict[tuple[tuple[str, str], ...], int] = {}
    key_column: list[int] = []
    for *fields, n in keys.iter_rows():
        gsn, ndc, drug, *place = fields
        # the fields that a route reads, so that a name of many products is looked up once
        read = {"gsn": (gsn, None, None), "name": (None, None, drug)}
        found = {
            route: _at_level(
                look_up(route, *read.get(route, (None, ndc, None))),
                level,
                policy,
                place[0] if place else None,
            )
            for route in dict.fromkeys(routes)
        }
        for route in found:
            alone[route] += n if found[route] else 0
        decisive = next((route for route in routes if found[route]), "unmapped")
        counts[decisive] += n
        codes = tuple(found.get(decisive, ()))
        key_column.append(key_of.setdefault(codes, len(key_of)))
    numbered = keys.select(named).with_columns(pl.Series("key", key_column, dtype=pl.UInt32))
    rows = coded.join(numbered, on=named, nulls_equal=True)
    return MappedPrescriptions(
        rows=rows.group_by("subject", "admission", "key").agg(n=pl.len().cast(pl.Int64)),
        classes=pl.DataFrame(
            [(key, *pair) for pairs, key in key_of.items() for pair in pairs],
            schema={"key": pl.UInt32, "atc5": pl.String, "atc": pl.String},
            orient="row",
        ),
        coverage=_coverage(counts, alone),
    )


def _at_level(
    codes: Iterable[str], level: int, policy: str, place: str | None
) -> list[tuple[str, str]]:
    length = ATC_CHARACTERS[level]
    deep = [code for code in codes if len(code) >= length]
    if policy == "systemic_first" and place:
        deep = fitting(deep, place)
    pairs = [(code, code[:length]) for code in deep]
    return pairs[:1] if policy == "first" else pairs


def ndc_problems(
    prescriptions: pl.DataFrame, maps: CodeMaps, routes: Sequence[str]
) -> list[dict[str, Any]]:
    """Prescription rows by unusual spelling of their NDC; none if no route uses the NDC.

    Returns
    -------
    list of dict
        ``table``, ``problem``, ``rows``, ``done``, as in `medrec.data.checks.Problems`.
    """
    route = next((item for item in routes if item in ("ndc", "rxcui")), None)
    if route is None:
        return []
    known = maps.ndc_map(route)
    counts: dict[tuple[str, str], int] = {}
    for ndc, n in prescriptions.group_by("ndc").len().iter_rows():
        spelling = ndc_spelling(ndc or "", known)
        if spelling:
            counts[spelling] = counts.get(spelling, 0) + n
    return [
        {"table": "prescriptions", "problem": problem, "rows": rows, "done": done}
        for (problem, done), rows in sorted(counts.items())
    ]


def _coverage(counts: Mapping[str, int], alone: Mapping[str, int]) -> pd.DataFrame:
    total = max(1, sum(counts.values()))
    return pd.DataFrame(
        [
            {
                "route": route,
                "rows": rows,
                "share": rows / total,
                "rows_alone": alone.get(route, rows),
                "share_alone": alone.get(route, rows) / total,
            }
            for route, rows in counts.items()
        ]
    )
