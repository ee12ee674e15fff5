"""Intervals from stored rows: patients are resampled, models are compared on the same resamples.

A metric on any draw of patients is a quotient of weighted sums, so all metrics of all models on
thousands of draws are a few matrix products. The draw is of patients, of all splits that take part
together: a patient who is in the test part of two splits is drawn for both or for neither.

Letters: R resamples, U patients, M metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.evaluation.metrics import (
    calibration_error,
    calibration_sums,
    divide,
    empty_value,
    ratios,
    summarise,
)
from quantum.base import InputError

Float = npt.NDArray[np.float64]
N_RESAMPLES = 10_000
_CHUNK_ENTRIES = 1_000_000
"""Entries of a block of weights, resamples times patients: 8 MB."""


@dataclass(frozen=True)
class PatientSums:
    """What resampling needs of one table of rows, per patient.

    Parameters
    ----------
    patients : ndarray (U,)
        Positions, ascending.
    names : tuple of str
        The M metrics; ``ece`` comes beside them.
    sums : ndarray (U, 2 M + 20)
        Numerators, denominators and calibration sums.
    """

    patients: npt.NDArray[np.int64]
    names: tuple[str, ...]
    sums: Float

    @classmethod
    def of(cls, rows: pd.DataFrame, names: Sequence[str] | None = None) -> PatientSums:
        """Sum the rows of each patient.

        Parameters
        ----------
        names : sequence of str, optional
            Metrics to keep; all by default. ``ece`` is always there.

        Raises
        ------
        InputError
            If there is no visit to score.
        """
        patients, index = np.unique(rows["patient"].to_numpy(np.int64), return_inverse=True)
        if not len(patients):
            raise InputError(
                "no visit was scored, so there is nothing to resample; expected 1 or more"
            )
        parts = ratios(rows)
        if names is not None:
            parts = {name: part for name, part in parts.items() if name in names}
        order = np.argsort(index, kind="stable")
        starts = np.searchsorted(index[order], np.arange(len(patients)))
        calibration = np.add.reduceat(calibration_sums(rows)[order], starts, axis=0)
        columns = [*(n for n, _ in parts.values()), *(d for _, d in parts.values())]
        sums = np.concatenate([np.column_stack(columns), calibration], axis=1)
        return cls(patients, tuple(parts), sums)

    def values(self, weights: Float) -> dict[str, Float]:
        """Every metric for every row of ``weights`` (R, U)."""
        found = weights @ self.sums
        m = len(self.names)
        result = {
            name: divide(found[:, i], found[:, m + i], empty_value(name))
            for i, name in enumerate(self.names)
        }
        result["ece"] = calibration_error(found[:, 2 * m :])
        nobody = weights.sum(axis=1) == 0  # a draw may leave a small split without a patient
        for values in result.values() if nobody.any() else ():
            values[nobody] = np.nan
        return result


def patient_weights(n_patients: int, n_resamples: int, seed: int) -> Iterator[Float]:
    """How often each patient is drawn, in blocks of resamples; the same for the same arguments."""
    rng = np.random.default_rng([seed, n_patients])
    share = np.full(n_patients, 1.0 / n_patients)
    block = max(1, _CHUNK_ENTRIES // n_patients)
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        yield rng.multinomial(n_patients, share, size=size).astype(np.float64)


def resample_together(
    cells: Sequence[Sequence[PatientSums]], n_resamples: int = N_RESAMPLES, seed: int = 0
) -> list[dict[str, Float]]:
    """Every metric of several tables on the same resamples of the union of their patients.

    Tables of one split have the same patients, and get the same draws; tables of other splits get
    the draws of theirs, so that the overlap of the splits' test parts is in the intervals.

    Parameters
    ----------
    cells : sequence of sequence of PatientSums
        Runs of one model on one split, which have the same patients.

    Returns
    -------
    list of dict of str to ndarray (R,)
        Mean over the runs of each cell; NaN where a draw holds none of its patients.
    """
    patients = [cell[0].patients for cell in cells]
    union = np.unique(np.concatenate(patients))
    places = [np.searchsorted(union, own) for own in patients]
    blocks: list[list[dict[str, Float]]] = [[] for _ in cells]
    for weights in patient_weights(len(union), n_resamples, seed):
        for cell, place, found in zip(cells, places, blocks, strict=True):
            own = weights if len(place) == len(union) else weights[:, place]
            found.append(_mean_over_runs([table.values(own) for table in cell]))
    return [
        {name: np.concatenate([block[name] for block in found]) for name in found[0]}
        for found in blocks
    ]


def _mean_over_runs(values: list[dict[str, Float]]) -> dict[str, Float]:
    if len(values) == 1:
        return values[0]
    common = [name for name in values[0] if all(name in item for item in values)]
    return {name: np.mean([item[name] for item in values], axis=0) for name in common}


def resample(rows: pd.DataFrame, n_resamples: int = N_RESAMPLES, seed: int = 0) -> dict[str, Float]:
    """Every metric on every resample of the patients.

    Returns
    -------
    dict of str to ndarray (R,)

    Raises
    ------
    InputError
        If there is no visit to score.
    """
    return resample_together([[PatientSums.of(rows)]], n_resamples, seed)[0]


def percentile_interval(values: Float, level: float = 0.95) -> tuple[float, float]:
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
    keys = []
    for frame in (rows, reference):
        patient, visit = (frame[name].to_numpy(np.int64) for name in ("patient", "visit"))
        order = np.lexsort((visit, patient))
        keys.append(np.stack([patient[order], visit[order]]))
    if not np.array_equal(keys[0], keys[1]):
        raise InputError(
            f"runs score different visits ({keys[0].shape[1]} and {keys[1].shape[1]}); expected "
            "the same cohort, split and part"
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
    ours, theirs = resample_together(
        [[PatientSums.of(rows)], [PatientSums.of(reference)]], n_resamples, seed
    )
    points = summarise(rows), summarise(reference)
    result = {}
    for name in [name for name in ours if name in theirs]:
        low, high = percentile_interval(ours[name] - theirs[name], level)
        result[name] = {"difference": points[0][name] - points[1][name], "low": low, "high": high}
    return result


def legacy_bootstrap(
    rows: pd.DataFrame, seed: int = 0, replace: bool = True
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over ten draws of 80 % of the patients.

    What the MoleRec line prints as ``±``; the draws overlap, so it is not a confidence interval.

    Parameters
    ----------
    replace : bool
        With replacement, as SafeDrug and MoleRec draw; COGNet draws without.

    Raises
    ------
    InputError
        If there is no visit to score.
    """
    table = PatientSums.of(rows)
    n_patients, rng = len(table.patients), np.random.RandomState(seed)
    n_drawn = max(1, round(0.8 * n_patients))
    draws = [rng.choice(n_patients, n_drawn, replace=replace) for _ in range(10)]
    weights = np.stack([np.bincount(draw, minlength=n_patients) for draw in draws]).astype(float)
    values = table.values(weights)
    return {name: (float(found.mean()), float(found.std())) for name, found in values.items()}
