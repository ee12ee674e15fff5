"""A run judged elsewhere: same numbers at home, translated codes, unknown drugs count as missed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medrec.config import TrainConfig
from medrec.data.cohort import Cohort
from medrec.evaluation.compare import load_rows
from medrec.evaluation.metrics import summarise
from medrec.replication import replicate, replication_row, translated_dataset
from medrec.runs import Run
from medrec.training import run_training
from quantum.base import DataError, InputError


@pytest.fixture(scope="module")
def trained(synthetic) -> tuple[Run, object, Cohort]:
    home, cohort = synthetic
    config = TrainConfig.model_validate({"name": "lr", "model": {"name": "logistic_regression"}})
    return run_training(config, cohort, home), home, cohort


class Other:
    """A cohort with changed visits, everything else as the original."""

    def __init__(self, cohort: Cohort, visits: pd.DataFrame) -> None:
        self._cohort, self.visits = cohort, visits

    def __getattr__(self, name: str) -> object:
        return getattr(self._cohort, name)


def test_at_home_known_codes_stay_and_the_truth_is_the_same(trained):
    run, home, cohort = trained
    found, own = replicate(run, home, cohort), load_rows(run)
    # codes that only test patients have are unknown to the run: they find a relative
    shares = found.coverage.set_index("kind")
    assert (shares["same"] > 0.9).all()
    assert (found.rows[["patient", "visit", "n_true"]] == own[["patient", "visit", "n_true"]]).all(
        axis=None
    )
    assert summarise(found.rows)["jaccard"] == pytest.approx(summarise(own)["jaccard"], abs=0.05)
    assert "no external replication" in found.notes[0]


def test_all_patients_are_more_than_the_test_part(trained):
    run, home, cohort = trained
    everyone = replicate(run, home, cohort, part="all")
    assert everyone.rows["patient"].nunique() == cohort.n_patients
    with pytest.raises(InputError, match="expected test or all"):
        replicate(run, home, cohort, part="train")


def test_unknown_drugs_count_as_missed(trained):
    run, home, cohort = trained
    visits = cohort.visits.copy()
    visits["drugs"] = [np.append(codes, "Z99Z") for codes in visits["drugs"]]
    found = replicate(run, home, Other(cohort, visits))
    assert (found.rows["n_true"] == load_rows(run)["n_true"] + 1).all()
    assert summarise(found.rows)["jaccard"] < summarise(load_rows(run))["jaccard"]


def test_codes_of_the_other_version_are_translated(trained):
    _, _, cohort = trained
    vocabularies = cohort.vocabularies(0)
    visits = cohort.visits.copy()
    visits["diagnoses"] = [[f"icd10:{i}" for i in ("I10",)] for _ in range(len(visits))]
    _, coverage = translated_dataset(Other(cohort, visits), vocabularies)
    row = coverage.set_index("kind").loc["diagnoses"]
    assert row["occurrences"] == len(visits)
    assert row[["same", "crosswalk", "category", "unknown"]].sum() == pytest.approx(1.0)


def test_nothing_in_common_is_an_error(trained):
    run, home, cohort = trained
    visits = cohort.visits.copy()
    visits["drugs"] = [["Z99Z"] for _ in range(len(visits))]
    with pytest.raises(DataError, match=r"none of the .* is known"):
        replicate(run, home, Other(cohort, visits))


def test_row_states_the_paired_difference(trained):
    run, _, _ = trained
    rows = load_rows(run)
    row = replication_row("lr", "here", rows, rows)
    assert row["jaccard_difference"] == row["jaccard_difference_low"] == 0.0
    assert row["jaccard_low"] <= row["jaccard"] <= row["jaccard_high"]
