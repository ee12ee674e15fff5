"""The case view: marks, scores, pairs, structures, and who may see a patient."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rdkit import Chem

from medrec.config import CohortConfig, TrainConfig
from medrec.data.cohort import prepare_cohort
from medrec.evaluation.compare import load_rows
from medrec.explain.fragments import fragment_effects
from medrec.recommend import interacting_pairs
from medrec.report.case_structures import NO_FRAGMENTS, _most_raised, structures
from medrec.report.case_view import CaseNames, RunCase, pair_block, timeline, visit_table
from medrec.report.cases import (
    encode_visits,
    median_patient,
    patient_section,
    run_case,
)
from medrec.report.page import Page, escape
from medrec.runs import Home
from medrec.training import load_predictor, run_training

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cohort with patients of three visits, a model without molecules and one with fragments."""
    home = Home(tmp_path_factory.mktemp("cases"))
    source = {"format": "synthetic", "n_patients": 120, "n_drugs": 10}
    cohort = prepare_cohort(CohortConfig.model_validate({"name": "more", "source": source}), home)
    small = {"name": "molerec", "d_model": 8, "representation": {"layers": 1}}
    configs = [
        {"name": "copy_last", "model": {"name": "copy_last"}},
        {"name": "molerec", "model": small, "optim": {"epochs": 2}},
    ]
    runs = [run_training(TrainConfig.model_validate(c), cohort, home) for c in configs]
    return cohort, [(run.report()["model"], run, load_predictor(run, home)) for run in runs]


@pytest.fixture(scope="module")
def visits(trained):
    cohort, loaded = trained
    patient = median_patient(load_rows(loaded[0][1]))
    own = cohort.visits[cohort.visits["patient"] == patient]
    return own.sort_values("visit").to_dict("records")


