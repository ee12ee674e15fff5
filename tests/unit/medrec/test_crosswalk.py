"""Codes of one cohort in another's vocabulary: by themselves, by crosswalk, by category."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from medrec.data.crosswalk import Equivalents, split_label, translate
from medrec.data.schema import Vocabulary
from quantum.base import MedrecError


@pytest.fixture
def gem(tmp_path: Path) -> Path:
    text = "icd9,icd10,exact\n4019,I10,0\n5849,N179,0\n"
    (tmp_path / "crosswalk_diagnoses.csv.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_labels_split_into_version_and_code():
    assert split_label("icd10:I10") == ("10", "I10")
    assert split_label("4019") == ("", "4019")
    assert split_label("path:renal|dialysis") == ("path", "renal|dialysis")


@pytest.mark.parametrize(
    ("code", "found", "way"),
    [
        ("icd9:4019", "icd9:4019", "same"),
        ("icd10:I10", "icd9:4019", "crosswalk"),
        ("icd10:N179", "icd9:5849", "crosswalk"),
        ("icd9:5845", "icd9:5849", "category"),  # not 5856, whose category is another
        ("icd9:V4581", None, "unknown"),
        ("path:renal|dialysis", None, "unknown"),
    ],
)
def test_nearest_code(gem, code, found, way):
    vocabulary = Vocabulary(("icd9:4019", "icd9:5849", "icd9:5856"))
    result = translate([code], vocabulary, Equivalents("diagnoses", gem))
    assert result.code[code] == found
    assert result.way[code] == way


def test_the_longest_common_beginning_wins(gem):
    vocabulary = Vocabulary(("icd9:25000", "icd9:25013", "icd9:25010"))
    result = translate(["icd9:25011"], vocabulary, Equivalents("diagnoses", gem))
    assert result.code["icd9:25011"] in ("icd9:25013", "icd9:25010")
    assert result.way["icd9:25011"] == "category"


def test_vocabulary_without_versions(gem):
    result = translate(["icd10:I10"], Vocabulary(("4019",)), Equivalents("diagnoses", gem))
    assert result.code["icd10:I10"] == "4019"


def test_shares_count_occurrences(gem):
    vocabulary = Vocabulary(("icd9:4019",))
    result = translate(["icd9:4019", "icd9:9999"], vocabulary, Equivalents("diagnoses", gem))
    shares = result.shares(["icd9:4019"] * 3 + ["icd9:9999"])
    assert shares["same"] == 0.75
    assert shares["unknown"] == 0.25
    assert result.shares([]) == {}


def test_a_missing_crosswalk_is_named(tmp_path):
    with pytest.raises(MedrecError, match=r"crosswalk_diagnoses"):
        translate(["icd9:1"], Vocabulary(("icd9:2",)), Equivalents("diagnoses", tmp_path))


def test_shipped_crosswalk_knows_hypertension():
    assert "icd10:I10" in Equivalents("diagnoses").of("9", "4019")
    assert "icd9:4019" in Equivalents("diagnoses").of("10", "I10")
    assert Equivalents("procedures").of("9", "3893")
