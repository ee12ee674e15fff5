"""CausalMed: what the graph is learned from, the roles of codes, the relational GCN."""

from __future__ import annotations

import builtins
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from medrec.config import TrainConfig
from medrec.data.dataset import PatientVisits, VisitDataset
from medrec.data.schema import Vocabularies, Vocabulary
from medrec.fitting import LearningData, build_learning_data, fit_context
from medrec.models import causality
from medrec.models.base import DrugContext, FittingData
from medrec.models.causality import (
    bic_penalty,
    causal_graph,
    code_effects,
    code_matrix,
    effect_levels,
)
from medrec.models.causalmed import CausalMed
from quantum.base import ProgramMissingError

MODEL = {"name": "causalmed", "d_model": 8, "dropout": 0.0, "n_discovery_codes": 12}
CONFIG = TrainConfig.model_validate({"name": "t", "model": MODEL})


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=False)


@pytest.fixture(scope="module")
def fitted(data: LearningData) -> LearningData:
    return fit_context(CONFIG, data)


@pytest.fixture
def model(fitted: LearningData) -> CausalMed:
    torch.manual_seed(0)
    return CausalMed(CONFIG, fitted.context).eval()


def collider(n: int = 4000) -> sparse.csr_matrix:
    """Codes 0 and 1 both cause code 2; code 3 has nothing to do with them."""
    rng = np.random.default_rng(0)
    a, b, other = (rng.random(n) < share for share in (0.4, 0.35, 0.2))
    effect = rng.random(n) < 0.05 + 0.4 * a + 0.4 * b
    return sparse.csr_matrix(np.stack([a, b, effect, other], axis=1).astype(float))


def test_discovery_finds_a_collider():
    codes, edges = causal_graph(collider(), 4, 2.0)
    found = {(int(codes[i]), int(codes[j])) for i, j in zip(*np.nonzero(edges), strict=True)}
    assert found == {(0, 2), (1, 2)}


def test_codes_of_few_visits_take_no_part_and_a_tiny_cohort_has_no_graph():
    rare = sparse.hstack([collider(), np.eye(4000, 1)], format="csr")
    assert 4 not in causal_graph(rare, 5, 2.0)[0]
    codes, edges = causal_graph(collider()[:8], 4, 2.0)
    assert len(codes) == 0
    assert edges.shape == (0, 0)


def test_penalty_leaves_the_stated_number_of_pairs():
    rng = np.random.default_rng(1)
    table = (rng.random((2000, 20)) + rng.random((2000, 1)) > 1.0).astype(float)
    covariance = np.cov(table.T, ddof=0)
    squared = np.corrcoef(table.T)[np.triu_indices(20, 1)] ** 2
    gain = -1000.0 * np.log(1.0 - squared) / np.log(2000)
    assert (gain > 0.5).sum() > 40
    assert (gain > bic_penalty(covariance, 2000, 2.0) * (1.0 + 1e-9)).sum() == 40
    assert bic_penalty(np.eye(20), 2000, 2.0) == 0.5


def test_only_training_patients_count(data, fitted):
    def change(rows, first, last):
        codes = rows.codes.copy()
        codes[rows.starts[first] : rows.starts[last]] = 0
        return replace(rows, codes=codes)

    outside = data.dataset.visit_numbers(np.concatenate([data.split.validation, data.split.test]))
    inside = data.dataset.visit_numbers(data.split.train)
    for visits, same in ((outside, True), (inside, False)):
        dataset = type(data.dataset).__new__(type(data.dataset))
        dataset.__dict__.update(data.dataset.__dict__)
        for kind in ("diagnoses", "procedures", "drugs"):
            rows = getattr(dataset, kind)
            for visit in visits:
                rows = change(rows, visit, visit + 1)
            setattr(dataset, kind, rows)
        other = fit_context(CONFIG, replace(data, dataset=dataset)).context.fitted
        equal = [torch.equal(other[k], v) for k, v in fitted.context.fitted.items()]
        assert all(equal) == same


