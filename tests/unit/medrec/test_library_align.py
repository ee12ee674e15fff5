"""Positions of a 3D view on the atoms of a 2D graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from medrec.library.align import Alignment, Graph2D, align, stereo_agrees

Element = npt.NDArray[np.uint8]
Position = npt.NDArray[np.float32]

PLAIN = (
    "CC(=O)O", "CC(=O)Oc1ccccc1C(=O)O", "CC(C)(C)C(=O)N", "C[N+](=O)[O-]", "C#CCO", "N#CC(F)(F)Cl",
    "C1C2CC1C2", "C12C3C4C1C5C2C3C45", "CS(=O)(=O)Nc1ccccc1", "OCC(O)CO", "CCCCCCCC", "O", "FF",
)  # fmt: skip
CHIRAL = (
    "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "C[C@H](F)[C@@H](C)F", "C[C@H](F)[C@H](C)F", "C/C=C/C", "C/C=C\\C", "F/C=C/C(=O)O",
    "CC/C(Cl)=C(/F)C", "C[S@](=O)CC", "C[C@@H]1CC[C@H](C)CC1",
)  # fmt: skip


def embedded(smiles: str) -> tuple[Chem.Mol, Element, Position]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=7) == 0
    element = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
    return mol, element, mol.GetConformer().GetPositions().astype(np.float32)


def graph_of(mol: Chem.Mol) -> Graph2D:
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    return Graph2D(
        mol,
        np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8),
        np.array([atom.GetTotalNumHs() for atom in mol.GetAtoms()]),
        np.array(bonds, dtype=np.int64).reshape(-1, 2),
        any(atom.GetChiralTag() for atom in mol.GetAtoms())
        or any(bond.GetStereo() > 1 for bond in mol.GetBonds()),
    )


def graph(smiles: str, hydrogens: bool) -> Graph2D:
    mol = Chem.MolFromSmiles(smiles)
    return graph_of(Chem.AddHs(mol) if hydrogens else mol)


def is_same_molecule(wanted: Graph2D, full: Chem.Mol, order: npt.NDArray[np.int64]) -> bool:
    """Whether the atoms a graph was given have its elements, bonds and hydrogens."""
    atoms = [full.GetAtomWithIdx(int(number)) for number in order]
    return (
        len(set(order.tolist())) == len(order)
        and [atom.GetAtomicNum() for atom in atoms] == wanted.element.tolist()
        and all(full.GetBondBetweenAtoms(*map(int, order[bond])) for bond in wanted.bonds)
        and [atom.GetTotalNumHs(includeNeighbors=True) for atom in atoms]
        == [atom.GetTotalNumHs(includeNeighbors=True) for atom in wanted.mol.GetAtoms()]
    )


@pytest.mark.parametrize("hydrogens", [False, True])
@pytest.mark.parametrize("smiles", PLAIN + CHIRAL)
def test_any_order_is_undone(smiles: str, hydrogens: bool) -> None:
    full, element, position = embedded(smiles)
    wanted = graph(smiles, hydrogens)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(element))
        found = align(wanted, element[order], position[order])
        assert found is not None
        assert found.stereo_agrees
        assert is_same_molecule(wanted, full, order[found.order])
        placed = position[order][found.order]
        assert stereo_agrees(wanted.mol, placed.astype(np.float64))


@pytest.mark.parametrize("hydrogens", [False, True])
def test_the_given_order_is_kept(hydrogens: bool) -> None:
    for smiles in PLAIN + CHIRAL:
        _, element, position = embedded(smiles)
        wanted = graph(smiles, hydrogens)
        found = align(wanted, element, position)
        assert found is not None
        assert found.in_order
        assert found.order.tolist() == list(range(len(wanted.element))), smiles


def test_hydrogens_may_stand_anywhere() -> None:
    _, element, position = embedded("OCC(=O)N")
    order = np.argsort(element > 1, kind="stable")
    found = align(graph("OCC(=O)N", True), element[order], position[order])
    assert found is not None
    assert found.in_order
    assert np.array_equal(position[order][found.order], position)


@pytest.mark.parametrize("hydrogens", [False, True])
def test_oxygens_of_an_acid_are_told_apart_by_their_hydrogen(hydrogens: bool) -> None:
    _, element, position = embedded("CC(=O)O")
    order = np.array([0, 1, 3, 2, 4, 5, 6, 7])
    found = align(graph("CC(=O)O", hydrogens), element[order], position[order])
    assert found is not None
    assert not found.in_order
    assert np.array_equal(position[order][found.order[:4]], position[:4])


@pytest.mark.parametrize("hydrogens", [False, True])
def test_configuration_decides_between_symmetric_solutions(hydrogens: bool) -> None:
    smiles = "C[C@H](F)[C@@H](C)F"
    full, element, position = embedded(smiles)
    order = np.array([4, 3, 5, 1, 0, 2, *range(6, len(element))])  # the graph's mirror image
    wanted = graph(smiles, hydrogens)
    found = align(wanted, element[order], position[order])
    assert found is not None
    assert found.stereo_agrees
    assert not found.in_order
    assert order[found.order][:6].tolist() == list(range(6))
    assert is_same_molecule(wanted, full, order[found.order])


def test_wrong_configuration_is_told() -> None:
    for smiles in ("C[C@H](N)C(=O)O", "C[S@](=O)CC"):
        _, element, position = embedded(smiles)
        found = align(graph(smiles, False), element, position * [-1, 1, 1])
        assert found is not None
        assert found.in_order
        assert not found.stereo_agrees
    _, element, position = embedded("C/C=C/C")
    found = align(graph("C/C=C\\C", False), element, position)
    assert found is not None
    assert not found.stereo_agrees


def test_configuration_as_rdkit_perceives_it() -> None:
    for smiles in CHIRAL:
        mol, _, position = embedded(smiles)
        assert stereo_agrees(mol, position.astype(np.float64)), smiles
        Chem.AssignStereochemistryFrom3D(mol)
        assert stereo_agrees(mol, position.astype(np.float64)), smiles
        has_centre = "@" in smiles
        assert stereo_agrees(mol, position * [1, 1, -1.0]) != has_centre, smiles


def test_order_follows_the_positions_where_nothing_is_symmetric() -> None:
    smiles = "CC(=O)Oc1ccccc1C(=O)O"
    _, element, position = embedded(smiles)
    order = np.random.default_rng(0).permutation(len(element))
    found = align(graph(smiles, False), element[order], position[order])
    assert found is not None
    assert np.array_equal(position[order][found.order], position[:13])


@pytest.mark.parametrize("hydrogens", [False, True])
@pytest.mark.parametrize("smiles", ["[H][H]", "[2H]C", "[Na+].[Cl-]", "C.C", "[He]", "[H+].[Cl-]"])
def test_odd_molecules(smiles: str, hydrogens: bool) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    element = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
    parts = Chem.GetMolFrags(mol)
    position = np.zeros((len(element), 3), dtype=np.float32)
    for number, part in enumerate(parts):
        rest = [atom for atom in part if element[atom] == 1]
        shift = np.array([[1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1]], dtype=np.float32)
        position[rest] = 0.63 * shift[: len(rest)] * (1 if len(part) > 2 else 0.6)
        if element[list(part)].tolist() == [1, 1]:
            position[part[1]] = position[part[0]] + [0.74, 0, 0]
        position[list(part)] += [4.0 * number, 0, 0]
    order = np.random.default_rng(1).permutation(len(element))
    wanted = graph(smiles, hydrogens)
    found = align(wanted, element[order], position[order])
    assert found is not None
    assert np.array_equal(element[order][found.order], wanted.element)
    assert len(set(found.order.tolist())) == len(wanted.element)


@pytest.mark.parametrize("hydrogens", [False, True])
@pytest.mark.parametrize(
    ("flat", "spatial"),
    [
        ("CCO", "COC"),  # an isomer
        ("CC(C)C", "CCCC"),
        ("CCO", "CCS"),
        ("CCO", "CC=O"),  # fewer hydrogens
        ("CC(=O)O", "CC(=O)[O-]"),
        ("C1CC1", "CC=C"),
        ("CCO", "CCCO"),
        ("CC", "CC.C"),
    ],
)
def test_other_molecules_do_not_match(flat: str, spatial: str, hydrogens: bool) -> None:
    _, element, position = embedded(spatial)
    assert align(graph(flat, hydrogens), element, position) is None


def test_a_torn_molecule_does_not_match() -> None:
    _, element, position = embedded("CCO")
    for atom in (0, 2, 4):
        torn = position.copy()
        torn[atom] += 5.0
        assert align(graph("CCO", False), element, torn) is None
        assert align(graph("CCO", True), element, torn) is None


def test_heavy_atoms_alone_fit_a_graph_of_heavy_atoms_alone() -> None:
    _, element, position = embedded("OCC(=O)NC")
    heavy = element > 1
    order = np.array([3, 1, 5, 0, 2, 4])
    found = align(graph("OCC(=O)NC", False), element[heavy][order], position[heavy][order])
    assert isinstance(found, Alignment)
    assert np.array_equal(order[found.order], np.arange(6))
    assert align(graph("OCC(=O)NC", True), element[heavy], position[heavy]) is None


def test_contacts_of_a_strained_cage_are_no_bonds() -> None:
    """The bridgeheads are 1.87 Angstrom apart: within 1.3 times their radii, but not bonded."""
    full, element, position = embedded("C1C2CC1C2")
    wanted = graph("C1C2CC1C2", False)
    ends = [atom.GetIdx() for atom in full.GetAtoms() if atom.GetDegree() == 4 and
            sum(n.GetAtomicNum() == 6 for n in atom.GetNeighbors()) == 3]  # fmt: skip
    assert np.linalg.norm(position[ends[0]] - position[ends[1]]) < 1.3 * 2 * 0.76
    order = np.random.default_rng(3).permutation(len(element))
    found = align(wanted, element[order], position[order])
    assert found is not None
    assert is_same_molecule(wanted, full, order[found.order])
