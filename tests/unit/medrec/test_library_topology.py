"""Paths, centralities, angles and torsions against networkx, RDKit and brute force."""

from __future__ import annotations

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from medrec.library.arrays import UNREACHABLE
from medrec.library.topology import (
    FlatGraphs,
    bond_angles,
    eigenvector_centrality,
    path_categories,
    proper_torsions,
    ranges,
    rotatable_bonds,
    shortest_paths,
)

SMILES = (
    "C", "CC", "[Na+].[Cl-]", "CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "C1CC1",
    "C12C3C4C1C5C2C3C45", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "N#CC#CC", "CC#N.OCC(O)CO", "C=C=C(C)CC",
    "CN(C)CCCN1c2ccccc2CCc2ccccc21", "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "FS(F)(F)(F)(F)F", "CC(C)(C)C(=O)NCc1ccncc1", "C1CC2CCC1CC2", "O=C(O)CCC(=O)NCC#N",
)  # fmt: skip


@st.composite
def connected_graphs(draw: st.DrawFn) -> nx.Graph:
    n = draw(st.integers(1, 9))
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((v, draw(st.integers(0, v - 1))) for v in range(1, n))
    pairs = list(combinations(range(n), 2))
    if pairs:
        graph.add_edges_from(draw(st.lists(st.sampled_from(pairs), max_size=6)))
    return graph


def flat(graphs: list[nx.Graph]) -> FlatGraphs:
    n_atoms = np.array([len(graph) for graph in graphs])
    first = np.cumsum(n_atoms) - n_atoms
    bonds = [np.array(g.edges).reshape(-1, 2) + f for g, f in zip(graphs, first, strict=True)]
    return FlatGraphs(n_atoms, np.concatenate(bonds).astype(np.int64))


