"""The benchmark's peer is the same network with the same tasks as ours, written otherwise."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from medrec.config_molecules import (
    LibraryConfig,
    MoleculeEncoderConfig,
    MoleculePretrainConfig,
    PredictTaskConfig,
    SmilesSource,
)
from medrec.library.arrays import UNREACHABLE, MoleculeLibrary
from medrec.library.build import import_library
from medrec.library.loader import collate
from medrec.molecules.encoders_interact import InteractEncoder, PairedMolecules
from medrec.molecules.repetitions import find_repetitions
from medrec.molecules.structure import MoleculeGraphs
from medrec.pretrain.encoders import build_encoder
from medrec.pretrain.tasks import build_task
from medrec.pretrain.tasks_predict import random_pairs
from medrec.runs import Home

D, LAYERS = 16, 2
CHAIN = "CCCCCCCCCCCCCC"
SMILES = (
    "CC(=O)Nc1ccc(O)cc1", "C[C@H](N)C(=O)O", "CC#CCC", "C1CC1CO", "F/C=C/F", "[K+]",
    "c1ccc2ccccc2c1", CHAIN,
)  # fmt: skip
MIXTURES = ("OCC(O)CO.O", "[Na+].[Cl-]", "CC(=O)Nc1ccc(O)cc1.Cl", CHAIN)


@pytest.fixture(scope="module")
def peer(root) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        yield importlib.import_module("peer_molinteract")


@pytest.fixture(scope="module", params=["hydrogens", "heavy", "mixtures"])
def library(request, tmp_path_factory, write_library) -> MoleculeLibrary:
    folder = tmp_path_factory.mktemp("peer")
    if request.param == "mixtures":
        return write_library(folder / "mixtures", MIXTURES)
    pd.DataFrame({"smiles": SMILES}).to_csv(folder / "few.csv", index=False)
    source = SmilesSource(path=folder / "few.csv", conformers=True)
    hydrogens = request.param == "hydrogens"
    config = LibraryConfig(name="few", source=source, hydrogens=hydrogens, need_positions=True)
    found = import_library(config, Home(folder))
    assert len(found) == len(SMILES)
    return found


@pytest.fixture(scope="module")
def rows(library) -> np.ndarray:
    return np.arange(len(library))


@pytest.fixture(scope="module")
def labelled(peer, library, rows) -> list:
    return list(peer.LabelledMolecules(peer.graphs_of(library, rows)))


def encoder_of(peer, state) -> torch.nn.Module:
    theirs = peer.MolInteract(D, LAYERS)
    peer.copy_weights(state, theirs)
    return theirs


@torch.no_grad()
def test_states_are_those_of_the_recommenders_encoder(peer, labelled):
    data = Batch.from_data_list(labelled)
    repetitions = find_repetitions(
        data.x, data.edge_index, data.edge_attr, data.batch, data.num_graphs
    )
    graphs = MoleculeGraphs(
        data.x, data.edge_index, data.edge_attr, data.batch, data.num_graphs, repetitions
    )
    placed = torch.ones(len(data.x), dtype=torch.bool)
    source, target = data.near_index
    length = (data.pos[source] - data.pos[target]).norm(dim=1)
    number = torch.arange(len(length))
    torch.manual_seed(3)
    ours = InteractEncoder(D, LAYERS)
    expected = ours(PairedMolecules(graphs, placed, data.near_index, length, number))
    for state, other in zip(expected, encoder_of(peer, ours.state_dict())(data), strict=True):
        torch.testing.assert_close(other, state, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_states_are_those_of_the_encoder_that_is_measured(peer, library, rows, labelled):
    torch.manual_seed(3)
    ours = build_encoder(MoleculeEncoderConfig(d_model=D, layers=LAYERS), "both")
    batch = collate(library, rows)
    theirs = encoder_of(peer, ours.export()["interact"]["weights"])
    expected = ours(batch)
    for state, other in zip(expected, theirs(Batch.from_data_list(labelled)), strict=True):
        torch.testing.assert_close(other, state[batch.mask], rtol=1e-4, atol=1e-4)


def test_near_pairs_end_at_the_cutoff(labelled):
    chain = labelled[-1]
    gap = torch.cdist(chain.pos, chain.pos, compute_mode="donot_use_mm_for_euclid_dist")
    near = torch.zeros_like(gap, dtype=torch.bool)
    near[tuple(chain.near_index)] = True
    assert torch.equal(near, (gap < 10.0) & ~torch.eye(len(gap), dtype=torch.bool))
    assert (gap > 10.0).any()


def as_set(columns, directions) -> set[tuple[int, ...]]:
    """Items, each in its smallest order."""
    return {min(tuple(item[i] for i in order) for order in directions) for item in columns}


def test_angles_torsions_and_pairs_are_those_of_the_library(peer, library, rows, labelled):
    arrays, start = library.arrays, library.starts
    n_torsions = 0
    for row, data in zip(rows, labelled, strict=True):
        bonds = data.bond_index.T.tolist()
        angle = arrays["angle"][start[row, 2] : start[row + 1, 2]].tolist()
        swaps = ((0, 1, 2), (0, 2, 1))
        assert as_set(data.angle_index.T.tolist(), swaps) == as_set(angle, swaps)
        assert len(angle) == data.angle_index.shape[1]
        torsion = arrays["torsion"][start[row, 3] : start[row + 1, 3]].tolist()
        swaps = ((0, 1, 2, 3), (3, 2, 1, 0))
        kept = as_set(data.torsion_index.T.tolist(), swaps)
        assert kept <= as_set(torsion, swaps)  # those over flat angles have no dihedral
        assert len(kept) == data.torsion_index.shape[1]
        n_torsions += len(kept)
        random = min(2 * len(data.x), 256) if len(data.x) > 1 else 0
        assert data.pair_index.shape[1] == random + len(bonds)
        assert (data.pair_index[0] != data.pair_index[1]).all()
    assert n_torsions > 10


def test_paths_and_ranks_are_those_of_the_library(library, rows, labelled):
    for row, data in zip(rows, labelled, strict=True):
        n = len(data.x)
        spd = library.arrays["spd"][slice(*library.starts[row : row + 2, 4])].reshape(n, n)
        pairs = data.pair_index[:, : data.pair_index.shape[1] - data.bond_index.shape[1]]
        reached = spd[tuple(pairs)] != UNREACHABLE
        np.testing.assert_array_equal(data.path_index, pairs[:, torch.from_numpy(reached)])
        expected = spd[tuple(data.path_index)].astype(int).clip(1, 20) - 1
        np.testing.assert_array_equal(data.path_class, expected)
        atoms = slice(*library.starts[row : row + 2, 0])
        value = library.arrays["centrality"][atoms, 0]
        first, second = data.rank_index
        np.testing.assert_array_equal(data.rank, value[first] > value[second])


def paired_alike(peer, library, rows, task, monkeypatch) -> list:
    """The peer's molecules with the random pairs that ours draws."""
    batch = collate(library, rows)
    pairs, use = random_pairs(batch, 0, task.config, task.seed)
    owner, local = pairs[use] // batch.n_slots, pairs[use] % batch.n_slots
    drawn = iter([local[owner[:, 0] == number].T.numpy() for number in range(len(rows))])
    with monkeypatch.context() as patch:
        patch.setattr(peer, "random_pairs", lambda n, rng: next(drawn))
        return list(peer.LabelledMolecules(peer.graphs_of(library, rows)))


