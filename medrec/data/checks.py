"""What can be wrong with raw tables: counted, put right or left out, and reported.

A reader passes its tables through these checks. What can be put right without a guess is put right,
what cannot is left out or refused; every case is counted in `Problems`, which ends in the record of
the cohort. Nothing here keeps or prints a value of a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from quantum.base import DataError

PERSON = ["subject", "admission"]
TIME_FORMS = (
    "YYYY-MM-DD[ HH:MM[:SS[.f]]]",
    "the same with T, / or a final Z",
    "YYYYMMDD",
    "DD-MON-YYYY[ HH:MM[:SS]]",
)
"""Forms of a time that are read. MM/DD/YYYY and DD/MM/YYYY cannot be told apart: refused."""

_USUAL = "%Y-%m-%d %H:%M:%S"
_UNUSUAL = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y%m%d",
    "%d-%b-%Y %H:%M:%S",
    "%d-%b-%Y %H:%M",
    "%d-%b-%Y",
)
_SHAPES = {
    ("diagnoses", 9): r"^(\d{3,5}|V\d{2,4}|E\d{3,4})$",
    ("diagnoses", 10): r"^[A-Z]\d[0-9A-Z]{1,5}$",
    ("procedures", 9): r"^\d{2,4}$",
    ("procedures", 10): r"^[0-9A-HJ-NP-Z]{7}$",
}


@dataclass
class Problems:
    """Rows that were not as expected, by table and kind."""

    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, table: str, problem: str, rows: int, done: str, *, always: bool = False) -> None:
        """Count ``rows`` rows of ``table``; none is no problem, unless ``always``."""
        if rows or always:
            self.found.append({"table": table, "problem": problem, "rows": int(rows), "done": done})


def check_empty(frame: pl.DataFrame, table: str, problems: Problems) -> None:
    """Report a table that has names of columns but no row."""
    if frame.is_empty():
        problems.add(table, "table without a row", 0, "taken as empty", always=True)


def drop_rows_of_nobody(frame: pl.DataFrame, table: str, problems: Problems) -> pl.DataFrame:
    """Leave out rows without a patient or without an admission: they belong to no visit."""
    nobody = frame["subject"].null_count()
    problems.add(table, "row without a patient", nobody, "left out")
    kept = frame.drop_nulls(PERSON)
    problems.add(
        table,
        "row without an admission",
        len(frame) - len(kept) - nobody,
        "left out: orders and codes outside a stay belong to no visit",
    )
    return kept


def clean_codes(frame: pl.DataFrame, table: str, problems: Problems) -> pl.DataFrame:
    """ICD codes in capitals, without blanks and dots; empty ones become null.

    Only distinct codes are looked at, so the size of the table hardly matters.

    Parameters
    ----------
    frame : polars.DataFrame
        With the text column ``code``.
    """
    code = pl.col("code")
    distinct = frame.drop_nulls("code").group_by("code").len("n")
    distinct = distinct.with_columns(
        clean=code.str.replace_all(r"[\s.]", "").str.to_uppercase(),
        blanks=code.str.contains(r"\s"),
        small=code.str.contains(r"[a-z]"),
        dots=code.str.contains(".", literal=True),
    )
    kinds = {
        "blanks": ("code with blanks", "blanks removed"),
        "small": ("code in small letters", "read as capitals"),
        "dots": ("code with a dot", "dot removed"),
    }
    for kind, (problem, done) in kinds.items():
        problems.add(table, problem, int(distinct.filter(kind)["n"].sum()), done)
    changed = distinct.filter(pl.col("clean") != code)
    if len(changed):
        new = changed["clean"].replace("", None)
        frame = frame.with_columns(code.replace(changed["code"].to_list(), new.to_list()))
    problems.add(table, "row without a code", frame["code"].null_count(), "left out")
    return frame


def check_icd_versions(
    frame: pl.DataFrame, table: str, kind: str, problems: Problems, stated: bool
) -> None:
    """Count codes whose form is that of the other ICD version, or of none.

    Parameters
    ----------
    kind : {"diagnoses", "procedures"}
        Which tables of codes.
    stated : bool
        Whether the table has a column with the version; otherwise every code counts as ICD-9.
    """
    distinct = frame.drop_nulls("code").group_by("code", "version").len("n")
    fits = {
        version: pl.col("code").str.contains(_SHAPES[kind, version], literal=False)
        for version in (9, 10)
    }
    nine = pl.col("version") == 9
    own = pl.when(nine).then(fits[9]).otherwise(fits[10])
    other = pl.when(nine).then(fits[10]).otherwise(fits[9])
    distinct = distinct.with_columns(other=~own & other, none=~own & ~other)
    source = "the version of the column" if stated else "version 9, the only one of this table"
    problems.add(
        table,
        "code has the form of the other ICD version",
        int(distinct.filter("other")["n"].sum()),
        f"kept with {source}",
    )
    problems.add(
        table,
        "code has the form of no ICD version",
        int(distinct.filter("none")["n"].sum()),
        f"kept with {source}",
    )


def read_times(
    frame: pl.DataFrame, name: str, raw: str, table: str, path: Path, problems: Problems
) -> pl.DataFrame:
    """Turn a text column into times (microseconds, without a zone).

    Raises
    ------
    DataError
        If some values have none of the `TIME_FORMS`; with their number.
    """
    text = frame[name].str.strip_chars().replace("", None)
    times = text.str.to_datetime(_USUAL, strict=False, time_unit="us")
    if times.null_count() > text.null_count():
        rest = pl.DataFrame({"text": text, "time": times}).with_row_index("row")
        rest = rest.filter(pl.col("time").is_null() & pl.col("text").is_not_null())
        plain = (
            pl.col("text")
            .str.replace(r"^(\d{4})/(\d{1,2})/", "${1}-${2}-")
            .str.replace(r"^(\d{4}-\d{1,2}-\d{1,2})T", "${1} ")
            .str.replace(r"(Z|[+-]00:?00)$", "")
        )
        tries = [plain.str.to_datetime(form, strict=False, time_unit="us") for form in _UNUSUAL]
        found = rest.select("row", time=pl.coalesce(tries))
        wrong = found["time"].null_count()
        if wrong:
            raise DataError(
                f"{path}: table {table}, column {raw}: {wrong} of {len(frame)} times do not "
                f"parse; expected {', or '.join(TIME_FORMS)}"
            )
        times = times.scatter(found["row"].to_list(), found["time"])
        problems.add(table, f"{raw} in another form", len(found), "read: its form is not ambiguous")
    return frame.with_columns(times.alias(name))


def check_stays(frame: pl.DataFrame, table: str, problems: Problems) -> pl.DataFrame:
    """One row per stay, with what is odd about stays counted.

    Parameters
    ----------
    frame : polars.DataFrame
        ``subject``, ``admission``, ``admit_time`` and perhaps ``discharge_time``.
    """
    problems.add(
        table,
        "stay without a time of admission",
        frame["admit_time"].null_count(),
        "cannot be put in order: left out where visits are ordered by time",
    )
    one = frame.unique(PERSON, keep="first", maintain_order=True)
    if len(one) < len(frame):
        times = frame.group_by(PERSON).agg(n=pl.len(), times=pl.col("admit_time").n_unique())
        conflict = times.filter(pl.col("times") > 1)
        same = len(frame) - len(one) - int((conflict["n"] - 1).sum())
        problems.add(table, "stay listed again", same, "first row kept")
        problems.add(
            table,
            "stay listed again with another time",
            int((conflict["n"] - 1).sum()),
            "first row kept",
        )
    if "discharge_time" in one.columns:
        backwards = one.filter(pl.col("discharge_time") < pl.col("admit_time"))
        problems.add(
            table,
            "stay ends before it starts",
            len(backwards),
            "kept: only the admission time is used, for the order of visits",
        )
    return one


def drop_shared_stays(
    tables: Mapping[str, pl.DataFrame], problems: Problems
) -> dict[str, pl.DataFrame]:
    """Leave out stays whose number stands under several patients: nobody knows whose they are.

    Parameters
    ----------
    tables : mapping of str to polars.DataFrame
        Tables with ``subject`` and ``admission``, by the name to report.
    """
    pairs = pl.concat([table.select(PERSON).unique() for table in tables.values()]).unique()
    shared = pairs.group_by("admission").len().filter(pl.col("len") > 1)["admission"]
    if shared.is_empty():
        return dict(tables)
    kept = {}
    for name, table in tables.items():
        kept[name] = table.filter(~pl.col("admission").is_in(shared.implode()))
        problems.add(
            name,
            "stay under several patients",
            len(table) - len(kept[name]),
            f"left out: {len(shared)} stays whose patient is not known",
        )
    return kept


def compare_counts(
    expected: Mapping[Any, int] | None, counts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Published against found counts: ``count``, ``expected``, ``found``, ``met``."""
    return [
        {"count": name, "expected": number, "found": counts[name], "met": counts[name] == number}
        for name, number in (expected or {}).items()
    ]
