"""Vectors of graph nodes by the relational aggregation and the intents of KGIN.

KGIN (Wang et al., *Learning Intents behind Interactions with Knowledge Graph for Recommendation*,
WWW 2021) learns users and items of a shop from clicks, with a knowledge graph at the items' side.
SCQMed says that it encodes concepts with KGIN and nothing more: neither objective nor users.

Kept: relational path-aware aggregation, e_h^(l+1) = mean over (r, t) of e_r * e_t^(l) with each
layer's vectors of length 1 as in the released code; the sum over layers; intents as attention
mixtures over relation vectors; a node's attention over intents; BPR; and the distance correlation
that keeps intents apart.

Replaced: there are no users and no clicks, as patients must not be read at this stage. The linked
pairs of the graph itself take the place of clicks: with z the vectors and e_p the intents,

    s(h, t) = sum over p of softmax_p(e_p . e_h) * <z_h * e_p, z_t>,

learnt against tails drawn from the nodes of the tail's type. In each step a quarter of the linked
pairs are the targets and only the others carry messages: a pair that did both would be read off.
Relations have a direction; each has an inverse with a vector of its own.

Letters: n nodes, E edges, R relations, P intents, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from medrec.concepts.graph import Index, KnowledgeGraph
from medrec.concepts.links import (
    Array,
    Scorer,
    dot_product,
    hold_out,
    measure_links,
    spectral_vectors,
)
from medrec.config_papers import GraphConfig
from quantum.base import ConvergenceError

OnEpoch = Callable[[int, int], None]
"""Called with the number of epochs done and their total."""

_PARTS = 4
_DECAY = 1e-5
_NEGATIVES = 1


@dataclass(frozen=True)
class GraphVectors:
    """Vectors of all nodes, and how well they tell linked nodes.

    Attributes
    ----------
    vectors : ndarray (n, d) of float32
        A node without an edge has zeros.
    measured : dict
        See `medrec.concepts.links.measure_links`; empty if nothing was held out.
    """

    vectors: Array
    measured: dict[str, Any]


def embed_graph(
    graph: KnowledgeGraph, config: GraphConfig, seed: int, on_epoch: OnEpoch | None = None
) -> GraphVectors:
    """Encode a graph as the configuration says.

    The encoder never sees the held-out pairs while it learns and is measured; the vectors that
    come back are made with all edges.

    Raises
    ------
    ConvergenceError
        If training ends in values that are not finite.
    """
    hidden = hold_out(graph, config.held_out, seed)
    if config.encoder == "spectral":
        partial = dot_product(spectral_vectors(hidden.graph, config.dims, seed))
        vectors = spectral_vectors(graph, config.dims, seed)
        return GraphVectors(vectors, measure_links(graph, hidden, partial, seed))
    model = train_kgin(hidden.graph, config, seed, on_epoch)
    measured = measure_links(graph, hidden, model.scorer(hidden.graph), seed)
    return GraphVectors(model.vectors(graph), measured)


@dataclass(frozen=True)
class Paths:
    """Messages of a graph as sparse matrices; Q is the number of distinct (node, relation).

    As e_r does not depend on the tail, mean over (r, t) of e_r * e_t is the sum over relations of
    e_r times a weighted sum of tails: Q products in place of 2E.

    Attributes
    ----------
    gather : csr_matrix (Q, n)
        Weighted sum of the tails of each (node, relation).
    spread : csr_matrix (n, Q)
        Sum over the relations of a node.
    relation : ndarray (Q,)
        Number of the relation, those from R on being inverses.
    by_relation : csr_matrix (2R, Q)
        Sum over the nodes of a relation.
    """

    gather: sparse.csr_matrix
    spread: sparse.csr_matrix
    relation: Index
    by_relation: sparse.csr_matrix

    @classmethod
    def of(cls, edges: Index, n_nodes: int, n_relations: int) -> Paths:
        """Paths along edges (E, 3) and back."""
        head, relation, tail = edges.T
        to = np.concatenate([head, tail])
        key = to * (2 * n_relations) + np.concatenate([relation, relation + n_relations])
        source = np.concatenate([tail, head])
        distinct, row = np.unique(key, return_inverse=True)
        node, kind = np.divmod(distinct, 2 * n_relations)
        weight = (1.0 / np.bincount(to, minlength=n_nodes).clip(min=1)).astype(np.float32)
        size = len(distinct)
        ones, here = np.ones(size, dtype=np.float32), np.arange(size)
        return cls(
            sparse.csr_matrix((weight[to], (row.ravel(), source)), shape=(size, n_nodes)),
            sparse.csr_matrix((ones, (node, here)), shape=(n_nodes, size)),
            kind,
            sparse.csr_matrix((ones, (kind, here)), shape=(2 * n_relations, size)),
        )


class _Aggregate(torch.autograd.Function):
    """Relational aggregation (n, d) of node vectors (n, d) and relation vectors (2R, d).

    Sparse products of SciPy: ten times faster on one core than gathering and scattering rows.
    """

    @staticmethod
    def forward(ctx: Any, nodes: torch.Tensor, relations: torch.Tensor, paths: Paths) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):  # the loss is looked at instead
            sums = paths.gather @ nodes.detach().numpy()
            factors = relations.detach().numpy()[paths.relation]
            ctx.paths, ctx.sums, ctx.factors = paths, sums, factors
            return torch.from_numpy(paths.spread @ (factors * sums))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        paths: Paths = ctx.paths
        with np.errstate(over="ignore", invalid="ignore"):
            spread = paths.spread.T @ gradients[0].numpy()
            nodes = paths.gather.T @ (ctx.factors * spread)
            relations = paths.by_relation @ (ctx.sums * spread)
        return torch.from_numpy(nodes), torch.from_numpy(relations), None


class KginEncoder(nn.Module):
    """Node, relation and intent vectors; see the head of this module.

    Parameters
    ----------
    n_nodes, n_relations : int
        Of the graph; inverses are added here.
    """

    def __init__(self, n_nodes: int, n_relations: int, config: GraphConfig) -> None:
        super().__init__()
        self.n_nodes, self.n_layers, self.n_relations = n_nodes, config.layers, n_relations
        self.nodes = nn.Parameter(torch.empty(n_nodes, config.dims))
        # near 1, so that a relation begins by passing its neighbour on as it is
        self.relations = nn.Parameter(1.0 + 0.1 * torch.randn(2 * n_relations, config.dims))
        self.mixture = nn.Parameter(torch.empty(config.intents, 2 * n_relations))
        nn.init.xavier_normal_(self.nodes)
        nn.init.xavier_normal_(self.mixture)

    def intents(self) -> torch.Tensor:
        """Intents (P, d): attention mixtures of the relations."""
        return torch.softmax(self.mixture, dim=1) @ self.relations

    def forward(self, edges: Index) -> torch.Tensor:
        """Vectors of the nodes (n, d), with messages along edges (E, 3) and back."""
        paths = Paths.of(edges, self.n_nodes, self.n_relations)
        layer: torch.Tensor = self.nodes
        total = layer
        for _ in range(self.n_layers):
            layer = functional.normalize(_Aggregate.apply(layer, self.relations, paths), dim=1)
            total = total + layer
        return total

    def query(self, z: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """What a tail's vector is multiplied with (B, d), for heads (B,) and vectors z (n, d)."""
        intents = self.intents()
        attention = torch.softmax(self.nodes[heads] @ intents.T, dim=1)
        return z[heads] * (attention @ intents)

    @torch.no_grad()
    def vectors(self, graph: KnowledgeGraph) -> Array:
        """Vectors (n, d) with messages along all edges; zeros for a node without any."""
        found = self(graph.edges).numpy().copy()
        found[graph.degrees == 0] = 0.0
        return found.astype(np.float32)

    def scorer(self, graph: KnowledgeGraph) -> Scorer:
        """Scores of candidate tails, with messages along the edges of a graph."""
        with torch.no_grad():
            z = self(graph.edges)

        def score(heads: np.ndarray, candidates: np.ndarray) -> Array:
            with torch.no_grad():
                query = self.query(z, torch.from_numpy(heads))
                tails = z[torch.from_numpy(candidates)]
                return torch.einsum("bd,bcd->bc", query, tails).numpy()

        return score


