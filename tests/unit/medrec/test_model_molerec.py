"""MoleRec's aggregation in its sparse and its published dense form."""

from __future__ import annotations

import pytest
import torch

from medrec.config import TrainConfig
from medrec.fitting import LearningData, build_learning_data
from medrec.models import build_model
from medrec.models.layers import MaskedAggregation
from medrec.models.molerec import MoleRec

D, S, N, DIM = 7, 11, 5, 6


def dense(
    layer: MaskedAggregation,
    drugs: torch.Tensor,
    fragments: torch.Tensor,
    weights: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Attention (D, S) over all fragments, and the weights on its diagonal; (n, D, d)."""
    scores = layer.query(drugs) @ layer.key(fragments).T / DIM**0.5
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    attention = torch.softmax(scores, dim=1) * mask
    return torch.stack([attention @ torch.diag(row) @ fragments for row in weights.T])


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    mask = torch.rand(D, S) < 0.3
    mask[0] = False  # a drug without a fragment
    mask[1] = True
    sizes = ((D, DIM), (S, DIM), (S, N))
    return mask, [torch.randn(size).requires_grad_() for size in sizes]


def test_sparse_aggregation_equals_the_dense_form(inputs):
    mask, (drugs, fragments, raw) = inputs
    layer = MaskedAggregation(DIM, mask)
    attention = layer.attention(drugs, fragments)
    found = layer(attention, fragments, torch.sigmoid(raw)).transpose(0, 1)
    expected = dense(layer, drugs, fragments, torch.sigmoid(raw), mask)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not found[:, 0].any()
    direction = torch.randn(N, D, DIM)
    leaves = [drugs, fragments, raw, *layer.parameters()]
    ours = torch.autograd.grad((found * direction).sum(), leaves)
    theirs = torch.autograd.grad((expected * direction).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_attention_adds_up_to_one_over_a_drugs_own_fragments(inputs):
    mask, (drugs, fragments, _) = inputs
    layer = MaskedAggregation(DIM, mask)
    attention = layer.attention(drugs, fragments)
    assert attention.shape == (D, S)  # one drug has all fragments
    has = mask.any(dim=1)
    assert torch.allclose(attention.sum(dim=1), has.float(), atol=1e-6)
    assert not MaskedAggregation(DIM, mask).state_dict().keys() & {"fragment", "present"}


def test_the_width_is_the_largest_number_of_fragments(inputs):
    mask, _ = inputs
    layer = MaskedAggregation(DIM, mask[2:])
    assert layer.fragment.shape[1] == int(mask[2:].sum(dim=1).max())
    empty = MaskedAggregation(DIM, torch.zeros(3, S, dtype=torch.bool))
    fragments = torch.randn(S, DIM)
    attention = empty.attention(torch.randn(3, DIM), fragments)
    assert not empty(attention, fragments, torch.rand(S, N)).any()


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=True)


def plain_logits(model: MoleRec, batch, patient: int, t: int) -> torch.Tensor:
    """One visit at a time, with the score applied to the aggregated drug vectors (D,)."""
    states = []
    for bag, gru, codes in (
        (model.history.diagnoses, model.history.gru_diagnoses, batch.diagnoses),
        (model.history.procedures, model.history.gru_procedures, batch.procedures),
    ):
        places = [patient * batch.shape[1] + s for s in range(t + 1)]
        sums = [bag.table.weight[codes.index[codes.visit == place]].sum(dim=0) for place in places]
        states.append(gru(torch.stack(sums).unsqueeze(0))[0][0, -1])
    weights = torch.sigmoid(model.relation(model.query(torch.cat(states))))
    tables = model.context.molecules
    fragments = model.set_attention(model.representation.fragments())
    drugs = tables.projection @ model.representation.molecules()
    layer, mask = model.aggregate, tables.fragment_mask
    scores = layer.query(drugs) @ layer.key(fragments).T / drugs.shape[1] ** 0.5
    attention = torch.softmax(scores.masked_fill(~mask, -1e30), dim=1) * mask
    return model.score(attention @ torch.diag(weights) @ fragments).squeeze(-1)


def test_a_batched_step_equals_plain_updates(data: LearningData):
    sizes = {"d_model": 8, "dropout": 0.0, "representation": {"layers": 2, "dropout": 0.0}}
    config = TrainConfig.model_validate({"name": "t", "model": {"name": "molerec", **sizes}})
    batch = data.dataset.collate(list(data.dataset.patients)[:3])
    logits = []
    gradients = []
    for plain in (False, True):
        torch.manual_seed(0)
        model = build_model(config, data.context)
        assert isinstance(model, MoleRec)
        prediction = model(batch, model.encode_drugs())
        if plain:
            places = batch.mask.nonzero().tolist()
            rows = torch.stack([plain_logits(model, batch, p, t) for p, t in places])
            whole = torch.zeros_like(prediction.logits)
            whole[batch.mask] = rows
            prediction.logits = whole
        model.loss(batch, prediction).total.backward()
        logits.append(prediction.logits.detach()[batch.mask])
        gradients.append([p.grad for p in model.parameters()])
    assert torch.allclose(*logits, atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
