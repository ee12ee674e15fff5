"""Knowledge graph of medical concepts: typed, directed edges between named nodes.

Letters: n nodes, R relations, E edges, N concepts of one kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantum.base import InputError

Index = npt.NDArray[np.int64]
_LEVELLED = frozenset(("dx9", "dx10", "px9", "px10", "atc"))


class Neighbour(NamedTuple):
    """An edge seen from one of its ends; ``outgoing`` if the edge begins there."""

    relation: str
    outgoing: bool
    node: str
    label: str


@dataclass(frozen=True)
class KnowledgeGraph:
    """Nodes, relations, edges, and where the concepts of a cohort are among them.

    Attributes
    ----------
    nodes, labels : tuple of str
        Name (``dx9:4019``) and readable label of each node, n of them. What stands before the
        colon is the type of the node.
    relations : tuple of str
        Names, R of them.
    edges : ndarray (E, 3) of int64
        Head, relation, tail; sorted, no two equal, no loops.
    concepts : dict
        Per kind an ndarray (N,) of int64: the node of each concept, -1 where the graph lacks it.
    """

    nodes: tuple[str, ...]
    labels: tuple[str, ...]
    relations: tuple[str, ...]
    edges: Index
    concepts: dict[str, Index] = field(default_factory=dict)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.nodes)}

    def place(self, node: str) -> int:
        """Position of a node.

        Raises
        ------
        InputError
            If the graph lacks it.
        """
        if node not in self._places:
            raise InputError(
                f"graph of {len(self.nodes)} nodes has no node '{node}'; expected for example "
                f"{', '.join(self.nodes[:3])}"
            )
        return self._places[node]

    def neighbours(self, node: str) -> list[Neighbour]:
        """All edges of a node, with readable labels, in the order of relation and node."""
        here = self.place(node)
        order, start = self._by_node
        found = []
        for head, relation, tail in self.edges[order[start[here] : start[here + 1]]].tolist():
            other = tail if head == here else head
            found.append(
                Neighbour(
                    self.relations[relation], head == here, self.nodes[other], self.labels[other]
                )
            )
        return sorted(found)

    @cached_property
    def _by_node(self) -> tuple[Index, Index]:
        """Edges in the order of their ends, and where those of each node begin (n + 1,)."""
        ends = self.edges[:, [0, 2]].ravel()
        start = np.concatenate([[0], np.cumsum(self.degrees)])
        return np.argsort(ends, kind="stable") // 2, start

    @cached_property
    def degrees(self) -> Index:
        """Edges at each node (n,), in either direction."""
        return np.bincount(self.edges[:, [0, 2]].ravel(), minlength=len(self.nodes))

    @cached_property
    def types(self) -> Index:
        """Number of the type of each node (n,).

        The type is what stands before the colon; codes of another length are of another type, as
        length is level: a class of drugs is no peer of a substance.
        """
        parts = [node.split(":", 1) for node in self.nodes]
        names = [f"{kind}{len(code)}" if kind in _LEVELLED else kind for kind, code in parts]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def keep(self, mask: npt.NDArray[np.bool_]) -> KnowledgeGraph:
        """The graph with some of its edges (E,) and all of its nodes."""
        return replace(self, edges=self.edges[mask])

    def counts(self) -> dict[str, dict[str, int]]:
        """Nodes per type and edges per relation."""
        types = Counter(node.split(":", 1)[0] for node in self.nodes)
        used = np.bincount(self.edges[:, 1], minlength=len(self.relations))
        return {
            "nodes": dict(sorted(types.items())),
            "edges": dict(zip(self.relations, used.tolist(), strict=True)),
        }

    def coverage(self) -> dict[str, float]:
        """Share of the concepts of each kind that have an edge."""
        return {
            kind: float(((found >= 0) & (self.degrees[found] > 0)).mean()) if len(found) else 1.0
            for kind, found in self.concepts.items()
        }


class GraphBuilder:
    """Collects nodes and edges; the order in which they come does not change the graph."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}
        self._edges: set[tuple[str, str, str]] = set()

    def __contains__(self, node: object) -> bool:
        return node in self._labels

    @property
    def nodes(self) -> list[str]:
        """Names so far, sorted."""
        return sorted(self._labels)

    def add_node(self, node: str, label: str) -> str:
        """Add a node, or leave it as it is if it is there; its name comes back."""
        self._labels.setdefault(node, label)
        return node

    def add_edge(self, head: str, relation: str, tail: str) -> None:
        """Add an edge between two nodes that are there; loops are left out.

        Raises
        ------
        InputError
            If an end is not there.
        """
        missing = [node for node in (head, tail) if node not in self._labels]
        if missing:
            raise InputError(f"edge '{relation}' to a node that is not there: {missing[0]}")
        if head != tail:
            self._edges.add((head, relation, tail))

    def build(self, concepts: dict[str, Iterable[str]]) -> KnowledgeGraph:
        """Sort and number everything; ``concepts`` has the node names of each kind."""
        nodes = self.nodes
        place = {name: i for i, name in enumerate(nodes)}
        relations = sorted({relation for _, relation, _ in self._edges})
        number = {name: i for i, name in enumerate(relations)}
        edges = sorted((place[h], number[r], place[t]) for h, r, t in self._edges)
        return KnowledgeGraph(
            tuple(nodes),
            tuple(self._labels[node] for node in nodes),
            tuple(relations),
            np.array(edges, dtype=np.int64).reshape(-1, 3),
            {
                kind: np.array([place.get(name, -1) for name in names], dtype=np.int64)
                for kind, names in concepts.items()
            },
        )
