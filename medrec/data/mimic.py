"""MIMIC-III and MIMIC-IV tables to events.

Only the columns that are used are read. Tables may be CSV, gzip CSV or parquet, file and column
names in any case. Codes stay text. Messages name files, tables, columns and counts, never a value.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from medrec.config import Mimic3Source, Mimic4Source
from medrec.data import checks
from medrec.data.checks import Problems
from medrec.data.schema import Events, resolve_path
from medrec.data.tables import TABLE_ENDINGS, read_columns
from quantum.base import DataError

MimicSource = Mimic3Source | Mimic4Source
_PERSON = {"subject_id": "subject", "hadm_id": "admission"}
_DRUG_COLUMNS = {"drug_type": "drug_type", "gsn": "gsn", "ndc": "ndc", "drug": "drug"}
_TABLES = ("prescriptions", "diagnoses_icd", "procedures_icd")
_START = {"mimic3": "startdate", "mimic4": "starttime"}


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
    places = [folder / "hosp", folder] if source.format == "mimic4" else [folder]
    what = "MIMIC-IV" if source.format == "mimic4" else "MIMIC-III"
    return {table: find_table(places, table, what) for table in tables}


def find_table(places: list[Path], table: str, what: str) -> Path:
    """First file of a table: CSV, then gzip CSV, then parquet, name in any case.

    Raises
    ------
    DataError
        If no folder has one.
    """
    wanted = [f"{table}{ending}" for ending in TABLE_ENDINGS]
    for place in places:
        if not place.is_dir():
            continue
        by_lower = {item.name.lower(): item for item in sorted(place.iterdir()) if item.is_file()}
        for name in wanted:
            if name in by_lower:
                return by_lower[name]
    where = " or ".join(str(place) for place in places)
    raise DataError(
        f"table {table} not found in {where}; expected {' or '.join(wanted)} (any case) of {what}"
    )


def read_mimic(
    source: MimicSource,
    files: dict[str, Path],
    *,
    with_route: bool = False,
    with_times: bool = False,
) -> Events:
    """Read the tables found by `source_files`.

    Parameters
    ----------
    with_route : bool
        Read ``route`` of the prescriptions too, if the table has it.
    with_times : bool
        Read the times of orders and procedures too, if the tables have them.

    Raises
    ------
    DataError
        Unreadable file, missing column, identifier or version that is not a whole number, time
        that does not parse.
    """
    problems = Problems()
    tables = {"prescriptions": _prescriptions(source, files, with_route, with_times, problems)}
    for table in ("diagnoses_icd", "procedures_icd"):
        tables[table] = _codes(source, files[table], table, with_times, problems)
    if "admissions" in files:
        tables["admissions"] = _admissions(files["admissions"], problems)
    tables = checks.drop_shared_stays(tables, problems)
    return Events(
        tables["prescriptions"],
        tables["diagnoses_icd"],
        tables["procedures_icd"],
        tables.get("admissions"),
        where=source.path,
        problems=problems.found,
    )


def _read(
    path: Path,
    table: str,
    columns: dict[str, str],
    problems: Problems,
    *,
    optional: tuple[str, ...] = (),
    integers: tuple[str, ...] = (),
) -> pl.DataFrame:
    numbers = (*_PERSON, *integers)
    frame = read_columns(path, table, _PERSON | columns, optional=optional, integers=numbers)
    checks.check_empty(frame, table, problems)
    return checks.drop_rows_of_nobody(frame, table, problems)


def _prescriptions(
    source: MimicSource,
    files: dict[str, Path],
    with_route: bool,
    with_times: bool,
    problems: Problems,
) -> pl.DataFrame:
    path, start = files["prescriptions"], _START[source.format]
    columns = dict(_DRUG_COLUMNS)
    if with_route:
        columns["route"] = "route"
    if with_times:
        columns[start] = "start_time"
    frame = _read(path, "prescriptions", columns, problems, optional=("route", start))
    if "start_time" in frame.columns:
        frame = checks.read_times(frame, "start_time", start, "prescriptions", path, problems)
    return frame


def _codes(
    source: MimicSource, path: Path, table: str, with_times: bool, problems: Problems
) -> pl.DataFrame:
    stated = source.format == "mimic4"
    columns = {"icd_code": "code", "icd_version": "version"} if stated else {"icd9_code": "code"}
    timed = with_times and stated and table == "procedures_icd"
    if timed:
        columns["chartdate"] = "time"
    frame = _read(
        path, table, columns, problems, optional=("chartdate",), integers=("icd_version",)
    )
    if not stated:
        frame = frame.with_columns(version=pl.lit(9, dtype=pl.Int64))
    wrong = len(frame) - int(frame["version"].is_in([9, 10]).sum())
    if wrong:
        raise DataError(
            f"{path}: table {table}, column icd_version: {wrong} of {len(frame)} rows are "
            "neither 9 nor 10; expected the version of every code"
        )
    frame = checks.clean_codes(frame, table, problems)
    checks.check_icd_versions(frame, table, table.removesuffix("_icd"), problems, stated)
    if "time" in frame.columns:
        frame = checks.read_times(frame, "time", "chartdate", table, path, problems)
    return frame


def _admissions(path: Path, problems: Problems) -> pl.DataFrame:
    columns = {"admittime": "admit_time", "dischtime": "discharge_time"}
    frame = _read(path, "admissions", columns, problems, optional=("dischtime",))
    for raw, name in columns.items():
        if name in frame.columns:
            frame = checks.read_times(frame, name, raw, "admissions", path, problems)
    return checks.check_stays(frame, "admissions", problems)
