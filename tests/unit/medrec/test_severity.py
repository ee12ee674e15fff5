"""Grades: the hard mode, the table per grade, and the commands that show them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from medrec.config import TrainConfig
from medrec.evaluation import hard_mode
from medrec.evaluation.groups import load_rows
from medrec.evaluation.hard_mode import (
    allowed_sets,
    forbidden_pairs,
    heaviest_independent_set,
    parse_grade,
)
from medrec.evaluation.metrics import summarise
from medrec.evaluation.severity import severity_table
from medrec.molecules.drugs import severity_matrix
from medrec.recommend import recommend
from medrec.redecode import Redecoder, decode_hard
from medrec.runs import Home, Run
from medrec.training import run_training
from orchestration.cli import app
from quantum.base import InputError


def edges(n: int, *pairs: tuple[int, int]) -> np.ndarray:
    graph = np.zeros((n, n), dtype=bool)
    for i, j in pairs:
        graph[i, j] = graph[j, i] = True
    return graph


# --------------------------------------------------------------------------- sets


def test_a_heavy_middle_gives_way_to_its_neighbours_together():
    # star: the best single drug conflicts with three that are worth more together
    star = edges(4, (0, 1), (0, 2), (0, 3))
    kept, exact = heaviest_independent_set(np.array([0.9, 0.5, 0.4, 0.3]), star)
    assert kept.tolist() == [False, True, True, True]
    assert exact
    kept, _ = heaviest_independent_set(np.array([1.3, 0.5, 0.4, 0.3]), star)
    assert kept.tolist() == [True, False, False, False]


def test_only_drugs_in_a_forbidden_pair_are_dropped():
    probs = np.array([[0.9, 0.6, 0.0, 0.8], [0.2, 0.9, 0.9, 0.9]])
    selected = np.array([[True, True, True, False], [False, True, True, True]])
    forbidden = edges(4, (0, 1), (0, 3))
    allowed, n_greedy = allowed_sets(probs, selected, forbidden)
    # the drug of probability 0 is in no pair; the pair 0, 3 is not selected together
    assert allowed.tolist() == [[True, False, True, False], [False, True, True, True]]
    assert n_greedy == 0
    assert selected[0, 1]  # the input is as it was


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0.0, 1.0))
def test_the_exact_search_finds_the_best_set(seed, n, density):
    rng = np.random.default_rng(seed)
    graph = np.triu(rng.random((n, n)) < density, 1)
    graph |= graph.T
    weights = rng.random(n) + 0.01
    kept, _ = heaviest_independent_set(weights, graph)
    assert not graph[np.ix_(kept, kept)].any()
    best = max(
        weights[list(own)].sum()
        for size in range(n + 1)
        for own in itertools.combinations(range(n), size)
        if not graph[np.ix_(own, own)].any()
    )
    assert weights[kept].sum() == pytest.approx(best)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.6), st.sampled_from([2, 30]))
def test_no_forbidden_pair_is_ever_left(seed, density, exact_drugs):
    rng = np.random.default_rng(seed)
    n, d = 5, 16
    forbidden = np.triu(rng.random((d, d)) < density, 1)
    forbidden |= forbidden.T
    probs, selected = rng.random((n, d)), rng.random((n, d)) < 0.6
    probs[0] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_mode, "EXACT_DRUGS", exact_drugs)  # 2: the greedy way
        allowed, n_greedy = allowed_sets(probs, selected, forbidden)
    assert n_greedy == 0 or exact_drugs == 2
    assert not (allowed & ~selected).any()
    for row in range(n):
        own = np.flatnonzero(allowed[row])
        assert not forbidden[np.ix_(own, own)].any()
        # nothing was dropped for nothing: each dropped drug conflicts with a kept one
        for drug in np.flatnonzero(selected[row] & ~allowed[row]):
            assert forbidden[drug, own].any()


def test_a_large_part_is_solved_greedily_and_said():
    n = hard_mode.EXACT_DRUGS + 1
    path = edges(n, *((i, i + 1) for i in range(n - 1)))
    kept, exact = heaviest_independent_set(np.ones(n), path)
    assert not exact
    assert not path[np.ix_(kept, kept)].any()
    kept, exact = heaviest_independent_set(np.ones(n - 1), path[1:, 1:])
    assert exact
    assert kept.sum() == n // 2


@pytest.mark.parametrize(
    ("text", "grade"),
    [("contraindicated", 4), ("Not-Recommended", 3), ("2", 2), ("take into account", 1)],
)
def test_grades_by_name_and_number(text, grade):
    assert parse_grade(text) == grade


def test_unknown_grades_and_ungraded_interactions_are_refused():
    with pytest.raises(InputError, match=r"'5'.*contraindicated \(4\)"):
        parse_grade("5")
    with pytest.raises(InputError, match="no interaction of the cohort has a grade"):
        forbidden_pairs(np.zeros((3, 3)), 4)
    severity = np.array([[0, 3], [3, 0]])
    assert not forbidden_pairs(severity, 4).any()
    assert forbidden_pairs(severity, 3).sum() == 2


# --------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def home(tmp_path_factory, synthetic) -> Home:
    home = Home(tmp_path_factory.mktemp("severity"))
    home.cohorts.symlink_to(synthetic[0].cohorts)
    return home


@pytest.fixture(scope="module")
def run(home, synthetic) -> Run:
    config = TrainConfig.model_validate({"name": "copy_last", "model": {"name": "copy_last"}})
    return run_training(config, synthetic[1], home)


@pytest.fixture(scope="module")
def top(home, synthetic) -> Run:
    config = TrainConfig.model_validate({"name": "topk", "model": {"name": "topk"}})
    return run_training(config, synthetic[1], home)


def worst_grade(run: Run, home: Home) -> int:
    """The least grade, which every selected graded pair reaches."""
    severity = Redecoder.of(run, home).severity
    return int(severity[severity > 0].min())


def test_redecoding_without_a_change_gives_the_stored_rows(run, home):
    redecoder = Redecoder.of(run, home)
    found = redecoder.predictions("test")
    again = redecoder.rows(found, found.selected, found.probs)
    pd.testing.assert_frame_equal(again, load_rows(run))


def test_hard_mode_of_a_run(run, home):
    grade = worst_grade(run, home)
    result = decode_hard(Redecoder.of(run, home), grade)
    facts, table = result.facts, result.table.set_index("metric")
    assert facts["forbidden_before"] > 0.0
    assert facts["forbidden_after"] == facts["forbidden_after_high"] == 0.0
    assert facts["forbidden_truth"] > 0.0
    before, after = summarise(load_rows(run)), summarise(result.rows)
    assert after["prauc"] == before["prauc"]
    assert table.loc["jaccard", "difference"] == pytest.approx(after["jaccard"] - before["jaccard"])
    assert table.loc["jaccard", "low"] <= table.loc["jaccard", "difference"]
    rows = load_rows(run)
    lost = rows["n_selected"].sum() - result.rows["n_selected"].sum()
    assert facts["dropped"] == lost
    assert facts["dropped_per_visit"] == pytest.approx(lost / len(rows))
    assert facts["dropped_true"] == rows["n_hit"].sum() - result.rows["n_hit"].sum()
    assert table.loc["ddi_rate", "truth"] == pytest.approx(before["ddi_rate_true"])


def test_recommendations_without_forbidden_pairs(run, home, synthetic):
    _, cohort = synthetic
    drugs = cohort.vocabularies(0).drugs
    severity = severity_matrix(cohort, drugs)
    i, j = (int(k[0]) for k in np.nonzero(severity))
    before = {"diagnoses": ["x"], "drugs": [drugs.codes[i], drugs.codes[j]]}
    patient = {"visits": [before, {"diagnoses": ["x"]}]}  # copied by the model
    plain = recommend(run, home, patient)
    assert len(plain["interactions"]) == 1
    hard = recommend(run, home, patient, forbid=int(severity[i, j]))
    assert hard["interactions"] == []
    chosen = [
        {item["atc"] for item in found["drugs"] if item["selected"]} for found in (plain, hard)
    ]
    (dropped,) = chosen[0] - chosen[1]
    assert len(chosen[1]) == 1
    assert any(text.startswith(dropped) and "forbidden" in text for text in hard["warnings"])


def test_rates_per_grade_with_truth_and_chance(run, top, synthetic):
    _, cohort = synthetic
    found = severity_table([run, top], cohort)
    summary = summarise(load_rows(run))
    own = found.rates[found.rates["run"] == run.name].set_index("grade")
    for grade in (1, 2, 3, 4):
        assert own.loc[grade, "rate"] == pytest.approx(summary[f"ddi_rate_severity_{grade}"])
        assert own.loc[grade, "difference"] == 0.0
        line = found.context.set_index("grade").loc[grade]
        assert line["truth"] == pytest.approx(summary[f"ddi_rate_severity_{grade}_true"])
        severity = severity_matrix(cohort, cohort.vocabularies(0).drugs)
        upper = np.triu_indices(len(severity), 1)
        assert line["chance"] == pytest.approx((severity[upper] == grade).mean())
    # the two grades that count by default make up the DDI rate
    assert own.loc[[3, 4], "rate"].sum() == pytest.approx(summary["ddi_rate"])


def test_commands(run, top, home):
    runner = CliRunner()
    place = ["--home", str(home.root)]
    done = runner.invoke(app, ["compare", run.name, top.name, "--severity", *place])
    assert done.exit_code == 0
    assert "truth" in done.stdout
    done = runner.invoke(app, ["compare", run.name, top.name, "--severity", "--json", *place])
    document = json.loads(done.stdout)
    assert len(document["rates"]) == 8
    grade = str(worst_grade(run, home))
    done = runner.invoke(app, ["evaluate", run.name, "--hard", grade, "--json", *place])
    assert json.loads(done.stdout)["forbidden_after"] == 0.0
    done = runner.invoke(app, ["evaluate", run.name, "--hard", grade, *place])
    assert "drugs dropped per visit" in done.stdout
    done = runner.invoke(app, ["evaluate", run.name, "--hard", grade, "--figure", "a.html", *place])
    assert "without --figure" in str(done.exception)
    done = runner.invoke(app, ["compare", run.name, "--severity", "--csv", "a.csv", *place])
    assert "without --csv" in str(done.exception)
