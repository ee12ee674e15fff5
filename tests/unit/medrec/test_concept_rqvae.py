"""Residual quantisation of concepts: codes, k-means start, revival, alignment, determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medrec.concepts.collisions import collision_rate, sequences
from medrec.concepts.quantiser import ResidualQuantiser, balanced_assignment
from medrec.concepts.rqvae import (
    SERQVAE,
    VIEW_SCALE,
    info_nce,
    standardised,
    train_codes,
)
from medrec.concepts.table import ConceptViews
from medrec.config import QuantiserConfig

SMALL = QuantiserConfig(levels=2, code_dim=4, epochs=10, batch_size=64)


def made_views(n: int = 40, seed: int = 0) -> ConceptViews:
    rng = np.random.default_rng(seed)
    return ConceptViews(
        tuple(f"c{i}" for i in range(n)),
        (rng.normal(size=(n, 3)) @ rng.normal(size=(3, 12))).astype(np.float32),
        (rng.normal(size=(n, 3)) @ rng.normal(size=(3, 7))).astype(np.float32),
    )


# --------------------------------------------------------------------------- quantiser


def test_codes_and_residual_add_up_to_the_input_and_each_code_is_the_nearest():
    torch.manual_seed(0)
    quantiser = ResidualQuantiser(3, 8, 5)
    z = torch.randn(20, 5, requires_grad=True)
    found = quantiser(z)
    assert torch.allclose(found.vectors + found.residual, z, atol=1e-6)
    residual = z.detach()
    for level in range(3):
        far = (residual[:, None] - quantiser.books[level][None]).norm(dim=2)
        assert torch.equal(found.codes[:, level], far.argmin(dim=1))
        residual = residual - quantiser.books[level][found.codes[:, level]]
    found.vectors.sum().backward()
    assert torch.allclose(z.grad, torch.ones_like(z))  # straight through
    assert quantiser.books.grad is None  # reconstruction moves no code


def test_commitment_by_hand_with_alpha_on_the_side_of_the_encoder_alone():
    quantiser = ResidualQuantiser(1, 2, 2, alpha=0.25)
    with torch.no_grad():
        quantiser.books[0] = torch.tensor([[0.0, 0.0], [5.0, 0.0]])
    z = torch.tensor([[1.0, 0.0], [5.0, 2.0]], requires_grad=True)
    commitment = quantiser(z).commitment
    assert commitment.item() == pytest.approx(1.25 * (1.0 + 4.0) / 2)
    commitment.backward()
    # d/de |z - e|^2 / 2 vectors, not scaled by alpha; d/dz scaled
    assert torch.allclose(quantiser.books.grad[0], torch.tensor([[-1.0, 0.0], [0.0, -2.0]]))
    assert torch.allclose(z.grad, 0.25 * torch.tensor([[1.0, 0.0], [0.0, 2.0]]))


def test_a_code_moves_by_what_it_describes_and_not_by_later_levels():
    torch.manual_seed(0)
    quantiser = ResidualQuantiser(3, 4, 5)
    z = torch.randn(10, 5)
    found = quantiser(z)
    found.commitment.backward()
    code = found.codes[:, 0]
    expected = torch.zeros(4, 5).index_add_(0, code, 2.0 * (quantiser.books[0][code] - z) / 10)
    assert torch.allclose(quantiser.books.grad[0], expected, atol=1e-6)


def test_concepts_with_equal_codes_share_parameters():
    quantiser = ResidualQuantiser(2, 3, 2)
    z = torch.tensor([[1.0, 2.0], [1.0, 2.0], [-4.0, 0.5]])
    found = quantiser(z)
    assert torch.equal(found.codes[0], found.codes[1])
    before = quantiser(z).vectors.detach()
    with torch.no_grad():
        quantiser.books[0, found.codes[0, 0]] += 0.01
    after = quantiser(z).vectors.detach()
    assert torch.equal(after[0], after[1])
    assert not torch.equal(after[0], before[0])


def test_k_means_start_describes_better_than_random_codes():
    torch.manual_seed(0)
    z = torch.randn(200, 6) * 3 + 5
    random, started = ResidualQuantiser(3, 8, 6), ResidualQuantiser(3, 8, 6)
    started.start_from(z, 0)
    errors = [q(z).residual.square().sum(1).mean() for q in (random, started)]
    assert errors[1] < 0.5 * errors[0]
    # level by level on residuals: each level takes something away
    left = [z]
    for level in range(3):
        left.append(left[-1] - started.books[level][started.assign(left[-1], level)])
    sizes = [x.square().sum(1).mean().item() for x in left]
    assert sizes == sorted(sizes, reverse=True)


def test_more_codes_than_vectors_leave_nothing_over():
    quantiser = ResidualQuantiser(2, 8, 3)
    z = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]])
    quantiser.start_from(z, 0)
    found = quantiser(z)
    assert found.residual.abs().max() < 1e-6
    assert torch.equal(found.codes[1], found.codes[2])
    assert not torch.equal(found.codes[0], found.codes[1])


def test_revival_brings_dead_codes_to_life_and_depends_on_its_seed_alone():
    torch.manual_seed(0)
    z = torch.randn(60, 4)

    def quantiser() -> ResidualQuantiser:
        made = ResidualQuantiser(2, 16, 4)
        with torch.no_grad():
            made.books.fill_(50.0)
            made.books[:, :2] = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
        return made

    def used(q: ResidualQuantiser) -> int:
        return sum(len(q(z).codes[:, level].unique()) for level in range(2))

    first, second = quantiser(), quantiser()
    assert used(first) == 4
    assert first.revive(z, torch.Generator().manual_seed(3)) == 28
    assert used(first) > 20
    second.revive(z, torch.Generator().manual_seed(3))
    assert torch.equal(first.books, second.books)


def test_balanced_assignment_gives_every_code_its_share():
    torch.manual_seed(0)
    z, codes = torch.randn(96, 3), torch.randn(4, 3) * torch.tensor([[0.1], [1.0], [2.0], [3.0]])
    distances = torch.cdist(z, codes).square()
    nearest = torch.bincount(distances.argmin(1), minlength=4)
    balanced = torch.bincount(balanced_assignment(distances), minlength=4)
    assert nearest.max() > 40
    assert nearest.min() < 12
    assert 14 <= balanced.min() <= balanced.max() <= 34
    # and of all balanced assignments a near one: a code's vectors are nearer than the others
    chosen = balanced_assignment(distances)
    for k in range(4):
        assert distances[chosen == k, k].mean() < distances[chosen != k, k].mean()


def test_only_the_last_level_is_balanced():
    torch.manual_seed(0)
    plain, balanced = ResidualQuantiser(2, 4, 3), ResidualQuantiser(2, 4, 3, balance_last=True)
    balanced.load_state_dict(plain.state_dict())
    z = torch.randn(40, 3) + 2
    first, second = plain(z), balanced(z)
    assert torch.equal(first.codes[:, 0], second.codes[:, 0])
    assert not torch.equal(first.codes[:, 1], second.codes[:, 1])
    assert torch.allclose(second.vectors + second.residual, z, atol=1e-6)


# --------------------------------------------------------------------------- loss


def test_info_nce_of_orthogonal_rows_by_hand():
    rows = torch.eye(3)
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert info_nce(rows, 5 * rows, 0.5).item() == pytest.approx(expected, rel=1e-4)
    assert info_nce(rows, rows.roll(1, 0), 0.1) > 9


def test_loss_is_recon_plus_commit_plus_weighted_symmetric_alignment():
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"align_weight": 0.5, "commitment": 2.0})
    rows = {"semantic": torch.randn(12, 6), "structural": torch.randn(12, 5)}
    model = SERQVAE({"semantic": 6, "structural": 5}, 4, config)
    parts = model(rows)
    assert parts["loss"] == parts["recon"] + parts["commit"] + 0.5 * parts["align"]
    found = {view: tower(rows[view]) for view, tower in model.towers.items()}
    a, b = (found[view][0].vectors for view in rows)
    assert torch.allclose(parts["align"], info_nce(a, b, 0.1) + info_nce(b, a, 0.1))
    recon = [
        (rows[view] - model.towers[view].decoder(found[view][0].vectors)).square().sum() / 12
        for view in rows
    ]
    assert torch.allclose(parts["recon"], sum(recon))  # a squared norm, not a mean over elements
    parts["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_one_view_has_no_alignment():
    model = SERQVAE({"semantic": 6}, 4, SMALL)
    assert model({"semantic": torch.randn(5, 6)})["align"] == 0


def test_views_are_centred_and_scaled_and_a_constant_one_stays_finite():
    view = standardised(made_views().semantic * 1e-3 + 7)
    assert np.abs(view.mean(axis=0)).max() < 1e-5
    assert np.square(view).sum(axis=1).mean() == pytest.approx(VIEW_SCALE, rel=1e-4)
    assert not standardised(np.ones((4, 3), np.float32)).any()


# --------------------------------------------------------------------------- training


def test_training_lowers_the_loss_and_depends_on_the_seed_alone():
    config = SMALL.model_copy(update={"epochs": 20, "batch_size": 20})
    first = train_codes(made_views(), 8, config, seed=1)
    torch.rand(7)  # the state of the global generator plays no part
    second = train_codes(made_views(), 8, config, seed=1)
    assert np.array_equal(first.codes.index, second.codes.index)
    assert np.array_equal(first.codes.books, second.codes.books)
    assert first.history == second.history
    assert first.history[-1]["unexplained"] < 0.8 * first.history[0]["unexplained"]
    other = train_codes(made_views(), 8, config, seed=2)
    assert not np.array_equal(first.codes.books, other.codes.books)


def test_training_stops_without_gain_and_returns_the_best_check():
    config = SMALL.model_copy(update={"epochs": 500, "least_gain": 10.0, "patience": 15})
    trained = train_codes(made_views(), 8, config, seed=1)
    assert trained.facts["epochs"] == 15
    assert trained.facts["best_epoch"] == 0
    start = train_codes(made_views(), 8, SMALL.model_copy(update={"least_gain": 10.0}), seed=1)
    assert np.array_equal(trained.codes.books, start.codes.books)


def test_equal_texts_collide_and_different_places_in_the_graph_tell_them_apart():
    views = made_views(30)
    semantic = views.semantic.copy()
    semantic[1] = semantic[0]
    views = ConceptViews(views.codes, semantic, views.structural)
    config = SMALL.model_copy(update={"epochs": 30, "levels": 3})
    without = train_codes(views, 8, config, structure=False, seed=0).codes
    assert without.views == ("semantic",)
    assert without.index.shape == (30, 1, 3)
    assert np.array_equal(without.index[0], without.index[1])
    assert collision_rate(sequences(without)) >= 2 / 30
    both = train_codes(views, 8, config, seed=0).codes
    assert np.array_equal(both.index[0, 0], both.index[1, 0])
    assert not np.array_equal(both.index[0], both.index[1])


@pytest.mark.parametrize("n", [0, 1, 3])
def test_small_vocabularies(n):
    trained = train_codes(made_views(n), 256, SMALL.model_copy(update={"levels": 4}))
    assert trained.codes.index.shape == (n, 2, 4)
    assert trained.codes.books.shape == (2, 4, max(n, 1), 4)
    assert np.isfinite(trained.codes.books).all()
    assert collision_rate(sequences(trained.codes)) == 0.0
