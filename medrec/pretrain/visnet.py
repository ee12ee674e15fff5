"""ViSNet of PyTorch Geometric on padded batches (Wang et al., Nature Communications 15, 313, 2024).

An equivariant transformer, as an upper anchor for what 3D coordinates can tell. Its invariant
states are used. Neighbours are all atoms within 5 Angstrom, the atom itself among them; an atom
without a position is its only neighbour.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.visnet import ViSNetBlock

from medrec.config_molecules import Modality, MoleculeEncoderConfig
from medrec.library.batches import MoleculeBatch
from medrec.molecules.structure import ATOM_CARDINALITIES
from medrec.pretrain.dense import PaddedEncoder, pair_distances
from medrec.pretrain.encoder import AtomStates
from quantum.base import InputError

CUTOFF_ANGSTROM = 5.0
N_HEADS = 8
N_RADIAL = 32


class GivenPairs(nn.Module):
    """In place of PyTorch Geometric's search for neighbours, which needs a compiled library."""

    def forward(self, position: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs, their distances and vectors; ``pairs`` (2, P) stand where it expects molecules."""
        gap = position[pairs[0]] - position[pairs[1]]
        return pairs, torch.linalg.vector_norm(gap, dim=1), gap


def neighbours(batch: MoleculeBatch) -> Tensor:
    """Ordered pairs of near atoms (2, P), numbered over the real atoms of the batch; i = j too."""
    itself = torch.eye(batch.n_slots, dtype=torch.bool, device=batch.mask.device)
    gap = pair_distances(batch)
    # RDKit puts the parts of a mixture upon each other: no distance, no direction
    near = ((gap > 0) & (gap < CUTOFF_ANGSTROM)) | (itself & batch.mask.unsqueeze(2))
    number = (batch.mask.flatten().cumsum(0) - 1).view_as(batch.mask)
    molecule, target, source = torch.nonzero(near, as_tuple=True)
    return torch.stack([number[molecule, source], number[molecule, target]])


class ViSNetEncoder(PaddedEncoder):
    """States from distances and directions.

    Raises
    ------
    InputError
        If d is no multiple of 8, or for dropout or jumping knowledge, which ViSNet has not.
    """

    def __init__(self, config: MoleculeEncoderConfig, modality: Modality) -> None:
        super().__init__(config, modality)
        if config.d_model % N_HEADS:
            raise InputError(
                f"an encoder visnet has {N_HEADS} heads and d_model {config.d_model}; expected a "
                f"multiple of {N_HEADS}"
            )
        if config.dropout or config.jk != "last":
            raise InputError(
                f"an encoder visnet has dropout {config.dropout} and jk {config.jk}; expected 0 "
                "and last"
            )
        self.block = ViSNetBlock(
            num_heads=N_HEADS,
            num_layers=config.layers,
            hidden_channels=config.d_model,
            num_rbf=N_RADIAL,
            max_z=ATOM_CARDINALITIES[0],
            cutoff=CUTOFF_ANGSTROM,
        )
        self.block.distance = GivenPairs()
        # leads to the vectors of the last layer alone, which nobody reads
        self.block.vis_mp_layers[-1].s_proj.requires_grad_(False)

    def forward(self, batch: MoleculeBatch) -> AtomStates:
        """Encode atoms; 0 where padded."""
        element, position = batch.x[batch.mask][:, 0], batch.position[batch.mask]
        states, _ = self.block(element, position, neighbours(batch))
        padded = states.new_zeros(*batch.mask.shape, states.shape[1])
        return AtomStates(None, padded.masked_scatter(batch.mask.unsqueeze(2), states))
