"""Intervals from stored rows: patients are resampled, models are compared on the same resamples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.evaluation.metrics import divide, empty_value, ratios, summarise
from quantum.base import InputError

N_RESAMPLES = 10_000
_CHUNK = 1_000


def _weights(n_patients: int, n_resamples: int, seed: int) -> list[npt.NDArray[np.float64]]:
    """How often each patient is drawn, in chunks of resamples; the same for the same arguments."""
    rng = np.random.default_rng([seed, n_patients])
    share = np.full(n_patients, 1.0 / n_patients)
    sizes = [min(_CHUNK, n_resamples - start) for start in range(0, n_resamples, _CHUNK)]
    return [rng.multinomial(n_patients, share, size=size).astype(float) for size in sizes]


def resample(
    rows: pd.DataFrame, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> dict[str, npt.NDArray[np.float64]]:
    """Every metric on every resample of the patients.

    Returns
    -------
    dict of str to ndarray (n_resamples,)
    """
    parts = ratios(rows)
    n_patients = rows["patient"].nunique()
    values: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in parts}
    for weights in _weights(n_patients, n_resamples, seed):
        for name, (num, den) in parts.items():
            values[name].append(divide(weights @ num, weights @ den, empty_value(name)))
    return {name: np.concatenate(chunks) for name, chunks in values.items()}


def bootstrap_intervals(
    rows: pd.DataFrame, n_resamples: int = N_RESAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of every metric over resampled patients.

    With one patient there is nothing to resample and low = high.
    """
    tails = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
    intervals = {}
    for name, values in resample(rows, n_resamples, seed).items():
        usable = values[~np.isnan(values)]
        low, high = np.percentile(usable, tails) if len(usable) else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def paired_bootstrap(
    rows: pd.DataFrame,
    reference: pd.DataFrame,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, float]]:
    """Difference ``rows - reference`` of every metric, on the same resamples of the same patients.

    Raises
    ------
    InputError
        If the two do not score the same visits.
    """
    keys = [
        frame[["patient", "visit"]].sort_values(["patient", "visit"]).to_numpy()
        for frame in (rows, reference)
    ]
    if not np.array_equal(keys[0], keys[1]):
        raise InputError(
            f"runs score different visits ({len(keys[0])} and {len(keys[1])}); expected the same "
            "cohort, split and part"
        )
    ours, theirs = (resample(frame, n_resamples, seed) for frame in (rows, reference))
    points = summarise(rows), summarise(reference)
    tails = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
    result = {}
    for name in ours:
        gaps = ours[name] - theirs[name]
        gaps = gaps[~np.isnan(gaps)]
        low, high = np.percentile(gaps, tails) if len(gaps) else (np.nan, np.nan)
        result[name] = {
            "difference": points[0][name] - points[1][name],
            "low": float(low),
            "high": float(high),
        }
    return result


def legacy_bootstrap(rows: pd.DataFrame, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over ten draws of 80 % of the patients with replacement.

    What the MoleRec line prints as ``±``; the draws overlap, so it is not a confidence interval.
    """
    parts = ratios(rows)
    n_patients = rows["patient"].nunique()
    rng = np.random.RandomState(seed)
    draws = [rng.choice(n_patients, round(0.8 * n_patients), replace=True) for _ in range(10)]
    result = {}
    for name, (num, den) in parts.items():
        values = [float(divide(num[d].sum(), den[d].sum(), empty_value(name))) for d in draws]
        result[name] = (float(np.mean(values)), float(np.std(values)))
    return result