class Balanced(HTMLParser):
    """Complains about elements that are closed in another order than they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("br", "hr", "img", "meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        return

    def handle_endtag(self, tag) -> None:
        assert self.open, tag
        assert self.open.pop() == tag


def case(sets: set[str], scores: dict[str, float]) -> RunCase:
    return RunCase("m", [frozenset(sets)], [[]], [scores])


def pair(a: str, b: str, grade: int, name: str) -> dict:
    return {"atc_a": a, "atc_b": b, "severity": grade, "severity_name": name}


# --------------------------------------------------------------------------- table of a visit


def test_marks_and_scores_of_each_class():
    scores = {"A01A": 0.9, "B01A": 0.75, "C01A": 0.2}
    own = RunCase("m<1>", [frozenset({"A01A", "B01A"})], [[]], [scores])
    text = visit_table({"A01A", "C01A", "Z01A"}, [own], 0, {"A01A": "stomach & more"})
    assert "m&lt;1&gt;" in text
    assert "stomach &amp; more" in text
    rows = {line[:4]: line.split("</tr>")[0] for line in text.split("<tr><td>")[1:]}
    assert list(rows) == ["A01A", "C01A", "Z01A", "B01A"]  # given first, then by score
    assert "0.90" in rows["A01A"]
    assert "✓ hit" in rows["A01A"]
    assert "0.20" in rows["C01A"]
    assert "○ missed" in rows["C01A"]
    assert "0.75" in rows["B01A"]
    assert "✗ extra" in rows["B01A"]
    assert "--share:75%" in rows["B01A"]
    assert "not in the vocabulary" in rows["Z01A"]
    assert "1 hit, 2 missed, 1 extra; Jaccard 0.250" in text
    assert ["● given" in row for row in rows.values()] == [True, True, True, False]


def test_scores_outside_0_to_1_do_not_leave_their_bar():
    text = visit_table({"A01A"}, [case(set(), {"A01A": 3.5})], 0, {})
    assert "--share:100%" in text


def test_a_visit_without_drugs_has_no_jaccard():
    assert "Jaccard -" in visit_table(set(), [case(set(), {})], 0, {})


# --------------------------------------------------------------------------- pairs


def test_pairs_are_listed_once_worst_first_with_who_holds_them(trained):
    cohort = trained[0]
    worst, mild = pair("A01A", "B01A", 4, "contraindicated"), pair("A01A", "C01A", 2, "precaution")
    only_given = pair("A01A", "A02A", 4, "contraindicated")
    sets = {"given": [only_given, mild], "model": [worst, mild]}
    text = pair_block(sets, {"A01A": EVIL}, cohort, shown=True)
    rows = text.split("<tbody>")[1].split("<tr>")[1:]
    assert len(rows) == 3
    assert "B01A" in rows[0]  # recommended before what was only given
    marks = [re.findall(r'<td class="mark">(●?)</td>', row) for row in rows]
    assert marks == [["", "●"], ["●", ""], ["●", "●"]]
    assert "given 2 (1 contraindicated), model 2 (1 contraindicated)" in text
    assert EVIL not in text
    assert "<details" in text.split(">")[0]
    assert " open" in text.split(">")[0]


def test_pairs_that_are_not_listed_are_counted(trained):
    many = [pair("A01A", f"B{i:02d}A", 4, "contraindicated") for i in range(20)]
    text = pair_block({"model": many}, {}, trained[0], shown=False)
    assert len(text.split("<tbody>")[1].split("<tr>")) == 13
    assert "8 more pairs, none of them graded worse" in text
    assert " open" not in text.split(">")[0]
    assert "No interacting pair" in pair_block({"model": []}, {}, trained[0], shown=True)


# --------------------------------------------------------------------------- timeline


def test_the_timeline_shows_the_last_visits_and_says_what_it_leaves_out(trained):
    visits = [
        {"diagnoses": ["d1"], "procedures": [], "drugs": ["A01A"]},
        {"diagnoses": ["d1"], "procedures": ["p1"], "drugs": ["A01A", "B01A"]},
        {"diagnoses": ["d2"] * 12, "procedures": [], "drugs": ["B01A"]},
        {"diagnoses": [], "procedures": [], "drugs": ["B01A", "C01A"]},
    ]
    run = RunCase("m", [frozenset({"A01A"})] * 4, [[]] * 4, [{"A01A": 0.5}] * 4)
    names = CaseNames({"B01A": EVIL}, {"d1": "first"}, {})
    text = "".join(timeline(visits, [run], [[]] * 4, names, 1, 2, trained[0]))
    assert "1 earlier visit is not shown" in text
    assert "<h3>Visit 1</h3>" not in text
    assert re.findall(r'data-visit="(\d)"', text) == ["2", "3", "4"]
    assert text.count('<table class="case">') == 1  # one visit has predictions
    second, third, last = text.split("<li ")[1:]
    assert re.findall(r'class="chip new"[^>]*>\+ (\w{4})', second) == ["B01A"]
    assert "chip new" not in third
    assert re.findall(r'class="chip new"[^>]*>\+ (\w{4})', last) == ["C01A"]
    assert "<summary>2 more</summary>" in third
    assert "first" in second
    assert "procedures (0)" in last
    assert EVIL not in text


# --------------------------------------------------------------------------- structures


def test_drawn_molecules_hold_the_fragments_that_raised_the_score(trained, visits):
    cohort, loaded = trained
    encoded = [encode_visits(item, visits) for _, _, item in loaded]
    cases = [
        run_case(cohort, title, item, patient)
        for (title, _, item), patient in zip(loaded, encoded, strict=True)
    ]
    items = [
        (title, item, patient) for (title, _, item), patient in zip(loaded, encoded, strict=True)
    ]
    vocabulary = loaded[1][2].vocabularies.drugs
    everything = RunCase(
        "molerec", [frozenset(vocabulary.codes)] * len(visits), cases[1].pairs, cases[1].scores
    )
    text = "".join(structures(items, [cases[0], everything], {}))
    # the first run reads no molecules: the second explains
    assert "Structures that moved molerec" in text
    cards = text.split('<div class="molecule-card">')[1:]
    assert len(cards) == 3
    for card in cards:
        code = re.search(r"<h4>(\w{4})", card).group(1)
        drug = vocabulary.index(code)
        assert f"score {cases[1].scores[-1][code]:.2f}" in card
        effects = fragment_effects(loaded[1][2].model, encoded[1], drug)
        raised = sorted((e for e in effects.values() if e > 0), reverse=True)
        shown = re.findall(r"<figcaption>(\+[^<]*)</figcaption>", card)
        assert shown == [f"{effect:+.3g}" for effect in raised[:3]]
        assert "<svg" in card
        smiles = re.search(r'aria-label="structure ([^"]*)"', card).group(1)
        assert Chem.MolFromSmiles(smiles) is not None


def test_without_fragments_drawings_are_plain_and_that_is_said(trained, visits):
    cohort, loaded = trained
    title, _, item = loaded[0]
    patient = encode_visits(item, visits)
    found = run_case(cohort, title, item, patient)
    text = "".join(structures([(title, item, patient)], [found], {}))
    assert escape(NO_FRAGMENTS) in text
    assert text.count('<div class="molecule-card">') == min(3, len(found.sets[-1]))
    empty = RunCase(title, [frozenset()] * len(visits), found.pairs, found.scores)
    text = "".join(structures([(title, item, patient)], [empty], {}))
    assert "recommends no class with a known molecule" in text


def test_the_molecule_is_the_one_that_raised_most():
    up, down, flat = np.array([0.0, 0.4]), np.array([-0.9]), np.zeros(2)
    assert _most_raised([("a", flat), ("b", down), ("c", up)])[0] == "c"
    assert _most_raised([("a", flat), ("b", down)])[0] == "b"


# --------------------------------------------------------------------------- the section


def test_the_section_shows_sets_scores_and_pairs_as_predicted(trained, visits):
    cohort, loaded = trained
    page = Page("t", "s")
    text = "".join(patient_section(page, cohort, loaded, False))
    assert "cases.css" in page.assets
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert "<script" not in text  # it can be read without
    rows = load_rows(loaded[0][1])
    own = rows[rows["patient"] == median_patient(rows)].iloc[-1]
    last = text.split(f"<h3>Visit {len(visits)}</h3>")[1]
    union = own["n_true"] + own["n_selected"] - own["n_hit"]
    assert f"Jaccard {own['n_hit'] / union:.3f}" in last
    title, _, item = loaded[1]
    found = run_case(cohort, title, item, encode_visits(item, visits))
    vocabulary = item.vocabularies.drugs
    chosen = [vocabulary.index(code) for code in found.sets[-1]]
    assert found.pairs[-1] == interacting_pairs(cohort, vocabulary, chosen, {})
    assert f"{title} {len(found.pairs[-1])}" in last


def test_runs_of_another_split_are_named(trained):
    cohort, loaded = trained

    class Elsewhere:
        def report(self) -> dict:
            return {"split": 1}

    other = ("elsewhere", Elsewhere(), loaded[0][2])
    text = "".join(patient_section(Page("t", "s"), cohort, [*loaded, other], False))
    assert "Tested on another split: elsewhere." in text
