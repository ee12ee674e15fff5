"""Curves of Jaccard against DDI rate, and models compared at equal DDI rates.

A curve is one model at several settings of its trade-off. Which settings are on it is decided on
validation visits: those that no other setting beats in both DDI rate and Jaccard. Their places are
read off the test part, joined by straight lines after a running maximum from the lowest DDI rate
on, so that a curve says "the Jaccard at a DDI rate of at most x". Nothing is said outside the
DDI rates that a curve reaches.

Letters: K settings, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.evaluation.bootstrap import (
    N_RESAMPLES,
    PatientSums,
    percentile_interval,
    require_same_visits,
    resample_together,
)
from medrec.evaluation.metrics import has_severity, summarise
from quantum.base import InputError

COVERED = 0.95
"""Least share of resamples that have to reach a DDI rate for an interval to be given."""
DEFAULT_PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the range that all curves cover; its ends are reached by half of the resamples only."""

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """One point of a curve: what was set, and per-visit rows of one run per seed.

    Attributes
    ----------
    value : float
        DDI target of a training, or strength of the penalty at decoding.
    validation, test : tuple of pandas.DataFrame
        See `medrec.evaluation.metrics.visit_rows`.
    runs : tuple of str
        Names of the runs.
    thresholds : tuple of float or None
    """

    value: float
    validation: tuple[pd.DataFrame, ...]
    test: tuple[pd.DataFrame, ...]
    runs: tuple[str, ...] = ()
    thresholds: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Curve:
    """A model's settings; ``kind`` says what was varied."""

    name: str
    kind: str
    settings: tuple[Setting, ...]


def penalised_logits(logits: Float, ddi: Float, strength: float) -> Float:
    """Logits z - strength * A p, p = sigmoid(z): a drug loses by its probable interactions.

    Parameters
    ----------
    logits : ndarray (n, D)
    ddi : ndarray (D, D)
        Interactions or their penalties, zero diagonal.
    strength : float
        0 leaves the logits as they are.
    """
    if strength == 0:
        return logits
    probs = 0.5 * (1.0 + np.tanh(0.5 * logits))  # the logistic function without overflow
    return logits - strength * (probs @ ddi)


def on_front(ddi: npt.ArrayLike, jaccard: npt.ArrayLike) -> Bool:
    """Settings that no other one beats: lower or equal DDI rate and a higher Jaccard, or the same.

    Of settings with equal values the first is kept.

    Parameters
    ----------
    ddi, jaccard : array_like (K,)
    """
    x, y = np.asarray(ddi, dtype=np.float64), np.asarray(jaccard, dtype=np.float64)
    kept = np.zeros(len(x), dtype=bool)
    best = -np.inf
    for k in np.lexsort((np.arange(len(x)), -y, x)):
        if y[k] > best:
            kept[k], best = True, y[k]
    return kept


def jaccard_at(ddi: Float, jaccard: Float, at: float) -> Float:
    """Jaccard of a curve at a DDI rate.

    Parameters
    ----------
    ddi, jaccard : ndarray (K,) or (K, R)
        Points in any order; a column is a curve.
    at : float

    Returns
    -------
    ndarray () or (R,)
        NaN where the curve does not reach the rate; it is never extrapolated.
    """
    order = np.argsort(ddi, axis=0, kind="stable")
    x = np.take_along_axis(ddi, order, axis=0)
    y = np.maximum.accumulate(np.take_along_axis(jaccard, order, axis=0), axis=0)
    last = len(x) - 1
    k = (x <= at).sum(axis=0) - 1
    left, right = (np.clip(i, 0, last)[None] for i in (k, k + 1))
    x0, x1, y0, y1 = (
        np.take_along_axis(values, i, axis=0)[0] for values in (x, y) for i in (left, right)
    )
    gap = x1 - x0
    share = np.where(gap > 0, (at - x0) / np.where(gap > 0, gap, 1.0), 0.0)
    covered = (k >= 0) & (at <= x[-1])
    return np.where(covered, y0 + share * (y1 - y0), np.nan)


@dataclass(frozen=True)
class Frontier:
    """Curves, and the models at equal DDI rates.

    Attributes
    ----------
    points : pandas.DataFrame
        One row per setting: ``curve``, ``kind``, ``setting``, ``on_front``, ``jaccard``,
        ``ddi_rate`` (of one grade, if asked for) and ``mean_n_drugs`` of the test part with
        ``_low`` and ``_high``, the same of validation as ``val_...``, ``thresholds``, ``runs``.
    matched : pandas.DataFrame
        One row per DDI rate and curve: ``ddi_rate``, ``curve``, ``jaccard`` with ``_low`` and
        ``_high``, ``difference`` to the reference (paired) with ``_low`` and ``_high``,
        ``share_covered`` of the resamples. Missing where a curve does not reach the rate.
    reference : str
        The curve that differences refer to.
    shared : tuple of float or None
        DDI rates that all curves reach; None if there are none.
    """

    points: pd.DataFrame
    matched: pd.DataFrame
    reference: str
    shared: tuple[float, float] | None


