"""DEPOT: motif trees, and drugs that are repeated or newly explored (Zhao et al., 2024).

Molecules: a molecule is a tree of motifs (`medrec.molecules.motifs`: pieces between BRICS bonds).
A motif's token sums the embeddings of the motif, of its degree and of its distance from the tree's
root; a Transformer runs over the tokens of a molecule, whose vector is their mean plus an embedding
of the molecule. A drug attends to its molecules; the result is scaled to length 1 and the drug's
own embedding is added.

Patients: with the health state q_t (GRUs over diagnoses and procedures) and drug vectors E::

    m_t = LayerNorm(s + W s),  s = sigmoid(q_t E^T)
    g_t ~ Normal(mu(q_t - q_(t-1)), sigma(q_t - q_(t-1)))
    repeat:  attention of g_t over the motifs that drugs of visit t-1 contain  -> score per drug
    explore: attention of g_t over all other motifs                            -> score per drug
    z_t = m_t * (w_1 repeat + w_2 explore),  (w_1, w_2) = softmax of q_t and q_t - q_(t-1)

and z_1 = m_1 at a first visit, which has neither.

Differences from the released code: it draws the noise of g_t at test time too, so that a
prediction is random (``sample_at_test``; the default takes the mean); molecules are encoded once
per optimiser step; all visits go through one causal pass; the gate of the interaction loss takes
each visit's own DDI rate and not a mean over the last three visits of any patients; the similarity
constraint, whose weight is 0 there, is left out. The exact form of the two scores and of the
"recency" position is not fixed by the description this was written from: scores are
sigmoid(E W c) with c the attended motif, and recency is read as the distance from the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from medrec.config import DepotModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, FittingData, Prediction, Recommender
from medrec.models.layers import CodeHistory
from medrec.molecules.motifs import build_motif_tables
from quantum.base import InputError

MAX_POSITION = 15
"""Larger degrees and depths share one embedding."""
LENGTHS = (4, 8)
"""Trees with up to 4, up to 8 and more motifs are padded separately."""


@dataclass
class EncodedMotifs:
    """Vectors of the drugs (D, d) and of the motifs (S, d)."""

    drugs: torch.Tensor
    motifs: torch.Tensor


class Depot(Recommender):
    """See the module's text."""

    needs_molecules = True
    contains: torch.Tensor

    @classmethod
    def fit_context(cls, config: TrainConfig, data: FittingData) -> dict[str, torch.Tensor]:
        """Motif trees of the molecules; nothing is learned from patients."""
        if data.drugs is None:
            raise InputError("depot needs the molecules of the drugs; none were given")
        tables = build_motif_tables(data.drugs.smiles)
        return {
            "motif": torch.from_numpy(tables.motif),
            "degree": torch.from_numpy(tables.degree),
            "depth": torch.from_numpy(tables.depth),
        }

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, DepotModelConfig)
        if context.molecules is None:
            raise InputError("depot needs the molecules of the drugs; none were given")
        if model.d_model % model.n_heads:
            raise InputError(
                f"d_model {model.d_model} is not divisible by n_heads {model.n_heads} in depot"
            )
        self.sample_at_test = model.sample_at_test
        d, n_drugs = model.d_model, context.n_drugs
        self.encoder = MotifEncoder(model, context)
        has_molecule = (context.molecules.projection > 0).float()
        contains = has_molecule @ self.encoder.contains
        self.register_buffer("contains", (contains > 0).float())
        self.history = CodeHistory(context.n_diagnoses, context.n_procedures, d, model.dropout)
        self.query = nn.Sequential(nn.ReLU(), nn.Linear(2 * d, d))
        self.match = nn.Linear(n_drugs, n_drugs)
        self.match_norm = nn.LayerNorm(n_drugs)
        self.shift = nn.Linear(d, 2 * d)
        self.repeat_score = nn.Linear(d, d)
        self.explore_score = nn.Linear(d, d)
        self.mix = nn.Linear(2 * d, 2)

    def encode_drugs(self) -> EncodedMotifs:
        """Encode motif trees, molecules and drugs."""
        return self.encoder()

    def forward(self, batch: VisitBatch, drugs: EncodedMotifs) -> Prediction:
        """Predict all visits in one causal pass.

        ``extras["mix"]`` holds the weights of repeating and exploring (B, V, 2).
        """
        query = self.query(self.history(batch))
        affinity = torch.sigmoid(query @ drugs.drugs.T)
        matched = self.match_norm(affinity + self.match(affinity))
        change = torch.cat([torch.zeros_like(query[:, :1]), query.diff(dim=1)], dim=1)
        mix = torch.softmax(self.mix(torch.cat([query, change], dim=-1)), dim=-1)
        repeat, explore = self._turnover(change, batch.drugs_before, drugs)
        turnover = mix[..., :1] * repeat + mix[..., 1:] * explore
        later = torch.arange(batch.shape[1], device=query.device).reshape(1, -1, 1) > 0
        logits = torch.where(later, matched * turnover, matched)
        return self.decide(logits, mix=mix.detach())

    def _turnover(
        self, change: torch.Tensor, before: torch.Tensor, drugs: EncodedMotifs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B, V, D) of repeating and of exploring."""
        mean, log_variance = self.shift(change).chunk(2, dim=-1)
        if self.training or self.sample_at_test:
            mean = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        had = (before @ self.contains) > 0
        scores = mean @ drugs.motifs.T / math.sqrt(mean.shape[-1])
        found = []
        for layer, allowed in ((self.repeat_score, had), (self.explore_score, ~had)):
            attended = motif_attention(scores, allowed) @ drugs.motifs
            found.append(torch.sigmoid(layer(attended) @ drugs.drugs.T))
        return found[0], found[1]


def motif_attention(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Softmax over the allowed motifs (..., S); zeros where none is allowed."""
    masked = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.softmax(masked, dim=-1) * allowed


