"""Build the tables of ``data/knowledge`` from the files of their publishers.

Each table holds the rows of its source, with the columns that are read and one spelling of codes
(upper case, no dot). Where the sources come from is written in ``data/knowledge/NOTICE.md``::

    python tools/build_knowledge.py FOLDER_WITH_THE_SOURCES

The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medrec.data.schema import data_root
from medrec.data.tables import read_lines
from quantum.base import InputError, MedrecError, write_bytes_atomic

Rows = Iterable[tuple[str, ...]]
_CCS_HEADING = re.compile(r"(\d+)\s+(\S.*)")
_KEPT_XREFS = ("ICD9", "ICD10", "UMLS")


def undotted(code: str) -> str:
    """Code in the spelling of the tables."""
    return code.replace(".", "").strip().upper()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"source not found: {folder / name}[.gz]; see data/knowledge/NOTICE.md")


def _records(path: Path, delimiter: str = ",", quote: str = '"') -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as handle:
        yield from csv.DictReader(handle, delimiter=delimiter, quotechar=quote)


def _tree(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rt") as handle:
        tree: dict[str, Any] = json.load(handle)["tree"]
    return tree


def icd9_categories(folder: Path) -> Rows:
    """Category of ICD-9-CM diagnoses (three characters, four with E), title, block, chapter.

    Two chapters have no blocks: there the second level holds the categories.
    """
    for chapter in _tree(_find(folder, "icd-9-hierarchy.json"))["children"]:
        for block in chapter["children"]:
            items = [(_icd9_category(item), item) for item in block["children"]]
            codes = {code for code, _ in items}
            if len(codes) == 1 and len(items) > 1:
                yield codes.pop(), block["id"], "", chapter["id"]
                continue
            for code, item in items:
                yield code, item.get("description", item["id"]), block["id"], chapter["id"]


def _icd9_category(item: dict[str, Any]) -> str:
    children = item.get("children", [])
    code = children[0]["id"] if children else item["id"]
    return undotted(code)[: 4 if code.startswith("E") else 3]


def icd10_categories(folder: Path) -> Rows:
    """ICD-10-CM codes that have subdivisions, and all of three characters, with their place."""
    for chapter in _tree(_find(folder, "icd-10-cm-2025-hierarchy.json"))["children"]:
        for block in chapter["children"]:
            for item in block.get("children", []):
                yield undotted(item["id"]), item["description"], block["id"], chapter["id"]
                for inner in _inner(item):
                    yield undotted(inner["id"]), inner["description"], "", ""


def _inner(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for child in item.get("children", []):
        if child.get("children"):
            yield child
            yield from _inner(child)


def ccs_diagnoses(folder: Path) -> Rows:
    """ICD-9-CM diagnosis, number and name of its CCS group."""
    group = name = ""
    for line in read_lines(_find(folder, "CCS-SingleDiagnosisGrouper.txt")):
        heading = _CCS_HEADING.fullmatch(line.rstrip())
        if heading:
            group, name = heading.groups()
        elif group and line.startswith(" "):
            yield from ((code, group, name) for code in line.split())


def _ccs_procedures(folder: Path) -> Iterator[dict[str, str]]:
    rows = _records(_find(folder, "ccs_pr_icd10pcs_2019_1.csv"))
    for row in rows:
        yield {key.strip("'"): value.strip("'") for key, value in row.items()}


def ccs_procedures(folder: Path) -> Rows:
    """ICD-10-PCS code and number of its CCS group."""
    return ((row["ICD-10-PCS CODE"], row["CCS CATEGORY"]) for row in _ccs_procedures(folder))


def ccs_procedure_groups(folder: Path) -> Rows:
    """Number, name and chapter of the CCS groups of procedures."""
    columns = ("CCS CATEGORY", "CCS CATEGORY DESCRIPTION", "MULTI CCS LVL 1 LABEL")
    return {tuple(row[name] for name in columns) for row in _ccs_procedures(folder)}


def crosswalk_diagnoses(folder: Path) -> Rows:
    """ICD-9-CM, ICD-10-CM and whether either direction of the GEM calls the pair exact."""
    exact: dict[tuple[str, str], bool] = {}
    for name in ("icd9toicd10cmgem.csv", "icd10cmtoicd9gem.csv"):
        for row in _records(_find(folder, name)):
            if row["no_map"] == "0":
                pair = undotted(row["icd9cm"]), undotted(row["icd10cm"])
                exact[pair] = exact.get(pair, False) or row["approximate"] == "0"
    return ((*pair, str(int(same))) for pair, same in exact.items())


def crosswalk_procedures(folder: Path) -> Rows:
    """ICD-9-CM procedure and ICD-10-PCS."""
    rows = _records(_find(folder, "icd_pcs_9_to_10_mapping.csv"))
    return {(row["icd_9"], row["icd_10"]) for row in rows}


def disease_terms(folder: Path) -> Rows:
    """Disease Ontology: term, name, parents; obsolete terms left out."""
    text = "\n".join(read_lines(_find(folder, "HumanDO.obo")))
    for stanza in text.split("\n\n"):
        if stanza.startswith("[Term]") and "is_obsolete: true" not in stanza:
            fields = [line.split(": ", 1) for line in stanza.splitlines() if ": " in line]
            parents = [value.split(" ! ")[0].strip() for key, value in fields if key == "is_a"]
            single = dict(reversed(fields))
            yield single["id"], single["name"].strip(), "|".join(parents)


def disease_references(folder: Path) -> Rows:
    """Disease Ontology term, other system (ICD9, ICD10, UMLS), code there as published."""
    rows = _records(_find(folder, "disease_ontology_xrefs.tsv"), "\t")
    columns = ("doid_code", "resource", "resource_id")
    return {
        tuple(row[name].strip() for name in columns)
        for row in rows
        if row["resource"] in _KEPT_XREFS
    }


def indications(folder: Path) -> Rows:
    """PharmacotherapyDB: drug, disease and category, NOT included; the reader leaves it out."""
    rows = _records(_find(folder, "pharmacotherapydb_indications.tsv"), "\t")
    return (tuple(row[name] for name in _TABLES["indications"][0]) for row in rows)


def label_indications(folder: Path) -> Rows:
    """LabeledIn: ingredient, UMLS concept and name of the disease."""
    rows = _records(_find(folder, "labeledin_indications.tsv"), "\t")
    columns = ("rxnorm_id", "rxnorm_name", "disease_cui", "disease_mesh_name")
    return (tuple(row[name] for name in columns) for row in rows)


_TABLES: dict[str, tuple[tuple[str, ...], Any]] = {
    "icd9_categories": (("category", "title", "block", "chapter"), icd9_categories),
    "icd10_categories": (("code", "title", "block", "chapter"), icd10_categories),
    "ccs_diagnoses": (("code", "ccs", "name"), ccs_diagnoses),
    "ccs_procedures": (("code", "ccs"), ccs_procedures),
    "ccs_procedure_groups": (("ccs", "name", "chapter"), ccs_procedure_groups),
    "crosswalk_diagnoses": (("icd9", "icd10", "exact"), crosswalk_diagnoses),
    "crosswalk_procedures": (("icd9", "icd10"), crosswalk_procedures),
    "disease_terms": (("doid", "name", "parents"), disease_terms),
    "disease_references": (("doid", "system", "code"), disease_references),
    "indications": (("doid_id", "drugbank_id", "disease", "drug", "category"), indications),
    "label_indications": (("rxcui", "drug", "disease_cui", "disease"), label_indications),
}


def packed(columns: tuple[str, ...], rows: Rows) -> bytes:
    """Sorted rows as gzip CSV; no time and no file name in the heading."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(sorted(set(rows)))
    return gzip.compress(text.getvalue().encode("utf-8"), compresslevel=9, mtime=0)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("sources", type=Path)
    parser.add_argument("--out", type=Path, default=data_root() / "knowledge")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        for name, (columns, build) in _TABLES.items():
            content = packed(columns, build(options.sources))
            write_bytes_atomic(options.out / f"{name}.csv.gz", content)
            print(f"{name}.csv.gz {len(content)} bytes")
    except MedrecError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
