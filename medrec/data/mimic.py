"""MIMIC-III and MIMIC-IV tables to events.

Only the columns that are used are read. File names may be in any case, plain or gzip; column names
in any case. Codes stay text. Messages name files, tables, columns and counts, never a value.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from medrec.config import Mimic3Source, Mimic4Source
from medrec.data.schema import Events, resolve_path
from medrec.data.tables import read_columns
from quantum.base import DataError

MimicSource = Mimic3Source | Mimic4Source
_PERSON = {"subject_id": "subject", "hadm_id": "admission"}
_DRUG_COLUMNS = {"drug_type": "drug_type", "gsn": "gsn", "ndc": "ndc", "drug": "drug"}
_TABLES = ("prescriptions", "diagnoses_icd", "procedures_icd")
_TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")


def source_files(source: MimicSource, *, with_admissions: bool) -> dict[str, Path]:
    """Find the tables that will be read: table name to file.

    Parameters
    ----------
    with_admissions : bool
        Only the order by admission time needs that table.

    Raises
    ------
    InputError
        If the folder does not exist, or names a variable that is not set.
    DataError
        If a table is missing; the message says which file names were looked for.
    """
    folder = resolve_path(source.path)
    if not folder.is_dir():
        raise DataError(
            f"{source.path}: is a file; expected the folder of the {source.format} tables"
        )
    tables = (*_TABLES, "admissions") if with_admissions else _TABLES
    return {table: _find_table(folder, table, source) for table in tables}


def _find_table(folder: Path, table: str, source: MimicSource) -> Path:
    places = [folder / "hosp", folder] if source.format == "mimic4" else [folder]
    wanted = (f"{table}.csv", f"{table}.csv.gz")
    for place in places:
        if not place.is_dir():
            continue
        by_lower = {item.name.lower(): item for item in sorted(place.iterdir()) if item.is_file()}
        for name in wanted:
            if name in by_lower:
                return by_lower[name]
    where = " or ".join(str(place) for place in places)
    raise DataError(
        f"table {table} not found in {where}; expected {' or '.join(wanted)} (any case) of "
        f"{'MIMIC-IV' if source.format == 'mimic4' else 'MIMIC-III'}"
    )


def read_mimic(source: MimicSource, files: dict[str, Path]) -> Events:
    """Read the tables found by `source_files`.

    Raises
    ------
    DataError
        Unreadable file, missing column, identifier or version that is not a whole number, time
        that does not parse.
    """
    icd = (
        {"icd9_code": "code"}
        if source.format == "mimic3"
        else {"icd_code": "code", "icd_version": "version"}
    )
    prescriptions = _read(files["prescriptions"], "prescriptions", _PERSON | _DRUG_COLUMNS)
    diagnoses = _codes(files["diagnoses_icd"], "diagnoses_icd", icd)
    procedures = _codes(files["procedures_icd"], "procedures_icd", icd)
    admissions = None
    if "admissions" in files:
        path = files["admissions"]
        table = _read(path, "admissions", _PERSON | {"admittime": "admit_time"})
        admissions = _with_times(table, "admit_time", path)
    return Events(prescriptions, diagnoses, procedures, admissions, where=source.path)


def _read(path: Path, table: str, columns: dict[str, str]) -> pl.DataFrame:
    frame = read_columns(path, table, columns)
    for raw, name in _PERSON.items():
        frame = _whole_numbers(frame, name, raw, table, path)
    # a row of no admission (an outpatient order) belongs to no visit
    return frame.drop_nulls(list(_PERSON.values()))


def _codes(path: Path, table: str, icd: dict[str, str]) -> pl.DataFrame:
    frame = _read(path, table, _PERSON | icd)
    if "version" in frame.columns:
        frame = _whole_numbers(frame, "version", "icd_version", table, path)
        wrong = len(frame) - int(frame["version"].is_in([9, 10]).sum())
        if wrong:
            raise DataError(
                f"{path}: table {table}, column icd_version: {wrong} of {len(frame)} rows are "
                "neither 9 nor 10; expected the version of every code"
            )
    else:
        frame = frame.with_columns(version=pl.lit(9, dtype=pl.Int64))
    code = (
        pl.col("code").str.strip_chars().str.replace_all(".", "", literal=True).str.to_uppercase()
    )
    code = pl.when(code == "").then(None).otherwise(code)
    return frame.select("subject", "admission", code.alias("code"), "version")


def _whole_numbers(
    frame: pl.DataFrame, name: str, raw: str, table: str, path: Path
) -> pl.DataFrame:
    text = frame[name].str.strip_chars()
    # tables that went through a spreadsheet or a data frame carry 142345.0
    numbers = text.str.replace(r"\.0$", "").cast(pl.Int64, strict=False)
    wrong = int((numbers.is_null() & text.is_not_null()).sum())
    if wrong:
        raise DataError(
            f"{path}: table {table}, column {raw}: {wrong} of {len(frame)} values are not whole "
            "numbers; expected an integer identifier in every row"
        )
    return frame.with_columns(numbers.alias(name))


def _with_times(frame: pl.DataFrame, name: str, path: Path) -> pl.DataFrame:
    text = pl.col(name).str.strip_chars()
    parsed = pl.coalesce(
        [text.str.to_datetime(form, strict=False, time_unit="us") for form in _TIME_FORMATS]
    )
    result = frame.with_columns(parsed.alias(name))
    wrong = int((result[name].is_null() & frame[name].is_not_null()).sum())
    if wrong:
        raise DataError(
            f"{path}: table admissions, column admittime: {wrong} of {len(frame)} times do not "
            "parse; expected YYYY-MM-DD HH:MM:SS"
        )
    return result
