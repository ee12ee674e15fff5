"""Coverage of results by molecule maps, and metrics of ATC classes that look at the drugs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from medrec.config import CohortConfig, TrainConfig
from medrec.data.cohort import prepare_cohort
from medrec.evaluation.atc_classes import ClassMembers, class_rows, class_table, true_classes
from medrec.evaluation.compare import compare_runs
from medrec.evaluation.coverage import (
    DrugCounts,
    class_maps,
    coverage_note,
    coverage_table,
    group_scores,
    map_coverage,
)
from medrec.evaluation.metrics import summarise
from medrec.fitting import build_learning_data
from medrec.runs import Home
from medrec.training import learning_data_of, run_training


@dataclass
class Said:
    """A prediction that is known."""

    selected: torch.Tensor
    probs: torch.Tensor


# --------------------------------------------------------------------------- coverage


def test_maps_of_a_class_by_any_and_by_all_of_its_molecules():
    projection = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0, 0]])
    some, every = class_maps(projection, torch.tensor([True, False, False]))
    assert some.tolist() == [True, False, False, True]
    assert every.tolist() == [False, False, False, True]


def test_shares_and_scores_by_hand():
    counts = DrugCounts(np.array([6, 2, 0]), np.array([4, 4, 1]), np.array([3, 1, 0]), n_unseen=2)
    found = map_coverage(counts, torch.eye(3), torch.tensor([True, False, True]))
    assert (found["molecules"], found["molecules_with_map"], found["classes"]) == (3, 2, 3)
    assert found["prescriptions"] == 10  # two of them outside the vocabulary, without a map
    assert found["share_classes_any"] == found["share_classes_all"] == pytest.approx(2 / 3)
    assert found["share_prescriptions_any"] == pytest.approx(0.6)
    with_map, without = found["with_map"], found["without_map"]
    assert with_map["recall"] == pytest.approx(3 / 6)
    assert with_map["precision"] == pytest.approx(3 / 5)
    assert with_map["f1"] == pytest.approx(2 * 3 / (6 + 5))
    # the class that was never given is in no mean over classes
    assert with_map["f1_class_mean"] == pytest.approx(2 * 3 / (6 + 4))
    assert without["recall"] == without["recall_class_mean"] == pytest.approx(1 / 2)
    empty = group_scores(counts, np.zeros(3, bool))
    assert (empty["classes"], empty["recall"], empty["f1_class_mean"]) == (0, None, None)


def test_counts_are_those_of_every_visit_once(synthetic):
    _, cohort = synthetic
    data = build_learning_data(cohort, 0, None, molecules=True)

    def predict(batch):
        # padding is selected as well and must not count
        return Said(torch.ones_like(batch.target, dtype=torch.bool), batch.target)

    counts = DrugCounts.of(predict, data.dataset.batches(data.split.test, 3))
    visits = [data.dataset[int(p)] for p in data.split.test]
    n_visits = sum(map(len, visits))
    drugs = np.concatenate([codes for visit in visits for codes in visit.drugs])
    expected = np.bincount(drugs, minlength=data.dataset.n_drugs)
    assert counts.true.tolist() == counts.hit.tolist() == expected.tolist()
    assert counts.selected.tolist() == [n_visits] * data.dataset.n_drugs
    assert counts.n_unseen == sum(sum(visit.n_unseen) for visit in visits)


def test_a_run_says_what_it_rests_on(synthetic, tmp_path, monkeypatch):
    _, cohort = synthetic
    home = Home(tmp_path)

    def with_features(config, cohort, features, concepts=None):
        data = learning_data_of(config, cohort, features, concepts)
        tables = data.context.molecules
        n = len(tables.elf_mask)
        tables = replace(
            tables,
            elf=torch.rand(n, 3, generator=torch.Generator().manual_seed(0)),
            elf_mask=torch.arange(n) % 4 > 0,
        )
        return replace(data, context=replace(data.context, molecules=tables))

    monkeypatch.setattr("medrec.training.learning_data_of", with_features)
    optim = {"epochs": 1, "batch_patients": 64}

    def train(name: str, **model: object):
        settings = {"name": name, "model": {"name": "mmm", "d_model": 8, **model}, "optim": optim}
        return run_training(TrainConfig.model_validate(settings), cohort, home)

    whole = train("whole")
    hidden = train("hidden", representation={"kind": "elf", "hide_share": 1.0})
    without = train("without", use_global=False)
    report = whole.report()
    found = report["map_coverage"]
    n = found["molecules"]
    assert found["molecules_with_map"] == n - len(range(0, n, 4))
    assert found["with_map"]["classes"] + found["without_map"]["classes"] == found["classes"]
    given = found["with_map"]["prescriptions"] + found["without_map"]["prescriptions"]
    assert given <= found["prescriptions"]
    assert hidden.report()["map_coverage"]["share_prescriptions_any"] == 0.0
    assert "map_coverage" not in without.report()
    assert coverage_table(report)["drugs"].tolist() == ["with a map", "without"]
    assert coverage_table(without.report()).empty
    comparison = compare_runs([whole, hidden, without], cohort)
    note = comparison.header["drugs with a map"]
    assert f"{hidden.name}: 0 % of classes, 0 % of prescriptions" in note
    assert without.name not in note
    assert "drugs with a map" not in compare_runs([without], cohort).header


def test_a_note_is_the_mean_over_runs():
    reports = [
        {"map_coverage": {"share_classes_any": a, "share_prescriptions_any": b}}
        for a, b in ((0.2, 0.4), (0.4, 0.8))
    ]
    assert coverage_note(reports) == "30 % of classes, 60 % of prescriptions"
    assert coverage_note([{}]) is None


# --------------------------------------------------------------------------- ATC classes


def test_classes_by_any_member_and_highest_probability():
    members = ClassMembers.of(["B01AC06", "A02BA02", "B01AA03", "B01AC04"])
    assert members.classes == ("A02B", "B01A")
    sets = np.array([[True, False, False, True], [False, True, False, False]])
    assert members.any(sets).tolist() == [[False, True], [True, False]]
    scores = np.array([[0.2, 0.9, 0.4, 0.3]])
    assert members.max(scores).tolist() == [[0.9, 0.4]]
    ddi = np.zeros((4, 4), np.uint8)
    ddi[0, 3] = ddi[3, 0] = 1  # within a class: dropped
    assert members.pairs(ddi).sum() == 0
    ddi[1, 3] = ddi[3, 1] = 1
    assert members.pairs(ddi).tolist() == [[0, 1], [1, 0]]


def content_blind_jaccard(target, selected, classes: list[str]) -> np.ndarray:
    """The released formula: a set of drugs goes in where a vector over all drugs is expected, and
    positions are read for drugs, so that the n drugs of a set become the first n of the vocabulary.
    """
    found = []
    for truth, guess in zip(target, selected, strict=True):
        a = {classes[position] for position, _ in enumerate(np.flatnonzero(truth))}
        b = {classes[position] for position, _ in enumerate(np.flatnonzero(guess))}
        found.append(len(a & b) / len(a | b))
    return np.array(found)


@pytest.fixture(scope="module")
def substances(tmp_path_factory):
    """A cohort whose drugs are single substances (ATC level 5)."""
    home = Home(tmp_path_factory.mktemp("level5"))
    source = {
        "format": "synthetic",
        "n_patients": 120,
        "n_diagnoses": 30,
        "n_procedures": 12,
        "n_drugs": 120,
    }
    config = {"name": "level5", "source": source, "atc_level": 5}
    return home, prepare_cohort(CohortConfig.model_validate(config), home)


def test_random_drugs_of_the_right_number_score_near_chance(substances):
    _, cohort = substances
    data = build_learning_data(cohort, 0, None, molecules=False)
    codes = data.dataset.vocabularies.drugs.codes
    patients = data.split.train
    truth = true_classes(cohort, patients)
    generator = torch.Generator().manual_seed(0)
    kept = []

    def at_random(batch):
        scores = torch.rand(batch.target.shape, generator=generator)
        size = batch.target.sum(dim=-1, keepdim=True).long()
        place = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
        kept.append((batch.target[batch.mask] > 0.5, (place < size)[batch.mask]))
        return Said(place < size, scores)

    def perfect(batch):
        return Said(batch.target > 0.5, batch.target)

    def score(predict) -> dict[str, float]:
        batches = data.dataset.batches(patients, 32)
        return summarise(class_rows(predict, batches, codes, truth, data.ddi))

    chance = score(at_random)
    target, selected = (torch.cat(parts).numpy() for parts in zip(*kept, strict=True))
    blind = content_blind_jaccard(target, selected, [code[:4] for code in codes])
    assert blind.mean() == 1.0
    # expected overlap of two random sets of a share q of the classes: q / (2 - q)
    share = chance["mean_n_drugs_true"] / len({code[:4] for code in codes})
    assert chance["jaccard"] == pytest.approx(share / (2 - share), abs=0.06)
    assert chance["jaccard"] < 0.25
    whole = score(perfect)
    assert whole["jaccard"] == whole["prauc"] == 1.0
    assert whole["ddi_rate"] == pytest.approx(whole["ddi_rate_true"])


def test_a_true_class_without_a_known_member_is_missed(substances):
    _, cohort = substances
    data = build_learning_data(cohort, 0, None, molecules=False)
    codes = data.dataset.vocabularies.drugs.codes
    truth = {key: {"Z99Z"} for key in true_classes(cohort, data.split.test)}

    def everything(batch):
        return Said(torch.ones_like(batch.target, dtype=torch.bool), batch.target)

    batches = data.dataset.batches(data.split.test, 32)
    rows = class_rows(everything, batches, codes, truth, data.ddi)
    assert (rows["n_true"] == 1).all()
    assert (rows["n_hit"] == 0).all()


def test_a_finer_cohort_reports_classes_and_a_coarse_one_does_not(substances, synthetic, tmp_path):
    config = TrainConfig.model_validate({"name": "top", "model": {"name": "topk"}})
    home = Home(tmp_path)
    fine = run_training(config, substances[1], home).report()
    coarse = run_training(config, synthetic[1], home).report()
    assert "test_atc3" not in coarse
    assert class_table(coarse).empty
    assert fine["test_atc3"]["mean_n_drugs"] <= fine["test"]["mean_n_drugs"]
    assert fine["test_atc3"]["jaccard"] >= fine["test"]["jaccard"]
    assert class_table(fine)["metric"].tolist()[0] == "jaccard"
