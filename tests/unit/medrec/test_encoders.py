"""Molecule encoders: invariances, buffers, and what they cannot see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rdkit import Chem
from scipy.spatial.transform import Rotation

from medrec.molecules import encoders_3d
from medrec.molecules.encoders_2d import GINEncoder, segment_mean
from medrec.molecules.encoders_3d import GVPEncoder
from medrec.molecules.fragment_conformers import (
    build_fragment_conformers,
    checked,
    completed,
    fragment_conformer,
    unlabelled,
)
from medrec.molecules.geometries import (
    N_ATOM_SCALARS,
    N_ELEMENT_CLASSES,
    Conformer,
    Geometries,
    atom_categories,
    build_geometries,
)
from medrec.molecules.structure import (
    ATOM_CARDINALITIES,
    brics_fragments,
    build_graphs,
)
from quantum.base import InputError
from quantum.conformers import embed
from quantum.molecule import explicit_mol, species_from_smiles
from quantum.schema import ConformerSpec
from quantum.units import BOHR_IN_ANGSTROM

ALANINE = "C[C@H](N)C(=O)O"


def conformer(smiles: str) -> Conformer:
    species = species_from_smiles(smiles)
    coords, _ = embed(species, ConformerSpec(n_conformers=1))
    own = atom_categories(Chem.MolFromSmiles(species.smiles))
    rest = np.zeros((species.n_atoms - len(own), 4), dtype=np.int64)
    return Conformer(
        np.array(species.atomic_numbers), coords * BOHR_IN_ANGSTROM, np.concatenate([own, rest])
    )


def gvp() -> GVPEncoder:
    torch.manual_seed(0)
    return GVPEncoder(16, 2, cutoff_angstrom=4.5, n_rbf=8).eval()


def encode(conformers: list[Conformer]) -> torch.Tensor:
    with torch.no_grad():
        return gvp()(build_geometries(conformers, 4.5))


def moved(item: Conformer, seed: int) -> tuple[Conformer, np.ndarray]:
    """The same molecule elsewhere, and the rotation."""
    turn = Rotation.random(random_state=seed).as_matrix()
    return item._replace(coords_angstrom=item.coords_angstrom @ turn.T + [3.0, -7.0, 11.0]), turn


@pytest.mark.parametrize("smiles", ["CC(=O)Nc1ccc(O)cc1", ALANINE, "c1ccccc1", "[K+]"])
def test_gvp_does_not_depend_on_placement_or_atom_order(smiles):
    if smiles == "[K+]":
        item = Conformer(np.array([19]), np.zeros((1, 3)), np.zeros((1, 4), dtype=np.int64))
    else:
        item = conformer(smiles)
    order = np.random.default_rng(0).permutation(len(item.atomic_numbers))
    shuffled = Conformer(*(part[order] for part in item))
    reference, turned, other = encode([item, moved(item, 1)[0], shuffled])
    assert torch.allclose(reference, turned, atol=1e-5)
    assert torch.allclose(reference, other, atol=1e-5)


def test_gvp_vectors_turn_with_the_molecule():
    item = conformer("CC(=O)Nc1ccc(O)cc1")
    other, turn = moved(item, 2)
    with torch.no_grad():
        one, two = (gvp().nodes(build_geometries([found], 4.5)) for found in (item, other))
    assert torch.allclose(one[0], two[0], atol=1e-5)
    rotation = torch.tensor(turn, dtype=torch.float32)
    assert torch.allclose(rotation @ one[1], two[1], atol=1e-5)
    assert not torch.allclose(one[1], two[1], atol=1e-2)


def test_gvp_tells_conformers_apart_but_not_mirror_images():
    """The enantiomers' 3D embeddings collide: a limit of vector norms, stated in the docs."""
    item = conformer(ALANINE)
    xyz = item.coords_angstrom
    mirror = item._replace(coords_angstrom=xyz * [1, 1, -1])
    stretched = item._replace(coords_angstrom=xyz * 1.1)
    reference, mirrored, other = encode([item, mirror, stretched])
    assert torch.allclose(reference, mirrored, atol=1e-5)
    assert not torch.allclose(reference, other, atol=1e-3)
    graphs = build_graphs([ALANINE, ALANINE.replace("@", "@@")])
    torch.manual_seed(0)
    flat = GINEncoder(16, 2, dropout=0.0).eval()(graphs)
    assert not torch.allclose(flat[0], flat[1], atol=1e-3)


