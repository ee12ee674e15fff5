"""Blocks that more than one model uses."""

from __future__ import annotations

import math

import torch
from torch import nn

from medrec.data.dataset import CodeBag


class BagEmbedding(nn.Module):
    """Sum of code embeddings per visit, with element-wise dropout before the sum.

    Parameters
    ----------
    n_codes : int
        Vocabulary size; 0 is allowed and gives zeros.
    """

    def __init__(self, n_codes: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(max(n_codes, 1), d_model)
        nn.init.uniform_(self.table.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, bag: CodeBag, n_visits: int) -> torch.Tensor:
        """Embed a bag; (n_visits, d)."""
        vectors = self.dropout(self.table(bag.index))
        empty = vectors.new_zeros(n_visits, vectors.shape[1])
        return empty.index_add_(0, bag.visit, vectors)


class SetAttention(nn.Module):
    """Set-attention block over the rows of one matrix (n, d).

    ``reference`` is the form of the released MoleRec and BiMoRec code: the residual is on the
    queries, then LayerNorm, Linear, LayerNorm. ``paper`` is the Set Transformer's (Lee et al.,
    ICML 2019): LN(X + attention), then LN(H + MLP(H)).
    """

    def __init__(self, d_model: int, n_heads: int, form: str) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads, self.form = n_heads, form
        self.query, self.key, self.value = (nn.Linear(d_model, d_model) for _ in range(3))
        self.dense = nn.Linear(d_model, d_model)
        self.norm_1, self.norm_2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend; (n, d)."""
        n, d = x.shape
        query, key, value = (
            layer(x).reshape(n, self.n_heads, -1).transpose(0, 1)
            for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(d / self.n_heads), dim=-1)
        attended = weights @ value
        if self.form == "reference":
            h = self.norm_1((query + attended).transpose(0, 1).reshape(n, d))
            return self.norm_2(self.dense(h))
        h = self.norm_1(x + attended.transpose(0, 1).reshape(n, d))
        return self.norm_2(h + torch.relu(self.dense(h)))


class MaskedAggregation(nn.Module):
    """Drug vectors as patient-weighted means of their fragments' vectors (MoleRec, section 4).

    The attention between drugs and fragments does not depend on the patient; a patient's fragment
    weights scale the values.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def attention(
        self, drugs: torch.Tensor, fragments: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Softmax over the fragments of each drug; a drug without a fragment gets zeros (D, S)."""
        scores = self.query(drugs) @ self.key(fragments).T / math.sqrt(drugs.shape[1])
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, dim=1) * mask

    def forward(
        self, attention: torch.Tensor, fragments: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Aggregate.

        Parameters
        ----------
        attention : Tensor (D, S)
        fragments : Tensor (S, d)
        weights : Tensor (n, S)
            Fragment weights of n visits, in (0, 1).

        Returns
        -------
        Tensor (n, D, d)
        """
        return (attention.unsqueeze(0) * weights.unsqueeze(1)) @ fragments
