"""Flat storage and batches, against plain loops."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medrec.data.dataset import CodeRows, PatientVisits, VisitDataset, build_dataset, collate
from medrec.data.schema import Vocabularies, Vocabulary

N = 6
codes = st.lists(st.integers(0, N - 1), unique=True, max_size=4).map(
    lambda items: np.array(sorted(items), dtype=np.int64)
)
visit = st.tuples(codes, codes, codes, st.integers(0, 2))
patient = st.lists(visit, min_size=1, max_size=4).map(
    lambda visits: PatientVisits(*(tuple(column) for column in zip(*visits, strict=True)))
)
NAMES = Vocabulary(tuple("abcdef"))
VOCABULARIES = Vocabularies(NAMES, NAMES, NAMES)


@settings(max_examples=60, deadline=None)
@given(st.lists(patient, min_size=1, max_size=5), st.randoms())
def test_a_batch_holds_what_loops_over_patients_and_visits_find(patients, random):
    dataset = VisitDataset.of(VOCABULARIES, {10 + 2 * i: p for i, p in enumerate(patients)})
    order = list(dataset)
    random.shuffle(order)
    batch = dataset.collate(order)
    n_visits = max(len(dataset[p]) for p in order)
    assert batch.shape == (len(order), n_visits)
    assert batch.patient.tolist() == order
    for bag, kind in ((batch.diagnoses, "diagnoses"), (batch.procedures, "procedures")):
        found = sorted(zip(bag.visit.tolist(), bag.index.tolist(), strict=True))
        wanted = sorted(
            (b * n_visits + t, int(code))
            for b, p in enumerate(order)
            for t, visit_codes in enumerate(getattr(dataset[p], kind))
            for code in visit_codes
        )
        assert found == wanted
    for b, p in enumerate(order):
        for t in range(n_visits):
            inside = t < len(dataset[p])
            assert bool(batch.mask[b, t]) == inside
            drugs = set(dataset[p].drugs[t].tolist()) if inside else set()
            before = set(dataset[p].drugs[t - 1].tolist()) if inside and t else set()
            assert set(torch.nonzero(batch.target[b, t]).flatten().tolist()) == drugs
            assert set(torch.nonzero(batch.drugs_before[b, t]).flatten().tolist()) == before
            assert int(batch.n_unseen[b, t]) == (dataset[p].n_unseen[t] if inside else 0)


@given(st.lists(codes, min_size=1, max_size=6), st.data())
def test_gathered_rows_are_the_rows(rows, data):
    stacked = CodeRows.of(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    found, owner = stacked.gather(np.array(chosen, dtype=np.int64))
    for place, row in enumerate(chosen):
        assert found[owner == place].tolist() == rows[row].tolist()


def test_one_epoch_of_batches_holds_every_patient_once():
    one = np.array([0], dtype=np.int64)
    lengths = [1, 3, 2, 1, 2, 5, 1]
    patients = {
        i: PatientVisits(*[(one,) * n] * 3, n_unseen=(0,) * n) for i, n in enumerate(lengths)
    }
    dataset = VisitDataset.of(VOCABULARIES, patients)
    seen = [b.patient.tolist() for b in dataset.batches(list(patients), 3, shuffle_seed=4)]
    assert sorted(p for batch in seen for p in batch) == list(patients)
    assert dataset.n_visits([1, 5]) == 8
    again = [b.patient.tolist() for b in dataset.batches(list(patients), 3, shuffle_seed=4)]
    assert seen == again


def test_encoding_a_cohort_counts_drugs_outside_the_vocabulary(synthetic):
    _, cohort = synthetic
    whole = cohort.vocabularies(0)
    fewer = Vocabularies(
        whole.diagnoses, whole.procedures, Vocabulary(tuple(whole.drugs.codes[::2]))
    )
    dataset = build_dataset(cohort, fewer)
    visits = cohort.visits
    for kind in ("diagnoses", "procedures", "drugs"):
        vocabulary = getattr(fewer, kind)
        for (p, t), own in visits.set_index(["patient", "visit"])[kind].head(40).items():
            known = [vocabulary.index(code) for code in own if vocabulary.index(code) is not None]
            assert getattr(dataset[p], kind)[t].tolist() == known
            if kind == "drugs":
                assert dataset[p].n_unseen[t] == len(own) - len(known)


def test_patients_from_anywhere_make_a_batch():
    own = PatientVisits(*[(np.array([1, 3]),)] * 3, n_unseen=(1,))
    batch = collate([own], [77], n_drugs=5)
    assert batch.patient.tolist() == [77]
    assert batch.target[0, 0].tolist() == [0, 1, 0, 1, 0]
    assert batch.n_unseen.tolist() == [[1]]
