"""MoleRec: substructure-aware recommendation (Yang et al., WWW 2023), batched.

Differences from the released code, all in the direction of speed or correctness: molecules and
fragments are encoded once per optimiser step and not once per visit; all visits of a patient go
through one causal pass; a patient vector holds each GRU state once (the released one holds it
twice); attention exists only between a drug and its own fragments, and the first, linear layer of
the score is applied to fragments before they are aggregated, which gives the same numbers.
Molecules and fragments come from any representation (`medrec.models.representations`); the paper's
is ``gin``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from medrec.config import MoleRecModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, Prediction, Recommender
from medrec.models.layers import CodeHistory, MaskedAggregation, SetAttention
from medrec.models.representations import Representation, owners
from quantum.base import InputError


@dataclass
class EncodedDrugs:
    """Attention of drugs to their fragments (D, K), and the fragments' vectors (S, d)."""

    attention: torch.Tensor
    fragments: torch.Tensor


class MoleRec(Recommender):
    """See the module's text."""

    needs_molecules = True

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model, molecules = config.model, context.molecules
        assert isinstance(model, MoleRecModelConfig)
        if molecules is None:
            raise InputError("molerec needs the molecules of the drugs; expected a feature table")
        d = model.d_model
        self.history = CodeHistory(context.n_diagnoses, context.n_procedures, d, model.dropout)
        n_fragments = owners(model.representation, molecules)[1].shape[1]
        self.query = nn.Sequential(nn.ReLU(), nn.Linear(2 * d, d))
        self.relation = nn.Linear(d, n_fragments)
        self.representation = Representation(model.representation, molecules, d)
        self.set_attention = SetAttention(d, model.n_heads, model.sab)
        self.aggregate = MaskedAggregation(d, self.representation.fragment_mask)
        self.score = nn.Sequential(nn.Linear(d, d // 2), nn.ReLU(), nn.Linear(d // 2, 1))

    def encode_drugs(self) -> EncodedDrugs:
        """Encode molecules and fragments, and their attention."""
        drugs = self.representation.drugs()
        fragments = self.set_attention(self.representation.fragments())
        attention = self.aggregate.attention(drugs, fragments)
        return EncodedDrugs(attention, fragments)

    def forward(self, batch: VisitBatch, drugs: EncodedDrugs) -> Prediction:
        """Predict all visits in one causal pass; drugs of visits are not an input."""
        n_patients, n_visits = batch.shape
        states = self.history(batch)
        query = self.query(states[batch.mask])
        weights = torch.sigmoid(self.relation.weight @ query.T + self.relation.bias.unsqueeze(1))
        # the first layer of the score is linear: it is applied to S fragments, not to n D drugs
        enter, relu, leave = self.score
        assert isinstance(enter, nn.Linear)
        values = F.linear(drugs.fragments, enter.weight)
        hidden = relu(self.aggregate(drugs.attention, values, weights) + enter.bias)
        scores = leave(hidden).squeeze(-1).T
        logits = scores.new_zeros(n_patients, n_visits, self.context.n_drugs)
        logits[batch.mask] = scores
        return self.decide(logits)

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Start the representation's molecule encoder from a pre-training run."""
        self.representation.load_pretrained(state)
