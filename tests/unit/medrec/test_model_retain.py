"""RETAIN: attention over visits, reversed time, and the released code's options."""

from __future__ import annotations

import pytest
import torch

from medrec.config import TrainConfig
from medrec.data.dataset import CodeBag, VisitBatch
from medrec.models.base import DrugContext
from medrec.models.retain import Histories, Retain

N_DRUGS = 4


def make(**model: object) -> Retain:
    torch.manual_seed(0)
    config = TrainConfig.model_validate(
        {"name": "t", "model": {"name": "retain", "d_model": 8, "dropout": 0.0, **model}}
    )
    return Retain(config, DrugContext(6, 5, N_DRUGS, torch.zeros(N_DRUGS, N_DRUGS))).eval()


def make_batch(lengths: tuple[int, ...] = (3, 1, 2)) -> VisitBatch:
    generator = torch.Generator().manual_seed(1)
    n_visits = max(lengths)
    mask = torch.arange(n_visits) < torch.tensor(lengths).unsqueeze(1)
    places = mask.flatten().nonzero().squeeze(1).repeat_interleave(2)
    bags = [
        CodeBag(torch.randint(0, n, (len(places),), generator=generator), places) for n in (6, 5)
    ]
    target = (torch.rand(*mask.shape, N_DRUGS, generator=generator) < 0.5) & mask.unsqueeze(2)
    target = target.float()
    before = torch.zeros_like(target)
    before[:, 1:] = target[:, :-1]
    before[~mask] = 0.0
    return VisitBatch(
        *bags,
        before,
        target,
        torch.zeros(mask.shape, dtype=torch.long),
        mask,
        torch.arange(len(lengths)),
    )


def visit_vectors(model: Retain, batch: VisitBatch, patient: int, t: int) -> torch.Tensor:
    """Vectors of visits 0..t of one patient, written down from the definition."""
    n_visits, rows = batch.shape[1], []
    for k in range(t + 1):
        place = patient * n_visits + k
        row = sum(
            embedding.table.weight[bag.index[bag.visit == place]].sum(0)
            for bag, embedding in (
                (batch.diagnoses, model.diagnoses),
                (batch.procedures, model.procedures),
            )
        )
        rows.append(row + model.drugs(batch.target[patient, k]) if k < t else row)
    return torch.stack(rows)


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("attention", ["visits", "ones"])
def test_one_visit_at_a_time_gives_the_same(reverse, attention):
    model, batch = make(reverse_time=reverse, attention=attention), make_batch()
    prediction = model.predict(batch)
    with torch.no_grad():
        for patient, t in batch.mask.nonzero().tolist():
            vectors = visit_vectors(model, batch, patient, t)
            sequence = vectors.flip(0) if reverse else vectors
            alpha = torch.softmax(model.alpha(model.gru_alpha(sequence)[0]), dim=0)
            if attention == "ones":
                alpha = torch.ones_like(alpha)
            gates = torch.tanh(model.beta(model.gru_beta(sequence)[0]))
            expected = model.output((alpha * gates * sequence).sum(0))
            assert torch.allclose(prediction.logits[patient, t], expected, atol=1e-6)


def test_attention_sums_to_one_over_the_visits_so_far():
    batch = make_batch()
    alpha = make().predict(batch).extras["alpha"]
    assert torch.allclose(alpha.sum(-1)[batch.mask], torch.tensor(1.0))
    assert not alpha.triu(1).any()
    # more than one visit really shares the weight
    assert ((alpha[0, 2] > 0) & (alpha[0, 2] < 1)).all()


def test_the_order_of_visits_matters_to_the_last():
    """Reversed and forward time differ as soon as there are two visits."""
    batch = make_batch()
    one, other = (make(reverse_time=r).predict(batch).logits for r in (True, False))
    assert torch.allclose(one[:, 0], other[:, 0], atol=1e-6)
    assert not torch.allclose(one[0, 2], other[0, 2], atol=1e-4)


def test_without_current_codes_a_first_visit_has_no_input():
    model, batch = make(current_codes=False), make_batch()
    logits = model.predict(batch).logits
    bias = model.output.bias.detach()
    assert torch.equal(logits[:, 0], bias.expand(3, -1))
    assert not torch.allclose(logits[0, 1], bias)
    assert torch.equal(model.predict(make_batch((1, 1))).logits[:, 0], bias.expand(2, -1))


def test_sequences_are_packed_longest_first():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    layout = Histories.of(mask, reverse=True, current=True)
    assert layout.sizes.tolist() == [4, 2, 1]
    assert layout.visit.tolist() == [2, 1, 0, 3, 1, 0, 0]
    assert layout.owner.tolist() == [2, 1, 0, 3, 2, 1, 2]