def graph_of(mol: Chem.Mol) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(mol.GetNumAtoms()))
    graph.add_edges_from((b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds())
    return graph


MOLECULES = [Chem.MolFromSmiles(smiles) for smiles in SMILES]
MOLECULES += [Chem.AddHs(mol) for mol in MOLECULES]


def expected_lengths(graph: nx.Graph) -> np.ndarray:
    lengths = np.full((len(graph), len(graph)), -1)
    for source, row in nx.all_pairs_shortest_path_length(graph):
        for target, length in row.items():
            lengths[source, target] = length
    return lengths.ravel()


@given(st.lists(connected_graphs(), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_paths_and_centralities_of_random_graphs(graphs: list[nx.Graph]) -> None:
    row = flat(graphs)
    paths = shortest_paths(row)
    assert np.array_equal(paths.length, np.concatenate([expected_lengths(g) for g in graphs]))
    between = [value for g in graphs for value in nx.betweenness_centrality(g).values()]
    np.testing.assert_allclose(paths.betweenness, between, atol=1e-12)
    values = np.split(eigenvector_centrality(row, paths.length), row.first_atom[1:])
    for graph, vector in zip(graphs, values, strict=True):
        adjacency = nx.to_numpy_array(graph)
        largest = np.linalg.eigvalsh(adjacency)[-1]
        np.testing.assert_allclose(adjacency @ vector, largest * vector, atol=2e-5)
        assert np.isclose(np.linalg.norm(vector), 1.0, atol=1e-5)
        assert (vector > 0).all()


def test_molecules_against_networkx_and_rdkit() -> None:
    graphs = [graph_of(mol) for mol in MOLECULES]
    row = flat(graphs)
    paths = shortest_paths(row)
    lengths = np.split(paths.length, np.cumsum(row.n_atoms**2)[:-1])
    between = np.split(paths.betweenness, row.first_atom[1:])
    eigen = np.split(eigenvector_centrality(row, paths.length), row.first_atom[1:])
    for number, (mol, graph) in enumerate(zip(MOLECULES, graphs, strict=True)):
        reference = Chem.GetDistanceMatrix(mol).ravel()
        assert np.array_equal(path_categories(lengths[number]), np.minimum(reference, UNREACHABLE))
        expected = list(nx.betweenness_centrality(graph).values())
        np.testing.assert_allclose(between[number], expected, atol=1e-12)
        if len(graph) > 2 and nx.is_connected(graph):
            vector = list(nx.eigenvector_centrality(graph, max_iter=20_000, tol=1e-9).values())
            np.testing.assert_allclose(eigen[number], vector, atol=1e-5)


def test_largest_part_has_the_centrality() -> None:
    graphs = [graph_of(Chem.MolFromSmiles("[Cl-].CCC.OO")), graph_of(Chem.MolFromSmiles("CC.OO"))]
    row = flat(graphs)
    values = eigenvector_centrality(row, shortest_paths(row).length)
    half, other = np.round([0.5, np.sqrt(0.5)], 6)
    assert values.tolist() == [0, half, other, half, 0, 0, other, other, 0, 0]


def test_a_molecule_does_not_depend_on_its_company() -> None:
    graphs = [graph_of(mol) for mol in MOLECULES]
    row = flat(graphs)
    paths = shortest_paths(row)
    eigen = eigenvector_centrality(row, paths.length)
    for number, graph in enumerate(graphs):
        alone = flat([graph])
        own = shortest_paths(alone)
        here = row.molecule == number
        assert np.array_equal(own.betweenness, paths.betweenness[here])
        assert np.array_equal(eigenvector_centrality(alone, own.length), eigen[here])


def test_symmetric_atoms_have_one_centrality() -> None:
    row = flat([graph_of(Chem.AddHs(Chem.MolFromSmiles("CCCCCC")))])
    paths = shortest_paths(row)
    values = eigenvector_centrality(row, paths.length).astype(np.float32)
    assert values[:6].tolist() == values[5::-1].tolist()
    assert len(set(values[6:].tolist())) == 3


def test_long_paths_are_clipped() -> None:
    row = flat([nx.path_graph(300)])
    length = shortest_paths(row).length
    categories = path_categories(length)
    assert length[299] == 299
    assert categories[[0, 254, 255, 299]].tolist() == [0, 254, UNREACHABLE, UNREACHABLE]


@given(st.lists(connected_graphs(), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_angles_and_torsions_are_complete(graphs: list[nx.Graph]) -> None:
    row = flat(graphs)
    whole = nx.Graph(row.bonds.tolist())
    angles = {(a, *pair) for a in whole for pair in combinations(sorted(whole[a]), 2)}
    found = bond_angles(row).tolist()
    assert len(found) == len(angles)
    assert {tuple(angle) for angle in found} == angles
    chosen = np.arange(len(row.bonds)) % 2 == 0
    torsions = {
        (i, j, k, last)
        for j, k in np.sort(row.bonds[chosen], axis=1).tolist()
        for i in whole[j]
        for last in whole[k]
        if len({i, j, k, last}) == 4
    }
    rows = proper_torsions(row, chosen).tolist()
    assert len(rows) == len(torsions)
    assert {tuple(torsion) for torsion in rows} == torsions


def test_torsions_are_paths_of_three_bonds_in_one_direction() -> None:
    row = flat([graph_of(mol) for mol in MOLECULES])
    everything = np.ones(len(row.bonds), dtype=bool)
    rows = {tuple(t) for t in proper_torsions(row, everything).tolist()}
    chains = {
        tuple(number + first for number in path)
        for mol, first in zip(MOLECULES, row.first_atom.tolist(), strict=True)
        for path in Chem.FindAllPathsOfLengthN(mol, 4, useBonds=False, useHs=True)
        if len(set(path)) == 4  # RDKit counts the way round a ring of three
    }
    assert len(rows) == len(chains)
    assert {min(t, t[::-1]) for t in rows} == {min(c, c[::-1]) for c in chains}
    assert all(j < k for _, j, k, _ in rows)


@pytest.mark.parametrize("hydrogens", [False, True])
def test_rotatable_bonds_are_those_of_rdkit(hydrogens: bool) -> None:
    for smiles in SMILES:
        plain = Chem.MolFromSmiles(smiles)
        mol = Chem.AddHs(plain) if hydrogens else plain
        bonds = list(mol.GetBonds())
        found = rotatable_bonds(
            flat_of(mol),
            np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8),
            np.array([int(bond.GetBondType()) for bond in bonds], dtype=np.uint8),
            np.array([bond.IsInRing() for bond in bonds], dtype=bool),
        )
        expected = rdMolDescriptors.CalcNumRotatableBonds(
            plain, rdMolDescriptors.NumRotatableBondsOptions.NonStrict
        )
        assert int(found.sum()) == expected, smiles


def flat_of(mol: Chem.Mol) -> FlatGraphs:
    """Bonds in the molecule's own order, which networkx does not keep."""
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    return FlatGraphs(np.array([mol.GetNumAtoms()]), np.array(bonds, dtype=int).reshape(-1, 2))


def test_ranges() -> None:
    assert ranges(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
