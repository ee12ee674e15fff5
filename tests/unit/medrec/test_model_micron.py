"""MICRON: how sets change, what the loss holds, and which thresholds are tuned."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medrec.config import TrainConfig
from medrec.evaluation.threshold import macro_jaccard
from medrec.fitting import LearningData, build_learning_data
from medrec.models.losses import margin_loss
from medrec.models.micron import Micron


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=False)


def make(data: LearningData, loss: dict[str, object] | None = None, **model: object) -> Micron:
    torch.manual_seed(0)
    sizes = {"name": "micron", "d_model": 8, "dropout": 0.0, **model}
    config = TrainConfig.model_validate({"name": "t", "model": sizes, "loss": loss or {}})
    return Micron(config, data.context)


PROBS = torch.tensor([[[0.9, 0.4, 0.1], [0.9, 0.5, 0.1], [0.5, 0.5, 0.9], [0.5, 0.1, 0.5]]])
BEFORE = torch.tensor([[[0, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1]]]).float()


def test_sets_add_the_sure_and_drop_the_unlikely(data):
    model, cuts = make(data), torch.tensor([0.5, 0.8, 0.2])
    found = model._decode(PROBS, BEFORE, cuts)[0].int().tolist()
    assert found == [[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 1]]


def test_the_released_recursion_follows_its_own_sets(data):
    model, cuts = make(data, history="first"), torch.tensor([0.5, 0.8, 0.2])
    found = model._decode(PROBS, BEFORE, cuts)[0].int().tolist()
    # the second visit starts from the given drugs, the later ones from the predicted set
    assert found == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1]]


def test_every_visit_keeps_its_own_set(data):
    """The released evaluation scores all visits of a patient with one array."""
    model = make(data).eval()
    patient = max(data.dataset, key=lambda p: len(data.dataset[p]))
    batch = data.dataset.collate([patient])
    sets = model.predict(batch).selected[0]
    assert len({tuple(row.tolist()) for row in sets}) > 1


def test_no_set_depends_on_the_visits_own_drugs(data):
    for history in ("previous", "first"):
        model = make(data, history=history)
        batch = data.dataset.collate(data.split.train[:6])
        reference = model.predict(batch).selected
        batch.target[:] = 1.0 - batch.target
        batch.drugs_before[:, 2:] = 1.0 - batch.drugs_before[:, 2:]
        assert torch.equal(model.predict(batch).selected[:, :2], reference[:, :2])


def test_logits_add_up_the_changes(data):
    model = make(data).eval()
    batch = data.dataset.collate(data.split.train[:6])
    prediction = model.predict(batch)
    scores, changes = prediction.extras["scores"], prediction.extras["changes"]
    assert torch.equal(prediction.logits[:, 0], scores[:, 0])
    assert torch.allclose(prediction.logits[:, 2], scores[:, 0] + changes[:, 0] + changes[:, 1])


@pytest.mark.parametrize("gate", ["none", "molerec"])
def test_the_loss_is_the_stated_formula(data, gate):
    loss = {"gate": gate, "ddi_target": 0.01, "bce_weight": 0.95, "margin_weight": 0.05}
    model = make(data, loss)
    torch.nn.init.constant_(model.prescription[-1].bias, 1.0)  # every drug: above the target
    batch = data.dataset.collate(data.split.train[:6])
    prediction = model(batch)
    z, rho = prediction.extras["scores"], prediction.extras["changes"]
    terms = []
    for b, t in batch.mask.nonzero().tolist():
        if t == 0:
            continue
        part = torch.tensor(0.0)
        for share, k in ((0.75, t), (0.25, t - 1)):
            y = batch.target[b, k]
            margin = margin_loss(torch.sigmoid(z[b, k])[None], y[None])[0]
            bce = F.binary_cross_entropy_with_logits(z[b, k], y)
            part = part + share * (0.95 * bce + 0.05 * margin)
        built = torch.sigmoid(z[b, t - 1] + rho[b, t - 1])
        part = part + ((torch.sigmoid(z[b, t]) - built) ** 2).mean()
        if gate != "none":
            p = torch.sigmoid(z[b, t])
            part = part + p @ data.context.ddi @ p / len(p)
        terms.append(part)
    total = model.loss(batch, prediction).total
    assert total.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_a_patient_with_one_visit_is_learned_from(data):
    model = make(data)
    batch = data.dataset.collate(data.split.train[:3])
    batch.mask[:, 1:] = False
    bce = F.binary_cross_entropy_with_logits(model(batch).logits[:, 0], batch.target[:, 0])
    terms = model.loss(batch, model(batch))
    assert terms.parts["rec"] == 0.0
    assert terms.total > 0.9 * bce.detach()


def score(model: Micron, data: LearningData) -> float:
    batch = data.dataset.collate(data.split.validation)
    mask = batch.mask
    patient = batch.patient.unsqueeze(1).expand(mask.shape)[mask]
    return macro_jaccard(
        model.predict(batch).selected[mask].numpy(),
        batch.target[mask].numpy() > 0.5,
        batch.n_unseen[mask].numpy(),
        patient.numpy(),
    )


@pytest.mark.parametrize("history", ["previous", "first"])
def test_tuned_thresholds_are_better_and_are_saved(data, history):
    model = make(data, history=history)
    start = score(model, data)
    model.tune(data.dataset, data.split.validation)
    tuned = score(model, data)
    assert tuned > start
    other = make(data, history=history)
    other.load_state_dict(model.state_dict())
    assert score(other, data) == tuned
    first, add, remove = model.thresholds.tolist()
    assert 0.0 < remove <= add < 1.0
    assert 0.0 < first < 1.0


def test_thresholds_can_be_left_alone(data):
    model = make(data, tune_thresholds=False)
    model.tune(data.dataset, data.split.validation)
    assert model.thresholds.tolist() == pytest.approx([0.5, 0.8, 0.2])
