"""A predict function over batches to per-visit rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.data.dataset import VisitBatch
from medrec.evaluation.metrics import visit_columns
from quantum.base import InputError


class PredictionLike(Protocol):
    """What evaluation reads of a prediction."""

    @property
    def probs(self) -> torch.Tensor:
        """Scores (B, V, D)."""

    @property
    def selected(self) -> torch.Tensor:
        """Recommended sets (B, V, D) of bool."""


@torch.no_grad()
def evaluate(
    predict: Callable[[VisitBatch], PredictionLike],
    batches: Iterable[VisitBatch],
    ddi: npt.NDArray[Any],
    severity: npt.NDArray[Any] | None = None,
) -> pd.DataFrame:
    """Predict every visit and count.

    Parameters
    ----------
    ddi : ndarray (D, D)
        Interaction matrix of the vocabulary.
    severity : ndarray (D, D) of int, optional
        Highest severity of each pair, 0 to 4.

    Returns
    -------
    pandas.DataFrame
        See `medrec.evaluation.metrics.visit_rows`; sorted by patient and visit.

    Raises
    ------
    InputError
        If there is no batch.
    DataError
        If a score is not a finite number.
    """
    tables = []
    for batch in batches:
        prediction = predict(batch)
        mask = batch.mask.cpu().numpy()
        n_patients, n_visits = mask.shape
        patient = np.broadcast_to(batch.patient.cpu().numpy()[:, None], mask.shape)
        visit = np.broadcast_to(np.arange(n_visits), (n_patients, n_visits))
        tables.append(
            visit_columns(
                batch.target.cpu().numpy()[mask] > 0.5,
                prediction.selected.cpu().numpy()[mask],
                prediction.probs.detach().cpu().numpy().astype(np.float64)[mask],
                ddi,
                patient[mask],
                visit[mask],
                batch.n_unseen.cpu().numpy()[mask],
                severity,
            )
        )
    if not tables:
        raise InputError("no visit to evaluate: the part of the split holds no patient")
    rows = pd.DataFrame(
        {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    )
    return rows.sort_values(["patient", "visit"], ignore_index=True)
