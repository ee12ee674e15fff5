"""COGNet's own traps: what comes from training patients, copying, and decoding without a prefix."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medrec.config import TrainConfig
from medrec.fitting import LearningData, build_learning_data, fit, fit_context, validate
from medrec.models import build_model
from medrec.models.cognet import COGNet, COGNetDecoder, Copies, EncodedVisits, normalised
from medrec.models.decoding import DrugLists


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    return build_learning_data(synthetic[1], 0, None, molecules=False)


def configure(**options: object) -> TrainConfig:
    sizes = {"d_model": 16, "d_feedforward": 32, "dropout": 0.0, "embedding_dropout": 0.0}
    return TrainConfig.model_validate(
        {
            "name": "t",
            "model": {"name": "cognet", **sizes, **options},
            "optim": {"epochs": 1, "lr": 1e-3},
        }
    )


def build(data: LearningData, **options: object) -> COGNet:
    config = configure(**options)
    torch.manual_seed(0)
    model = build_model(config, fit_context(config, data).context)
    assert isinstance(model, COGNet)
    return model.eval()


def longest(data: LearningData, n: int = 5):
    lengths = {p: len(v) for p, v in data.dataset.patients.items()}
    return data.dataset.collate(sorted(lengths, key=lambda p: (-lengths[p], p))[:n])


def encode(model: COGNet, batch) -> EncodedVisits:
    return EncodedVisits(**model(batch, model.encode_drugs()).extras)


def test_graph_and_counts_come_from_training_visits_only(data):
    config = configure()
    fitted = fit_context(config, data).context.fitted
    n_drugs = data.dataset.n_drugs
    together, counts = np.zeros((n_drugs, n_drugs)), np.zeros(n_drugs)
    for patient in data.split.train:
        for drugs in data.dataset[int(patient)].drugs:
            together[np.ix_(drugs, drugs)] = 1
            counts[drugs] += 1
    np.fill_diagonal(together, 0)
    assert np.array_equal(fitted["co_prescribed"].numpy(), together)
    assert np.array_equal(fitted["drug_counts"].numpy(), counts)
    fewer = replace(data, split=replace(data.split, train=data.split.train[:3]))
    assert fit_context(config, fewer).context.fitted["co_prescribed"].sum() < together.sum()
    order = build(data).order
    assert (fitted["drug_counts"][order].diff() >= 0).all()  # rare first


def test_a_graph_row_sums_to_one_and_holds_the_drug_itself():
    graph = normalised(torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    assert torch.equal(graph, torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]))


@torch.no_grad()
def test_copying_is_the_published_product_of_two_softmaxes(data):
    """Softmax over slots times softmax over visits, normalised again."""
    model, batch = build(data), longest(data)
    encoded = encode(model, batch)
    copies = Copies.of(encoded)
    n = len(encoded.diagnoses)
    query = torch.randn(n, 3, 16)
    shares = copies.shares(query)
    for visit in range(n):
        pairs = (copies.visit == visit).nonzero().squeeze(1)
        if not bool(copies.possible[visit]):
            continue
        mask = copies.mask[pairs]
        logits = torch.einsum("ld,psd->lps", query[visit], copies.slots[pairs]) / math.sqrt(16)
        inside = torch.softmax(logits.masked_fill(~mask, -torch.inf).flatten(1), dim=1)
        over_visits = torch.softmax(copies.score[pairs], dim=0)
        product = inside.reshape(logits.shape) * over_visits[None, :, None]
        wanted = product / product.sum(dim=(1, 2), keepdim=True)
        assert torch.allclose(shares[pairs].transpose(0, 1), wanted, atol=1e-6)
    sums = torch.zeros(n, 3).index_add(0, copies.visit, shares.sum(2))
    assert torch.allclose(sums[copies.possible], torch.ones(int(copies.possible.sum()), 3))


@torch.no_grad()
def test_a_visit_copies_from_its_earlier_visits_only(data):
    model, batch = build(data), longest(data, 3)
    copies = Copies.of(encode(model, batch))
    visits = batch.mask.nonzero()
    for number, (patient, t) in enumerate(visits.tolist()):
        pairs = copies.visit == number
        found = sorted(copies.drug[pairs][copies.mask[pairs]].tolist())
        before = batch.drugs_before[patient, 1 : t + 1]
        assert found == sorted(before.nonzero()[:, 1].tolist())
    first = visits[:, 1] == 0
    assert not copies.possible[first].any()


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 2])
def test_steps_without_a_prefix_equal_the_whole_prefix(data, width):
    """The decoder's table of keys and values gives what teacher forcing gives; p sums to 1."""
    model, batch = build(data), longest(data)
    encoded = encode(model, batch)
    lists = DrugLists.of(batch.target[batch.mask], model.order)
    log_likelihood, n_tokens = 0.0, 0
    decoder = COGNetDecoder(model, encoded, width)
    for step in range(lists.inputs.shape[1]):
        probs = decoder.step(lists.inputs[:, step : step + 1].repeat(1, width))
        alive = lists.lengths > step
        assert torch.allclose(probs[alive].sum(-1), torch.ones(int(alive.sum()), width))
        chosen = probs[:, -1].gather(1, lists.outputs[:, step : step + 1]).squeeze(1)
        log_likelihood += float(chosen[alive].log().sum())
        n_tokens += int(alive.sum())
    loss = model.loss(batch, model(batch, model.encode_drugs())).total
    assert float(loss) == pytest.approx(-log_likelihood / n_tokens, rel=1e-4)


