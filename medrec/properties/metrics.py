"""Errors of predicted properties, their intervals, and paired differences between models.

Molecules are resampled. A metric on a draw depends on how often each molecule was drawn alone, so
that a thousand draws are a few matrix products, and all targets and models see the same draws.

Letters: N molecules, T targets, R resamples. Labels and predictions are (N, T); NaN labels are
missing and count nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from medrec.evaluation.bootstrap import patient_weights, percentile_interval

Float = npt.NDArray[np.float64]
Metric = Literal["mae", "rmse", "roc_auc"]
N_RESAMPLES = 1_000
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
_NOISE = 1e-12
"""Relative to the metrics: a smaller spread of differences is rounding."""


def mae(labels: Float, predictions: Float) -> Float:
    """Mean absolute error of every target (T,); NaN without a label."""
    return measure("mae", labels, predictions)


def rmse(labels: Float, predictions: Float) -> Float:
    """Root of the mean squared error of every target (T,); NaN without a label."""
    return measure("rmse", labels, predictions)


def roc_auc(labels: Float, scores: Float) -> Float:
    """Area under the ROC curve of every target (T,), ties counted half.

    NaN where a target does not have both classes: such targets are left out of averages, as is
    usual on MoleculeNet (Hu et al., ICLR 2020).
    """
    return measure("roc_auc", labels, scores)


def measure(metric: Metric, labels: Float, predictions: Float) -> Float:
    """One metric of every target (T,)."""
    everyone = np.ones((1, len(labels)))
    return _weighted(metric, labels, predictions)(everyone)[0]


def with_mean(values: Float, scale: Float | None = None) -> Float:
    """Append the mean over the targets that have a value: (..., T) to (..., T + 1).

    Parameters
    ----------
    scale : ndarray (T,), optional
        What each target is divided by in the mean, such as its standard deviation.
    """
    scaled = values if scale is None else values / scale
    known = ~np.isnan(scaled)
    total = np.where(known, scaled, 0.0).sum(axis=-1)
    count = known.sum(axis=-1)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return np.concatenate([values, mean[..., None]], axis=-1)


def resample(
    metric: Metric,
    labels: Float,
    predictions: Sequence[Float],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Float:
    """A metric of every target on resamples of the molecules, mean over some runs (R, T).

    Parameters
    ----------
    predictions : sequence of ndarray (N, T)
        Runs of one model, on the same molecules. The draws follow from N and ``seed``, so that
        models called one after another see the same.
    """
    runs = [_weighted(metric, labels, item) for item in predictions]
    blocks = [
        np.mean([run(weights) for run in runs], axis=0)
        for weights in patient_weights(len(labels), n_resamples, seed)
    ]
    return np.concatenate(blocks)


def intervals(draws: Float, level: float = 0.95) -> Float:
    """Percentile intervals (T, 2) of resampled values (R, T)."""
    return np.array([percentile_interval(column, level) for column in draws.T]).reshape(-1, 2)


class Difference(NamedTuple):
    """Difference of a metric between two models on the same molecules, per target and at large.

    Attributes
    ----------
    value, low, high : ndarray (T + 1,)
        Ours minus theirs with its percentile interval; the last entry is the mean over the targets.
    p : ndarray (T + 1,)
        Two-sided, by the normal approximation with the standard error of the resamples; 1 where the
        two models do not differ, NaN where there is nothing to test.
    """

    value: Float
    low: Float
    high: Float
    p: Float


def paired_difference(
    metric: Metric,
    labels: Float,
    ours: Sequence[Float],
    theirs: Sequence[Float],
    *,
    scale: Float | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compare two models, each by the mean over its runs, on the same resamples of the molecules.

    Parameters
    ----------
    ours, theirs : sequence of ndarray (N, T)
        Predictions of every run.
    scale : ndarray (T,), optional
        What each target is divided by in the mean over the targets, such as its standard deviation;
        1 by default.
    """
    both = []
    for runs in (ours, theirs):
        values = np.mean([measure(metric, labels, item) for item in runs], axis=0)
        draws = resample(metric, labels, runs, n_resamples, seed)
        both.append(with_mean(np.vstack([values, draws]), scale))
    gap, size = both[0] - both[1], np.abs(both[0][0])
    bounds = intervals(gap[1:], level)
    return Difference(gap[0], bounds[:, 0], bounds[:, 1], _p_values(gap[0], gap[1:], size))


def _p_values(value: Float, draws: Float, size: Float) -> Float:
    usable = ~np.isnan(draws)
    n = np.maximum(usable.sum(axis=0), 2)
    centre = np.where(usable, draws, 0.0).sum(axis=0) / n
    error = np.sqrt((np.where(usable, draws - centre, 0.0) ** 2).sum(axis=0) / (n - 1))
    smallest = _NOISE * np.maximum(size, _NOISE)
    moved = error > smallest
    p = np.full(value.shape, np.nan)
    p[moved] = 2.0 * norm.sf(np.abs(value[moved]) / error[moved])
    p[np.abs(value) <= smallest] = 1.0
    return p


# --------------------------------------------------------------------------- weighted molecules


def _weighted(metric: Metric, labels: Float, predictions: Float) -> Callable[[Float], Float]:
    """Function from how often each molecule counts (R, N) to the metric of every target (R, T)."""
    if metric == "roc_auc":
        columns = [_weighted_auc(*pair) for pair in zip(labels.T, predictions.T, strict=True)]

        def of_columns(weights: Float) -> Float:
            turned = np.ascontiguousarray(weights.T)
            return np.column_stack([column(turned) for column in columns])

        return of_columns
    present = ~np.isnan(labels)
    gap = np.where(present, np.abs(predictions - np.where(present, labels, 0.0)), 0.0)
    sums = gap if metric == "mae" else gap**2
    count = present.astype(np.float64)

    def of(weights: Float) -> Float:
        counts = weights @ count
        means = np.divide(
            weights @ sums, counts, out=np.full_like(counts, np.nan), where=counts > 0
        )
        return means if metric == "mae" else np.sqrt(means)

    return of


def _weighted_auc(labels: Float, scores: Float) -> Callable[[Float], Float]:
    """Area under the ROC curve of one target as a function of weights (N, R).

    The weighted share of pairs of a positive and a negative in which the positive scores higher.
    With sorted negatives, those below and those not above a score are two entries of a running sum.
    """
    up, down = np.flatnonzero(labels > 0.5), np.flatnonzero(labels <= 0.5)
    down = down[np.argsort(scores[down])]
    below, not_above = (np.searchsorted(scores[down], scores[up], side) for side in _SIDES)

    def of(weights: Float) -> Float:
        positives, sums = weights[up], np.zeros((len(down) + 1, weights.shape[1]))
        np.cumsum(weights[down], axis=0, out=sums[1:])
        wins = 0.5 * np.einsum("pr,pr->r", positives, sums[below] + sums[not_above])
        pairs = positives.sum(axis=0) * sums[-1]
        return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    return of
