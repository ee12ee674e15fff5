"""SafeDrug's fingerprints, its trained and frozen encoders, and its batched step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rdkit import Chem

from medrec.config import TrainConfig
from medrec.data.dataset import collate
from medrec.fitting import LearningData, build_learning_data, fit_context
from medrec.models import build_model
from medrec.models.safedrug import FingerprintMPNN, SafeDrug
from medrec.molecules.fingerprints import all_atom_graph, fingerprints, message_plan, refine

SMILES = ["CCO", "CCN", "OCC", "[K+]", "c1ccccc1O"]


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=True)


def make(data: LearningData, **model: object) -> SafeDrug:
    config = TrainConfig.model_validate(
        {
            "name": "t",
            "model": {"name": "safedrug", "d_model": 8, "dropout": 0.0, **model},
            "loss": {"gate": "safedrug", "ddi_target": 0.01, "gate_kp": 1.0},
        }
    )
    torch.manual_seed(0)
    # half of all pairs interact, so that the gate is partly open
    ddi = torch.triu((torch.rand(data.context.ddi.shape) < 0.5).float(), 1)
    context = replace(fit_context(config, data).context, ddi=ddi + ddi.T)
    built = build_model(config, context)
    assert isinstance(built, SafeDrug)
    return built


def test_fingerprints_see_as_far_as_their_radius():
    graph = all_atom_graph(SMILES)
    atom = {m: graph.molecule.index(m) for m in range(len(SMILES))}
    carbon, other = atom[0], atom[1]  # the methyl groups of ethanol and ethylamine
    same = [fingerprints(graph, radius) for radius in range(4)]
    assert [labels[carbon] == labels[other] for labels in same] == [True, True, False, False]
    # ethanol written from its other end has the same fingerprints
    labels = np.array(same[2])
    molecule = np.array(graph.molecule)
    assert sorted(labels[molecule == 0]) == sorted(labels[molecule == 2])


def test_graphs_hold_hydrogens():
    graph = all_atom_graph(["CCO"])
    assert len(graph.labels) == Chem.AddHs(Chem.MolFromSmiles("CCO")).GetNumAtoms() == 9
    assert sum(map(len, graph.neighbours)) == 2 * 8


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("readout", ["mean", "sum"])
def test_shared_rows_equal_the_plain_network(n_layers: int, readout: str):
    graph = all_atom_graph(SMILES)
    labels = fingerprints(graph, 1)
    n_atoms = torch.bincount(torch.tensor(graph.molecule)) if readout == "mean" else None
    plan = message_plan(graph, labels, n_layers)
    torch.manual_seed(0)
    network = FingerprintMPNN(max(labels) + 1, 8, plan, n_atoms).double()
    n = len(labels)
    adjacency = torch.zeros(n, n, dtype=torch.double)
    for a, around in enumerate(graph.neighbours):
        adjacency[a, [b for b, _ in around]] = 1.0
    h = network.table.weight[torch.tensor(labels)]
    for layer in network.layers:
        h = torch.relu(layer(h))
        h = h + adjacency @ h
    expected = torch.zeros(len(SMILES), 8, dtype=torch.double)
    expected = expected.index_add(0, torch.tensor(graph.molecule), h)
    if n_atoms is not None:
        expected = expected / n_atoms.unsqueeze(1)
    assert torch.allclose(network(), expected)
    parameters = list(network.parameters())
    ours = torch.autograd.grad(network().square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


def test_refining_twice_is_finer_than_once():
    graph = all_atom_graph(SMILES)
    labels = graph.labels
    for _ in range(3):
        finer = refine(labels, graph.neighbours)
        assert len(set(finer)) >= len(set(labels))
        assert len(set(zip(finer, labels, strict=True))) == len(set(finer))
        labels = finer


def test_a_frozen_encoder_is_in_the_checkpoint_and_does_not_move(data: LearningData):
    model = make(data, encoder="frozen_random", readout="sum")
    assert any(name.startswith("mpnn.") for name in model.state_dict())
    before = model.encode_drugs()
    assert not before.requires_grad
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    batch = data.dataset.collate(list(data.dataset.patients)[:4])
    model.loss(batch, model(batch, before)).total.backward()
    optimiser.step()
    assert torch.equal(model.encode_drugs(), before)
    assert make(data).encode_drugs().requires_grad


def plain_logits(model: SafeDrug, visits, drugs: torch.Tensor) -> torch.Tensor:
    """Logits of the last of some visits (D,), as the released code computes them."""
    states = []
    for bag, gru, codes in (
        (model.history.diagnoses, model.history.gru_diagnoses, visits.diagnoses),
        (model.history.procedures, model.history.gru_procedures, visits.procedures),
    ):
        sums = [bag.table.weight[torch.from_numpy(c)].sum(dim=0) for c in codes]
        states.append(gru(torch.stack(sums).unsqueeze(0))[0][0, -1])
    query, scale = model.query(torch.cat(states)), 1.0
    if model.config.model.query == "normalised":
        query, scale = model.query_norm(query), len(query) ** -0.5
    match = torch.sigmoid(scale * query @ drugs.T)
    tables = model.context.molecules
    local = torch.sigmoid(model.parts(query)) @ (model.bipartite * tables.fragment_mask.T)
    return model.norm(match + model.mix(match)) * local


def plain_loss(model: SafeDrug, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Loss of one visit, with torch's margin loss and loops over pairs."""
    probs, ddi = torch.sigmoid(logits), model.context.ddi
    positive = target.nonzero().flatten()
    places = torch.full((len(target),), -1)
    places[: len(positive)] = positive
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    margin = torch.nn.functional.multilabel_margin_loss(probs, places)
    prediction = 0.95 * bce + 0.05 * margin
    chosen = [i for i, p in enumerate(probs.tolist()) if p >= 0.5]
    pairs = [(a, b) for a in chosen for b in chosen if a < b]
    rate = sum(float(ddi[a, b]) for a, b in pairs) / max(len(pairs), 1)
    target_rate, kp = model.config.loss.ddi_target, model.config.loss.gate_kp
    if rate <= target_rate:
        return prediction
    alpha = max(0.0, 1.0 - (rate - target_rate) / kp)
    interaction = 5e-4 * (ddi * torch.outer(probs, probs)).sum()
    return alpha * prediction + (1.0 - alpha) * interaction


