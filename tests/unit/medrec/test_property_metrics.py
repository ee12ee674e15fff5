"""Metrics of property prediction against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from sklearn.metrics import roc_auc_score as sklearn_auc

from medrec.evaluation.bootstrap import patient_weights
from medrec.properties.metrics import (
    intervals,
    mae,
    measure,
    paired_difference,
    resample,
    rmse,
    roc_auc,
    with_mean,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def _labels(rng: np.random.Generator, n: int = 60, t: int = 4) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.normal(size=(n, t))
    labels[rng.random((n, t)) < 0.3] = np.nan
    return labels, rng.normal(size=(n, t))


def _classes(rng: np.random.Generator, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Four targets: plain, many ties, one class alone, no label."""
    labels = (rng.random((n, 4)) < 0.3).astype(float)
    scores = rng.random((n, 4)) + 0.3 * labels
    scores[:, 1] = scores[:, 1].round(1)
    labels[rng.random((n, 4)) < 0.2] = np.nan
    labels[:, 2] = np.where(np.isnan(labels[:, 2]), np.nan, 0.0)
    labels[:, 3] = np.nan
    return labels, scores


def test_errors_leave_missing_labels_out(rng: np.random.Generator) -> None:
    labels, predictions = _labels(rng)
    for column in range(labels.shape[1]):
        known = ~np.isnan(labels[:, column])
        pair = labels[known, column], predictions[known, column]
        assert mae(labels, predictions)[column] == pytest.approx(mean_absolute_error(*pair))
        assert rmse(labels, predictions)[column] == pytest.approx(root_mean_squared_error(*pair))
    labels[:, 1] = np.nan
    assert np.isnan(mae(labels, predictions)).tolist() == [False, True, False, False]


def test_area_under_the_curve_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    labels, scores = _classes(rng)
    found = roc_auc(labels, scores)
    for column in (0, 1):
        known = ~np.isnan(labels[:, column])
        expected = sklearn_auc(labels[known, column], scores[known, column])
        assert found[column] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[2:]).all()
    values = with_mean(found)
    assert values[-1] == pytest.approx(found[:2].mean())
    assert np.isnan(with_mean(found[2:])[-1])


def test_area_of_one_pair() -> None:
    labels = np.array([[1.0], [0.0]])
    for scores, expected in (([0.9, 0.1], 1.0), ([0.1, 0.9], 0.0), ([0.5, 0.5], 0.5)):
        assert roc_auc(labels, np.array(scores)[:, None])[0] == expected


@pytest.mark.parametrize("metric", ["mae", "rmse", "roc_auc"])
def test_resamples_equal_repeating_the_molecules(metric, rng: np.random.Generator) -> None:
    labels, predictions = _classes(rng) if metric == "roc_auc" else _labels(rng)
    draws = resample(metric, labels, [predictions], n_resamples=20, seed=5)
    weights = np.concatenate(list(patient_weights(len(labels), 20, 5))).astype(int)
    for row, times in enumerate(weights):
        rows = np.repeat(np.arange(len(labels)), times)
        expected = measure(metric, labels[rows], predictions[rows])
        np.testing.assert_allclose(draws[row], expected, atol=1e-12)


def test_interval_covers_the_truth_about_as_often_as_it_says(rng: np.random.Generator) -> None:
    truth, hits = np.sqrt(2 / np.pi), 0
    for trial in range(100):
        labels = rng.normal(size=(80, 1))
        draws = resample("mae", labels, [np.zeros((80, 1))], n_resamples=300, seed=trial)
        low, high = intervals(draws)[0]
        hits += low < truth < high
    assert 88 <= hits <= 99


def test_a_model_does_not_differ_from_itself(rng: np.random.Generator) -> None:
    for metric, (labels, scores) in (("mae", _labels(rng)), ("roc_auc", _classes(rng))):
        found = paired_difference(metric, labels, [scores], [scores], n_resamples=50)
        known = ~np.isnan(found.value)
        assert known[[0, 1, -1]].all()
        for part in found[:3]:
            assert (part[known] == 0).all()
        assert (found.p[known] == 1).all()
        assert np.isnan(found.p[~known]).all()


def test_difference_is_ours_minus_theirs_and_pairing_narrows_it(rng: np.random.Generator) -> None:
    labels = rng.normal(size=(200, 2)) * [1.0, 10.0]
    hard = rng.exponential(size=(200, 2)) * [1.0, 10.0]  # errors that both models share
    ours, theirs = labels + hard, labels + hard + [0.1, 1.0] * rng.normal(1.0, 0.1, size=(200, 2))
    scale = np.array([1.0, 10.0])
    found = paired_difference("mae", labels, [ours], [theirs], scale=scale)
    np.testing.assert_allclose(found.value[:2], mae(labels, ours) - mae(labels, theirs))
    assert found.value[2] == pytest.approx((found.value[:2] / scale).mean())
    assert (found.value < 0).all()
    assert (found.low < found.value).all()
    assert (found.value < found.high).all()
    assert (found.high < 0).all()
    assert (found.p < 1e-6).all()
    alone = intervals(resample("mae", labels, [ours]))
    assert (found.high[:2] - found.low[:2] < 0.2 * (alone[:, 1] - alone[:, 0])).all()


def test_p_values_of_equal_models_are_spread_out(rng: np.random.Generator) -> None:
    labels = np.zeros((100, 200))
    ours, theirs = rng.normal(size=(2, 100, 200))
    p = paired_difference("mae", labels, [ours], [theirs], n_resamples=300).p[:-1]
    assert 0.01 <= (p < 0.05).mean() <= 0.1
    assert 0.35 <= (p < 0.5).mean() <= 0.65


def test_runs_of_a_model_are_averaged_as_metrics_not_as_predictions() -> None:
    labels = np.zeros((30, 1))
    up, down = np.ones((30, 1)), -np.ones((30, 1))
    assert resample("mae", labels, [up, down], n_resamples=5).tolist() == [[1.0]] * 5


def test_a_draw_that_loses_a_class_drops_out_of_its_target_alone() -> None:
    labels = np.zeros((40, 2))
    labels[0, 0], labels[::2, 1] = 1.0, 1.0
    scores = np.random.default_rng(0).random((40, 2))
    draws = resample("roc_auc", labels, [scores], n_resamples=200)
    lost = np.isnan(draws[:, 0])
    assert 0.2 < lost.mean() < 0.55  # (1 - 1/40)^40 = 0.36
    assert not np.isnan(with_mean(draws)).any(axis=0)[[1, 2]].any()
    assert np.isfinite(intervals(draws)).all()


def test_a_single_molecule_has_no_test() -> None:
    found = paired_difference(
        "mae", np.zeros((1, 1)), [np.ones((1, 1))], [np.zeros((1, 1))], n_resamples=10
    )
    assert found.value.tolist() == [1.0, 1.0]
    assert np.isnan(found.p).all()
