from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from medrec.config import CohortConfig, SyntheticSource
from medrec.data.cohort import Cohort, prepare_cohort
from medrec.data.synthetic import (
    P_CONTINUED,
    P_INDICATED,
    P_OTHERWISE,
    build_plan,
    drug_probability,
    known_substances,
    read_synthetic,
)
from medrec.molecules.drugs import build_drug_molecules, ddi_matrix
from medrec.runs import Home
from quantum.base import InputError

SOURCE = SyntheticSource(format="synthetic", n_patients=1500, seed=5)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    config = CohortConfig(name="synthetic", source=SOURCE)
    return prepare_cohort(config, Home(tmp_path_factory.mktemp("home")))


def test_same_seed_same_events_other_seed_other_events():
    small = SOURCE.model_copy(update={"n_patients": 20})
    again, other = read_synthetic(small), read_synthetic(small.model_copy(update={"seed": 6}))
    assert read_synthetic(small).prescriptions.equals(again.prescriptions)
    assert not other.prescriptions.equals(again.prescriptions)


def test_admission_numbers_are_not_in_order_of_time():
    table = read_synthetic(SOURCE).admissions.sort("subject", "admit_time")
    pairs = table.with_columns(next=pl.col("admission").shift(-1).over("subject"))
    pairs = pairs.drop_nulls("next")
    share = float((pairs["next"] < pairs["admission"]).mean())
    assert share == pytest.approx(0.5, abs=0.05)


def test_every_drug_maps_to_the_class_that_was_planted(cohort):
    planted = {atc5[:4] for atc5, _ in build_plan(SOURCE).drugs}
    assert set(cohort.drugs["atc"]) == planted
    assert len(planted) == SOURCE.n_drugs
    assert cohort.coverage.set_index("route").loc["name", "share"] == 1.0


def test_marginals(cohort):
    counts = cohort.counts
    assert counts["max_visits_per_patient"] <= 29
    # visits are 1 + Poisson(1.4); of those, patients with two or more: 1.4 / (1 - e^-1.4) + 1
    expected = 1 + 1.4 / (1 - np.exp(-1.4))
    assert counts["mean_visits_per_patient"] == pytest.approx(expected, abs=0.1)
    assert cohort.visits[["diagnoses", "procedures", "drugs"]].map(len).to_numpy().min() == 1


def test_drugs_follow_the_planted_probabilities(cohort):
    """Observed frequency of a drug in the four situations against the stated formula."""
    plan = build_plan(SOURCE)
    column = {f"icd9:{code}": i for i, code in enumerate(plan.diagnoses)}
    row = {atc5[:4]: i for i, (atc5, _) in enumerate(plan.drugs)}
    seen = {(a, b): [0, 0] for a in (0, 1) for b in (0, 1)}
    for _, visits in cohort.visits.groupby("patient"):
        before: set[int] = set()
        for diagnoses, drugs in zip(visits["diagnoses"], visits["drugs"], strict=True):
            given = {row[atc] for atc in drugs}
            indicated = plan.indications[:, [column[code] for code in diagnoses]].any(axis=1)
            if before:
                for drug in range(len(plan.drugs)):
                    cell = seen[int(indicated[drug]), int(drug in before)]
                    cell[0] += drug in given
                    cell[1] += 1
            before = given
    for (indicated, continued), (n_given, n) in seen.items():
        missed = (1 - P_OTHERWISE) * (1 - P_INDICATED * indicated) * (1 - P_CONTINUED * continued)
        assert n > 300
        assert n_given / n == pytest.approx(1 - missed, abs=4 * (0.25 / n) ** 0.5 + 0.01)


def test_probability_formula_by_hand():
    plan = build_plan(SOURCE)
    drug = 0
    diagnosis = np.flatnonzero(plan.indications[drug])[:1]
    before = np.zeros(len(plan.drugs), dtype=bool)
    assert drug_probability(plan, diagnosis, before)[drug] == pytest.approx(1 - 0.98 * 0.2)
    before[drug] = True
    assert drug_probability(plan, diagnosis, before)[drug] == pytest.approx(1 - 0.98 * 0.2 * 0.65)


def test_every_synthetic_drug_has_a_molecule_and_some_interact(cohort):
    drugs = cohort.vocabularies(0).drugs
    molecules = build_drug_molecules(cohort, drugs)
    assert molecules.projection.sum(axis=1) == pytest.approx(1.0)
    assert not molecules.dropped
    assert 0 < ddi_matrix(cohort, drugs).mean() < 0.5


def test_codes_have_titles(cohort):
    assert (cohort.codes["title"] != "").all()


def test_asking_for_more_than_there_is():
    limit = len(known_substances())
    with pytest.raises(InputError, match=f"n_drugs is {limit + 1}; the code table has {limit}"):
        build_plan(SOURCE.model_copy(update={"n_drugs": limit + 1}))
