"""Reading delimited text, plain or gzip, with complaints that name file, table and column.

Codes stay text: a leading zero of an ICD, NDC or GSN code is part of the code. Parser messages are
never passed on, because they quote rows.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from quantum.base import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK_BYTES = 8 << 20


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(2) == _GZIP_MAGIC


def _opened(path: Path) -> IO[bytes]:
    """Binary stream of the unpacked content."""
    if path.suffix == ".gz":
        if not _is_gzip(path):
            raise DataError(
                f"{path}: not a gzip file (it does not begin with 1f 8b); expected gzip, as the "
                "name ends in .gz"
            )
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def unreadable(path: Path, error: Exception) -> DataError:
    """Complaint about a file that cannot be unpacked or read."""
    if isinstance(error, EOFError):
        what = "gzip ends too early: the file is truncated"
    elif isinstance(error, gzip.BadGzipFile | zlib.error):
        what = "gzip is damaged"
    elif isinstance(error, UnicodeDecodeError):
        what = "not UTF-8 text"
    else:
        what = f"not readable ({type(error).__name__})"
    return DataError(f"{path}: {what}; expected a complete file; download it again")


def header(path: Path) -> list[str]:
    """Column names of a delimited file as they stand in it.

    Raises
    ------
    DataError
        If the file cannot be unpacked, is no text or is empty.
    """
    try:
        with _opened(path) as handle:
            line = handle.readline().decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    if not line.strip():
        raise DataError(f"{path}: the file is empty; expected a line of column names")
    return next(csv.reader([line]))


def match_columns(path: Path, table: str, wanted: Sequence[str]) -> dict[str, str]:
    """Wanted column to the name it has in the file, whatever its case.

    Raises
    ------
    DataError
        Naming file, table, the missing columns and those that are there.
    """
    present = header(path)
    by_lower = {name.strip().lower(): name for name in present}
    missing = [name for name in wanted if name.lower() not in by_lower]
    if missing:
        raise DataError(
            f"{path}: table {table} lacks column {', '.join(missing)}; expected "
            f"{', '.join(wanted)} in any case; the file has {', '.join(present)}"
        )
    return {name: by_lower[name.lower()] for name in wanted}


def read_columns(path: Path, table: str, columns: Mapping[str, str]) -> pl.DataFrame:
    """Some columns of a large file as text, block by block.

    Parameters
    ----------
    columns : mapping of str to str
        Name in the file (any case) to name in the result. Empty fields become null.

    Raises
    ------
    DataError
        Unreadable or truncated file, missing column, rows with another number of fields.
    """
    actual = match_columns(path, table, list(columns))
    names = list(actual.values())
    frames: list[pl.DataFrame] = []
    try:
        with _opened(path) as handle:
            reader = pa_csv.open_csv(
                pa.PythonFile(handle, mode="r"),
                read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=names,
                    column_types=dict.fromkeys(names, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
            frames.extend(
                pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))) for batch in reader
            )
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):  # names of columns without a row are no fault
            raise _not_csv(path, table, error) from None
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    if not frames:
        frames = [pl.DataFrame(schema=dict.fromkeys(names, pl.String))]
    return pl.concat(frames).rename({actual[name]: new for name, new in columns.items()})


def _not_csv(path: Path, table: str, error: Exception) -> DataError:
    # Arrow quotes the offending row: keep its number, nothing else
    row = re.search(r"Row #(\d+)", str(error))
    where = f"row {row.group(1)}" if row else "a row"
    return DataError(
        f"{path}: table {table}: {where} does not parse as CSV; expected "
        f"{len(header(path))} fields in every row, UTF-8"
    )


def read_table(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of a small shipped table as text; see `read_columns` for the errors."""
    if not path.is_file():
        raise DataError(f"shipped table not found: {path}; expected columns {', '.join(columns)}")
    return read_columns(path, path.name, {name: name for name in columns})


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a shipped gzip text (UTF-8, or Latin-1 where it is not)."""
    if not path.is_file():
        raise DataError(f"shipped table not found: {path}")
    try:
        with _opened(path) as handle:
            data = handle.read()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    yield from text.splitlines()
