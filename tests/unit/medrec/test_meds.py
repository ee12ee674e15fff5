"""MEDS datasets: round trip of the demo, and hand-made events."""

from __future__ import annotations

import json
from datetime import datetime

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from medrec.config import CohortConfig, MedsSource, Mimic4Source
from medrec.data.cohort import prepare_cohort
from medrec.data.meds import read_meds, source_files
from medrec.data.meds_export import export_meds, shards
from medrec.data.sources import read_source
from medrec.data.sources import source_files as files_of
from medrec.runs import Home
from quantum.base import DataError, InputError

DEMO = {"format": "mimic4", "path": "data/mimic4-demo"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The MIMIC-IV demo as MEDS."""
    out = tmp_path_factory.mktemp("meds") / "out"
    source = Mimic4Source.model_validate(DEMO)
    events = read_source(source, files_of(source), with_route=True, with_times=True)
    counts = export_meds(events, out, "demo")
    assert counts["subjects"] == 100
    assert counts["shards"] == 1
    return out


def prepare(source, home, **changes):
    config = {"name": "x", "source": source, **changes}
    return prepare_cohort(CohortConfig.model_validate(config), Home(home))


def test_the_files_are_meds(dataset):
    schema = pa_parquet.read_schema(dataset / "data" / "0.parquet")
    kinds = {
        name: schema.field(name).type for name in ("subject_id", "time", "code", "numeric_value")
    }
    assert kinds == {
        "subject_id": pa.int64(), "time": pa.timestamp("us"), "code": pa.string(),
        "numeric_value": pa.float32(),
    }  # fmt: skip
    table = pl.read_parquet(dataset / "data" / "0.parquet")
    assert table["subject_id"].is_sorted()
    for _, one in table.group_by("subject_id"):
        assert one["time"].is_sorted()
    codes = pl.read_parquet(dataset / "metadata" / "codes.parquet")
    assert codes.columns == ["code", "description", "parent_codes"]
    assert set(codes["code"]) == set(table["code"])
    metadata = json.loads((dataset / "metadata" / "dataset.json").read_text())
    assert metadata["meds_version"] == "0.4.1"
    assert metadata["raw_source_id_columns"] == ["hadm_id"]


@pytest.mark.parametrize("preset", ["strict", "legacy"])
def test_round_trip_gives_the_same_visits(dataset, tmp_path, preset):
    direct = prepare(DEMO, tmp_path, preset=preset)
    through = prepare({"format": "meds", "path": str(dataset)}, tmp_path, preset=preset)
    assert through.visits.equals(direct.visits)
    assert through.coverage.equals(direct.coverage)


def test_without_the_number_of_the_stay_times_decide(dataset, tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    table = pl.read_parquet(dataset / "data" / "0.parquet").drop("hadm_id")
    for n, part in enumerate(shards(table, 5000)):
        part.write_parquet(tmp_path / "data" / "train" / f"{n}.parquet")
    through = prepare({"format": "meds", "path": str(tmp_path)}, tmp_path / "home")
    direct = prepare(DEMO, tmp_path / "home")
    assert len(through.visits) == len(direct.visits)
    assert through.visits["diagnoses"].equals(direct.visits["diagnoses"])
    same = through.visits["drugs"] == direct.visits["drugs"]
    assert same.mean() > 0.95
    problems = {item["problem"]: item["rows"] for item in through.record["problems"]}
    assert 0 < problems["event outside every stay"] < 0.01 * len(table)


T = [datetime(2150, 1, day, 12) for day in range(1, 32)]  # noqa: DTZ001 - no zone in MEDS
EVENTS = [
    (1, None, "GENDER//F"),
    (1, T[0], "HOSPITAL_ADMISSION//EW EMER.//WALK-IN"),
    (1, T[0].replace(hour=0), "PROCEDURE//ICD//9//9671"),  # a date: the day of the admission
    (1, T[1], "MEDICATION//START//Furosemide"),
    (1, T[1], "MEDICATION//NDC//00006494300"),
    (1, T[1], "MEDICATION//START//UNK"),
    (1, T[2], "DIAGNOSIS//ICD9CM//401.9"),
    (1, T[2], "HOSPITAL_DISCHARGE//HOME"),
    (1, T[5], "MEDICATION//START//Metformin"),  # between two stays
    (1, T[9], "HOSPITAL_ADMISSION//URGENT//CLINIC"),
    (1, T[9], "DIAGNOSIS//ICD//10//I10"),
    (1, T[10], "LAB//50912//mg/dL"),
]


def write(folder, events, **more):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
    frame = pl.DataFrame(events, schema=schema, orient="row").with_columns(**more)
    frame.write_parquet(folder / "data" / "0.parquet")


def read(folder, **settings):
    source = MedsSource.model_validate({"format": "meds", "path": str(folder), **settings})
    return read_meds(source, source_files(source))


def counted(events) -> dict[str, int]:
    return {item["problem"]: item["rows"] for item in events.problems}


def test_stays_by_time(tmp_path):
    write(tmp_path, EVENTS)
    events = read(tmp_path)
    assert events.admissions["admit_time"].to_list() == [T[0], T[9]]
    assert events.procedures.rows() == [(1, 1, "9671", 9)]
    assert events.diagnoses.rows() == [(1, 1, "4019", 9), (1, 2, "I10", 10)]
    assert events.prescriptions.select("admission", "ndc", "drug").rows() == [
        (1, None, "Furosemide"), (1, "00006494300", None), (1, None, None),
    ]  # fmt: skip
    assert counted(events) == {
        "stay without a discharge": 1,
        "event outside every stay": 1,
        "code with a dot": 1,
    }


def test_codes_may_begin_otherwise(tmp_path):
    write(tmp_path, [(1, T[0], "Visit/IP"), (1, T[0], "ICD9CM/4019"), (1, T[0], "RX/Furosemide")])
    settings = {"admission": ["Visit/"], "diagnosis": {"ICD9CM/": 9}, "medication": ["RX/"]}
    events = read(tmp_path, **settings)
    assert events.diagnoses["code"].to_list() == ["4019"]
    assert events.prescriptions["drug"].to_list() == ["Furosemide"]
    with pytest.raises(DataError, match="no event whose code begins with HOSPITAL_ADMISSION"):
        read(tmp_path)


def test_events_without_a_stay_number_are_counted(tmp_path):
    write(tmp_path, EVENTS[1:], hadm_id=pl.Series([7, 7, 7, 7, None, 7, 7, None, 8, 8, 8]))
    events = read(tmp_path)
    assert events.admissions["admission"].to_list() == [7, 8]
    assert counted(events)["event without a stay (hadm_id)"] == 2


@pytest.mark.parametrize("column", ["time", "code"])
def test_not_meds(tmp_path, column):
    write(tmp_path, EVENTS)
    path = tmp_path / "data" / "0.parquet"
    pl.read_parquet(path).drop(column).write_parquet(path)
    with pytest.raises(DataError, match=f"lacks column {column}"):
        read(tmp_path)


def test_damaged_shard(tmp_path):
    write(tmp_path, EVENTS)
    path = tmp_path / "data" / "0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"0\.parquet: not readable as MEDS events"):
        read(tmp_path)


def test_no_data_folder(tmp_path):
    with pytest.raises(DataError, match="no parquet file below data/"):
        read(tmp_path)


def test_export_overwrites_nothing(tmp_path):
    source = Mimic4Source.model_validate(DEMO)
    events = read_source(source, files_of(source, with_admissions=False))
    with pytest.raises(InputError, match="exists"):
        export_meds(events, tmp_path, "x")
    with pytest.raises(DataError, match="times of admission"):
        export_meds(events, tmp_path / "new", "x")
    assert list(tmp_path.iterdir()) == []
