"""Yardsticks: most frequent drugs, the previous visit's drugs, logistic regression.

None of them knows molecules; a model that does not beat them has shown nothing. They are fitted on
the CPU; what they learned follows the batch to its device.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from medrec.config import (
    CopyFrequencyModelConfig,
    LogisticRegressionModelConfig,
    TrainConfig,
)
from medrec.data.dataset import CodeBag, VisitBatch, VisitDataset
from medrec.models.base import DrugContext, Prediction
from medrec.models.regression import ALWAYS, fit_drug, visit_matrix

_BATCH = 256


class TopK:
    """The k most frequent drugs of the training visits, k = their mean number per visit."""

    thresholded: ClassVar[bool] = False

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        self.config = config
        self.frequency = torch.zeros(context.n_drugs)
        self.chosen = torch.zeros(context.n_drugs, dtype=torch.bool)

    def fit(self, dataset: VisitDataset, patients: npt.NDArray[np.int64]) -> None:
        """Count drugs over the training visits."""
        total, n_visits = torch.zeros(dataset.n_drugs), 0
        for batch in dataset.batches(patients, _BATCH):
            total += batch.target[batch.mask].sum(dim=0).cpu()
            n_visits += int(batch.mask.sum())
        self.frequency = total / max(n_visits, 1)
        k = round(float(self.frequency.sum()))
        # ties go to the earlier code, whatever the sorting algorithm
        order = torch.sort(self.frequency, descending=True, stable=True).indices
        self.chosen = torch.zeros(dataset.n_drugs, dtype=torch.bool)
        self.chosen[order[:k]] = True

    def predict(self, batch: VisitBatch) -> Prediction:
        """Predict the same set for every visit."""
        shape, device = batch.target.shape, batch.target.device
        frequency, chosen = self.frequency.to(device), self.chosen.to(device)
        return _prediction(frequency.expand(shape), chosen.expand(shape))

    def state_dict(self) -> dict[str, Any]:
        """Frequencies and the chosen set."""
        return {"frequency": self.frequency, "chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.frequency, self.chosen = state["frequency"], state["chosen"]


class CopyLast(TopK):
    """The previous visit's drugs; top-k at a first visit."""

    def predict(self, batch: VisitBatch) -> Prediction:
        """Copy; among copied and among other drugs the frequency decides the rank."""
        first = ~batch.drugs_before.bool().any(dim=-1, keepdim=True)
        base = super().predict(batch)
        before = batch.drugs_before.bool()
        probs = torch.where(first, base.probs, 0.5 * base.probs + 0.5 * batch.drugs_before)
        return _prediction(probs, torch.where(first, base.selected, before))


class CopyFrequency(TopK):
    """Previous visit's drugs united with those more frequent than a threshold."""

    def predict(self, batch: VisitBatch) -> Prediction:
        """Unite."""
        model = self.config.model
        assert isinstance(model, CopyFrequencyModelConfig)
        frequency = self.frequency.to(batch.target.device).expand(batch.target.shape)
        frequent = frequency >= model.min_frequency
        probs = 0.5 * frequency + 0.5 * batch.drugs_before
        return _prediction(probs, frequent | batch.drugs_before.bool())


class LogisticRegression:
    """One-vs-rest logistic regression on the current visit's diagnoses and procedures.

    Drugs that every or no training visit has get a constant probability.
    """

    thresholded: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        assert isinstance(config.model, LogisticRegressionModelConfig)
        self.config, self.settings = config, config.model
        self.n_diagnoses = context.n_diagnoses
        n_inputs = context.n_diagnoses + context.n_procedures
        self.weight = torch.zeros(n_inputs, context.n_drugs)
        self.bias = torch.zeros(context.n_drugs)
        self.threshold = torch.tensor(config.optim.threshold)
        self.n_not_converged = 0

    def fit(self, dataset: VisitDataset, patients: npt.NDArray[np.int64]) -> None:
        """Fit one regression per drug with scikit-learn."""
        inputs, targets = visit_matrix(dataset, patients)
        for drug in range(dataset.n_drugs):
            y = targets[:, drug]
            if y.min() == y.max():
                self.bias[drug] = ALWAYS if y[0] else -ALWAYS
                continue
            fitted = fit_drug(inputs, y, self.settings)
            self.n_not_converged += int(not fitted.converged)
            self.weight[:, drug] = torch.from_numpy(fitted.weight).float()
            self.bias[drug] = fitted.bias

    def predict(self, batch: VisitBatch) -> Prediction:
        """Score every visit on its own."""
        n_patients, n_visits = batch.shape
        logits = self.bias.to(batch.target.device).repeat(n_patients * n_visits, 1)
        for bag, shift in ((batch.diagnoses, 0), (batch.procedures, self.n_diagnoses)):
            self._add(logits, bag, shift)
        shaped = logits.reshape(n_patients, n_visits, -1)
        return Prediction.from_logits(shaped, float(self.threshold))

    def _add(self, logits: torch.Tensor, bag: CodeBag, shift: int) -> None:
        weight = self.weight.to(logits.device)
        logits.index_add_(0, bag.visit, weight[bag.index + shift])

    def state_dict(self) -> dict[str, Any]:
        """Weights, biases and threshold."""
        return {"weight": self.weight, "bias": self.bias, "threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.weight, self.bias = state["weight"], state["bias"]
        self.threshold = state["threshold"]


def _prediction(probs: torch.Tensor, selected: torch.Tensor) -> Prediction:
    return Prediction(torch.logit(probs, eps=1e-6), probs, selected)
