"""Raw tables that are right in unusual ways, and tables that are wrong in every way."""

from __future__ import annotations

import gzip
import os
import re

import polars as pl
import pytest

from medrec.config import CohortConfig
from medrec.data.codes import CodeMaps
from medrec.data.cohort import prepare_cohort
from medrec.data.mimic import read_mimic, source_files
from medrec.data.molecule_table import read_substances
from medrec.data.schema import data_root, resolve_path
from medrec.data.tables import read_columns
from medrec.loading import load_config
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


def as_parquet(folder, **kinds):
    """Replace the CSV tables by parquet, some columns with types of their own."""
    for path in list((folder / "hosp").iterdir()):
        frame = pl.read_csv(path, infer_schema=False)
        casts = [pl.col(name).cast(kind) for name, kind in kinds.items() if name in frame.columns]
        frame.with_columns(casts).write_parquet(path.with_suffix(".parquet"))
        path.unlink()


@pytest.mark.parametrize(
    "kinds", [{}, {"subject_id": pl.Int64, "hadm_id": pl.Float64, "drug_type": pl.Categorical}]
)
def test_parquet_tables_give_the_same_visits(folder, tmp_path, kinds):
    before = prepare(folder, tmp_path).visits
    as_parquet(folder, **kinds)
    assert prepare(folder, tmp_path).visits.equals(before)


def test_times_in_parquet_may_be_times(folder):
    path = folder / "hosp" / "admissions.csv"
    frame = pl.read_csv(path, try_parse_dates=True)
    assert frame.schema["admittime"] == pl.Datetime("us")
    before = read(folder).admissions
    frame.write_parquet(path.with_suffix(".parquet"))
    path.unlink()
    assert read(folder).admissions.equals(before)


# --------------------------------------------------------------------------- odd, and counted


def read(folder, **changes):
    source = config(folder).source
    return read_mimic(source, source_files(source, with_admissions=True), **changes)


def counted(events) -> dict[tuple[str, str], int]:
    return {(item["table"], item["problem"]): item["rows"] for item in events.problems}


def change(folder, table, old, new, count=-1):
    path = folder / "hosp" / f"{table}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_nothing_is_wrong_with_these_tables(folder, tmp_path):
    assert read(folder).problems == []
    record = prepare(folder, tmp_path).record["problems"]
    assert [(item["problem"], item["rows"]) for item in record] == [("no NDC (empty or 0)", 6)]


def test_the_same_stay_twice(folder, tmp_path):
    row = "1,11,2150-01-01 10:00:00,x\n"
    path = folder / "hosp" / "admissions.csv"
    path.write_text(path.read_text() + row + row.replace("01-01", "11-01") + row)
    events = read(folder)
    assert counted(events) == {
        ("admissions", "stay listed again with another time"): 3,
    }
    assert len(events.admissions) == 6
    assert prepare(folder, tmp_path).visits["visit"].to_list() == [0, 1] * 3


def test_the_same_stay_twice_at_the_same_time(folder):
    path = folder / "hosp" / "admissions.csv"
    path.write_text(path.read_text() + "1,11,2150-01-01 10:00:00,x\n")
    assert counted(read(folder)) == {("admissions", "stay listed again"): 1}


def test_a_stay_under_two_patients_is_nobodys(folder):
    path = folder / "hosp" / "diagnoses_icd.csv"
    path.write_text(path.read_text() + "2,11,1,I10,10\n")
    events = read(folder)
    assert counted(events) == {
        ("admissions", "stay under several patients"): 1,
        ("diagnoses_icd", "stay under several patients"): 3,
        ("prescriptions", "stay under several patients"): 1,
        ("procedures_icd", "stay under several patients"): 1,
    }
    assert 11 not in events.prescriptions["admission"]


