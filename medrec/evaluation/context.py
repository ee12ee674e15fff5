"""What a table's numbers rest on: the truth of a test part, chance, and the best possible sets.

Letters: n visits of the test part, D drug classes of the cohort.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.data.cohort import Cohort
from medrec.data.schema import Vocabulary
from medrec.evaluation.metrics import visit_columns
from medrec.evaluation.optimum import bayes_optimal_sets
from medrec.molecules.drugs import ddi_matrix, severity_matrix
from quantum.base import DataError

_BLOCK = 2_048
"""Visits at a time, so that memory does not grow with the cohort."""


@dataclass(frozen=True)
class TestPart:
    """True sets of a split's test part, over every drug class of the cohort.

    Parameters
    ----------
    drugs : Vocabulary
        The D classes in the order of ``cohort.drugs``.
    place : ndarray (n,)
        Rows of ``cohort.visits``.
    patient, visit : ndarray (n,)
        Position of the patient; number of the visit from 0.
    target : ndarray (n, D) of bool
    """

    __test__ = False  # the name is the field's, not pytest's

    drugs: Vocabulary
    place: npt.NDArray[np.int64]
    patient: npt.NDArray[np.int64]
    visit: npt.NDArray[np.int64]
    target: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, cohort: Cohort, split_number: int) -> TestPart:
        """Read the test part of one of the cohort's splits."""
        drugs = Vocabulary(tuple(cohort.drugs["atc"]))
        visits = cohort.visits
        number = visits.groupby("patient").cumcount().to_numpy()
        patients = visits["patient"].to_numpy(np.int64)
        place = np.flatnonzero(np.isin(patients, cohort.split(split_number).test)).astype(np.int64)
        target = np.zeros((len(place), len(drugs)), dtype=bool)
        for row, codes in enumerate(visits["drugs"].iloc[place]):
            target[row, drugs.encode(codes)[0]] = True
        return cls(drugs, place, patients[place], number[place].astype(np.int64), target)


def ddi_rate_by_frequency(target: npt.NDArray[np.bool_], ddi: npt.NDArray[Any]) -> float:
    """DDI rate to expect if each drug kept its frequency and was given independently of the others.

    Ground truth above it means that interacting drugs are given together more often than their
    frequencies alone explain.

    Parameters
    ----------
    target : ndarray (n, D) of bool
    ddi : ndarray (D, D)
        0 and 1, symmetric, zero diagonal.
    """
    frequency = target.mean(axis=0)
    pairs = frequency.sum() ** 2 - (frequency**2).sum()
    return float(frequency @ ddi.astype(float) @ frequency / pairs) if pairs > 0 else 0.0


def ddi_by_frequency(cohort: Cohort, split_number: int) -> float:
    """`ddi_rate_by_frequency` of a split's test part."""
    part = TestPart.of(cohort, split_number)
    return ddi_rate_by_frequency(part.target, ddi_matrix(cohort, part.drugs))


def optimum_rows(cohort: Cohort, split_number: int) -> pd.DataFrame | None:
    """Rows of the best possible sets on a split's test part, for a cohort with planted structure.

    The sets have the highest expected Jaccard of each visit given the planted probabilities, so no
    recommender does better but by luck. They know what no model can: the probabilities themselves,
    of every drug class, also of those that no training patient had.

    Returns
    -------
    pandas.DataFrame or None
        As `medrec.evaluation.metrics.visit_rows`, and ``expected_jaccard``: what these sets get on
        average over drawn truths. None for a cohort without planted probabilities.

    Raises
    ------
    DataError
        If the planted probabilities have another shape than the cohort.
    """
    oracle = cohort.oracle
    if oracle is None:
        return None
    expected_shape = (len(cohort.visits), len(cohort.drugs))
    if oracle.shape != expected_shape:
        raise DataError(
            f"planted probabilities have shape {oracle.shape}; expected {expected_shape}, visits "
            f"by drug classes: {cohort.folder.name}"
        )
    part = TestPart.of(cohort, split_number)
    ddi, severity = ddi_matrix(cohort, part.drugs), severity_matrix(cohort, part.drugs)
    blocks = []
    for start in range(0, len(part.place), _BLOCK):
        own = slice(start, start + _BLOCK)
        probabilities = oracle[part.place[own]].astype(np.float64)
        selected, expected = bayes_optimal_sets(probabilities)
        columns = visit_columns(
            part.target[own],
            selected,
            probabilities,
            ddi,
            part.patient[own],
            part.visit[own],
            np.zeros(len(probabilities), dtype=np.int64),
            severity,
        )
        blocks.append(columns | {"expected_jaccard": expected})
    rows = pd.DataFrame({name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]})
    return rows.sort_values(["patient", "visit"], ignore_index=True)
