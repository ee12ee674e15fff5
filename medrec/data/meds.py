"""The Medical Event Data Standard (MEDS 0.4): events of a dataset in, our events out.

A MEDS dataset is a folder::

    data/**/*.parquet                  subject_id int64, time timestamp[us], code string,
                                       numeric_value float32, and more; one subject in one file
    metadata/dataset.json              names and versions, all optional
    metadata/codes.parquet             code, description, parent_codes
    metadata/subject_splits.parquet    subject_id, split; optional, not used here

MEDS fixes the columns and not the codes; `medrec.config.MedsSource` says how codes of stays,
diagnoses, procedures and drugs begin (by default as in MEDS made from MIMIC-IV). Where events have
the column ``hadm_id`` it says to which stay they belong, otherwise the time does. The columns
``ndc``, ``gsn``, ``drug_type`` and ``route`` of drug events are used where they are. Export is in
`medrec.data.meds_export`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from medrec.config import MedsSource
from medrec.data import checks
from medrec.data.checks import Problems
from medrec.data.schema import Events, resolve_path
from quantum.base import DataError

UNKNOWN = "UNK"
"""Stands for a missing part of a code in MEDS datasets."""

MICROSECONDS = pl.Datetime("us")
DRUG_FIELDS = ("ndc", "gsn", "drug_type", "route")


def source_files(source: MedsSource) -> dict[str, Path]:
    """Find the event files: their place below ``data/`` to file, in order.

    Raises
    ------
    InputError
        If the folder does not exist, or names a variable that is not set.
    DataError
        If it has no parquet file below ``data/``.
    """
    folder = resolve_path(source.path)
    files = sorted((folder / "data").rglob("*.parquet"))
    if not files:
        raise DataError(
            f"{source.path}: no parquet file below data/; expected the folder of a MEDS dataset, "
            "which holds data/ and metadata/"
        )
    return {str(path.relative_to(folder)): path for path in files}


@dataclass(frozen=True)
class _Kinds:
    """Beginnings of codes by what they mean."""

    source: MedsSource

    def prefixes(self) -> dict[str, tuple[str, int]]:
        """Beginning to kind and ICD version; longer beginnings first."""
        source = self.source
        found: dict[str, tuple[str, int]] = {}
        found |= dict.fromkeys(source.admission, ("admission", 0))
        found |= dict.fromkeys(source.discharge, ("discharge", 0))
        found |= {key: ("diagnosis", version) for key, version in source.diagnosis.items()}
        found |= {key: ("procedure", version) for key, version in source.procedure.items()}
        found |= dict.fromkeys(source.medication, ("drug", 0))
        found |= dict.fromkeys(source.medication_ndc, ("ndc", 0))
        return dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))


def read_meds(source: MedsSource, files: Mapping[str, Path], *, with_times: bool = False) -> Events:
    """Read the files found by `source_files`, one after the other.

    Parameters
    ----------
    with_times : bool
        Keep the times of orders and procedures, and of discharges.

    Raises
    ------
    DataError
        File that is no parquet, or lacks a column of MEDS; no stay among the events.
    """
    problems = Problems()
    kinds = _Kinds(source).prefixes()
    events = pl.concat([_read_file(path, kinds) for path in files.values()], how="diagonal")
    events = events.with_columns(
        pl.lit(None, pl.String).alias(name) for name in DRUG_FIELDS if name not in events.columns
    )
    nobody = events["subject"].null_count()
    problems.add("data", "event without a subject", nobody, "left out")
    events = events.drop_nulls("subject")
    if events.filter(pl.col("kind") == "admission").is_empty():
        raise DataError(
            f"{source.path}: no event whose code begins with {' or '.join(source.admission)}; "
            "expected one for each stay (set source.admission)"
        )
    if "hadm_id" in events.columns:
        events, stays = _stays_by_number(events, problems)
    else:
        events, stays = _stays_by_time(events, problems)
    return _events(source, events, stays, with_times, problems)


def _read_file(path: Path, kinds: Mapping[str, tuple[str, int]]) -> pl.DataFrame:
    try:
        table = pl.scan_parquet(path)
        columns = set(table.collect_schema().names())
        missing = [name for name in ("subject_id", "time", "code") if name not in columns]
        if missing:
            raise DataError(
                f"{path}: lacks column {', '.join(missing)}; expected the MEDS columns "
                f"subject_id, time, code; the file has {', '.join(sorted(columns))}"
            )
        code = pl.col("code").cast(pl.String)
        wanted = pl.any_horizontal(code.str.starts_with(prefix) for prefix in kinds)
        more = [name for name in DRUG_FIELDS if name in columns]
        selected = [
            pl.col("subject_id").cast(pl.Int64).alias("subject"),
            pl.col("time").cast(MICROSECONDS),
            code,
            *(pl.col(name).cast(pl.String) for name in more),
        ]
        if "hadm_id" in columns:
            selected.append(_number("hadm_id", table.collect_schema()["hadm_id"]))
        frame = table.filter(wanted).select(selected).collect(engine="streaming")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path}: not readable as MEDS events ({type(error).__name__}); expected a complete "
            "parquet file with subject_id int64, time timestamp, code string"
        ) from error
    return _split_codes(frame, kinds)


def _number(name: str, kind: pl.DataType) -> pl.Expr:
    if kind == pl.String:
        return pl.col(name).str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    return pl.col(name).cast(pl.Int64)


def _split_codes(frame: pl.DataFrame, kinds: Mapping[str, tuple[str, int]]) -> pl.DataFrame:
    """Code to ``kind``, ``version`` and ``rest``, by distinct codes."""
    distinct = frame.select("code").unique()
    rows = []
    for (code,) in distinct.iter_rows():
        prefix = next(item for item in kinds if code.startswith(item))
        kind, version = kinds[prefix]
        rest = code.removeprefix(prefix)
        rows.append((code, kind, version, None if rest in ("", UNKNOWN) else rest))
    table = pl.DataFrame(
        rows,
        schema={"code": pl.String, "kind": pl.String, "version": pl.Int64, "rest": pl.String},
        orient="row",
    )
    return frame.join(table, on="code", how="left", maintain_order="left").drop("code")


# --------------------------------------------------------------------------- stays


def _stays_by_number(events: pl.DataFrame, problems: Problems) -> tuple[pl.DataFrame, pl.DataFrame]:
    events = events.rename({"hadm_id": "admission"})
    lost = int(events["admission"].null_count())
    problems.add("data", "event without a stay (hadm_id)", lost, "left out: it belongs to no visit")
    events = events.drop_nulls("admission")
    starts = events.filter(pl.col("kind") == "admission")
    ends = events.filter(pl.col("kind") == "discharge").group_by(checks.PERSON)
    stays = starts.select(*checks.PERSON, admit_time="time").join(
        ends.agg(discharge_time=pl.col("time").max()), on=checks.PERSON, how="left"
    )
    return events, checks.check_stays(stays, "data", problems)


def _stays_by_time(events: pl.DataFrame, problems: Problems) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Number the stays, and give every event the stay in which, or on whose days, it falls."""
    timeless = events["time"].null_count()
    problems.add("data", "event without a time", timeless, "left out: it belongs to no stay")
    events = events.drop_nulls("time").sort("time", maintain_order=True)
    starts = (
        events.filter(pl.col("kind") == "admission")
        .select("subject", admit_time="time")
        .unique()
        .sort("subject", "admit_time")
        .with_row_index("admission", offset=1)
        .with_columns(pl.col("admission").cast(pl.Int64))
    )
    following = pl.col("admit_time").shift(-1).over("subject")
    starts = starts.with_columns(following=following).sort("admit_time")
    ends = events.filter(pl.col("kind") == "discharge").select("subject", discharge_time="time")
    stays = starts.join_asof(
        ends, left_on="admit_time", right_on="discharge_time", by="subject", strategy="forward",
        coalesce=False, check_sortedness=False,
    )  # fmt: skip
    belongs = pl.col("following").is_null() | (pl.col("discharge_time") <= pl.col("following"))
    stays = stays.with_columns(discharge_time=pl.when(belongs).then("discharge_time"))
    open_end = stays["discharge_time"].null_count()
    problems.add("data", "stay without a discharge", open_end, "ends on the day it began")
    stays = stays.with_columns(end=pl.coalesce("discharge_time", "admit_time"))
    other = ~pl.col("kind").is_in(["admission", "discharge"])
    found = _within(events.filter(other), stays)
    lost = found["admission"].null_count()
    problems.add("data", "event outside every stay", lost, "left out: it belongs to no visit")
    columns = [*checks.PERSON, "admit_time", "discharge_time"]
    return found.drop_nulls("admission"), stays.select(columns).sort(checks.PERSON)


