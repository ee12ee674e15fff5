"""Tests of paired differences between models, one difference per patient, and their correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import wilcoxon

from medrec.evaluation.metrics import ratios

TESTED = ("jaccard", "f1", "prauc")
"""Metrics with one value per patient; pooled ones such as the DDI rate have none."""
_NOISE = 12
"""Decimals: a smaller difference is rounding, and ranks must not depend on it."""


def patient_means(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Mean of a metric over the visits of each patient, by position of the patient."""
    return pd.Series(ratios(rows)[metric][0], index=np.unique(rows["patient"].to_numpy()))


def patient_differences(
    ours: Sequence[Sequence[pd.DataFrame]], theirs: Sequence[Sequence[pd.DataFrame]], metric: str
) -> npt.NDArray[np.float64]:
    """One paired difference per patient.

    Parameters
    ----------
    ours, theirs : sequence of sequence of pandas.DataFrame
        Rows by split, then by run; both hold the same splits in the same order.

    Returns
    -------
    ndarray (U,)
        Means over the runs of a split, then, for a patient tested in several splits, over those:
        patients are the independent units, neither visits, nor seeds, nor splits.
    """
    per_split = []
    for left, right in zip(ours, theirs, strict=True):
        means = [
            pd.concat([patient_means(rows, metric) for rows in side], axis=1).mean(axis=1)
            for side in (left, right)
        ]
        per_split.append(means[0] - means[1])
    stacked = pd.concat(per_split)
    return stacked.groupby(level=0).mean().to_numpy(np.float64)


def wilcoxon_p(differences: npt.NDArray[np.float64]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; patients without a difference drop out.

    Exact for few patients without ties, else by the normal approximation (SciPy's rule).

    Returns
    -------
    float
        1 if no patient differs.
    """
    rounded = np.round(differences, _NOISE)
    rounded = rounded[rounded != 0]
    if not len(rounded):
        return 1.0
    return float(wilcoxon(rounded).pvalue)


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Holm's step-down correction: the chance of any false finding in the family stays at alpha.

    Parameters
    ----------
    p_values : array_like (k,)
        One per comparison of the family. NaN stands for no test and counts as none.

    Returns
    -------
    ndarray (k,)
        Corrected p-values, at most 1, in the order given (Holm, Scand. J. Stat. 1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected
