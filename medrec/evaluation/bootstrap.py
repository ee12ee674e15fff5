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

    Raises
    ------
    InputError
        If there is no visit to score.
    """
    n_patients = _count_patients(rows)
    parts = ratios(rows)
    values: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in parts}
    for weights in _weights(n_patients, n_resamples, seed):
        for name, (num, den) in parts.items():
            values[name].append(divide(weights @ num, weights @ den, empty_value(name)))
    return {name: np.concatenate(chunks) for name, chunks in values.items()}


def _count_patients(rows: pd.DataFrame) -> int:
    n_patients = int(rows["patient"].nunique())
    if n_patients == 0:
        raise InputError("no visit was scored, so there is nothing to resample; expected 1 or more")
    return n_patients


def percentile_interval(
    values: npt.NDArray[np.float64], level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of resampled values; values that are not numbers do not count."""
    usable = values[~np.isnan(values)]
    if not len(usable):
        return float("nan"), float("nan")
    low, high = np.percentile(usable, [100 * (1 - level) / 2, 100 * (1 + level) / 2])
    return float(low), float(high)


def bootstrap_intervals(
    rows: pd.DataFrame, n_resamples: int = N_RESAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of every metric over resampled patients.

    With one patient there is nothing to resample and low = high.
    """
    values = resample(rows, n_resamples, seed)
    return {name: percentile_interval(found, level) for name, found in values.items()}


def require_same_visits(rows: pd.DataFrame, reference: pd.DataFrame) -> None:
    """Refuse two tables of rows that do not score the same visits.

    Raises
    ------
    InputError
        With both counts.
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
    require_same_visits(rows, reference)
    ours, theirs = (resample(frame, n_resamples, seed) for frame in (rows, reference))
    points = summarise(rows), summarise(reference)
    result = {}
    for name in ours:
        low, high = percentile_interval(ours[name] - theirs[name], level)
        result[name] = {"difference": points[0][name] - points[1][name], "low": low, "high": high}
    return result


def legacy_bootstrap(rows: pd.DataFrame, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over ten draws of 80 % of the patients with replacement.

    What the MoleRec line prints as ``±``; the draws overlap, so it is not a confidence interval.
    """
    n_patients = _count_patients(rows)
    parts = ratios(rows)
    rng = np.random.RandomState(seed)
    draws = [rng.choice(n_patients, round(0.8 * n_patients), replace=True) for _ in range(10)]
    result = {}
    for name, (num, den) in parts.items():
        values = [float(divide(num[d].sum(), den[d].sum(), empty_value(name))) for d in draws]
        result[name] = (float(np.mean(values)), float(np.std(values)))
    return result
