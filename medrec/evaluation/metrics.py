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

from quantum.base import DataError

N_BINS = 10
SEVERITIES = (1, 2, 3, 4)
"""Grades of an interaction; see `medrec.data.ddi.SEVERITY_NAMES`."""

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
    ranked = np.take_along_axis(target, order, axis=1)
    return _average_precision_ranked(ranked, np.take_along_axis(scores, order, axis=1))


def _average_precision_ranked(ranked: Bool, scores: Float) -> Float:
    """Average precision of targets whose scores descend along each row."""
    n, d = ranked.shape
    if d == 0:
        return np.zeros(n)
    hits = ranked.cumsum(axis=1)
    precision = hits / np.arange(1, d + 1)
    # ties share the precision at the end of their group
    is_end = np.ones((n, d), dtype=bool)
    np.not_equal(scores[:, :-1], scores[:, 1:], out=is_end[:, :-1])
    ends = np.where(is_end, np.arange(d), d - 1)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    at_end = np.take_along_axis(precision, ends, axis=1)
    return np.asarray((ranked * at_end).sum(axis=1) / np.maximum(hits[:, -1], 1))


def count_pairs(selected: Bool, ddi: npt.NDArray[Any]) -> tuple[Float, Float]:
    """Interacting pairs and all pairs within each row's set.

    Parameters
    ----------
    selected : ndarray (n, D) of bool
    ddi : ndarray (D, D)
        0/1, symmetric, zero diagonal.
    """
    chosen = selected.astype(np.float32)  # counts up to 2**24 are exact
    interacting = ((chosen @ ddi.astype(np.float32)) * chosen).sum(axis=1, dtype=float) / 2.0
    size = selected.sum(axis=1).astype(float)
    return interacting, size * (size - 1.0) / 2.0


def visit_rows(
    target: Bool,
    selected: Bool,
    probs: Float,
    ddi: npt.NDArray[Any],
    patient: npt.NDArray[np.int64],
    visit: npt.NDArray[np.int64],
    n_unseen: npt.NDArray[np.int64],
    severity: npt.NDArray[Any] | None = None,
) -> Rows:
    """One row of counts per visit.

    Parameters
    ----------
    target, selected : ndarray (n, D) of bool
        True and recommended drugs within the vocabulary.
    probs : ndarray (n, D)
        Scores, larger is more likely. Calibration reads them as probabilities: scores outside
        0 to 1 count in the first or last bin.
    ddi : ndarray (D, D)
        Interaction matrix of 0 and 1, symmetric, zero diagonal.
    patient, visit : ndarray (n,)
        Position of the patient; number of the visit from 0.
    n_unseen : ndarray (n,)
        True drugs outside the vocabulary. They are part of the truth and never retrieved.
    severity : ndarray (D, D) of int, optional
        Highest severity of each pair, 0 to 4, 0 for none. Without a grade above 0 nothing is
        counted by severity.

    Returns
    -------
    pandas.DataFrame
        ``patient, visit, n_true, n_selected, n_hit, n_hit_at_true, ap, ddi_pairs, pairs,
        ddi_pairs_true, pairs_true``; with severities ``severity_1``, ``severity_true_1``, ...
        (pairs of that grade in the recommended and in the true set); and calibration counts
        ``cal_n_0``, ``cal_p_0``, ``cal_y_0``, ... (entries, sum of scores, true ones per bin).

    Raises
    ------
    DataError
        If a score is not a finite number.
    """
    return pd.DataFrame(
        visit_columns(target, selected, probs, ddi, patient, visit, n_unseen, severity)
    )


