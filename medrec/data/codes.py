"""Code systems: prescriptions to ATC by three routes, ICD versions, titles.

Every route reports how many prescription rows it covers, alone and in the order of use. A route
maps a code to a *set* of ATC level-5 codes; what happens to sets is the caller's choice.

========  =======================================================================================
gsn       Generic Sequence Number → ATC, from a table of 4,770 numbers.
ndc       The one NDC that the same table holds per GSN; other NDCs through their RxNorm concept:
          NDC → RxCUI → ATC codes of the NDCs of that RxCUI whose ATC is known.
name      The drug's name, freed of strengths, salts and forms, against the names of ATC level 5.
========  =======================================================================================
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import polars as pl

from medrec.data.schema import ATC_CHARACTERS
from medrec.data.tables import read_lines, read_table

AtcMap = Mapping[str, frozenset[str]]
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
_BRACKETS = re.compile(r"\([^)]*\)|\[[^\]]*\]|\*[^*]*\*")
_STRENGTH = re.compile(
    r"\b\d[\d.,/%-]*\s*(mg|mcg|g|gm|ml|l|meq|mmol|units?|unt|hr|h|mg/ml|percent)?\b|%"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FORM_WORDS = _words(
    """
tablet tablets tab tabs capsule capsules cap caps inj injection iv im po oral solution soln
susp suspension liquid syrup elixir drops drop ophth ophthalmic oph otic nasal spray patch cream
ointment oint gel lotion topical powder pwd inhaler mdi neb nebulizer inhalation sr xr er la cr xl
dr ec sa ds nf enteric coated extended sustained delayed release chewable rapidly disintegrating odt
immediate film hfa pf preservative free vial syringe pca flush premix replacement desensitization
graded challenge ivpb drip infusion concentrated pack ih sc pr ng lock for in on the of with human
recombinant
"""
)
_SALT_WORDS = _words(
    """
