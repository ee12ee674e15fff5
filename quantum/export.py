"""From the store to one table per feature set, which is all that training reads.

::

    manifest.json       digest, settings, coverage, program versions, feature names and sets
    species.parquet     one row per species: what it has, and why something is missing
    elf_features.npy    float32 (n, K), zeros where missing;  elf_mask.npy  bool (n,)
    elf_volumes.npz     rows (m,), volumes float16 (m, 3, p, p, p): ELF, rho, |grad rho|
    conformers.npz      offsets (n + 1,), atomic_numbers (A,), coords_angstrom (A, 3)

An atlas is such a table of another run. Its rows count as computed where their keys are those of
the request, so that a table can be made of both.
"""

from __future__ import annotations

import io
import json
import shutil
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from quantum.base import (
    InputError,
    IntegrityError,
    digest,
    now_utc,
    publish_folder,
    read_json,
    write_bytes_atomic,
    write_json_atomic,
)
from quantum.descriptors import feature_names, feature_sets
from quantum.molecule import Species
from quantum.pipeline import STAGES, plan
from quantum.schema import PipelineSpec
from quantum.store import Record, StoreLike
from quantum.units import BOHR_IN_ANGSTROM


@dataclass(frozen=True)
class Conformer:
    """One geometry: atomic numbers (A,), coordinates (A, 3) in Angstrom, how it was made."""

    numbers: npt.NDArray[np.int16]
    coords_angstrom: npt.NDArray[np.float32]
    method: str


@dataclass(frozen=True)
class Atlas:
    """Features and conformers that another run exported, found by the key of the request.

    Attributes
    ----------
    vectors, volumes : dict
        Per features key: numbers (K,), and (3, p, p, p) where the run made volumes.
    conformers : dict
        Per conformer key: the geometry.
    """

    digest: str
    vectors: dict[str, npt.NDArray[np.float32]]
    volumes: dict[str, npt.NDArray[np.float16]]
    programs: tuple[str, ...] = ()
    conformers: dict[str, Conformer] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Atlas:
        """An atlas without rows."""
        return cls("", {}, {})

    @classmethod
    def load(cls, folder: Path) -> Atlas:
        """Open an exported table.

        Raises
        ------
        InputError
            If a file is missing or damaged.
        """
        manifest = read_json(folder / "manifest.json")
        try:
            table = pd.read_parquet(folder / "species.parquet")
            vectors = np.load(folder / "elf_features.npy", allow_pickle=False)
            with np.load(folder / "elf_volumes.npz", allow_pickle=False) as packed:
                rows, volumes = packed["rows"], packed["volumes"]
            with np.load(folder / "conformers.npz", allow_pickle=False) as packed:
                geometry = {name: packed[name] for name in packed.files}
            keys = table["features_key"]
            return cls(
                digest=str(manifest["digest"]),
                vectors={keys[i]: vectors[i] for i in np.flatnonzero(table["has_elf"])},
                volumes={keys[row]: volume for row, volume in zip(rows, volumes, strict=True)},
                programs=tuple(manifest["program_versions"]),
                conformers=_read_conformers(table, geometry),
            )
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"atlas is incomplete or damaged: {folder} ({type(error).__name__}: {error})"
            ) from error


def _read_conformers(table: pd.DataFrame, geometry: dict[str, Any]) -> dict[str, Conformer]:
    offsets = geometry["offsets"]
    found = {}
    for i in np.flatnonzero(table["has_conformer"]):
        part = slice(offsets[i], offsets[i + 1])
        found[str(table["conformer_key"][i])] = Conformer(
            geometry["atomic_numbers"][part],
            geometry["coords_angstrom"][part],
            str(table["conformer_method"][i]),
        )
    return found


@dataclass(frozen=True)
class _Row:
    """What is known of one species."""

    species: Species
    planned: dict[Any, str]
    keys: dict[Any, str]
    conformer: Conformer | None
    vector: npt.NDArray[np.float32] | None
    volume: npt.NDArray[np.float16] | None
    source: str | None
    reason: str | None
    program: str | None