@torch.no_grad()
def test_hypotheses_follow_their_parents(data):
    model, batch = build(data), longest(data)
    encoded = encode(model, batch)
    n = len(encoded.diagnoses)
    start = torch.full((n, 2), data.dataset.n_drugs)
    tokens = torch.tensor([0, 1]).repeat(n, 1)
    crossed = COGNetDecoder(model, encoded, 2)
    crossed.step(start)
    crossed.step(tokens)
    keep = torch.arange(1, n, 2)
    crossed.select(keep, torch.tensor([1, 1]).repeat(len(keep), 1))
    got = crossed.step(torch.full((len(keep), 2), 3))
    plain = COGNetDecoder(model, encoded, 1)
    for column in (start[:, :1], tokens[:, 1:]):
        plain.step(column)
    wanted = plain.step(torch.full((n, 1), 3))[keep]
    assert torch.allclose(got, wanted.expand_as(got), atol=1e-6)


@torch.no_grad()
def test_sets_hold_no_end_and_no_more_than_allowed(data):
    model, batch = build(data, max_drugs=3, beam_while_training=True), longest(data)
    prediction = model.predict(batch)
    assert prediction.selected.shape == batch.target.shape
    assert prediction.selected.sum(-1).max() <= 3
    assert not prediction.selected[~batch.mask].any()


def test_validation_is_greedy_until_training_is_over(data):
    model, config = build(data), configure()
    assert int(model.width) == 1
    fit(config, data, model, report=lambda row, state: None)
    model.width.fill_(4)
    plain = validate(model, data)["val_jaccard"]
    model.width.fill_(1)
    model.tune(data.dataset, data.split.validation)
    assert int(model.width) == 4
    assert validate(model, data)["val_jaccard"] >= plain  # no bias is one of those tried
    assert float(model.end_bias) != 0.0
    loaded = build(data)
    loaded.load_state_dict(model.state_dict())
    assert int(loaded.width) == 4
    assert torch.equal(loaded.end_bias, model.end_bias)
    untuned = build(data, tune_end=False)
    untuned.tune(data.dataset, data.split.validation)
    assert float(untuned.end_bias) == 0.0
    batch = longest(data)
    assert torch.equal(loaded.predict(batch).selected, model.predict(batch).selected)
    assert int(build(data, beam_while_training=True).width) == 4
