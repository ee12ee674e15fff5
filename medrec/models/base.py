"""What every recommender is: a predictor, and for the learned ones a module with a loss.

A recommender has two steps because molecules do not depend on the patient: ``encode_drugs`` once
per optimiser step, ``forward`` for the visits of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medrec.concepts.table import ConceptTensors
from medrec.config import TrainConfig
from medrec.data.dataset import VisitBatch, VisitDataset
from medrec.models.losses import LossTerms, combined_loss, gating_matrix, penalty_matrix
from medrec.molecules.drugs import DrugMolecules
from medrec.molecules.structure import MoleculeTables
from quantum.base import InputError


@dataclass(frozen=True)
class DrugContext:
    """Everything a model is built from; all tensors, no files.

    Attributes
    ----------
    n_diagnoses, n_procedures, n_drugs : int
        Vocabulary sizes.
    ddi : FloatTensor (D, D)
        0/1, symmetric, zero diagonal.
    molecules : MoleculeTables or None
        Graphs, fragments and features of the drug classes.
    fitted : dict of str to Tensor
        What `Recommender.fit_context` made of the training patients; stored in checkpoints, so
        that a loaded model needs no patient.
    severity : FloatTensor (D, D) or None
        Grade of each interaction, 0 (none) to 4 (contraindicated); None where none are known.
    concepts : dict of str to ConceptTensors
        Discrete codes of diagnoses, procedures and drugs; empty without a concept table.
    """

    n_diagnoses: int
    n_procedures: int
    n_drugs: int
    ddi: torch.Tensor
    molecules: MoleculeTables | None = None
    fitted: dict[str, torch.Tensor] = field(default_factory=dict)
    severity: torch.Tensor | None = None
    concepts: dict[str, ConceptTensors] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> DrugContext:
        """Copy to a device."""
        molecules = self.molecules.to(device) if self.molecules is not None else None
        fitted = {name: tensor.to(device) for name, tensor in self.fitted.items()}
        return DrugContext(
            self.n_diagnoses,
            self.n_procedures,
            self.n_drugs,
            self.ddi.to(device),
            molecules,
            fitted,
            self.severity.to(device) if self.severity is not None else None,
            {kind: item.to(device) for kind, item in self.concepts.items()},
        )


@dataclass(frozen=True)
class FittingData:
    """What `Recommender.fit_context` may read.

    Attributes
    ----------
    dataset : VisitDataset
        All patients; only those in ``patients`` may be looked at.
    patients : ndarray of int64
        The training patients.
    context : DrugContext
        With an empty ``fitted``.
    drugs : DrugMolecules or None
        Molecules of the drug classes, for models that need them.
    """

    dataset: VisitDataset
    patients: npt.NDArray[np.int64]
    context: DrugContext
    drugs: DrugMolecules | None = None


@dataclass
class Prediction:
    """What a model says about every visit of a batch.

    Attributes
    ----------
    logits, probs : FloatTensor (B, V, D)
        Scores before and after the logistic function.
    selected : BoolTensor (B, V, D)
        Recommended set; metrics never threshold on their own.
    extras : dict of str to Tensor
        Whatever a model wants to hand to its loss or to a reader.
    """

    logits: torch.Tensor
    probs: torch.Tensor
    selected: torch.Tensor
    extras: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def from_logits(cls, logits: torch.Tensor, threshold: float | torch.Tensor) -> Prediction:
        """Threshold the probabilities."""
        probs = torch.sigmoid(logits)
        return cls(logits, probs, probs >= threshold)


class Predictor(Protocol):
    """All that evaluation needs."""

    thresholded: ClassVar[bool]

    def predict(self, batch: VisitBatch) -> Prediction:
        """Predict every visit of a batch."""

    def state_dict(self) -> dict[str, Any]:
        """Weights as plain tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore weights."""


class CountingModel(Protocol):
    """A predictor that is fitted in one go, without gradients."""

    thresholded: ClassVar[bool]

    def fit(self, dataset: VisitDataset, patients: npt.NDArray[np.int64]) -> None:
        """Learn from the visits of the training patients."""

    def predict(self, batch: VisitBatch) -> Prediction:
        """Predict every visit of a batch."""

    def state_dict(self) -> dict[str, Any]:
        """Weights as plain tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore weights."""


class Recommender(nn.Module):
    """Base of the models that learn by gradient.

    Parameters
    ----------
    config : TrainConfig
        Model sizes, loss and threshold.
    context : DrugContext
        Vocabulary sizes, interactions, molecules.
    """

    needs_molecules: ClassVar[bool] = False
    """Whether the context has to hold molecules."""
    needs_concepts: ClassVar[bool] = False
    """Whether the context has to hold the codes of medical concepts."""
    thresholded: ClassVar[bool] = True
    """Whether the recommended set is ``probs >= threshold``; False for models that decode it."""

    threshold: torch.Tensor

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__()
        self.config, self.context = config, context
        # of the loss alone: no buffers, so that weights do not change with them
        self.penalty = penalty_matrix(context, config.loss)
        self.gating = gating_matrix(context, config.loss)
        self.register_buffer("threshold", torch.tensor(config.optim.threshold))
        self._encoded: Any = None

    @classmethod
    def fit_context(cls, config: TrainConfig, data: FittingData) -> dict[str, torch.Tensor]:
        """Fit what has to exist before the model is built, from training patients only.

        For example a co-prescription graph, or the fingerprints of the molecules' atoms. The
        result reaches the constructor as ``context.fitted``.
        """
        return {}

    def encode_drugs(self) -> Any:
        """Encode molecules; a tensor, a dataclass of tensors, or None.

        Called once per ``optim.encode_every`` optimiser steps and shared by all their visits.
        """
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Take note of the epoch, for schedules inside a model; called before its first batch."""

    def decide(self, logits: torch.Tensor, **extras: torch.Tensor) -> Prediction:
        """Threshold the probabilities of logits (B, V, D)."""
        prediction = Prediction.from_logits(logits, self.threshold)
        prediction.extras.update(extras)
        return prediction

    def tune(self, dataset: VisitDataset, patients: npt.NDArray[np.int64]) -> None:
        """Fit what is chosen on validation patients after training, beside the threshold."""

    def forward(self, batch: VisitBatch, drugs: Any) -> Prediction:
        """Predict every visit of a batch from its inputs and the encoded drugs.

        A model that decodes a sequence may, in training mode, leave the decoding to `loss` and
        return empty logits with its hidden states as extras.
        """
        raise TypeError(f"{type(self).__name__} has no forward step")

    def loss(self, batch: VisitBatch, prediction: Prediction) -> LossTerms:
        """Loss of a batch; the mean over its visits."""
        return combined_loss(
            prediction.logits[batch.mask],
            batch.target[batch.mask],
            self.gating,
            self.config.loss,
            self.config.optim.threshold,
            penalty=self.penalty,
        )

    def train(self, mode: bool = True) -> Recommender:
        """Switch mode; the cached encoding of the drugs is dropped."""
        self._encoded = None
        super().train(mode)
        return self

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Load weights; the cached encoding of the drugs belongs to the old ones and is dropped."""
        self._encoded = None
        return super().load_state_dict(*arguments, **options)

    @torch.no_grad()
    def predict(self, batch: VisitBatch) -> Prediction:
        """Predict in evaluation mode; drugs are encoded once and kept until `train` is called."""
        if self.training:
            self.eval()
        if self._encoded is None:
            self._encoded = self.encode_drugs()
        return self(batch, self._encoded)

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Start from a pre-trained encoder; models without one refuse.

        Raises
        ------
        InputError
            If the model has no molecule encoder, or one of another size.
        """
        raise InputError(f"{type(self).__name__} has no molecule encoder to start from")
