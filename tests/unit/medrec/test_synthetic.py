from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from medrec.config import CohortConfig, SyntheticSource
from medrec.data.cohort import Cohort, prepare_cohort
from medrec.data.planted import (
    SECOND_LINE_CONDITION,
    W_EARLIER,
    W_INDICATED,
    W_INTERACTION,
    W_PAST,
    W_PREVIOUS,
    build_plan,
    known_substances,
    similarity,
)
from medrec.data.planted_drugs import Past, no_past
from medrec.data.synthetic import read_synthetic, simulate
from medrec.evaluation.optimum import bayes_optimal_sets
from medrec.molecules.drugs import build_drug_molecules, ddi_matrix
from medrec.runs import Home
from quantum.base import InputError

ALL = ["base", "history", "structure", "interactions"]


def source(**values) -> SyntheticSource:
    return SyntheticSource.model_validate({"format": "synthetic", **values})


SOURCE = source(n_patients=800, seed=5)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    config = CohortConfig(name="synthetic", source=SOURCE)
    return prepare_cohort(config, Home(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def hard():
    return simulate(source(like="mimic3", n_patients=400, planted=ALL, seed=2))


def test_same_seed_same_events_other_seed_other_events():
    small = SOURCE.model_copy(update={"n_patients": 20})
    first, again = read_synthetic(small), read_synthetic(small)
    other = read_synthetic(small.model_copy(update={"seed": 6}))
    assert first.prescriptions.equals(again.prescriptions)
    assert first.oracle is not None
    assert first.oracle.equals(again.oracle)
    assert not other.prescriptions.equals(first.prescriptions)


def test_another_hospital_has_other_patients_under_the_same_rules():
    here, there = simulate(SOURCE), simulate(SOURCE.model_copy(update={"hospital": 1}))
    assert here.plan.drugs == there.plan.drugs
    assert (here.plan.affinity == there.plan.affinity).all()
    # indications follow from affinity and from how often conditions are active: nearly the same
    same = here.rules.indicated_by == there.rules.indicated_by
    assert same.mean() > 0.9
    assert len(here.patient) != len(there.patient) or (here.given != there.given).any()


def test_admission_numbers_are_not_in_order_of_time():
    table = read_synthetic(SOURCE).admissions.sort("subject", "admit_time")
    pairs = table.with_columns(next=pl.col("admission").shift(-1).over("subject"))
    pairs = pairs.drop_nulls("next")
    share = float((pairs["next"] < pairs["admission"]).mean())
    assert share == pytest.approx(0.5, abs=0.05)


def test_every_drug_maps_to_the_class_that_was_planted(cohort):
    planted = {drug.atc5[:4] for drug in build_plan(SOURCE).drugs}
    assert set(cohort.drugs["atc"]) == planted
    assert len(planted) == SOURCE.n_drugs
    assert cohort.coverage.set_index("route").loc["name", "share"] == 1.0


def test_published_marginals_of_mimic3():
    hospital = simulate(source(like="mimic3"))
    n = len(hospital.patient)
    visits = np.bincount(hospital.patient)
    assert (len(visits), n, visits.max(), visits.min()) == (6_350, 15_032, 29, 2)
    assert len(np.unique(hospital.diagnoses.code)) == 1_958
    assert len(np.unique(hospital.procedures.code)) == 1_430
    assert hospital.given.any(axis=0).sum() == 131
    assert len(hospital.diagnoses.code) / n == pytest.approx(10.2, abs=0.4)
    assert len(hospital.procedures.code) / n == pytest.approx(3.8, abs=0.2)
    assert hospital.given.sum(axis=1).mean() == pytest.approx(19.0, abs=0.4)
    frequency = np.sort(np.bincount(hospital.diagnoses.code))[::-1]
    assert frequency[:200].sum() > 0.45 * frequency.sum()  # a tenth of the codes


def test_drugs_follow_the_stored_probabilities(hard):
    for low, high in ((0.0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 1.0)):
        cell = (hard.probability >= low) & (hard.probability < high)
        n, expected = cell.sum(), hard.probability[cell].mean()
        assert n > 1_000
        assert hard.given[cell].mean() == pytest.approx(
            expected, abs=4 * (expected * (1 - expected) / n) ** 0.5
        )
    later = hard.visit > 0
    miss = (hard.given[later] - hard.probability[later]).sum(axis=0)
    spread = (hard.probability[later] * (1 - hard.probability[later])).sum(axis=0) ** 0.5
    assert np.abs(miss / spread).max() < 4.5


def test_formula_by_hand(hard):
    rules, n_drugs = hard.rules, len(hard.rules.bias)
    drug = int(np.flatnonzero(hard.plan.first_line < 0)[0])
    other = int(np.flatnonzero(hard.plan.interacts.any(axis=0))[0])
    nothing = np.zeros((1, n_drugs), dtype=bool)

    def logit(place: int, indicated=nothing, **past) -> float:
        state = Past(*(past.get(k, nothing) for k in ("previous", "earlier", "indicated")))
        return float(rules.logits(indicated, state)[0, place])

    one = nothing.copy()
    one[0, drug] = True
    bias = rules.bias[drug]
    assert logit(drug) == pytest.approx(bias, abs=1e-5)
    assert logit(drug, indicated=one) == pytest.approx(bias + W_INDICATED, abs=1e-5)
    assert logit(drug, previous=one) == pytest.approx(bias + W_PREVIOUS, abs=1e-5)
    assert logit(drug, earlier=one) == pytest.approx(bias + W_EARLIER, abs=1e-5)
    assert logit(drug, previous=one, earlier=one) == pytest.approx(bias + W_PREVIOUS, abs=1e-5)
    past = Past(nothing, nothing, one)
    assert rules.logits(nothing, past)[0, drug] == pytest.approx(bias + W_PAST, abs=1e-5)
    partner = int(np.flatnonzero(hard.plan.interacts[other])[0])
    met = nothing.copy()
    met[0, partner] = True
    assert logit(other, previous=met) == pytest.approx(rules.bias[other] - W_INTERACTION, abs=1e-5)


def test_history_reaches_further_back_than_one_visit():
    past = no_past(1, 2)
    who = np.array([0])
    given = [np.array([[True, False]]), np.array([[False, True]])]
    for drugs in given:
        past.note(who, drugs, drugs)
    assert past.previous.tolist() == [[False, True]]
    assert past.earlier.tolist() == [[True, False]]
    assert past.indicated.tolist() == [[True, True]]


def test_without_history_the_past_does_not_matter():
    hospital = simulate(source(n_patients=50, planted=["base"]))
    everything = np.ones((1, 24), dtype=bool)
    nothing = np.zeros((1, 24), dtype=bool)
    rules = hospital.rules
    loud, silent = Past(everything, everything, everything), Past(nothing, nothing, nothing)
    assert (rules.logits(nothing, loud) == rules.logits(nothing, silent)).all()


def test_similar_molecules_share_indications(hard):
    plan = hard.plan
    alike = similarity([drug.smiles for drug in plan.drugs])
    pairs = np.triu_indices(len(alike), 1)
    affinity = np.corrcoef(plan.affinity)[pairs]
    near = alike[pairs] > 0.4
    assert near.sum() > 5
    assert affinity[near].mean() > affinity[~near].mean() + 0.15


def test_a_second_line_drug_stands_in_for_a_similar_one(hard):
    plan = hard.plan
    second = np.flatnonzero(plan.first_line >= 0)
    first = plan.first_line[second]
    assert len(second) == 131 // 8
    assert len(set(first)) == len(first)
    assert plan.popularity[second].max() <= np.sort(plan.popularity)[len(second)]
    active = np.zeros((2, plan.n_conditions), dtype=bool)
    active[:, np.flatnonzero(hard.rules.indicated_by[first[0]])[0]] = True
    active[1, SECOND_LINE_CONDITION] = True
    wanted = hard.rules.indicated(active)
    assert wanted[:, first[0]].tolist() == [True, False]
    assert wanted[:, second[0]].tolist() == [False, True]


def test_the_optimum_is_what_it_says_and_beats_frequencies(hard):
    selected, expected = bayes_optimal_sets(hard.probability)

    def jaccard(sets: np.ndarray) -> float:
        return float(((sets & hard.given).sum(1) / (sets | hard.given).sum(1)).mean())

    assert jaccard(selected) == pytest.approx(expected.mean(), abs=0.015)
    top = np.zeros_like(hard.given)
    top[:, np.argsort(-hard.given.mean(axis=0))[:19]] = True
    assert jaccard(selected) > jaccard(top) + 0.15


# --------------------------------------------------------------------------- cohort


def test_oracle_stands_in_the_order_of_visits_and_drugs(cohort):
    hospital = simulate(SOURCE)
    kept = np.bincount(hospital.patient)[hospital.patient] >= 2
    column = {drug.atc5[:4]: i for i, drug in enumerate(hospital.plan.drugs)}
    order = [column[atc] for atc in cohort.drugs["atc"]]
    assert cohort.oracle is not None
    assert cohort.oracle.dtype == np.float32
    assert (cohort.oracle == hospital.probability[kept][:, order]).all()
    given = [[column[atc] for atc in drugs] for drugs in cohort.visits["drugs"]]
    assert [sorted(row) for row in given] == [
        np.flatnonzero(row).tolist() for row in hospital.given[kept]
    ]


def test_oracle_loses_the_classes_that_filters_drop(cohort, tmp_path):
    values = {"name": "few", "source": SOURCE, "vocabulary_fit": "all", "top_drugs": 20}
    few = prepare_cohort(CohortConfig.model_validate(values), Home(tmp_path))
    assert few.oracle is not None
    assert few.oracle.shape == (len(few.visits), 20)


def test_no_oracle_where_histories_are_not_in_order_of_time(tmp_path):
    values = {"name": "old", "source": SOURCE, "preset": "legacy", "molecules": "class"}
    assert prepare_cohort(CohortConfig.model_validate(values), Home(tmp_path)).oracle is None


def test_polars_and_pandas_visits_are_the_same(cohort):
    assert cohort.visits["drugs"].tolist() == cohort.visits_polars["drugs"].to_list()
    assert list(cohort.visits) == cohort.visits_polars.columns


def test_every_synthetic_drug_has_a_molecule_and_some_interact(cohort):
    drugs = cohort.vocabularies(0).drugs
    molecules = build_drug_molecules(cohort, drugs)
    assert molecules.projection.sum(axis=1) == pytest.approx(1.0)
    assert not molecules.dropped
    assert 0 < ddi_matrix(cohort, drugs).mean() < 0.5


def test_codes_have_titles(cohort):
    assert (cohort.codes["title"] != "").all()


# --------------------------------------------------------------------------- requests


def test_there_are_classes_enough_for_the_published_number():
    assert len(known_substances()) >= 131


def test_asking_for_more_than_there_is():
    limit = len(known_substances())
    with pytest.raises(InputError, match=f"n_drugs is {limit + 1}; the code table has {limit}"):
        build_plan(SOURCE.model_copy(update={"n_drugs": limit + 1}))


def test_visits_scale_with_patients():
    assert source(like="mimic3", n_patients=635).n_visits == 1_503
    assert source(n_patients=7).n_visits is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_visits": 100, "n_patients": 60}, "n_visits is 100; 60 patients with 2 to 29"),
        ({"mean_drugs": 20.0}, "mean_drugs is 20; expected at most 0.6 of n_drugs"),
        ({"planted": ["history"]}, "planted holds 'base'"),
        ({"planted": ["base", "base"]}, "each other name at most once"),
        ({"like": "mimic5"}, "mimic5|like"),
    ],
)
def test_requests_that_cannot_be(values, message):
    with pytest.raises(ValidationError, match=message):
        source(**values)