def test_stays_that_end_before_they_start(folder):
    path = folder / "hosp" / "admissions.csv"
    lines = path.read_text().replace("insurance", "dischtime").splitlines()
    ends = ["2149-12-31 10:00:00", "2150-03-01 10:00:00"] * 3
    rows = [line[:-1] + end for line, end in zip(lines[1:], ends, strict=True)]
    path.write_text("\n".join([lines[0], *rows]))
    assert counted(read(folder)) == {("admissions", "stay ends before it starts"): 3}


def test_codes_with_blanks_small_letters_and_dots(folder):
    change(folder, "diagnoses_icd", ",I10,", ", i1.0 ,", 2)
    change(folder, "diagnoses_icd", ",0310,", ",,", 1)
    events = read(folder)
    assert counted(events) == {
        ("diagnoses_icd", "code with blanks"): 2,
        ("diagnoses_icd", "code in small letters"): 2,
        ("diagnoses_icd", "code with a dot"): 2,
        ("diagnoses_icd", "row without a code"): 1,
    }
    assert events.diagnoses["code"].drop_nulls().unique().sort().to_list() == [
        "0110", "0210", "0310", "I10",
    ]  # fmt: skip


def test_icd_versions_that_do_not_fit_the_code(folder):
    change(folder, "diagnoses_icd", ",I10,10", ",I10,9", 2)
    change(folder, "diagnoses_icd", ",0110,9", ",01,9", 1)
    change(folder, "procedures_icd", ",9671,9", ",0BH17EZ,9", 1)
    events = read(folder)
    assert counted(events) == {
        ("diagnoses_icd", "code has the form of the other ICD version"): 2,
        ("diagnoses_icd", "code has the form of no ICD version"): 1,
        ("procedures_icd", "code has the form of the other ICD version"): 1,
    }
    assert sorted(events.diagnoses["version"].to_list()) == [9] * 8 + [10] * 4


def test_rows_without_a_patient_or_a_stay(folder):
    path = folder / "hosp" / "prescriptions.csv"
    path.write_text(path.read_text() + "3,,MAIN,Furosemide,,0\n,31,MAIN,Furosemide,,0\n")
    assert counted(read(folder)) == {
        ("prescriptions", "row without a patient"): 1,
        ("prescriptions", "row without an admission"): 1,
    }


def test_an_empty_table_is_reported(folder, tmp_path):
    path = folder / "hosp" / "procedures_icd.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert counted(read(folder)) == {("procedures_icd", "table without a row"): 0}
    cohort = prepare(folder, tmp_path, require_procedures=False)
    assert "table without a row" in [item["problem"] for item in cohort.record["problems"]]


@pytest.mark.parametrize(
    "form",
    ["2150-01-01T10:00:00", "2150-01-01 10:00:00.000", "2150-01-01T10:00:00Z", "2150-01-01 10:00",
     "2150/01/01 10:00:00", "01-JAN-2150 10:00:00", "2150-01-01T10:00:00+00:00"],
)  # fmt: skip
def test_times_in_another_form(folder, form):
    before = read(folder).admissions
    change(folder, "admissions", "2150-01-01 10:00:00", form)
    events = read(folder)
    assert counted(events) == {("admissions", "admittime in another form"): 3}
    assert events.admissions.equals(before)


@pytest.mark.parametrize("form", ["20500101", "2150-01-01"])
def test_dates_without_an_hour(folder, form):
    change(folder, "admissions", "2150-01-01 10:00:00", form)
    assert read(folder).admissions["admit_time"].dt.hour().to_list() == [0, 10] * 3


def test_route_and_times_are_read_when_asked_for(folder):
    path = folder / "hosp" / "prescriptions.csv"
    lines = path.read_text().splitlines()
    rows = [f"{line},PO,2150-01-02 08:00:00" for line in lines[1:]]
    path.write_text("\n".join([f"{lines[0]},route,starttime", *rows]))
    assert {"route", "start_time"} & set(read(folder).prescriptions.columns) == set()
    events = read(folder, with_route=True, with_times=True)
    assert events.prescriptions["route"].unique().to_list() == ["PO"]
    assert events.prescriptions.schema["start_time"] == pl.Datetime("us")
    assert events.procedures["time"].null_count() == 0


