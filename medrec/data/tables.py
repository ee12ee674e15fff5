"""Reading CSV, gzip CSV and parquet, with complaints that name file, table and column.

Codes stay text: a leading zero of an ICD, NDC or GSN code is part of the code. Parser messages are
never passed on, because they quote rows.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from quantum.base import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK_BYTES = 8 << 20
_BLOCK_ROWS = 1 << 19
TABLE_ENDINGS = (".csv", ".csv.gz", ".parquet")
"""Forms a table may have, in the order in which they are looked for."""


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
    """Column names of a CSV or parquet file as they stand in it.

    Raises
    ------
    DataError
        If the file cannot be unpacked, is no text or is empty.
    """
    if path.suffix == ".parquet":
        return [str(name) for name in _parquet(path).schema_arrow.names]
    try:
        with _opened(path) as handle:
            line = handle.readline().decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    if not line.strip():
        raise DataError(f"{path}: the file is empty; expected a line of column names")
    return next(csv.reader([line]))


def _parquet(path: Path) -> pa_parquet.ParquetFile:
    try:
        return pa_parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: not readable as parquet: truncated, damaged or another format; expected a "
            "complete file"
        ) from error


def match_columns(
    path: Path, table: str, wanted: Sequence[str], optional: Collection[str] = ()
) -> dict[str, str]:
    """Wanted column to the name it has in the file, whatever its case.

    Parameters
    ----------
    optional : collection of str
        Columns of ``wanted`` that may be missing; they are then missing in the result.

    Raises
    ------
    DataError
        Naming file, table, the missing columns and those that are there.
    """
    present = header(path)
    by_lower = {name.strip().lower(): name for name in present}
    missing = [name for name in wanted if name.lower() not in by_lower]
    if set(missing) - set(optional):
        needed = [name for name in wanted if name not in optional]
        raise DataError(
            f"{path}: table {table} lacks column "
            f"{', '.join(name for name in missing if name not in optional)}; expected "
            f"{', '.join(needed)} in any case; the file has {', '.join(present)}"
        )
    return {name: by_lower[name.lower()] for name in wanted if name not in missing}


def read_columns(
    path: Path,
    table: str,
    columns: Mapping[str, str],
    *,
    optional: Collection[str] = (),
    integers: Collection[str] = (),
) -> pl.DataFrame:
    """Some columns of a large CSV or parquet file as text, block by block.

    Parameters
    ----------
    columns : mapping of str to str
        Name in the file (any case) to name in the result. Empty fields become null.
    optional : collection of str
        Names in the file that may be missing; the result then lacks them.
    integers : collection of str
        Names in the file that are whole numbers; they become Int64 (``142345.0`` is taken too).

    Raises
    ------
    DataError
        Unreadable or truncated file, missing column, rows with another number of fields, values
        that are not whole numbers (with their number, never their content).
    """
    actual = match_columns(path, table, list(columns), optional)
    names = list(actual.values())
    whole = {actual[name]: name for name in integers if name in actual}
    frames: list[pl.DataFrame] = []
    wrong = dict.fromkeys(whole, 0)
    read = _parquet_blocks if path.suffix == ".parquet" else _csv_blocks
    for block in read(path, table, names):
        for name in whole:
            block, bad = _whole_numbers(block, name)
            wrong[name] += bad
        frames.append(block)
    result = pl.concat(frames) if frames else _no_rows(names, whole)
    for name, bad in wrong.items():
        if bad:
            raise DataError(
                f"{path}: table {table}, column {whole[name]}: {bad} of {len(result)} values are "
                "not whole numbers; expected an integer in every row"
            )
    return result.rename({actual[name]: columns[name] for name in actual})


def _no_rows(names: Sequence[str], whole: Collection[str]) -> pl.DataFrame:
    return pl.DataFrame(
        schema={name: pl.Int64() if name in whole else pl.String() for name in names}
    )


def _csv_blocks(path: Path, table: str, names: Sequence[str]) -> Iterator[pl.DataFrame]:
    try:
        with _opened(path) as handle:
            reader = pa_csv.open_csv(
                pa.PythonFile(handle, mode="r"),
                read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(names),
                    column_types=dict.fromkeys(names, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
            for batch in reader:
                yield pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch])))
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):  # names of columns without a row are no fault
            raise _not_csv(path, table, error) from None
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


def _parquet_blocks(path: Path, table: str, names: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Blocks of a parquet file with every column as text, times as YYYY-MM-DD HH:MM:SS."""
    file = _parquet(path)
    try:
        for batch in file.iter_batches(batch_size=_BLOCK_ROWS, columns=list(names)):
            frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch])))
            yield frame.select(_as_text(name, frame.schema[name]) for name in names)
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path}: table {table}: not readable as parquet ({type(error).__name__}); expected "
            "a complete file with text, numbers and times"
        ) from error


def _as_text(name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if kind.is_integer():
        return column.cast(pl.String)
    if kind.is_temporal():
        return column.cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S")
    return column.cast(pl.String).replace("", None)


def _whole_numbers(frame: pl.DataFrame, name: str) -> tuple[pl.DataFrame, int]:
    """Column as Int64, and how many values are no whole number."""
    column = pl.col(name)
    numbers = frame.select(column.cast(pl.Int64, strict=False)).to_series()
    if numbers.null_count() > frame[name].null_count():
        # tables that went through a spreadsheet or a data frame carry 142345.0
        text = column.str.strip_chars().str.replace(r"\.0+$", "")
        numbers = frame.select(
            pl.when(text != "").then(text).cast(pl.Int64, strict=False).alias(name)
        ).to_series()
        blank = int((frame[name].str.strip_chars() == "").sum())
        bad = numbers.null_count() - frame[name].null_count() - blank
        return frame.with_columns(numbers.alias(name)), bad
    return frame.with_columns(numbers.alias(name)), 0


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
