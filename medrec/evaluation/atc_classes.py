"""Metrics of ATC level 3 classes for a cohort whose drugs are finer (level 4 or 5).

Classes are formed from the *codes* of recommended and true drugs: a class is recommended, or true,
if any of its members is, and its probability is the highest of its members'. The number of drugs
alone decides nothing. (Taking the positions 0 to n - 1 of a vocabulary for the n drugs of a set
makes true and predicted sets nested, and then random drugs of the right number score 1.)

Letters: n visits, D drugs, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.data.cohort import Cohort
from medrec.data.dataset import VisitBatch
from medrec.data.schema import ATC_CHARACTERS
from medrec.evaluation.evaluate import PredictionLike
from medrec.evaluation.metrics import visit_rows

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]
LEVEL = 3


@dataclass(frozen=True)
class ClassMembers:
    """Classes of a drug vocabulary.

    Attributes
    ----------
    classes : tuple of str
        C codes, ascending.
    order : ndarray (D,)
        Drugs, class after class.
    starts : ndarray (C,)
        Where each class begins in ``order``.
    """

    classes: tuple[str, ...]
    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, drugs: Sequence[str], level: int = LEVEL) -> ClassMembers:
        """Group ATC codes by their class at a level."""
        own = np.array([code[: ATC_CHARACTERS[level]] for code in drugs], dtype=str)
        order = np.argsort(own, kind="stable")
        classes, starts = np.unique(own[order], return_index=True)
        return cls(tuple(map(str, classes)), order, starts)

    def any(self, sets: Bool) -> Bool:
        """Sets of classes (n, C) of sets of drugs (n, D)."""
        return np.asarray(np.logical_or.reduceat(sets[:, self.order], self.starts, axis=1))

    def max(self, scores: Float) -> Float:
        """Highest score of each class's members (n, C)."""
        return np.asarray(np.maximum.reduceat(scores[:, self.order], self.starts, axis=1))

    def pairs(self, matrix: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Interacting classes (C, C): any pair of members interacts; zero diagonal."""
        rows = np.maximum.reduceat(matrix[np.ix_(self.order, self.order)], self.starts, axis=0)
        found = (np.maximum.reduceat(rows, self.starts, axis=1) > 0).astype(np.uint8)
        np.fill_diagonal(found, 0)
        return found


def true_classes(
    cohort: Cohort, patients: npt.NDArray[np.int64], level: int = LEVEL
) -> dict[tuple[int, int], set[str]]:
    """True classes by patient and number of the visit, from the cohort's own codes."""
    visits = cohort.visits
    number = visits.groupby("patient").cumcount()
    chosen = visits["patient"].isin(patients)
    length = ATC_CHARACTERS[level]
    return {
        (int(patient), int(visit)): {code[:length] for code in codes}
        for patient, visit, codes in zip(
            visits["patient"][chosen], number[chosen], visits["drugs"][chosen], strict=True
        )
    }


def class_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """Metrics of classes in a run's report; empty for a cohort that is at this level itself."""
    shown = ("jaccard", "f1", "prauc", "ddi_rate", "ddi_rate_true", "mean_n_drugs")
    found = report.get("test_atc3")
    if not found:
        return pd.DataFrame()
    return pd.DataFrame([{"metric": name, "value": found[name]} for name in shown])


@torch.no_grad()
def class_rows(
    predict: Callable[[VisitBatch], PredictionLike],
    batches: Iterable[VisitBatch],
    drugs: Sequence[str],
    truth: dict[tuple[int, int], set[str]],
    ddi: npt.NDArray[Any],
) -> pd.DataFrame:
    """Rows of `medrec.evaluation.metrics.visit_rows` for classes.

    Parameters
    ----------
    drugs : sequence of str
        ATC codes of the model's D columns.
    truth : dict
        See `true_classes`. A true class of which the model has no member counts as missed.
    ddi : ndarray (D, D)
        Interactions of the drugs; classes interact if any of their members do.
    """
    members = ClassMembers.of(drugs)
    column = {code: place for place, code in enumerate(members.classes)}
    between = members.pairs(ddi)
    tables = []
    for batch in batches:
        prediction = predict(batch)
        row, visit = np.nonzero(batch.mask.cpu().numpy())
        patient = batch.patient.cpu().numpy()[row]
        sets = [truth[int(p), int(v)] for p, v in zip(patient, visit, strict=True)]
        target = np.zeros((len(sets), len(column)), dtype=bool)
        for place, codes in enumerate(sets):
            target[place, [column[code] for code in codes if code in column]] = True
        n_unseen = np.array([len(codes) for codes in sets]) - target.sum(axis=1)
        selected = members.any(prediction.selected[batch.mask].cpu().numpy())
        scores = members.max(prediction.probs[batch.mask].cpu().numpy().astype(np.float64))
        tables.append(visit_rows(target, selected, scores, between, patient, visit, n_unseen))
    rows = pd.concat(tables, ignore_index=True)
    return rows.sort_values(["patient", "visit"], ignore_index=True)