def test_losses_are_those_of_the_task_that_is_measured(peer, library, rows, monkeypatch):
    encoder = MoleculeEncoderConfig(d_model=D, layers=LAYERS)
    config = MoleculePretrainConfig(name="few", encoder=encoder, task=PredictTaskConfig())
    task = build_task(config)
    theirs = peer.PreTraining(D, LAYERS)
    peer.copy_weights(task.export()["interact"]["weights"], theirs.encoder)
    with torch.no_grad():
        # either order of an angle's or torsion's atoms then gives the same, as it is drawn
        angle, dihedral = task.heads["angle"].weight, task.heads["dihedral"].weight
        angle[:, 2 * D :] = angle[:, D : 2 * D]
        dihedral[:, 2 * D :] = dihedral[:, : 2 * D].unflatten(1, (2, D)).flip(1).flatten(1)
        for term, head in task.heads.items():
            getattr(theirs, {"spd": "path"}.get(term, term)).weight.copy_(head.weight)
    batch = collate(library, rows)
    expected = task(batch, 0) / task.counts(batch, 0)
    data = Batch.from_data_list(paired_alike(peer, library, rows, task, monkeypatch))
    found = torch.stack(list(theirs.losses(data, *theirs.encoder(data))))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected.sum().backward()
    theirs(data).backward()
    torch.testing.assert_close(
        theirs.encoder.layers[0].schnet.mlp[0].weight.grad,
        task.encoder.layers[0].spatial.filters[0].weight.grad,
        rtol=1e-3,
        atol=1e-5,
    )


def test_kept_labels_are_the_same_and_others_are_drawn_anew(peer, library, rows):
    graphs = peer.graphs_of(library, rows)
    kept = peer.LabelledMolecules(graphs, seed=5, keep=True)
    made = peer.LabelledMolecules(graphs, seed=5)
    assert torch.equal(kept[0].pair_index, made[0].pair_index)
    assert torch.equal(kept[0].pair_index, kept[0].pair_index)
    assert not torch.equal(made[0].pair_index, made[0].pair_index)


def test_a_pass_trains(peer, library, rows):
    torch.manual_seed(0)
    model = peer.PreTraining(D, LAYERS)
    dataset = peer.LabelledMolecules(peer.graphs_of(library, rows), keep=True)
    loader = DataLoader(dataset, batch_size=4, shuffle=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = [peer.train_pass(model, loader, optimiser) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
