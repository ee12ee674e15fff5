"""Metrics by hand, against scikit-learn, and the bootstrap against known distributions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from medrec.evaluation.bootstrap import (
    PatientSums,
    bootstrap_intervals,
    legacy_bootstrap,
    paired_bootstrap,
    resample,
    resample_together,
)
from medrec.evaluation.metrics import (
    average_precision,
    ddi_rate_chance,
    summarise,
    visit_rows,
)
from quantum.base import DataError, InputError

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


# --------------------------------------------------------------------------- golden


def test_worked_examples_on_paper():
    """Two patients, four visits, four drugs; every number below was worked out by hand.

    ======= ===== ======= ========= =================== ===== ======= ==== ====
    patient visit truth   chosen    ranking             J     F1      AP   R@|Y|
    ======= ===== ======= ========= =================== ===== ======= ==== ====
    0       0     {0,1}   {}        0 .4, 2 .3, 1 .2, 3  0     0      5/6  1/2
    0       1     {2}     {2}       2 .9, others .1      1     1      1    1
    0       2     all     all       all .8               1     1      1    1
    1       0     {1,3}   {0,1,2}   0 .9, 1 .8, 2 .7, 3  1/4   2/5    1/2  1/2
    ======= ===== ======= ========= =================== ===== ======= ==== ====

    AP of the first: hits at ranks 1 and 3, (1 + 2/3) / 2; of the last: ranks 2 and 4,
    (1/2 + 2/4) / 2. Interacting pairs: 01 and 13.
    """
    rows = rows_of(
        [[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1]],
        [[0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]],
        [[0.4, 0.2, 0.3, 0.1], [0.1, 0.1, 0.9, 0.1], [0.8] * 4, [0.9, 0.8, 0.7, 0.1]],
        patient=[0, 0, 0, 1],
        visit=[0, 1, 2, 0],
    )
    expected = {
        "jaccard": (2 / 3 + 1 / 4) / 2,
        "f1": (2 / 3 + 2 / 5) / 2,
        "prauc": ((5 / 6 + 2) / 3 + 1 / 2) / 2,
        "jaccard_first": (0 + 1 / 4) / 2,
        "jaccard_later": 1.0,  # the patient with one visit has no part in it
        "jaccard_visit_mean": (0 + 1 + 1 + 1 / 4) / 4,
        "f1_visit_mean": (0 + 1 + 1 + 2 / 5) / 4,
        "prauc_visit_mean": (5 / 6 + 1 + 1 + 1 / 2) / 4,
        "recall_at_n_true": (1 / 2 + 1 + 1 + 1 / 2) / 4,
        # pairs: none, none, 6 with 2 interacting, 3 with 1
        "ddi_rate": (2 + 1) / (6 + 3),
        "ddi_rate_visit_mean": (2 / 6 + 1 / 3) / 2,
        "ddi_rate_true": (1 + 2 + 1) / (1 + 6 + 1),
        "mean_n_drugs": (0 + 1 + 4 + 3) / 4,
        "mean_n_drugs_true": (2 + 1 + 4 + 2) / 4,
        "micro_precision": (0 + 1 + 4 + 1) / 8,
        "micro_recall": 6 / 9,
        "micro_f1": 2 * 6 / (8 + 9),
        # bins: .1 (5 entries, 1 true), .2 (1, 1), .3 (1, 0), .4 (1, 1), .7 (1, 0), .8 (5, 5),
        # .9 (2, 1); gap per bin |sum of scores - true ones|
        "ece": (abs(0.5 - 1) + 0.8 + 0.3 + 0.6 + 0.7 + abs(4.0 - 5) + abs(1.8 - 1)) / 16,
    }
    summary = summarise(rows)
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, abs=1e-12), name


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random predictions with ties, empty chosen sets, one-drug and full sets."""
    rng = np.random.default_rng(7)
    n, d = 600, 17
    target = rng.random((n, d)) < rng.random((n, 1))
    target[:5] = np.eye(5, d, dtype=bool)
    target[5:8] = True
    target[:, 3] |= ~target.any(axis=1)
    probs = np.round(np.clip(target * 0.2 + rng.random((n, d)) * 0.8, 0, 1), 2)
    probs[10:15] = 0.1
    probs[5] = 0.9
    patient = np.sort(rng.integers(0, 200, n))
    visit = np.arange(n) - np.searchsorted(patient, patient)
    return target, probs >= 0.5, probs, patient, visit


def by_patient(values: np.ndarray, patient: np.ndarray) -> float:
    return float(pd.Series(values).groupby(patient).mean().mean())