def plain_messages(conv, pair, edge, edge_index):
    """Every edge through three GVPs, then the mean."""
    (s, v), (source, target) = pair, edge_index
    joined = (
        torch.cat([s[source], edge[0], s[target]], dim=-1),
        torch.cat([v[source], edge[1], v[target]], dim=-1),
    )
    ms, mv = conv.last(conv.second(conv.first(joined)))
    mv = segment_mean(mv.flatten(1), target, len(s)).reshape(v.shape)
    return segment_mean(ms, target, len(s)), mv


def test_messages_equal_three_gvps_per_edge():
    geometries = build_geometries([conformer("CC(=O)O"), conformer("O")], 4.5)  # O: no neighbour
    n_atoms, n_edges = len(geometries.batch), geometries.edge_index.shape[1]
    torch.manual_seed(0)
    conv = encoders_3d.GVPConv((6, 3), (5, 1), 0.0)
    pair = torch.randn(n_atoms, 6), torch.randn(n_atoms, 3, 3)
    edge = torch.randn(n_edges, 5), torch.randn(n_edges, 3, 1)
    found = conv.messages(pair, edge, geometries.edge_index)
    expected = plain_messages(conv, pair, edge, geometries.edge_index)
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    assert torch.allclose(found[1], expected[1], atol=1e-6)
    assert not found[0][-1].any()


def test_gvp_sizes_are_the_papers():
    encoder = GVPEncoder(128, 4, cutoff_angstrom=4.5, n_rbf=16)
    assert encoder.embed_node.scalars.in_features == N_ATOM_SCALARS + 64 == 66 + 64
    conv = encoder.layers[0]
    assert conv.first.scalars.in_features == 2 * 128 + 32 + (2 * 64 + 1)
    assert [layer.scalars.out_features for layer in conv.update] == [512, 128]
    head = [(m.in_features, m.out_features) for m in encoder.head if hasattr(m, "in_features")]
    assert head == [(128, 1024), (1024, 128)]
    assert (encoder.head[2].p, conv.dropout.scalars.p, len(encoder.layers)) == (0.25, 0.1, 4)


def test_dropout_of_vectors_keeps_directions():
    torch.manual_seed(0)
    drop = encoders_3d.PairDropout(0.5)
    _, v = drop((torch.ones(50, 4), torch.randn(50, 3, 4)))
    zero = v == 0
    assert torch.equal(zero.any(dim=1), zero.all(dim=1))
    assert 0.3 < zero.float().mean() < 0.7


def test_layers_that_are_computed_again_give_the_same_gradient(monkeypatch):
    geometries = build_geometries([conformer("CC(=O)O")], 4.5)
    gradients = []
    for limit in (10**9, 0):
        monkeypatch.setattr(encoders_3d, "EDGES_KEPT", limit)
        encoder = gvp().train()
        torch.manual_seed(1)
        encoder(geometries).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_edges_and_node_scalars_by_hand():
    """Hydroxylamine, N-O 1.4 Angstrom: two heavy atoms, two directed edges."""
    numbers = np.array([7, 8, 1, 1, 1])
    coords = np.array([[0, 0, 0], [1.4, 0, 0], [0, 1, 0], [0, 0, 1], [1.6, 0.9, 0]], dtype=float)
    own = atom_categories(Chem.MolFromSmiles("NO"))
    item = Conformer(numbers, coords, np.concatenate([own, np.zeros((3, 4), dtype=np.int64)]))
    found = build_geometries([item], 4.5)
    assert found.distance.tolist() == pytest.approx([1.4, 1.4])
    source, target = found.edge_index
    assert source.tolist() != target.tolist()
    expected = (found.position[source] - found.position[target]) / 1.4
    assert torch.allclose(found.direction, expected, atol=1e-6)
    ones = found.atoms[0].nonzero().flatten().tolist()
    start = N_ELEMENT_CLASSES
    assert ones == [int(found.element[0]), start + 1, start + 7 + 2, start + 14 + 2]
    aromatic = build_geometries([conformer("c1ccccc1")], 4.5).atoms
    assert aromatic[:, -1].all()
    bare = build_geometries([item[:2]], 4.5)
    assert bare.atoms.sum(dim=1).tolist() == [1.0, 1.0]
    assert isinstance(bare.to("cpu"), Geometries)
    assert build_geometries([item], 1.0).edge_index.shape == (2, 0)