def build_frontier(
    curves: Sequence[Curve],
    at: Sequence[float] = (),
    reference: str | None = None,
    grade: int | None = None,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Frontier:
    """Intervals of every setting, and every curve against the reference at equal DDI rates.

    All settings are resampled together: differences are paired over the same test patients.

    Parameters
    ----------
    at : sequence of float
        DDI rates to compare at; by default five within the range that all curves reach.
    reference : str, optional
        Name of a curve; the first by default.
    grade : int, optional
        Take the rate of pairs of this severity in place of the DDI rate.

    Raises
    ------
    InputError
        If there is no curve, a name is taken twice, the reference is none of the curves, settings
        score different visits, or a grade is asked for and interactions have none.
    """
    base = _reference(curves, reference)
    rate = "ddi_rate" if grade is None else f"ddi_rate_severity_{grade}"
    metrics = {"jaccard": "jaccard", "ddi_rate": rate, "mean_n_drugs": "mean_n_drugs"}
    tables = [setting.test for curve in curves for setting in curve.settings]
    for rows in (table for cell in tables for table in cell):
        require_same_visits(rows, tables[0][0])
        if grade is not None and not has_severity(rows):
            raise InputError(
                f"severity {grade} is asked for and the interactions have no grades (TWOSIDES has "
                "none); expected a cohort with ddi.source: ansm"
            )
    sums = [[PatientSums.of(rows, list(metrics.values())) for rows in cell] for cell in tables]
    drawn = resample_together(sums, n_resamples, seed)
    draws = iter([{name: found[key] for name, key in metrics.items()} for found in drawn])
    places: list[_Places] = []
    points: list[dict[str, Any]] = []
    for curve in curves:
        own = [next(draws) for _ in curve.settings]
        rows_of_curve = _point_rows(curve, own, metrics)
        kept = [k for k, row in enumerate(rows_of_curve) if row["on_front"]]
        places.append(
            _Places(
                np.array([rows_of_curve[k]["ddi_rate"] for k in kept]),
                np.array([rows_of_curve[k]["jaccard"] for k in kept]),
                np.stack([own[k]["ddi_rate"] for k in kept]),
                np.stack([own[k]["jaccard"] for k in kept]),
            )
        )
        points += rows_of_curve
    shared = shared_range([place.ddi for place in places])
    wanted = list(at) or _default_rates(shared)
    titles = [curve.name for curve in curves]
    matched = [row for rate in wanted for row in _matched_rows(rate, titles, places, base)]
    return Frontier(pd.DataFrame(points), pd.DataFrame(matched), titles[base], shared)


@dataclass(frozen=True)
class _Places:
    """A curve's settings on the front: values (K,) and resampled values (K, R)."""

    ddi: Float
    jaccard: Float
    ddi_draws: Float
    jaccard_draws: Float


def _reference(curves: Sequence[Curve], wanted: str | None) -> int:
    names = [curve.name for curve in curves]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"{len(names)} curves with {len(set(names))} names; expected at least one, and every "
            "name once"
        )
    if wanted is None:
        return 0
    if wanted not in names:
        raise InputError(f"reference '{wanted}' is none of the curves: {', '.join(names)}")
    return names.index(wanted)


def _point_rows(
    curve: Curve, draws: Sequence[dict[str, Float]], metrics: dict[str, str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for setting, drawn in zip(curve.settings, draws, strict=True):
        parts = {"": setting.test, "val_": setting.validation}
        row: dict[str, Any] = {"curve": curve.name, "kind": curve.kind, "setting": setting.value}
        for prefix, tables in parts.items():
            summaries = [summarise(rows) for rows in tables]
            for name, key in metrics.items():
                row[prefix + name] = float(np.mean([summary[key] for summary in summaries]))
        for metric in metrics:
            row[f"{metric}_low"], row[f"{metric}_high"] = percentile_interval(drawn[metric])
        row["thresholds"] = ", ".join("-" if t is None else f"{t:.3g}" for t in setting.thresholds)
        row["runs"] = ", ".join(setting.runs)
        rows.append(row)
    front = on_front([row["val_ddi_rate"] for row in rows], [row["val_jaccard"] for row in rows])
    return [row | {"on_front": bool(kept)} for row, kept in zip(rows, front, strict=True)]


def shared_range(ddi: Sequence[Float]) -> tuple[float, float] | None:
    """DDI rates that every curve reaches; None if there are none."""
    low, high = max(float(x.min()) for x in ddi), min(float(x.max()) for x in ddi)
    return (low, high) if low < high else None


def _default_rates(shared: tuple[float, float] | None) -> list[float]:
    if shared is None:
        return []
    low, high = shared
    return [low + share * (high - low) for share in DEFAULT_PLACES]


def _matched_rows(
    rate: float, titles: Sequence[str], places: Sequence[_Places], base: int
) -> list[dict[str, Any]]:
    values = [float(jaccard_at(p.ddi, p.jaccard, rate)) for p in places]
    draws = [jaccard_at(p.ddi_draws, p.jaccard_draws, rate) for p in places]
    rows = []
    for title, value, drawn in zip(titles, values, draws, strict=True):
        difference = drawn - draws[base]
        rows.append(
            {
                "ddi_rate": rate,
                "curve": title,
                "jaccard": value,
                **_interval("jaccard", value, drawn),
                "difference": value - values[base],
                **_interval("difference", value - values[base], difference),
                "share_covered": float((~np.isnan(difference)).mean()),
            }
        )
    return rows


def _interval(name: str, value: float, draws: Float) -> dict[str, float]:
    """Interval, or none where the value is missing or too many resamples miss the DDI rate."""
    usable = not np.isnan(value) and (~np.isnan(draws)).mean() >= COVERED
    low, high = percentile_interval(draws) if usable else (float("nan"), float("nan"))
    return {f"{name}_low": low, f"{name}_high": high}
