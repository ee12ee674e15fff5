"""Image encoders over the volumes of a feature table, as one more feature set of a new table."""

from __future__ import annotations

import io
import json
import shutil
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from medrec.molecules.encoders_elf import (
    VolumePretrainConfig,
    pretrain_volume_encoder,
    slice_planes,
    volume_channels,
)
from medrec.molecules.encoders_slices import SliceEncoder, load_backbone
from medrec.molecules.features import FeatureTable
from quantum.base import (
    Frozen,
    InputError,
    digest,
    file_digest,
    now_utc,
    provenance,
    publish_folder,
    write_bytes_atomic,
    write_json_atomic,
)

SETS = {"volume": "volume_cnn", "slices": "slice_cnn"}
_COPIED = ("species.parquet", "elf_mask.npy", "elf_volumes.npz", "conformers.npz")


class EncodeConfig(Frozen):
    """How volumes become vectors."""

    encoder: Literal["volume", "slices"] = Field(
        "volume", description="our 3D CNN, trained on the table itself; or slices through a 2D CNN"
    )
    volume: VolumePretrainConfig = VolumePretrainConfig(dim=64, epochs=30)
    architecture: str = Field("tf_efficientnetv2_l", description="timm's name of the 2D CNN")
    n_slices: int = Field(16, ge=1, description="along each axis")
    image_size: int = Field(480, ge=16)
    seed: int = 0


def encode_table(
    table: FeatureTable,
    config: EncodeConfig,
    parent: Path,
    weights: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Path:
    """Encode the volumes of a table and write a table with one feature set more.

    Parameters
    ----------
    weights : Path, optional
        Weights of the 2D CNN; needed for ``slices``.
    on_step : callable, optional
        Called with the number of encoded molecules and their total.

    Returns
    -------
    Path
        Folder of the new table, in ``parent``; found there if it exists.

    Raises
    ------
    InputError
        If the table has no volumes, has the set already, or weights are missing.
    """
    name = SETS[config.encoder]
    if name in table.manifest["feature_sets"]:
        raise InputError(f"feature table {table.folder.name} has the set '{name}' already")
    if config.encoder == "slices" and weights is None:
        raise InputError("slices need the weights of the 2D CNN; expected --weights FILE")
    content = {
        "table": table.digest,
        "config": config.model_dump(mode="json"),
        "weights": file_digest(weights) if weights is not None else None,
    }
    key = digest(content)
    folder = parent / f"{table.folder.name.rsplit('-', 1)[0]}_{name}-{key[:8]}"
    if (folder / "manifest.json").exists():
        return folder
    rows, channels = _channels(table)
    if config.encoder == "volume":
        vectors, extra = _by_volume(channels, config)
    else:
        vectors, extra = _by_slices(channels, config, weights, on_step)
    _write(table, folder, name, key, rows, vectors, {"encode": content, **extra})
    return folder


def _channels(table: FeatureTable) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]:
    try:
        with np.load(table.folder / "elf_volumes.npz", allow_pickle=False) as packed:
            rows, volumes = packed["rows"], packed["volumes"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"feature table has no readable volumes: {table.folder} ({type(error).__name__})"
        ) from error
    if len(rows) == 0:
        raise InputError(
            f"feature table {table.folder.name} has no volumes; expected one made with "
            "features.volume_points, as all named levels are"
        )
    return rows, [volume_channels(*np.maximum(volume, 0.0)) for volume in volumes]


def _by_volume(
    channels: list[npt.NDArray[np.float32]], config: EncodeConfig
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    encoder, losses = pretrain_volume_encoder(channels, config.volume, config.seed)
    with torch.no_grad():
        vectors = [encoder(torch.from_numpy(item)[None])[0].numpy() for item in channels]
    return np.stack(vectors).astype(np.float32), {"loss_first": losses[0], "loss_last": losses[-1]}


def _by_slices(
    channels: list[npt.NDArray[np.float32]],
    config: EncodeConfig,
    weights: Path | None,
    on_step: Callable[[int, int], None] | None,
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    backbone = load_backbone(weights, config.architecture)
    encoder = SliceEncoder(backbone, image_size=config.image_size)
    vectors = []
    for done, item in enumerate(channels):
        vectors.append(encoder([slice_planes(item, config.n_slices)])[0].numpy())
        if on_step is not None:
            on_step(done + 1, len(channels))
    return np.stack(vectors).astype(np.float32), {}


def _write(
    table: FeatureTable,
    folder: Path,
    name: str,
    key: str,
    rows: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.float32],
    extra: dict[str, Any],
) -> None:
    columns = np.zeros((len(table.elf), vectors.shape[1]), dtype=np.float32)
    columns[rows] = vectors
    manifest = json.loads(json.dumps(table.manifest))
    before = manifest.get("feature_order", sorted(manifest["feature_sets"]))
    manifest["feature_order"] = [*before, name]
    manifest["feature_sets"][name] = vectors.shape[1]
    manifest["feature_names"] += [f"{name}_{i:04d}" for i in range(vectors.shape[1])]
    manifest |= {"digest": key, "created": now_utc(), "provenance": provenance("torch"), **extra}
    temporary = folder.parent / f".{uuid.uuid4().hex}.tmp"
    temporary.mkdir(parents=True)
    try:
        for item in _COPIED:
            shutil.copyfile(table.folder / item, temporary / item)
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate([table.elf, columns], axis=1), allow_pickle=False)
        write_bytes_atomic(temporary / "elf_features.npy", buffer.getvalue())
        write_json_atomic(temporary / "manifest.json", manifest)
        publish_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
