"""A hand-made eICU folder, and the shipped demo."""

from __future__ import annotations

import polars as pl
import pytest

from medrec.config import CohortConfig, EicuSource
from medrec.data.cohort import prepare_cohort
from medrec.data.eicu import drug_treatments, plain_drug, read_eicu, source_files, split_icd
from medrec.data.schema import data_root
from medrec.loading import load_config
from medrec.runs import Home
from quantum.base import DataError

# stay 31 has two unit stays; both stays of patient 2-b are of one year
TABLES = {
    "patient": "patientunitstayid,patienthealthsystemstayid,uniquepid,hospitaldischargeyear\n"
    "311,31,1-a,2014\n312,31,1-a,2014\n301,30,1-a,2015\n411,41,2-b,2015\n401,40,2-b,2015\n"
    "511,51,3-c,2014\n512,52,3-c,2015\n",
    "medication": "patientunitstayid,drugname,drughiclseqno,routeadmin,drugordercancelled\n"
    "311,FUROSEMIDE 20 MG PO TABS,3660,PO,No\n312,Zofran,6055,IV,No\n312,METFORMIN,4763,PO,Yes\n"
    "301,,3660,PO,No\n301,,,PO,No\n411,5 ML VIAL : DILTIAZEM HCL 25 MG/5ML IV SOLN,182,IV,No\n"
    "401,LASIX,3660,PO,No\n511,METFORMIN,4763,PO,No\n512,METFORMIN,4763,PO,No\n"
    "999,METFORMIN,4763,PO,No\n",
    "diagnosis": "patientunitstayid,icd9code\n"
    '311,"401.9, I10"\n312,\n301,I50.9\n411,"518.82"\n401,"038.9, 31.1, A41.9"\n511,V08\n'
    '512,"401.9, I10"\n',
    "treatment": "patientunitstayid,treatmentstring\n"
    + "".join(
        f"{unit},pulmonary|ventilation and oxygenation|mechanical ventilation|tidal volume\n"
        for unit in (311, 312, 301, 411, 401, 511, 512)
    )
    + "311,renal|medications|oral diuretic|furosemide\n311,hematology|other|furosemide\n",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for table, text in TABLES.items():
        (raw / f"{table}.csv").write_text(text)
    return raw


def read(folder, **settings):
    source = EicuSource.model_validate({"format": "eicu", "path": str(folder), **settings})
    return read_eicu(source, source_files(source))


def counted(events) -> dict[str, int]:
    return {item["problem"]: item["rows"] for item in events.problems}


def test_unit_stays_are_joined_and_patients_numbered(folder):
    events = read(folder)
    assert events.admissions.select("subject", "admission").rows() == [
        (1, 30), (1, 31), (2, 40), (2, 41), (3, 51), (3, 52),
    ]  # fmt: skip
    rows = events.prescriptions.filter(pl.col("admission") == 31)
    assert rows["drug"].to_list() == ["FUROSEMIDE 20 MG PO TABS", "ondansetron"]
    assert rows["route"].to_list() == ["PO", "IV"]


def test_what_is_left_out_is_counted(folder):
    assert counted(read(folder)) == {
        "row of no stay in table patient": 1,
        "order was cancelled": 1,
        "order without a name": 2,
        "row without a code": 1,
        "code has the form of no ICD version": 1,
        "no code of the version asked for (icd9_first)": 1,
        "treatment says which drug was given": 2,
    }


def test_names_by_ingredient_number(folder):
    events = read(folder, names_from_hicl=True)
    assert counted(events)["order without a name, ingredient number known"] == 1
    assert counted(events)["order without a name"] == 1
    drugs = events.prescriptions.filter(pl.col("admission") == 30)["drug"].to_list()
    assert drugs == ["FUROSEMIDE 20 MG PO TABS", None]


def test_visits_are_in_the_order_of_years_and_the_cohort_says_so(folder, tmp_path):
    config = {
        "name": "x",
        "source": {"format": "eicu", "path": str(folder)},
        "drug_routes": ["name"],
    }
    config["source"]["names_from_hicl"] = True
    cohort = prepare_cohort(CohortConfig.model_validate(config), Home(tmp_path / "home"))
    assert cohort.visits["diagnoses"].to_list() == [
        ["icd9:4019"], ["icd10:I509"], ["icd9:0389"], ["icd9:51882"], ["icd9:V08"], ["icd9:4019"],
    ]  # fmt: skip
    path = "path:pulmonary|ventilation and oxygenation|mechanical ventilation"
    assert cohort.visits["procedures"].to_list() == [[path]] * 6
    assert cohort.codes.set_index("code")["title"][path] == "mechanical ventilation"
    assert "1 of 3 patients" in cohort.notes[0]
    assert "says nothing about time" in cohort.notes[0]


@pytest.mark.parametrize(
    ("text", "choice", "codes", "wrong"),
    [
        ("401.9, I10", "icd9_first", [("4019", 9)], 0),
        ("401.9, I10", "icd10_first", [("I10", 10)], 0),
        ("401.9, I10", "both", [("4019", 9), ("I10", 10)], 0),
        ("276.1, E87.0, E87.1", "icd10_first", [("E870", 10), ("E871", 10)], 0),
        ("E980.2, T51.0", "icd9_first", [("E9802", 9)], 0),
        ("v62.84", "icd10_first", [("V6284", 9)], 0),
        ("31.1", "both", [], 1),
        ("486, 486, J18.9", "both", [("486", 9), ("J189", 10)], 0),
    ],
)
def test_versions_by_the_form_of_the_code(text, choice, codes, wrong):
    assert split_icd(text, choice) == (codes, wrong)


@pytest.mark.parametrize(
    ("path", "drug"),
    [
        ("pulmonary|medications|bronchodilator", True),
        ("hematology|red blood cell disorders|folate", True),
        ("cardiovascular|arrhythmias|digoxin", True),
        ("toxicology|drug overdose|mechanical ventilation", False),
        ("pulmonary|ventilation and oxygenation|oxygen therapy (< 40%)", False),
        ("cardiovascular|intravenous fluid|blood product administration", False),
        ("renal|dialysis|hemodialysis", False),
    ],
)
def test_treatments_that_name_a_drug(path, drug):
    assert drug_treatments([path]) == ([path] if drug else [])


@pytest.mark.parametrize(("depth", "n"), [(1, 1), (2, 2), (None, 4)])
def test_depth_of_a_treatment(folder, depth, n):
    events = read(folder, treatment_depth=depth)
    assert {code.count("|") + 1 for code in events.procedures["code"]} == {n}
    assert events.procedures["version"].unique().to_list() == [0]


def test_packages_are_no_part_of_a_name():
    assert (
        plain_drug("1000 ML  -  SODIUM CHLORIDE 0.9 % IV SOLN", {})
        == "SODIUM CHLORIDE 0.9 % IV SOLN"
    )
    assert plain_drug("NaCl 0.9% MBP", {}) == "sodium chloride"
    assert plain_drug("MAGNESIUM SULFATE IN D5W 10-5 MG/ML", {}) == "MAGNESIUM SULFATE"


def test_missing_table_and_column(folder):
    (folder / "treatment.csv").rename(folder / "t.csv")
    with pytest.raises(DataError, match="table treatment not found"):
        read(folder)
    (folder / "t.csv").write_text("patientunitstayid\n1\n")
    (folder / "t.csv").rename(folder / "treatment.csv")
    with pytest.raises(DataError, match="lacks column treatmentstring"):
        read(folder)


def test_the_shipped_demo(root, tmp_path):
    config = load_config(root / "configs" / "data" / "eicu_demo_strict.yaml", CohortConfig)
    events = read(data_root() / "eicu-demo")
    assert events.admissions.select(pl.len(), pl.col("subject").n_unique()).row(0) == (2174, 1841)
    assert counted(events)["order was cancelled"] == 2636
    assert counted(events)["row without a code"] == 3772
    cohort = prepare_cohort(config, Home(tmp_path))
    assert cohort.n_patients > 50
    assert cohort.coverage.set_index("route")["share"]["name"] > 0.75
