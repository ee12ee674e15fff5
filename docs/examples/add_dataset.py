"""Tables of another hospital as a dataset in the Medical Event Data Standard (MEDS)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

_COLUMNS = ["subject_id", "time", "code", "numeric_value", "hadm_id"]


# --8<-- [start:events]
def _events(frame: pl.DataFrame, code: pl.Expr, time: str) -> pl.DataFrame:
    """Rows of a table as events: whose, when, what, and in which stay."""
    return frame.select(
        pl.col("patient").cast(pl.Int64).alias("subject_id"),
        pl.col(time).str.to_datetime(time_unit="us").alias("time"),
        code.alias("code"),
        pl.lit(None, pl.Float32).alias("numeric_value"),
        pl.col("stay").cast(pl.Int64).alias("hadm_id"),
    )


def write_meds(stays: Path, diagnoses: Path, drugs: Path, out: Path) -> int:
    """Write a MEDS dataset from three CSV files, and return the number of events.

    Parameters
    ----------
    stays : Path
        Columns ``patient``, ``stay``, ``admitted``, ``discharged`` (ISO 8601 times).
    diagnoses : Path
        Columns ``stay``, ``icd10``: ICD-10-CM codes, with or without a dot.
    drugs : Path
        Columns ``stay``, ``started``, ``name``: generic names.
    out : Path
        Folder of the dataset.
    """
    stay = pl.read_csv(stays)
    owner = stay.select("stay", "patient", "discharged")
    coded = pl.read_csv(diagnoses).join(owner, on="stay")
    given = pl.read_csv(drugs).join(owner, on="stay")
    plain = pl.col("icd10").str.to_uppercase().str.replace_all(".", "", literal=True)
    table = pl.concat(
        [
            _events(stay, pl.lit("HOSPITAL_ADMISSION"), "admitted"),
            _events(stay, pl.lit("HOSPITAL_DISCHARGE"), "discharged"),
            _events(coded, pl.lit("DIAGNOSIS//ICD//10//") + plain, "discharged"),
            _events(given, pl.lit("MEDICATION//START//") + pl.col("name"), "started"),
        ]
    ).sort("subject_id", "time")
    (out / "data").mkdir(parents=True)
    table.select(_COLUMNS).write_parquet(out / "data" / "0.parquet")
    return len(table)


# --8<-- [end:events]
