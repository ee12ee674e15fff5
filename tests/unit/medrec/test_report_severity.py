"""The section about interactions by grade, and where a pair's grade comes from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medrec.config import CohortConfig, TrainConfig
from medrec.data.cohort import Cohort, prepare_cohort
from medrec.data.ddi import SEVERITY_NAMES, _to_classes, read_ansm
from medrec.data.schema import Vocabulary
from medrec.evaluation.compare import compare_runs, load_rows
from medrec.evaluation.metrics import SEVERITIES, ddi_rate_chance
from medrec.molecules.drugs import severity_matrix
from medrec.report import ddi_sources
from medrec.report.page import Page
from medrec.report.severity import (
    BY_FREQUENCY,
    CHANCE,
    TRUTH,
    grade_table,
    graded,
    severity_section,
    stacked,
)
from medrec.runs import Home
from medrec.training import run_training


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    return Home(tmp_path_factory.mktemp("severity"))


@pytest.fixture(scope="module")
def cohort(home) -> Cohort:
    """Drug classes with interactions of all grades."""
    source = {"format": "synthetic", "n_patients": 100, "n_drugs": 40}
    return prepare_cohort(CohortConfig.model_validate({"name": "graded", "source": source}), home)


@pytest.fixture(scope="module")
def trained(home, cohort):
    configs = [{"name": name, "model": {"name": name}} for name in ("copy_last", "topk")]
    runs = [run_training(TrainConfig.model_validate(c), cohort, home) for c in configs]
    return runs, compare_runs(runs, cohort)


def true_rate(cohort, grade: int) -> float:
    """Pairs of a grade among all pairs of the true sets of the test part, counted one by one."""
    listed = {
        (a, b)
        for a, b, s in zip(
            cohort.ddi_pairs["atc_a"],
            cohort.ddi_pairs["atc_b"],
            cohort.ddi_pairs["severity"],
            strict=True,
        )
        if s == grade
    }
    known = set(cohort.vocabularies(0).drugs.codes)
    part = cohort.visits[cohort.visits["patient"].isin(cohort.split(0).test)]
    found = [
        (a, b) in listed
        for drugs in part["drugs"]
        for a in set(drugs) & known
        for b in set(drugs) & known
        if a < b
    ]
    return sum(found) / len(found)


def test_rates_by_grade_are_those_of_a_count_by_hand(trained, cohort):
    runs, comparison = trained
    found = grade_table(cohort, comparison, runs)
    assert len(found) == len(SEVERITIES) * (len(runs) + 3)
    # models come first, the best on top
    best = comparison.table["jaccard"].argmax()
    assert found["sets"].iloc[0] == comparison.titles()[best]
    severity = severity_matrix(cohort, cohort.vocabularies(0).drugs)
    by_name = found.set_index(["sets", "grade"])["rate"]
    for grade in SEVERITIES:
        assert by_name[TRUTH, grade] == pytest.approx(true_rate(cohort, grade))
        assert by_name[CHANCE, grade] == pytest.approx(ddi_rate_chance(severity == grade))
        for title, run in zip(comparison.titles(), runs, strict=True):
            rows = load_rows(run)
            pooled = rows[f"severity_{grade}"].sum() / rows["pairs"].sum()
            assert by_name[title, grade] == pytest.approx(pooled)
    own = found[~found["sets"].isin([CHANCE, BY_FREQUENCY])]
    assert ((own["low"] <= own["rate"]) & (own["rate"] <= own["high"])).all()
    assert found[found["sets"] == CHANCE]["low"].isna().all()


def test_grades_of_severity_3_and_worse_add_up_to_the_ddi_rate(trained, cohort):
    runs, comparison = trained
    found = grade_table(cohort, comparison, runs)
    counted = found[found["grade"] >= cohort.config.ddi.min_severity]
    totals = counted.groupby("sets")["rate"].sum()
    for title, rate in zip(comparison.titles(), comparison.table["ddi_rate"], strict=True):
        assert totals[title] == pytest.approx(rate)
    assert totals[TRUTH] == pytest.approx(comparison.facts["ddi_rate_true"])
    assert totals[CHANCE] == pytest.approx(comparison.facts["ddi_rate_chance"])


def test_bars_hold_the_table_with_the_worst_grade_at_the_axis(trained, cohort):
    runs, comparison = trained
    found = grade_table(cohort, comparison, runs)
    figure = stacked(found)
    assert [trace.name for trace in figure.data] == [
        f"{SEVERITY_NAMES[grade]} ({grade})" for grade in (4, 3, 2, 1)
    ]
    worst = found[found["grade"] == 4]
    assert list(figure.data[0].x) == pytest.approx((100 * worst["rate"]).tolist())
    assert list(figure.data[0].y) == worst["sets"].tolist()


def test_the_most_frequent_pair_is_the_one_that_was_counted(trained, cohort):
    runs, comparison = trained
    page = Page("t", "s")
    text = "".join(severity_section(page, cohort, comparison, runs))
    assert len(page.figures) == 1
    assert "cases.css" in page.assets
    pairs = text.split("<h3>Most frequent interacting pairs</h3>")[1]
    assert f"severity {cohort.config.ddi.min_severity} or worse" in pairs
    rows = pairs.split("<tbody>")[1].split("</tbody>")[0].split("<tr>")[1:]
    counts = [int(row.split('data-key="')[2].split('"')[0]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    given = [int(row.split('data-key="')[3].split('"')[0]) for row in rows]
    part = cohort.visits[cohort.visits["patient"].isin(cohort.split(0).test)]
    for row, n in zip(rows, given, strict=True):
        a, b = (side.strip()[:4] for side in row.split("<td>")[1].split("</td>")[0].split("–")[:2])
        assert sum(a in drugs and b in drugs for drugs in part["drugs"]) == n


def test_without_grades_the_page_says_what_it_cannot(trained, cohort, monkeypatch):
    runs, comparison = trained
    plain = comparison.table.drop(
        columns=[c for c in comparison.table if "severity" in str(c)]
    ).copy()
    bare = replace(comparison, table=plain)
    assert graded(comparison)
    assert not graded(bare)
    mixed = comparison.table.copy()
    mixed.loc[0, "ddi_rate_severity_4"] = np.nan  # one run is older than the grades
    assert not graded(replace(comparison, table=mixed))
    text = "".join(severity_section(Page("t", "s"), cohort, bare, runs))
    assert "cannot say how severe" in text
    assert "older than the grades" in text
    ddi = cohort.config.ddi.model_copy(update={"source": "twosides"})
    config = cohort.config.model_copy(update={"ddi": ddi})
    monkeypatch.setitem(cohort.__dict__, "config", config)
    page = Page("t", "s")
    text = "".join(severity_section(page, cohort, bare, runs))
    assert "TWOSIDES have no grades" in text
    assert page.figures == []
    assert "Most frequent interacting pairs" in text
    assert "such as" not in text.split("source: TWOSIDES")[1]


def test_no_run_is_said(cohort):
    assert "No training run" in severity_section(Page("t", "s"), cohort, None, [])[0]


def test_names_cannot_become_markup(trained, cohort, monkeypatch):
    runs, comparison = trained
    monkeypatch.setitem(
        cohort.__dict__, "drugs", cohort.drugs.assign(name="<script>alert(1)</script>")
    )
    text = "".join(severity_section(Page("t", "s"), cohort, comparison, runs))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


# --------------------------------------------------------------------------- sources


def test_a_pair_s_source_names_substances_of_its_grade(cohort, root):
    pairs = list(zip(cohort.ddi_pairs["atc_a"], cohort.ddi_pairs["atc_b"], strict=True))
    texts = ddi_sources.pair_sources(cohort, pairs)
    table = read_ansm(root / "data" / "ddi" / "ansm_pairs.csv.gz")
    grades = {}
    for row in ddi_sources.read_table(
        root / "data" / "ddi" / "ansm_pairs.csv.gz", ("substance_a", "substance_b", "severity")
    ).iter_rows():
        for names in (row[:2], row[1::-1]):
            key = " × ".join(map(str, names))
            grades[key] = max(grades.get(key, 0), int(row[2]))
    highest = _to_classes(table, sorted(cohort.drugs["atc"]), 3)
    assert highest.height == len(pairs) > 10
    severity = severity_matrix(cohort, Vocabulary(tuple(cohort.drugs["atc"])))
    place = {code: i for i, code in enumerate(cohort.drugs["atc"])}
    n_pairs = {(a, b): n for a, b, _, n in highest.iter_rows()}
    for (a, b), text in texts.items():
        count, _, names = text.partition(" substance pair")
        assert int(count.replace(",", "")) == n_pairs[a, b]
        names = names.removeprefix("s").removeprefix(", such as ").removeprefix(": ")
        assert grades[names] == severity[place[a], place[b]], text


def test_without_the_thesaurus_a_source_is_its_count(cohort, monkeypatch, tmp_path):
    monkeypatch.setattr(ddi_sources, "data_root", lambda: tmp_path)
    ddi_sources._worst_substances.cache_clear()
    try:
        pair = tuple(cohort.ddi_pairs[["atc_a", "atc_b"]].iloc[0])
        n = int(cohort.ddi_pairs["n_pairs"].iloc[0])
        text = ddi_sources.pair_sources(cohort, [pair])[pair]
        assert text == f"{n} substance pair{'s' if n > 1 else ''}"
    finally:
        ddi_sources._worst_substances.cache_clear()
