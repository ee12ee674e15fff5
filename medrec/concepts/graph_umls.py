"""Knowledge graph from the UMLS: the source that SCQMed names, for those who hold its licence.

Reads the two files of the Metathesaurus in Rich Release Format, MRCONSO.RRF and MRREL.RRF, block
by block: memory holds what is kept, not the files. Codes become concepts (CUI) by MRCONSO; the
graph is what MRREL says among all concepts within some hops of the cohort's.

Direction: a row of MRREL says what its *second* concept is to its first. ``C1|..|CHD|C2|..|isa`` is
"C2 is a child of C1", so the edge is C2 → isa → C1. RELA names the relation, REL where it is empty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from medrec.concepts.graph import GraphBuilder, KnowledgeGraph
from medrec.concepts.titles import Concept, Describer
from quantum.base import DataError, InputError

# fmt: off
CONSO_COLUMNS = (
    "CUI", "LAT", "TS", "LUI", "STT", "SUI", "ISPREF", "AUI", "SAUI", "SCUI", "SDUI", "SAB", "TTY",
    "CODE", "STR", "SRL", "SUPPRESS", "CVF",
)
REL_COLUMNS = (
    "CUI1", "AUI1", "STYPE1", "REL", "CUI2", "AUI2", "STYPE2", "RELA", "RUI", "SRUI", "SAB", "SL",
    "RG", "DIR", "SUPPRESS", "CVF",
)
# fmt: on
SOURCES = {"dx9": "ICD9CM", "px9": "ICD9CM", "dx10": "ICD10CM", "px10": "ICD10PCS", "atc": "ATC"}
"""UMLS source (SAB) of each code system; RXNORM names substances that ATC lacks."""

_HIDDEN = ("O", "E", "Y")  # obsolete, or suppressed by an editor or the source
_SIBLING = "SIB"  # follows from the parents, and squares the number of edges


def build_umls_graph(
    concepts: Mapping[str, Sequence[str]],
    describer: Describer,
    folder: Path,
    hops: int,
    max_nodes: int,
) -> tuple[KnowledgeGraph, dict[str, int]]:
    """Sub-graph of the UMLS around the concepts of a cohort.

    Parameters
    ----------
    folder : pathlib.Path
        Holds MRCONSO.RRF and MRREL.RRF.
    hops : int
        How far from the cohort's concepts, in edges.
    max_nodes : int
        Each hop adds its best linked concepts until there are so many; ties in CUI order.

    Returns
    -------
    graph : KnowledgeGraph
    facts : dict
        Concepts that MRCONSO has by their own code, by a broader code, and not at all.

    Raises
    ------
    InputError
        If a file is missing.
    DataError
        If a file has another number of columns, or a row cannot be read.
    """
    conso = _scan(folder / "MRCONSO.RRF", CONSO_COLUMNS)
    relations = _scan(folder / "MRREL.RRF", REL_COLUMNS).filter(
        ~pl.col("SUPPRESS").is_in(_HIDDEN)
        & (pl.col("REL") != _SIBLING)
        & (pl.col("CUI1") != pl.col("CUI2"))
    )
    parsed = {
        kind: [describer.concept(kind, label) for label in labels]
        for kind, labels in concepts.items()
    }
    codes = _read_codes(conso, folder)
    names = _substance_names(conso, describer, parsed.get("drugs", []), folder)
    found = {kind: [_cui(item, codes, names) for item in items] for kind, items in parsed.items()}
    seeds = sorted({cui for items in found.values() for cui, _ in items if cui})
    kept = _grow(relations, seeds, hops, max_nodes, folder)
    builder = GraphBuilder()
    for cui, label in _labels(conso, kept, folder).items():
        builder.add_node(f"cui:{cui}", label)
    for head, relation, tail in _edges(relations, kept, folder):
        builder.add_edge(f"cui:{head}", relation, f"cui:{tail}")
    how = [route for items in found.values() for _, route in items]
    graph = builder.build(
        {kind: [f"cui:{cui}" for cui, _ in items] for kind, items in found.items()}
    )
    return graph, {f"concepts_{route}": how.count(route) for route in ("own", "broader", "unknown")}


# --------------------------------------------------------------------------- files


def _scan(path: Path, columns: Sequence[str]) -> pl.LazyFrame:
    """Lazy table of an RRF file: pipes, no heading, no quoting, a pipe at the end of each row."""
    if not path.is_file():
        raise InputError(
            f"UMLS file not found: {path}; expected MRCONSO.RRF and MRREL.RRF of a UMLS "
            "Metathesaurus release, unpacked, in the folder graph.umls"
        )
    _check_fields(path, columns)
    names = [*columns, "_end"]
    return pl.scan_csv(
        path,
        separator="|",
        has_header=False,
        quote_char=None,
        schema=dict.fromkeys(names, pl.String()),
    ).with_columns(pl.col(names).fill_null(""))


def _check_fields(path: Path, columns: Sequence[str]) -> None:
    """Refuse a file with rows of another number of fields; the parser would fill or cut them."""
    whole = pl.scan_csv(
        path,
        separator="\x01",
        has_header=False,
        quote_char=None,
        schema={"row": pl.String()},
        raise_if_empty=False,
    )
    fields = pl.col("row").fill_null("").str.count_matches("|", literal=True)
    counts = _collect(
        whole.select(rows=pl.len(), wrong=(fields != len(columns)).sum()), path.parent
    )
    rows, wrong = counts.row(0)
    if wrong or not rows:
        raise DataError(
            f"{path}: {wrong} of {rows} rows do not have {len(columns)} fields that end in a pipe; "
            f"expected {' '.join(columns)}"
        )


def _collect(frame: pl.LazyFrame, folder: Path) -> pl.DataFrame:
    try:
        return frame.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:  # its text quotes rows
        raise DataError(
            f"{folder}: a row of MRCONSO.RRF or MRREL.RRF cannot be read "
            f"({type(error).__name__}); expected UTF-8, {len(CONSO_COLUMNS)} and "
            f"{len(REL_COLUMNS)} fields in every row; unpack the files again"
        ) from None


# --------------------------------------------------------------------------- codes to concepts


def _read_codes(conso: pl.LazyFrame, folder: Path) -> dict[tuple[str, str], str]:
    """(system, code without dot) to CUI; the smallest CUI where a code has several."""
    wanted = sorted(set(SOURCES.values()))
    rows = _collect(
        conso.filter(pl.col("SAB").is_in(wanted) & ~pl.col("SUPPRESS").is_in(_HIDDEN))
        .select("SAB", "CODE", "CUI")
        .unique(),
        folder,
    )
    found: dict[tuple[str, str], str] = {}
    for source, code, cui in sorted(rows.iter_rows()):
        found.setdefault((umls_system(source, code), code.replace(".", "")), cui)
    return found


def umls_system(source: str, code: str) -> str:
    """Code system of a UMLS source and code.

    ICD9CM holds both diagnoses and procedures. Only the dot tells 38.93 (a procedure) from 389.3;
    codes without a dot are procedures if they have two digits.
    """
    if source != "ICD9CM":
        return {"ICD10CM": "dx10", "ICD10PCS": "px10", "ATC": "atc"}[source]
    return "px9" if len(code.split(".")[0]) == 2 and code[:2].isdigit() else "dx9"


def _substance_names(
    conso: pl.LazyFrame, describer: Describer, drugs: Sequence[Concept], folder: Path
) -> dict[str, str]:
    """ATC level 5 to the CUI of the RxNorm ingredient of its name."""
    atc_names = describer.maps.atc_names
    wanted = {item.code: atc_names.get(item.code, "").lower() for item in drugs}
    wanted = {code: name for code, name in wanted.items() if len(code) == 7 and name}
    if not wanted:
        return {}
    rows = _collect(
        conso.filter(
            (pl.col("SAB") == "RXNORM")
            & (pl.col("TTY") == "IN")
            & pl.col("STR").str.to_lowercase().is_in(sorted(set(wanted.values())))
        ).select(pl.col("STR").str.to_lowercase(), "CUI"),
        folder,
    )
    by_name = dict(sorted(rows.iter_rows(), reverse=True))
    return {code: by_name[name] for code, name in wanted.items() if name in by_name}


def _cui(
    concept: Concept, codes: Mapping[tuple[str, str], str], names: Mapping[str, str]
) -> tuple[str, str]:
    """CUI of a concept ("" if none), and whether by its ``own`` or a ``broader`` code."""
    system, code = concept
    if (system, code) in codes:
        return codes[system, code], "own"
    if system == "atc" and code in names:
        return names[code], "own"
    least = 2 if system == "px9" else 3
    for length in range(len(code) - 1, least - 1, -1):
        if (system, code[:length]) in codes:
            return codes[system, code[:length]], "broader"
    return "", "unknown"


# --------------------------------------------------------------------------- sub-graph


def _grow(
    relations: pl.LazyFrame, seeds: Sequence[str], hops: int, max_nodes: int, folder: Path
) -> list[str]:
    """Concepts within some hops, the best linked of each hop first; never fewer than the seeds."""
    kept = list(seeds)
    for _ in range(hops):
        room = max_nodes - len(kept)
        if room <= 0 or not kept:
            break
        inside = pl.LazyFrame({"CUI": kept}, schema={"CUI": pl.String})
        both = [
            relations.join(inside, left_on=near, right_on="CUI", how="semi").select(
                pl.col(far).alias("CUI"), pl.col(near).alias("by")
            )
            for near, far in (("CUI1", "CUI2"), ("CUI2", "CUI1"))
        ]
        linked = _collect(
            pl.concat(both)
            .join(inside, on="CUI", how="anti")
            .group_by("CUI")
            .agg(pl.col("by").n_unique().alias("links")),
            folder,
        )
        best = linked.sort("links", "CUI", descending=[True, False]).head(room)
        kept += best["CUI"].to_list()
    return kept


def _edges(
    relations: pl.LazyFrame, kept: Sequence[str], folder: Path
) -> list[tuple[str, str, str]]:
    """Second concept, relation, first concept (see the head of this module)."""
    inside = pl.LazyFrame({"CUI": kept}, schema={"CUI": pl.String})
    rows = _collect(
        relations.join(inside, left_on="CUI1", right_on="CUI", how="semi")
        .join(inside, left_on="CUI2", right_on="CUI", how="semi")
        .select(
            "CUI2",
            pl.when(pl.col("RELA") != "").then("RELA").otherwise("REL").alias("relation"),
            "CUI1",
        )
        .unique(),
        folder,
    )
    return rows.rows()


def _labels(conso: pl.LazyFrame, kept: Sequence[str], folder: Path) -> dict[str, str]:
    """Preferred English name of every concept; the CUI itself where there is none."""
    inside = pl.LazyFrame({"CUI": kept}, schema={"CUI": pl.String})
    rows = _collect(
        conso.filter(pl.col("LAT") == "ENG")
        .join(inside, on="CUI", how="semi")
        .select(
            "CUI",
            "STR",
            preferred=(pl.col("TS") == "P").cast(pl.Int8)
            + (pl.col("STT") == "PF").cast(pl.Int8)
            + (pl.col("ISPREF") == "Y").cast(pl.Int8),
        ),
        folder,
    )
    names: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for cui, text, preferred in rows.iter_rows():
        names[cui].append((-preferred, text))
    return {cui: min(names[cui])[1] if cui in names else cui for cui in kept}
