"""The prediction loss and the DDI-gated loss of the SafeDrug line, per visit and vectorised.

With probabilities p, truth y, D drugs and interaction matrix A::

    L_bce   = mean over D of binary cross-entropy
    L_multi = (1/D) sum_{i in y} sum_{j not in y} max(0, 1 - (p_i - p_j))
    L_pred  = 0.95 L_bce + 0.05 L_multi
    L_ddi   = scale * sum_ij W_ij p_i p_j, W = A or the weight of the pair's severity
    r       = DDI rate of the thresholded set of this visit
    L       = L_pred                              if r <= target
            = a L_pred + (1 - a) L_ddi            otherwise, a = gate(r), no gradient through a

The gate is computed per visit, as the published per-visit updates imply, not per batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from medrec.config import LossConfig
from quantum.base import InputError


@dataclass
class LossTerms:
    """Total loss and its named parts, all scalars; only ``total`` carries gradients."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class Interactions(Protocol):
    """What the matrices of the loss are made of; a `DrugContext` has it."""

    @property
    def ddi(self) -> torch.Tensor:
        """Interactions (D, D), 0/1."""

    @property
    def severity(self) -> torch.Tensor | None:
        """Grades (D, D), 0 to 4, if there are any."""


def penalty_matrix(context: Interactions, config: LossConfig) -> torch.Tensor:
    """Matrix W (D, D) of L_ddi: A itself, or the weight of each pair's grade.

    Pairs without a known interaction weigh 0. With weights, the grades alone count and the
    cohort's ``min_severity`` does not: (1, 1, 1, 1) is the matrix of all graded pairs.

    Raises
    ------
    InputError
        If weights are given and no interaction of the cohort has a grade.
    """
    if config.severity_weights is None:
        return context.ddi
    grades = context.severity
    if grades is None or not bool(grades.any()):
        raise InputError(
            "loss.severity_weights are set and no interaction of the cohort has a grade (TWOSIDES "
            "has none); expected a cohort with ddi.source: ansm, or severity_weights: null"
        )
    weights = torch.tensor(
        (0.0, *config.severity_weights), dtype=context.ddi.dtype, device=grades.device
    )
    return weights[grades.long()]


def gating_matrix(context: Interactions, config: LossConfig) -> torch.Tensor:
    """Matrix (D, D) of the rate r: A, or W over its largest weight, so that r stays in [0, 1]."""
    if config.gate_rate == "published" or config.severity_weights is None:
        return context.ddi
    return penalty_matrix(context, config) / max(config.severity_weights)


def gate(rate: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Weight of the prediction loss at a DDI rate, by the variant's formula.

    ``molerec``: min(1, exp(tau (1 - r/target))). ``safedrug`` (paper) and ``mmm``:
    max(0, 1 - (r - target)/kp). ``scqmed_code``: tanh(kp / (r/target - 1)). ``scqmed_paper``:
    min(1, tanh(target / (r - target))). At or below the target every variant gives 1.
    """
    target = config.ddi_target
    above = rate > target
    safe = torch.where(above, rate, torch.full_like(rate, 2.0 * target))
    if config.gate == "none":
        return torch.ones_like(rate)
    if config.gate == "molerec":
        value = torch.exp(config.gate_temperature * (1.0 - safe / target))
    elif config.gate in ("safedrug", "mmm"):
        value = 1.0 - (safe - target) / config.gate_kp
    elif config.gate == "scqmed_code":
        value = torch.tanh(config.gate_kp / (safe / target - 1.0))
    else:
        value = torch.tanh(target / (safe - target))
    return torch.where(above, value.clamp(0.0, 1.0), torch.ones_like(rate))


def ddi_rate(selected: torch.Tensor, ddi: torch.Tensor) -> torch.Tensor:
    """Share of interacting pairs in each row's set (n, D); 0 for fewer than two drugs."""
    chosen = selected.to(ddi.dtype)
    interacting = ((chosen @ ddi) * chosen).sum(dim=1)
    size = chosen.sum(dim=1)
    return interacting / (size * (size - 1.0)).clamp(min=1.0)


def margin_loss(probs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Multi-label margin loss on probabilities, one value per row (n, D).

    The sum over pairs of a positive and a negative of max(0, 1 - p_i + p_j), divided by D.
    Probabilities differ by less than 1, so the maximum is never active and the double sum is
    n_neg * sum_pos (1 - p_i) + n_pos * sum_neg p_j.
    """
    positive, negative = target, 1.0 - target
    n_positive, n_negative = positive.sum(dim=1), negative.sum(dim=1)
    pairs = n_negative * ((1.0 - probs) * positive).sum(dim=1)
    pairs = pairs + n_positive * (probs * negative).sum(dim=1)
    return pairs / target.shape[1]


def combined_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    ddi: torch.Tensor,
    config: LossConfig,
    threshold: float,
    weigh: Callable[[torch.Tensor], torch.Tensor] | None = None,
    penalty: torch.Tensor | None = None,
) -> LossTerms:
    """Loss of n visits.

    Parameters
    ----------
    logits, target : Tensor (n, D)
    ddi : Tensor (D, D)
        Matrix of the rate r; see `gating_matrix`.
    weigh : callable, optional
        Weight of the prediction loss at the visits' DDI rates (n,), instead of the gate.
    penalty : Tensor (D, D), optional
        Matrix of L_ddi, see `penalty_matrix`; ``ddi`` by default.
    """
    matrix = ddi if penalty is None else penalty
    probs = torch.sigmoid(logits)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)
    margin = margin_loss(probs, target)
    prediction = config.bce_weight * bce + config.margin_weight * margin
    n_drugs = logits.shape[1]
    scale = 1.0 / max(n_drugs * (n_drugs - 1), 1) if config.ddi_normalised else config.ddi_scale
    interaction = scale * ((probs @ matrix) * probs).sum(dim=1)
    rate = ddi_rate(probs.detach() >= threshold, ddi)
    weight = gate(rate, config) if weigh is None else weigh(rate)
    total = (weight * prediction + (1.0 - weight) * interaction).mean()
    parts = {
        "bce": bce.mean().detach(),
        "margin": margin.mean().detach(),
        "ddi": interaction.mean().detach(),
        "gate": weight.mean().detach(),
    }
    return LossTerms(total, parts)
