"""Torch modules on molecular geometries: geometric vector perceptrons.

Jing et al., ICLR 2021, in the form that BiMoRec uses. Scalars are invariant and vectors turn with
the molecule. Coordinates are centred on the molecule first, which makes the read-out invariant
under translation too; the published input is the position in the file's frame. Vector norms cannot
tell a molecule from its mirror image, so enantiomers whose conformers mirror each other get the
same embedding: a limit of the architecture.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medrec.molecules.encoders_2d import segment_mean
from medrec.molecules.geometries import N_ATOM_SCALARS, Geometries

EDGES_KEPT = 30_000

Pair = tuple[torch.Tensor, torch.Tensor]


class GVP(nn.Module):
    """Geometric vector perceptron: (scalars, vectors) to (scalars, vectors).

    v_h = W_h v;  s' = act(W_s [s, |v_h|]);  v_mu = W_mu v_h;  v' = v_mu * sigmoid(|v_mu|).

    The vector is scaled by the gate of its length. BiMoRec's eq. 5-6 take the length first, which
    would leave no vector.
    """

    def __init__(
        self, n_in: tuple[int, int], n_out: tuple[int, int], *, activate: bool = True
    ) -> None:
        super().__init__()
        hidden = max(n_in[1], n_out[1])
        self.hidden = nn.Linear(n_in[1], hidden, bias=False)
        self.scalars = nn.Linear(n_in[0] + hidden, n_out[0])
        self.vectors = nn.Linear(hidden, n_out[1], bias=False) if n_out[1] else None
        self.activate = activate

    def forward(self, pair: Pair) -> Pair:
        """Map scalars (n, s) and vectors (n, 3, v)."""
        s, v = pair
        v_hidden = self.hidden(v)
        return self.finish(self.scalars(torch.cat([s, lengths(v_hidden)], dim=-1)), v_hidden)

    def finish(self, s: torch.Tensor, v_hidden: torch.Tensor) -> Pair:
        """Activation, and the last step of the vectors."""
        out = v_hidden.new_zeros(*v_hidden.shape[:-1], 0)
        if self.vectors is not None:
            out = self.vectors(v_hidden)
            if self.activate:
                out = out * torch.sigmoid(lengths(out)).unsqueeze(-2)
        return (torch.relu(s) if self.activate else s), out


def lengths(v: torch.Tensor) -> torch.Tensor:
    """Length over the spatial axis of (..., 3, channels), smooth at zero."""
    return torch.sqrt((v * v).sum(dim=-2) + 1e-8)


class PairNorm(nn.Module):
    """Layer norm of scalars; vectors are divided by their root mean square length."""

    def __init__(self, n_scalars: int) -> None:
        super().__init__()
        self.scalars = nn.LayerNorm(n_scalars)

    def forward(self, pair: Pair) -> Pair:
        """Normalise both parts."""
        s, v = pair
        scale = torch.sqrt((v * v).sum(dim=-2, keepdim=True).mean(dim=-1, keepdim=True) + 1e-8)
        return self.scalars(s), v / scale


class PairDropout(nn.Module):
    """Dropout of scalars, and of whole vector channels, so that directions stay what they are."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.scalars, self.vectors = nn.Dropout(rate), nn.Dropout(rate)

    def forward(self, pair: Pair) -> Pair:
        """Drop in training."""
        s, v = pair
        if not self.training or self.vectors.p == 0.0:
            return pair
        return self.scalars(s), v * self.vectors(v.new_ones(len(v), 1, v.shape[2]))


