"""The open knowledge graph, and that of the UMLS."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pandas as pd
import pytest

from medrec.concepts.graph import GraphBuilder
from medrec.concepts.graph_open import build_open_graph, deepest_known
from medrec.concepts.graph_umls import (
    CONSO_COLUMNS,
    REL_COLUMNS,
    build_umls_graph,
    umls_system,
)
from medrec.concepts.knowledge import FILES, KnowledgeTables
from medrec.concepts.titles import Describer
from medrec.config_papers import GraphConfig
from medrec.data.codes import CodeMaps
from medrec.data.schema import data_root
from quantum.base import DataError, InputError

CONCEPTS = {
    "diagnoses": [
        "icd9:5849",
        "icd9:5859",
        "icd9:40391",
        "icd9:25001",
        "icd9:4019",
        "icd9:42731",
        "icd9:E8859",
        "icd9:V5412",
        "icd9:2800",
        "icd10:I10",
        "icd10:N179",
        "icd10:T814XXA",
    ],
    "procedures": ["icd9:3893", "icd9:3995", "icd10:5A1D70Z", "icd10:02HV33Z"],
    "drugs": ["C09A", "A10B", "A02B", "B01A", "H02A", "D07A", "M01A"],
}
INTERACTIONS = pd.DataFrame(
    {"atc_a": ["B01A", "C09A"], "atc_b": ["M01A", "ZZ9Z"], "severity": [4, 1]}
)


@pytest.fixture(scope="module")
def describer():
    return Describer(CodeMaps(data_root() / "codes"), KnowledgeTables(data_root() / "knowledge"))


@pytest.fixture(scope="module")
def built(describer):
    return build_open_graph(CONCEPTS, describer, INTERACTIONS)


@pytest.fixture(scope="module")
def graph(built):
    return built[0]


def has_edge(graph, head, relation, tail):
    edge = graph.place(head), graph.relations.index(relation), graph.place(tail)
    return edge in set(map(tuple, graph.edges.tolist()))


def out(graph, node, relation):
    found = graph.neighbours(node)
    return [edge.node for edge in found if edge.relation == relation and edge.outgoing]


# ------------------------------------------------------------------ structure


def test_kidney_failures_have_their_own_category_and_share_the_block(graph):
    (acute,) = out(graph, "dx9:5849", "is_a")
    (chronic,) = out(graph, "dx9:5859", "is_a")
    assert (acute, chronic) == ("dx9:584", "dx9:585")
    assert out(graph, acute, "is_a") == out(graph, chronic, "is_a")
    near = [{edge.node for edge in graph.neighbours(code)} for code in ("dx9:5849", "dx9:5859")]
    assert near[0] != near[1]


@pytest.mark.parametrize(
    ("node", "parent"),
    [
        ("dx9:25001", "dx9:2500"),
        ("dx9:2500", "dx9:250"),
        ("dx9:E8859", "dx9:E885"),  # categories of external causes have four characters
        ("dx9:V5412", "dx9:V541"),
        ("dx9:280", "dx9_chapter:Diseases Of The Blood And Blood-Forming Organs"),
        ("dx10:T814XXA", "dx10:T814"),  # fillers are no level
        ("dx10:N179", "dx10:N17"),
        ("px9:3893", "px9:389"),
        ("px9:38", "px9_chapter:35-39"),
        ("px10:5A1D70Z", "px10:5A1D"),
        ("px10:5A", "px10:5"),
        ("atc:C09A", "atc:C09"),
        ("atc:C09AA03", "atc:C09AA"),
    ],
)
def test_every_code_has_the_broader_one_above_it(graph, node, parent):
    assert out(graph, node, "is_a") == [parent]


def test_labels_can_be_read(graph):
    labels = dict(zip(graph.nodes, graph.labels, strict=True))
    assert labels["dx9:584"] == "Acute kidney failure"
    assert labels["px10:5"].startswith("Extracorporeal")
    assert labels["atc:C09AA03"] == "lisinopril"
    assert ("is_a", True, "dx9:584", "Acute kidney failure") in graph.neighbours("dx9:5849")


def test_crosswalk_goes_from_old_to_new_whichever_the_cohort_has(graph):
    assert has_edge(graph, "dx9:5849", "crosswalk_exact", "dx10:N179") or has_edge(
        graph, "dx9:5849", "crosswalk_approx", "dx10:N179"
    )
    heads = graph.edges[[graph.relations[r].startswith("crosswalk") for r in graph.edges[:, 1]], 0]
    assert all(graph.nodes[head].startswith("dx9:") for head in heads)
    # V54.12 has more than five hundred counterparts
    assert len(out(graph, "dx9:V5412", "crosswalk_broad")) < 40
    assert not out(graph, "dx9:V5412", "crosswalk_approx")


def test_groups_join_versions(graph):
    assert out(graph, "dx9:5849", "grouped_as") == ["ccs_dx:157"]
    assert out(graph, "px9:3995", "grouped_as") == out(graph, "px10:5A1D70Z", "grouped_as")


def test_references_to_codes_that_are_missing_go_to_the_broader_one(graph):
    builder = GraphBuilder()
    for node in ("dx9:250", "dx9:2500", "dx9:25001"):
        builder.add_node(node, node)
    assert deepest_known(builder, "dx9", "25001") == "dx9:25001"
    assert deepest_known(builder, "dx9", "25002") == "dx9:2500"
    assert deepest_known(builder, "dx9", "2513") is None
    assert deepest_known(builder, "dx9", "2509") == "dx9:250"
    # atrial fibrillation is coded 427.31, hypertension 401-405.99
    assert "dx9:42731" in out(graph, "do:0060224", "coded_as")
    assert "dx9:401" in out(graph, "do:10763", "coded_range")


def test_drugs_reach_the_diagnoses_that_they_treat(graph):
    treated = {edge.node for edge in graph.neighbours("atc:C09AA03") if edge.outgoing}
    assert "do:10763" in treated


def test_what_is_no_indication_is_not_in_the_graph(graph, describer):
    with gzip.open(data_root() / "knowledge" / "indications.csv.gz", "rt") as handle:
        rows = list(csv.DictReader(handle))
    never = {(row["drug"], row["doid_id"]) for row in rows if row["category"] == "NOT"}
    assert len(never) > 200
    read = {(drug, doid) for drug, _, doid in describer.tables.indications}
    assert len(read) > 1000
    assert not never & read
    assert {relation for _, relation, _ in describer.tables.indications} == {"treats", "relieves"}


def test_substances_of_one_name_are_joined(graph):
    # hydrocortisone is a hormone (H02AB09) and an ointment (D07AA02)
    assert has_edge(graph, "atc:D07AA02", "same_substance", "atc:H02AB09")


def test_interactions_have_their_grade_and_stay_among_the_classes(graph):
    assert has_edge(graph, "atc:B01A", "interacts_contraindicated", "atc:M01A")
    assert "atc:ZZ9Z" not in graph.nodes


def test_all_concepts_are_covered_and_in_order(graph):
    assert graph.coverage() == {"diagnoses": 1.0, "procedures": 1.0, "drugs": 1.0}
    names = [graph.nodes[place] for place in graph.concepts["drugs"]]
    assert names == [f"atc:{code}" for code in CONCEPTS["drugs"]]
    assert sum(graph.counts()["edges"].values()) == len(graph.edges)
    assert (graph.edges[:, 0] != graph.edges[:, 2]).all()


def test_order_of_the_codes_does_not_matter(describer, graph):
    turned = {kind: codes[::-1] for kind, codes in reversed(CONCEPTS.items())}
    other, _ = build_open_graph(turned, describer, INTERACTIONS)
    assert other.nodes == graph.nodes
    assert other.labels == graph.labels
    assert np.array_equal(other.edges, graph.edges)


def test_a_code_that_no_table_knows_is_a_node(describer):
    concepts = {"diagnoses": ["icd9:QQQ"], "procedures": ["path:a|b"], "drugs": ["ZZ9Z"]}
    graph, _ = build_open_graph(concepts, describer, None)
    assert graph.coverage()["diagnoses"] == 0.0
    assert graph.nodes[graph.concepts["diagnoses"][0]] == "dx9:QQQ"
    assert out(graph, "path:a|b", "is_a") == ["path:a"]


def test_levels_of_atc_are_types_of_their_own(graph):
    level = {graph.types[graph.place(node)] for node in ("atc:C09A", "atc:C09", "atc:C09AA03")}
    assert len(level) == 3
    assert graph.types[graph.place("atc:C09A")] == graph.types[graph.place("atc:A10B")]


def test_unknown_nodes_are_refused(graph):
    with pytest.raises(InputError, match="no node 'dx9:nothing'"):
        graph.neighbours("dx9:nothing")
    builder = GraphBuilder()
    builder.add_node("a", "a")
    with pytest.raises(InputError, match="not there: b"):
        builder.add_edge("a", "is_a", "b")


def test_shipped_tables_are_complete_and_small():
    folder = data_root() / "knowledge"
    assert {path.name for path in folder.glob("*.csv.gz")} == set(FILES)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_500_000
    tables = KnowledgeTables(folder)
    maps = CodeMaps(data_root() / "codes")
    categories = {
        code[:4] if code.startswith("E") else code[:3] for code in maps.icd_codes("diagnosis", 9)
    }
    assert categories == set(tables.icd9)


# ------------------------------------------------------------------ UMLS


def conso(cui, source, code, text, **fields):
    row = dict.fromkeys(CONSO_COLUMNS, "") | {
        "CUI": cui, "LAT": "ENG", "TS": "P", "STT": "PF", "ISPREF": "Y", "SAB": source,
        "CODE": code, "STR": text, "SUPPRESS": "N",
    }  # fmt: skip
    return "|".join((row | fields).values()) + "|\n"


def rel(first, name, second, rela="", **fields):
    row = dict.fromkeys(REL_COLUMNS, "") | {
        "CUI1": first, "REL": name, "CUI2": second, "RELA": rela, "SUPPRESS": "N",
    }  # fmt: skip
    return "|".join((row | fields).values()) + "|\n"


CONSO = [
    conso("C0000001", "ICD9CM", "401.9", "Unspecified essential hypertension"),
    conso("C0000001", "ICD10CM", "I10", 'Essential "primary" hypertension', TS="S"),
    conso("C0000002", "ICD9CM", "389.3", "Hearing loss"),
    conso("C0000003", "ICD9CM", "38.93", "Venous catheterization"),
    conso("C0000004", "ATC", "C09A", "ACE inhibitors, plain"),
    conso("C0000005", "RXNORM", "29046", "Lisinopril", TTY="IN"),
    conso("C0000006", "ICD9CM", "401", "Essential hypertension"),
    conso("C0000007", "MSH", "D014652", "Vascular Diseases"),
    conso("C0000007", "MSHSPA", "D014652", "Enfermedades vasculares", LAT="SPA"),
    conso("C0000008", "MSH", "D000001", "Far away"),
    conso("C0000009", "ICD10CM", "N17.9", "gone", SUPPRESS="O"),
]
REL = [
    rel("C0000006", "CHD", "C0000001", "isa"),
    rel("C0000007", "CHD", "C0000006", "isa"),
    rel("C0000008", "CHD", "C0000007", "isa"),
    rel("C0000001", "RO", "C0000005", "may_treat"),
    rel("C0000004", "RB", "C0000005"),
    rel("C0000004", "SIB", "C0000001"),
    rel("C0000001", "RO", "C0000001", "self"),
    rel("C0000002", "RO", "C0000001", "hidden", SUPPRESS="O"),
]
UMLS_CONCEPTS = {
    "diagnoses": ["icd9:4019", "icd10:I10", "icd9:4011", "icd9:3893", "icd10:N179"],
    "procedures": ["icd9:3893"],
    "drugs": ["C09A", "C09AA03"],
}


@pytest.fixture
def umls(tmp_path):
    (tmp_path / "MRCONSO.RRF").write_text("".join(CONSO))
    (tmp_path / "MRREL.RRF").write_text("".join(REL))
    return tmp_path


def test_codes_become_concepts(umls, describer):
    graph, facts = build_umls_graph(UMLS_CONCEPTS, describer, umls, hops=1, max_nodes=100)
    places = {kind: [graph.nodes[i] if i >= 0 else None for i in found]
              for kind, found in graph.concepts.items()}  # fmt: skip
    # 401.1 is not in the file, 401 is; a suppressed code is none
    assert places["diagnoses"] == [
        "cui:C0000001", "cui:C0000001", "cui:C0000006", "cui:C0000002", None,
    ]  # fmt: skip
    assert places["procedures"] == ["cui:C0000003"]  # the same digits as the hearing loss
    assert places["drugs"] == ["cui:C0000004", "cui:C0000005"]  # by the name in RxNorm
    assert facts == {"concepts_own": 6, "concepts_broader": 1, "concepts_unknown": 1}
    assert graph.coverage()["procedures"] == 0.0


def test_edges_go_from_the_second_concept_to_the_first(umls, describer):
    graph, _ = build_umls_graph(UMLS_CONCEPTS, describer, umls, hops=1, max_nodes=100)
    assert has_edge(graph, "cui:C0000001", "isa", "cui:C0000006")
    assert has_edge(graph, "cui:C0000005", "may_treat", "cui:C0000001")
    assert has_edge(graph, "cui:C0000005", "RB", "cui:C0000004")
    assert set(graph.relations) == {"isa", "may_treat", "RB"}
    assert graph.labels[graph.place("cui:C0000007")] == "Vascular Diseases"
    # a quotation mark is text
    assert graph.labels[graph.place("cui:C0000001")] == "Unspecified essential hypertension"


def test_hops_and_the_largest_size_limit_the_graph(umls, describer):
    sizes = [
        len(build_umls_graph(UMLS_CONCEPTS, describer, umls, hops, most)[0].nodes)
        for hops, most in ((1, 100), (2, 100), (2, 6))
    ]
    assert sizes == [7, 8, 6]


@pytest.mark.parametrize(
    ("code", "system"),
    [("38.93", "px9"), ("389.3", "dx9"), ("V10.1", "dx9"), ("E885.9", "dx9"), ("401", "dx9"),
     ("38", "px9"), ("001-009.99", "dx9")],
)  # fmt: skip
def test_the_dot_tells_procedures_of_icd9(code, system):
    assert umls_system("ICD9CM", code) == system


def test_missing_and_wrong_files_are_said_plainly(umls, describer):
    (umls / "MRREL.RRF").write_text("C0000001|CHD|C0000002|\n")
    with pytest.raises(DataError, match=r"MRREL\.RRF: 1 of 1 rows do not have 16 fields"):
        build_umls_graph(UMLS_CONCEPTS, describer, umls, 1, 100)
    (umls / "MRREL.RRF").write_text("")
    with pytest.raises(DataError, match="0 of 0 rows"):
        build_umls_graph(UMLS_CONCEPTS, describer, umls, 1, 100)
    (umls / "MRREL.RRF").unlink()
    with pytest.raises(InputError, match=r"not found: .*MRREL\.RRF; expected"):
        build_umls_graph(UMLS_CONCEPTS, describer, umls, 1, 100)
    with pytest.raises(ValueError, match=r"needs umls, the folder with MRCONSO\.RRF"):
        GraphConfig(source="umls")


def test_a_damaged_row_names_no_content(umls, describer):
    with (umls / "MRCONSO.RRF").open("a") as handle:
        handle.write("C0000010|ENG|secret" + "|x" * 40 + "\n")
    with pytest.raises(DataError, match="1 of 12 rows do not have 18 fields") as error:
        build_umls_graph(UMLS_CONCEPTS, describer, umls, 1, 100)
    assert "secret" not in str(error.value)
