"""Transformer blocks over padded sets, without positions."""

from __future__ import annotations

import math

import torch
from torch import nn

from medrec.models.decoding import PaddedSets
from medrec.molecules.encoders_2d import FastDropout
from quantum.base import InputError

Memory = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Keys and values (n, heads, C, d / heads) and their mask (n, 1, 1, C)."""


class Attention(nn.Module):
    """Multi-head attention. Keys have no bias: it would cancel in the softmax."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if d_model % n_heads:
            raise InputError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.query, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(3))
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.dropout = FastDropout(dropout)

    def keys_values(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (n, heads, C, d / heads) of a memory (n, C, d)."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def forward(
        self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attend from x (n, L, d); ``mask`` broadcasts to (n, heads, L, C), True where seen.

        A row that sees nothing gets the bias of the output layer only.
        """
        query = self._split(self.query(x)) / math.sqrt(keys.shape[-1])
        scores = query @ keys.transpose(2, 3)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = self.dropout(torch.softmax(scores, dim=-1) * mask)
        return self.out((weights @ values).transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


def feed_forward(d_model: int, d_wide: int, dropout: float) -> nn.Sequential:
    """Two linear layers with ReLU and dropout between them."""
    return nn.Sequential(
        nn.Linear(d_model, d_wide),
        nn.ReLU(inplace=True),
        FastDropout(dropout),
        nn.Linear(d_wide, d_model),
    )


class SetEncoder(nn.Module):
    """Embedding of codes and one Transformer encoder layer over each set, without positions."""

    def __init__(
        self,
        n_codes: int,
        d_model: int,
        n_heads: int,
        d_wide: int,
        *,
        dropout: float,
        embedding_dropout: float,
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(max(n_codes, 1), d_model)
        self.embedding_dropout = FastDropout(embedding_dropout)
        self.attention = Attention(d_model, n_heads, dropout)
        self.wide = feed_forward(d_model, d_wide, dropout)
        self.norm_1, self.norm_2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = FastDropout(dropout)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Embed codes."""
        return self.embedding_dropout(self.table(codes))

    def forward(self, sets: PaddedSets) -> torch.Tensor:
        """Encode sets (n, C, d); zeros where there is no code."""
        x = self.embed(sets.index)
        keys, values = self.attention.keys_values(x)
        attended = self.dropout(self.attention(x, keys, values, sets.mask[:, None, None]))
        # the wide layers see codes only, no padding
        flat = self.norm_1((x + attended).flatten(0, 1)[sets.place])
        flat = self.norm_2(flat + self.dropout(self.wide(flat)))
        empty = flat.new_zeros(sets.mask.numel(), flat.shape[1])
        return empty.index_copy(0, sets.place, flat).reshape(x.shape)


class Pooling(nn.Module):
    """Mean of the vectors of a set, weighted by a learned score; zero for an empty set."""

    def __init__(self, d_model: int, d_hidden: int = 32) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(d_model, d_hidden), nn.Tanh(), nn.Linear(d_hidden, 1, bias=False)
        )

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool (n, C, d) to (n, d)."""
        scores = self.score(vectors).squeeze(-1)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=1) * mask
        return (weights.unsqueeze(1) @ vectors).squeeze(1)


class DecoderLayer(nn.Module):
    """Transformer decoder layer with two memories, read side by side."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.own, self.to_first, self.to_second = (
            Attention(d_model, n_heads, dropout) for _ in range(3)
        )
        self.wide = feed_forward(d_model, 2 * d_model, dropout)
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = FastDropout(dropout)

    def forward(
        self, x: torch.Tensor, first: Memory, second: Memory, seen: torch.Tensor
    ) -> torch.Tensor:
        """States (n, L, d) of tokens (n, L, d); ``seen`` (L, L) is the causal mask."""
        own = self.own(x, *self.own.keys_values(x), seen)
        return self.read(x, own, first, second)

    def memories(
        self,
        first: torch.Tensor,
        first_mask: torch.Tensor,
        second: torch.Tensor,
        second_mask: torch.Tensor,
    ) -> tuple[Memory, Memory]:
        """Keys and values of two memories (n, C, d), made once for all steps."""
        return (
            (*self.to_first.keys_values(first), first_mask[:, None, None]),
            (*self.to_second.keys_values(second), second_mask[:, None, None]),
        )

    def read(
        self, x: torch.Tensor, own: torch.Tensor, first: Memory, second: Memory
    ) -> torch.Tensor:
        """The layer after its self-attention."""
        x = self.norm_1(x + self.dropout(own))
        read = self.dropout(self.to_first(x, *first)) + self.dropout(self.to_second(x, *second))
        x = self.norm_2(x + read)
        return self.norm_3(x + self.dropout(self.wide(x)))