class MotifEncoder(nn.Module):
    """Transformer over the motifs of each molecule, and drugs as attended molecules."""

    motif: torch.Tensor
    degree: torch.Tensor
    depth: torch.Tensor
    members: torch.Tensor
    contains: torch.Tensor

    def __init__(self, model: DepotModelConfig, context: DrugContext) -> None:
        super().__init__()
        d, fitted, tables = model.d_model, context.fitted, context.molecules
        assert tables is not None
        n_motifs = int(fitted["motif"].max()) if fitted["motif"].numel() else 0
        length = (fitted["motif"] > 0).sum(dim=1)
        order = torch.argsort(length, stable=True)  # trees of similar size lie together
        self.register_buffer("motif", fitted["motif"][order])
        for name in ("degree", "depth"):
            self.register_buffer(name, fitted[name][order].clamp(max=MAX_POSITION))
        self.register_buffer("members", tables.projection[:, order] > 0)
        # in the order of the molecules in the context
        contains = torch.zeros(len(order), n_motifs + 1, device=length.device)
        contains.scatter_(1, fitted["motif"], 1.0)
        self.register_buffer("contains", contains[:, 1:], persistent=False)
        ends = [int((length <= limit).sum()) for limit in LENGTHS] + [len(order)]
        longest = [*LENGTHS, self.motif.shape[1]]
        self.parts = [
            (start, end, size)
            for start, end, size in zip([0, *ends], ends, longest, strict=False)
            if end > start
        ]
        self.motifs = nn.Embedding(n_motifs + 1, d, padding_idx=0)
        self.degrees = nn.Embedding(MAX_POSITION + 1, d)
        self.depths = nn.Embedding(MAX_POSITION + 1, d)
        layer = nn.TransformerEncoderLayer(d, model.n_heads, 4 * d, model.dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, model.n_layers, enable_nested_tensor=False)
        self.molecules = nn.Embedding(max(len(order), 1), d)
        self.drugs = nn.Embedding(context.n_drugs, d)
        for table in (self.degrees, self.depths, self.molecules, self.drugs):
            nn.init.uniform_(table.weight, -0.1, 0.1)

    def forward(self) -> EncodedMotifs:
        """Encode all drugs and motifs."""
        tokens, numbers, means = [], [], []
        for start, end, size in self.parts:
            motif = self.motif[start:end, :size]
            states = self._states(start, end, size)
            inside = motif > 0
            weight = inside.to(states.dtype).unsqueeze(-1)
            means.append((states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0))
            tokens.append(states[inside])
            numbers.append(motif[inside])
        ids = self.drugs.weight
        n_motifs, d = self.motifs.num_embeddings, ids.shape[1]
        if not tokens:
            return EncodedMotifs(ids, ids.new_zeros(n_motifs - 1, d))
        number = torch.cat(numbers)
        sums = ids.new_zeros(n_motifs, d).index_add_(0, number, torch.cat(tokens))
        counts = torch.bincount(number, minlength=n_motifs).clamp(min=1).unsqueeze(1)
        molecules = torch.cat(means) + self.molecules.weight
        attention = motif_attention(ids @ molecules.T / math.sqrt(d), self.members)
        drugs = nn.functional.normalize(attention @ molecules, dim=1) + ids
        return EncodedMotifs(drugs, (sums / counts)[1:])

    def _states(self, start: int, end: int, size: int) -> torch.Tensor:
        """Transformer states of the motifs of some molecules (n, size, d)."""
        motif = self.motif[start:end, :size]
        tokens = (
            self.motifs(motif)
            + self.degrees(self.degree[start:end, :size])
            + self.depths(self.depth[start:end, :size])
        )
        return self.transformer(tokens, src_key_padding_mask=motif == 0)