def test_every_metric_is_scikit_learns(large):
    target, selected, probs, patient, visit = large
    summary = summarise(rows_of(target, selected, probs, patient, visit))
    pairs = list(zip(target, selected, strict=True))
    jaccard = np.array([jaccard_score(t, s, zero_division=1.0) for t, s in pairs])
    f1 = np.array([f1_score(t, s, zero_division=1.0) for t, s in pairs])
    precision = np.array(
        [average_precision_score(t, p) for t, p in zip(target, probs, strict=True)]
    )
    flat = target.ravel(), selected.ravel()
    expected = {
        "jaccard_visit_mean": jaccard_score(target, selected, average="samples", zero_division=1.0),
        "f1_visit_mean": f1_score(target, selected, average="samples", zero_division=1.0),
        "prauc_visit_mean": average_precision_score(target, probs, average="samples"),
        "jaccard": by_patient(jaccard, patient),
        "f1": by_patient(f1, patient),
        "prauc": by_patient(precision, patient),
        "jaccard_first": jaccard[visit == 0].mean(),
        "jaccard_later": by_patient(jaccard[visit > 0], patient[visit > 0]),
        "micro_f1": f1_score(target, selected, average="micro"),
        "micro_precision": precision_score(*flat),
        "micro_recall": recall_score(*flat),
    }
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, abs=1e-12), name


def test_f1_is_the_lineages_harmonic_mean(large):
    target, selected, probs, patient, visit = large
    hits = (target & selected).sum(axis=1)
    p = hits / np.maximum(selected.sum(axis=1), 1)
    r = hits / target.sum(axis=1)
    f1 = np.where(p + r > 0, 2 * p * r / np.where(p + r > 0, p + r, 1), 0.0)
    summary = summarise(rows_of(target, selected, probs, patient, visit))
    assert summary["f1"] == pytest.approx(by_patient(f1, patient), abs=1e-12)


def test_severities_add_up_to_the_pairs_of_any_severity(large):
    target, selected, probs, patient, visit = large
    rng = np.random.default_rng(3)
    severity = np.triu(rng.integers(0, 5, (17, 17)), 1)
    severity = severity + severity.T
    rows = visit_rows(
        target, selected, probs, severity >= 3, patient, visit, np.zeros(len(target), int), severity
    )
    summary = summarise(rows)
    grades = [summary[f"ddi_rate_severity_{grade}"] for grade in (1, 2, 3, 4)]
    assert min(grades) > 0
    assert summary["ddi_rate"] == pytest.approx(grades[2] + grades[3], abs=1e-12)
    assert set(bootstrap_intervals(rows, 20)) == set(summary)
    plain = summarise(rows_of(target, selected, probs, patient, visit))
    assert "ddi_rate_severity_4" not in plain
    assert plain.keys() == summary.keys() - {
        f"ddi_rate_severity_{g}{end}" for g in (1, 2, 3, 4) for end in ("", "_true")
    }


def test_a_resample_is_the_metric_of_the_drawn_patients(large):
    """The matrix product gives what copying the drawn patients' rows gives, for every metric."""
    rows = rows_of(*large[:3], *large[3:])
    table = PatientSums.of(rows)
    rng = np.random.default_rng(0)
    draw = rng.choice(len(table.patients), len(table.patients))
    weights = np.bincount(draw, minlength=len(table.patients))[None].astype(float)
    groups = dict(list(rows.groupby("patient")))
    copies = [
        groups[table.patients[place]].assign(patient=number) for number, place in enumerate(draw)
    ]
    expected = summarise(pd.concat(copies, ignore_index=True))
    for name, values in table.values(weights).items():
        assert values[0] == pytest.approx(expected[name], abs=1e-12), name


def test_draws_are_common_to_models_and_do_not_depend_on_blocks(large, monkeypatch):
    rows = rows_of(*large[:3], *large[3:])
    table = PatientSums.of(rows)
    alone = resample(rows, 50)
    twice, mean = resample_together([[table], [table, table]], 50)
    monkeypatch.setattr("medrec.evaluation.bootstrap._CHUNK_ENTRIES", 1)
    one_by_one = resample(rows, 50)
    for name, values in alone.items():
        np.testing.assert_array_equal(values, twice[name])
        np.testing.assert_allclose(values, mean[name], atol=1e-14)
        np.testing.assert_allclose(values, one_by_one[name], atol=1e-12)


def test_a_split_without_a_drawn_patient_has_no_value():
    tables = [
        [PatientSums.of(rows_of([[1, 0, 1, 0]], [[1, 1, 0, 0]], patient=[patient]))]
        for patient in (3, 8)
    ]
    first, second = resample_together(tables, 200)
    both = ~np.isnan(first["ddi_rate"]) & ~np.isnan(second["ddi_rate"])
    assert 60 < both.sum() < 140  # of two draws from two patients, half hold both
    assert (np.isnan(first["jaccard"]) | np.isnan(second["jaccard"]) | both).all()


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="2 of 4 predicted scores"):
        rows_of([[1, 0, 0, 0]], [[1, 0, 0, 0]], [[np.nan, 0.1, np.inf, 0.2]])
