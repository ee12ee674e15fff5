"""What a `medrec.Recommender` takes and gives: patients to batches, predictions to tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.data.dataset import VisitBatch, VisitDataset, collate, encode_patient
from medrec.evaluation.bootstrap import bootstrap_intervals
from medrec.evaluation.metrics import summarise
from medrec.fitting import EVALUATION_BATCH, cpu_threads
from medrec.notebook import recommendation_html
from medrec.recommend import parse_document, resolve_codes
from medrec.training import LoadedRun
from quantum.base import InputError

Patients = str | Iterable[int] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
_PARTS = ("train", "validation", "test")
_NO_VISIT = "no visit to predict: expected one patient at least"


@dataclass(frozen=True)
class Recommendation:
    """Drugs for the latest visit of one patient.

    Attributes
    ----------
    drugs : pandas.DataFrame
        All classes, most probable first: ``rank``, ``atc``, ``name``, ``probability`` and
        ``selected``.
    interactions : pandas.DataFrame
        Listed pairs among the selected, worst first.
    warnings : list of str
        Codes that the model does not know, one text each.
    model, caution : str
    """

    drugs: pd.DataFrame
    interactions: pd.DataFrame
    warnings: list[str]
    model: str
    caution: str

    def _repr_html_(self) -> str:
        return recommendation_html(self)


# --------------------------------------------------------------------------- patients


def patient_batches(
    loaded: LoadedRun, dataset: VisitDataset, patients: Patients
) -> Iterable[VisitBatch]:
    """Batches of a part of the split, of numbered patients of the cohort, or of documents.

    Raises
    ------
    InputError
        If it is none of these; values are not named.
    """
    if isinstance(patients, str):
        if patients not in _PARTS:
            known = ", ".join(_PARTS)
            raise InputError(f"no part '{patients}' in a split; expected one of: {known}")
        chosen = loaded.cohort.split(loaded.config.split).parts()[patients]
        return dataset.batches(chosen, EVALUATION_BATCH)
    listed: list[Any] = [patients] if isinstance(patients, Mapping) else list(patients)
    if listed and all(isinstance(item, Mapping) for item in listed):
        return _document_batches(loaded, listed)
    return dataset.batches(_numbers(loaded, dataset, listed), EVALUATION_BATCH)


def _numbers(loaded: LoadedRun, dataset: VisitDataset, listed: list[Any]) -> npt.NDArray[np.int64]:
    whole = all(
        isinstance(item, int | np.integer) and not isinstance(item, bool) for item in listed
    )
    if not listed or not whole or not all(int(item) in dataset for item in listed):
        raise InputError(
            f"patients are {len(listed)} items that are neither all numbers of patients of "
            f"{loaded.cohort.name} (0 to {loaded.cohort.n_patients - 1}) nor all documents; "
            "expected numbers, documents or the name of a part"
        )
    return np.array([int(item) for item in listed], dtype=np.int64)


def _document_batches(loaded: LoadedRun, documents: Sequence[Any]) -> list[VisitBatch]:
    encoded, unknown = [], 0
    for document in documents:
        kinds, said = resolve_codes(parse_document(document), loaded.vocabularies)
        encoded.append(encode_patient(loaded.vocabularies, *kinds))
        unknown += len(said)
    if unknown:
        warnings.warn(
            f"{unknown} codes are unknown to the model and left out; recommend() names them",
            stacklevel=5,
        )
    n_drugs, numbers = len(loaded.vocabularies.drugs), range(len(encoded))
    return [
        collate(
            encoded[first : first + EVALUATION_BATCH],
            numbers[first : first + EVALUATION_BATCH],
            n_drugs,
        )
        for first in range(0, len(encoded), EVALUATION_BATCH)
    ]


# --------------------------------------------------------------------------- tables


def prediction_frame(loaded: LoadedRun, batches: Iterable[VisitBatch], what: str) -> pd.DataFrame:
    """Predict batches.

    Parameters
    ----------
    what : str
        Field of `medrec.models.base.Prediction`: ``probs`` or ``selected``.

    Returns
    -------
    pandas.DataFrame
        Index ``patient``, ``visit``, sorted; one column per ATC code.
    """
    tables, places = [], []
    with torch.no_grad(), cpu_threads(loaded.config.threads):
        for batch in batches:
            mask = batch.mask.numpy()
            tables.append(getattr(loaded.model.predict(batch), what).numpy()[mask])
            row, visit = np.nonzero(mask)
            places.append(np.stack([batch.patient.numpy()[row], visit]))
    if not tables:
        raise InputError(_NO_VISIT)
    index = pd.MultiIndex.from_arrays(list(np.concatenate(places, 1)), names=["patient", "visit"])
    columns = pd.Index(loaded.vocabularies.drugs.codes, name="atc")
    return pd.DataFrame(np.concatenate(tables), index=index, columns=columns).sort_index()


def metric_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Per-visit rows to ``metric``, ``value``, ``low``, ``high``."""
    intervals, nothing = bootstrap_intervals(rows), (float("nan"), float("nan"))
    found = [
        {"metric": name, "value": value, "low": low, "high": high}
        for name, value in summarise(rows).items()
        for low, high in [intervals.get(name, nothing)]
    ]
    return pd.DataFrame(found)
