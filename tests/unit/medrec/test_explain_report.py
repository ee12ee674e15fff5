"""Figures about what models learned, the case study, and the page of an explanation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medrec.concepts.table import KINDS, ConceptCodes, ConceptTable, ConceptViews
from medrec.config import CohortConfig, TrainConfig
from medrec.data.cohort import prepare_cohort
from medrec.evaluation.compare import load_rows
from medrec.explain.explain import explain
from medrec.pretrain.bimodal import BimodalEncoder
from medrec.recommend import recommend
from medrec.report import embeddings
from medrec.report.cases import RESTRICTED, median_patient, patient_section
from medrec.report.embeddings import Embedding, separation
from medrec.report.explanation import write_explanation
from medrec.report.learned import Models, _shown, concept_section
from medrec.report.page import Page
from medrec.report.pretrained import class_vectors, nearest_share, two_views
from medrec.runs import Home, Run
from medrec.training import load_predictor, run_training
from orchestration.cli_explain import explain as explain_command
from quantum.base import InputError


def embedding(vectors: np.ndarray, codes: list[str]) -> Embedding:
    return Embedding.of(codes, {}, vectors.astype(float), "test")


# --------------------------------------------------------------------------- vectors


def test_embeddings_are_sorted_by_code_and_of_unit_length():
    item = embedding(np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]), ["C01A", "A02B", "B01A"])
    assert item.codes == ("A02B", "B01A", "C01A")
    assert item.vectors.tolist() == [[0.0, 1.0], [0.0, 0.0], [0.6, 0.8]]
    assert item.similarity[0, 2] == pytest.approx(0.8)


def test_separation_finds_groups_and_no_groups():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3), 6, axis=0)
    codes = [f"{letter}{i:02d}A" for letter in "ABC" for i in range(6)]
    apart = separation(embedding(centres + 0.05 * rng.normal(size=(18, 3)), codes))
    assert apart.score > 0.8
    assert apart.p == pytest.approx(1 / (1 + embeddings.N_SHUFFLES))
    mixed = separation(embedding(rng.normal(size=(18, 8)), codes))
    assert mixed.p > 0.05
    assert abs(mixed.score - mixed.null_mean) < 0.2
    assert (apart.n_classes, apart.n_groups) == (18, 3)


def test_groups_of_one_are_left_out_of_the_silhouette():
    vectors = np.eye(5) + 0.1
    assert separation(embedding(vectors, ["A01A", "B01A", "C01A", "C02A", "D01A"])) is None
    found = separation(embedding(vectors, ["A01A", "A02A", "C01A", "C02A", "D01A"]))
    assert (found.n_classes, found.n_groups) == (4, 2)


def test_fingerprint_similarity_of_classes(synthetic):
    cohort = synthetic[1]
    codes = sorted(cohort.drugs["atc"])
    found = embeddings.fingerprint_similarity(cohort, [*codes, "Z99Z"])
    inside = found[:-1, :-1]
    assert np.isnan(found[-1]).all()
    assert np.diag(inside) == pytest.approx(np.ones(len(codes)))
    assert inside == pytest.approx(inside.T)
    assert ((inside >= 0) & (inside <= 1 + 1e-9)).all()


def test_agreement_reads_pairs_with_fingerprints_only():
    fingerprints = np.array([[1, 0.2, 0.8], [0.2, 1, 0.4], [0.8, 0.4, 1]])
    correlation, gap = embeddings.fingerprint_agreement(fingerprints - 0.1, fingerprints)
    assert (correlation, gap) == (pytest.approx(1.0), pytest.approx(0.1))
    fingerprints[0] = fingerprints[:, 0] = np.nan
    assert np.isnan(embeddings.fingerprint_agreement(fingerprints, fingerprints)).all()


def test_the_terrain_shows_one_run_and_hides_pairs_without_fingerprints():
    item = embedding(np.eye(3), ["A01A", "B01A", "C01A"])
    fingerprints = np.full((3, 3), 0.25)
    fingerprints[0, 1] = np.nan
    figure = embeddings.terrain({"one": (item, fingerprints), "two": (item, fingerprints)})
    assert [trace.visible for trace in figure.data] == [True, True, False, False]
    assert figure.data[1].z[0][1] is None
    assert figure.data[1].z[0][0] == 0.75


def test_before_pre_training_is_the_encoder_as_the_run_drew_it(synthetic, tmp_path):
    from medrec.config import PretrainRunConfig

    task = PretrainRunConfig.model_validate(
        {"task": {"name": "p", "encoder": {"d_model": 8, "gin_layers": 1, "gvp_layers": 1}}}
    ).task
    torch.manual_seed(task.seed)
    drawn = BimodalEncoder(task.encoder)
    part = drawn.gin_molecule if hasattr(drawn, "gin_molecule") else drawn.gin
    run = Run.open(Home(tmp_path), "pretrain", "p", task, {})
    state = {"gin_molecule": part.state_dict(), "encoder": {"d_model": 8, "gin_layers": 1}}
    run.save_checkpoint("best", state)
    (_, before), (_, after) = class_vectors(synthetic[1], run)
    # nothing was trained: both are the same
    assert before.vectors == pytest.approx(after.vectors, abs=1e-6)
    assert np.abs(before.vectors).max() > 0


def test_the_own_conformer_is_the_nearest_only_where_it_is():
    similarity = np.array([[0.9, 0.1], [0.8, 0.2]])
    assert nearest_share(similarity) == 0.5


def test_missing_parts_of_a_pre_training_run_are_said(synthetic, tmp_path):
    from medrec.config import PretrainRunConfig

    task = PretrainRunConfig.model_validate({"task": {"name": "p"}}).task
    run = Run.open(Home(tmp_path), "pretrain", "p", task, {})
    assert class_vectors(synthetic[1], run) == []
    assert "holds no 3D encoder" in two_views(synthetic[1], run, None)
    run.save_checkpoint("best", {"gvp_molecule": {}, "encoder_3d": {}, "gin_molecule": {}})
    assert "feature table" in two_views(synthetic[1], run, None)


def test_frames_are_shown_with_lists_joined():
    assert _shown(["a", "b"]) == "a; b"
    assert _shown(np.float64(0.12345)) == ("0.123", 0.12345)
    assert _shown(np.int64(3)) == 3


def test_concepts_of_a_run_are_shown_with_those_that_collide(tmp_path):
    home = Home(tmp_path)
    digest = "c" * 64
    index = np.array([[[0, 0], [0, 0]], [[0, 0], [0, 1]], [[1, 0], [0, 0]], [[1, 0], [0, 0]]])
    books = np.zeros((2, 2, 2, 3), np.float32)
    views, codes = {}, {}
    for kind in KINDS:
        names = tuple(f"{kind[0]}{i}" for i in range(4))
        empty = np.zeros((4, 2), np.float32)
        views[kind] = ConceptViews(names, empty, empty)
        codes[kind] = ConceptCodes(index.astype(np.int16), books)
    manifest = {"digest": digest, "views": ["semantic", "structural"]}
    ConceptTable(home.concepts / "open-cccccccc", manifest, views, codes).save()
    run = Run(tmp_path, "train", "d" * 64, {"concepts": digest})
    text = "".join(concept_section(home, [run, run]))
    assert text.count("<h3>open-cccccccc</h3>") == 1
    collide, apart = text.split("told apart by the knowledge graph")
    assert "d2" in collide
    assert "d3" in collide
    assert "<td>d0</td>" not in collide  # structure tells it from d1
    assert "<td>d0</td>" in apart
    assert concept_section(home, [Run(tmp_path, "train", "d" * 64, {})]) == []
    lost = Run(tmp_path, "train", "d" * 64, {"concepts": "e" * 64})
    assert "could not be loaded" in concept_section(home, [lost])[0]


# --------------------------------------------------------------------------- a patient


def rows(hits: dict[int, list[int]]) -> pd.DataFrame:
    """Visits with four true and four chosen drugs, of which so many are hits."""
    table = [(p, h) for p, visits in hits.items() for h in visits]
    frame = pd.DataFrame(table, columns=["patient", "n_hit"])
    return frame.assign(n_true=4, n_selected=4)


def test_the_patient_is_in_the_middle_and_has_three_visits():
    found = median_patient(rows({7: [4, 4, 4], 3: [2, 2, 2], 5: [0, 0, 0], 1: [2, 2]}))
    assert found == 3
    assert median_patient(rows({7: [4, 4, 4], 5: [0, 0, 0]})) == 5
    assert median_patient(rows({1: [2, 2]})) is None


@dataclass
class _Source:
    restricted: bool


@dataclass
class _Config:
    source: _Source


class _Restricted:
    """Cohort whose every other attribute raises: nothing of a patient may be read."""

    config = _Config(_Source(True))


def test_restricted_records_show_no_patient():
    page = Page("t", "s")
    assert RESTRICTED.split(";")[0] in patient_section(page, _Restricted(), [], False)[0]
    assert "No training run" in patient_section(page, _Restricted(), [], True)[0]


def test_a_case_shows_codes_and_sets_and_no_identifier(tmp_path):
    home = Home(tmp_path)
    source = {"format": "synthetic", "n_patients": 200}
    cohort = prepare_cohort(CohortConfig.model_validate({"name": "more", "source": source}), home)
    runs = [
        run_training(TrainConfig.model_validate({"name": n, "model": {"name": n}}), cohort, home)
        for n in ("copy_last", "topk")
    ]
    loaded = [(run.report()["model"], run, load_predictor(run, home)) for run in runs]
    text = "".join(patient_section(Page("t", "s"), cohort, loaded, False))
    patient = median_patient(load_rows(runs[0]))
    own = cohort.visits[cohort.visits["patient"] == patient].sort_values("visit")
    assert len(own) >= 3
    assert f"of {len(own)}; each prediction" in text
    last = text.split(f"<h3>Visit {len(own)}</h3>")[1]
    given, before = (set(own["drugs"].iloc[-i]) for i in (1, 2))
    table = last.split('<table class="case">')[1]
    for code in given | before:
        # copy_last comes first: it recommends what was given before
        mark = {(1, 1): "✓ hit", (1, 0): "○ missed", (0, 1): "✗ extra"}[
            int(code in given), int(code in before)
        ]
        row = table.split(f"<td>{code} ")[1].split("</tr>")[0]
        assert row.split("</td>")[2].endswith(f"<span>{mark}</span>"), code
    assert "visit_id" not in text
    assert (
        str(patient) not in re.sub(r"<[^>]*>|[A-Z]\d\d[A-Z]|0\.\d+|Visits? \d+", " ", text).split()
    )


# --------------------------------------------------------------------------- an explanation


@pytest.fixture(scope="module")
def trained(synthetic, tmp_path_factory) -> tuple[Home, Run]:
    home = Home(tmp_path_factory.mktemp("explain"))
    home.cohorts.symlink_to(synthetic[0].cohorts)
    config = TrainConfig.model_validate(
        {"name": "safedrug", "model": {"name": "safedrug", "d_model": 8}, "optim": {"epochs": 2}}
    )
    return home, run_training(config, synthetic[1], home)


@pytest.fixture(scope="module")
def document(synthetic) -> dict:
    visits = synthetic[1].visits
    own = visits[visits["patient"] == visits["patient"].value_counts().index[0]]
    kinds = ("diagnoses", "procedures", "drugs")
    return {"visits": [{k: list(row[k]) for k in kinds} for row in own.to_dict("records")]}


def test_an_explanation_agrees_with_the_recommendation(trained, document, tmp_path: Path):
    home, run = trained
    result = explain(run, home, document, top=2)
    ranked = {entry["atc"]: entry for entry in recommend(run, home, document)["drugs"]}
    assert result["recommended"] == sorted(
        (a for a, e in ranked.items() if e["selected"]),
        key=load_predictor(run, home).vocabularies.drugs.index,
    )
    assert 1 <= len(result["drugs"]) <= 2
    for drug in result["drugs"]:
        assert drug["probability"] == ranked[drug["atc"]]["probability"]
        effects = [abs(entry["effect"]) for entry in drug["history"]]
        assert effects == sorted(effects, reverse=True)
        assert drug["interactions"]["set_size"] >= len(result["recommended"])
    json.dumps(result)  # nothing but plain values
    text = write_explanation(result, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" in text
    assert "not what caused" in text
    assert "codes" in text


def test_asked_classes_are_explained_and_others_refused(trained, document):
    home, run = trained
    codes = load_predictor(run, home).vocabularies.drugs.codes
    result = explain(run, home, document, [codes[0].lower(), codes[0]])
    assert [drug["atc"] for drug in result["drugs"]] == [codes[0]]
    with pytest.raises(InputError, match="'Q99Z' is not among"):
        explain(run, home, document, ["Q99Z"])


def test_a_class_s_ddi_rate_is_that_of_the_set_with_and_without_it(trained, document, synthetic):
    home, run = trained
    pairs = synthetic[1].ddi_pairs
    least = synthetic[1].config.ddi.min_severity
    listed = {
        (a, b)
        for a, b, s in zip(pairs["atc_a"], pairs["atc_b"], pairs["severity"], strict=True)
        if s >= least
    }

    def rate(members: set[str]) -> float:
        found = [(a, b) for a in members for b in members if a < b]
        return sum(pair in listed for pair in found) / len(found) if found else 0.0

    codes = load_predictor(run, home).vocabularies.drugs.codes
    result = explain(run, home, document, codes)
    chosen = set(result["recommended"])
    for drug in result["drugs"]:
        own = {drug["atc"]}
        assert drug["interactions"]["ddi_rate_with"] == pytest.approx(rate(chosen | own))
        assert drug["interactions"]["ddi_rate_without"] == pytest.approx(rate(chosen - own))


def test_the_command_prints_and_writes_the_page(trained, document, tmp_path, capsys):
    home, run = trained
    (tmp_path / "patient.json").write_text(json.dumps(document), encoding="utf-8")
    page = tmp_path / "page.html"
    settings = {"home": home.root, "out": page, "drug": None}
    explain_command(run.name, tmp_path / "patient.json", top=1, as_json=True, **settings)
    printed = json.loads(capsys.readouterr().out)
    assert printed["page"] == str(page)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    explain_command(run.name, tmp_path / "patient.json", top=1, as_json=False, **settings)
    printed_text = capsys.readouterr().out
    assert printed["drugs"][0]["atc"] in printed_text
    assert "Research use only" in printed_text
    with pytest.raises(InputError, match="file not found"):
        explain_command(run.name, tmp_path / "none.json", top=1, as_json=True, **settings)


def test_runs_that_cannot_be_loaded_are_named(synthetic, trained, tmp_path):
    from medrec.evaluation.compare import compare_runs

    home, run = trained
    comparison = compare_runs([run], synthetic[1])
    assert [title for title, _, _ in Models(home, comparison, [run])] == ["safedrug"]
    lost = Models(Home(tmp_path), comparison, [run])  # a home without the cohort
    assert list(lost) == []
    assert "could not be loaded" in lost.failed[0]
