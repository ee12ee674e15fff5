"""Precision, recall and F1 per drug class, and the section that shows them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from medrec.config import TrainConfig
from medrec.evaluation.by_class import (
    METRICS,
    RecommendedSets,
    class_performance,
    pair_counts,
    recommended_sets,
)
from medrec.evaluation.compare import compare_runs, load_rows
from medrec.evaluation.context import TestPart
from medrec.report.classes import class_figure, class_section, group_figure
from medrec.report.page import Page
from medrec.runs import Home
from medrec.training import load_predictor, run_training
from quantum.base import DataError

CODES = ("A01A", "A02B", "B01A", "C07A", "N02A")


def made_up(n_patients: int = 40, n_visits: int = 3, seed: int = 0) -> RecommendedSets:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), n_visits)
    target = rng.random((len(patient), 5)) < [0.9, 0.4, 0.2, 0.05, 0.0]
    selected = rng.random((len(patient), 5)) < [0.9, 0.5, 0.0, 0.1, 0.0]
    visit = np.tile(np.arange(n_visits), n_patients)
    return RecommendedSets(CODES, np.ones(5, bool), patient, visit, target, selected)


@pytest.fixture(scope="module")
def trained(synthetic, tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("classes"))
    home.cohorts.symlink_to(synthetic[0].cohorts)
    configs = [{"name": name, "model": {"name": name}} for name in ("copy_last", "topk")]
    runs = [run_training(TrainConfig.model_validate(c), synthetic[1], home) for c in configs]
    return home, runs, compare_runs(runs, synthetic[1])


def test_metrics_of_classes_are_those_of_scikit_learn():
    sets = made_up()
    found = class_performance(sets, n_resamples=10)
    expected = precision_recall_fscore_support(sets.target, sets.selected, zero_division=np.nan)
    assert found["name"].tolist() == list(CODES)
    for metric, values in zip(METRICS, expected[:3], strict=True):
        np.testing.assert_allclose(found[metric], values, err_msg=metric)
    assert found["support"].tolist() == expected[3].tolist()
    assert np.isnan(found["precision"][2])  # never recommended
    assert np.isnan(found["recall"][4])  # never given
    np.testing.assert_allclose(found["prevalence_true"], sets.target.mean(axis=0))
    np.testing.assert_allclose(found["prevalence_recommended"], sets.selected.mean(axis=0))


def test_groups_pool_the_counts_of_their_classes():
    sets = made_up()
    found = class_performance(sets, ["A", "A", "B", "C", "N"], n_resamples=10)
    flat = precision_recall_fscore_support(
        sets.target[:, :2].ravel(), sets.selected[:, :2].ravel(), average="binary"
    )
    assert found["name"].tolist() == ["A", "B", "C", "N"]
    assert found["classes"].tolist() == [2, 1, 1, 1]
    assert found.loc[0, list(METRICS)].tolist() == pytest.approx(flat[:3])


def test_intervals_resample_patients_and_not_visits():
    # ten copies of a visit per patient: no more is known than with one
    once = made_up(n_visits=1, seed=3)
    ten = RecommendedSets(
        CODES,
        once.known,
        np.repeat(once.patient, 10),
        np.tile(np.arange(10), len(once.patient)),
        np.repeat(once.target, 10, axis=0),
        np.repeat(once.selected, 10, axis=0),
    )
    one, more = (class_performance(sets, n_resamples=400) for sets in (once, ten))
    for metric in METRICS:
        for end in ("_low", "_high"):
            np.testing.assert_allclose(one[metric + end], more[metric + end])
    # the interval of a share of m patients, against theory: sd = sqrt(p (1 - p) / m)
    many = class_performance(made_up(n_patients=400, n_visits=1, seed=4), n_resamples=2000).loc[1]
    sd = np.sqrt(many["recall"] * (1 - many["recall"]) / many["support"])
    assert many["recall_high"] - many["recall_low"] == pytest.approx(2 * 1.96 * sd, rel=0.12)


def test_pairs_are_counted_per_visit():
    target = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1]], bool)
    selected = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 0]], bool)
    sets = RecommendedSets(CODES[:3], np.ones(3, bool), np.arange(3), np.zeros(3), target, selected)
    interacts = np.array([[0, 4, 1], [4, 0, 0], [1, 0, 0]])
    found = pair_counts(sets, interacts)
    columns = ["a", "b", "recommended", "given", "both"]
    assert found[columns].to_numpy().tolist() == [[0, 1, 2, 2, 1], [0, 2, 0, 1, 0]]
    assert found["rate_given"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert pair_counts(sets, np.zeros((3, 3))).empty


def test_predicted_sets_agree_with_the_stored_rows(trained):
    home, runs, _ = trained
    for run in runs:
        loaded = load_predictor(run, home)
        sets = recommended_sets(loaded.model.predict, loaded.cohort, loaded.vocabularies, 0)
        rows = load_rows(run)
        assert sets.patient.tolist() == rows["patient"].tolist()
        assert sets.visit.tolist() == rows["visit"].tolist()
        # true drugs outside the vocabulary count in both
        assert sets.target.sum(axis=1).tolist() == rows["n_true"].tolist()
        assert sets.selected.sum(axis=1).tolist() == rows["n_selected"].tolist()
        hits = (sets.target & sets.selected).sum(axis=1)
        assert hits.tolist() == rows["n_hit"].tolist()
        assert not sets.selected[:, ~sets.known].any()


def test_visits_of_another_part_are_refused(trained, monkeypatch):
    home, runs, _ = trained
    loaded = load_predictor(runs[0], home)
    part = TestPart.of(loaded.cohort, 0)
    other = replace(part, patient=part.patient + 1)
    monkeypatch.setattr("medrec.evaluation.by_class.TestPart.of", lambda cohort, split: other)
    with pytest.raises(DataError, match="expected the"):
        recommended_sets(loaded.model.predict, loaded.cohort, loaded.vocabularies, 0)


# --------------------------------------------------------------------------- the section


def test_the_section_shows_every_class_of_every_model(trained, synthetic):
    _, runs, comparison = trained
    cohort = synthetic[1]
    page = Page("t", "s")
    text = "".join(class_section(page, cohort, comparison, runs))
    assert len(page.figures) == 2
    for title in comparison.titles():
        assert f"<summary>{title}</summary>" in text
    by_class = text.split("<h3>By class</h3>")[1]
    assert all(by_class.count(f"<td>{code} ") == len(runs) for code in cohort.drugs["atc"])
    part = cohort.visits[cohort.visits["patient"].isin(cohort.split(0).test)]
    code = max(cohort.drugs["atc"], key=lambda c: sum(c in drugs for drugs in part["drugs"]))
    support = sum(code in drugs for drugs in part["drugs"])
    row = by_class.split(f"<td>{code} ")[1].split("</tr>")[0]
    assert f'data-key="{support}"' in row


def test_no_run_is_said(synthetic):
    page = Page("t", "s")
    assert "No training run" in class_section(page, synthetic[1], None, [])[0]


def test_runs_that_cannot_be_loaded_are_said(trained, synthetic, tmp_path):
    from medrec.report.learned import Models

    _, runs, comparison = trained
    lost = Models(Home(tmp_path), comparison, runs)
    text = "".join(class_section(Page("t", "s"), synthetic[1], comparison, runs, lost))
    assert "nothing can be said by class" in text
    assert text.count("could not be loaded") == len(runs)


def test_rare_classes_are_marked_and_drugs_cannot_become_markup(trained, synthetic, monkeypatch):
    _, runs, comparison = trained
    cohort = synthetic[1]
    drugs = cohort.drugs.assign(name="<script>alert(1)</script>")
    monkeypatch.setitem(cohort.__dict__, "drugs", drugs)
    monkeypatch.setattr("medrec.report.classes.RARE", 10_000)
    text = "".join(class_section(Page("t", "s"), cohort, comparison, runs))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    by_class = text.split("<h3>By class</h3>")[1]
    assert by_class.count("<small>rare</small>") == len(runs) * len(drugs)
    assert f"{len(drugs)} of {len(drugs)} classes were given in fewer than" in text


def test_figures_hold_what_the_tables_hold():
    sets = made_up()
    classes = {"one": class_performance(sets, n_resamples=20)}
    figure = class_figure(classes, {"A01A": "<b>x"}, 120)
    (trace,) = figure.data
    # the class that was never given has no place on a logarithmic axis
    given = classes["one"][classes["one"]["support"] > 0]
    assert sorted(trace.y) == pytest.approx(sorted(given["f1"]))
    assert sorted(trace.x) == pytest.approx(sorted(100 * given["prevalence_true"]))
    assert any("&lt;b&gt;x" in text for text in trace.customdata)
    groups = {"one": class_performance(sets, ["A", "A", "B", "C", "N"], n_resamples=20)}
    panels = group_figure(groups).data
    assert len(panels) == len(METRICS)
    for metric, panel in zip(METRICS, panels, strict=True):
        assert list(panel.x) == pytest.approx(groups["one"][metric].dropna().tolist())
        assert all(re.search(r"given \d+ times", text) for text in panel.customdata)
