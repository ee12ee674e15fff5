"""Precision, recall and F1 of every drug class, and of groups of classes, on a test part.

The stored rows of a run count drugs per visit, not which; so the run predicts its test part again.
True drugs outside the model's vocabulary are part of the truth here as everywhere: their recall
is 0.

Letters: n visits, U patients, D drug classes of the cohort, G columns (classes or groups).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.data.cohort import Cohort
from medrec.data.dataset import VisitBatch, build_dataset
from medrec.data.schema import Vocabularies
from medrec.evaluation.bootstrap import N_RESAMPLES, patient_weights, percentile_interval
from medrec.evaluation.context import TestPart
from medrec.evaluation.evaluate import PredictionLike
from quantum.base import DataError

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
METRICS = ("precision", "recall", "f1")
_BATCH = 64


@dataclass(frozen=True)
class RecommendedSets:
    """True and recommended sets of a test part, over every drug class of the cohort.

    Parameters
    ----------
    codes : tuple of str
        The D ATC codes.
    known : ndarray (D,) of bool
        Classes in the model's vocabulary; it can recommend no other.
    patient, visit : ndarray (n,)
        Position of the patient; number of the visit from 0. Sorted.
    target, selected : ndarray (n, D) of bool
    """

    codes: tuple[str, ...]
    known: Bool
    patient: Int
    visit: Int
    target: Bool
    selected: Bool


@torch.no_grad()
def recommended_sets(
    predict: Callable[[VisitBatch], PredictionLike],
    cohort: Cohort,
    vocabularies: Vocabularies,
    split: int,
) -> RecommendedSets:
    """Predict the test part of a split.

    Parameters
    ----------
    predict : callable
        Of a model that was built with ``vocabularies``.

    Raises
    ------
    DataError
        If the visits that the model scored are not those of the test part.
    """
    part = TestPart.of(cohort, split)
    dataset = build_dataset(cohort, vocabularies)
    patients, visits, chosen = [], [], []
    for batch in dataset.batches(cohort.split(split).test, _BATCH):
        row, visit = np.nonzero(batch.mask.numpy())
        patients.append(batch.patient.numpy()[row])
        visits.append(visit)
        chosen.append(predict(batch).selected[batch.mask].cpu().numpy())
    patient, visit = np.concatenate(patients), np.concatenate(visits)
    order = np.lexsort((visit, patient))
    truth = np.lexsort((part.visit, part.patient))
    if not (
        np.array_equal(patient[order], part.patient[truth])
        and np.array_equal(visit[order], part.visit[truth])
    ):
        raise DataError(
            f"the model scored {len(patient)} visits of split {split}; expected the "
            f"{len(part.patient)} of its test part"
        )
    columns = part.drugs.encode(vocabularies.drugs.codes)[0]
    known = np.zeros(len(part.drugs), dtype=bool)
    known[columns] = True
    selected = np.zeros(part.target.shape, dtype=bool)
    selected[:, columns] = np.concatenate(chosen)[order]
    return RecommendedSets(
        part.drugs.codes, known, patient[order], visit[order], part.target[truth], selected
    )


def class_performance(
    sets: RecommendedSets,
    groups: Sequence[str] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Precision, recall and F1 per class or per group, pooled over visits (and classes).

    Parameters
    ----------
    groups : sequence of str, optional
        Group of each of the D classes; each class is its own by default.
    n_resamples, seed : int
        Of the bootstrap over patients; the same draws for the same test part.

    Returns
    -------
    pandas.DataFrame
        One row per class or group, sorted by name: ``name``, ``classes``, ``support`` (visits with
        the class; pairs of visit and class for a group), ``recommended``, ``hits``,
        ``prevalence_true`` and ``prevalence_recommended`` (per visit), ``patients`` with the class,
        and ``precision``, ``recall``, ``f1`` with ``_low`` and ``_high`` (95 % percentile interval
        over patients). What has no denominator is NaN: precision of a class that is never
        recommended, recall of one that is never given.
    """
    names, column = np.unique(list(groups or sets.codes), return_inverse=True)
    member = np.zeros((len(sets.codes), len(names)))
    member[np.arange(len(sets.codes)), column] = 1.0
    patients, owner = np.unique(sets.patient, return_inverse=True)
    sums = [
        _per_patient(item, owner, len(patients)) @ member
        for item in (sets.target & sets.selected, sets.selected, sets.target)
    ]
    hits, recommended, support = (item.sum(axis=0) for item in sums)
    frame = pd.DataFrame(
        {
            "name": names.astype(str),
            "classes": member.sum(axis=0).astype(int),
            "support": support.astype(int),
            "recommended": recommended.astype(int),
            "hits": hits.astype(int),
            "prevalence_true": support / len(sets.patient),
            "prevalence_recommended": recommended / len(sets.patient),
            "patients": (sums[2] > 0).sum(axis=0),
        }
    )
    drawn = _resampled(sums, n_resamples, seed)
    for metric, value in _scores(hits, recommended, support).items():
        limits = [percentile_interval(drawn[metric][:, g]) for g in range(len(names))]
        frame[metric] = value
        frame[f"{metric}_low"], frame[f"{metric}_high"] = zip(*limits, strict=True)
    return frame


