"""Raw tables to a cohort folder, and the cohort as everyone else sees it.

::

    <home>/cohorts/<name>-<digest8>/
        cohort.json        name, digest, configuration, counts, funnel, coverage, notes
        visits.parquet     patient, visit, diagnoses, procedures, drugs: no identifier, no date
        splits.parquet     split, patient, part
        drugs.parquet      atc, name
        molecules.parquet  atc, smiles, source
        ddi.parquet        atc_a, atc_b, severity, n_pairs
        codes.parquet      system, code, title
        oracle.npy         synthetic records only: planted probabilities, visits x drug classes

The digest covers the configuration and the bytes of every file that is read, so a changed table or
code map gives a new cohort, and an unchanged one is found without reading the tables again.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray

from medrec.config import CohortConfig
from medrec.data import ddi
from medrec.data.build import build_tables
from medrec.data.codes import CODE_FILES
from medrec.data.drug_maps import map_files
from medrec.data.molecule_table import CHEMBL_FILE, CHEMBL_STRUCTURES_FILE, MOLEREC_FILE
from medrec.data.schema import (
    Events,
    Progress,
    Split,
    Vocabularies,
    Vocabulary,
    data_root,
    resolve_path,
)
from medrec.data.sources import read_source, source_files
from medrec.data.splits import split_from_frame
from medrec.data.synthetic import read_synthetic
from medrec.runs import Home
from quantum.base import (
    InputError,
    digest,
    file_digest,
    now_utc,
    provenance,
    publish_folder,
    read_json,
    write_json_atomic,
)

FORMAT = 2
"""Raised when the same input would give another cohort; part of the digest."""

_ORACLE = "oracle.npy"
_TABLES = ("visits", "splits", "drugs", "molecules", "ddi", "codes")


@dataclass(frozen=True)
class Cohort:
    """A prepared cohort. Tables are read on first use.

    Parameters
    ----------
    folder : pathlib.Path
        Written by `prepare_cohort`.
    record : dict
        Content of ``cohort.json``.
    """

    folder: Path
    record: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | str) -> Cohort:
        """Open a cohort folder.

        Raises
        ------
        InputError
            If it is not one, or was written by another version of the format.
        """
        folder = Path(folder)
        record = read_json(folder / "cohort.json")
        if record.get("format") != FORMAT:
            raise InputError(
                f"cohort has format {record.get('format')}, expected {FORMAT}: {folder}; "
                "prepare it again"
            )
        missing = [name for name in _TABLES if not (folder / f"{name}.parquet").is_file()]
        if missing:
            raise InputError(f"cohort folder lacks {', '.join(missing)}.parquet: {folder}")
        return cls(folder, record)

    def __repr__(self) -> str:
        return f"Cohort({self.name!r})"

    def _repr_html_(self) -> str:
        from medrec.notebook import cohort_html

        return cohort_html(self)

    @property
    def name(self) -> str:
        """Public name, also that of the folder."""
        return str(self.record["name"])

    @property
    def digest(self) -> str:
        """SHA-256 of configuration and input files."""
        return str(self.record["digest"])

    @cached_property
    def config(self) -> CohortConfig:
        """The configuration it was made with."""
        return CohortConfig.model_validate(self.record["config"])

    @property
    def n_patients(self) -> int:
        """Number of patients, U."""
        return int(self.record["counts"]["patients"])

    @property
    def n_splits(self) -> int:
        """Number of saved splits."""
        return int(self.record["counts"]["splits"])

    @property
    def counts(self) -> dict[str, Any]:
        """Patients, visits, codes, means per visit."""
        return dict(self.record["counts"])

    @property
    def notes(self) -> list[str]:
        """What a reader of numbers from this cohort has to know."""
        return list(self.record["notes"])

    @property
    def ddi(self) -> dict[str, Any]:
        """Source, least severity, number of interacting class pairs, density."""
        return dict(self.record["ddi"])

    @cached_property
    def funnel(self) -> pd.DataFrame:
        """``step``, ``rows``, ``visits``, ``patients`` after every filter."""
        return pd.DataFrame(self.record["funnel"], columns=["step", "rows", "visits", "patients"])

    @cached_property
    def coverage(self) -> pd.DataFrame:
        """Prescription rows per route to ATC: ``route``, ``rows``, ``share``, and each alone."""
        columns = ["route", "rows", "share", "rows_alone", "share_alone"]
        return pd.DataFrame(self.record["coverage"], columns=columns)

    def _table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet")

    @cached_property
    def visits(self) -> pd.DataFrame:
        """``patient``, ``visit`` and the code lists ``diagnoses``, ``procedures``, ``drugs``."""
        return pd.DataFrame(self.visits_polars.to_dict(as_series=False))

    @cached_property
    def visits_polars(self) -> pl.DataFrame:
        """The same table as a polars frame with list columns; fast to explode and join."""
        return pl.read_parquet(self.folder / "visits.parquet")

    @cached_property
    def oracle(self) -> NDArray[np.float32] | None:
        """Planted probability of each drug at each visit, given all that a model may see.

        Shape (visits, drug classes), rows in the order of `visits`, columns in that of `drugs`;
        read from the disk as used. Only synthetic records in order of time have it, else None.
        """
        path = self.folder / _ORACLE
        if not path.is_file():
            return None
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"array of a cohort is damaged or no array of numbers: {path} "
                f"({type(error).__name__}); prepare the cohort again"
            ) from error

    @cached_property
    def drugs(self) -> pd.DataFrame:
        """``atc``, ``name`` of every drug class of the cohort."""
        return self._table("drugs")

    @cached_property
    def molecules(self) -> pd.DataFrame:
        """``atc``, ``smiles``, ``source``: the molecules of each class."""
        return self._table("molecules")

    @cached_property
    def ddi_pairs(self) -> pd.DataFrame:
        """``atc_a`` < ``atc_b``, ``severity``, ``n_pairs``."""
        return self._table("ddi")

    @cached_property
    def codes(self) -> pd.DataFrame:
        """``system``, ``code``, ``title``."""
        return self._table("codes")

    @cached_property
    def _splits(self) -> pd.DataFrame:
        return self._table("splits")

    def split(self, number: int = 0) -> Split:
        """Return one of the saved splits.

        Raises
        ------
        InputError
            If there is no such split.
        """
        if not 0 <= number < self.n_splits:
            raise InputError(
                f"split {number} does not exist in {self.name}; expected 0 to {self.n_splits - 1}"
            )
        return split_from_frame(self._splits, number)

    def vocabularies(self, number: int = 0) -> Vocabularies:
        """Codes of a split's training patients (``vocabulary_fit: train``) or of all patients.

        Codes are in ascending order. Limits such as ``top_diagnoses`` keep the codes of the most
        visits, ties in code order.
        """
        visits = self.visits_polars
        if self.config.vocabulary_fit == "train":
            train = pl.DataFrame({"patient": self.split(number).train})
            visits = visits.join(train, on="patient", how="semi")
        limits = {
            "diagnoses": self.config.top_diagnoses,
            "procedures": self.config.top_procedures,
            "drugs": self.config.top_drugs,
        }
        return Vocabularies(**{kind: _most_frequent(visits[kind], n) for kind, n in limits.items()})


def _most_frequent(code_lists: pl.Series, limit: int | None) -> Vocabulary:
    codes = code_lists.explode().drop_nulls().alias("code").to_frame()
    counts = codes.group_by("code").len("n").sort("n", "code", descending=[True, False])
    kept = counts["code"] if limit is None else counts["code"].head(limit)
    return Vocabulary(tuple(kept.sort().to_list()))


# --------------------------------------------------------------------------- preparation


def prepare_cohort(config: CohortConfig, home: Home, progress: Progress | None = None) -> Cohort:
    """Make a cohort, or find the one that the same request made before.

    Parameters
    ----------
    progress : callable, optional
        Called with a short text when a stage begins.

    Returns
    -------
    Cohort
        Published in one step: a reader sees all of it or nothing.

    Raises
    ------
    InputError, DataError
        Folder, table, column or file that is not as expected; nothing left after a filter.
    """
    report = progress or (lambda text: None)
    report("checking input files")
    files = _input_files(config)
    key = _request_digest(config, _file_digests(files, home))
    name = f"{config.name}-{key[:8]}"
    final = home.cohorts / name
    if final.is_dir():
        report(f"found {name}")
        return Cohort.load(final)
    report("reading events")
    events = _read_events(config, files)
    report("building visits")
    tables, record, oracle = build_tables(config, events, files.get("ddi/user"))
    record |= {
        "format": FORMAT,
        "name": name,
        "digest": key,
        "config": config.model_dump(mode="json"),
        "created": now_utc(),
        "provenance": provenance("polars", "pandas", "pyarrow"),
    }
    report("writing")
    _publish(final, tables, record, oracle)
    return Cohort.load(final)


def _input_files(config: CohortConfig) -> dict[str, Path]:
    """Label to path of every file that decides the result."""
    root = data_root()
    files = {f"codes/{name}": root / "codes" / name for name in CODE_FILES}
    chembl = (CHEMBL_FILE, CHEMBL_STRUCTURES_FILE)
    names = (MOLEREC_FILE,) if config.molecules == "molerec" else chembl
    if config.source.format == "synthetic":
        names = (*names, *chembl)
        files[f"planted/{ddi.ANSM_FILE}"] = root / "ddi" / ddi.ANSM_FILE
    else:
        by_time = config.visit_order == "admit_time"
        found = source_files(config.source, with_admissions=by_time)
        files |= {f"source/{table}": path for table, path in found.items()}
    files |= {f"molecules/{table}": root / "molecules" / table for table in names}
    if config.drug_maps is not None:
        files |= {f"drug_maps/{key}": path for key, path in map_files(config.drug_maps).items()}
    if config.ddi.source == "ansm":
        files[f"ddi/{ddi.ANSM_FILE}"] = root / "ddi" / ddi.ANSM_FILE
    else:
        files[f"ddi/{ddi.CID_FILE}"] = root / "ddi" / ddi.CID_FILE
        files["ddi/user"] = resolve_path(str(config.ddi.path))
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise InputError(f"file not found: {', '.join(missing)}; expected a file")
    return files


def _file_digests(files: dict[str, Path], home: Home) -> dict[str, str]:
    """SHA-256 of every file; remembered by path, size and time of change."""
    memory_file = home.cohorts / ".file_digests.json"
    try:
        memory = read_json(memory_file) if memory_file.exists() else {}
    except InputError:
        memory = {}  # a damaged memory costs one reading of the files, no more
    digests, learned = {}, {}
    for label, path in files.items():
        state = path.stat()
        mark = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        digests[label] = memory.get(mark) or file_digest(path)
        learned[mark] = digests[label]
    if not learned.items() <= memory.items():
        write_json_atomic(memory_file, memory | learned)
    return digests


def _request_digest(config: CohortConfig, digests: dict[str, str]) -> str:
    settings = config.model_dump(mode="json")
    # where a file lies does not change what is in it; its digest stands beside the settings
    settings["source"].pop("path", None)
    settings["ddi"].pop("path", None)
    settings["drug_maps"] = None
    return digest({"format": FORMAT, "config": settings, "files": digests})


def _read_events(config: CohortConfig, files: dict[str, Path]) -> Events:
    if config.source.format == "synthetic":
        return read_synthetic(config.source)
    prefix = "source/"
    found = {
        label.removeprefix(prefix): path
        for label, path in files.items()
        if label.startswith(prefix)
    }
    by_route = config.ndc_policy == "systemic_first"
    return read_source(config.source, found, with_route=by_route)


def _publish(
    final: Path,
    tables: dict[str, pd.DataFrame | pl.DataFrame],
    record: dict[str, Any],
    oracle: NDArray[np.float32] | None,
) -> None:
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, table in tables.items():
            if isinstance(table, pl.DataFrame):
                table.write_parquet(temporary / f"{name}.parquet")
            else:
                table.to_parquet(temporary / f"{name}.parquet", index=False)
        if oracle is not None:
            np.save(temporary / _ORACLE, oracle)
        write_json_atomic(temporary / "cohort.json", record)
        publish_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
