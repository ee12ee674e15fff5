"""Weisfeiler-Lehman fingerprints of atoms, and the plan of a message-passing network over them.

Graphs hold all atoms, hydrogens included. An atom starts as its element and aromaticity; in every
round its label becomes a number for (its label, the sorted labels and bonds of its neighbours).
After ``radius`` rounds the label is the atom's fingerprint (Tsubaki et al., Bioinformatics 2019, as
SafeDrug uses it). Numbers are given in the order of the molecules, so that they are reproducible.

Atoms that cannot differ after a layer share one row there, which changes no result and is much less
work: in a network of L layers without noise, layer l needs one row per label of l - 1 more rounds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from rdkit import Chem

from medrec.molecules.repetitions import RowSums

Bonds = list[list[tuple[int, str]]]


@dataclass(frozen=True)
class AtomGraph:
    """Atoms of all molecules: first labels, neighbours with bond types, molecule of each atom."""

    labels: list[int]
    neighbours: Bonds
    molecule: list[int]
    n_molecules: int


def all_atom_graph(smiles: Sequence[str]) -> AtomGraph:
    """Graph of parsable SMILES with explicit hydrogens."""
    names: list[Hashable] = []
    neighbours: Bonds = []
    molecule: list[int] = []
    for number, text in enumerate(smiles):
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        first = len(names)
        for atom in mol.GetAtoms():
            names.append((atom.GetSymbol(), atom.GetIsAromatic()))
            neighbours.append([])
            molecule.append(number)
        for bond in mol.GetBonds():
            a, b = first + bond.GetBeginAtomIdx(), first + bond.GetEndAtomIdx()
            kind = str(bond.GetBondType())
            neighbours[a].append((b, kind))
            neighbours[b].append((a, kind))
    return AtomGraph(_numbered(names), neighbours, molecule, len(smiles))


def _numbered(keys: Iterable[Hashable]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def refine(labels: Sequence[int], neighbours: Bonds) -> list[int]:
    """One round: labels of atoms together with their neighbours."""
    return _numbered(
        (label, tuple(sorted((labels[other], kind) for other, kind in around)))
        for label, around in zip(labels, neighbours, strict=True)
    )


def fingerprints(graph: AtomGraph, radius: int) -> list[int]:
    """Fingerprint of each atom, numbered from 0."""
    labels = graph.labels
    for _ in range(radius):
        labels = refine(labels, graph.neighbours)
    return labels


def message_plan(graph: AtomGraph, labels: Sequence[int], n_layers: int) -> list[RowSums]:
    """Where each layer's ``h + A h`` reads and writes; the last one adds up whole molecules.

    Parameters
    ----------
    labels : sequence of int
        Fingerprints of the atoms.
    """
    plan, now = [], list(labels)
    for _ in range(n_layers - 1):
        after = refine(now, graph.neighbours)
        shown: dict[int, int] = {}
        for atom, label in enumerate(after):
            shown.setdefault(label, atom)
        pairs = [(label, now[a]) for label, atom in shown.items() for a in _reach(graph, atom)]
        plan.append(_row_sums(pairs, len(shown), max(now) + 1))
        now = after
    pairs = [(m, now[a]) for atom, m in enumerate(graph.molecule) for a in _reach(graph, atom)]
    plan.append(_row_sums(pairs, graph.n_molecules, max(now) + 1))
    return plan


def _reach(graph: AtomGraph, atom: int) -> list[int]:
    return [atom, *(other for other, _ in graph.neighbours[atom])]


def _row_sums(pairs: Sequence[tuple[int, int]], n_outputs: int, n_rows: int) -> RowSums:
    output, row = torch.tensor(pairs).T
    return RowSums.of(output, row, n_outputs, n_rows)
