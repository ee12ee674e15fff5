"""Computing once what repeats changes no number."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from medrec.molecules.encoders_2d import (
    CategoryEmbedding,
    CountedBatchNorm,
    FastDropout,
    GINEncoder,
    segment_mean,
    sum_rows,
)
from medrec.molecules.repetitions import Repetitions, RowSums
from medrec.molecules.structure import MoleculeGraphs, build_graphs

SMILES = ["CCO", "C[C@H](N)C(=O)O", "c1ccccc1O", "[K+]", "CC(=O)Nc1ccc(O)cc1", "CCO"]


def plain_gin(encoder: GINEncoder, graphs: MoleculeGraphs) -> torch.Tensor:
    """The textbook form over all atoms and edges, with torch's own batch normalisation."""

    def embed(embedding: CategoryEmbedding, columns: torch.Tensor) -> torch.Tensor:
        return embedding.table(columns + embedding.starts).sum(dim=1)

    def normalise(norm: CountedBatchNorm, x: torch.Tensor) -> torch.Tensor:
        return nn.BatchNorm1d.forward(norm, x)

    h = embed(encoder.atoms, graphs.x)
    source, target = graphs.edge_index
    for layer in encoder.layers:
        messages = torch.relu(h[source] + embed(layer.bonds, graphs.edge_attr))
        gathered = torch.zeros_like(h).index_add(0, target, messages)
        enter, norm, _, leave = layer.mlp
        h = leave(torch.relu(normalise(norm, enter((1.0 + layer.eps) * h + gathered))))
        h = normalise(layer.norm, h)
        h = h if layer.last else torch.relu(h)
    return segment_mean(h, graphs.batch, graphs.n_graphs)


@pytest.mark.parametrize("training", [True, False])
def test_gin_equals_the_plain_form(training: bool):
    torch.manual_seed(0)
    encoder = GINEncoder(8, 3, dropout=0.0).double().train(training)
    for parameter in encoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    other = copy.deepcopy(encoder)
    graphs = build_graphs(SMILES)
    graphs = MoleculeGraphs(**{**graphs.__dict__, "repetitions": as_double(graphs)})
    direction = torch.randn(len(SMILES), 8, dtype=torch.double)
    found, expected = encoder(graphs), plain_gin(other, graphs)
    assert torch.allclose(found, expected, atol=1e-9)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for (name, ours), theirs in zip(encoder.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-8), name
    for (name, ours), theirs in zip(encoder.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=1e-7), name


def as_double(graphs: MoleculeGraphs) -> Repetitions:
    """Shares computed in double precision."""
    found, n = graphs.repetitions, graphs.repetitions.later.n_atoms
    first, later = (
        replace(hoods, share=(hoods.share * n).round().double() / n)
        for hoods in (found.first, found.later)
    )
    return replace(
        found, first=first, later=later, atom_share=1.0 / (1.0 / found.atom_share).round().double()
    )


def test_something_repeats():
    found = build_graphs(SMILES).repetitions
    assert len(found.first.share) < found.later.n_atoms
    assert float(found.first.share.sum()) == pytest.approx(1.0)


def test_sums_of_rows_by_hand():
    x = torch.tensor([[1.0], [10.0], [100.0]], requires_grad=True)
    sums = RowSums.of(torch.tensor([2, 0, 2, 2]), torch.tensor([0, 1, 0, 2]), 3, 3)
    out = sum_rows(x, sums)
    assert out.flatten().tolist() == [10.0, 0.0, 102.0]
    (out * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert x.grad.flatten().tolist() == [6.0, 1.0, 3.0]


def test_graphs_without_edges_or_without_atoms():
    encoder = GINEncoder(8, 2, dropout=0.0).eval()
    assert encoder(build_graphs(["[K+]", "O"])).isfinite().all()
    assert encoder(build_graphs([])).shape == (0, 8)


def test_fast_dropout_keeps_the_mean_and_is_off_in_evaluation():
    torch.manual_seed(0)
    dropout, x = FastDropout(0.7), torch.ones(1001, 301, requires_grad=True)
    out = dropout(x)
    assert float((out == 0).float().mean()) == pytest.approx(0.7, abs=0.005)
    assert float(out.detach().mean()) == pytest.approx(1.0, abs=0.01)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert dropout.eval()(x) is x
    assert FastDropout(0.0)(x) is x
