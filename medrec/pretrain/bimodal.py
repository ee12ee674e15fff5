"""Contrastive pre-training of a 2D and a 3D encoder on the same molecules (BiMoRec, stage 1)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from medrec.config import EncoderConfig
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.encoders_3d import GVPEncoder
from medrec.molecules.geometries import Geometries
from medrec.molecules.structure import MoleculeGraphs


class BimodalEncoder(nn.Module):
    """A 2D and a 3D view of each molecule in one space."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.gin = GINEncoder(config.d_model, config.gin_layers, config.dropout)
        self.gvp = GVPEncoder(
            config.d_model,
            config.gvp_layers,
            cutoff_angstrom=config.cutoff_angstrom,
            n_rbf=config.n_rbf,
        )

    def forward(
        self, graphs: MoleculeGraphs, geometries: Geometries
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode both views; two tensors (n, d)."""
        return self.gin(graphs), self.gvp(geometries)


def nt_xent(anchor: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """Contrastive loss in one direction, as published for BiMoRec.

    ``-1/n sum_i log( exp(s_ii / t) / sum_{k != i} exp(s_ik / t) )`` with cosine similarities: the
    positive pair is *not* in the denominator, so the loss can be negative.

    Parameters
    ----------
    anchor, other : Tensor (n, d)
        Row i of both is the same molecule; rows are distinct molecules.
    """
    similarity = F.normalize(anchor, dim=1) @ F.normalize(other, dim=1).T / temperature
    positive = similarity.diagonal()
    same = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    negatives = similarity.masked_fill(same, float("-inf"))
    return (torch.logsumexp(negatives, dim=1) - positive).mean()


def contrastive_loss(
    flat: torch.Tensor, spatial: torch.Tensor, temperature: float, *, symmetric: bool
) -> torch.Tensor:
    """2D to 3D as published, or the mean of both directions."""
    loss = nt_xent(flat, spatial, temperature)
    if symmetric:
        return 0.5 * (loss + nt_xent(spatial, flat, temperature))
    return loss


@torch.no_grad()
def retrieval_accuracy(flat: torch.Tensor, spatial: torch.Tensor) -> float:
    """Share of molecules whose own geometry is the nearest to their graph."""
    similarity = F.normalize(flat, dim=1) @ F.normalize(spatial, dim=1).T
    hits = similarity.argmax(dim=1) == torch.arange(len(flat), device=flat.device)
    return float(hits.float().mean())
