"""Blocks that more than one model uses."""

from __future__ import annotations

import math

import torch
from torch import nn

from medrec.data.dataset import CodeBag, VisitBatch
from medrec.molecules.encoders_2d import FastDropout


class BagEmbedding(nn.Module):
    """Sum of code embeddings per visit, with element-wise dropout before the sum.

    Parameters
    ----------
    n_codes : int
        Vocabulary size; 0 is allowed and gives zeros.
    init_std : float, optional
        Start from a normal distribution; by default from the published uniform one in ±0.1.
    """

    def __init__(
        self, n_codes: int, d_model: int, dropout: float, init_std: float | None = None
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(max(n_codes, 1), d_model)
        if init_std is None:
            nn.init.uniform_(self.table.weight, -0.1, 0.1)
        else:
            nn.init.normal_(self.table.weight, std=init_std)
        self.dropout = FastDropout(dropout)

    def forward(self, bag: CodeBag, n_visits: int) -> torch.Tensor:
        """Embed a bag; (n_visits, d)."""
        vectors = self.dropout(self.table(bag.index))
        empty = vectors.new_zeros(n_visits, vectors.shape[1])
        return empty.index_add_(0, bag.visit, vectors)


class CodeHistory(nn.Module):
    """Diagnoses and procedures up to each visit: two bags of codes, each followed by a GRU.

    Parameters
    ----------
    n_diagnoses, n_procedures : int
    d_model : int
        Size of the embeddings and of both states.
    """

    def __init__(self, n_diagnoses: int, n_procedures: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.diagnoses = BagEmbedding(n_diagnoses, d_model, dropout)
        self.procedures = BagEmbedding(n_procedures, d_model, dropout)
        self.gru_diagnoses = nn.GRU(d_model, d_model, batch_first=True)
        self.gru_procedures = nn.GRU(d_model, d_model, batch_first=True)

    def forward(self, batch: VisitBatch) -> torch.Tensor:
        """States of both GRUs side by side (B, V, 2 d); later visits do not enter."""
        flat = batch.shape[0] * batch.shape[1]
        diagnoses = self.diagnoses(batch.diagnoses, flat).reshape(*batch.shape, -1)
        procedures = self.procedures(batch.procedures, flat).reshape(*batch.shape, -1)
        states = [self.gru_diagnoses(diagnoses)[0], self.gru_procedures(procedures)[0]]
        return torch.cat(states, dim=-1)


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
    weights scale the values. A drug has few of the S fragments, so attention is kept as one column
    per fragment of a drug, K at most, and never as a (D, S) matrix.

    Parameters
    ----------
    mask : BoolTensor (D, S)
        Which drug has which fragment.
    """

    fragment: torch.Tensor
    present: torch.Tensor

    def __init__(self, d_model: int, mask: torch.Tensor) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        # fragments of each drug first, in order; the rest of a row is padding
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        width = max(int(mask.sum(dim=1).max()) if len(mask) else 0, 1)
        fragment = order[:, :width].contiguous()
        self.register_buffer("fragment", fragment, persistent=False)
        self.register_buffer("present", mask.gather(1, fragment), persistent=False)

    def attention(self, drugs: torch.Tensor, fragments: torch.Tensor) -> torch.Tensor:
        """Softmax over the fragments of each drug (D, K); a drug without a fragment gets zeros."""
        keys = self.key(fragments).index_select(0, self.fragment.flatten())
        keys = keys.reshape(*self.fragment.shape, -1)
        scores = (keys @ self.query(drugs).unsqueeze(2)).squeeze(2) / math.sqrt(drugs.shape[1])
        scores = scores.masked_fill(~self.present, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, dim=1) * self.present

    def forward(
        self, attention: torch.Tensor, values: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Aggregate.

        Parameters
        ----------
        attention : Tensor (D, K)
        values : Tensor (S, d)
            Vectors of the fragments.
        weights : Tensor (S, n)
            Fragment weights of n visits, in (0, 1).

        Returns
        -------
        Tensor (D, n, d)
        """
        index, shape = self.fragment.flatten(), self.fragment.shape
        scaled = attention.unsqueeze(2) * values.index_select(0, index).reshape(*shape, -1)
        of_drug = weights.index_select(0, index).reshape(*shape, -1)
        return of_drug.transpose(1, 2) @ scaled
