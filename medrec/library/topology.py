"""Paths, centralities, angles and torsions of many molecular graphs at once.

The atoms of M molecules stand in one row, one molecule after another, so that every step is one
operation on flat arrays, whatever the sizes. Results of a molecule do not depend on which others
are in the row, to the last bit. Letters: M molecules, N atoms, E bonds (each once), P = sum of n^2
ordered atom pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medrec.library.arrays import UNREACHABLE

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_SINGLE, _TRIPLE = 1, 3  # bond categories
_EIGENVECTOR_DECIMALS = 6
_UNSEEN = -1


def ranges(counts: Ints) -> Ints:
    """0, 1, ... counts[0] - 1, 0, 1, ... counts[1] - 1, and so on, in one array."""
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) - np.repeat(before, counts)


@dataclass(frozen=True)
class FlatGraphs:
    """Molecules as one disconnected graph.

    Attributes
    ----------
    n_atoms : int array (M,)
        At least 1 each.
    bonds : int array (E, 2)
        Numbers of the atoms in the row of all N.
    """

    n_atoms: Ints
    bonds: Ints

    @cached_property
    def first_atom(self) -> Ints:
        """First atom of every molecule (M,)."""
        return np.cumsum(self.n_atoms) - self.n_atoms

    @cached_property
    def molecule(self) -> Ints:
        """Molecule of every atom (N,)."""
        return np.repeat(np.arange(len(self.n_atoms)), self.n_atoms)

    @cached_property
    def row(self) -> Ints:
        """Pair of atoms s and v has the number ``row[s] + v``, (N,)."""
        n = self.n_atoms[self.molecule]
        return np.cumsum(n) - n - self.first_atom[self.molecule]

    @cached_property
    def degree(self) -> Ints:
        """Neighbours of every atom (N,)."""
        return np.bincount(self.bonds.ravel(), minlength=int(self.n_atoms.sum()))

    @cached_property
    def first_neighbour(self) -> Ints:
        """Where the neighbours of every atom begin in `neighbour`, (N,)."""
        return np.cumsum(self.degree) - self.degree

    @cached_property
    def neighbour(self) -> Ints:
        """Neighbours of the first atom in rising order, of the second, ... (2 E,)."""
        atom, other = np.concatenate([self.bonds, self.bonds[:, ::-1]]).T
        return other[np.lexsort((other, atom))]

    def local(self, atoms: Ints) -> Ints:
        """Numbers inside the molecules."""
        return atoms - self.first_atom[self.molecule[atoms]]


# --------------------------------------------------------------------------- paths


class ShortestPaths(NamedTuple):
    """Shortest paths between all ordered pairs of atoms of each molecule.

    Attributes
    ----------
    length : int array (P,)
        Number of bonds; -1 between different parts of a molecule.
    betweenness : float array (N,)
        Share of the shortest paths between two other atoms that pass through an atom, over the
        (n - 1)(n - 2) / 2 pairs of other atoms; 0 for n < 3.
    """

    length: Ints
    betweenness: Floats


def shortest_paths(graphs: FlatGraphs) -> ShortestPaths:
    """Search breadth first from all atoms at once, then gather what depends on each atom.

    U. Brandes, J. Math. Sociol. 25 (2001) 163: the dependency of a source on atom v is the sum of
    n(v) / n(w) (1 + dependency on w) over the atoms w that come one bond after v, with n(.) the
    number of shortest paths from the source.
    """
    n_pairs = int((graphs.n_atoms**2).sum())
    atoms = np.arange(len(graphs.molecule))
    length = np.full(n_pairs, _UNSEEN)
    paths, depends = np.zeros(n_pairs), np.zeros(n_pairs)
    source, reached = atoms, atoms
    pair = graphs.row[source] + reached
    length[pair], paths[pair] = 0, 1.0
    steps: list[tuple[Ints, Ints]] = []
    while len(pair):
        degree = graphs.degree[reached]
        before = np.repeat(np.arange(len(pair)), degree)
        after = graphs.neighbour[
            np.repeat(graphs.first_neighbour[reached], degree) + ranges(degree)
        ]
        source, before = source[before], pair[before]
        pair = graphs.row[source] + after
        fresh = length[pair] == _UNSEEN
        source, reached, before, pair = source[fresh], after[fresh], before[fresh], pair[fresh]
        steps.append((before, pair))
        length[pair] = len(steps)
        np.add.at(paths, pair, paths[before])
        source, reached, pair = _once(source, reached, pair)
    for before, pair in reversed(steps):
        np.add.at(depends, before, paths[before] / paths[pair] * (1.0 + depends[pair]))
    depends[graphs.row + atoms] = 0.0
    n = graphs.n_atoms[graphs.molecule]
    target = atoms[_columns(graphs)]
    total = np.bincount(target, weights=depends, minlength=len(atoms))
    return ShortestPaths(length, total / np.maximum((n - 1) * (n - 2), 1))


def path_categories(length: Ints) -> npt.NDArray[np.uint8]:
    """Lengths as bytes, `UNREACHABLE` where there is no path or none below 255 bonds."""
    reachable = (length != _UNSEEN) & (length < UNREACHABLE)
    return np.where(reachable, length, UNREACHABLE).astype(np.uint8)


def _columns(graphs: FlatGraphs) -> Ints:
    """Second atom of every pair (P,)."""
    n = graphs.n_atoms[graphs.molecule]
    return np.repeat(graphs.first_atom[graphs.molecule], n) + ranges(n)


def _once(source: Ints, reached: Ints, pair: Ints) -> tuple[Ints, Ints, Ints]:
    """Drop repeated pairs."""
    _, keep = np.unique(pair, return_index=True)
    return source[keep], reached[keep], pair[keep]


# --------------------------------------------------------------------------- eigenvector centrality


def eigenvector_centrality(graphs: FlatGraphs, length: Ints) -> Floats:
    """Eigenvector of the largest eigenvalue of the largest part's adjacency matrix, (N,).

    Positive, of length 1, and 0 on the other parts; of equally large parts the one with the first
    atom counts. Rounded to six decimals, so that atoms that a symmetry exchanges have one value.

    Parameters
    ----------
    length : int array (P,)
        Of `shortest_paths`.
    """
    inside = _largest_part(graphs, length)
    result = np.zeros(len(inside))
    molecule = graphs.molecule[inside]
    size = np.bincount(molecule, minlength=len(graphs.n_atoms))
    rank = np.zeros(len(inside), dtype=np.int64)
    rank[inside] = ranges(size)
    bonds = graphs.bonds[inside[graphs.bonds[:, 0]]]
    of_bond = graphs.molecule[bonds[:, 0]]
    for n in np.unique(size):
        chosen = size == n
        slot = np.cumsum(chosen) - 1
        here = bonds[chosen[of_bond]]
        stack = slot[graphs.molecule[here[:, 0]]]
        i, j = rank[here].T
        adjacency = np.zeros((int(chosen.sum()), n, n))
        adjacency[stack, i, j] = adjacency[stack, j, i] = 1.0
        vectors = np.abs(np.linalg.eigh(adjacency).eigenvectors[:, :, -1])
        result[np.flatnonzero(inside)[chosen[molecule]]] = vectors.ravel()
    return np.round(result, _EIGENVECTOR_DECIMALS)


def _largest_part(graphs: FlatGraphs, length: Ints) -> Bools:
    """Whether an atom belongs to the largest connected part of its molecule (N,)."""
    n = graphs.n_atoms[graphs.molecule]
    rows = np.cumsum(n) - n
    linked = length != _UNSEEN
    size = np.add.reduceat(linked.astype(np.int64), rows)
    root = np.minimum.reduceat(np.where(linked, _columns(graphs), len(n)), rows)
    largest = np.maximum.reduceat(size, graphs.first_atom)[graphs.molecule]
    roots = np.minimum.reduceat(np.where(size == largest, root, len(n)), graphs.first_atom)
    result: Bools = root == roots[graphs.molecule]
    return result


# --------------------------------------------------------------------------- angles and torsions


def bond_angles(graphs: FlatGraphs) -> Ints:
    """All pairs of neighbours of an atom: anchor, source, destination (A, 3), source first."""
    anchor = np.repeat(np.arange(len(graphs.degree)), graphs.degree)
    position = np.arange(len(anchor))
    later = graphs.first_neighbour[anchor] + graphs.degree[anchor] - 1 - position
    first = np.repeat(position, later)
    second = first + 1 + ranges(later)
    return np.stack([anchor[first], graphs.neighbour[first], graphs.neighbour[second]], axis=1)


def rotatable_bonds(
    graphs: FlatGraphs,
    element: npt.NDArray[np.uint8],
    bond_type: npt.NDArray[np.uint8],
    in_ring: Bools,
) -> Bools:
    """Acyclic single bonds between atoms that have another neighbour and no triple bond, (E,).

    RDKit's ``NonStrict`` definition. The strict one also leaves out amides, esters and bulky ends,
    whose torsions are hindered but say as much about a geometry as others. Hydrogens are no
    neighbours here: turning a methyl group changes no position but its own.

    Parameters
    ----------
    element : uint8 array (N,)
    bond_type : uint8 array (E,)
        Categories of ``bond_attr``.
    """
    n = len(element)
    heavy = element > 1
    i, j = graphs.bonds.T
    heavy_degree = np.bincount(i, heavy[j], n) + np.bincount(j, heavy[i], n)
    linear = np.zeros(n, dtype=bool)
    linear[graphs.bonds[bond_type == _TRIPLE]] = True
    free = (heavy_degree > 1) & ~linear
    result: Bools = (bond_type == _SINGLE) & ~in_ring & free[i] & free[j]
    return result


def proper_torsions(graphs: FlatGraphs, central: Bools) -> Ints:
    """Chains i-j-k-l of four different atoms over chosen bonds j-k (R, 4), with j < k.

    Parameters
    ----------
    central : bool array (E,)
        Bonds to turn around.
    """
    j, k = np.sort(graphs.bonds[central], axis=1).T
    n_chains = graphs.degree[j] * graphs.degree[k]
    chain = ranges(n_chains)
    j, k = np.repeat(j, n_chains), np.repeat(k, n_chains)
    before, after = np.divmod(chain, np.maximum(graphs.degree[k], 1))
    i = graphs.neighbour[graphs.first_neighbour[j] + before]
    last = graphs.neighbour[graphs.first_neighbour[k] + after]
    proper = (i != k) & (last != j) & (i != last)
    return np.stack([i, j, k, last], axis=1)[proper]
