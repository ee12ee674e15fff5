"""The DDI-gated loss against its published table and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medrec.config import LossConfig
from medrec.models.losses import combined_loss, ddi_rate, gate, margin_loss

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