def export_features(
    species: Sequence[Species],
    spec: PipelineSpec,
    store: StoreLike,
    parent: Path,
    name: str,
    atlas: Atlas | None = None,
) -> Path:
    """Write the table of some species into ``<parent>/<name>-<digest8>``, or find it there.

    Parameters
    ----------
    species : sequence of Species
        Rows of the table; order and duplicates do not matter, rows are sorted by SMILES.
    atlas : Atlas, optional
        Features that count as computed.

    Returns
    -------
    Path
        The folder. Its digest covers the content of every object that went in.
    """
    atlas = atlas or Atlas.empty()
    ordered = sorted(set(species), key=lambda item: (item.smiles, item.charge))
    planned = [plan(item, spec) for item in ordered]
    there = store.present(key for keys in planned for key in keys.values())
    present = [{s: k for s, k in keys.items() if k in there} for keys in planned]
    content = {
        "species": [item.key for item in ordered],
        "spec": spec.model_dump(mode="json"),
        "objects": [[store.numbers_of(key) for key in keys.values()] for keys in present],
        "atlas": atlas.digest,
    }
    key = digest(content)
    folder = parent / f"{name}-{key[:8]}"
    if (folder / "manifest.json").exists():
        return folder
    temporary = parent / f".{uuid.uuid4().hex}.tmp"
    temporary.mkdir(parents=True)
    try:
        rows = [_gather(*pair, spec, store, atlas) for pair in zip(ordered, present, strict=True)]
        _write(temporary, rows, spec, key)
        publish_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _gather(
    item: Species, keys: dict[Any, str], spec: PipelineSpec, store: StoreLike, atlas: Atlas
) -> _Row:
    planned = plan(item, spec)
    features, scf = _read(store, keys.get("features")), _read(store, keys.get("scf"))
    vector, volume, source = atlas.vectors.get(planned["features"]), None, None
    program = None
    if features is not None:
        vector, source = features.arrays["vector"], "computed"
        if "volume" in features.arrays:
            volume = features.arrays["volume"].astype(np.float16)
        if scf is not None:
            program = f"{scf.scalars['program']} {scf.scalars['program_version']}"
    elif vector is not None:
        volume, source = atlas.volumes.get(planned["features"]), "atlas"
        program = ", ".join(atlas.programs)
    reason = None
    there = {*keys, "conformer"} if planned["conformer"] in atlas.conformers else set(keys)
    missing = None if source else next((s for s in STAGES if s not in there), None)
    if missing:
        failure = store.failure(planned[missing])
        reason = f"{missing} {failure.kind}" if failure else f"{missing} not requested"
    return _Row(
        item,
        planned,
        keys,
        _conformer_of(_read(store, keys.get("conformer")))
        or atlas.conformers.get(planned["conformer"]),
        vector,
        volume,
        source,
        reason,
        program,
    )


def _conformer_of(record: Record | None) -> Conformer | None:
    if record is None:
        return None
    coords = np.asarray(record.arrays["coords_bohr"] * BOHR_IN_ANGSTROM, dtype=np.float32)
    return Conformer(record.arrays["atomic_numbers"], coords, str(record.scalars["method"]))


def _write(folder: Path, rows: list[_Row], spec: PipelineSpec, key: str) -> None:
    names = feature_names(spec.features)
    vectors = np.zeros((len(rows), len(names)), dtype=np.float32)
    for i, row in enumerate(rows):
        if row.vector is not None:
            vectors[i] = row.vector
    _save(folder / "elf_features.npy", vectors)
    _save(folder / "elf_mask.npy", np.array([row.vector is not None for row in rows], dtype=bool))
    _write_volumes(folder, rows, spec.features.volume_points)
    _write_conformers(folder, rows)
    table = pd.DataFrame([_table_row(row) for row in rows])
    table.to_parquet(folder / "species.parquet")
    manifest = {
        "digest": key,
        "created": now_utc(),
        "spec": json.loads(spec.model_dump_json()),
        "n_species": len(rows),
        "feature_names": names,
        "feature_sets": {name: len(of_set) for name, of_set in feature_sets(spec.features).items()},
        "coverage": {
            "species": len(rows),
            "with conformer": int(table["has_conformer"].sum()),
            "with ELF map": int(table["has_elf"].sum()),
            "of these from the atlas": int((table["source"] == "atlas").sum()),
            **{f"missing: {k}": int(v) for k, v in table["reason"].value_counts().items()},
        },
        "program_versions": sorted({row.program for row in rows if row.program}),
    }
    write_json_atomic(folder / "manifest.json", manifest)


def _write_volumes(folder: Path, rows: list[_Row], n: int) -> None:
    have = [i for i, row in enumerate(rows) if row.volume is not None]
    volumes = [rows[i].volume for i in have]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        rows=np.array(have, dtype=np.int64),
        volumes=np.stack(volumes) if volumes else np.zeros((0, 3, n, n, n), np.float16),  # type: ignore[arg-type]
    )
    write_bytes_atomic(folder / "elf_volumes.npz", buffer.getvalue())


def _write_conformers(folder: Path, rows: list[_Row]) -> None:
    found = [row.conformer for row in rows]
    numbers = [c.numbers for c in found if c is not None]
    coords = [c.coords_angstrom for c in found if c is not None]
    lengths = [0 if c is None else len(c.numbers) for c in found]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        atomic_numbers=np.concatenate([np.zeros(0, np.int16), *numbers]).astype(np.int16),
        coords_angstrom=np.concatenate([np.zeros((0, 3), np.float32), *coords]),
    )
    write_bytes_atomic(folder / "conformers.npz", buffer.getvalue())


def _table_row(row: _Row) -> dict[str, Any]:
    return {
        "species_key": row.species.key,
        "smiles": row.species.smiles,
        "charge": row.species.charge,
        "n_atoms": row.species.n_atoms,
        "has_conformer": row.conformer is not None,
        "conformer_method": None if row.conformer is None else row.conformer.method,
        "conformer_key": None if row.conformer is None else row.planned["conformer"],
        "has_elf": row.vector is not None,
        "source": row.source,
        "elf_key": row.keys.get("elf"),
        "features_key": row.planned["features"] if row.vector is not None else None,
        "reason": row.reason,
    }


def _read(store: StoreLike, key: str | None) -> Record | None:
    if key is None:
        return None
    try:
        return store.get(key)
    except IntegrityError as error:
        raise IntegrityError(f"{error}; run `medrec features run` again to recompute it") from error


def _save(path: Path, array: Any) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes_atomic(path, buffer.getvalue())