def confounded(n: int = 3000) -> FittingData:
    """Diagnosis 0 causes drug 0; diagnosis 1 only accompanies it; everybody gets drug 1."""
    rng = np.random.default_rng(0)
    cause = rng.random(n) < 0.4
    companion = rng.random(n) < 0.1 + 0.7 * cause
    drug = rng.random(n) < 0.1 + 0.7 * cause
    nothing = np.zeros(0, np.int64)
    patients = {
        i: PatientVisits((np.flatnonzero([c, k]),), (nothing,), (np.flatnonzero([d, 1]),), (0,))
        for i, (c, k, d) in enumerate(zip(cause, companion, drug, strict=True))
    }
    kinds = [Vocabulary(("a", "b")), Vocabulary(("p",)), Vocabulary(("A", "B"))]
    dataset = VisitDataset.of(Vocabularies(*kinds), patients)
    return FittingData(dataset, np.arange(n), DrugContext(2, 1, 2, torch.zeros(2, 2)))


def test_effect_of_a_code_is_adjusted_for_the_others():
    data = confounded()
    effects = code_effects(code_matrix(data), data)
    assert effects[0, 0] > 2.0
    assert abs(effects[1, 0]) < 0.3
    assert (effects[2] == 0).all()  # no visit has the procedure
    assert (effects[:, 1] == 0).all()  # no visit is without the drug


def test_levels_have_equal_sizes_and_keep_the_order():
    effects = np.arange(20, dtype=np.float32).reshape(4, 5)[::-1]
    levels = effect_levels(effects, 5)
    assert np.bincount(levels.ravel()).tolist() == [4] * 5
    assert levels[0, 4] == 4
    assert levels[3, 0] == 0


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name.startswith("causallearn"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ProgramMissingError, match=r"medrec\[causal\]"):
        causality.causal_graph(collider(), 4, 2.0)


def test_roles_come_from_the_codes_of_the_visit_alone(data):
    context = replace(
        data.context,
        fitted={
            "graph_codes": torch.tensor([0, 1, 2, 3]),
            "graph_edges": torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
            > 0,
            "effect_levels": torch.zeros(
                data.context.n_diagnoses + data.context.n_procedures,
                data.context.n_drugs,
                dtype=torch.uint8,
            ),
        },
    )
    model = CausalMed(CONFIG, context)
    # 0 -> 1 -> 2 and 3 -> 2; code 9 is not in the graph
    code = torch.tensor([0, 1, 2, 9, 0, 2, 3, 2])
    visit = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    isolated, root, leaf, middle = 0, 1, 2, 3
    expected = [root, middle, leaf, isolated, isolated, isolated, root, leaf]
    assert model.roles(code, visit, 3).tolist() == expected


def slow_effects(model: CausalMed, h: dict[str, torch.Tensor], level: torch.Tensor) -> torch.Tensor:
    """Relational GCN of one visit, node by node; sums over the two ends."""
    for number, layer in enumerate((model.first, model.last)):
        new = {}
        for kind, other in (("code", "drug"), ("drug", "code")):
            rows = []
            for i, vector in enumerate(h[kind]):
                total = layer.own(vector)
                of = level[i] if kind == "code" else level[:, i]
                for relation in of.unique():
                    around = h[other][of == relation]
                    total = total + around.mean(dim=0) @ layer.relations[relation]
                rows.append(torch.relu(total) if number == 0 else total)
            new[kind] = torch.stack(rows)
        h = new
    return torch.stack([h["code"].sum(dim=0), h["drug"].sum(dim=0)])


def test_relational_network_equals_the_node_by_node_formula(model, data):
    _, patient, t = max(
        (len(drugs) * len(data.dataset[p].diagnoses[t + 1]), p, t + 1)
        for p in data.dataset
        for t, drugs in enumerate(data.dataset[p].drugs[:-1])
    )
    batch = data.dataset.collate([patient])
    code = batch.diagnoses.index[batch.diagnoses.visit == t]
    drug = batch.drugs_before[0, t].nonzero().squeeze(1)
    assert len(code) > 1
    assert len(drug) > 1
    # diagnoses of one visit alone, without procedures
    visit = torch.zeros_like(code)
    h_code, h_drug = model.codes(code), model.drugs(drug)
    graph = model.visit_graph(code, visit, batch.drugs_before[0, t : t + 1])
    target = torch.cat([visit, torch.full_like(drug, 2)])
    fast = model._effects(h_code, h_drug, graph, target, 3)
    level = model.levels[code][:, drug]
    slow = slow_effects(model, {"code": h_code, "drug": h_drug}, level)
    assert torch.allclose(fast[[0, 2]], slow, atol=1e-5)
    assert torch.allclose(fast[1], torch.zeros(8), atol=1e-6)
