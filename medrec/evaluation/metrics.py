"""Metrics of medication recommendation, pure numpy.

One row per visit is computed once; every mean, interval and comparison is a function of rows. The
field's Jaccard, F1 and PRAUC are averaged over the visits of a patient, then over patients; its DDI
rate is pooled over drug pairs. Other averages have other names.

Letters: n visits, D drugs, U patients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

N_BINS = 10
Rows = pd.DataFrame
Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]


def average_precision(target: Bool, scores: Float) -> Float:
    """Average precision of each row: the step sum over distinct scores, as scikit-learn has it.

    Parameters
    ----------
    target : ndarray (n, D) of bool
    scores : ndarray (n, D)

    Returns
    -------
    ndarray (n,)
        0 for a row without a positive.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(target, order, axis=1).astype(float)
    sorted_scores = np.take_along_axis(scores, order, axis=1)
    n, d = target.shape
    precision = ranked.cumsum(axis=1) / np.arange(1, d + 1)
    # ties share the precision at the end of their group
    is_end = np.ones((n, d), dtype=bool)
    is_end[:, :-1] = sorted_scores[:, :-1] != sorted_scores[:, 1:]
    ends = np.where(is_end, np.arange(d), d - 1)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    at_end = np.take_along_axis(precision, ends, axis=1)
    positives = ranked.sum(axis=1)
    return (ranked * at_end).sum(axis=1) / np.maximum(positives, 1.0)


def count_pairs(selected: Bool, ddi: npt.NDArray[Any]) -> tuple[Float, Float]:
    """Interacting pairs and all pairs within each row's set.

    Parameters
    ----------
    selected : ndarray (n, D) of bool
    ddi : ndarray (D, D)
        0/1, symmetric, zero diagonal.
    """
    chosen = selected.astype(float)
    interacting = ((chosen @ ddi.astype(float)) * chosen).sum(axis=1) / 2.0
    size = chosen.sum(axis=1)
    return interacting, size * (size - 1.0) / 2.0


def visit_rows(
    target: Bool,
    selected: Bool,
    probs: Float,
    ddi: npt.NDArray[Any],
    patient: npt.NDArray[np.int64],
    visit: npt.NDArray[np.int64],
    n_unseen: npt.NDArray[np.int64],
) -> Rows:
    """One row of counts per visit.

    Parameters
    ----------
    target, selected : ndarray (n, D) of bool
        True and recommended drugs within the vocabulary.
    probs : ndarray (n, D)
        Scores, larger is more likely.
    ddi : ndarray (D, D)
        Interaction matrix.
    patient, visit : ndarray (n,)
        Position of the patient; number of the visit from 0.
    n_unseen : ndarray (n,)
        True drugs outside the vocabulary. They are part of the truth and never retrieved.

    Returns
    -------
    pandas.DataFrame
        ``patient, visit, n_true, n_selected, n_hit, n_hit_at_true, ap, ddi_pairs, pairs,
        ddi_pairs_true, pairs_true`` and calibration counts ``cal_n_0``, ``cal_p_0``, ``cal_y_0``...
    """
    known = target.sum(axis=1)
    n_true = known + n_unseen
    share = known / np.maximum(n_true, 1)
    rank = np.argsort(np.argsort(-probs, axis=1, kind="stable"), axis=1)
    ddi_pairs, pairs = count_pairs(selected, ddi)
    ddi_true, pairs_true = count_pairs(target, ddi)
    columns: dict[str, npt.NDArray[Any]] = {
        "patient": patient,
        "visit": visit,
        "n_true": n_true,
        "n_selected": selected.sum(axis=1),
        "n_hit": (target & selected).sum(axis=1),
        "n_hit_at_true": (target & (rank < n_true[:, None])).sum(axis=1),
        "ap": average_precision(target, probs) * share,
        "ddi_pairs": ddi_pairs,
        "pairs": pairs,
        "ddi_pairs_true": ddi_true,
        "pairs_true": pairs_true,
    }
    bins = np.clip((probs * N_BINS).astype(int), 0, N_BINS - 1)
    for b in range(N_BINS):
        inside = bins == b
        columns[f"cal_n_{b}"] = inside.sum(axis=1)
        columns[f"cal_p_{b}"] = (probs * inside).sum(axis=1)
        columns[f"cal_y_{b}"] = (target & inside).sum(axis=1)
    return pd.DataFrame(columns)