# --------------------------------------------------------------------------- settings


def test_more_than_a_thousand_drugs(folder, tmp_path):
    """Drug-level targets: every substance of ATC level 5 with a structure, by its name."""
    maps = CodeMaps(data_root() / "codes")
    known = set(read_substances(data_root() / "molecules")["atc5"])
    only = {name: codes for name, codes in maps.by_name.items() if len(codes) == 1}
    names = sorted(name for name, codes in only.items() if codes <= known)
    names = [name for name in names if maps.look_up("name", None, None, name) == only[name]]
    rows = [f"{p},{p}{v},MAIN,{name},,0" for p in (1, 2, 3) for v in (1, 2) for name in names]
    heading = MIMIC4["prescriptions"].split("\n")[0]
    (folder / "hosp" / "prescriptions.csv").write_text("\n".join([heading, *rows]))
    cohort = prepare(folder, tmp_path, atc_level=5)
    expected = sorted({code for name in names for code in only[name]})
    assert len(expected) > 1000
    assert cohort.drugs["atc"].to_list() == expected
    assert len(cohort.vocabularies(0).drugs) == len(expected)
    assert set(cohort.molecules["atc"]) == set(expected)


def test_published_counts_are_compared(folder, tmp_path):
    cohort = prepare(folder, tmp_path, expected_counts={"patients": 3, "visits": 7})
    assert cohort.record["expected_counts"] == [
        {"count": "patients", "expected": 3, "found": 3, "met": True},
        {"count": "visits", "expected": 7, "found": 6, "met": False},
    ]


@pytest.mark.restricted_data
@pytest.mark.skipif(
    not {"MIMIC3_HOME", "RXCUI_TO_ATC"} <= set(os.environ), reason="needs the user's files"
)
def test_published_counts_of_mimic3(root, tmp_path):
    loaded = load_config(root / "configs" / "data" / "mimic3_full_legacy.yaml", CohortConfig)
    cohort = prepare_cohort(loaded, Home(tmp_path))
    assert [item for item in cohort.record["expected_counts"] if not item["met"]] == []


# --------------------------------------------------------------------------- wrong


def test_truncated_parquet(folder, tmp_path):
    as_parquet(folder)
    path = folder / "hosp" / "prescriptions.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    assert "prescriptions.parquet: not readable as parquet" in complaint(folder, tmp_path)


def test_parquet_without_a_column(folder, tmp_path):
    as_parquet(folder)
    path = folder / "hosp" / "prescriptions.parquet"
    pl.read_parquet(path).drop("ndc").write_parquet(path)
    assert "table prescriptions lacks column ndc" in complaint(folder, tmp_path)


def test_dates_that_could_be_two_days_are_refused(folder, tmp_path):
    change(folder, "admissions", "2150-01-01 10:00:00", "01/02/2150 10:00:00")
    message = complaint(folder, tmp_path)
    assert "column admittime: 3 of 6 times do not parse; expected YYYY-MM-DD" in message


@pytest.mark.parametrize("end", [0.2, 0.5, 0.9])
def test_gzip_cut_anywhere(folder, tmp_path, end):
    path = folder / "hosp" / "prescriptions.csv"
    text = path.read_text() + "".join(f"1,11,MAIN,drug {i * i},,{i}\n" for i in range(20_000))
    packed = gzip.compress(text.encode())
    path.unlink()
    path.with_name("prescriptions.csv.gz").write_bytes(packed[: int(len(packed) * end)])
    assert re.search(r"prescriptions\.csv\.gz: gzip .*truncated", complaint(folder, tmp_path))


@pytest.mark.parametrize("table", sorted(MIMIC4))
def test_missing_table(folder, tmp_path, table):
    (folder / "hosp" / f"{table}.csv").unlink()
    message = complaint(folder, tmp_path)
    assert f"table {table} not found" in message
    assert f"{table}.csv or {table}.csv.gz or {table}.parquet" in message


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
