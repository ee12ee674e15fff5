"""Which network a configuration means."""

from __future__ import annotations

from medrec.config_molecules import Modality, MoleculeEncoderConfig
from medrec.pretrain.encoder import MoleculeEncoder
from medrec.pretrain.molinteract import MolInteractEncoder, TowersEncoder
from medrec.pretrain.visnet import ViSNetEncoder
from quantum.base import InputError

MODALITIES: dict[str, tuple[Modality, ...]] = {
    "molinteract": ("both", "2d", "3d"),
    "two_towers": ("both", "2d", "3d"),
    "gine": ("2d",),
    "schnet": ("3d",),
    "visnet": ("3d",),
}
"""Views that each kind of encoder can read."""


def build_encoder(config: MoleculeEncoderConfig, modality: Modality) -> MoleculeEncoder:
    """Make an encoder with new weights, drawn with torch's generator.

    Raises
    ------
    InputError
        If the encoder cannot read these views, or its sizes are impossible.
    """
    possible = MODALITIES[config.kind]
    if modality not in possible:
        raise InputError(
            f"an encoder {config.kind} cannot read modality {modality}; expected "
            f"{' or '.join(possible)}"
        )
    if config.kind == "molinteract":
        return MolInteractEncoder(config, modality)
    if config.kind == "visnet":
        return ViSNetEncoder(config, modality)
    return TowersEncoder(config, modality)
