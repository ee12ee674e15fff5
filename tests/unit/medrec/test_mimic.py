"""Raw tables that are right in unusual ways, and tables that are wrong in every way."""

from __future__ import annotations

import gzip
import re

import polars as pl
import pytest

from medrec.config import CohortConfig
from medrec.data.cohort import prepare_cohort
from medrec.data.mimic import read_mimic, source_files
from medrec.data.schema import resolve_path
from medrec.data.tables import read_columns
from medrec.runs import Home
from quantum.base import DataError, InputError

SECRET = "987654321"

MIMIC4 = {
    "admissions": "subject_id,hadm_id,admittime,insurance\n"
    + "".join(f"{p},{p}{v},2150-0{v}-01 10:00:00,x\n" for p in (1, 2, 3) for v in (1, 2)),
    "diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version\n"
    + "".join(f"{p},{p}{v},1,I10,10\n{p},{p}{v},2,0{p}10,9\n" for p in (1, 2, 3) for v in (1, 2)),
    "procedures_icd": "subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version\n"
    + "".join(f"{p},{p}{v},1,2150-01-01,9671,9\n" for p in (1, 2, 3) for v in (1, 2)),
    "prescriptions": "subject_id,hadm_id,drug_type,drug,gsn,ndc\n"
    + "".join(f"{p},{p}{v},MAIN,Furosemide,,0\n" for p in (1, 2, 3) for v in (1, 2)),
}


@pytest.fixture
def folder(tmp_path):
    """A MIMIC-IV folder with three patients of two admissions each."""
    hosp = tmp_path / "raw" / "hosp"
    hosp.mkdir(parents=True)
    for table, text in MIMIC4.items():
        (hosp / f"{table}.csv").write_text(text)
    return hosp.parent


def config(folder, **changes) -> CohortConfig:
    source = {"format": "mimic4", "path": str(folder)}
    return CohortConfig.model_validate({"name": "tiny", "source": source, **changes})


def prepare(folder, tmp_path, **changes):
    return prepare_cohort(config(folder, **changes), Home(tmp_path / "home"))


def complaint(folder, tmp_path, kind=DataError, **changes) -> str:
    """Message of the refusal; nothing may be left behind, no patient value may be shown."""
    with pytest.raises(kind) as caught:
        prepare(folder, tmp_path, **changes)
    cohorts = tmp_path / "home" / "cohorts"
    assert not cohorts.exists() or [p for p in cohorts.iterdir() if p.is_dir()] == []
    assert SECRET not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --------------------------------------------------------------------------- right


def test_three_patients(folder, tmp_path):
    cohort = prepare(folder, tmp_path)
    assert (cohort.n_patients, len(cohort.visits)) == (3, 6)
    assert cohort.visits["diagnoses"][0] == ["icd10:I10", "icd9:0110"]
    assert cohort.visits["drugs"][0] == ["C03C"]


@pytest.mark.parametrize("style", ["gzip", "upper", "flat"])
def test_gzip_upper_case_and_a_folder_without_hosp(folder, tmp_path, style):
    for path in list((folder / "hosp").iterdir()):
        text = path.read_text()
        if style == "gzip":
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode()))
        elif style == "upper":
            heading, rest = text.split("\n", 1)
            path.with_name(path.stem.upper() + ".csv").write_text(f"{heading.upper()}\n{rest}")
        else:
            (folder / path.name).write_text(text)
        path.unlink()
    assert prepare(folder, tmp_path).n_patients == 3


def test_codes_stay_text_and_lose_their_dot(folder):
    path = folder / "hosp" / "diagnoses_icd.csv"
    path.write_text("subject_id,hadm_id,icd_code,icd_version\n1,11, i10.0 ,10\n1,11,0010,9\n")
    source = config(folder).source
    events = read_mimic(source, source_files(source, with_admissions=True))
    assert events.diagnoses["code"].to_list() == ["I100", "0010"]
    assert events.diagnoses["version"].to_list() == [10, 9]


def test_order_of_a_stay_of_no_admission_is_left_out(folder):
    path = folder / "hosp" / "prescriptions.csv"
    path.write_text(path.read_text() + "3,,MAIN,Furosemide,,0\n")
    source = config(folder).source
    events = read_mimic(source, source_files(source, with_admissions=True))
    assert len(events.prescriptions) == 6


def test_the_order_by_admission_number_needs_no_admissions_table(folder, tmp_path):
    (folder / "hosp" / "admissions.csv").unlink()
    assert prepare(folder, tmp_path, visit_order="hadm_id").n_patients == 3


