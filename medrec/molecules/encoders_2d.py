"""Torch modules on 2D molecular graphs.

Embeddings are summed once per kind of atom and bond, and the first layer runs once per distinct
surrounding of an atom (`medrec.molecules.repetitions`); batch normalisation counts each surrounding
as often as it occurs. The result is that of the plain form over all atoms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from medrec.molecules.repetitions import Neighbourhoods, RowSums
from medrec.molecules.structure import ATOM_CARDINALITIES, BOND_CARDINALITIES, MoleculeGraphs


def segment_mean(values: torch.Tensor, segments: torch.Tensor, n: int) -> torch.Tensor:
    """Mean of rows per segment, shape (n, d); 0 for an empty segment."""
    total = values.new_zeros(n, values.shape[1]).index_add_(0, segments, values)
    count = torch.bincount(segments, minlength=n).clamp(min=1).unsqueeze(1)
    return total / count


class FastDropout(nn.Module):
    """Dropout from one random byte per element, several times faster than torch's on a CPU.

    The rate is rounded to a multiple of 1/256, and the scale follows the rounded rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.kept_of_256 = max(round(256 * (1.0 - rate)), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero elements and scale the others in training; the identity otherwise."""
        if not self.training or self.kept_of_256 == 256:
            return x
        n = x.numel()
        words = torch.empty(-(-n // 8), dtype=torch.int64, device=x.device)
        noise = words.random_(-(2**63), None).view(torch.uint8)[:n].view(x.shape)
        return x * (noise < self.kept_of_256).to(x.dtype).mul_(256 / self.kept_of_256)


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


class _BatchStatistics(torch.autograd.Function):
    """Normalisation of rows (n, d) by the mean and variance over rows repeated ``counts`` times."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        share: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = share @ x
        normed = x - mean
        variance = share @ normed.square()
        scale = torch.rsqrt(variance + eps)
        normed.mul_(scale)
        ctx.save_for_backward(normed, share, weight, scale)
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias, normed, weight), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normed, share, weight, scale = ctx.saved_tensors
        upstream = gradients[0]
        for_bias = upstream.sum(dim=0)
        for_weight = (upstream * normed).sum(dim=0)
        common = torch.addcmul(for_bias, normed, for_weight).mul_(share.unsqueeze(1))
        for_x = (upstream - common).mul_(weight * scale)
        return for_x, None, for_weight, for_bias, None


class CountedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of distinct rows that stand for several equal ones each."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, share: torch.Tensor, total: int
    ) -> torch.Tensor:
        """Normalise.

        Parameters
        ----------
        x : Tensor (n, d)
        share : Tensor (n,)
            Share of each row in all of them, adding up to 1.
        total : int
            Number of rows with repetitions.
        """
        running_mean, running_var = self.running_mean, self.running_var
        assert running_mean is not None
        assert running_var is not None
        if not self.training:
            scale = self.weight * torch.rsqrt(running_var + self.eps)
            return torch.addcmul(self.bias - running_mean * scale, x, scale)
        out, mean, variance = _BatchStatistics.apply(x, share, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)
            running_mean.lerp_(mean, self.momentum)
            # torch keeps the unbiased variance
            running_var.lerp_(variance * (total / max(total - 1, 1)), self.momentum)
        return out


class _SumRows(torch.autograd.Function):
    """Multiplication of rows (n, d) by a sparse matrix of counts."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sums: RowSums) -> torch.Tensor:
        ctx.sums = sums
        return F.embedding_bag(sums.index, x, sums.start, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        sums: RowSums = ctx.sums
        upstream = gradients[0].contiguous()
        return F.embedding_bag(sums.index_back, upstream, sums.start_back, mode="sum"), None


def sum_rows(x: torch.Tensor, sums: RowSums) -> torch.Tensor:
    """Sums of rows of x (n, d), without a tensor of all the rows that are added."""
    return _SumRows.apply(x, sums)


class GINLayer(nn.Module):
    """One graph isomorphism layer with bond features: h' = MLP((1 + eps) h + sum ReLU(h_u + e))."""

    def __init__(self, d_model: int, *, last: bool, dropout: float) -> None:
        super().__init__()
        self.bonds = CategoryEmbedding(BOND_CARDINALITIES, d_model)
        self.eps = nn.Parameter(torch.zeros(1))
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 2 * d_model),
            CountedBatchNorm(2 * d_model),
            nn.ReLU(),
            nn.Linear(2 * d_model, d_model),
        )
        self.norm = CountedBatchNorm(d_model)
        self.last = last
        self.dropout = FastDropout(dropout)

    def forward(
        self, h: torch.Tensor, bond_kinds: torch.Tensor, hoods: Neighbourhoods
    ) -> torch.Tensor:
        """New states of all atoms (N, d)."""
        inputs = torch.cat([h, self.bonds(bond_kinds)])
        gathered = sum_rows(torch.relu(sum_rows(inputs, hoods.messages)), hoods.arriving)
        own = h if hoods.own is None else h.index_select(0, hoods.own)
        h = torch.addcmul(gathered, own, 1.0 + self.eps)
        enter, norm, relu, leave = self.mlp
        h = leave(relu(norm(enter(h), hoods.share, hoods.n_atoms)))
        h = self.norm(h, hoods.share, hoods.n_atoms)
        h = h if self.last else torch.relu(h)
        # dropout is drawn for every atom on its own, whatever it shares with others before
        return self.dropout(h if hoods.spread is None else h.index_select(0, hoods.spread))


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
        plan = graphs.repetitions
        h = self.atoms(plan.atom_kinds)
        for number, layer in enumerate(self.layers):
            h = layer(h, plan.bond_kinds, plan.later if number else plan.first)
        empty = h.new_zeros(graphs.n_graphs, self.d_model)
        return empty.index_add(0, graphs.batch, h * plan.atom_share.unsqueeze(1))
