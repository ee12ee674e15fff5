"""The one threshold of a model, chosen on validation visits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GRID = np.round(np.arange(0.05, 0.951, 0.01), 2)


def macro_jaccard(
    selected: npt.NDArray[np.bool_],
    target: npt.NDArray[np.bool_],
    n_unseen: npt.NDArray[np.int64],
    patient: npt.NDArray[np.int64],
) -> float:
    """Mean Jaccard over the visits of a patient, then over patients.

    Parameters
    ----------
    selected, target : ndarray (n, D) of bool
    n_unseen : ndarray (n,)
        True drugs outside the vocabulary, which count as missed.
    patient : ndarray (n,)
    """
    hits = (selected & target).sum(axis=1)
    union = (selected | target).sum(axis=1) + n_unseen
    jaccard = np.where(union > 0, hits / np.maximum(union, 1), 1.0)
    _, row = np.unique(patient, return_inverse=True)
    return float((np.bincount(row, jaccard) / np.bincount(row)).mean())


def best_threshold(
    probs: npt.NDArray[np.floating],
    target: npt.NDArray[np.bool_],
    n_unseen: npt.NDArray[np.int64],
    patient: npt.NDArray[np.int64],
) -> tuple[float, float]:
    """Threshold with the highest Jaccard, and that Jaccard; of equals the one nearest to 0.5.

    Parameters
    ----------
    probs : ndarray (n, D)
        Probabilities of n validation visits; see `macro_jaccard` for the rest.
    """
    scores = [macro_jaccard(probs >= cut, target, n_unseen, patient) for cut in GRID]
    best = max(range(len(GRID)), key=lambda i: (scores[i], -abs(GRID[i] - 0.5)))
    return float(GRID[best]), scores[best]
