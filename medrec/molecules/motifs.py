"""Motif trees: molecules cut at every BRICS bond, with the place of each piece in its tree."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import BRICS


@dataclass(frozen=True)
class Motif:
    """One piece of a molecule.

    Attributes
    ----------
    smiles : str
        Canonical, with labelled dummy atoms where it was cut.
    degree : int
        Neighbouring motifs in the tree.
    depth : int
        Steps from the tree's root, the motif with most heavy atoms (the first of several).
    """

    smiles: str
    degree: int
    depth: int


def motif_tree(smiles: str) -> list[Motif]:
    """Motifs of a molecule in the order of their first atoms; a molecule without a cut is one.

    Unlike `medrec.molecules.structure.brics_fragments`, a piece that occurs twice stands twice. A
    molecule of several components gives one tree each.
    """
    mol = Chem.MolFromSmiles(smiles)
    cuts = sorted(BRICS.FindBRICSBonds(mol)) if mol.GetNumBonds() else []
    pieces, of_atom = _cut(mol, cuts)
    neighbours: list[set[int]] = [set() for _ in pieces]
    for (begin, end), _ in cuts:
        a, b = of_atom[begin], of_atom[end]
        neighbours[a].add(b)
        neighbours[b].add(a)
    depths = _depths([_n_heavy(piece) for piece in pieces], neighbours)
    return [
        Motif(Chem.MolToSmiles(piece), len(around), depth)
        for piece, around, depth in zip(pieces, neighbours, depths, strict=True)
    ]


def _cut(mol: Chem.Mol, cuts: list) -> tuple[tuple[Chem.Mol, ...], list[int]]:
    """Pieces, and the piece of every atom of the molecule."""
    cut = BRICS.BreakBRICSBonds(mol, cuts) if cuts else mol
    members: list[tuple[int, ...]] = []
    pieces = Chem.GetMolFrags(cut, asMols=True, fragsMolAtomMapping=members)
    of_atom = [0] * mol.GetNumAtoms()
    for number, atoms in enumerate(members):
        for atom in atoms:
            if atom < len(of_atom):  # dummies come after the atoms of the molecule
                of_atom[atom] = number
    return pieces, of_atom


def _n_heavy(piece: Chem.Mol) -> int:
    return sum(atom.GetAtomicNum() > 1 for atom in piece.GetAtoms())


def _depths(sizes: Sequence[int], neighbours: Sequence[set[int]]) -> list[int]:
    """Steps from the largest motif of each component."""
    depths = [-1] * len(sizes)
    for root in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        if depths[root] >= 0:
            continue
        depths[root] = 0
        queue = deque([root])
        while queue:
            current = queue.popleft()
            for other in sorted(neighbours[current]):
                if depths[other] < 0:
                    depths[other] = depths[current] + 1
                    queue.append(other)
    return depths


@dataclass(frozen=True)
class MotifTables:
    """Motif trees of K molecules, padded to the longest, L motifs.

    Attributes
    ----------
    motif, degree, depth : ndarray (K, L) of int64
        ``motif`` is 0 where there is none; the motif ``smiles[i]`` has number i + 1.
    smiles : tuple of str
        The S different motifs in alphabetical order.
    """

    motif: npt.NDArray[np.int64]
    degree: npt.NDArray[np.int64]
    depth: npt.NDArray[np.int64]
    smiles: tuple[str, ...]


def build_motif_tables(smiles: Sequence[str]) -> MotifTables:
    """Motif trees of molecules, in order."""
    trees = [motif_tree(text) for text in smiles]
    names = sorted({motif.smiles for tree in trees for motif in tree})
    number = {name: i + 1 for i, name in enumerate(names)}
    shape = (len(trees), max((len(tree) for tree in trees), default=0))
    motif, degree, depth = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for row, tree in enumerate(trees):
        for column, item in enumerate(tree):
            motif[row, column] = number[item.smiles]
            degree[row, column], depth[row, column] = item.degree, item.depth
    return MotifTables(motif, degree, depth, tuple(names))