def test_reading_in_blocks_gives_the_same(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{i:05d},x{i}\n" for i in range(5000)))
    whole = read_columns(path, "t", {"a": "a", "b": "b"})
    monkeypatch.setattr("medrec.data.tables._BLOCK_BYTES", 1000)
    assert read_columns(path, "t", {"a": "a", "b": "b"}).equals(whole)
    assert whole.schema == {"a": pl.String, "b": pl.String}
    assert len(whole) == 5000


# --------------------------------------------------------------------------- wrong


@pytest.mark.parametrize("table", sorted(MIMIC4))
def test_missing_table(folder, tmp_path, table):
    (folder / "hosp" / f"{table}.csv").unlink()
    message = complaint(folder, tmp_path)
    assert f"table {table} not found" in message
    assert f"{table}.csv or {table}.csv.gz" in message


@pytest.mark.parametrize(
    ("table", "column"),
    [("prescriptions", "ndc"), ("diagnoses_icd", "icd_version"), ("admissions", "admittime")],
)
def test_wrong_column(folder, tmp_path, table, column):
    path = folder / "hosp" / f"{table}.csv"
    path.write_text(path.read_text().replace(column, "kolumn", 1))
    message = complaint(folder, tmp_path)
    assert f"{path}: table {table} lacks column {column}" in message
    assert "kolumn" in message


def test_truncated_gzip(folder, tmp_path):
    path = folder / "hosp" / "prescriptions.csv"
    packed = gzip.compress((path.read_text() + f"1,11,MAIN,{SECRET},,0\n" * 500).encode())
    path.unlink()
    path = path.with_name("prescriptions.csv.gz")
    path.write_bytes(packed[: len(packed) - 20])
    assert re.search(r"prescriptions\.csv\.gz: gzip .*truncated", complaint(folder, tmp_path))


def test_damaged_gzip(folder, tmp_path):
    path = folder / "hosp" / "prescriptions.csv"
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[len(packed) // 2] ^= 0xFF
    path.unlink()
    path.with_name("prescriptions.csv.gz").write_bytes(packed)
    assert "prescriptions.csv.gz: gzip is damaged" in complaint(folder, tmp_path)


def test_not_gzip_at_all(folder, tmp_path):
    path = folder / "hosp" / "prescriptions.csv"
    path.rename(path.with_name("prescriptions.csv.gz"))
    assert "prescriptions.csv.gz: not a gzip file" in complaint(folder, tmp_path)


def test_empty_file(folder, tmp_path):
    (folder / "hosp" / "procedures_icd.csv").write_text("")
    assert "procedures_icd.csv: the file is empty" in complaint(folder, tmp_path)


def test_heading_without_rows(folder, tmp_path):
    heading = MIMIC4["prescriptions"].split("\n")[0]
    (folder / "hosp" / "prescriptions.csv").write_text(heading)
    message = complaint(folder, tmp_path)
    assert "nothing is left after the filter 'prescription rows read'" in message


def test_row_with_too_few_fields_is_not_quoted(folder, tmp_path):
    path = folder / "hosp" / "diagnoses_icd.csv"
    path.write_text(path.read_text() + f"{SECRET},1\n")
    message = complaint(folder, tmp_path)
    assert "table diagnoses_icd: " in message
    assert "does not parse as CSV; expected 5 fields in every row" in message


def test_identifier_that_is_no_number(folder, tmp_path):
    path = folder / "hosp" / "procedures_icd.csv"
    path.write_text(path.read_text().replace("1,11,", f"x{SECRET},11,"))
    message = complaint(folder, tmp_path)
    assert "column subject_id: 1 of 6 values are not whole numbers" in message


def test_unknown_icd_version(folder, tmp_path):
    path = folder / "hosp" / "diagnoses_icd.csv"
    path.write_text(path.read_text().replace(",10\n", ",11\n"))
    message = complaint(folder, tmp_path)
    assert "column icd_version: 6 of 12 rows are neither 9 nor 10" in message


def test_time_that_does_not_parse(folder, tmp_path):
    path = folder / "hosp" / "admissions.csv"
    path.write_text(path.read_text().replace("2150-01-01 10:00:00", f"soon {SECRET}"))
    assert "column admittime: 3 of 6 times do not parse" in complaint(folder, tmp_path)


def test_no_row_with_a_known_drug(folder, tmp_path):
    path = folder / "hosp" / "prescriptions.csv"
    path.write_text(path.read_text().replace("Furosemide", f"drug{SECRET}"))
    message = complaint(folder, tmp_path)
    assert "none of the 6 prescription rows has an ATC level 3 code" in message
    assert "gsn, ndc, name" in message


def test_empty_cohort_names_the_filter(folder, tmp_path):
    message = complaint(folder, tmp_path, min_visits=3)
    assert "nothing is left after the filter 'at least 3 visits left'" in message
    assert "6 rows, 6 visits, 3 patients" in message


def test_two_patients_cannot_be_split(folder, tmp_path):
    path = folder / "hosp" / "prescriptions.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    assert "cohort has 2 patients; expected at least 3" in complaint(folder, tmp_path)


def test_folder_that_does_not_exist(folder, tmp_path):
    message = complaint(folder / "nowhere", tmp_path, InputError)
    assert "nowhere' does not exist" in message


def test_file_instead_of_a_folder(folder, tmp_path):
    assert "expected the folder" in complaint(folder / "hosp" / "admissions.csv", tmp_path)


def test_variable_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.delenv("MIMIC4_HOME", raising=False)
    message = complaint("${MIMIC4_HOME}", tmp_path, InputError)
    assert "environment variable that is not set" in message


def test_variable_that_is_set(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MIMIC4_HOME", str(folder))
    assert prepare("${MIMIC4_HOME}", tmp_path).n_patients == 3


def test_shipped_data_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_path("data/mimic4-demo").is_dir()
