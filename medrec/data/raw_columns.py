"""Columns of MIMIC-III's and MIMIC-IV's tables, and made-up values for those nobody reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

_IV = {
    "prescriptions": "subject_id,hadm_id,pharmacy_id,poe_id,poe_seq,order_provider_id,starttime,"
    "stoptime,drug_type,drug,formulary_drug_cd,gsn,ndc,prod_strength,form_rx,dose_val_rx,"
    "dose_unit_rx,form_val_disp,form_unit_disp,doses_per_24_hrs,route",
    "diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version",
    "procedures_icd": "subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version",
    "admissions": "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,"
    "admit_provider_id,admission_location,discharge_location,insurance,language,marital_status,"
    "race,edregtime,edouttime,hospital_expire_flag",
    "patients": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
}
_III = {
    "prescriptions": "row_id,subject_id,hadm_id,icustay_id,startdate,enddate,drug_type,drug,"
    "drug_name_poe,drug_name_generic,formulary_drug_cd,gsn,ndc,prod_strength,dose_val_rx,"
    "dose_unit_rx,form_val_disp,form_unit_disp,route",
    "diagnoses_icd": "row_id,subject_id,hadm_id,seq_num,icd9_code",
    "procedures_icd": "row_id,subject_id,hadm_id,seq_num,icd9_code",
    "admissions": "row_id,subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,"
    "admission_location,discharge_location,insurance,language,religion,marital_status,ethnicity,"
    "edregtime,edouttime,diagnosis,hospital_expire_flag,has_chartevents_data",
    "patients": "row_id,subject_id,gender,dob,dod,dod_hosp,dod_ssn,expire_flag",
}
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "mimic3": {table: tuple(text.upper().split(",")) for table, text in _III.items()},
    "mimic4": {table: tuple(text.split(",")) for table, text in _IV.items()},
}
"""Column names by format and table, as they stand in the files of a full release."""

_POOLS = {
    "admission_type": ("EW EMER.", "URGENT", "ELECTIVE", "OBSERVATION ADMIT"),
    "admission_location": ("EMERGENCY ROOM", "TRANSFER FROM HOSPITAL", "PHYSICIAN REFERRAL"),
    "discharge_location": ("HOME", "HOME HEALTH CARE", "SKILLED NURSING FACILITY"),
    "insurance": ("Medicare", "Medicaid", "Other"),
    "language": ("ENGLISH", "?"),
    "marital_status": ("MARRIED", "SINGLE", "WIDOWED"),
    "race": ("WHITE", "UNKNOWN", "OTHER"),
    "ethnicity": ("WHITE", "UNKNOWN/NOT SPECIFIED", "OTHER"),
    "religion": ("CATHOLIC", "UNOBTAINABLE", "OTHER"),
    "diagnosis": ("SEPSIS", "PNEUMONIA", "CHEST PAIN"),
    "gender": ("F", "M"),
    "anchor_year_group": ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019"),
    "dose_val_rx": ("1", "5", "10", "40", "0.5", "500"),
    "dose_unit_rx": ("mg", "mL", "UNIT", "g"),
    "form_val_disp": ("1", "2", "0.5"),
    "form_unit_disp": ("TAB", "VIAL", "mL", "BAG"),
    "doses_per_24_hrs": ("1", "2", "3", "4"),
    "route": ("PO/NG", "IV", "PO", "SC", "IV DRIP"),
    "order_provider_id": tuple(f"P{number:02d}XYZ" for number in range(100)),
    "admit_provider_id": tuple(f"P{number:02d}ABC" for number in range(100)),
}


def table_path(like: str, folder: Path, table: str) -> Path:
    """Where a table of a format lies."""
    if like == "mimic4":
        return folder / "hosp" / f"{table}.csv.gz"
    return folder / f"{table.upper()}.csv.gz"


def complete(
    like: str, table: str, frame: pl.DataFrame, n_before: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Give a piece of a table every column of its format.

    Parameters
    ----------
    n_before : int
        Rows of the table before this piece, for running numbers.
    """
    wanted = [name.lower() for name in TABLES[like][table]]
    frame = frame.with_columns(**_derived(frame, table))
    n, columns = len(frame), []
    for name in wanted:
        if name in frame.columns:
            continue
        if name in ("row_id", "pharmacy_id", "poe_seq"):
            columns.append(pl.Series(name, np.arange(n_before + 1, n_before + n + 1)))
        elif name in _POOLS:
            pool = pl.Series(_POOLS[name])
            columns.append(pool.gather(rng.integers(0, len(pool), n)).alias(name))
        elif name.endswith(("flag", "_data")):
            columns.append(pl.Series(name, rng.integers(0, 2, n)))
        else:  # times of death, emergency stays: often empty in the original too
            columns.append(pl.Series(name, [None] * n, dtype=pl.String))
    return frame.with_columns(columns).select(wanted)


def _derived(frame: pl.DataFrame, table: str) -> dict[str, pl.Expr]:
    """Columns of either format that follow from others."""
    if table == "prescriptions":
        return {
            "starttime": pl.col("start"),
            "stoptime": pl.col("stop"),
            "startdate": pl.col("start").dt.truncate("1d"),
            "enddate": pl.col("stop").dt.truncate("1d"),
            "drug_name_poe": pl.col("drug"),
            "drug_name_generic": pl.col("drug"),
            "formulary_drug_cd": pl.col("code"),
            "prod_strength": pl.concat_str("strength", pl.lit(" "), "form"),
            "form_rx": pl.col("form"),
            "poe_id": pl.concat_str(
                pl.col("subject_id").cast(pl.String), pl.lit("-"), pl.int_range(pl.len())
            ),
        }
    if table in ("diagnoses_icd", "procedures_icd"):
        return {
            "icd_code": pl.col("code"),
            "icd9_code": pl.col("code"),
            "chartdate": pl.col("chartdate").dt.date(),
        }
    if table == "patients":
        return {
            "dob": pl.col("begin").dt.offset_by("-60y").dt.truncate("1d"),
            "anchor_year": pl.col("begin").dt.year(),
            "anchor_age": pl.lit(60),
        }
    return {}
