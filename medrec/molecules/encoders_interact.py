"""MolInteract: a 2D and a 3D tower over the same atoms that talk to each other in every layer.

One layer, for atom i with states z2 (bonds) and z3 (distances)::

    h2 = MLP((1 + eps) z2_i + sum_bonds ReLU(z2_j + e_ij))        GINE, d -> d -> d
    h3 = dense(ssp(dense(sum_near (W z3_j) * filter(|r_ij|))))    SchNet, 128 filters
    w  = Linear(swish(Linear(h2 || h3)))                          2d -> 2d -> 2d
    z2, z3 = z2 + w[:d], z3 + w[d:]

Where the paper is silent: the residual goes round the whole layer; no batch or layer norm; 51
Gaussians on 0 to 10 Angstrom and all pairs within 10 Angstrom, without an envelope; heavy atoms in
both towers. An atom without a position keeps the initial embedding of its element, not trained
through it, as z3 of every layer ("frozen atom embeddings"), so that a molecule without a conformer
has 2D states all the same.

Nothing but distances of positions enters, so the result is invariant under rotation, translation
and reflection: enantiomers get the same 3D states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medrec.molecules.encoders_2d import CategoryEmbedding, segment_mean
from medrec.molecules.geometries import Geometries
from medrec.molecules.structure import ATOM_CARDINALITIES, BOND_CARDINALITIES, MoleculeGraphs
from quantum.base import InputError

CUTOFF_ANGSTROM = 10.0
N_GAUSSIANS = 51
N_FILTERS = 128
RESOLUTION_ANGSTROM = 1e-3
"""Distances are rounded to this: thousands of pairs then share the few filters of one distance."""


@dataclass(frozen=True)
class PairedMolecules:
    """Molecules as 2D graphs whose atoms have positions where there is a conformer.

    Attributes
    ----------
    graphs : MoleculeGraphs
        K molecules with N atoms.
    placed : BoolTensor (N,)
        Atoms with a position.
    pair_index : LongTensor (2, P)
        Source and target of all ordered pairs of placed atoms of a molecule within the cut-off.
    distance : FloatTensor (Q,)
        Distinct distances in Angstrom.
    distance_of_pair : LongTensor (P,)
        Which of them a pair has.
    """

    graphs: MoleculeGraphs
    placed: Tensor
    pair_index: Tensor
    distance: Tensor
    distance_of_pair: Tensor

    def to(self, device: torch.device | str) -> PairedMolecules:
        """Copy to a device."""
        return PairedMolecules(
            self.graphs.to(device),
            self.placed.to(device),
            self.pair_index.to(device),
            self.distance.to(device),
            self.distance_of_pair.to(device),
        )


def pair_molecules(
    graphs: MoleculeGraphs,
    geometries: Geometries | None,
    with_geometry: Tensor,
    cutoff_angstrom: float = CUTOFF_ANGSTROM,
) -> PairedMolecules:
    """Put positions on the atoms of 2D graphs, and find near pairs.

    Parameters
    ----------
    geometries : Geometries or None
        Heavy atoms of the molecules of ``with_geometry``, in the order of the graphs' atoms.
    with_geometry : BoolTensor (K,)

    Raises
    ------
    InputError
        If the two do not have the same number of atoms in every molecule.
    """
    device = graphs.x.device
    placed = with_geometry[graphs.batch]
    if geometries is None:
        empty = torch.zeros(0, dtype=torch.long, device=device)
        none = torch.zeros(len(graphs.x), dtype=torch.bool, device=device)
        return PairedMolecules(graphs, none, empty.reshape(2, 0), empty.float(), empty)
    number = torch.nonzero(with_geometry).flatten()
    if not torch.equal(graphs.batch[placed], number[geometries.batch]):
        raise InputError(
            f"conformers have {len(geometries.element)} heavy atoms, the graphs of the same "
            f"molecules {int(placed.sum())}, or split otherwise over molecules; expected the same"
        )
    nodes = torch.nonzero(placed).flatten()
    sources, targets, lengths = [], [], []
    for rows in torch.split(torch.arange(len(nodes), device=device), _sizes(geometries)):
        gap = torch.cdist(
            geometries.position[rows].double(),
            geometries.position[rows].double(),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        gap.fill_diagonal_(math.inf)
        target, source = torch.nonzero(gap < cutoff_angstrom, as_tuple=True)
        sources.append(nodes[rows[source]])
        targets.append(nodes[rows[target]])
        lengths.append(gap[target, source])
    steps = (torch.cat(lengths) / RESOLUTION_ANGSTROM).round()
    distinct, of_pair = torch.unique(steps, return_inverse=True)
    index = torch.stack([torch.cat(sources), torch.cat(targets)])
    return PairedMolecules(graphs, placed, index, (distinct * RESOLUTION_ANGSTROM).float(), of_pair)


def _sizes(geometries: Geometries) -> list[int]:
    return torch.bincount(geometries.batch, minlength=geometries.n_graphs).tolist()


def pooled(pairs: PairedMolecules, z2: Tensor, z3: Tensor) -> Tensor:
    """Means of both states over the atoms of each molecule, joined, (K, 2d)."""
    return segment_mean(torch.cat([z2, z3], dim=1), pairs.graphs.batch, pairs.graphs.n_graphs)


class ShiftedSoftplus(nn.Module):
    """ln(1 + e^x) - ln 2, which is 0 at 0 (Schuett et al., 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply element by element."""
        return F.softplus(x) - math.log(2.0)


def two_layers(n_in: int, n_hidden: int, n_out: int, activation: nn.Module) -> nn.Sequential:
    """Linear, activation, Linear."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), activation, nn.Linear(n_hidden, n_out))


class GINEBlock(nn.Module):
    """Messages along bonds; no batch normalisation."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.bonds = CategoryEmbedding(BOND_CARDINALITIES, d)
        self.eps = nn.Parameter(torch.zeros(1))
        self.mlp = two_layers(d, d, d, nn.ReLU())

    def forward(self, z: Tensor, graphs: MoleculeGraphs) -> Tensor:
        """New states of all atoms (N, d)."""
        source, target = graphs.edge_index
        messages = torch.relu(z.index_select(0, source) + self.bonds(graphs.edge_attr))
        gathered = torch.zeros_like(z).index_add(0, target, messages)
        result: Tensor = self.mlp((1.0 + self.eps) * z + gathered)
        return result


class SchNetBlock(nn.Module):
    """Continuous-filter convolution over near pairs, and two dense layers per atom."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.enter = nn.Linear(d, N_FILTERS, bias=False)
        self.filters = two_layers(N_GAUSSIANS, N_FILTERS, N_FILTERS, ShiftedSoftplus())
        self.leave = two_layers(N_FILTERS, d, d, ShiftedSoftplus())

    def forward(self, z: Tensor, gaussians: Tensor, pairs: PairedMolecules) -> Tensor:
        """Messages to all atoms (N, d); those of atoms without a position are unused."""
        source, target = pairs.pair_index
        x = self.enter(z)
        filters = self.filters(gaussians).index_select(0, pairs.distance_of_pair)
        messages = x.index_select(0, source) * filters
        gathered = torch.zeros_like(x).index_add(0, target, messages)
        result: Tensor = self.leave(gathered)
        return result


class InteractLayer(nn.Module):
    """Both towers' block, and what they tell each other."""

    def __init__(self, d: int, dropout: float) -> None:
        super().__init__()
        self.flat, self.spatial = GINEBlock(d), SchNetBlock(d)
        self.mix = two_layers(2 * d, 2 * d, 2 * d, nn.SiLU())
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, z2: Tensor, z3: Tensor, gaussians: Tensor, pairs: PairedMolecules
    ) -> tuple[Tensor, Tensor]:
        """New states; an atom without a position keeps its z3."""
        placed = pairs.placed.unsqueeze(1)
        h2 = self.flat(z2, pairs.graphs)
        h3 = torch.where(placed, self.spatial(z3, gaussians, pairs), z3)
        told2, told3 = self.dropout(self.mix(torch.cat([h2, h3], dim=1))).chunk(2, dim=1)
        return z2 + told2, torch.where(placed, z3 + told3, z3)


