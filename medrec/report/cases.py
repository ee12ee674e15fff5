"""One test patient: visits in order, what was given, and what up to three runs recommended.

The patient is the one whose Jaccard, with the first run, is the median of the test patients with
three or more visits: neither the best nor the worst. No identifier is shown. A cohort of restricted
records shows no patient unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.data.cohort import Cohort
from medrec.data.dataset import PatientVisits, collate, encode_patient
from medrec.data.schema import Vocabulary
from medrec.evaluation.compare import load_rows
from medrec.recommend import interacting_pairs
from medrec.report.case_structures import structures
from medrec.report.case_view import CaseNames, RunCase, timeline
from medrec.report.page import Page, paragraph
from medrec.runs import Run
from medrec.training import LoadedRun

MIN_VISITS = 3
SHOWN_VISITS, SHOWN_HISTORY = 3, 5
_KINDS = ("diagnoses", "procedures", "drugs")
RESTRICTED = (
    "The records are restricted, so no patient is shown; `medrec report --with-patient` shows one "
    "to readers who may see them."
)


def patient_section(
    page: Page,
    cohort: Cohort,
    loaded: Sequence[tuple[str, Run, LoadedRun]],
    with_patient: bool,
) -> list[str]:
    """HTML parts of the case study.

    Parameters
    ----------
    loaded : sequence of (title, run, loaded run)
        The first chooses the patient; others count if they were tested on the same split.
    with_patient : bool
        Show one even of restricted records.
    """
    if getattr(cohort.config.source, "restricted", False) and not with_patient:
        return [paragraph(RESTRICTED)]
    if not loaded:
        return [paragraph("No training run was given.")]
    split = loaded[0][1].report()["split"]
    same = [item for item in loaded if item[1].report()["split"] == split]
    patient = median_patient(load_rows(same[0][1]))
    if patient is None:
        return [paragraph(f"No test patient has {MIN_VISITS} or more visits.")]
    page.use("cases.css")
    own = cohort.visits[cohort.visits["patient"] == patient]
    visits: list[dict[Any, Any]] = own.sort_values("visit").to_dict("records")
    encoded = {title: encode_visits(item, visits) for title, _, item in same}
    cases = [run_case(cohort, title, item, encoded[title]) for title, _, item in same]
    names = CaseNames.of(cohort)
    parts = [
        paragraph(_preface(same[0][0], len(visits)), "note"),
        *timeline(
            visits, cases, _true_pairs(cohort, visits), names, SHOWN_VISITS, SHOWN_HISTORY, cohort
        ),
        *structures([(title, item, encoded[title]) for title, _, item in same], cases, names.drugs),
    ]
    left_out = [title for title, run, _ in loaded if run.report()["split"] != split]
    if left_out:
        parts.append(paragraph(f"Tested on another split: {', '.join(left_out)}.", "note"))
    return parts


def _preface(first: str, n_visits: int) -> str:
    shown = min(SHOWN_VISITS, n_visits)
    earlier = min(n_visits - shown, SHOWN_HISTORY)
    beginning = n_visits - shown - earlier + 1
    return (
        f"The test patient whose Jaccard with {first} is the median of those with {MIN_VISITS} or "
        f"more visits. Visits {beginning} to {n_visits} of {n_visits}; each prediction reads the "
        "earlier visits and the diagnoses and procedures of its own. One patient shows what "
        "predictions look like; it is no evidence about models."
    )


def median_patient(rows: pd.DataFrame) -> int | None:
    """Position of the patient with the median Jaccard among those with enough visits.

    Of two in the middle the one with the lower Jaccard, of equal ones the first in the cohort.
    """
    union = rows["n_true"] + rows["n_selected"] - rows["n_hit"]
    jaccard: pd.Series = rows["n_hit"] / np.maximum(union, 1)
    table: pd.DataFrame = jaccard.groupby(rows["patient"]).agg(["mean", "size"]).reset_index()
    table = table[table["size"] >= MIN_VISITS]
    if table.empty:
        return None
    ordered = table.sort_values(["mean", "patient"], ignore_index=True)
    return int(ordered["patient"].iloc[(len(ordered) - 1) // 2])


def encode_visits(loaded: LoadedRun, visits: Sequence[dict[Any, Any]]) -> PatientVisits:
    """Encode the patient's visits with a run's vocabularies."""
    columns = ([list(visit[kind]) for visit in visits] for kind in _KINDS)
    return encode_patient(loaded.vocabularies, *columns)


@torch.no_grad()
def run_case(cohort: Cohort, title: str, loaded: LoadedRun, patient: PatientVisits) -> RunCase:
    """Predict every visit of the patient."""
    vocabulary = loaded.vocabularies.drugs
    prediction = loaded.model.predict(collate([patient], [0], len(vocabulary)))
    chosen: npt.NDArray[np.bool_] = prediction.selected[0].cpu().numpy()
    probs = prediction.probs[0].cpu().double().numpy()
    return RunCase(
        title,
        [frozenset(vocabulary.codes[i] for i in np.flatnonzero(row)) for row in chosen],
        [interacting_pairs(cohort, vocabulary, np.flatnonzero(row), {}) for row in chosen],
        [dict(zip(vocabulary.codes, map(float, row), strict=True)) for row in probs],
    )


def _true_pairs(cohort: Cohort, visits: Sequence[dict[Any, Any]]) -> list[list[dict[str, Any]]]:
    """Interacting pairs of what was given, per visit."""
    drugs = Vocabulary(tuple(cohort.drugs["atc"]))
    return [
        interacting_pairs(cohort, drugs, map(int, drugs.encode(visit["drugs"])[0]), {})
        for visit in visits
    ]
