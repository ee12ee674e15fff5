"""From the store to one table per feature set, which is all that training reads.

::

    manifest.json       digest, settings, coverage, program versions, feature names
    species.parquet     one row per species: what it has, and why something is missing
    elf_features.npy    float32 (n, K), zeros where missing;  elf_mask.npy  bool (n,)
    conformers.npz      offsets (n + 1,), atomic_numbers (A,), coords_angstrom (A, 3)
"""

from __future__ import annotations

import io
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quantum.base import (
    IntegrityError,
    digest,
    now_utc,
    publish_folder,
    write_bytes_atomic,
    write_json_atomic,
)
from quantum.elf import feature_names
from quantum.molecule import Species
from quantum.pipeline import STAGES, plan
from quantum.schema import PipelineSpec
from quantum.store import Record, Store
from quantum.units import BOHR_IN_ANGSTROM


def export_features(
    species: Sequence[Species], spec: PipelineSpec, store: Store, parent: Path, name: str
) -> Path:
    """Write the table of some species into ``<parent>/<name>-<digest8>``, or find it there.

    Parameters
    ----------
    species : sequence of Species
        Rows of the table; order and duplicates do not matter, rows are sorted by SMILES.

    Returns
    -------
    Path
        The folder. Its digest covers the content of every object that went in.
    """
    ordered = sorted(set(species), key=lambda item: (item.smiles, item.charge))
    present = [{s: k for s, k in plan(item, spec).items() if store.has(k)} for item in ordered]
    content = {
        "species": [item.key for item in ordered],
        "spec": spec.model_dump(mode="json"),
        "objects": [[store.digest_of(key) for key in keys.values()] for keys in present],
    }
    key = digest(content)
    folder = parent / f"{name}-{key[:8]}"
    if (folder / "manifest.json").exists():
        return folder
    temporary = parent / f".{uuid.uuid4().hex}.tmp"
    temporary.mkdir(parents=True)
    try:
        _write(temporary, ordered, present, spec, store, key)
        publish_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _write(
    folder: Path,
    species: list[Species],
    present: list[dict[Any, str]],
    spec: PipelineSpec,
    store: Store,
    key: str,
) -> None:
    names = feature_names(spec.features)
    vectors = np.zeros((len(species), len(names)), dtype=np.float32)
    mask = np.zeros(len(species), dtype=bool)
    numbers: list[Any] = []
    coords: list[Any] = []
    rows, versions = [], set()
    for i, (item, keys) in enumerate(zip(species, present, strict=True)):
        conformer = _read(store, keys.get("conformer"))
        features = _read(store, keys.get("features"))
        scf_version = _version(store, keys.get("scf"))
        if scf_version:
            versions.add(scf_version)
        if features is not None:
            vectors[i], mask[i] = features.arrays["vector"], True
        numbers.append(
            [] if conformer is None else conformer.arrays["atomic_numbers"].astype(np.int16)
        )
        coords.append(
            np.zeros((0, 3), np.float32)
            if conformer is None
            else (conformer.arrays["coords_bohr"] * BOHR_IN_ANGSTROM).astype(np.float32)
        )
        rows.append(_row(item, spec, store, keys, conformer))
    lengths = [len(item) for item in coords]
    _save(folder / "elf_features.npy", vectors)
    _save(folder / "elf_mask.npy", mask)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        atomic_numbers=np.concatenate([np.zeros(0, np.int16), *numbers]).astype(np.int16),
        coords_angstrom=np.concatenate([np.zeros((0, 3), np.float32), *coords]),
    )
    write_bytes_atomic(folder / "conformers.npz", buffer.getvalue())
    table = pd.DataFrame(rows)
    table.to_parquet(folder / "species.parquet")
    manifest = {
        "digest": key,
        "created": now_utc(),
        "spec": json.loads(spec.model_dump_json()),
        "n_species": len(species),
        "feature_names": names,
        "coverage": {
            "species": len(species),
            "with conformer": int(table["has_conformer"].sum()),
            "with ELF map": int(table["has_elf"].sum()),
            **{f"missing: {k}": int(v) for k, v in table["reason"].value_counts().items()},
        },
        "program_versions": sorted(versions),
    }
    write_json_atomic(folder / "manifest.json", manifest)


def _row(
    item: Species, spec: PipelineSpec, store: Store, keys: dict[Any, str], conformer: Record | None
) -> dict[str, Any]:
    reason = None
    for stage in STAGES:
        if stage not in keys:
            failure = store.failure(plan(item, spec)[stage])
            reason = f"{stage} {failure.kind}" if failure else f"{stage} not requested"
            break
    return {
        "species_key": item.key,
        "smiles": item.smiles,
        "charge": item.charge,
        "n_atoms": item.n_atoms,
        "has_conformer": conformer is not None,
        "conformer_method": None if conformer is None else conformer.scalars["method"],
        "has_elf": "features" in keys,
        "elf_key": keys.get("elf"),
        "reason": reason,
    }


def _read(store: Store, key: str | None) -> Record | None:
    if key is None:
        return None
    try:
        return store.get(key)
    except IntegrityError as error:
        raise IntegrityError(f"{error}; run `medrec features run` again to recompute it") from error


def _version(store: Store, key: str | None) -> str | None:
    record = _read(store, key)
    if record is None:
        return None
    return f"{record.scalars['program']} {record.scalars['program_version']}"


def _save(path: Path, array: Any) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes_atomic(path, buffer.getvalue())
