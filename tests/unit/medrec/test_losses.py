"""The DDI-gated loss against its published table and closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from medrec.config import LossConfig, TrainConfig
from medrec.fitting import build_learning_data, fit_context
from medrec.models import build_model
from medrec.models.losses import (
    combined_loss,
    ddi_rate,
    gate,
    gating_matrix,
    margin_loss,
    penalty_matrix,
)
from quantum.base import InputError

RATES = torch.tensor([0.07, 0.10, 0.12, 0.20])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gate": "safedrug", "gate_kp": 0.05}, [0.80, 0.20, 0.0, 0.0]),
        ({"gate": "molerec", "gate_temperature": 2.5}, [0.659, 0.189, 0.082, 0.003]),
        ({"gate": "scqmed_code", "gate_kp": 0.08}, [0.446, 0.119, 0.080, 0.034]),
        ({"gate": "scqmed_paper"}, [1.0, 0.905, 0.762, 0.404]),
        ({"gate": "mmm", "ddi_target": 0.04, "gate_kp": 0.05}, [0.40, 0.0, 0.0, 0.0]),
    ],
)
def test_gates_reproduce_the_table(settings, expected):
    config = LossConfig.model_validate({"ddi_target": 0.06, **settings})
    assert gate(RATES, config).tolist() == pytest.approx(expected, abs=2e-3)
    assert gate(torch.tensor([0.0, 0.03, config.ddi_target]), config).tolist() == [1.0, 1.0, 1.0]


def test_margin_loss_is_torchs():
    torch.manual_seed(0)
    probs = torch.rand(5, 9)
    target = (torch.rand(5, 9) < 0.4).float()
    target[:, 0] = 1.0
    for row in range(5):
        labels = torch.full((9,), -1)
        positives = target[row].nonzero().flatten()
        labels[: len(positives)] = positives
        expected = F.multilabel_margin_loss(probs[row], labels)
        assert margin_loss(probs, target)[row].item() == pytest.approx(expected.item(), abs=1e-5)


def test_margin_of_undecided_probabilities():
    target = torch.zeros(1, 131)
    target[0, :19] = 1.0
    assert margin_loss(torch.full((1, 131), 0.5), target).item() == pytest.approx(16.24, abs=0.01)


def test_rate_of_small_sets_is_zero():
    ddi = torch.ones(3, 3) - torch.eye(3)
    selected = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    assert ddi_rate(selected, ddi).tolist() == [0.0, 0.0, 1.0]


def test_the_gate_is_per_visit():
    ddi = torch.zeros(4, 4)
    ddi[0, 1] = ddi[1, 0] = 1.0
    logits = torch.tensor([[5.0, 5.0, -5.0, -5.0], [5.0, -5.0, 5.0, -5.0]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    terms = combined_loss(logits, target, ddi, LossConfig(ddi_target=0.06), 0.5)
    first, second = (
        combined_loss(logits[i : i + 1], target[i : i + 1], ddi, LossConfig(ddi_target=0.06), 0.5)
        for i in range(2)
    )
    assert first.parts["gate"] < 1e-3
    assert second.parts["gate"] == 1.0
    assert terms.total.item() == pytest.approx((first.total + second.total).item() / 2)


# --------------------------------------------------------------------------- severity


@dataclass
class Graded:
    """Four drugs; grades 1 to 4 on a ring, interactions from grade 3 on."""

    ddi: torch.Tensor
    severity: torch.Tensor | None


@pytest.fixture
def graded() -> Graded:
    severity = torch.zeros(4, 4)
    for i, grade in enumerate((1.0, 2.0, 3.0, 4.0)):
        j = (i + 1) % 4
        severity[i, j] = severity[j, i] = grade
    return Graded((severity >= 3).float(), severity)


def former_loss(logits, target, ddi, config, threshold):
    """The loss as it was before grades, written out."""
    probs = torch.sigmoid(logits)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)
    prediction = config.bce_weight * bce + config.margin_weight * margin_loss(probs, target)
    interaction = config.ddi_scale * ((probs @ ddi) * probs).sum(dim=1)
    weight = gate(ddi_rate(probs >= threshold, ddi), config)
    return (weight * prediction + (1.0 - weight) * interaction).mean()


def test_without_weights_the_loss_is_the_former_one_to_the_bit(graded):
    torch.manual_seed(0)
    logits, target = 2 * torch.randn(64, 4), (torch.rand(64, 4) < 0.5).float()
    config = LossConfig()
    penalty, gating = penalty_matrix(graded, config), gating_matrix(graded, config)
    assert penalty is graded.ddi
    assert gating is graded.ddi
    terms = combined_loss(logits, target, gating, config, 0.5, penalty=penalty)
    assert 0.0 < terms.parts["gate"] < 1.0
    assert torch.equal(terms.total, former_loss(logits, target, graded.ddi, config, 0.5))


def test_weights_of_one_are_all_graded_pairs_and_of_the_last_grade_contraindications(graded):
    equal = penalty_matrix(graded, LossConfig(severity_weights=(1, 1, 1, 1)))
    assert torch.equal(equal, (graded.severity > 0).float())
    last = penalty_matrix(graded, LossConfig(severity_weights=(0, 0, 0, 1)))
    assert torch.equal(last, (graded.severity == 4).float())


def test_each_grade_weighs_its_own(graded):
    config = LossConfig(severity_weights=(1, 2, 4, 8), ddi_normalised=True, ddi_target=1e-6)
    penalty = penalty_matrix(graded, config)
    for i, weight in enumerate((1.0, 2.0, 4.0, 8.0)):
        logits = torch.full((1, 4), -40.0)
        logits[0, [i, (i + 1) % 4]] = 40.0
        terms = combined_loss(logits, torch.zeros(1, 4), graded.ddi, config, 0.5, penalty=penalty)
        # both triangles, over D (D - 1)
        assert terms.parts["ddi"].item() == pytest.approx(2 * weight / 12)


def test_the_gate_keeps_the_published_rate_unless_asked(graded):
    weights = (1.0, 2.0, 4.0, 8.0)
    published = LossConfig(severity_weights=weights)
    assert gating_matrix(graded, published) is graded.ddi
    weighted = LossConfig(severity_weights=weights, gate_rate="weighted")
    everything = torch.ones(1, 4, dtype=torch.bool)
    # (1 + 2 + 4 + 8) / 8 over 6 pairs, against 2 interacting ones of 6
    rate = ddi_rate(everything, gating_matrix(graded, weighted))
    assert rate.item() == pytest.approx(15 / 48)
    assert ddi_rate(everything, gating_matrix(graded, published)).item() == pytest.approx(2 / 6)


def test_weights_without_grades_are_refused(graded):
    config = LossConfig(severity_weights=(0, 0, 0, 1))
    for severity in (None, torch.zeros(4, 4)):
        with pytest.raises(InputError, match="no interaction of the cohort has a grade"):
            penalty_matrix(Graded(graded.ddi, severity), config)
    with pytest.raises(ValidationError, match="all 0"):
        LossConfig(severity_weights=(0, 0, 0, 0))
    with pytest.raises(ValidationError, match="needs severity_weights"):
        LossConfig(gate_rate="weighted")


@pytest.mark.parametrize("name", ["retain", "gamenet", "micron"])
def test_models_penalise_by_grade(synthetic, name):
    """Ten times the weights are ten times the DDI term, in models with a term of their own too."""
    _, cohort = synthetic
    parts = []
    for weights in ((0.1, 0.2, 0.3, 0.4), (1, 2, 3, 4)):
        loss = {"severity_weights": weights, "ddi_target": 1e-6, "gate": "molerec"}
        config = TrainConfig.model_validate(
            {"name": name, "model": {"name": name, "d_model": 8, "dropout": 0.0}, "loss": loss}
        )
        data = fit_context(config, build_learning_data(cohort, 0, None, molecules=False))
        torch.manual_seed(0)
        model = build_model(config, data.context)
        batch = next(data.dataset.batches(data.split.train, 16))
        model.eval()
        parts.append(model.loss(batch, model(batch, model.encode_drugs())).parts["ddi"].item())
    assert parts[0] > 0.0
    assert parts[1] == pytest.approx(10 * parts[0], rel=1e-4)
