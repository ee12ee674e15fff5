"""The beam over all visits against plain loops, and the lists it is trained on."""

from __future__ import annotations

import itertools

import pytest
import torch

from medrec.models.decoding import DrugLists, PaddedSets, beam_search, drug_order

N_DRUGS = 4


class Table:
    """A decoder whose next probabilities depend on the visit and the newest token."""

    def __init__(self, table: torch.Tensor, width: int) -> None:
        self.table, self.visit = table, torch.arange(len(table)).unsqueeze(1).repeat(1, width)
        self.history: list[torch.Tensor] = []

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[self.visit, tokens].clone()

    def select(self, visits: torch.Tensor | None, parents: torch.Tensor) -> None:
        if visits is not None:
            self.visit = self.visit[visits]
        self.visit = self.visit.gather(1, parents)


def make_table(n: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, N_DRUGS + 1, N_DRUGS + 1, generator=generator)
    return torch.softmax(logits, dim=-1)


def search(table: torch.Tensor, width: int, max_drugs: int = N_DRUGS, ranking="max", bias=0.0):
    return beam_search(
        Table(table, width),
        len(table),
        N_DRUGS,
        width=width,
        max_drugs=max_drugs,
        ranking=ranking,
        device=torch.device("cpu"),
        end_bias=bias,
    )


def log_probability(table: torch.Tensor, drugs: tuple[int, ...], max_drugs: int) -> float:
    tokens = [*drugs] if len(drugs) == max_drugs else [*drugs, N_DRUGS]
    before = [N_DRUGS, *drugs]
    return sum(float(table[b, t].log()) for b, t in zip(before, tokens, strict=False))


@pytest.mark.parametrize("max_drugs", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_likeliest_list(seed, max_drugs):
    table = make_table(seed=seed)
    found = search(table, width=100, max_drugs=max_drugs)
    lists = [
        drugs
        for size in range(max_drugs + 1)
        for drugs in itertools.permutations(range(N_DRUGS), size)
    ]
    for row in range(len(table)):
        best = max(lists, key=lambda drugs: log_probability(table[row], drugs, max_drugs))
        assert found.selected[row].nonzero().squeeze(1).tolist() == sorted(best)


@pytest.mark.parametrize("seed", range(4))
def test_width_one_is_greedy_and_its_ranks_are_as_stated(seed):
    table = make_table(seed=seed)
    found = {ranking: search(table, 1, ranking=ranking) for ranking in ("mean", "max", "own_step")}
    for row in range(len(table)):
        token, listed, steps, own = N_DRUGS, [], [], {}
        while len(listed) < N_DRUGS:
            steps.append(table[row, token, :-1])
            rest = table[row, token].clone()
            rest[listed] = 0.0
            token = int(rest.argmax())
            if token == N_DRUGS:
                break
            own[token] = float(rest[token])
            listed.append(token)
        assert found["max"].selected[row].nonzero().squeeze(1).tolist() == sorted(listed)
        assert torch.allclose(found["mean"].probs[row], torch.stack(steps).mean(0))
        for drug in range(N_DRUGS):
            until = listed.index(drug) + 1 if drug in listed else len(steps)
            highest = max(float(step[drug]) for step in steps[:until])
            assert float(found["max"].probs[row, drug]) == pytest.approx(highest)
            wanted = own.get(drug, highest)
            assert float(found["own_step"].probs[row, drug]) == pytest.approx(wanted)


@pytest.mark.parametrize("width", [1, 3])
def test_visits_decoded_together_or_alone_are_the_same(width):
    table = make_table(6, seed=9)
    together = search(table, width, ranking="mean")
    for row in range(len(table)):
        alone = search(table[row : row + 1], width, ranking="mean")
        assert torch.equal(alone.selected[0], together.selected[row])
        assert torch.equal(alone.probs[0], together.probs[row])


def test_end_at_once_is_an_empty_set_and_lists_stop_at_their_limit():
    table = torch.full((2, N_DRUGS + 1, N_DRUGS + 1), 0.01)
    table[0, :, -1] = 0.96
    table[1, :, :-1] = 0.24
    found = search(table, 2, max_drugs=3)
    assert found.selected.sum(1).tolist() == [0, 3]
    assert found.selected.shape == (2, N_DRUGS)  # END has no column


@pytest.mark.parametrize("width", [1, 3])
def test_a_bias_of_end_is_one_of_its_logit(width):
    table, bias = make_table(seed=5), 1.5
    logits = table.log()
    logits[..., -1] += bias
    wanted = search(torch.softmax(logits, dim=-1), width)
    found = search(table, width, bias=bias)
    assert torch.equal(found.selected, wanted.selected)
    assert found.selected.sum() < search(table, width, bias=-bias).selected.sum()
    first = table[:, -1, :-1]  # ranks know no bias
    assert (found.probs >= first - 1e-6).all()


def test_lists_for_teacher_forcing():
    order = drug_order(torch.tensor([5, 1, 5, 0]), "rare_first")
    assert order.tolist() == [3, 1, 0, 2]
    target = torch.tensor([[1.0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]])
    lists = DrugLists.of(target, order)
    assert lists.inputs.tolist() == [[4, 3, 1, 0], [4, 4, 4, 4], [4, 2, 4, 4]]
    assert lists.outputs.tolist() == [[3, 1, 0, 4], [4, 4, 4, 4], [2, 4, 4, 4]]
    assert lists.lengths.tolist() == [4, 1, 2]
    alone = DrugLists.of(target[2:], order)
    assert alone.inputs[0].tolist() == lists.inputs[2, :2].tolist()


def test_padded_sets_hold_every_code_once_in_any_order():
    sets = PaddedSets.of(torch.tensor([7, 5, 9, 6]), torch.tensor([2, 0, 2, 0]), 4)
    assert sets.index.tolist() == [[5, 6], [0, 0], [7, 9], [0, 0]]
    assert sets.mask.sum(1).tolist() == [2, 0, 2, 0]
    assert sets.index.flatten()[sets.place].tolist() == [5, 6, 7, 9]
    empty = PaddedSets.of(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 2)
    assert empty.mask.shape == (2, 1)
    assert not empty.mask.any()
