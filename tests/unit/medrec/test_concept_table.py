"""Concept folders: collisions, what structure tells apart, memory, building and finding again."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from medrec.concepts import build, rqvae, views
from medrec.concepts.build import build_concepts
from medrec.concepts.collisions import (
    colliding_groups,
    collision_rate,
    collision_table,
    pair_codes,
    repeated_share,
    sequences,
    told_apart,
)
from medrec.concepts.memory import memory, memory_of, memory_of_paper
from medrec.concepts.table import (
    DESCRIPTIONS_FILE,
    KINDS,
    MANIFEST_FILE,
    ConceptCodes,
    ConceptTable,
    ConceptViews,
)
from medrec.config import ConceptConfig
from medrec.data.schema import Vocabularies, Vocabulary
from medrec.runs import Home
from quantum.base import InputError, write_json_atomic

DIAGNOSES = ("icd9:4019", "icd9:5849", "icd9:5859", "icd9:5990")


def table_of(
    folder, index: list[list[list[int]]], names: tuple[str, ...] = ("semantic", "structural")
):
    """Table whose diagnoses have given codes (4, V, L); one procedure and one drug."""
    codes = ConceptCodes(
        np.array(index, np.int16), np.zeros((len(names), 2, 4, 3), np.float32), names
    )
    one = replace(codes, index=codes.index[:1])
    described = {
        "diagnoses": ConceptViews(
            DIAGNOSES, np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
        ),
        "procedures": ConceptViews(
            ("icd9:3893",), np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)
        ),
        "drugs": ConceptViews(
            ("B05A",), np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)
        ),
    }
    return ConceptTable(
        folder,
        {"digest": "a" * 64, "views": list(names)},
        described,
        {"diagnoses": codes, "procedures": one, "drugs": one},
    )


@pytest.fixture
def table(tmp_path) -> ConceptTable:
    write_json_atomic(
        tmp_path / DESCRIPTIONS_FILE,
        {
            "diagnoses": {
                "titles": {"icd9:5849": "Acute kidney failure"},
                "neighbours": {
                    "icd9:5849": [["is in", "Kidney"], ["treated by", "Fluids"]],
                    "icd9:5859": [["is in", "Kidney"], ["treated by", "Diet"]],
                    "icd9:5990": [["is in", "Kidney"]],
                },
            }
        },
    )
    # 5849, 5859 and 5990 have one text code; structure sets 5849 apart
    return table_of(
        tmp_path,
        [[[0, 0], [0, 0]], [[1, 2], [0, 0]], [[1, 2], [3, 1]], [[1, 2], [3, 1]]],
    )


# --------------------------------------------------------------------------- collisions


def test_both_definitions_of_the_rate_by_hand():
    index = np.array([[1, 1], [1, 1], [1, 1], [2, 0], [0, 2]])
    assert collision_rate(index) == pytest.approx(3 / 5)
    assert repeated_share(index) == pytest.approx(1 - 3 / 5)
    assert collision_rate(index[:0]) == repeated_share(index[:0]) == 0.0


def test_joint_codes_are_pairs_of_sequences(table):
    codes = table.codes["diagnoses"]
    assert collision_rate(sequences(codes, "semantic")) == 3 / 4
    assert collision_rate(sequences(codes, "structural")) == 1.0
    assert collision_rate(sequences(codes)) == 2 / 4  # less than in either view
    with pytest.raises(InputError, match="no view 'visual'"):
        sequences(codes, "visual")


def test_collision_table_has_each_view_and_the_pair(table):
    frame = collision_table(table)
    assert list(frame["codes"]) == ["semantic", "structural", "joint"] * 3
    row = frame[(frame["kind"] == "diagnoses") & (frame["codes"] == "joint")].iloc[0]
    assert (row["concepts"], row["different"]) == (4, 3)
    assert (row["collision_rate"], row["one_minus_different"]) == (0.5, 0.25)


def test_colliding_groups_are_listed_with_titles(table):
    frame = colliding_groups(table, "diagnoses", "semantic")
    assert list(frame["code"]) == ["icd9:5849", "icd9:5859", "icd9:5990"]
    assert list(frame["title"]) == ["Acute kidney failure", "icd9:5859", "icd9:5990"]
    assert set(frame["size"]) == {3}
    assert len(colliding_groups(table, "drugs")) == 0


def test_what_structure_tells_apart_with_what_differs_in_the_graph_first(table):
    frame = told_apart(table, "diagnoses")
    assert list(frame["code"]) == ["icd9:5849", "icd9:5859", "icd9:5990"]
    assert list(frame["still_with"]) == [0, 1, 1]
    assert frame["neighbours"][0] == "treated by Fluids; is in Kidney"
    assert frame["neighbours"][2] == "is in Kidney"
    assert len(told_apart(table, "procedures")) == 0


def test_against_a_table_made_without_structure(table, tmp_path):
    # rows in another order, and other collisions: 4019 with 5849
    other = table_of(tmp_path / "x", [[[0, 0]], [[0, 0]], [[1, 0]], [[2, 0]]], ("semantic",))
    reverse = replace(other.views["diagnoses"], codes=DIAGNOSES[::-1])
    swapped = replace(other.codes["diagnoses"], index=other.codes["diagnoses"].index[::-1].copy())
    other = replace(
        other,
        views=other.views | {"diagnoses": reverse},
        codes=other.codes | {"diagnoses": swapped},
    )
    frame = told_apart(table, "diagnoses", other)
    assert list(frame["code"]) == ["icd9:4019", "icd9:5849"]
    few = replace(reverse, codes=("a", "b", "c", "d"))
    with pytest.raises(InputError, match="lacks 4 of 4 diagnoses"):
        told_apart(table, "diagnoses", replace(other, views=other.views | {"diagnoses": few}))


def test_the_pair_of_the_paper(table):
    rows = pair_codes(table)
    assert [row["codes"] for row in rows] == ["semantic", "structural"]
    assert [row["collide"] for row in rows] == [True, False]
    assert [row["shared_levels"] for row in rows] == [2, 0]
    assert pair_codes(table, ("5859", "0000")) == []


# --------------------------------------------------------------------------- memory


def test_memory_at_the_sizes_of_the_paper():
    small, large = memory_of_paper("MIMIC-III"), memory_of_paper("MIMIC-IV")
    assert small.code_parameters == large.code_parameters == 278_528
    assert (small.continuous_parameters, large.continuous_parameters) == (440_704, 1_687_936)
    assert large.indices == large.index_bytes == 105_496
    assert small.ratio_parameters == pytest.approx(1.58, abs=0.005)
    assert large.ratio_parameters == pytest.approx(6.06, abs=0.005)
    assert large.ratio_bytes == pytest.approx(4 * 1_687_936 / (4 * 278_528 + 105_496))


def test_drugs_alone_gain_next_to_nothing_and_large_codebooks_need_two_bytes():
    drugs = memory({"drugs": 131}, {"drugs": 32}, levels=4, code_dim=64, views=2)
    assert drugs.ratio_parameters == pytest.approx(1.02, abs=0.005)
    assert drugs.ratio_bytes < 1.02
    wide = memory({"drugs": 10}, {"drugs": 257}, levels=4, code_dim=8, views=1)
    assert wide.index_bytes == 2 * wide.indices == 80


def test_memory_of_a_table_counts_its_own_shapes(table):
    found = memory_of(table)
    assert found.continuous_parameters == (4 + 1 + 1) * 2 * 3
    assert found.code_parameters == 3 * table.codes["drugs"].books.size
    assert found.indices == (4 + 1 + 1) * 2 * 2


# --------------------------------------------------------------------------- folders


def test_saved_and_loaded_and_aligned(table):
    table.save()
    loaded = ConceptTable.load(table.folder)
    for kind in KINDS:
        assert loaded.views[kind].codes == table.views[kind].codes
        assert np.array_equal(loaded.codes[kind].index, table.codes[kind].index)
    assert loaded.titles("diagnoses")[1] == "Acute kidney failure"
    vocabularies = Vocabularies(
        Vocabulary(("icd9:5990", "icd9:4019")), Vocabulary(()), Vocabulary(("B05A",))
    )
    found = loaded.align(vocabularies)
    assert found["diagnoses"].index[:, 0].tolist() == [[1, 2], [0, 0]]
    assert found["diagnoses"].views == ("semantic", "structural")
    assert len(found["procedures"].index) == 0
    strange = replace(vocabularies, drugs=Vocabulary(("Z99Z",)))
    with pytest.raises(InputError, match="lacks 1 of 1 drugs codes"):
        loaded.align(strange)


def test_a_damaged_folder_is_named(table):
    table.save()
    (table.folder / "concepts.npz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="incomplete or damaged"):
        ConceptTable.load(table.folder)


CONFIG = ConceptConfig.model_validate(
    {
        "name": "c",
        "quantiser": {"levels": 2, "code_dim": 4, "epochs": 5, "codebook_sizes": {"drugs": 4}},
    }
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, synthetic, tmp_path):
    """Cohort, empty home, and the list of what was made: views, and quantised kinds by size."""
    _, cohort = synthetic
    calls: list[object] = []

    def build_views(config, cohort, on_step=None):
        calls.append("views")
        rng = np.random.default_rng(0)
        found = {}
        for kind in KINDS:
            codes = tuple(sorted({code for visit in cohort.visits[kind] for code in visit}))
            found[kind] = ConceptViews(
                codes,
                rng.normal(size=(len(codes), 6)).astype(np.float32),
                rng.normal(size=(len(codes), 5)).astype(np.float32),
            )
        edges = [SimpleNamespace(relation="is in", label=f"Group {i}") for i in range(9)]
        edges.append(SimpleNamespace(relation="treats", label="Pain"))
        graph = SimpleNamespace(
            nodes=("n",),
            concepts={"drugs": [0, -1]},
            neighbours=lambda node: edges,
        )
        return SimpleNamespace(views=found, graph=graph, notes={"replaced": ["all"]})

    def train_codes(views, *arguments, **options):
        calls.append(len(views.codes))
        return rqvae.train_codes(views, *arguments, **options)

    monkeypatch.setattr(views, "build_views", build_views)
    monkeypatch.setattr(build, "train_codes", train_codes)
    return cohort, Home(tmp_path), calls


def test_a_table_is_made_once_and_says_how(made):
    cohort, home, calls = made
    said: list[str] = []
    table = build_concepts(CONFIG, cohort, home, said.append)
    assert calls[0] == "views"
    assert len(calls) == 4
    assert table.folder.parent == home.concepts
    assert table.folder.name == f"c-{table.digest[:8]}"
    assert home.find(home.concepts, "c") == table.folder
    manifest = table.manifest
    assert manifest["cohort"] == cohort.digest
    assert manifest["seeds"] == {"views": 42, "quantisers": 42}
    assert manifest["training"]["drugs"]["codes_per_level"] == 4
    assert {"this cohort", "paper, MIMIC-III", "paper, MIMIC-IV"} <= set(manifest["memory"])
    assert len(manifest["collisions"]) == 9
    assert manifest["provenance"]["packages"]["torch"]
    first = table.views["drugs"].codes[0]
    near = table.neighbours("drugs", first)
    assert near[:2] == [("is in", "Group 0"), ("treats", "Pain")]  # one of each comes first
    assert len(near) == build.PER_RELATION + 1
    assert table.neighbours("drugs", table.views["drugs"].codes[1]) == []
    assert table.titles("drugs")[0] != first
    assert any("epoch" in text for text in said)
    # nothing is left of the work, and the same request finds the folder
    assert [p.name for p in home.concepts.iterdir() if p.name.endswith((".work", ".tmp"))] == []
    assert build_concepts(CONFIG, cohort, home).digest == table.digest
    assert len(calls) == 4


def test_an_interrupted_call_goes_on_and_ends_as_if_it_had_not_been(made, monkeypatch, tmp_path):
    cohort, home, calls = made
    whole = build_concepts(CONFIG, cohort, Home(tmp_path / "other"))
    calls.clear()
    trained = build.train_codes

    def stop_at_drugs(views, *arguments, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trained(views, *arguments, **options)

    monkeypatch.setattr(build, "train_codes", stop_at_drugs)
    with pytest.raises(KeyboardInterrupt):
        build_concepts(CONFIG, cohort, home)
    assert not any(path.name.startswith("c-") for path in home.concepts.iterdir())
    calls.clear()
    monkeypatch.setattr(build, "train_codes", trained)
    resumed = build_concepts(CONFIG, cohort, home)
    assert calls == [len(resumed.views["drugs"].codes)]
    for kind in KINDS:
        assert np.array_equal(resumed.codes[kind].index, whole.codes[kind].index)
        assert np.array_equal(resumed.codes[kind].books, whole.codes[kind].books)


def test_without_structure_the_views_are_found_and_the_codes_are_others(made):
    cohort, home, calls = made
    both = build_concepts(CONFIG, cohort, home)
    calls.clear()
    without = build_concepts(CONFIG.model_copy(update={"structure": False}), cohort, home)
    assert "views" not in calls
    assert without.digest != both.digest
    assert without.manifest["views"] == ["semantic"]
    assert without.codes["drugs"].index.shape[1:] == (1, 2)
    calls.clear()
    build_concepts(CONFIG.model_copy(update={"seed": 1}), cohort, home)
    assert "views" in calls


def test_the_digest_follows_what_matters(made, monkeypatch, tmp_path):
    cohort, _, _ = made
    base = build._request_digest(CONFIG, cohort)
    quantiser = CONFIG.quantiser.model_copy(update={"commitment": 0.25})
    changed = CONFIG.model_copy(update={"quantiser": quantiser})
    assert build._request_digest(changed, cohort) != base
    assert build._views_digest(changed, cohort) == build._views_digest(CONFIG, cohort)
    # a user folder counts by its files, not by its place
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(b"12345")
        text = CONFIG.text.model_copy(update={"path": str(tmp_path / name)})
        digests.append(build._views_digest(CONFIG.model_copy(update={"text": text}), cohort))
    assert digests[0] == digests[1]
    (tmp_path / "two" / "model.bin").write_bytes(b"123456")
    assert build._views_digest(CONFIG.model_copy(update={"text": text}), cohort) != digests[0]


def test_the_manifest_is_plain_json(made):
    cohort, home, _ = made
    table = build_concepts(CONFIG, cohort, home)
    assert (table.folder / MANIFEST_FILE).read_text().startswith("{")
    assert {p.name for p in table.folder.iterdir()} == {
        "concepts.npz",
        "manifest.json",
        "descriptions.json",
        "history.json",
    }


def test_the_command_prints_rates_groups_and_memory(made, synthetic, tmp_path):
    from typer.testing import CliRunner

    from orchestration.cli import app

    cohort, home, _ = made
    home.cohorts.symlink_to(synthetic[0].cohorts)
    file = tmp_path / "c.yaml"
    file.write_text("name: c\nquantiser: {levels: 1, code_dim: 4, epochs: 2}\n")
    sizes = "quantiser.codebook_sizes={diagnoses: 2, procedures: 2, drugs: 2}"
    command = ["concepts", str(file), "--cohort", cohort.name, "--home", str(home.root)]
    shown = CliRunner().invoke(app, [*command, "--set", sizes], catch_exceptions=False)
    assert shown.exit_code == 0
    for text in ("collision_rate", "joint", "concepts with equal codes", "MIMIC-IV", "5.19"):
        assert text in shown.stdout
    # thirty diagnoses, at most two codes in each of two views
    result = CliRunner().invoke(app, [*command, "--set", sizes, "--json"], catch_exceptions=False)
    document = json.loads(result.stdout)
    assert document["collisions"][2]["collision_rate"] > 0.5
    assert len(document["colliding"]["diagnoses"]) > 15
    assert document["told_apart_from"] == document["concepts"]
