"""What all readers of molecules share: files of a source, columns of tables, SMILES to records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from rdkit import Chem, rdBase

from medrec.data.schema import resolve_path
from medrec.data.tables import header, read_columns
from medrec.library.records import MoleculeReader, Record, Target
from medrec.loading import suggest
from quantum.base import DataError, InputError, digest, file_digest

UNREADABLE_SMILES = "RDKit cannot read the SMILES"
NO_SMILES = "no SMILES"
EXCLUDED = "in the list of molecules to leave out"
_MISSING = ("", "na", "nan", "null", "none")


def source_path(path: Path, key: str) -> Path:
    """File or folder of a source, relative to here or to the checkout.

    Parameters
    ----------
    key : str
        Where the configuration names it, such as ``source.path``.

    Raises
    ------
    InputError
        If nothing is there.
    """
    try:
        return resolve_path(str(path))
    except InputError as error:
        if "$" in str(path):
            raise
        there = [item.name for item in path.parent.glob("*")]
        raise InputError(
            f"{key}: file not found: {path}{suggest(path.name, there)}; expected an existing "
            f"file. Name yours with --set {key}=/path/to/{path.name}"
        ) from error


def source_file(path: Path, key: str) -> Path:
    """Like `source_path`, and it has to be a file."""
    found = source_path(path, key)
    if not found.is_file():
        raise InputError(f"{key}: {found} is a folder; expected a file")
    return found


class SourceTable:
    """A CSV, gzipped CSV or Parquet file as columns.

    Parameters
    ----------
    key : str
        Where the configuration names the file, for complaints.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = source_file(path, key), key
        self.names = header(self.path)
        repeated = {name for name in self.names if self.names.count(name) > 1}
        if repeated:
            raise DataError(
                f"{self.path}: column {', '.join(sorted(repeated))} stands there twice; expected "
                "different names"
            )

    def require(self, columns: Sequence[str]) -> None:
        """Complain about missing columns (their case does not matter)."""
        present = {name.lower() for name in self.names}
        for name in columns:
            if name.lower() not in present:
                shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
                raise DataError(
                    f"{self.path}: no column '{name}'{suggest(name, self.names)}; the file has "
                    f"{shown}"
                )

    def has(self, column: str) -> bool:
        """Whether there is such a column, whatever its case."""
        return column.lower() in {name.lower() for name in self.names}

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Columns as text.

        Raises
        ------
        InputError
            If a column is asked for twice; their case does not matter.
        DataError
            A column is missing, the file is damaged or has no row.
        """
        self.require(columns)
        wanted = [name.lower() for name in columns]
        repeated = [name for name in columns if wanted.count(name.lower()) > 1]
        if repeated:
            raise InputError(
                f"{self.path}: {' and '.join(repeated)} are one column; expected different ones"
            )
        frame = read_columns(self.path, self.path.name, {name: name for name in columns})
        if not len(frame):
            raise DataError(f"{self.path}: the table has no rows; expected at least one molecule")
        return frame


def text_column(frame: pl.DataFrame, name: str) -> list[str]:
    """Stripped text, empty where missing."""
    values: list[str] = frame[name].str.strip_chars().fill_null("").to_list()
    return values


def number_columns(
    frame: pl.DataFrame, names: Sequence[str], path: Path, labels: bool = False
) -> npt.NDArray[np.float64]:
    """Text columns as numbers (rows, columns), NaN where missing (``NA`` and the like too).

    Raises
    ------
    DataError
        If a column holds text that is no number; with ``labels`` also if it holds a number other
        than 0 and 1. Names the column and how many.
    """
    text = frame.select(pl.col(name).str.strip_chars() for name in names)
    text = text.select(
        pl.when(pl.col(name).str.to_lowercase().is_in(_MISSING))
        .then(None)
        .otherwise(pl.col(name))
        .alias(name)
        for name in names
    )
    numbers = text.cast(pl.Float64, strict=False)
    for name in names:
        bad = numbers[name].null_count() - text[name].null_count()
        if bad:
            raise DataError(
                f"{path}: column '{name}': {bad} of {len(frame)} values are no numbers; expected "
                "numbers, or nothing where missing"
            )
    result = numbers.fill_null(np.nan).to_numpy().reshape(len(frame), len(names))
    if labels and not is_label(result).all():
        position = int(np.flatnonzero(~is_label(result))[0])
        wrong = ~np.isin(result[:, position], (0.0, 1.0)) & ~np.isnan(result[:, position])
        raise DataError(
            f"{path}: column '{names[position]}': {wrong.sum()} of {len(frame)} labels are "
            "neither 0 nor 1; expected 0, 1 or nothing"
        )
    return result


def is_label(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which columns (T,) of values (rows, T) hold nothing but 0, 1 and NaN."""
    return np.all(np.isnan(values) | (values == 0) | (values == 1), axis=0)


def check_units(columns: Sequence[str], units: Sequence[str]) -> tuple[str, ...]:
    """One unit for each target column; none at all stands for no units.

    Raises
    ------
    InputError
        If their numbers differ, or a column is named twice.
    """
    if len(set(columns)) != len(columns):
        raise InputError(f"source.target_columns names a column twice: {', '.join(columns)}")
    if units and len(units) != len(columns):
        raise InputError(
            f"source.units has {len(units)} entries ({', '.join(units)}) for {len(columns)} "
            f"target_columns ({', '.join(columns)}); expected one for each"
        )
    return tuple(units) or ("",) * len(columns)


class Geometry(NamedTuple):
    """Atomic numbers uint8 (n,) and positions float32 (n, 3) in Angstrom, or neither."""

    element: npt.NDArray[np.uint8] | None = None
    position: npt.NDArray[np.float32] | None = None


def smiles_record(
    identifier: str,
    smiles: str,
    targets: npt.NDArray[np.float64],
    geometry: Geometry = Geometry(),
    reason: str = "",
) -> Record:
    """Record of a SMILES; one that RDKit does not read comes with the reason."""
    mol = None
    if not reason:
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(smiles) if smiles else None
        if mol is None:
            reason = UNREADABLE_SMILES if smiles else NO_SMILES
    return Record(identifier, smiles, mol, geometry.element, geometry.position, targets, reason)


class SourceReader(MoleculeReader):
    """A reader of files.

    Parameters
    ----------
    files : sequence of Path
        All files that the records depend on, in a fixed order.
    n_records : int
        Records of the source.
    limit : int or None
        Only the first so many.

    Attributes
    ----------
    notes : tuple of str
        What a reader of the library should know about its source.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        files: Sequence[Path],
        targets: Sequence[Target],
        n_records: int,
        limit: int | None,
    ) -> None:
        self.files, self.targets = tuple(files), tuple(targets)
        self._length = n_records if limit is None else min(n_records, limit)
        if not self._length:
            raise DataError(f"{self.files[0]}: no molecules; expected at least one")

    def __len__(self) -> int:
        return self._length

    def digest(self) -> str:
        """SHA-256 of the file's bytes; of the files' digests if there are several."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        parts = [_digest_of(path, *_state(path)) for path in self.files]
        return parts[0] if len(parts) == 1 else digest(parts)

    def _range(self, start: int, stop: int) -> range:
        return range(max(start, 0), min(stop, len(self)))


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _digest_of(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_digest(path)
