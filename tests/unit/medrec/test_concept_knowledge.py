"""The tool that makes ``data/knowledge`` from the files of the publishers."""

from __future__ import annotations

import gzip
import importlib.util
import json

import pytest


@pytest.fixture(scope="module")
def tool(root):
    spec = importlib.util.spec_from_file_location("tool", root / "tools" / "build_knowledge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaf(code):
    return {"id": code, "description": f"title of {code}"}


def test_chapters_without_blocks_have_categories_at_the_second_level(tool, tmp_path):
    blocks = [
        # categories below a block: one with subdivisions, one without, an external cause
        {"id": "Block", "children": [
            {"id": "Cholera", "children": [leaf("0010"), leaf("0011")]},
            leaf("024"),
            {"id": "Fall", "children": [leaf("E8850"), leaf("E8859")]},
        ]},
        # no block: the second level is the category, with and without deeper groups
        {"id": "Anemias", "children": [
            leaf("2800"),
            {"id": "Deeper", "children": [leaf("28041"), leaf("28042")]},
        ]},
    ]  # fmt: skip
    tree = {"tree": {"id": "root", "children": [{"id": "Chapter", "children": blocks}]}}
    with gzip.open(tmp_path / "icd-9-hierarchy.json.gz", "wt") as handle:
        json.dump(tree, handle)
    assert list(tool.icd9_categories(tmp_path)) == [
        ("001", "Cholera", "Block", "Chapter"),
        ("024", "title of 024", "Block", "Chapter"),
        ("E885", "Fall", "Block", "Chapter"),
        ("280", "Anemias", "", "Chapter"),
    ]


def test_a_pair_is_exact_if_either_direction_says_so_and_no_map_is_no_pair(tool, tmp_path):
    heading = "icd9cm,icd10cm,flags,approximate,no_map,combination,scenario,choice_list\n"
    old = "0010,A000,,1,0,0,0,0\n0011,A001,,1,0,0,0,0\n0019,NoDx,,0,1,0,0,0\n"
    (tmp_path / "icd9toicd10cmgem.csv").write_text(heading + old)
    (tmp_path / "icd10cmtoicd9gem.csv").write_text(heading + "0010,A000,,0,0,0,0,0\n")
    found = sorted(tool.crosswalk_diagnoses(tmp_path))
    assert found == [("0010", "A000", "1"), ("0011", "A001", "0")]


def test_obsolete_diseases_are_left_out(tool, tmp_path):
    terms = (
        "format-version: 1.2\n\n[Term]\nid: DOID:1\nname: one\nis_a: DOID:2 ! two\n"
        "is_a: DOID:3 ! three\n\n[Term]\nid: DOID:9\nname: old\nis_obsolete: true\n"
    )
    with gzip.open(tmp_path / "HumanDO.obo.gz", "wt") as handle:
        handle.write(terms)
    assert list(tool.disease_terms(tmp_path)) == [("DOID:1", "one", "DOID:2|DOID:3")]


def test_same_rows_same_bytes_and_missing_sources_are_named(tool, tmp_path, capsys):
    rows = [("b", "2"), ("a", "1"), ("a", "1")]
    packed = tool.packed(("x", "y"), rows)
    assert packed == tool.packed(("x", "y"), rows[::-1])
    assert gzip.decompress(packed) == b"x,y\na,1\nb,2\n"
    assert tool.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "icd-9-hierarchy.json" in capsys.readouterr().err