class InteractEncoder(nn.Module):
    """States of all atoms from both towers.

    Parameters
    ----------
    d_model : int
        d, of either tower; 300 in the paper.
    n_layers : int
        L; 8 in the paper.
    dropout : float
        Of what the towers tell each other; 0 in the paper's pre-training.
    """

    centres: Tensor

    def __init__(self, d_model: int, n_layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.d_model, self.n_layers = d_model, n_layers
        self.atoms = CategoryEmbedding(ATOM_CARDINALITIES, d_model)
        # by atomic number as in the 2D graph, so that an atom without a position has one too
        self.elements = CategoryEmbedding(ATOM_CARDINALITIES[:1], d_model)
        self.register_buffer(
            "centres", torch.linspace(0.0, CUTOFF_ANGSTROM, N_GAUSSIANS), persistent=False
        )
        self.layers = nn.ModuleList(InteractLayer(d_model, dropout) for _ in range(n_layers))
        self.apply(glorot)

    def forward(self, pairs: PairedMolecules) -> tuple[Tensor, Tensor]:
        """Encode atoms.

        Returns
        -------
        z2, z3 : Tensor (N, d)
            z3 of an atom without a position is the embedding of its element.
        """
        width = CUTOFF_ANGSTROM / (N_GAUSSIANS - 1)
        gaussians = torch.exp(-0.5 * ((pairs.distance.unsqueeze(1) - self.centres) / width) ** 2)
        z2 = self.atoms(pairs.graphs.x)
        own = self.elements(pairs.graphs.x[:, :1])
        z3 = torch.where(pairs.placed.unsqueeze(1), own, own.detach())
        for layer in self.layers:
            z2, z3 = layer(z2, z3, gaussians, pairs)
        return z2, z3

    def export(self) -> dict[str, Any]:
        """What a pre-training run stores for `load_pretrained`: key ``interact``."""
        weights = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        return {"interact": {"sizes": self._sizes(), "weights": weights}}

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint made with `export`.

        Raises
        ------
        InputError
            If it holds no such encoder, or one of another size.
        """
        if "interact" not in state:
            raise InputError(
                "pre-training run holds no MolInteract encoder ('interact'), or one with another "
                "interactor than mlp or another jk than last"
            )
        sizes = state["interact"]["sizes"]
        if sizes != self._sizes():
            raise InputError(
                f"pre-trained MolInteract encoder has sizes {sizes}, the model has {self._sizes()}"
            )
        self.load_state_dict(state["interact"]["weights"])

    def _sizes(self) -> dict[str, int]:
        return {"d_model": self.d_model, "layers": self.n_layers}


def glorot(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases, as published; embeddings have theirs already."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