def _within(events: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """Stay of each event: from admission to discharge, else on the days of the two.

    Procedures often have a date only, which is before the admission's hour of the same day.
    """
    exact = _last_started(events, stays, "time", "admit_time")
    inside = pl.col("time") <= pl.col("end")
    exact = exact.with_columns(admission=pl.when(inside).then("admission")).drop("end")
    found = exact.filter(pl.col("admission").is_not_null())
    rest = exact.filter(pl.col("admission").is_null()).drop("admission")
    rest = rest.with_columns(day=pl.col("time").dt.truncate("1d"))
    by_day = stays.with_columns(pl.col("admit_time").dt.truncate("1d")).sort("admit_time")
    daily = _last_started(rest, by_day, "day", "admit_time")
    inside = pl.col("day") <= pl.col("end").dt.truncate("1d")
    daily = daily.with_columns(admission=pl.when(inside).then("admission"))
    return pl.concat([found, daily.drop("end", "day")], how="diagonal")


def _last_started(events: pl.DataFrame, stays: pl.DataFrame, time: str, start: str) -> pl.DataFrame:
    begun = stays.select("subject", "admission", "end", pl.col(start).alias("start"))
    return events.sort(time, maintain_order=True).join_asof(
        begun, left_on=time, right_on="start", by="subject", strategy="backward", coalesce=False,
        check_sortedness=False,
    ).drop("start")  # fmt: skip


# --------------------------------------------------------------------------- events


def _events(
    source: MedsSource,
    events: pl.DataFrame,
    stays: pl.DataFrame,
    with_times: bool,
    problems: Problems,
) -> Events:
    tables = {
        "prescriptions": _drugs(events, with_times),
        "diagnoses": _codes(events, "diagnosis", False, problems),
        "procedures": _codes(events, "procedure", with_times, problems),
        "admissions": stays,
    }
    tables = checks.drop_shared_stays(tables, problems)
    return Events(**tables, where=source.path, problems=problems.found)  # type: ignore[arg-type]


def _drugs(events: pl.DataFrame, with_times: bool) -> pl.DataFrame:
    rows = events.filter(pl.col("kind").is_in(["drug", "ndc"]))
    number = pl.when(pl.col("kind") == "ndc").then("rest")
    times = [pl.col("time").alias("start_time")] if with_times else []
    return rows.select(
        *checks.PERSON,
        pl.col("drug_type").fill_null("MAIN"),
        "gsn",
        pl.coalesce(number, "ndc").alias("ndc"),
        pl.when(pl.col("kind") == "drug").then("rest").alias("drug"),
        "route",
        *times,
    )


def _codes(events: pl.DataFrame, kind: str, with_times: bool, problems: Problems) -> pl.DataFrame:
    columns = [*checks.PERSON, "code", "version", *(["time"] if with_times else [])]
    rows = events.filter(pl.col("kind") == kind).rename({"rest": "code"}).select(columns)
    table = "data, diagnoses" if kind == "diagnosis" else "data, procedures"
    icd = checks.clean_codes(rows.filter(pl.col("version") != 0), table, problems)
    plural = "diagnoses" if kind == "diagnosis" else "procedures"
    checks.check_icd_versions(icd, table, plural, problems, stated=True)
    return pl.concat([icd, rows.filter(pl.col("version") == 0)])
