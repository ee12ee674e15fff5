"""How well vectors of nodes tell which nodes are linked; and the spectral encoder.

Pairs are held out as *pairs*: all edges between the two nodes go, whatever their relation and
direction, as one of them would give the others away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from medrec.concepts.graph import Index, KnowledgeGraph

Array = npt.NDArray[np.float32]
Scorer = Callable[[Index, Index], Array]
"""Scores of candidate tails (B, C) for heads (B,) and candidates (B, C)."""

_HITS_AT = 10
_DIFFUSION_STEPS = 8
_MAX_QUERIES = 500
_MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class HeldOut:
    """A graph without some of its linked pairs, and one edge of each of these pairs.

    Attributes
    ----------
    edges : ndarray (H, 3)
        Head, relation, tail.
    """

    graph: KnowledgeGraph
    edges: Index


def hold_out(graph: KnowledgeGraph, share: float, seed: int) -> HeldOut:
    """Take linked pairs away at random; no node loses its last pair.

    Parameters
    ----------
    share : float
        Of all linked pairs; fewer go if too many nodes have one pair only.
    """
    ends = np.sort(graph.edges[:, [0, 2]], axis=1)
    pairs, first, pair_of = np.unique(ends, axis=0, return_index=True, return_inverse=True)
    left = np.bincount(pairs.ravel(), minlength=len(graph.nodes))
    wanted = round(share * len(pairs))
    gone = np.zeros(len(pairs), dtype=bool)
    for pair in np.random.default_rng(seed).permutation(len(pairs)):
        if wanted == 0:
            break
        a, b = pairs[pair]
        if left[a] > 1 and left[b] > 1:
            gone[pair] = True
            left[[a, b]] -= 1
            wanted -= 1
    return HeldOut(graph.keep(~gone[pair_of.ravel()]), graph.edges[first[gone]])


def measure_links(
    full: KnowledgeGraph, held_out: HeldOut, score: Scorer, seed: int
) -> dict[str, Any]:
    """Rank the tails of held-out edges among other nodes of the tail's type.

    At most 500 edges and 1,000 candidates each, drawn at random; other true neighbours of the
    head are no candidates. Ties count half; a tail without any candidate beside it is left out.

    Returns
    -------
    dict
        ``pairs`` (ranked), ``auc`` (chance 0.5), ``hits_at_10``, ``hits_at_10_by_chance``, and
        ``auc_by_relation``; empty if no pair was held out.
    """
    if not len(held_out.edges):
        return {}
    rng = np.random.default_rng(seed)
    edges = held_out.edges
    if len(edges) > _MAX_QUERIES:
        edges = edges[np.sort(rng.choice(len(edges), _MAX_QUERIES, replace=False))]
    known = _neighbour_sets(full)
    ranked, better, chance = [], [], []
    for head, relation, tail in edges:
        peers = np.flatnonzero(full.types == full.types[tail])
        peers = peers[~np.isin(peers, list(known[head] | {head}))]
        if not len(peers):
            continue
        if len(peers) > _MAX_CANDIDATES:
            peers = rng.choice(peers, _MAX_CANDIDATES, replace=False)
        scores = score(np.array([head]), np.concatenate([[tail], peers])[None, :])[0]
        above = (scores[1:] > scores[0]).sum() + 0.5 * (scores[1:] == scores[0]).sum()
        ranked.append(relation)
        better.append((above, len(peers)))
        chance.append(min(1.0, _HITS_AT / (len(peers) + 1)))
    if not ranked:
        return {}
    above, sizes = np.array(better, dtype=np.float64).T
    auc, relations = 1.0 - above / sizes, np.array(ranked)
    return {
        "pairs": len(ranked),
        "auc": float(auc.mean()),
        "hits_at_10": float((above < _HITS_AT).mean()),
        "hits_at_10_by_chance": float(np.mean(chance)),
        "auc_by_relation": {
            name: float(auc[relations == number].mean())
            for number, name in enumerate(full.relations)
            if (relations == number).any()
        },
    }


def _neighbour_sets(graph: KnowledgeGraph) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in graph.nodes]
    for head, _, tail in graph.edges.tolist():
        found[head].add(tail)
        found[tail].add(head)
    return found


def dot_product(vectors: Array) -> Scorer:
    """Scorer by the dot product of vectors (n, d)."""

    def score(heads: Index, candidates: Index) -> Array:
        found: Array = np.einsum("bd,bcd->bc", vectors[heads], vectors[candidates])
        return found

    return score


def spectral_vectors(graph: KnowledgeGraph, n_dims: int, seed: int) -> Array:
    """Leading eigenvectors of the normalised adjacency with self-loops, relations ignored.

    With A the symmetric 0/1 adjacency and D its degrees with self-loops, the vectors are those of
    (I + D^-1/2 (A + I) D^-1/2) / 2, each times a power of its eigenvalue, as in diffusion maps:
    plain eigenvectors become orthogonal rows as d nears n, and say nothing. The added identity
    keeps large negative eigenvalues (trees have them) out of the leading ones.

    Returns
    -------
    ndarray (n, d)
        d = min(n_dims, n - 1), at least 1; a node without edges has zeros.
    """
    from sklearn.decomposition import TruncatedSVD

    n = len(graph.nodes)
    size = min(n_dims, n - 1)
    if size < 1:
        return np.zeros((n, 1), dtype=np.float32)
    heads, tails = graph.edges[:, 0], graph.edges[:, 2]
    linked = sparse.csr_matrix((np.ones(len(heads)), (heads, tails)), shape=(n, n))
    linked = linked + linked.T
    linked.data[:] = 1.0
    linked = linked + sparse.eye(n, format="csr")
    scale = sparse.diags(1.0 / np.sqrt(np.asarray(linked.sum(axis=1)).ravel()))
    operator = (sparse.eye(n) + scale @ linked @ scale) * 0.5
    decomposed = TruncatedSVD(size, n_iter=7, random_state=seed)
    # fit_transform gives them times the eigenvalue once
    vectors = decomposed.fit_transform(operator)
    vectors *= decomposed.singular_values_ ** (_DIFFUSION_STEPS - 1)
    vectors[graph.degrees == 0] = 0.0
    return vectors.astype(np.float32)
