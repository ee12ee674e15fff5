"""Molecule encoders: invariances, buffers, and what they cannot see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medrec.molecules.encoders_2d import GINEncoder, segment_mean
from medrec.molecules.encoders_3d import GVPEncoder
from medrec.molecules.geometries import build_geometries
from medrec.molecules.structure import (
    ATOM_CARDINALITIES,
    brics_fragments,
    build_graphs,
)
from quantum.conformers import embed
from quantum.molecule import species_from_smiles
from quantum.schema import ConformerSpec
from quantum.units import BOHR_IN_ANGSTROM

ALANINE = "C[C@H](N)C(=O)O"


def conformer(smiles: str) -> tuple[np.ndarray, np.ndarray]:
    species = species_from_smiles(smiles)
    coords, _ = embed(species, ConformerSpec(n_conformers=1))
    return np.array(species.atomic_numbers), coords * BOHR_IN_ANGSTROM


def gvp() -> GVPEncoder:
    torch.manual_seed(0)
    return GVPEncoder(16, 2, cutoff_angstrom=4.5, n_rbf=8).eval()


def encode(conformers: list[tuple[np.ndarray, np.ndarray]]) -> torch.Tensor:
    with torch.no_grad():
        return gvp()(build_geometries(conformers, 4.5))


def test_gvp_does_not_depend_on_placement_or_atom_order():
    z, xyz = conformer("CC(=O)Nc1ccc(O)cc1")
    moved = xyz @ Rotation.random(random_state=1).as_matrix().T + [3.0, -7.0, 11.0]
    order = np.random.default_rng(0).permutation(len(z))
    reference, turned, shuffled = encode([(z, xyz), (z, moved), (z[order], xyz[order])])
    assert torch.allclose(reference, turned, atol=1e-4)
    assert torch.allclose(reference, shuffled, atol=1e-4)


def test_gvp_tells_conformers_apart_but_not_mirror_images():
    z, xyz = conformer(ALANINE)
    stretched = xyz * 1.1
    reference, mirror, other = encode([(z, xyz), (z, xyz * [1, 1, -1]), (z, stretched)])
    assert torch.allclose(reference, mirror, atol=1e-4)
    assert not torch.allclose(reference, other, atol=1e-3)


def test_a_single_atom_has_no_edges_and_an_embedding():
    assert encode([(np.array([19]), np.zeros((1, 3)))]).isfinite().all()


def test_gin_separates_graphs_and_is_independent_of_the_batch_in_evaluation():
    torch.manual_seed(0)
    encoder = GINEncoder(16, 3, dropout=0.5).eval()
    with torch.no_grad():
        together = encoder(build_graphs(["CCO", ALANINE, "c1ccccc1"]))
        alone = encoder(build_graphs([ALANINE]))
    assert together.shape == (3, 16)
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_gin_reaches_every_parameter():
    torch.manual_seed(0)
    encoder = GINEncoder(8, 2, dropout=0.0)
    encoder(build_graphs(["CCO", "CC(=O)O", "C[N+](C)(C)C"])).pow(2).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_segment_mean_by_hand():
    values = torch.tensor([[1.0], [3.0], [5.0]])
    assert segment_mean(values, torch.tensor([0, 0, 2]), 3).flatten().tolist() == [2.0, 0.0, 5.0]


@pytest.mark.parametrize("smiles", ["[K+]", "O", "CC(=O)Nc1ccc(O)cc1"])
def test_no_molecule_is_without_a_fragment(smiles: str):
    fragments = brics_fragments(smiles)
    assert fragments == sorted(fragments)
    assert fragments
    graphs = build_graphs(fragments)
    limits = torch.tensor(ATOM_CARDINALITIES)
    assert (graphs.x < limits).all()
    assert (graphs.x >= 0).all()


def test_paracetamol_is_cut_at_its_amide():
    fragments = brics_fragments("CC(=O)Nc1ccc(O)cc1")
    assert len(fragments) == 3
    assert any("N" in item for item in fragments)
