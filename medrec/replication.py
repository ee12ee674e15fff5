"""External replication: a finished run judged on the patients of another cohort.

Drugs meet in ATC; diagnoses and procedures are brought to the run's vocabulary by
`medrec.data.crosswalk`. A drug that the run does not know counts as missed, never as absent. The
run's threshold stays as it is: nothing of the other cohort is used but the visits to predict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.data.cohort import Cohort
from medrec.data.crosswalk import Equivalents, translate
from medrec.data.dataset import VisitDataset, build_dataset
from medrec.data.schema import Vocabularies
from medrec.evaluation.bootstrap import bootstrap_intervals, paired_bootstrap
from medrec.evaluation.evaluate import evaluate
from medrec.evaluation.metrics import summarise
from medrec.fitting import EVALUATION_BATCH
from medrec.molecules.drugs import ddi_matrix, severity_matrix
from medrec.runs import Home, Run
from medrec.training import load_predictor
from quantum.base import DataError, InputError

_METRICS = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")


@dataclass(frozen=True)
class Replication:
    """What a run does elsewhere.

    Attributes
    ----------
    rows : pandas.DataFrame
        Per-visit rows; see `medrec.evaluation.metrics`.
    coverage : pandas.DataFrame
        Per kind of code: shares of occurrences found as they are, by crosswalk, by category, and
        not at all.
    notes : list of str
        What a reader has to know.
    """

    rows: pd.DataFrame
    coverage: pd.DataFrame
    notes: list[str]


def replicate(
    run: Run, home: Home, cohort: Cohort, part: str = "test", split: int = 0
) -> Replication:
    """Predict the visits of another cohort with a finished run.

    Parameters
    ----------
    part : str
        ``test``: the test patients of the cohort's split, so that runs trained there can be
        compared on the same patients; ``all``: every patient.

    Raises
    ------
    InputError
        If the cohorts have other ATC levels, or the run is not finished.
    DataError
        If no drug of the cohort is known to the run.
    """
    loaded = load_predictor(run, home)
    levels = loaded.cohort.config.atc_level, cohort.config.atc_level
    if levels[0] != levels[1]:
        raise InputError(
            f"run {run.name} recommends ATC level {levels[0]}, cohort {cohort.name} has level "
            f"{levels[1]}; expected the same; prepare the cohort with atc_level: {levels[0]}"
        )
    dataset, coverage = translated_dataset(cohort, loaded.vocabularies)
    patients = _patients(cohort, dataset, part, split)
    ddi = ddi_matrix(loaded.cohort, loaded.vocabularies.drugs)
    severity = severity_matrix(loaded.cohort, loaded.vocabularies.drugs)
    batches = dataset.batches(patients, EVALUATION_BATCH)
    rows = evaluate(loaded.model.predict, batches, ddi, severity)
    return Replication(rows, coverage, _notes(loaded.cohort, cohort))


def _patients(
    cohort: Cohort, dataset: VisitDataset, part: str, split: int
) -> npt.NDArray[np.int64]:
    if part == "all":
        return np.fromiter(dataset.patients, dtype=np.int64)
    if part != "test":
        raise InputError(f"part is '{part}'; expected test or all")
    return cohort.split(split).test


def _notes(home_cohort: Cohort, cohort: Cohort) -> list[str]:
    """What limits the comparison."""
    formats = {home_cohort.config.source.format, cohort.config.source.format}
    if home_cohort.digest == cohort.digest:
        return ["this is the cohort that the run was trained on: no external replication"]
    if formats == {"mimic3", "mimic4"}:
        return [
            "MIMIC-III and MIMIC-IV overlap in time at one hospital: some patients may be in both, "
            "and identifiers do not tell"
        ]
    return []


def translated_dataset(
    cohort: Cohort, vocabularies: Vocabularies
) -> tuple[VisitDataset, pd.DataFrame]:
    """Visits of a cohort in the vocabularies of a run, and how they came there.

    Returns
    -------
    dataset : VisitDataset
    coverage : pandas.DataFrame
        Columns ``kind``, ``codes``, ``occurrences`` and one share per way.
    """
    visits = cohort.visits.copy()
    table: list[dict[str, Any]] = []
    for kind in ("diagnoses", "procedures"):
        occurrences = [code for codes in visits[kind] for code in codes]
        found = translate(occurrences, getattr(vocabularies, kind), Equivalents(kind))
        visits[kind] = [_translated(codes, found.code) for codes in visits[kind]]
        table.append(_coverage_row(kind, occurrences, found.shares(occurrences)))
    drugs = [code for codes in visits["drugs"] for code in codes]
    known = sum(vocabularies.drugs.index(code) is not None for code in drugs)
    if not known:
        raise DataError(
            f"none of the {len(drugs)} drug entries of cohort {cohort.name} is known to the run; "
            "expected ATC codes of the same level"
        )
    share = known / len(drugs)
    table.append(_coverage_row("drugs", drugs, {"same": share, "unknown": 1.0 - share}))
    dataset = build_dataset(_Translated(visits), vocabularies)
    return dataset, pd.DataFrame(table).fillna(0.0)


@dataclass(frozen=True)
class _Translated:
    """The one table of a cohort that `build_dataset` reads."""

    visits: pd.DataFrame


def _translated(codes: Any, found: dict[str, str | None]) -> list[str]:
    """Relatives of a visit's codes, each once; a code without one keeps its name, unknown."""
    return list(dict.fromkeys(found[code] or code for code in codes))


def _coverage_row(kind: str, occurrences: list[str], shares: dict[str, float]) -> dict[str, Any]:
    return {"kind": kind, "codes": len(set(occurrences)), "occurrences": len(occurrences), **shares}


def replication_row(
    name: str, trained_on: str, rows: pd.DataFrame, reference: pd.DataFrame | None
) -> dict[str, Any]:
    """Metrics of one table of rows with 95 % intervals, and the paired difference in Jaccard.

    Parameters
    ----------
    reference : pandas.DataFrame, optional
        Rows of the same visits, by a model trained on that cohort.
    """
    values, intervals = summarise(rows), bootstrap_intervals(rows)
    row: dict[str, Any] = {
        "model": name,
        "trained_on": trained_on,
        "patients": int(rows["patient"].nunique()),
        "visits": len(rows),
    }
    for metric in _METRICS:
        row[metric] = values[metric]
        row[f"{metric}_low"], row[f"{metric}_high"] = intervals[metric]
    row["ddi_rate_true"] = values["ddi_rate_true"]
    if reference is not None:
        found = paired_bootstrap(rows, reference)["jaccard"]
        row["jaccard_difference"] = found["difference"]
        row["jaccard_difference_low"] = found["low"]
        row["jaccard_difference_high"] = found["high"]
    return row