def _per_patient(sets: Bool, owner: Int, n_patients: int) -> Float:
    """Sum visits (n, D) of each patient (U, D)."""
    total = np.zeros((n_patients, sets.shape[1]))
    np.add.at(total, owner, sets)
    return total


def _resampled(sums: Sequence[Float], n_resamples: int, seed: int) -> dict[str, Float]:
    """Every metric on every resample of the patients, (R, G) each."""
    blocks = [
        _scores(*(weights @ item for item in sums))
        for weights in patient_weights(len(sums[0]), n_resamples, seed)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in METRICS}


def _scores(hits: Float, recommended: Float, support: Float) -> dict[str, Float]:
    """Metrics of counts; NaN where nothing is divided by."""
    pairs = {"precision": recommended, "recall": support, "f1": (recommended + support) / 2.0}
    return {
        name: np.where(below > 0, hits / np.where(below > 0, below, 1.0), np.nan)
        for name, below in pairs.items()
    }


def pair_counts(sets: RecommendedSets, interacts: npt.NDArray[np.generic]) -> pd.DataFrame:
    """How often interacting classes are recommended, and given, in one visit.

    Parameters
    ----------
    interacts : ndarray (D, D)
        Non-zero where two classes interact; symmetric.

    Returns
    -------
    pandas.DataFrame
        ``a``, ``b`` (positions, a < b), ``recommended``, ``given``, ``both`` (visits in which the
        pair is recommended, given, and both), ``rate_recommended`` and ``rate_given`` (of the
        visits). Pairs that are neither recommended nor given are left out; the most often
        recommended come first, then the most often given.
    """
    found: dict[str, Float] = {
        name: chosen.astype(np.float64).T @ chosen.astype(np.float64)
        for name, chosen in (("recommended", sets.selected), ("given", sets.target))
    }
    a, b = np.nonzero(np.triu(np.asarray(interacts) > 0, 1))
    frame = pd.DataFrame({"a": a, "b": b})
    for name, counts in found.items():
        frame[name] = counts[a, b].astype(int)
    frame = frame[frame["recommended"] + frame["given"] > 0]
    hit = sets.target & sets.selected
    frame["both"] = [
        int((hit[:, i] & hit[:, j]).sum()) for i, j in zip(frame["a"], frame["b"], strict=True)
    ]
    for name in found:
        frame[f"rate_{name}"] = frame[name] / len(sets.patient)
    return frame.sort_values(
        ["recommended", "given", "a", "b"], ascending=[False, False, True, True], ignore_index=True
    )
