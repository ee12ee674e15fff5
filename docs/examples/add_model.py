"""A complete recommender: logistic regression on summed code embeddings."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from medrec.config import TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, Prediction, Recommender
from medrec.models.layers import BagEmbedding
from quantum.base import Frozen


# --8<-- [start:config]
class SumModelConfig(Frozen):
    """Sum of code embeddings, then one logistic regression per drug."""

    name: Literal["sum"] = "sum"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.2, ge=0.0, lt=1.0)


# --8<-- [end:config]
# --8<-- [start:model]
class SumModel(Recommender):
    """Sum of code embeddings x, then logistic regressions.

    With e the embeddings of codes and d those of drugs::

        x_t = sum of e over diagnoses and procedures of t + sum of d over drugs of t-1
        logits = W tanh(x_t) + b
    """

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, SumModelConfig)
        self.diagnoses = BagEmbedding(context.n_diagnoses, model.d_model, model.dropout)
        self.procedures = BagEmbedding(context.n_procedures, model.d_model, model.dropout)
        self.before = nn.Linear(context.n_drugs, model.d_model, bias=False)
        self.output = nn.Linear(model.d_model, context.n_drugs)

    def forward(self, batch: VisitBatch, drugs: Any = None) -> Prediction:
        """Predict all visits (B, V, D); the drugs of a visit itself are never read."""
        n_patients, n_visits = batch.shape
        flat = n_patients * n_visits
        codes = self.diagnoses(batch.diagnoses, flat) + self.procedures(batch.procedures, flat)
        vectors = codes.reshape(n_patients, n_visits, -1) + self.before(batch.drugs_before)
        return self.decide(self.output(torch.tanh(vectors)))


# --8<-- [end:model]
# --8<-- [start:outside]
class SumTrainConfig(TrainConfig):
    """A training of this model, as long as it is not in the table of models."""

    model: SumModelConfig = SumModelConfig()


# --8<-- [end:outside]
