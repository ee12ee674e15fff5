"""Best possible drug sets where the true probabilities are known, as in synthetic records.

Letters: n visits, D drugs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BLOCK = 4096

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]


def bayes_optimal_sets(probabilities: npt.NDArray[np.floating]) -> tuple[Bool, Float]:
    """Drug sets of the highest expected Jaccard, and that Jaccard.

    Drugs are independent with the given probabilities. For a set S of k drugs,

    ``E[|Y n S| / |Y u S|] = sum_S p * E[1 / (k + b)]``

    with b the number of true drugs outside S (Poisson-binomial). Among sets of one size the most
    probable drugs are best, so D + 1 sets are compared; the law of b is built up exactly, drug by
    drug. Where no drug is true and none is chosen the Jaccard is 1, as in the metrics.

    Parameters
    ----------
    probabilities : ndarray (n, D)
        In [0, 1].

    Returns
    -------
    selected : ndarray (n, D) of bool
        Among equally good sets the smaller one; ties of drugs go to the earlier column.
    expected_jaccard : ndarray (n,)
    """
    n, n_drugs = probabilities.shape
    selected = np.zeros((n, n_drugs), dtype=bool)
    best = np.zeros(n)
    for start in range(0, n, _BLOCK):
        block = np.asarray(probabilities[start : start + _BLOCK], dtype=np.float64)
        order = np.argsort(-block, axis=1, kind="stable")
        size, best[start : start + _BLOCK] = _best_sizes(np.take_along_axis(block, order, axis=1))
        chosen = np.arange(n_drugs) < size[:, None]
        np.put_along_axis(selected[start : start + _BLOCK], order, chosen, axis=1)
    return selected, best


def _best_sizes(descending: Float) -> tuple[npt.NDArray[np.int64], Float]:
    """Best number of drugs and its expected Jaccard; rows sorted, shape (n, D)."""
    n, n_drugs = descending.shape
    expected_hits = np.cumsum(descending, axis=1)
    outside = np.zeros((n_drugs + 1, n))  # law of b, one row per value
    outside[0] = 1.0
    best, size = np.full(n, -1.0), np.zeros(n, dtype=np.int64)
    for k in range(n_drugs, 0, -1):
        n_outside = n_drugs - k + 1
        weights = 1.0 / (k + np.arange(n_outside))
        value = expected_hits[:, k - 1] * (weights @ outside[:n_outside])
        better = value >= best
        best, size = np.where(better, value, best), np.where(better, k, size)
        p = descending[:, k - 1]
        outside[1 : n_outside + 1] = outside[1 : n_outside + 1] * (1 - p) + outside[:n_outside] * p
        outside[0] *= 1 - p
    better = outside[0] >= best
    return np.where(better, 0, size), np.where(better, outside[0], best)