hydrochloride hcl sodium potassium calcium magnesium sulfate sulphate acetate citrate
tartrate bitartrate phosphate besylate mesylate maleate fumarate succinate gluconate lactate bromide
hydrobromide chloride nitrate dihydrate monohydrate furoate propionate dipropionate valerate
decanoate disodium trihydrate tromethamine hyclate axetil mofetil medoxomil etexilate bisulfate
dimesylate pamoate carbonate palmitate nitroprusside dinitrate mononitrate isethionate
polystyrene
"""
)


def normalise_name(name: str) -> str:
    """Drug name as plain lower-case words: no accents, brackets, strengths or dosage forms.

    >>> normalise_name("Metoprolol Tartrate 25 mg Tab (Lopressor)")
    'metoprolol tartrate'
    """
    text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    text = _BRACKETS.sub(" ", text)
    text = _STRENGTH.sub(" ", text)
    words = re.split(r"[^a-z0-9]+", text)
    return " ".join(word for word in words if word and word not in _FORM_WORDS)


def without_salt(name: str) -> str:
    """Normalised name without salt words; the name itself if nothing would be left."""
    words = [word for word in name.split() if word not in _SALT_WORDS]
    return " ".join(words) or name


def name_candidates(name: str) -> tuple[str, ...]:
    """Spellings under which a drug is looked up, most literal first."""
    plain = normalise_name(name)
    bare = without_salt(plain)
    candidates = [plain, bare]
    # "Insulin" entries and mixtures aside, the substance is the first word of a long label
    first = bare.split(" ", 1)[0]
    if len(first) >= 6:
        candidates.append(first)
    return tuple(dict.fromkeys(item for item in candidates if item))


def normalise_ndc(text: str) -> str | None:
    """NDC as 11 digits, or None for the placeholder 0 and for anything that is no number."""
    digits = text.strip().replace("-", "")
    if not digits.isdigit() or int(digits) == 0 or len(digits) > 11:
        return None
    return digits.zfill(11)


def normalise_gsn(text: str) -> tuple[str, ...]:
    """GSNs as six digits each; one field may list several, parted by blanks."""
    parts = (part for part in re.split(r"[\s,;]+", text.strip()) if part.isdigit())
    return tuple(dict.fromkeys(part.zfill(6) for part in parts if int(part)))


def icd_label(code: str, version: int, prefix: bool) -> str:
    """Code as it stands in a cohort: ``icd9:4019`` with the version, ``4019`` without."""
    return f"icd{version}:{code}" if prefix else code


@dataclass(frozen=True)
class CodeMaps:
    """The shipped code tables.

    Parameters
    ----------
    folder : pathlib.Path
        Holds the `CODE_FILES`.
    """

    folder: Path

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
                if spelling and (" " in spelling or spelling not in _SALT_WORDS):
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
        if route == "gsn":
            return set().union(*(self.by_gsn.get(n, ()) for n in normalise_gsn(gsn or "")))
        if route == "ndc":
            number = normalise_ndc(ndc or "")
            return set(self.by_ndc.get(number, ())) if number else set()
        for spelling in name_candidates(drug or ""):
            if spelling in self.by_name:
                return set(self.by_name[spelling])
        return set()

    # ------------------------------------------------------------------ titles

    @cached_property
    def _titles(self) -> dict[tuple[str, int], dict[str, str]]:
        files = {
            ("diagnosis", 9): "CMS32_DESC_LONG_DX.txt.gz",
            ("procedure", 9): "CMS32_DESC_LONG_SG.txt.gz",
            ("diagnosis", 10): "icd10cm-codes-2024.txt.gz",
            ("procedure", 10): "icd10pcs-codes-2024.txt.gz",
        }
        titles: dict[tuple[str, int], dict[str, str]] = {}
        for key, name in files.items():
            parts = (line.split(None, 1) for line in read_lines(self.folder / name))
            titles[key] = {part[0]: part[1].strip() for part in parts if len(part) == 2}
        return titles

    @cached_property
    def _sorted_codes(self) -> dict[tuple[str, int], list[str]]:
        return {key: sorted(table) for key, table in self._titles.items()}

    def title(self, system: str, code: str, version: int) -> str:
        """Title of an ICD code; "" if the tables know neither it nor a relative.

        A code that was subdivided since has the title of its first subdivision, a code that is
        too deep that of the longest beginning of it that has one; both are marked.
        """
        table = self._titles[system, version]
        if code in table:
            return table[code]
        codes = self._sorted_codes[system, version]
        place = bisect.bisect_left(codes, code)
        if place < len(codes) and codes[place].startswith(code):
            return f"{table[codes[place]]} [of {codes[place]}]"
        for length in range(len(code) - 1, 2, -1):
            if code[:length] in table:
                return f"{table[code[:length]]} [of {code[:length]}]"
        return ""

    def icd_codes(self, system: str, version: int) -> list[str]:
        """All codes of a system, sorted."""
        return self._sorted_codes[system, version]


# --------------------------------------------------------------------------- prescriptions


@dataclass(frozen=True)
class MappedPrescriptions:
    """Prescription rows with their ATC classes.

    Parameters
    ----------
    rows : polars.DataFrame
        ``subject``, ``admission``, ``key``, ``n`` (prescription rows with this key).
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
    policy : {"all", "first"}
        A row with several classes counts for all of them, or for the first in code order.
    level : {3, 4, 5}
        WHO level; codes that are less deep count as unmapped.
    """
    named = ("gsn", "ndc", "drug")
    # a hospital has thousands of distinct drugs and millions of rows: map the former only
    filled = prescriptions.with_columns(pl.col(named).fill_null(""))
    keys = filled.group_by(named).len("n").sort(named).with_row_index("key")
    rows = (
        filled.join(keys.select("key", *named), on=named)
        .group_by("subject", "admission", "key")
        .len("n")
    )
    counts = dict.fromkeys((*routes, "unmapped"), 0)
    alone = dict.fromkeys(routes, 0)
    classes: list[tuple[int, str, str]] = []
    for key, gsn, ndc, drug, n in keys.iter_rows():
        found = {
            route: _at_level(maps.look_up(route, gsn, ndc, drug), level, policy)
            for route in dict.fromkeys(routes)
        }
        for route in found:
            alone[route] += n if found[route] else 0
        decisive = next((route for route in routes if found[route]), "unmapped")
        counts[decisive] += n
        classes += [(key, atc5, atc) for atc5, atc in found.get(decisive, ())]
    return MappedPrescriptions(
        rows=rows,
        classes=pl.DataFrame(
            classes,
            schema={"key": keys.schema["key"], "atc5": pl.String, "atc": pl.String},
            orient="row",
        ),
        coverage=_coverage(counts, alone),
    )


def _at_level(codes: Iterable[str], level: int, policy: str) -> list[tuple[str, str]]:
    length = ATC_CHARACTERS[level]
    pairs = sorted((code, code[:length]) for code in codes if len(code) >= length)
    if policy == "first":
        return pairs[:1]
    return pairs


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
