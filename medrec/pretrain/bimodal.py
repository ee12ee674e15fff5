"""Contrastive pre-training of 2D and 3D encoders on the same structures (BiMoRec, stage 1).

Four encoders with weights of their own: graph networks and geometric vector perceptrons, of whole
molecules and of their fragments. The loss is L = L_mol + L_sub (eq. 7-11).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from medrec.config import EncoderConfig
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.encoders_3d import GVPEncoder
from medrec.molecules.geometries import Geometries
from medrec.molecules.structure import MoleculeGraphs

PARTS = ("gin_molecule", "gvp_molecule", "gin_fragment", "gvp_fragment")
Embeddings = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class BimodalEncoder(nn.Module):
    """A 2D and a 3D view of each molecule in one space, and of each fragment in another."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()

        def flat() -> GINEncoder:
            return GINEncoder(config.d_model, config.gin_layers, config.dropout)

        def spatial() -> GVPEncoder:
            return GVPEncoder(
                config.d_model,
                config.gvp_layers,
                cutoff_angstrom=config.cutoff_angstrom,
                n_rbf=config.n_rbf,
                dropout=config.gvp_dropout,
                head_dropout=config.head_dropout,
            )

        self.gin_molecule, self.gvp_molecule = flat(), spatial()
        self.gin_fragment, self.gvp_fragment = flat(), spatial()

    def forward(
        self,
        molecules: MoleculeGraphs,
        molecule_geometries: Geometries,
        fragments: MoleculeGraphs,
        fragment_geometries: Geometries,
    ) -> Embeddings:
        """Encode both views of n molecules and s fragments: two tensors (n, d), two (s, d)."""
        return (
            self.gin_molecule(molecules),
            self.gvp_molecule(molecule_geometries),
            self.gin_fragment(fragments),
            self.gvp_fragment(fragment_geometries),
        )


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
