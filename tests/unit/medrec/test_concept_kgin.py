"""Encoders of the knowledge graph, their measurement, and the views of a cohort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrec.concepts.graph import GraphBuilder
from medrec.concepts.kgin import KginEncoder, dependence, embed_graph, train_kgin
from medrec.concepts.links import dot_product, hold_out, measure_links, spectral_vectors
from medrec.concepts.table import KINDS
from medrec.concepts.views import build_views, concept_codes
from medrec.config_papers import ConceptConfig, GraphConfig
from quantum.base import ConvergenceError

SMALL = GraphConfig(dims=16, epochs=15, lr=1e-2, held_out=0.0)


def tree(n_groups=6, n_leaves=8, isolated=True):
    """Leaves in groups under a root, each leaf also linked to the next of its group."""
    builder = GraphBuilder()
    builder.add_node("top:0", "root")
    for group in range(n_groups):
        builder.add_edge(builder.add_node(f"group:{group}", ""), "is_a", "top:0")
        for leaf in range(n_leaves):
            node = builder.add_node(f"leaf:{group}.{leaf}", "")
            builder.add_edge(node, "is_a", f"group:{group}")
            if leaf:
                builder.add_edge(node, "near", f"leaf:{group}.{leaf - 1}")
    if isolated:
        builder.add_node("leaf:alone", "")
    leaves = [node for node in builder.nodes if node.startswith("leaf:")]
    return builder.build({"diagnoses": leaves, "procedures": [], "drugs": []})


@pytest.fixture(scope="module")
def graph():
    return tree()


def cosine(vectors, graph, a, b):
    x, y = vectors[graph.place(a)], vectors[graph.place(b)]
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


# ------------------------------------------------------------------ aggregation


def test_aggregation_is_the_mean_over_relations_and_neighbours(graph):
    torch.manual_seed(0)
    config = GraphConfig(dims=5, layers=2)
    model = KginEncoder(len(graph.nodes), len(graph.relations), config)
    n_relations = len(graph.relations)
    messages = [[] for _ in graph.nodes]
    for head, relation, tail in graph.edges.tolist():
        messages[head].append((relation, tail))
        messages[tail].append((relation + n_relations, head))
    layer, total = model.nodes, model.nodes
    for _ in range(2):
        rows = [
            torch.stack([model.relations[r] * layer[t] for r, t in found]).mean(dim=0)
            if found
            else torch.zeros(5)
            for found in messages
        ]
        layer = torch.nn.functional.normalize(torch.stack(rows), dim=1)
        total = total + layer
    mine = model(graph.edges)
    torch.testing.assert_close(mine, total)
    weights = torch.randn_like(total)
    expected = torch.autograd.grad((total * weights).sum(), [model.nodes, model.relations])
    found = torch.autograd.grad((mine * weights).sum(), [model.nodes, model.relations])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_direction_of_an_edge_matters():
    def vectors(first, second):
        builder = GraphBuilder()
        for node in "ab":
            builder.add_node(node, node)
        builder.add_edge(first, "r", second)
        built = builder.build({})
        torch.manual_seed(0)
        return KginEncoder(2, 1, GraphConfig(dims=4)).vectors(built)

    assert not np.allclose(vectors("a", "b"), vectors("b", "a"))


# ------------------------------------------------------------------ intents


def test_dependence_is_one_for_copies_and_small_for_noise():
    torch.manual_seed(0)
    row = torch.randn(400)
    copied = dependence(torch.stack([row, -2.0 * row]))
    apart = dependence(torch.randn(2, 400))
    assert float(copied) == pytest.approx(1.0, abs=1e-3)
    assert float(apart) < 0.3
    # distance correlation sees what correlation does not
    assert float(dependence(torch.stack([row, row.square()]))) > 0.4


def test_the_regulariser_pulls_intents_apart(graph):
    ends = [
        dependence(
            train_kgin(graph, SMALL.model_copy(update={"independence": weight}), 0).intents()
        ).item()
        for weight in (0.0, 10.0)
    ]
    assert ends[1] < ends[0] - 0.3


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("encoder", ["kgin", "spectral"])
def test_codes_of_one_category_are_nearer_than_others(graph, encoder):
    config = SMALL.model_copy(update={"encoder": encoder, "dims": 8})
    vectors = embed_graph(graph, config, 0).vectors
    within = [cosine(vectors, graph, f"leaf:{g}.1", f"leaf:{g}.6") for g in range(6)]
    across = [cosine(vectors, graph, f"leaf:{g}.1", f"leaf:{(g + 1) % 6}.6") for g in range(6)]
    assert min(within) > max(across) + 0.1
    # near, and not the same
    first, second = (vectors[graph.place(f"leaf:0.{i}")] for i in (2, 5))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("encoder", ["kgin", "spectral"])
def test_same_seed_same_bytes(graph, encoder):
    config = SMALL.model_copy(update={"encoder": encoder, "epochs": 3, "held_out": 0.1})
    torch.manual_seed(1)
    first = embed_graph(graph, config, 5)
    torch.manual_seed(2)  # the state of the process does not matter
    second = embed_graph(graph, config, 5)
    assert first.vectors.tobytes() == second.vectors.tobytes()
    assert first.measured == second.measured
    assert first.vectors.tobytes() != embed_graph(graph, config, 6).vectors.tobytes() or (
        encoder == "spectral"
    )


@pytest.mark.parametrize("encoder", ["kgin", "spectral"])
def test_a_concept_without_edges_is_zero_and_finite(graph, encoder):
    config = SMALL.model_copy(update={"encoder": encoder, "epochs": 2})
    vectors = embed_graph(graph, config, 0).vectors
    assert np.isfinite(vectors).all()
    assert not vectors[graph.place("leaf:alone")].any()
    assert vectors[graph.place("leaf:0.0")].any()


@pytest.mark.parametrize("encoder", ["kgin", "spectral"])
def test_a_graph_without_edges_has_vectors(encoder):
    builder = GraphBuilder()
    builder.add_node("a:1", "")
    config = SMALL.model_copy(update={"encoder": encoder, "held_out": 0.1})
    found = embed_graph(builder.build({}), config, 0)
    assert not found.vectors.any()
    assert found.measured == {}


def test_training_reports_its_epochs_and_fails_plainly(graph):
    seen: list[tuple[int, int]] = []
    train_kgin(graph, SMALL.model_copy(update={"epochs": 2}), 0, lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(ConvergenceError, match=r"smaller graph\.lr"):
        train_kgin(graph, SMALL.model_copy(update={"lr": 1e30}), 0)


# ------------------------------------------------------------------ measurement


def test_held_out_pairs_are_gone_in_every_relation_and_direction():
    builder = GraphBuilder()
    for i in range(30):
        builder.add_node(f"n:{i:02d}", "")
    for i in range(30):
        for step in (1, 2):
            a, b = f"n:{i:02d}", f"n:{(i + step) % 30:02d}"
            builder.add_edge(a, "isa", b)
            builder.add_edge(b, "inverse_isa", a)
    graph = builder.build({})
    hidden = hold_out(graph, 0.2, 0)
    assert len(hidden.edges) == 12  # of sixty pairs
    gone = {frozenset((h, t)) for h, _, t in hidden.edges.tolist()}
    left = {frozenset((h, t)) for h, _, t in hidden.graph.edges.tolist()}
    assert len(gone) == 12
    assert not gone & left
    assert len(hidden.graph.edges) == len(graph.edges) - 24
    assert (hidden.graph.degrees > 0).all()


def test_no_node_loses_its_last_pair(graph):
    hidden = hold_out(graph, 0.5, 0)
    assert ((hidden.graph.degrees > 0) == (graph.degrees > 0)).all()


def test_measured_links_of_perfect_wrong_and_blind_scores(graph):
    hidden = hold_out(graph, 0.2, 0)
    linked = np.zeros((len(graph.nodes),) * 2, dtype=np.float32)
    linked[graph.edges[:, 0], graph.edges[:, 2]] = 1.0

    def scores(sign):
        return measure_links(
            graph, hidden, lambda heads, tails: sign * linked[heads[:, None], tails], 0
        )

    assert scores(1.0)["auc"] == 1.0
    assert scores(1.0)["hits_at_10"] == 1.0
    assert scores(-1.0)["auc"] == 0.0
    assert scores(0.0)["auc"] == 0.5
    assert set(scores(1.0)["auc_by_relation"]) <= {"is_a", "near"}


def test_learning_beats_random_vectors(graph):
    hidden = hold_out(graph, 0.15, 0)
    rng = np.random.default_rng(0)
    noise = dot_product(rng.normal(size=(len(graph.nodes), 16)).astype(np.float32))
    model = train_kgin(hidden.graph, SMALL, 0)
    learned = measure_links(graph, hidden, model.scorer(hidden.graph), 0)
    assert learned["auc"] > measure_links(graph, hidden, noise, 0)["auc"] + 0.2
    assert learned["auc"] > 0.75


def test_spectral_leaves_alternating_eigenvectors_out():
    # a star is bipartite: without the added identity the sign pattern leads
    builder = GraphBuilder()
    builder.add_node("hub:0", "")
    for i in range(10):
        builder.add_edge(builder.add_node(f"leaf:{i}", ""), "is_a", "hub:0")
    vectors = spectral_vectors(builder.build({}), 1, 0)
    assert (vectors > 0).all() or (vectors < 0).all()


# ------------------------------------------------------------------ views of a cohort


@pytest.fixture(scope="module")
def made(synthetic):
    _, cohort = synthetic
    config = ConceptConfig(
        name="tiny", text={"dims": 32}, graph={"dims": 16, "epochs": 2, "held_out": 0.05}
    )
    steps: list[str] = []
    return cohort, build_views(config, cohort, steps.append), steps


def test_views_cover_the_vocabulary_of_every_split(made):
    cohort, result, steps = made
    for kind in KINDS:
        views = result.views[kind]
        for number in range(cohort.n_splits):
            assert set(getattr(cohort.vocabularies(number), kind).codes) <= set(views.codes)
        assert list(views.codes) == sorted(views.codes)
        assert views.semantic.shape == (len(views.codes), 32)
        assert views.structural.shape == (len(views.codes), 16)
        assert views.semantic.dtype == views.structural.dtype == np.float32
        assert np.isfinite(views.semantic).all()
        assert np.abs(views.structural).max(axis=1).min() > 0
    assert steps[0] == "titles"
    assert any("nodes" in step for step in steps)


def test_notes_say_what_was_made(made):
    _, result, _ = made
    notes = result.notes
    assert notes["coverage"] == {"diagnoses": 1.0, "procedures": 1.0, "drugs": 1.0}
    assert notes["links"]["auc"] > 0.5
    assert sum(notes["nodes"].values()) == len(result.graph.nodes)
    assert any("UMLS" in line for line in notes["replaced"])
    assert set(notes["seconds"]) == {"text", "graph", "encoder"}


def test_only_the_list_of_codes_is_read(synthetic):
    _, cohort = synthetic

    class Closed:
        codes, ddi_pairs = cohort.codes, cohort.ddi_pairs

        def __getattr__(self, name):
            raise AssertionError(f"the views read {name}")

    config = ConceptConfig(name="tiny", text={"dims": 4}, graph={"dims": 4, "epochs": 0})
    assert set(build_views(config, Closed()).views) == set(KINDS)
    assert concept_codes(Closed())["drugs"] == tuple(sorted(cohort.drugs["atc"]))
