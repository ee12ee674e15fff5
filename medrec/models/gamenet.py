"""GAMENet: graph-augmented memory of drug combinations (Shang et al., AAAI 2019).

With the query ``q_t`` of visit t, the memory ``B = Z_ehr - lambda Z_ddi`` of drug vectors from two
graph networks, and the 0/1 drugs ``m_k`` of earlier visits::

    o1 = softmax(q_t B') B                    what the drugs' graphs say
    o2 = softmax_k<t (q_t q_k') (m_k B)       what visits like this one were given; o1 if t = 1
    logits = MLP([q_t, o1, o2])

The co-prescription graph comes from training patients only (the released one holds those of the
test as well). The loss anneals as in the paper (``ddi_loss: annealed``): above the wanted DDI rate
a visit gets the interaction loss alone with the probability ``exp((target - rate) / T)``, and T
shrinks with every epoch. The released code draws; here both losses are weighted with their
probabilities, which is the mean of the draws. ``ddi_loss: shared`` is the gate of the loss's
configuration; ``gate: none`` there switches interactions off in both cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medrec.config import GAMENetModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, FittingData, Prediction, Recommender
from medrec.models.layers import BagEmbedding
from medrec.models.losses import LossTerms, combined_loss


@dataclass
class Memory:
    """Drug vectors (D, d): the sum of both graphs' parts."""

    vectors: torch.Tensor


class GraphConvolutions(nn.Module):
    """Two graph convolutions over drugs without features: A Drop(ReLU(A W1 + b1)) W2 + b2.

    Parameters
    ----------
    adjacency : Tensor (D, D)
        0/1; loops are added and rows normalised.
    """

    adjacency: torch.Tensor

    def __init__(self, adjacency: torch.Tensor, d_model: int, dropout: float) -> None:
        super().__init__()
        n_drugs = len(adjacency)
        with_loops = ((adjacency + torch.eye(n_drugs, device=adjacency.device)) > 0).float()
        # part of the context, which checkpoints store
        self.register_buffer(
            "adjacency", with_loops / with_loops.sum(dim=1, keepdim=True), persistent=False
        )
        self.first = nn.Linear(n_drugs, d_model)
        self.second = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> torch.Tensor:
        """Vectors of the drugs (D, d)."""
        hidden = self.dropout(torch.relu(self.first(self.adjacency)))
        return self.adjacency @ (hidden @ self.second.weight.T) + self.second.bias


class GAMENet(Recommender):
    """See the module's text."""

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, GAMENetModelConfig)
        self.model, d = model, model.d_model
        self.diagnoses = BagEmbedding(context.n_diagnoses, d, model.dropout, model.embedding_std)
        self.procedures = BagEmbedding(context.n_procedures, d, model.dropout, model.embedding_std)
        self.gru_diagnoses = nn.GRU(d, 2 * d, batch_first=True)
        self.gru_procedures = nn.GRU(d, 2 * d, batch_first=True)
        self.query = nn.Sequential(nn.ReLU(), nn.Linear(4 * d, d))
        self.ehr_graph = GraphConvolutions(
            context.fitted["co_prescription"], d, model.graph_dropout
        )
        self.ddi_graph: GraphConvolutions | None = None
        if model.ddi_in_memory:
            self.ddi_graph = GraphConvolutions(context.ddi, d, model.graph_dropout)
            self.ddi_share = nn.Parameter(torch.empty(1).uniform_(-0.1, 0.1))
        self.output = nn.Sequential(
            nn.ReLU(), nn.Linear(3 * d, 2 * d), nn.ReLU(), nn.Linear(2 * d, context.n_drugs)
        )
        self.temperature = model.temperature

    @classmethod
    def fit_context(cls, config: TrainConfig, data: FittingData) -> dict[str, torch.Tensor]:
        """Pairs of drugs that some training visit holds: ``co_prescription`` (D, D), 0/1."""
        visits = data.dataset.visit_numbers(data.patients)
        codes, row = data.dataset.drugs.gather(visits)
        drugs = torch.zeros(len(visits), data.dataset.n_drugs)
        drugs[torch.from_numpy(row), torch.from_numpy(codes)] = 1.0
        together = ((drugs.T @ drugs) > 0).float()
        return {"co_prescription": together.fill_diagonal_(0.0)}

    def begin_epoch(self, epoch: int) -> None:
        """Cool the loss down."""
        self.temperature = self.model.temperature * self.model.cooling**epoch

    def encode_drugs(self) -> Memory:
        """Memory B of the drugs."""
        vectors = self.ehr_graph()
        if self.ddi_graph is not None:
            vectors = vectors - self.ddi_share * self.ddi_graph()
        return Memory(vectors)

    def forward(self, batch: VisitBatch, drugs: Memory) -> Prediction:
        """Predict all visits in one causal pass."""
        query = self._queries(batch)
        graph = torch.softmax(query @ drugs.vectors.T, dim=-1) @ drugs.vectors
        n_visits = batch.shape[1]
        past = torch.ones(n_visits, n_visits, dtype=torch.bool, device=query.device).tril(-1)
        scores = query @ query.transpose(1, 2)
        scores = scores.masked_fill(~past, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1) * past
        # drugs of visit k stand in drugs_before[:, k + 1]; those of the last one are in no past
        weighted = weights[:, :, :-1] @ batch.drugs_before[:, 1:]
        similar = torch.cat([graph[:, :1], weighted[:, 1:] @ drugs.vectors], dim=1)
        return self.decide(self.output(torch.cat([query, graph, similar], dim=-1)))

    def _queries(self, batch: VisitBatch) -> torch.Tensor:
        """Queries (B, V, d) from recurrent networks over the visits' mean embeddings."""
        n_patients, n_visits = batch.shape
        flat = n_patients * n_visits
        states = []
        for bag, embedding, gru in (
            (batch.diagnoses, self.diagnoses, self.gru_diagnoses),
            (batch.procedures, self.procedures, self.gru_procedures),
        ):
            n_codes = torch.bincount(bag.visit, minlength=flat).clamp(min=1).unsqueeze(1)
            mean = embedding(bag, flat) / n_codes
            states.append(gru(mean.reshape(n_patients, n_visits, -1))[0])
        queries: torch.Tensor = self.query(torch.cat(states, dim=-1))
        return queries

    def annealed(self, rate: torch.Tensor) -> torch.Tensor:
        """Probability of the prediction loss at a DDI rate: 1 - exp((target - rate) / T)."""
        above = (rate - self.config.loss.ddi_target).clamp(min=0.0)
        return torch.where(above > 0, -torch.expm1(-above / self.temperature), 1.0)

    def loss(self, batch: VisitBatch, prediction: Prediction) -> LossTerms:
        """Annealed or gated loss; the mean over visits."""
        settings = self.config.loss
        if self.model.ddi_loss == "shared" or settings.gate == "none":
            return super().loss(batch, prediction)
        return combined_loss(
            prediction.logits[batch.mask],
            batch.target[batch.mask],
            self.gating,
            settings.model_copy(update={"ddi_normalised": True}),
            self.config.optim.threshold,
            self.annealed,
            self.penalty,
        )
