"""Vectors of any molecules from a trained encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from medrec.config_molecules import EncoderKind, Modality, MoleculeEncoderConfig
from medrec.library.build import encode_smiles
from medrec.pretrain.encoder import MoleculeEncoder
from medrec.pretrain.encoders import MODALITIES, build_encoder
from medrec.properties.model import map_molecules
from quantum.base import InputError

_KINDS: dict[str, EncoderKind] = {
    "interact": "molinteract",
    "molinteract": "molinteract",
    "two_towers": "two_towers",
    "gine": "gine",
    "schnet": "schnet",
    "visnet": "visnet",
}
"""Kind of encoder by its name in an export."""


def embed(
    smiles: Sequence[str],
    state: dict[str, Any],
    batch_size: int = 256,
    *,
    conformers: bool = False,
    hydrogens: bool = False,
    encoder: MoleculeEncoderConfig | None = None,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Mean states of the atoms of molecules.

    Parameters
    ----------
    smiles : sequence of str
    state : dict
        What a pre-training or property run exports.
    conformers : bool
        Read the 3D view too, of one conformer each that RDKit makes (ETKDGv3, fixed seed); by
        default the 2D view alone, which needs none. ``schnet`` and ``visnet`` have no other view.
    hydrogens : bool
        Whether hydrogens are atoms; as in the library that the encoder was trained on.
    encoder : MoleculeEncoderConfig, optional
        That of the run, if it read other layers than the last.

    Returns
    -------
    pandas.DataFrame
        One row for each SMILES, in order: ``smiles``, ``canonical``, ``reason``, then ``v0``,
        ``v1``, ... (float32): d numbers for one view, 2 d for both, 2D first. A molecule that
        cannot be encoded has a reason, no canonical SMILES, and NaN; ``attrs["n_rejected"]`` says
        how many these are.

    Raises
    ------
    InputError
        If there are no SMILES; if the state holds no encoder, or one that needs what ``conformers``
        denies it, or the other way round.
    """
    network = _encoder(state, encoder, conformers).to(device).eval()
    library = encode_smiles(list(smiles), hydrogens=hydrogens, conformers=conformers)
    vectors = np.full((len(smiles), network.d_pooled), np.nan, dtype=np.float32)
    numbers = library.molecules["identifier"].to_numpy().astype(np.int64)
    if len(numbers):
        vectors[numbers] = map_molecules(
            library,
            np.arange(len(numbers)),
            lambda batch: network.pooled(network(batch), batch).float(),
            device,
            batch_size,
        )
    texts = pd.DataFrame({"smiles": list(smiles), "canonical": "", "reason": ""}, dtype=object)
    texts.loc[numbers, "canonical"] = library.molecules["smiles"].to_numpy()
    refused = library.rejected
    texts.loc[refused["identifier"].astype(np.int64), "reason"] = refused["reason"].to_numpy()
    names = [f"v{i}" for i in range(network.d_pooled)]
    frame = pd.concat([texts, pd.DataFrame(vectors, columns=names)], axis=1)
    frame.attrs["n_rejected"] = len(refused)
    return frame


def _encoder(
    state: dict[str, Any], config: MoleculeEncoderConfig | None, conformers: bool
) -> MoleculeEncoder:
    """Network of an export, without changing the random numbers of the process."""
    if config is None:
        name = next((name for name in _KINDS if name in state), None)
        if name is None:
            raise InputError(
                f"state holds {', '.join(sorted(state)) or 'nothing'}; expected an encoder: "
                f"{', '.join(_KINDS)}"
            )
        config = MoleculeEncoderConfig(kind=_KINDS[name], **state[name]["sizes"])
    wanted: tuple[Modality, ...] = ("both", "3d") if conformers else ("2d",)
    possible = [modality for modality in wanted if modality in MODALITIES[config.kind]]
    if not possible:
        raise InputError(
            f"an encoder {config.kind} reads no conformers; expected conformers off"
            if conformers
            else f"an encoder {config.kind} reads conformers alone; expected conformers on"
        )
    with torch.random.fork_rng(devices=[]):
        network = build_encoder(config, possible[0])
    network.load_pretrained(state)
    return network