def test_a_single_atom_has_no_edges_and_an_embedding():
    assert encode([Conformer(np.array([19]), np.zeros((1, 3)))]).isfinite().all()


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


# --------------------------------------------------------------------------- fragments in space


def test_fragments_that_differ_in_labels_only_are_one():
    assert unlabelled("[16*]c1ccccc1") == unlabelled("[14*]c1ccccc1") != "c1ccccc1"
    found = build_fragment_conformers(["[16*]c1ccccc1", "[14*]c1ccccc1", "c1ccccc1"], 0)
    assert len(found.smiles) == 2
    assert dict(found.sources) == {"mmff94s": 2}
    # the cut shows: one atom more in its degree, one hydrogen less
    categories = [item.categories for item in found.conformers]
    degrees = [sorted(rows[:, 0].tolist()) for rows in categories]
    assert degrees[0].count(3) + degrees[1].count(3) == 1


def test_a_fragment_is_completed_with_hydrogens_where_it_was_cut():
    for smiles, formula in (("[4*]CC", "CC"), ("[7*]=CC", "CC"), ("[3*]O[3*]", "O")):
        whole = completed(Chem.MolFromSmiles(smiles))
        assert Chem.MolToSmiles(Chem.RemoveHs(whole)) == formula
        assert {atom.GetAtomicNum() for atom in whole.GetAtoms()} <= {1, 6, 8}


def test_fragment_conformers_are_three_dimensional_repeatable_and_of_usual_bond_lengths():
    fragments = ["[4*]C[C@H](N)C(=O)O", "[5*]N1CCCC1", "[16*]c1ccccc1"]
    one, two = (build_fragment_conformers(fragments, 5) for _ in range(2))
    assert one.smiles == two.smiles == sorted(unlabelled(item) for item in fragments)
    for smiles, item, again in zip(one.smiles, one.conformers, two.conformers, strict=True):
        assert np.array_equal(item.coords_angstrom, again.coords_angstrom)
        mol = completed(Chem.MolFromSmiles(smiles))
        lengths = [
            math.dist(
                item.coords_angstrom[b.GetBeginAtomIdx()], item.coords_angstrom[b.GetEndAtomIdx()]
            )
            for b in mol.GetBonds()
        ]
        assert min(lengths) > 0.9
        assert max(lengths) < 1.7
        assert np.ptp(item.coords_angstrom, axis=0).min() > 0.01 or "c1" in smiles
        assert len(item.atomic_numbers) == len(item.categories) == mol.GetNumAtoms()


def test_a_fragment_of_one_atom_and_one_without_force_field():
    single = build_fragment_conformers(["[Al+3]", "[3*]O[3*]"], 0)
    assert single.smiles == ["*O*", "[Al+3]"]
    assert dict(single.sources) == {"etkdg": 1, "mmff94s": 1}
    assert encode(single.conformers).isfinite().all()


def test_a_fragment_that_cannot_be_embedded_is_named_with_its_reason():
    impossible = "C1#CC#C1"  # two triple bonds in a ring of four, held by a cage
    impossible = f"[4*]C1CC2CC1C2(C)C#CC12CC(C1)C2.{impossible}"
    with pytest.raises(InputError, match="cannot be embedded"):
        fragment_conformer(impossible, 0)
    found = build_fragment_conformers([impossible, "[4*]CC"], 0)
    assert found.smiles == ["*CC"]
    ((smiles, reason),) = found.missing.items()
    assert smiles == unlabelled(impossible)
    assert "cannot be embedded" in reason


def test_a_planar_drawing_is_refused():
    species = species_from_smiles(ALANINE)
    mol, item = explicit_mol(species), conformer(ALANINE)
    checked(mol, np.asarray(item.coords_angstrom), "it")
    flat = np.asarray(item.coords_angstrom) * [1, 1, 0]
    with pytest.raises(InputError, match="drawing"):
        checked(mol, flat, "it")
    with pytest.raises(InputError, match="not numbers"):
        checked(mol, flat * np.nan, "it")
