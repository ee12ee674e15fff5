"""LEAP's own traps: what attention depends on, the order of lists, END, and the ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medrec.config import TrainConfig
from medrec.fitting import LearningData, build_learning_data, fit_context
from medrec.models import build_model
from medrec.models.leap import Leap, LeapDecoder


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    return build_learning_data(synthetic[1], 0, None, molecules=False)


def build(data: LearningData, **options: object) -> Leap:
    config = TrainConfig.model_validate(
        {"name": "t", "model": {"name": "leap", "d_model": 16, "dropout": 0.0, **options}}
    )
    torch.manual_seed(0)
    model = build_model(config, fit_context(config, data).context)
    assert isinstance(model, Leap)
    return model.eval()


def encoded(model: Leap, data: LearningData, n: int = 6):
    batch = data.dataset.collate([int(p) for p in data.split.train[:n]])
    return batch, model(batch, None).extras


def contexts(model: Leap, extras, steps: int = 3) -> list[torch.Tensor]:
    """The contexts of some steps with the same tokens."""
    view = model.view(extras["vectors"], extras["present"])
    hidden = model.first_hidden(len(extras["present"]))
    found = []
    for step in range(steps):
        context = view.context if view.context is not None else model.attention(view, hidden)
        found.append(context)
        tokens = torch.full(hidden.shape[:2], step)
        hidden = model.advance(view, model.tokens(tokens), hidden)
    return found


@torch.no_grad()
def test_attention_follows_the_step_only_where_it_should(data):
    model = build(data)
    first, second, _ = contexts(model, encoded(model, data)[1])
    assert (first - second).abs().max() > 1e-4
    for option in ({"attend": "first_step"}, {"attention": "linear"}):
        model = build(data, **option)
        first, second, third = contexts(model, encoded(model, data)[1])
        assert torch.equal(first, second)
        assert torch.equal(first, third)


@torch.no_grad()
def test_first_step_is_the_first_context_of_every_step(data):
    every, first = build(data), build(data, attend="first_step")
    first.load_state_dict(every.state_dict())
    extras = encoded(every, data)[1]
    wanted, got = contexts(every, extras), contexts(first, extras)
    assert torch.allclose(got[0], wanted[0])
    assert not torch.allclose(got[1], wanted[1])


@torch.no_grad()
def test_the_released_score_does_not_depend_on_the_state(data):
    """A linear score of [state, diagnosis] gives the weights of its diagnosis half alone."""
    model = build(data, attention="linear")
    extras = encoded(model, data)[1]
    vectors, present = extras["vectors"], extras["present"]
    state_half = torch.randn(len(present), 1)  # any number per visit
    scores = vectors @ model.linear_score.weight[0] + state_half
    weights = torch.softmax(scores.masked_fill(~present, -torch.inf), dim=1)
    wanted = (weights.unsqueeze(1) @ vectors).squeeze(1)
    assert torch.allclose(model.view(vectors, present).context.squeeze(1), wanted, atol=1e-6)


@torch.no_grad()
def test_a_visit_without_a_diagnosis_gets_no_context(data):
    model = build(data)
    extras = encoded(model, data)[1]
    present = torch.zeros_like(extras["present"])
    view = model.view(extras["vectors"], present)
    assert not model.attention(view, model.first_hidden(len(present))).any()


@torch.no_grad()
def test_greedy_lists_and_ranks_equal_a_plain_loop(data):
    model = build(data, max_drugs=6)
    batch, extras = encoded(model, data)
    prediction = model(batch, None)
    n_drugs = data.dataset.n_drugs
    for row, (selected, probs) in enumerate(
        zip(prediction.selected[batch.mask], prediction.probs[batch.mask], strict=True)
    ):
        one = slice(row, row + 1)
        decoder = LeapDecoder(model, extras["vectors"][one], extras["present"][one], 1)
        token, listed, steps = n_drugs, [], []
        while len(listed) < 6:
            distribution = decoder.step(torch.tensor([[token]]))[0, 0]
            steps.append(distribution[:-1].clone())
            distribution[listed] = 0.0
            token = int(distribution.argmax())
            if token == n_drugs:
                break
            listed.append(token)
        assert sorted(listed) == selected.nonzero().squeeze(1).tolist()
        assert torch.allclose(probs, torch.stack(steps).mean(0), atol=1e-6)


def test_loss_equals_a_plain_loop(data):
    model = build(data)
    batch, extras = encoded(model, data, 3)
    losses = []
    for row, target in enumerate(batch.target[batch.mask]):
        drugs = [int(d) for d in model.order if target[d] > 0.5]
        one = slice(row, row + 1)
        decoder = LeapDecoder(model, extras["vectors"][one], extras["present"][one], 1)
        end = data.dataset.n_drugs
        pairs = zip([end, *drugs], [*drugs, end], strict=True)
        steps = [-decoder.step(torch.tensor([[token]]))[0, 0, out].log() for token, out in pairs]
        losses.append(torch.stack(steps).mean())
    found = model.loss(batch, model(batch, None)).total
    assert torch.allclose(found, torch.stack(losses).mean(), atol=1e-5)


def test_the_order_is_that_of_the_training_visits(data):
    counts = build(data).context.fitted["drug_counts"]
    by_hand = torch.zeros(data.dataset.n_drugs, dtype=torch.long)
    for patient in data.split.train:
        for drugs in data.dataset[int(patient)].drugs:
            by_hand[drugs] += 1
    assert torch.equal(counts, by_hand)
    frequent, rare = build(data).order, build(data, order="rare_first").order
    assert (counts[frequent].diff() <= 0).all()
    assert (counts[rare].diff() >= 0).all()
    vocabulary = build(data, order="vocabulary").order
    assert torch.equal(vocabulary, torch.arange(len(counts)))


def test_no_procedure_and_no_history_is_an_input(data):
    model = build(data)
    batch, _ = encoded(model, data)
    other = replace(batch, drugs_before=1 - batch.drugs_before, procedures=batch.diagnoses)
    assert torch.equal(model(batch, None).probs, model(other, None).probs)