def visit_columns(
    target: Bool,
    selected: Bool,
    probs: Float,
    ddi: npt.NDArray[Any],
    patient: npt.NDArray[np.int64],
    visit: npt.NDArray[np.int64],
    n_unseen: npt.NDArray[np.int64],
    severity: npt.NDArray[Any] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Columns of `visit_rows`, without the table."""
    bad = int((~np.isfinite(probs)).sum())
    if bad:
        raise DataError(
            f"{bad} of {probs.size} predicted scores are no finite numbers; expected numbers, "
            "0 to 1: the model has diverged"
        )
    n, d = target.shape
    known = target.sum(axis=1)
    n_true = known + n_unseen
    order = np.argsort(-probs, axis=1, kind="stable")
    ranked = np.take_along_axis(target, order, axis=1)
    best = _average_precision_ranked(ranked, np.take_along_axis(probs, order, axis=1))
    reached = np.concatenate([np.zeros((n, 1), np.int64), ranked.cumsum(axis=1)], axis=1)
    at_true = np.take_along_axis(reached, np.minimum(n_true, d)[:, None], axis=1)[:, 0]
    ddi_pairs, pairs = count_pairs(selected, ddi)
    ddi_true, pairs_true = count_pairs(target, ddi)
    return {
        "patient": patient,
        "visit": visit,
        "n_true": n_true,
        "n_selected": selected.sum(axis=1),
        "n_hit": (target & selected).sum(axis=1),
        "n_hit_at_true": at_true,
        "ap": best * known / np.maximum(n_true, 1),
        "ddi_pairs": ddi_pairs,
        "pairs": pairs,
        "ddi_pairs_true": ddi_true,
        "pairs_true": pairs_true,
        **_severity_columns(target, selected, severity),
        **_calibration_columns(target, probs),
    }


def _severity_columns(
    target: Bool, selected: Bool, severity: npt.NDArray[Any] | None
) -> dict[str, npt.NDArray[Any]]:
    columns: dict[str, npt.NDArray[Any]] = {}
    if severity is None or not severity.any():
        return columns
    for grade in SEVERITIES:
        columns[f"severity_{grade}"] = count_pairs(selected, severity == grade)[0]
        columns[f"severity_true_{grade}"] = count_pairs(target, severity == grade)[0]
    return columns


def _calibration_columns(target: Bool, probs: Float) -> dict[str, npt.NDArray[Any]]:
    n = len(probs)
    place = np.clip((probs * N_BINS).astype(int), 0, N_BINS - 1)
    place = (place + N_BINS * np.arange(n)[:, None]).ravel()

    def count(weights: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        return np.bincount(place, weights, n * N_BINS).reshape(n, N_BINS)

    counts = count(None)
    sums = {"p": count(probs.ravel()), "y": count(target.ravel().astype(float)).astype(np.int64)}
    columns: dict[str, npt.NDArray[Any]] = {}
    for b in range(N_BINS):
        columns[f"cal_n_{b}"] = counts[:, b]
        columns |= {f"cal_{part}_{b}": values[:, b] for part, values in sums.items()}
    return columns


def has_severity(rows: Rows) -> bool:
    """Whether interactions were counted by severity."""
    return f"severity_{SEVERITIES[0]}" in rows


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
    pairs = rows["pairs"].to_numpy(float)
    rate = np.where(pairs > 0, rows["ddi_pairs"] / np.maximum(pairs, 1.0), 0.0)
    found["ddi_rate_visit_mean"] = (total(rate), total(pairs > 0))
    found["mean_n_drugs"] = (total(rows["n_selected"]), visits)
    found["mean_n_drugs_true"] = (total(rows["n_true"]), visits)
    hit, chosen_drugs, true_drugs = (
        total(rows[name]) for name in ("n_hit", "n_selected", "n_true")
    )
    found["micro_f1"] = (2.0 * hit, true_drugs + chosen_drugs)
    found["micro_precision"] = (hit, chosen_drugs)
    found["micro_recall"] = (hit, true_drugs)
    for grade in SEVERITIES if has_severity(rows) else ():
        found[f"ddi_rate_severity_{grade}"] = (total(rows[f"severity_{grade}"]), total(pairs))
        found[f"ddi_rate_severity_{grade}_true"] = (
            total(rows[f"severity_true_{grade}"]),
            total(rows["pairs_true"]),
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
        ``ddi_rate_visit_mean``: mean of the rates of visits with a pair. ``ddi_rate_severity_1``
        to ``_4`` (and ``_true``): pooled, by grade, if the grades were given. ``mean_n_drugs``:
        over visits. ``micro_f1``, ``micro_precision``, ``micro_recall``: pooled over drugs.
        ``recall_at_n_true``: share of the |Y| true drugs among the |Y| best-ranked, mean over
        visits. ``ece``: expected calibration error, 10 bins, pooled.
    """
    summary = {
        name: float(divide(num.sum(), den.sum(), empty_value(name)))
        for name, (num, den) in ratios(rows).items()
    }
    summary["ece"] = expected_calibration_error(rows)
    return summary


def calibration_sums(rows: Rows) -> Float:
    """Sums of every visit for the calibration error, shape (n, 2 N_BINS).

    Scores minus truths per bin, then the number of entries per bin.
    """
    gaps = [rows[f"cal_p_{b}"] - rows[f"cal_y_{b}"] for b in range(N_BINS)]
    return np.column_stack([*gaps, *(rows[f"cal_n_{b}"] for b in range(N_BINS))]).astype(float)


def expected_calibration_error(rows: Rows) -> float:
    """Mean gap between predicted and observed frequency over ten bins, weighted by size."""
    return float(calibration_error(calibration_sums(rows).sum(axis=0)))


def calibration_error(sums: Float) -> Float:
    """Expected calibration error of sums of `calibration_sums`, over the last axis."""
    gaps = np.abs(sums[..., :N_BINS]).sum(axis=-1)
    return divide(gaps, sums[..., N_BINS:].sum(axis=-1), 0.0)


def ddi_rate_chance(ddi: npt.NDArray[Any]) -> float:
    """DDI rate to expect of random sets: the density of the matrix.

    Every pair is as likely as any other in a uniformly drawn set of any fixed size from 2 on, so
    chance at a model's own set sizes is the same number.
    """
    d = len(ddi)
    return float(ddi.sum() / (d * (d - 1))) if d > 1 else 0.0
