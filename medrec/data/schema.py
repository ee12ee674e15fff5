"""Tables that the data layer passes on, and the rule of what a prediction may see.

*Events* are what a source of records delivers, whatever hospital system it came from. A *visit* is
one admission with its sets of diagnosis, procedure and drug codes. When the drugs of visit ``t`` of
a patient are predicted, a model may see the diagnoses and procedures of visits ``<= t`` and the
drugs of visits ``< t``, and nothing else.

Letters for shapes: D drugs, U patients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from quantum.base import DataError, InputError

Progress = Callable[[str], None]
"""Called with one short text when a stage of the preparation begins."""

EVENT_COLUMNS: dict[str, dict[str, type[pl.DataType]]] = {
    "admissions": {"subject": pl.Int64, "admission": pl.Int64, "admit_time": pl.Datetime},
    "diagnoses": {
        "subject": pl.Int64,
        "admission": pl.Int64,
        "code": pl.String,
        "version": pl.Int64,
    },
    "procedures": {
        "subject": pl.Int64,
        "admission": pl.Int64,
        "code": pl.String,
        "version": pl.Int64,
    },
    "prescriptions": {
        "subject": pl.Int64,
        "admission": pl.Int64,
        "drug_type": pl.String,
        "gsn": pl.String,
        "ndc": pl.String,
        "drug": pl.String,
    },
}
ATC_CHARACTERS = {3: 4, 4: 5, 5: 7}
"""Length of an ATC code by WHO level."""

_data_root: Path | None = None


def data_root() -> Path:
    """Folder with the shipped tables: ``data/`` of the checkout, unless `set_data_root` was used.

    Raises
    ------
    InputError
        If it is not there, for example because the package was installed without the checkout.
    """
    root = _data_root or Path(__file__).resolve().parents[2] / "data"
    if not (root / "codes").is_dir():
        raise InputError(
            f"shipped tables not found: {root} has no folder 'codes'; expected the checkout's "
            "data/ folder (install with pip install -e, or set MEDREC_DATA)"
        )
    return root


def set_data_root(folder: Path | None) -> None:
    """Look for the shipped tables elsewhere. For the command line; None undoes it."""
    global _data_root
    _data_root = folder


def resolve_path(text: str) -> Path:
    """Path of a configuration: variables and ``~`` expanded, relative to here or to the checkout.

    Raises
    ------
    InputError
        If a variable is not set, or nothing is at the place.
    """
    expanded = os.path.expanduser(os.path.expandvars(text))
    if "$" in expanded:
        raise InputError(
            f"path '{text}' names an environment variable that is not set; expected for example "
            "export MIMIC4_HOME=/path/to/mimic-iv, or --set source.path=/path/to/mimic-iv"
        )
    path = Path(expanded)
    if path.exists() or path.is_absolute():
        candidates = [path]
    else:
        candidates = [path, data_root().parent / path]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    places = " or ".join(str(item.absolute()) for item in candidates)
    raise InputError(f"path '{text}' does not exist; looked for {places}")


@dataclass(frozen=True)
class Events:
    """What a source of records delivers, as polars frames with the columns of `EVENT_COLUMNS`.

    Parameters
    ----------
    prescriptions : polars.DataFrame
        In the order of the file. Missing codes and names are null; drug codes are text.
    diagnoses, procedures : polars.DataFrame
        ICD codes without dots, upper case, with the ICD version (9 or 10).
    admissions : polars.DataFrame or None
        None when the visit order needs no admission times.
    where : str
        Where the tables came from, for messages.
    problems : list of dict
        What was wrong with the tables, and what was done: ``table``, ``problem``, ``rows``,
        ``done``. See `medrec.data.checks.Problems`.
    notes : tuple of str
        What a reader of numbers made from these records has to know.
    oracle : polars.DataFrame or None
        Planted probabilities of synthetic records: ``subject``, ``admission`` and one Float32
        column per ATC level-5 code.

    Notes
    -----
    Where the source has it and it was asked for, prescriptions also have ``route`` (text) and
    ``start_time``, procedures ``time``, admissions ``discharge_time``. A version of 0 marks a
    procedure code that is no ICD code.
    """

    prescriptions: pl.DataFrame
    diagnoses: pl.DataFrame
    procedures: pl.DataFrame
    admissions: pl.DataFrame | None
    where: str
    problems: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    oracle: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        for table, columns in EVENT_COLUMNS.items():
            frame = getattr(self, table)
            if frame is None and table == "admissions":
                continue
            for column, kind in columns.items():
                if column not in frame.columns or frame.schema[column].base_type() is not kind:
                    raise DataError(
                        f"{self.where}: events table '{table}' lacks column '{column}' of type "
                        f"{kind.__name__}; it has {dict(frame.schema)}"
                    )


@dataclass(frozen=True)
class Vocabulary:
    """Codes in a fixed order; a code's position is its index in every tensor.

    Parameters
    ----------
    codes : tuple of str
        Without repetition.
    """

    codes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.codes)) != len(self.codes):
            raise InputError(f"vocabulary of {len(self.codes)} codes repeats some of them")

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {code: position for position, code in enumerate(self.codes)}

    def index(self, code: str) -> int | None:
        """Position of a code, or None if it is unknown."""
        return self._positions.get(code)

    def encode(self, codes: Iterable[str]) -> tuple[NDArray[np.int64], int]:
        """Positions of the known codes, in the order given, and the number of unknown ones."""
        positions = [self._positions.get(code) for code in codes]
        known = [position for position in positions if position is not None]
        return np.array(known, dtype=np.int64), len(positions) - len(known)

    def unknown(self, codes: Iterable[str]) -> list[str]:
        """Codes outside the vocabulary, in the order given."""
        return [code for code in codes if code not in self._positions]


@dataclass(frozen=True)
class Vocabularies:
    """The three vocabularies that a model is built on."""

    diagnoses: Vocabulary
    procedures: Vocabulary
    drugs: Vocabulary


@dataclass(frozen=True)
class Split:
    """Positions of the patients of each part, ascending; no patient is in two parts."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    digest: str = field(default="")

    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Part name to positions."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
