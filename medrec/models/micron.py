"""MICRON: changes of medication between two visits (Yang et al., IJCAI 2021).

With the health vector ``h_t`` of visit t's diagnoses and procedures and one prescription network
``net``::

    z_t = net(h_t)          rho_t = net(h_t - h_(t-1))        logits_t = z_1 + rho_2 + ... + rho_t
    set_t = (set_(t-1) united with p_t >= add) without p_t < remove,       p = sigmoid(logits)

``set_(t-1)`` are the drugs of the previous visit (``history: previous``: the change that the paper
sets out to predict), or the set that was predicted for it, from the first visit's drugs on
(``history: first``, the released code). A first visit has no set before it: its own is
``p_1 >= first``; the released evaluation leaves it out. Ranking uses p. All three thresholds are
chosen on validation visits for their Jaccard (``tune_thresholds``); without that they are
``optim.threshold``, ``add_threshold`` and ``remove_threshold``. The released code takes quantiles
of the drugs' ROC thresholds, and scores every visit of a patient with the last visit's set.

The loss of a visit and the one before it is::

    L_rec  = mean over drugs of (sigmoid(z_t) - sigmoid(z_(t-1) + rho_t))^2
    L_pred = 0.75 L(z_t, y_t) + 0.25 L(z_(t-1), y_(t-1)),     L = cross-entropy and margin
    L_ddi  = (1/D) sum_ij A_ij p_i p_j,  only if the DDI rate of the thresholded z_t is above target

added with fixed weights, as in the released code (the adaptive ones of the paper never come to
life there: their counter stands still). ``gate: none`` in the loss's configuration switches L_ddi
off; the gate's other values make no difference here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from medrec.config import MicronModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch, VisitDataset
from medrec.evaluation.threshold import macro_jaccard
from medrec.models.base import DrugContext, Prediction, Recommender
from medrec.models.layers import BagEmbedding
from medrec.models.losses import LossTerms, ddi_rate, margin_loss

_GRID = np.round(np.arange(0.05, 0.951, 0.05), 2)
_BATCH = 256

Thresholds = tuple[float, float, float]


class Micron(Recommender):
    """See the module's text; ``thresholds`` are those of first visits, adding and removing."""

    thresholded = False

    thresholds: torch.Tensor

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, MicronModelConfig)
        self.model, d = model, model.d_model
        self.diagnoses = BagEmbedding(context.n_diagnoses, d, model.dropout)
        self.procedures = BagEmbedding(context.n_procedures, d, model.dropout)
        self.health = nn.Linear(2 * d, d)
        self.prescription = nn.Sequential(
            nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, context.n_drugs)
        )
        start = [config.optim.threshold, model.add_threshold, model.remove_threshold]
        self.register_buffer("thresholds", torch.tensor(start))

    def forward(self, batch: VisitBatch, drugs: None = None) -> Prediction:
        """Predict all visits; extras: ``scores`` z (B, V, D) and ``changes`` rho (B, V - 1, D)."""
        n_patients, n_visits = batch.shape
        flat = n_patients * n_visits
        codes = [
            self.diagnoses(batch.diagnoses, flat),
            self.procedures(batch.procedures, flat),
        ]
        health = self.health(torch.cat(codes, dim=1)).reshape(n_patients, n_visits, -1)
        scores = self.prescription(health)
        changes = self.prescription(health[:, 1:] - health[:, :-1])
        logits = torch.cat([scores[:, :1], changes], dim=1).cumsum(dim=1)
        probs = torch.sigmoid(logits)
        with torch.no_grad():
            selected = self._decode(probs, batch.drugs_before, self.thresholds)
        return Prediction(logits, probs, selected, {"scores": scores, "changes": changes})

    def _decode(
        self, probs: torch.Tensor, before: torch.Tensor, thresholds: torch.Tensor
    ) -> torch.Tensor:
        """Recommended sets (B, V, D)."""
        first, add, remove = thresholds
        added, kept = probs >= add, probs >= remove
        sets = [probs[:, 0] >= first]
        for t in range(1, probs.shape[1]):
            # the sets at t = 1 are what the patient was given, never a prediction
            known = t == 1 or self.model.history == "previous"
            last = before[:, t] > 0.5 if known else sets[-1]
            sets.append((last | added[:, t]) & kept[:, t])
        return torch.stack(sets, dim=1)

    def loss(self, batch: VisitBatch, prediction: Prediction) -> LossTerms:
        """Loss of all pairs of successive visits; single visits count with their own scores."""
        settings, mask, target = self.config.loss, batch.mask, batch.target
        scores, changes = prediction.extras["scores"], prediction.extras["changes"]
        bce = F.binary_cross_entropy_with_logits(scores, target, reduction="none").mean(dim=-1)
        margin = margin_loss(torch.sigmoid(scores[mask]), target[mask])
        pairs = mask[:, 1:]
        # a visit counts 0.75 as the later and 0.25 as the earlier one of a pair
        weight = torch.zeros_like(bce)
        weight[:, 1:] += 0.75 * pairs
        weight[:, :-1] += 0.25 * pairs
        weight[:, 0] += (mask.sum(dim=1) == 1).to(weight.dtype)
        n_pairs = weight[mask].sum().clamp(min=1e-9)
        predicted = settings.bce_weight * bce[mask] + settings.margin_weight * margin
        predicted = (predicted * weight[mask]).sum() / n_pairs
        residual = torch.sigmoid(scores[:, 1:]) - torch.sigmoid(scores[:, :-1] + changes)
        reconstruction = (residual[pairs] ** 2).mean(dim=1).sum() / n_pairs
        total = predicted + self.model.reconstruction_weight * reconstruction
        parts = {"bce": bce[mask].mean(), "margin": margin.mean(), "rec": reconstruction}
        if settings.gate != "none":
            parts["ddi"] = self._interaction(scores[:, 1:][pairs]) / n_pairs
            total = total + self.model.ddi_weight * parts["ddi"]
        return LossTerms(total, {name: value.detach() for name, value in parts.items()})

    def _interaction(self, scores: torch.Tensor) -> torch.Tensor:
        """Sum of L_ddi over the visits (n, D) whose thresholded sets are above the target."""
        probs = torch.sigmoid(scores)
        rate = ddi_rate(probs.detach() >= self.config.optim.threshold, self.gating)
        above = (rate > self.config.loss.ddi_target).to(probs.dtype)
        pairs = ((probs @ self.penalty) * probs).sum(dim=1) / scores.shape[1]
        return (above * pairs).sum()

    @torch.no_grad()
    def tune(self, dataset: VisitDataset, patients: npt.NDArray[np.int64]) -> None:
        """Choose the thresholds with the best Jaccard on validation visits.

        A visit is either a first one or not, so the first visits' threshold and the other two are
        chosen one after the other. Of equals the ones nearest to the configured stand.
        """
        if not self.model.tune_thresholds:
            return
        batches = [b.to(self.thresholds.device) for b in dataset.batches(patients, _BATCH)]
        probs = [self.predict(batch).probs for batch in batches]
        targets = [batch.target[batch.mask].cpu().numpy() > 0.5 for batch in batches]
        unseen = np.concatenate([batch.n_unseen[batch.mask].cpu().numpy() for batch in batches])
        owners = [b.patient.unsqueeze(1).expand(b.mask.shape)[b.mask] for b in batches]
        truth, patient = np.concatenate(targets), torch.cat(owners).cpu().numpy()

        def jaccard(candidate: Thresholds) -> float:
            cuts = torch.tensor(candidate, device=self.thresholds.device)
            selected = [
                self._decode(p, b.drugs_before, cuts)[b.mask].cpu().numpy()
                for p, b in zip(probs, batches, strict=True)
            ]
            return macro_jaccard(np.concatenate(selected), truth, unseen, patient)

        start = (self.config.optim.threshold, self.model.add_threshold, self.model.remove_threshold)
        best = _best([start, *((first, *start[1:]) for first in _GRID)], start, jaccard)
        pairs = [pair for pair in itertools.product(_GRID, _GRID) if pair[1] <= pair[0]]
        best = _best([best, *((best[0], *pair) for pair in pairs)], start, jaccard)
        self.thresholds.copy_(torch.tensor(best))


def _best(
    candidates: Sequence[Thresholds], start: Thresholds, score: Callable[[Thresholds], float]
) -> Thresholds:
    """Candidate with the highest score, of equals the one nearest to ``start``."""
    return max(candidates, key=lambda c: (score(c), -float(np.abs(np.subtract(c, start)).sum())))