def step(model: SafeDrug, loss: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients, and parameters after one step of gradient descent."""
    parameters = list(model.parameters())
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return [p.grad.clone() for p in parameters], [p.detach().clone() for p in parameters]


@pytest.mark.parametrize("n_visits", [1, 2])
@pytest.mark.parametrize("query", ["normalised", "plain"])
def test_a_batched_step_equals_plain_updates(data: LearningData, n_visits: int, query: str):
    """One visit: the per-visit update. Several: the mean over the patient's prefixes."""
    lengths = {p: len(v) for p, v in data.dataset.patients.items()}
    patient = next(p for p in sorted(lengths) if lengths[p] >= n_visits)
    whole = data.dataset.patients[patient]

    def prefix(t: int):
        return type(whole)(
            whole.diagnoses[:t], whole.procedures[:t], whole.drugs[:t], whole.n_unseen[:t]
        )

    batched, plain = make(data, query=query), make(data, query=query)
    batch = collate([prefix(n_visits)], [0], data.dataset.n_drugs)
    total = batched.loss(batch, batched(batch, batched.encode_drugs())).total
    losses = []
    for t in range(1, n_visits + 1):
        visits, target = prefix(t), torch.zeros(data.dataset.n_drugs)
        target[torch.from_numpy(visits.drugs[-1])] = 1.0
        losses.append(plain_loss(plain, plain_logits(plain, visits, plain.encode_drugs()), target))
    reference = torch.stack(losses).mean()
    assert float(total.detach()) == pytest.approx(float(reference.detach()), abs=1e-6)
    for ours, theirs in zip(step(batched, total), step(plain, reference), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_the_parity_test_sees_the_interaction_loss(data: LearningData):
    model = make(data)
    batch = data.dataset.collate(list(data.dataset.patients)[:4])
    terms = model.loss(batch, model(batch, model.encode_drugs()))
    assert 0.0 < float(terms.parts["gate"]) < 1.0
