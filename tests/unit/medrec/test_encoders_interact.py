"""MolInteract's towers: size, invariances, atoms without a position, checkpoints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rdkit import Chem
from scipy.spatial.transform import Rotation

from medrec.molecules.encoders_interact import (
    InteractEncoder,
    PairedMolecules,
    pair_molecules,
    pooled,
)
from medrec.molecules.geometries import build_geometries
from medrec.molecules.structure import build_graphs
from quantum.base import InputError
from quantum.conformers import embed
from quantum.molecule import species_from_smiles
from quantum.schema import ConformerSpec
from quantum.units import BOHR_IN_ANGSTROM

PARACETAMOL, ALANINE = "CC(=O)Nc1ccc(O)cc1", "C[C@H](N)C(=O)O"
NAMES = (PARACETAMOL, ALANINE, "[K+]", "OCC(O)CO")


def conformer(smiles: str) -> tuple[np.ndarray, np.ndarray]:
    species = species_from_smiles(smiles)
    coords, _ = embed(species, ConformerSpec(n_conformers=1))
    return np.array(species.atomic_numbers), coords * BOHR_IN_ANGSTROM


@pytest.fixture(scope="module")
def conformers() -> list[tuple[np.ndarray, np.ndarray]]:
    return [conformer(smiles) for smiles in NAMES]


SMILES = [species_from_smiles(item).smiles for item in NAMES]


def paired(conformers, present=(True, True, True, True), **options) -> PairedMolecules:
    kept = [item for item, there in zip(conformers, present, strict=True) if there]
    geometries = build_geometries(kept, 4.5) if kept else None
    return pair_molecules(build_graphs(SMILES), geometries, torch.tensor(present), **options)


def encoder(d_model: int = 12, n_layers: int = 2) -> InteractEncoder:
    torch.manual_seed(0)
    return InteractEncoder(d_model, n_layers).eval()


@torch.no_grad()
def molecules(pairs: PairedMolecules) -> torch.Tensor:
    return pooled(pairs, *encoder()(pairs))


def test_the_published_sizes_have_nine_million_parameters():
    n = sum(p.numel() for p in InteractEncoder(300, 8).parameters())
    # 8.86 M with the Open Graph Benchmark's 13 bond categories; the graphs here have 30
    assert n == pytest.approx(8.86e6 + 8 * (30 - 13) * 300, rel=1e-3)


def test_conformers_have_the_atoms_of_the_smiles_in_its_order(conformers):
    for smiles, (numbers, xyz) in zip(SMILES, conformers, strict=True):
        mol = Chem.MolFromSmiles(smiles)
        assert [a.GetAtomicNum() for a in mol.GetAtoms()] == numbers[numbers > 1].tolist()
        for bond in mol.GetBonds():  # bonded atoms are near: the order is that of the graph
            a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            assert np.linalg.norm(xyz[a] - xyz[b]) < 1.8


def test_rotation_and_translation_change_nothing_and_stretching_does(conformers):
    turn = Rotation.random(random_state=1).as_matrix().T
    moved = [(z, xyz @ turn + [3.0, -7.0, 11.0]) for z, xyz in conformers]
    stretched = [(z, xyz * 1.1) for z, xyz in conformers]
    reference = molecules(paired(conformers))
    assert torch.allclose(reference, molecules(paired(moved)), atol=1e-4)
    assert not torch.allclose(reference, molecules(paired(stretched)), atol=1e-2)


def test_molecules_do_not_see_each_other(conformers):
    together = molecules(paired(conformers))
    other = [*conformers[:3], (conformers[3][0], conformers[3][1] * 1.2)]
    assert torch.equal(together[:3], molecules(paired(other))[:3])
    assert not torch.allclose(together[3], molecules(paired(other))[3], atol=1e-3)


def test_pairs_are_all_ordered_pairs_within_the_cutoff(conformers):
    pairs = paired(conformers, cutoff_angstrom=3.0)
    positions = np.concatenate([xyz[z > 1] for z, xyz in conformers])
    owner = pairs.graphs.batch.numpy()
    gap = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    near = (gap < 3.0) & (owner[:, None] == owner[None]) & ~np.eye(len(gap), dtype=bool)
    source, target = pairs.pair_index.numpy()
    found = np.zeros_like(near)
    found[source, target] = True
    assert np.array_equal(found, near)
    distance = pairs.distance[pairs.distance_of_pair].numpy()
    np.testing.assert_allclose(distance, gap[source, target], atol=6e-4)


def test_an_atom_without_a_position_keeps_its_frozen_element(conformers):
    pairs = paired(conformers, (True, False, True, False))
    model = encoder()
    z2, z3 = model(pairs)
    own = model.elements(pairs.graphs.x[:, :1])
    assert torch.equal(z3[~pairs.placed], own[~pairs.placed])
    assert not torch.allclose(z3[pairs.placed], own[pairs.placed], atol=1e-3)
    # the molecules with a conformer are not touched by the others' lack of one
    full = encoder()(paired(conformers))
    assert torch.allclose(z2[pairs.placed], full[0][pairs.placed], atol=1e-6)
    # their 2D states are told of the element, and train neither embedding nor 3D tower
    z2[~pairs.placed].sum().backward()
    assert model.elements.table.weight.grad is None or not model.elements.table.weight.grad.any()
    assert model.layers[0].mix[0].weight.grad.any()
    spatial = model.layers[0].spatial.parameters()
    assert all(p.grad is None or not p.grad.any() for p in spatial)


def test_no_conformer_at_all_is_the_2d_mode(conformers):
    alone = paired(conformers, (False,) * 4)
    assert molecules(alone).isfinite().all()
    both = paired(conformers, (False, True, False, False))
    assert torch.allclose(molecules(alone)[0], molecules(both)[0], atol=1e-6)
    assert not torch.allclose(molecules(alone)[1], molecules(both)[1], atol=1e-3)


def test_gradients_reach_every_parameter(conformers):
    model = encoder()
    pairs = paired(conformers)
    z2, z3 = model(pairs)
    (z2.square().sum() + z3.square().sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_graphs_and_conformers_of_other_molecules_are_refused(conformers):
    graphs, geometries = build_graphs(SMILES), build_geometries(conformers[:2], 4.5)
    with pytest.raises(InputError, match="heavy atoms"):
        pair_molecules(graphs, geometries, torch.tensor([True, False, True, False]))


def test_a_checkpoint_is_taken_whole_and_only_if_it_fits(conformers, tmp_path):
    torch.manual_seed(5)
    source = InteractEncoder(12, 2).eval()
    torch.save(source.export(), tmp_path / "best.pt")
    state = torch.load(tmp_path / "best.pt", weights_only=True)
    model, pairs = encoder(), paired(conformers)
    assert not torch.allclose(model(pairs)[0], source(pairs)[0])
    model.load_pretrained(state)
    for ours, theirs in zip(model(pairs), source(pairs), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match=r"'d_model': 12.*'d_model': 8"):
        encoder(8).load_pretrained(state)
    with pytest.raises(InputError, match="'interact'"):
        model.load_pretrained({"gin_molecule": {}})


def test_moving_to_a_device_moves_everything(conformers):
    moved = paired(conformers).to("meta")
    assert {moved.placed.device.type, moved.pair_index.device.type} == {"meta"}
    assert replace(moved).graphs.x.device.type == "meta"
