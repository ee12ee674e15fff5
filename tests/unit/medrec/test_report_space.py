"""The molecule space: known coordinates and neighbours, small drawings, escaping, limits."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from medrec.data.cohort import Cohort
from medrec.report.embeddings import tanimoto
from medrec.report.learned import Models
from medrec.report.page import Page
from medrec.report.space import space_document, space_figure, space_section
from medrec.report.space_drawing import compact_svg, structure_svg
from medrec.report.space_subjects import describe
from medrec.report.space_views import View, molecule_views
from medrec.runs import Home

EVIL = "<script>document.body.dataset.error='run'</script>"
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def view_of(vectors: np.ndarray, groups: str, **changes) -> View | None:
    places = np.arange(len(vectors))
    return View.of(
        "v", "molecule", places, np.asarray(vectors, dtype=float), list(groups), **changes
    )


# --------------------------------------------------------------------------- maps


def test_pca_keeps_the_distances_of_points_in_a_plane():
    angles = np.array([0.0, 0.4, 1.1, 2.0, 3.0, 4.5])
    flat = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))
    view = view_of(flat @ turned[:2] * np.arange(1, 7)[:, None], "AABBCC")
    ours = np.linalg.norm(view.pca[:, None] - view.pca[None], axis=2)
    theirs = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert sum(view.shares) == pytest.approx(1.0)


def test_tsne_puts_a_cluster_together_and_repeats():
    rng = np.random.default_rng(1)
    vectors = np.repeat(np.eye(3), 8, axis=0) + rng.normal(0, 0.02, (24, 3))
    groups = "A" * 8 + "B" * 8 + "C" * 8
    view, again = view_of(vectors, groups), view_of(vectors, groups)
    assert (view.tsne == again.tsne).all()
    distance = np.linalg.norm(view.tsne[:, None] - view.tsne[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert [groups[i] for i in distance.argmin(axis=1)] == list(groups)
    assert view.separation.score > 0.9 > view.separation.null_high


def test_neighbours_are_those_of_tanimoto_by_hand():
    bits = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0]])
    similarity = tanimoto(bits.astype(float))
    assert similarity[0].tolist() == pytest.approx([1, 2 / 3, 1 / 4, 0, 1])
    view = view_of(bits, "ABABA", similarity=similarity, measure="Tanimoto")
    near, scores = view.neighbours(2)
    assert near[0].tolist() == [4, 1]
    assert scores[0].tolist() == pytest.approx([1, 2 / 3])
    assert near[3].tolist() == [2, 0]  # of those with nothing in common the first


def test_few_points_and_equal_points():
    assert view_of(np.eye(4), "AABB") is None
    view = view_of(np.ones((6, 3)), "AABBCC")
    assert np.isfinite(view.pca).all()
    assert np.isfinite(view.tsne).all()


# --------------------------------------------------------------------------- drawings


def rdkit_svg(smiles: str) -> str:
    drawer = rdMolDraw2D.MolDraw2DSVG(260, 180, -1, -1, True)
    drawer.drawOptions().clearBackground = False
    drawer.drawOptions().useBWAtomPalette()
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, Chem.MolFromSmiles(smiles))
    drawer.FinishDrawing()
    return drawer.GetDrawingText()


@pytest.mark.parametrize("smiles", [ASPIRIN, "C[C@H](N)C(=O)[O-]", "OC[C@H]1OCC[C@@H]1Br", "[K+]"])
def test_a_small_drawing_has_all_strokes_and_letters(smiles: str):
    text = rdkit_svg(smiles)
    whole = ElementTree.fromstring(text[text.index("<svg") :])
    small = ElementTree.fromstring(compact_svg(text))
    name = "{http://www.w3.org/2000/svg}"

    def moves(tree: ElementTree.Element) -> int:
        return sum(path.get("d").count("M") for path in tree.iter(f"{name}path"))

    def letters(tree: ElementTree.Element) -> str:
        return "".join(sorted(part.text for part in tree.iter(f"{name}text")))

    assert moves(small) == moves(whole)
    assert letters(small) == letters(whole)
    assert {part.tag.removeprefix(name) for part in small.iter()} <= {"svg", "g", "path", "text"}
    assert len(compact_svg(text)) < len(text) / 2


def test_a_drawing_takes_the_colour_of_the_page():
    svg = structure_svg(ASPIRIN)
    assert "currentColor" in svg
    assert not re.search(r"#|rgb|style|class|<\?xml|rdkit", svg)


# --------------------------------------------------------------------------- data and page


def renamed(cohort: Cohort, name: str) -> Cohort:
    other = Cohort(cohort.folder, cohort.record)
    other.__dict__["drugs"] = cohort.drugs.assign(name=name)
    return other


def test_counts_are_those_of_the_tables(synthetic):
    cohort = synthetic[1]
    subjects = describe(cohort, None)
    item = subjects.classes[3]
    assert item["visits"] == sum(item["atc"] in set(drugs) for drugs in cohort.visits["drugs"])
    pairs = cohort.ddi_pairs
    strong = pairs[pairs["severity"] >= cohort.config.ddi.min_severity]
    expected = {
        *strong.loc[strong["atc_a"] == item["atc"], "atc_b"],
        *strong.loc[strong["atc_b"] == item["atc"], "atc_a"],
    } & set(cohort.drugs["atc"])
    assert item["degree"] == len(expected)
    for place, molecule in enumerate(subjects.molecules):
        visits = [subjects.classes[i]["visits"] for i in molecule["classes"]]
        assert visits == sorted(visits, reverse=True)
        assert all(place in subjects.classes[i]["molecules"] for i in molecule["classes"])


def test_drawings_stand_once_and_within_the_bytes(synthetic):
    cohort = synthetic[1]
    subjects = describe(cohort, None)
    views = molecule_views(subjects.drugs, subjects.groups, None, None)
    text = json.dumps(space_document(subjects, [*views, *views], "figure-1"))
    assert text.count("<svg") == subjects.n_drawn == len(subjects.molecules)
    few = describe(cohort, None, most_bytes=6000)
    drawn = [item for item in few.molecules if item["svg"]]
    assert 0 < len(drawn) < len(few.molecules)
    assert sum(len(item["svg"]) for item in drawn) <= 6000
    most = max(item["visits"] for item in few.classes if item["molecules"])
    assert any(few.classes[item["classes"][0]]["visits"] == most for item in drawn)


def test_every_point_is_in_one_trace(synthetic):
    subjects = describe(synthetic[1], None)
    (view,) = molecule_views(subjects.drugs, subjects.groups, None, None)
    figure = space_figure(subjects, view)
    rows = sorted(row for trace in figure.data for row in trace.customdata)
    assert rows == list(range(len(view.places)))
    for trace in figure.data:
        for x, row in zip(trace.x, trace.customdata, strict=True):
            assert x == pytest.approx(view.tsne[row, 0], abs=0.006)
            assert trace.name[0] == subjects.groups[row]


def test_the_section_is_escaped_and_says_what_is_missing(synthetic, tmp_path, monkeypatch):
    monkeypatch.setattr("medrec.report.space_subjects._substances", lambda _: {})
    page, models = Page("p", "q"), Models(Home(tmp_path), None, [])
    page.add("space", *space_section(page, renamed(synthetic[1], EVIL), models))
    text = page.render()
    assert EVIL not in text
    assert "No run with one vector per drug class was given" in text
    assert "fingerprints (ECFP4)" in text
    empty = renamed(synthetic[1], "x")
    empty.__dict__["molecules"] = pd.DataFrame(columns=["atc", "smiles", "source"], dtype=str)
    assert "there is no map" in space_section(Page("p", "q"), empty, models)[0]
