"""Metrics by hand, against scikit-learn, and the bootstrap against known distributions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from medrec.evaluation.bootstrap import (
    bootstrap_intervals,
    legacy_bootstrap,
    paired_bootstrap,
)
from medrec.evaluation.metrics import (
    average_precision,
    ddi_rate_chance,
    summarise,
    visit_rows,
)
from quantum.base import InputError

DDI = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


def rows_of(target, selected, probs=None, patient=None, visit=None, unseen=None) -> pd.DataFrame:
    target, selected = np.array(target, bool), np.array(selected, bool)
    n = len(target)
    probs = np.where(selected, 0.9, 0.1) if probs is None else np.array(probs, float)
    patient = np.arange(n) if patient is None else np.array(patient)
    visit = np.zeros(n, int) if visit is None else np.array(visit)
    unseen = np.zeros(n, int) if unseen is None else np.array(unseen)
    ddi = DDI if target.shape[1] == 4 else np.zeros((target.shape[1],) * 2)
    return visit_rows(target, selected, probs, ddi, patient, visit, unseen)


def test_by_hand():
    # patient 0: truth {0,1}, chosen {0,2}; then truth {3}, chosen {3}; patient 1: {0,2}, {0,1,3}
    rows = rows_of(
        [[1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]],
        [[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 1]],
        patient=[0, 0, 1],
        visit=[0, 1, 0],
    )
    summary = summarise(rows)
    assert summary["jaccard"] == pytest.approx(((1 / 3 + 1) / 2 + 1 / 4) / 2)
    assert summary["f1"] == pytest.approx(((0.5 + 1) / 2 + 0.4) / 2)
    assert summary["jaccard_first"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert summary["jaccard_later"] == pytest.approx(1.0)
    assert summary["jaccard_visit_mean"] == pytest.approx((1 / 3 + 1 + 1 / 4) / 3)
    # chosen pairs: {0,2} 0 of 1; {3} none; {0,1,3}: 01 and 13 of 3
    assert summary["ddi_rate"] == pytest.approx(2 / 4)
    assert summary["ddi_rate_true"] == pytest.approx(1 / 2)
    assert summary["ddi_rate_visit_mean"] == pytest.approx((0 + 2 / 3) / 2)
    assert summary["mean_n_drugs"] == pytest.approx(6 / 3)
    assert summary["micro_f1"] == pytest.approx(2 * 3 / (5 + 6))


@pytest.mark.parametrize(
    ("target", "selected", "jaccard", "f1"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0, 1.0),
        ([1, 0, 0, 0], [0, 0, 0, 0], 0.0, 0.0),
        ([0, 0, 0, 0], [1, 0, 0, 0], 0.0, 0.0),
        ([1, 1, 1, 1], [1, 1, 1, 1], 1.0, 1.0),
    ],
)
def test_empty_and_full_sets(target, selected, jaccard, f1):
    summary = summarise(rows_of([target], [selected]))
    assert (summary["jaccard"], summary["f1"]) == (jaccard, f1)
    assert summary["ddi_rate"] == pytest.approx(2 / 6 if sum(selected) == 4 else 0.0)
    assert np.isnan(summary["jaccard_later"])


def test_average_precision_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    target = rng.random((200, 15)) < 0.3
    target[:, 0] |= ~target.any(axis=1)
    scores = rng.integers(0, 6, size=target.shape) / 5.0
    expected = [average_precision_score(t, s) for t, s in zip(target, scores, strict=True)]
    np.testing.assert_allclose(average_precision(target, scores), expected, atol=1e-12)


def test_unseen_true_drugs_count_as_missed():
    seen = rows_of([[1, 1, 0, 0]], [[1, 1, 0, 0]])
    unseen = rows_of([[1, 1, 0, 0]], [[1, 1, 0, 0]], unseen=[2])
    assert summarise(seen)["jaccard"] == 1.0
    assert summarise(unseen)["jaccard"] == pytest.approx(0.5)
    assert summarise(unseen)["prauc"] == pytest.approx(0.5)


def test_recall_at_the_true_number_by_hand():
    # two true drugs; the two best-ranked are 0 and 1, so one of two is found
    probs = [[0.9, 0.8, 0.7, 0.1]]
    rows = rows_of([[1, 0, 1, 0]], [[0, 0, 0, 0]], probs)
    assert summarise(rows)["recall_at_n_true"] == pytest.approx(0.5)
    # a third true drug, unknown to the model: the three best hold 0 and 2, the third is missed
    rows = rows_of([[1, 0, 1, 0]], [[0, 0, 0, 0]], probs, unseen=[1])
    assert summarise(rows)["recall_at_n_true"] == pytest.approx(2 / 3)


def test_chance_is_what_random_sets_get():
    rng = np.random.default_rng(1)
    d = 30
    ddi = np.triu(rng.random((d, d)) < 0.2, 1).astype(int)
    ddi = ddi + ddi.T
    selected = rng.random((4000, d)) < 0.5
    rows = visit_rows(
        selected,
        selected,
        rng.random((4000, d)),
        ddi,
        np.arange(4000),
        np.zeros(4000, int),
        np.zeros(4000, int),
    )
    assert summarise(rows)["ddi_rate"] == pytest.approx(ddi_rate_chance(ddi), abs=2e-3)


def test_a_content_blind_predictor_scores_low():
    # the right number of drugs, drawn at random among a hundred
    rng = np.random.default_rng(2)
    target = np.zeros((500, 100), bool)
    selected = np.zeros_like(target)
    for row in range(500):
        target[row, rng.choice(100, 12, replace=False)] = True
        selected[row, rng.choice(100, 12, replace=False)] = True
    assert summarise(rows_of(target, selected))["jaccard"] < 0.1


def test_calibration_error_of_known_probabilities():
    probs = np.full((1, 10), 0.35)
    target = np.zeros((1, 10), bool)
    target[0, :6] = True
    rows = rows_of(target, probs > 0.5, probs)
    assert summarise(rows)["ece"] == pytest.approx(0.25)


def random_rows(n_patients: int, rate: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    target = np.ones((n_patients, 1), bool)
    selected = rng.random((n_patients, 1)) < rate
    return rows_of(target, selected)


def test_the_interval_has_the_width_of_theory():
    rows = random_rows(400, 0.5, 3)
    low, high = bootstrap_intervals(rows)["jaccard"]
    mean = summarise(rows)["jaccard"]
    expected = 1.96 * np.sqrt(mean * (1 - mean) / 400)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.05)
    assert low < mean < high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        low, high = bootstrap_intervals(random_rows(120, 0.4, seed), 400)["jaccard"]
        hits += low <= 0.4 <= high
    assert 88 <= hits <= 99


def test_pairing_removes_what_is_common():
    rows = random_rows(200, 0.5, 4)
    same = paired_bootstrap(rows, rows)["jaccard"]
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0}
    better = rows.copy()
    better.loc[better["n_hit"] == 0, ["n_hit", "n_selected"]] = 1
    gap = paired_bootstrap(better, rows)["jaccard"]
    assert gap["low"] > 0
    assert gap["difference"] == pytest.approx(1 - summarise(rows)["jaccard"])
    with pytest.raises(InputError, match="different visits"):
        paired_bootstrap(rows, rows.iloc[1:])


def test_one_patient_has_no_interval():
    low, high = bootstrap_intervals(rows_of([[1, 0, 1, 0]], [[1, 1, 0, 0]]), 50)["jaccard"]
    assert low == high == pytest.approx(1 / 3)


def test_legacy_bootstrap_is_narrower_than_the_interval_it_is_taken_for():
    rows = random_rows(400, 0.5, 5)
    mean, spread = legacy_bootstrap(rows)["jaccard"]
    assert mean == pytest.approx(summarise(rows)["jaccard"], abs=0.05)
    assert 0 < spread < 0.05
    assert legacy_bootstrap(rows)["jaccard"] == (mean, spread)