def train_kgin(
    graph: KnowledgeGraph, config: GraphConfig, seed: int, on_epoch: OnEpoch | None = None
) -> KginEncoder:
    """Learn the encoder from the linked pairs of a graph; same graph and seed, same weights.

    Raises
    ------
    ConvergenceError
        If the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KginEncoder(len(graph.nodes), len(graph.relations), config)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr)
    pair_of = _pair_numbers(graph)
    peers = _Peers(graph)
    for epoch in range(config.epochs if len(graph.edges) else 0):
        drawn = torch.randint(_PARTS, (int(pair_of.max()) + 1,), generator=generator)
        part = drawn.numpy()[pair_of]
        for number in range(_PARTS):
            targets = graph.edges[part == number]
            if len(targets):
                z = model(graph.edges[part != number])
                loss = _loss(model, z, _both_ways(targets), peers, generator)
                loss = loss + config.independence * dependence(model.intents())
                if not torch.isfinite(loss):
                    raise ConvergenceError(
                        f"training of the graph encoder fails in epoch {epoch + 1}: loss is not "
                        f"finite; expected a smaller graph.lr than {config.lr}"
                    )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, config.epochs)
    return model


def _pair_numbers(graph: KnowledgeGraph) -> Index:
    """Number of the unordered pair of each edge (E,)."""
    ends = np.sort(graph.edges[:, [0, 2]], axis=1)
    return np.unique(ends, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def _both_ways(edges: Index) -> torch.Tensor:
    """Pairs (2E, 2) of head and tail, and of tail and head."""
    return torch.from_numpy(np.concatenate([edges[:, [0, 2]], edges[:, [2, 0]]]))


class _Peers:
    """Draws nodes of the type of given nodes."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        types = torch.from_numpy(graph.types)
        self.order = torch.argsort(types, stable=True)
        self.count = torch.bincount(types)[types]
        self.start = (torch.cumsum(torch.bincount(types), 0) - torch.bincount(types))[types]

    def draw(self, nodes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Node of the same type for each node (B,); it may be the node itself."""
        share = torch.rand(nodes.shape, generator=generator, dtype=torch.float64)
        return self.order[self.start[nodes] + (share * self.count[nodes]).long()]


def _loss(
    model: KginEncoder,
    z: torch.Tensor,
    pairs: torch.Tensor,
    peers: _Peers,
    generator: torch.Generator,
) -> torch.Tensor:
    """BPR of pairs (B, 2) against tails of the same type, and weight decay of what is used."""
    head, tail = pairs.T
    query = model.query(z, head)
    right = (query * z[tail]).sum(dim=1)
    loss = torch.zeros(())
    for _ in range(_NEGATIVES):
        wrong = (query * z[peers.draw(tail, generator)]).sum(dim=1)
        loss = loss + functional.softplus(wrong - right).mean() / _NEGATIVES
    used = model.nodes[head].square().sum(dim=1) + model.nodes[tail].square().sum(dim=1)
    return loss + _DECAY * used.mean()


def dependence(intents: torch.Tensor) -> torch.Tensor:
    """Sum over pairs of intents (P, d) of their distance correlation (Székely et al. 2007)."""
    centred = [_centred_distances(row) for row in intents]
    total = torch.zeros(())
    for i, a in enumerate(centred):
        for b in centred[i + 1 :]:
            total = total + _distance_correlation(a, b)
    return total


def _centred_distances(values: torch.Tensor) -> torch.Tensor:
    distances = (values[:, None] - values[None, :]).abs()
    rows = distances.mean(dim=0, keepdim=True)
    return distances - rows - rows.T + distances.mean()


def _distance_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    shared = (a * b).mean().clamp(min=1e-12).sqrt()
    own = (a.square().mean() * b.square().mean()).clamp(min=1e-24).sqrt().sqrt()
    return shared / own.clamp(min=1e-6)
