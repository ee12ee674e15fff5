"""Torch modules on molecular geometries: geometric vector perceptrons.

Jing et al., ICLR 2021, in the form that BiMoRec uses. Scalars are invariant and vectors turn with
the molecule. Coordinates are centred on the molecule first, which makes the read-out invariant
under translation too. Vector norms cannot tell a molecule from its mirror image, so enantiomers get
the same embedding: a limit of the architecture.
"""

from __future__ import annotations

import torch
from torch import nn

from medrec.molecules.encoders_2d import segment_mean
from medrec.molecules.geometries import N_ELEMENT_CLASSES, Geometries

Pair = tuple[torch.Tensor, torch.Tensor]


class GVP(nn.Module):
    """Geometric vector perceptron: (scalars, vectors) to (scalars, vectors).

    v_h = W_h v;  s' = act(W_s [s, |v_h|]);  v_mu = W_mu v_h;  v' = v_mu * sigmoid(|v_mu|).
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
        s = self.scalars(torch.cat([s, _norm(v_hidden)], dim=-1))
        out = v.new_zeros(*v.shape[:-1], 0)
        if self.vectors is not None:
            out = self.vectors(v_hidden)
            if self.activate:
                out = out * torch.sigmoid(_norm(out)).unsqueeze(-2)
        return (torch.relu(s) if self.activate else s), out


def _norm(v: torch.Tensor) -> torch.Tensor:
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


class GVPConv(nn.Module):
    """Message passing with three GVPs per edge and two per node, residual and normalised."""

    def __init__(self, node: tuple[int, int], edge: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.message = nn.Sequential(
            GVP((2 * node[0] + edge[0], 2 * node[1] + edge[1]), node),
            GVP(node, node),
            GVP(node, node, activate=False),
        )
        wide = (4 * node[0], 2 * node[1])
        self.update = nn.Sequential(GVP(node, wide), GVP(wide, node, activate=False))
        self.norm_1, self.norm_2 = PairNorm(node[0]), PairNorm(node[0])
        self.dropout = nn.Dropout(dropout)

    def forward(self, pair: Pair, edge: Pair, edge_index: torch.Tensor) -> Pair:
        """Update node scalars (A, s) and vectors (A, 3, v)."""
        s, v = pair
        source, target = edge_index
        joined = (
            torch.cat([s[source], edge[0], s[target]], dim=-1),
            torch.cat([v[source], edge[1], v[target]], dim=-1),
        )
        ms, mv = self.message(joined)
        ms = segment_mean(ms, target, len(s))
        mv = segment_mean(mv.flatten(1), target, len(s)).reshape(v.shape)
        s, v = self.norm_1((s + self.dropout(ms), v + mv))
        us, uv = self.update((s, v))
        return self.norm_2((s + self.dropout(us), v + uv))


class GVPEncoder(nn.Module):
    """Geometries to vectors: n GVP convolutions, sum over atoms, two dense layers.

    Parameters
    ----------
    d_model : int
        Size of the result and of the scalar channels; vectors have half as many channels.
    n_rbf : int
        Gaussians that encode an edge's length between 0 and the cut-off.
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
    ) -> None:
        super().__init__()
        node, edge = (d_model, d_model // 2), (32, 1)
        self.elements = nn.Embedding(N_ELEMENT_CLASSES, d_model)
        self.register_buffer("centres", torch.linspace(0.0, cutoff_angstrom, n_rbf))
        self.width = cutoff_angstrom / n_rbf
        self.embed_node = GVP((d_model, 1), node, activate=False)
        self.embed_edge = GVP((n_rbf, 1), edge, activate=False)
        self.layers = nn.ModuleList(GVPConv(node, edge, dropout) for _ in range(n_layers))
        self.norm = PairNorm(node[0])
        self.read_out = GVP(node, (d_model, 0))
        self.head = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.LeakyReLU(), nn.Linear(4 * d_model, d_model)
        )

    def forward(self, geometries: Geometries) -> torch.Tensor:
        """Encode geometries.

        Returns
        -------
        Tensor (n_graphs, d)
        """
        rbf = torch.exp(-(((geometries.distance.unsqueeze(1) - self.centres) / self.width) ** 2))
        edge = self.embed_edge((rbf, geometries.direction.unsqueeze(-1)))
        pair = self.embed_node(
            (self.elements(geometries.element), geometries.position.unsqueeze(-1))
        )
        for layer in self.layers:
            pair = layer(pair, edge, geometries.edge_index)
        scalars, _ = self.read_out(self.norm(pair))
        summed = scalars.new_zeros(geometries.n_graphs, scalars.shape[1])
        return self.head(summed.index_add_(0, geometries.batch, scalars))