class GVPConv(nn.Module):
    """Message passing with three GVPs per edge and two per node, residual and normalised.

    The message of an edge is ``last(second(first([s_j, e, s_i], [v_j, e_v, v_i])))``, the mean of
    which reaches the node. What is linear in it is computed once per node and not per edge: the
    first GVP's matrices before, and the last GVP, which has no activation, after the mean.
    """

    def __init__(self, node: tuple[int, int], edge: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.node, self.edge = node, edge
        self.first = GVP((2 * node[0] + edge[0], 2 * node[1] + edge[1]), node)
        self.second, self.last = GVP(node, node), GVP(node, node, activate=False)
        wide = (4 * node[0], 2 * node[1])
        self.update = nn.Sequential(GVP(node, wide), GVP(wide, node, activate=False))
        self.norm_1, self.norm_2 = PairNorm(node[0]), PairNorm(node[0])
        self.dropout = PairDropout(dropout)

    def forward(self, pair: Pair, edge: Pair, edge_index: torch.Tensor) -> Pair:
        """Update node scalars (A, s) and vectors (A, 3, v)."""
        pair = self.norm_1(_sum(pair, self.dropout(self.messages(pair, edge, edge_index))))
        return self.norm_2(_sum(pair, self.dropout(self.update(pair))))

    def messages(self, pair: Pair, edge: Pair, edge_index: torch.Tensor) -> Pair:
        """Mean message that reaches each node; zero without a neighbour."""
        (s, v), (source, target) = pair, edge_index
        first, last = self.first, self.last
        sizes = [self.node[1], self.edge[1], self.node[1]]
        of_source, of_edge, of_target = first.hidden.weight.split(sizes, dim=1)
        v_hidden = (
            F.linear(v, of_source).index_select(0, source)
            + F.linear(v, of_target).index_select(0, target)
            + F.linear(edge[1], of_edge)
        )
        sizes = [self.node[0], self.edge[0], self.node[0], v_hidden.shape[2]]
        of_source, of_edge, of_target, of_length = first.scalars.weight.split(sizes, dim=1)
        scalars = (
            F.linear(s, of_source, first.scalars.bias).index_select(0, source)
            + F.linear(s, of_target).index_select(0, target)
            + F.linear(
                torch.cat([edge[0], lengths(v_hidden)], 1), torch.cat([of_edge, of_length], 1)
            )
        )
        ms, mv = self.second(first.finish(scalars, v_hidden))
        v_hidden = last.hidden(mv)
        ms = segment_mean(torch.cat([ms, lengths(v_hidden)], dim=1), target, len(s))
        v_hidden = segment_mean(v_hidden.flatten(1), target, len(s)).reshape(len(s), 3, -1)
        reached = torch.zeros(len(s), 1, device=s.device, dtype=s.dtype)
        reached[target] = 1.0
        ms, mv = last.finish(last.scalars(ms), v_hidden)
        return ms * reached, mv


def _sum(first: Pair, second: Pair) -> Pair:
    return first[0] + second[0], first[1] + second[1]


class GVPEncoder(nn.Module):
    """Geometries to vectors: n GVP convolutions, sum over atoms, two dense layers.

    Parameters
    ----------
    d_model : int
        Size of the result and of the scalar channels; vectors have half as many channels.
    n_rbf : int
        Gaussians that encode an edge's length between 0 and the cut-off.
    dropout, head_dropout : float
        Inside the convolutions, and between the two dense layers.
    """

    centres: torch.Tensor

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        *,
        cutoff_angstrom: float,
        n_rbf: int,
        dropout: float = 0.1,
        head_dropout: float = 0.25,
    ) -> None:
        super().__init__()
        node, edge = (d_model, max(d_model // 2, 1)), (32, 1)
        self.register_buffer("centres", torch.linspace(0.0, cutoff_angstrom, n_rbf))
        self.width = cutoff_angstrom / n_rbf
        self.norm_node, self.norm_edge = PairNorm(N_ATOM_SCALARS), PairNorm(n_rbf)
        self.embed_node = GVP((N_ATOM_SCALARS, 1), node, activate=False)
        self.embed_edge = GVP((n_rbf, 1), edge, activate=False)
        self.layers = nn.ModuleList(GVPConv(node, edge, dropout) for _ in range(n_layers))
        self.norm = PairNorm(node[0])
        self.read_out = GVP(node, (d_model, 0))
        self.head = nn.Sequential(
            nn.Linear(d_model, 8 * d_model),
            nn.LeakyReLU(),
            nn.Dropout(head_dropout),
            nn.Linear(8 * d_model, d_model),
        )

    def forward(self, geometries: Geometries) -> torch.Tensor:
        """Encode geometries.

        Returns
        -------
        Tensor (n_graphs, d)
        """
        scalars, _ = self.read_out(self.norm(self.nodes(geometries)))
        summed = scalars.new_zeros(geometries.n_graphs, scalars.shape[1])
        vectors: torch.Tensor = self.head(summed.index_add_(0, geometries.batch, scalars))
        return vectors

    def nodes(self, geometries: Geometries) -> Pair:
        """Scalars (A, s) and vectors (A, 3, v) of every atom after the convolutions."""
        rbf = torch.exp(-(((geometries.distance.unsqueeze(1) - self.centres) / self.width) ** 2))
        edge = self.embed_edge(self.norm_edge((rbf, geometries.direction.unsqueeze(-1))))
        pair = self.embed_node(
            self.norm_node((geometries.atoms, geometries.position.unsqueeze(-1)))
        )
        for layer in self.layers:
            if geometries.edge_index.shape[1] > EDGES_KEPT and torch.is_grad_enabled():
                # computed again on the way back: what a layer keeps is 10 kB per edge at d = 128
                pair = checkpoint(layer, pair, edge, geometries.edge_index, use_reentrant=False)
            else:
                pair = layer(pair, edge, geometries.edge_index)
        return pair
