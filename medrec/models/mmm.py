"""MMM: quantum-chemical maps beside a bipartite fragment encoder (arXiv:2510.07910), batched.

With q_t the query of visit t, F the molecules' features, P the mean over the molecules of a class,
and H the mask of classes and fragments::

    h_D, h_P = GRU(sum of diagnosis codes), GRU(sum of procedure codes)
    q        = Linear(ReLU([h_D | h_P]))
    G        = P Linear(ReLU(Linear(F)))               class vectors (D, d)
    a        = sigmoid(q G^T)                          match with whole molecules
    m_g      = LayerNorm(a + Linear(a))                global branch
    m_l      = sigmoid(Linear(q)) (W * H^T)            local branch, bipartite
    z        = m_g * m_l                               logits (D,)

The loss is the line's gated one with ``loss.gate: mmm``. `Representation` gives the molecules'
vectors, so that other features, a graph network or one free vector per class can stand in for F.

Differences from the released code

* All visits of a patient go through one causal pass; the class vectors are made once per step.
* A row of F belongs to a species. The released code drops drugs without maps from the table, so
  that every later drug gets its neighbour's. Here molecules without a map share one learned vector.
* A drug is a class of the cohort (ATC at its level) and G the mean over its molecules; the released
  one has one compound per drug. The mean is taken of the mapped vectors, not of the features.
* F is frozen: ``features: trained`` makes it a free parameter, as released, which starts at the
  features and may leave them.
* Only entries of W inside the mask exist; those outside never had a gradient.
* A class without a fragment would have m_l = 0, hence the probability 0.5 for everybody; it is its
  own fragment.

Not in the paper: both sides of the match, queries and class vectors, pass a layer norm, and their
products are divided by sqrt(d). Class vectors from a new two-layer network differ by hundredths
only, so that every match is 0.5 for every class and the global branch says nothing for many epochs.
``match: plain`` leaves this out.

``use_global: false`` is the paper's ablation without ELF (z = m_l, no feature is read),
``use_local: false`` the one without the bipartite encoder (z = m_g).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medrec.config import MMMModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, Prediction, Recommender
from medrec.models.layers import CodeHistory
from medrec.models.representations import FeatureInput, Representation, owners
from medrec.molecules.structure import MoleculeTables
from quantum.base import InputError


class MMM(Recommender):
    """See the module's text."""

    needs_molecules = True

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model, molecules = config.model, context.molecules
        assert isinstance(model, MMMModelConfig)
        if molecules is None:
            raise InputError("mmm needs the molecules of the drugs; the cohort has none")
        d, n_drugs = model.d_model, context.n_drugs
        self.history = CodeHistory(context.n_diagnoses, context.n_procedures, d, model.dropout)
        normalised = model.match == "normalised"
        self.query = nn.Sequential(nn.ReLU(), nn.Linear(2 * d, d))
        self.query_norm = nn.LayerNorm(d) if normalised else nn.Identity()
        self.bipartite: Bipartite | None = None
        if model.use_local:
            self.bipartite = Bipartite(d, owners(model.representation, molecules)[1])
        self.representation: Representation | None = None
        if model.use_global:
            self.representation = _representation(model, molecules)
            self.molecule_head = nn.Sequential(nn.ReLU(), nn.Linear(d, d))
            self.class_norm = nn.LayerNorm(d) if normalised else nn.Identity()
            self.match_scale = d**-0.5 if normalised else 1.0
            self.mix = nn.Linear(n_drugs, n_drugs)
            self.norm = nn.LayerNorm(n_drugs)

    def encode_drugs(self) -> torch.Tensor | None:
        """Vectors of the drug classes (D, d); None without the global branch."""
        if self.representation is None:
            return None
        vectors = self.molecule_head(self.representation.molecules())
        classes: torch.Tensor = self.class_norm(self.representation.projection @ vectors)
        return classes

    def forward(self, batch: VisitBatch, drugs: torch.Tensor | None) -> Prediction:
        """Predict all visits in one causal pass; drugs of visits are not an input."""
        n_patients, n_visits = batch.shape
        states = self.history(batch)
        query = self.query_norm(self.query(states[batch.mask]))
        branches = []
        if drugs is not None:
            match = torch.sigmoid(self.match_scale * query @ drugs.T)
            branches.append(self.norm(match + self.mix(match)))
        if self.bipartite is not None:
            branches.append(self.bipartite(query))
        scores = branches[0] if len(branches) == 1 else branches[0] * branches[1]
        logits = scores.new_zeros(n_patients, n_visits, self.context.n_drugs)
        logits[batch.mask] = scores
        return self.decide(logits)

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Start the representation's molecule encoder from a pre-training run."""
        if self.representation is None:
            raise InputError("mmm without its global branch has no molecule encoder to start")
        self.representation.load_pretrained(state)


def _representation(model: MMMModelConfig, tables: MoleculeTables) -> Representation:
    """Molecules of the global branch, without the vectors of fragments, which it does not read."""
    config = model.representation.model_copy(update={"fragments": "table"})
    representation = Representation(config, tables, model.d_model)
    representation.fragment_encoder = nn.Identity()
    if model.features == "trained":
        for part in representation.modules():
            if isinstance(part, FeatureInput):
                part.release(tables)
    return representation


class Bipartite(nn.Module):
    """Local branch: weights of fragments, then a linear layer with the mask's entries alone.

    Parameters
    ----------
    d_model : int
        Size of a query.
    mask : BoolTensor (D, S)
        Which class has which fragment. A class without one gets a fragment of its own.
    """

    drug: torch.Tensor
    fragment: torch.Tensor

    def __init__(self, d_model: int, mask: torch.Tensor) -> None:
        super().__init__()
        n_drugs = len(mask)
        own = torch.eye(n_drugs, dtype=torch.bool, device=mask.device)[:, ~mask.any(dim=1)]
        drug, fragment = torch.nonzero(torch.cat([mask, own], dim=1), as_tuple=True)
        self.register_buffer("drug", drug, persistent=False)
        self.register_buffer("fragment", fragment, persistent=False)
        self.importance = nn.Linear(d_model, mask.shape[1] + own.shape[1])
        bound = n_drugs**-0.5
        self.weight = nn.Parameter(torch.empty(len(drug)).uniform_(-bound, bound))
        self.n_drugs = n_drugs

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        """Scores (n, D) of queries (n, d)."""
        importance = torch.sigmoid(self.importance(query))
        shape = (importance.shape[1], self.n_drugs)
        dense = self.weight.new_zeros(shape).index_put((self.fragment, self.drug), self.weight)
        return importance @ dense
