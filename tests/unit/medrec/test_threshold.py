"""The threshold chosen on validation visits."""

from __future__ import annotations

import numpy as np
import pytest

from medrec.evaluation.threshold import best_threshold, macro_jaccard


def test_jaccard_by_hand_with_unseen_drugs_and_uneven_patients():
    target = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], bool)
    selected = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)
    # patient 0: (1/2 + 1/2) / 2; patient 1: 1 hit of 1 predicted and 1 true + 1 unseen
    score = macro_jaccard(selected, target, np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert score == pytest.approx((0.5 + 0.5) / 2)


def test_the_threshold_separates_what_can_be_separated():
    target = np.array([[1, 1, 0, 0]] * 3, bool)
    probs = np.array([[0.34, 0.38, 0.21, 0.10]] * 3)
    cut, score = best_threshold(probs, target, np.zeros(3, int), np.arange(3))
    assert 0.21 < cut <= 0.34
    assert score == 1.0


def test_of_equal_thresholds_the_one_nearest_to_a_half_is_taken():
    target = np.array([[1, 0]], bool)
    probs = np.array([[0.99, 0.01]])
    assert best_threshold(probs, target, np.zeros(1, int), np.zeros(1, int)) == (0.5, 1.0)
