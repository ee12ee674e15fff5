"""Best sets for known probabilities, against enumeration of every outcome and every set."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medrec.evaluation.optimum import bayes_optimal_sets


def expected_jaccard(p, chosen) -> float:
    """Sum over every outcome of its probability times its Jaccard."""
    total = 0.0
    for outcome in itertools.product((0, 1), repeat=len(p)):
        true = np.array(outcome, dtype=bool)
        union = (true | chosen).sum()
        jaccard = (true & chosen).sum() / union if union else 1.0
        total += float(np.prod(np.where(true, p, 1 - p))) * jaccard
    return total


def test_equals_enumeration_of_all_sets_of_eight_drugs():
    rng = np.random.default_rng(0)
    p = np.vstack([rng.random(8) ** power for power in (0.5, 1, 3, 8)])
    selected, best = bayes_optimal_sets(p)
    for row in range(len(p)):
        sets = [np.array(s, dtype=bool) for s in itertools.product((0, 1), repeat=8)]
        values = [expected_jaccard(p[row], chosen) for chosen in sets]
        assert best[row] == pytest.approx(max(values), abs=1e-12)
        assert expected_jaccard(p[row], selected[row]) == pytest.approx(best[row], abs=1e-12)


def test_certain_drugs():
    selected, best = bayes_optimal_sets(np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    assert selected.tolist() == [[True, False, True], [False, False, False]]
    assert best == pytest.approx([1.0, 1.0])


def test_one_drug_by_hand():
    # choosing it gives p, choosing nothing gives 1 - p
    selected, best = bayes_optimal_sets(np.array([[0.7], [0.2]]))
    assert selected.tolist() == [[True], [False]]
    assert best == pytest.approx([0.7, 0.8])


def test_blocks_do_not_matter(monkeypatch):
    from medrec.evaluation import optimum

    p = np.random.default_rng(1).random((50, 12))
    whole = bayes_optimal_sets(p)
    monkeypatch.setattr(optimum, "_BLOCK", 7)
    parts = bayes_optimal_sets(p)
    assert (whole[0] == parts[0]).all()
    assert whole[1] == pytest.approx(parts[1], abs=1e-12)