def _per_visit(rows: Rows) -> dict[str, Float]:
    n_true, n_selected, n_hit = (
        rows[name].to_numpy(float) for name in ("n_true", "n_selected", "n_hit")
    )
    union = n_true + n_selected - n_hit
    both = n_true + n_selected
    return {
        # two empty sets agree completely
        "jaccard": np.where(union > 0, n_hit / np.maximum(union, 1.0), 1.0),
        "f1": np.where(both > 0, 2.0 * n_hit / np.maximum(both, 1.0), 1.0),
        "prauc": rows["ap"].to_numpy(float),
        "recall_at_n_true": rows["n_hit_at_true"].to_numpy(float) / np.maximum(n_true, 1.0),
    }


def ratios(rows: Rows) -> dict[str, tuple[Float, Float]]:
    """Every metric as per-patient numerators and denominators.

    The value of a metric on any weighted set of patients is ``(w @ num) / (w @ den)``: macro
    averages have a denominator of 1 per patient, pooled ones their own counts. That makes a
    bootstrap of patients one matrix product.

    Returns
    -------
    dict of str to (ndarray (U,), ndarray (U,))
        Patients in ascending order.
    """
    patients, index = np.unique(rows["patient"].to_numpy(), return_inverse=True)

    def total(values: npt.ArrayLike) -> Float:
        weights = np.asarray(values, dtype=np.float64)
        return np.bincount(index, weights=weights, minlength=len(patients)).astype(np.float64)

    first = rows["visit"].to_numpy() == 0
    per_visit = _per_visit(rows)
    found: dict[str, tuple[Float, Float]] = {}
    for suffix, chosen in (("", np.ones(len(rows), bool)), ("_first", first), ("_later", ~first)):
        visits = total(chosen)
        has = (visits > 0).astype(float)
        for name in ("jaccard", "f1", "prauc"):
            mean = total(np.where(chosen, per_visit[name], 0.0)) / np.maximum(visits, 1.0)
            found[name + suffix] = (mean, has)
    visits = total(np.ones(len(rows)))
    for name, values in per_visit.items():
        found[f"{name}_visit_mean"] = (total(values), visits)
    found["recall_at_n_true"] = found.pop("recall_at_n_true_visit_mean")
    found["ddi_rate"] = (total(rows["ddi_pairs"]), total(rows["pairs"]))
    found["ddi_rate_true"] = (total(rows["ddi_pairs_true"]), total(rows["pairs_true"]))
    rated = rows["pairs"].to_numpy(float)
    rate = np.where(rated > 0, rows["ddi_pairs"] / np.maximum(rated, 1.0), 0.0)
    found["ddi_rate_visit_mean"] = (total(rate), total(rated > 0))
    found["mean_n_drugs"] = (total(rows["n_selected"]), visits)
    found["mean_n_drugs_true"] = (total(rows["n_true"]), visits)
    found["micro_f1"] = (
        2.0 * total(rows["n_hit"]),
        total(rows["n_true"]) + total(rows["n_selected"]),
    )
    return found


def divide(numerator: Float, denominator: Float, empty: float) -> Float:
    """Quotient with a stated value where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), empty)


def empty_value(metric: str) -> float:
    """Value of a metric on nothing: no pair interacts (0), no mean exists (NaN)."""
    return 0.0 if metric.startswith("ddi_rate") else float("nan")


def summarise(rows: Rows) -> dict[str, float]:
    """Every metric of a set of rows.

    Returns
    -------
    dict
        ``jaccard``, ``f1``, ``prauc``: mean over visits of a patient, then over patients
        (``_first`` and ``_later``: first visits and all others; ``_visit_mean``: plain mean over
        visits). ``ddi_rate``: pooled over pairs; ``ddi_rate_true``: of the true sets.
        ``mean_n_drugs``: over visits. ``micro_f1``: pooled over drugs. ``recall_at_n_true``: mean
        over visits. ``ece``: expected calibration error, 10 bins, pooled.
    """
    summary = {
        name: float(divide(num.sum(), den.sum(), empty_value(name)))
        for name, (num, den) in ratios(rows).items()
    }
    summary["ece"] = expected_calibration_error(rows)
    return summary


def expected_calibration_error(rows: Rows) -> float:
    """Mean gap between predicted and observed frequency over ten bins, weighted by size."""
    count, probability, truth = (
        np.array([rows[f"cal_{part}_{b}"].sum() for b in range(N_BINS)], float) for part in "npy"
    )
    used = count > 0
    gaps = np.abs(probability[used] - truth[used])
    return float(gaps.sum() / max(count.sum(), 1.0))


def ddi_rate_chance(ddi: npt.NDArray[Any]) -> float:
    """DDI rate to expect of random sets of any size: the density of the matrix."""
    d = len(ddi)
    return float(ddi.sum() / (d * (d - 1))) if d > 1 else 0.0
