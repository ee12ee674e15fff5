"""Torch modules on 2D molecular graphs."""

from __future__ import annotations

import torch
from torch import nn

from medrec.molecules.structure import ATOM_CARDINALITIES, BOND_CARDINALITIES, MoleculeGraphs


def segment_mean(values: torch.Tensor, segments: torch.Tensor, n: int) -> torch.Tensor:
    """Mean of rows per segment, shape (n, d); 0 for an empty segment."""
    total = values.new_zeros(n, values.shape[1]).index_add_(0, segments, values)
    count = torch.bincount(segments, minlength=n).clamp(min=1).unsqueeze(1)
    return total / count


class CategoryEmbedding(nn.Module):
    """Sum of one embedding per categorical column.

    Parameters
    ----------
    cardinalities : tuple of int
        Number of categories of each column.
    """

    starts: torch.Tensor

    def __init__(self, cardinalities: tuple[int, ...], d_model: int) -> None:
        super().__init__()
        starts = torch.tensor([0, *cardinalities[:-1]]).cumsum(0)
        self.register_buffer("starts", starts)
        self.table = nn.Embedding(sum(cardinalities), d_model)
        nn.init.xavier_uniform_(self.table.weight)

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        """Map categories (n, columns) to vectors (n, d)."""
        return self.table(columns + self.starts).sum(dim=1)


class GINLayer(nn.Module):
    """One graph isomorphism layer with bond features: h' = MLP((1 + eps) h + sum ReLU(h_u + e))."""

    def __init__(self, d_model: int, *, last: bool, dropout: float) -> None:
        super().__init__()
        self.bonds = CategoryEmbedding(BOND_CARDINALITIES, d_model)
        self.eps = nn.Parameter(torch.zeros(1))
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 2 * d_model),
            nn.BatchNorm1d(2 * d_model),
            nn.ReLU(),
            nn.Linear(2 * d_model, d_model),
        )
        self.norm = nn.BatchNorm1d(d_model)
        self.last = last
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: torch.Tensor, graphs: MoleculeGraphs) -> torch.Tensor:
        """Update node states (N, d)."""
        source, target = graphs.edge_index
        messages = torch.relu(h[source] + self.bonds(graphs.edge_attr))
        gathered = torch.zeros_like(h).index_add_(0, target, messages)
        h = self.norm(self.mlp((1.0 + self.eps) * h + gathered))
        return self.dropout(h if self.last else torch.relu(h))


class GINEncoder(nn.Module):
    """Graph isomorphism network with mean read-out, as the MoleRec line uses it.

    Xu et al., ICLR 2019, with the bond features of Hu et al., ICLR 2020. Batch normalisation runs
    over all nodes given, so in training a vector depends on the whole set of molecules; in
    evaluation running statistics are used.
    """

    def __init__(self, d_model: int, n_layers: int, dropout: float) -> None:
        super().__init__()
        self.d_model, self.n_layers = d_model, n_layers
        self.atoms = CategoryEmbedding(ATOM_CARDINALITIES, d_model)
        self.layers = nn.ModuleList(
            GINLayer(d_model, last=i == n_layers - 1, dropout=dropout) for i in range(n_layers)
        )

    def forward(self, graphs: MoleculeGraphs) -> torch.Tensor:
        """Encode graphs.

        Returns
        -------
        Tensor (n_graphs, d)
        """
        h = self.atoms(graphs.x)
        for layer in self.layers:
            h = layer(h, graphs)
        return segment_mean(h, graphs.batch, graphs.n_graphs)
