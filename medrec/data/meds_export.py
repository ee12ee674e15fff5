"""Our events as a dataset in the Medical Event Data Standard (MEDS 0.4).

Codes are those of MEDS datasets made from MIMIC-IV: ``HOSPITAL_ADMISSION``, ``HOSPITAL_DISCHARGE``,
``DIAGNOSIS//ICD//9//4019``, ``PROCEDURE//ICD//10//0BH17EZ``, ``MEDICATION//START//Furosemide``; a
procedure that is no ICD code is ``PROCEDURE//PATH//``. The stay is in the column ``hadm_id``; the
columns ``ndc``, ``gsn``, ``drug_type`` and ``route`` modify a drug's code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from medrec.data import checks
from medrec.data.codes import CodeMaps
from medrec.data.meds import DRUG_FIELDS, MICROSECONDS, UNKNOWN
from medrec.data.schema import Events
from quantum.base import DataError, InputError, now_utc, package_versions, publish_folder

MEDS_VERSION = "0.4.1"
SHARD_ROWS = 5_000_000


def export_meds(
    events: Events, out: Path, name: str, titles: Callable[[str], str] | None = None
) -> dict[str, int]:
    """Write a MEDS dataset; all of it or nothing.

    Parameters
    ----------
    out : pathlib.Path
        Folder that does not exist yet.
    name : str
        ``dataset_name`` of the metadata.
    titles : callable, optional
        MEDS code to its description, "" where there is none.

    Returns
    -------
    dict
        Number of ``subjects``, ``events``, ``codes`` and ``shards``.

    Raises
    ------
    InputError
        If the folder exists.
    DataError
        If the events have no admissions.
    """
    if out.exists():
        raise InputError(f"{out} exists; expected a folder that is not there yet")
    table = event_table(events)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "data").mkdir(parents=True)
        (temporary / "metadata").mkdir()
        n = 0
        for n, part in enumerate(shards(table, SHARD_ROWS), start=1):
            pa_parquet.write_table(arrow_table(part), temporary / "data" / f"{n - 1}.parquet")
        codes = _codes(table, titles or (lambda code: ""))
        pa_parquet.write_table(codes, temporary / "metadata" / "codes.parquet")
        metadata = json.dumps(_metadata(name), indent=2) + "\n"
        (temporary / "metadata" / "dataset.json").write_text(metadata, encoding="utf-8")
        publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "subjects": table["subject_id"].n_unique(),
        "events": len(table),
        "codes": codes.num_rows,
        "shards": n,
    }


def code_title(maps: CodeMaps, code: str) -> str:
    """Description of a code that `event_table` writes; "" where none is known."""
    system, *parts = code.split("//")
    if system == "MEDICATION":
        return "//".join(parts[1:])
    if system in ("DIAGNOSIS", "PROCEDURE") and len(parts) == 3 and parts[1] in ("9", "10"):
        return maps.title(system.lower(), parts[2], int(parts[1]))
    return ""


def _metadata(name: str) -> dict[str, object]:
    return {
        "dataset_name": name,
        "etl_name": "medrec",
        "etl_version": package_versions("medrec")["medrec"],
        "meds_version": MEDS_VERSION,
        "created_at": now_utc(),
        "raw_source_id_columns": ["hadm_id"],
        "code_modifier_columns": list(DRUG_FIELDS),
    }


def _codes(table: pl.DataFrame, titles: Callable[[str], str]) -> pa.Table:
    codes = table["code"].unique().sort().to_list()
    schema = pa.schema(
        [
            pa.field("code", pa.string(), nullable=False),
            pa.field("description", pa.string()),
            pa.field("parent_codes", pa.list_(pa.string())),
        ]
    )
    columns = {
        "code": codes,
        "description": [titles(code) or None for code in codes],
        "parent_codes": [None] * len(codes),
    }
    return pa.table(columns, schema=schema)


def event_table(events: Events) -> pl.DataFrame:
    """Our events as MEDS events, sorted by subject and time.

    Times: a stay's own; a drug's or procedure's start where it is known, else the admission's;
    a diagnosis has the end of its stay, where it is known. Rows of stays without an admission
    time have no time.

    Raises
    ------
    DataError
        If the events have no table of admissions.
    """
    if events.admissions is None:
        raise DataError(f"{events.where}: export needs the times of admission; none were read")
    stays = events.admissions
    if "discharge_time" not in stays.columns:
        stays = stays.with_columns(discharge_time=pl.lit(None, dtype=MICROSECONDS))
    parts = [
        _stay_events(stays, "admit_time", "HOSPITAL_ADMISSION"),
        _stay_events(stays.drop_nulls("discharge_time"), "discharge_time", "HOSPITAL_DISCHARGE"),
        _code_events(events.diagnoses, "DIAGNOSIS//ICD", stays, "discharge_time"),
        _code_events(events.procedures, "PROCEDURE//ICD", stays, "admit_time"),
        _drug_events(events.prescriptions, stays),
    ]
    table = pl.concat(parts, how="diagonal")
    # stays begin before anything else of the same minute, and end after it
    table = table.sort("subject_id", "time", "order", "code", "hadm_id", maintain_order=True)
    return table.select(
        "subject_id",
        "time",
        "code",
        pl.lit(None, dtype=pl.Float32).alias("numeric_value"),
        "hadm_id",
        *DRUG_FIELDS,
    )


def _stay_events(stays: pl.DataFrame, time: str, code: str) -> pl.DataFrame:
    return stays.select(
        subject_id="subject",
        time=pl.col(time).cast(MICROSECONDS),
        code=pl.lit(code),
        hadm_id="admission",
        order=pl.lit(0 if time == "admit_time" else 2),
    )


def _timed(rows: pl.DataFrame, own: str, stays: pl.DataFrame, other: str) -> pl.DataFrame:
    """Rows with ``at``: their own time, else that of their stay."""
    begin = stays.select(*checks.PERSON, "admit_time", "discharge_time")
    rows = rows.join(begin, on=checks.PERSON, how="left", maintain_order="left")
    mine = [own] if own in rows.columns else []
    return rows.with_columns(at=pl.coalesce(*mine, other, "admit_time").cast(MICROSECONDS))


def _code_events(rows: pl.DataFrame, head: str, stays: pl.DataFrame, time: str) -> pl.DataFrame:
    rows = _timed(rows.drop_nulls("code"), "time", stays, time)
    system = pl.when(pl.col("version") == 0).then(pl.lit("PROCEDURE//PATH")).otherwise(
        pl.concat_str(pl.lit(f"{head}//"), pl.col("version").cast(pl.String))
    )  # fmt: skip
    return rows.select(
        subject_id="subject",
        time="at",
        code=pl.concat_str(system, pl.lit("//"), "code"),
        hadm_id="admission",
        order=pl.lit(1),
    )


def _drug_events(rows: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    rows = _timed(rows, "start_time", stays, "admit_time")
    if "route" not in rows.columns:
        rows = rows.with_columns(route=pl.lit(None, dtype=pl.String))
    name = pl.col("drug").fill_null(UNKNOWN)
    return rows.select(
        *(pl.col(field) for field in DRUG_FIELDS),
        subject_id="subject",
        time="at",
        code=pl.concat_str(pl.lit("MEDICATION//START//"), name),
        hadm_id="admission",
        order=pl.lit(1),
    )


def shards(table: pl.DataFrame, rows: int) -> Iterable[pl.DataFrame]:
    """Consecutive parts of about ``rows`` rows; no subject is in two of them."""
    per_subject = table.group_by("subject_id", maintain_order=True).len()
    start = size = 0
    for (n,) in per_subject.select("len").iter_rows():
        if size and size + n > rows:
            yield table.slice(start, size)
            start, size = start + size, 0
        size += n
    yield table.slice(start, size)


def arrow_table(frame: pl.DataFrame) -> pa.Table:
    """Arrow table with the types that MEDS asks for."""
    kinds = {
        "subject_id": pa.int64(),
        "time": pa.timestamp("us"),
        "numeric_value": pa.float32(),
        "hadm_id": pa.int64(),
    }
    fields = [
        pa.field(name, kinds.get(name, pa.string()), name not in ("subject_id", "code"))
        for name in frame.columns
    ]
    return frame.to_arrow().cast(pa.schema(fields))
