"""GAMENet: its graphs, its two memories and its annealed loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medrec.config import TrainConfig
from medrec.fitting import LearningData, build_learning_data, fit_context
from medrec.models.gamenet import GAMENet


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=False)


def settings(loss: dict[str, object] | None = None, **model: object) -> TrainConfig:
    sizes = {"name": "gamenet", "d_model": 8, "dropout": 0.0, "graph_dropout": 0.0}
    return TrainConfig.model_validate(
        {"name": "t", "model": {**sizes, **model}, "loss": loss or {}}
    )


def make(data: LearningData, config: TrainConfig) -> GAMENet:
    torch.manual_seed(0)
    return GAMENet(config, fit_context(config, data).context)


def test_the_graph_holds_pairs_of_training_visits_only(data):
    config = settings()
    few = replace(data, split=replace(data.split, train=data.split.train[:2]))
    graph = fit_context(config, few).context.fitted["co_prescription"]
    expected = torch.zeros_like(graph)
    for patient in few.split.train:
        for drugs in data.dataset[int(patient)].drugs:
            for i in drugs:
                for j in drugs:
                    expected[i, j] = float(i != j)
    assert torch.equal(graph, expected)
    everybody = fit_context(config, data).context.fitted["co_prescription"]
    assert everybody.sum() > graph.sum()


def test_the_released_formulas(data):
    """Memory, both readings and logits of one visit, written down from the definition."""
    model = make(data, settings()).eval()
    patient = max(data.dataset, key=lambda p: len(data.dataset[p]))
    batch = data.dataset.collate([patient])
    with torch.no_grad():
        memory = model.encode_drugs().vectors
        loops = model.context.fitted["co_prescription"] + torch.eye(len(memory))
        a = loops / loops.sum(1, keepdim=True)
        layers = model.ehr_graph
        hidden = torch.relu(a @ layers.first.weight.T + layers.first.bias)
        ehr = a @ hidden @ layers.second.weight.T + layers.second.bias
        assert torch.allclose(memory, ehr - model.ddi_share * model.ddi_graph(), atol=1e-6)
        queries = model._queries(batch)[0]
        t = len(queries) - 1
        q = queries[t]
        graph = torch.softmax(memory @ q, 0) @ memory
        weights = torch.softmax(queries[:t] @ q, 0)
        similar = (weights @ batch.target[0, :t]) @ memory
        logits = model(batch, model.encode_drugs()).logits[0]
        assert torch.allclose(logits[t], model.output(torch.cat([q, graph, similar])), atol=1e-5)
        first = torch.softmax(memory @ queries[0], 0) @ memory
        expected = model.output(torch.cat([queries[0], first, first]))
        assert torch.allclose(logits[0], expected, atol=1e-5)


def test_without_interactions_the_memory_has_one_graph(data):
    model = make(data, settings(ddi_in_memory=False))
    assert torch.equal(model.encode_drugs().vectors, model.ehr_graph())


def test_the_loss_anneals(data):
    model = make(data, settings({"ddi_target": 0.06}))
    rates = torch.tensor([0.0, 0.06, 0.10])
    hot = model.annealed(rates)
    assert hot.tolist() == pytest.approx([1.0, 1.0, 1.0 - 0.980199], abs=1e-5)
    model.begin_epoch(40)
    assert model.temperature == pytest.approx(2.0 * 0.85**40)
    assert model.annealed(rates)[2] > 0.99


def test_losses_are_told_apart_and_none_means_none(data):
    def total(**options: object) -> float:
        model = make(data, settings(**options))
        torch.nn.init.constant_(model.output[-1].bias, 4.0)  # every drug, interactions included
        batch = data.dataset.collate(data.split.train[:8])
        return float(model.loss(batch, model(batch, model.encode_drugs())).total.detach())

    annealed = total(loss={"ddi_target": 0.01})
    shared = total(loss={"ddi_target": 0.01}, ddi_loss="shared")
    none = total(loss={"gate": "none"})
    assert annealed != pytest.approx(shared)
    assert none > max(annealed, shared)
    assert none == pytest.approx(total(loss={"gate": "none"}, ddi_loss="shared"))
