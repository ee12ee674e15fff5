"""MolInteract over padded batches, with its interactors, jumping knowledge and single views.

The network is that of `medrec.molecules.encoders_interact`, with the same names of weights. With
one view only, the other tower is off: what would be its states is the frozen initial embedding of
the atom in every layer, neither changed nor trained (fine-tuning on one modality, sec. 4.1 of the
paper). The interactors besides the MLP are those of its ablation (Table 2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medrec.config_molecules import Modality, MoleculeEncoderConfig
from medrec.library.batches import MoleculeBatch
from medrec.molecules.encoders_2d import CategoryEmbedding
from medrec.molecules.encoders_interact import GINEBlock, SchNetBlock, glorot
from medrec.molecules.structure import ATOM_CARDINALITIES
from medrec.pretrain.dense import (
    BondSums,
    NearPairs,
    PaddedEncoder,
    bond_sums,
    embed,
    gine_hidden,
    jump,
    near_pairs,
    placed_mask,
    run_gine,
    run_schnet,
    schnet_hidden,
    where_placed,
)
from medrec.pretrain.encoder import AtomStates

Pair = tuple[Tensor, Tensor]


class MLPInteractor(nn.Sequential):
    """Linear, swish, Linear of both states joined; 2d wide."""

    def __init__(self, d: int) -> None:
        super().__init__(nn.Linear(2 * d, 2 * d), nn.SiLU(), nn.Linear(2 * d, 2 * d))

    def forward(self, h2: Tensor, h3: Tensor, modality: Modality) -> Pair:  # type: ignore[override]
        """What the 2D and the 3D states are told; anything for a view that is off."""
        hidden = self[1](self[0](torch.cat([h2, h3], dim=-1)))
        if modality == "both":
            told2, told3 = self[2](hidden).chunk(2, dim=-1)
            return told2, told3
        last: Any = self[2]
        half = 0 if modality == "2d" else 1
        told = F.linear(hidden, last.weight.chunk(2)[half], last.bias.chunk(2)[half])
        return told, told


class MeanInteractor(nn.Module):
    """Both states are told their mean."""

    def forward(self, h2: Tensor, h3: Tensor, modality: Modality) -> Pair:
        """As in `MLPInteractor`."""
        told = (h2 + h3) / 2
        return told, told


class AttentionInteractor(nn.Module):
    """Single-head self-attention over the two states of an atom."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.project, self.leave = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, h2: Tensor, h3: Tensor, modality: Modality) -> Pair:
        """As in `MLPInteractor`."""
        query, key, value = self.project(torch.stack([h2, h3], dim=-2)).chunk(3, dim=-1)
        told = self.leave(F.scaled_dot_product_attention(query, key, value))
        return told[..., 0, :], told[..., 1, :]


def make_interactor(kind: str, d: int) -> nn.Module:
    """One of ``mlp``, ``mean`` and ``attention``."""
    if kind == "mean":
        return MeanInteractor()
    return MLPInteractor(d) if kind == "mlp" else AttentionInteractor(d)


# --------------------------------------------------------------------------- layers


class Views(NamedTuple):
    """What all layers read of a batch.

    Attributes
    ----------
    bonds : BondSums or None
        None if the 2D view is off.
    pairs : NearPairs or None
        None if the 3D view is off.
    placed : BoolTensor (B, 1, 1) or None
        See `placed_mask`.
    """

    bonds: BondSums | None
    pairs: NearPairs | None
    placed: Tensor | None


class InteractBlock(nn.Module):
    """One layer, its weights named as in `medrec.molecules.encoders_interact.InteractLayer`."""

    def __init__(self, d: int, interactor: str, modality: Modality, dropout: float) -> None:
        super().__init__()
        self.flat, self.spatial = GINEBlock(d), SchNetBlock(d)
        self.mix: Any = make_interactor(interactor, d)
        self.d, self.modality = d, modality
        self.dropout = nn.Dropout(dropout)

    def forward(self, z2: Tensor, z3: Tensor, views: Views) -> Pair:
        """New states; those of a view that is off stay what they are."""
        if self._joins(z2, views):
            told2, told3 = self._joined(z2, z3, views)
            return z2 + self.dropout(told2), z3 + self.dropout(told3)
        h2, h3 = z2, z3
        if views.bonds is not None:
            h2 = run_gine(self.flat, z2, views.bonds)
        if views.pairs is not None:
            h3 = where_placed(views.placed, run_schnet(self.spatial, z3, views.pairs), z3)
        told2, told3 = self.mix(h2, h3, self.modality)
        if views.bonds is not None:
            z2 = z2 + self.dropout(told2)
        if views.pairs is not None:
            z3 = where_placed(views.placed, z3 + self.dropout(told3), z3)
        return z2, z3

    def _joins(self, z: Tensor, views: Views) -> bool:
        """Whether `_joined` applies, and saves more for the atoms than it costs for the weights."""
        everywhere = self.modality == "both" and views.placed is None
        return everywhere and isinstance(self.mix, MLPInteractor) and z[..., 0].numel() > 4 * self.d

    def _joined(self, z2: Tensor, z3: Tensor, views: Views) -> Pair:
        """What both views are told, with a sixth less work for the atoms.

        Nothing stands between the last linear layer of a tower and the first one of the
        interactor, so their weights are multiplied instead of the states of all atoms.
        """
        assert views.bonds is not None
        assert views.pairs is not None
        layers: Any = self.flat.mlp[2], self.spatial.leave[2], self.mix[0]
        last2, last3, first = layers
        from2, from3 = first.weight.chunk(2, dim=1)
        weight = torch.cat([from2 @ last2.weight, from3 @ last3.weight], dim=1)
        bias = first.bias + torch.mv(from2, last2.bias) + torch.mv(from3, last3.bias)
        hidden2 = gine_hidden(self.flat, z2, views.bonds)
        hidden3 = schnet_hidden(self.spatial, z3, views.pairs)
        joined = F.linear(torch.cat([hidden2, hidden3.to(hidden2.dtype)], dim=-1), weight, bias)
        told2, told3 = self.mix[2](self.mix[1](joined)).chunk(2, dim=-1)
        return told2, told3


class TowerBlock(nn.Module):
    """One layer of the towers that are on, without exchange."""

    def __init__(self, d: int, modality: Modality, dropout: float) -> None:
        super().__init__()
        if modality != "3d":
            self.flat = GINEBlock(d)
        if modality != "2d":
            self.spatial = SchNetBlock(d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z2: Tensor, z3: Tensor, views: Views) -> Pair:
        """New states; those of a view that is off stay what they are."""
        if views.bonds is not None:
            z2 = z2 + self.dropout(run_gine(self.flat, z2, views.bonds))
        if views.pairs is not None:
            new = z3 + self.dropout(run_schnet(self.spatial, z3, views.pairs))
            z3 = where_placed(views.placed, new, z3)
        return z2, z3


# --------------------------------------------------------------------------- encoders


class TwoViewEncoder(PaddedEncoder):
    """Layers that take both views' states, from embeddings of the atoms.

    Attributes
    ----------
    atoms : CategoryEmbedding
        Initial 2D states, from all categories of an atom.
    elements : CategoryEmbedding
        Initial 3D states, from the atomic number. Without positions they are those of every layer,
        and are not trained through it.
    """

    atoms: CategoryEmbedding
    elements: CategoryEmbedding
    layers: nn.ModuleList

    def forward(self, batch: MoleculeBatch) -> AtomStates:
        """Encode atoms."""
        flat, spatial = self.modality != "3d", self.modality != "2d"
        placed = placed_mask(batch)
        z2, z3 = self._embed(batch)
        if spatial:
            z3 = where_placed(placed, z3, z3.detach())
        views = Views(
            bond_sums(batch) if flat else None, near_pairs(batch) if spatial else None, placed
        )
        read2, read3 = [], []
        for layer in self.layers:
            z2, z3 = layer(z2, z3, views)
            read2.append(z2)
            read3.append(z3)
        jk = self.config.jk
        return AtomStates(jump(read2, jk) if flat else None, jump(read3, jk) if spatial else None)

    def _embed(self, batch: MoleculeBatch) -> Pair:
        return embed(self.atoms, batch.x), embed(self.elements, batch.x[..., :1])


class MolInteractEncoder(TwoViewEncoder):
    """States from both towers, which exchange them in every layer.

    The result is that of `InteractEncoder` for ``interactor="mlp"`` and ``jk="last"``.

    Parameters
    ----------
    modality : str
        With ``2d`` or ``3d`` the weights of the other tower stay in the state, but are frozen.
    """

    def __init__(self, config: MoleculeEncoderConfig, modality: Modality) -> None:
        super().__init__(config, modality)
        d = config.d_model
        self.atoms = CategoryEmbedding(ATOM_CARDINALITIES, d)
        self.elements = CategoryEmbedding(ATOM_CARDINALITIES[:1], d)
        self.layers = nn.ModuleList(
            InteractBlock(d, config.interactor, modality, config.dropout)
            for _ in range(config.layers)
        )
        self.apply(glorot)
        self._freeze()

    def _freeze(self) -> None:
        """Unused weights do not ask for gradients, which distributed training would wait for."""
        if self.modality == "both":
            return
        off = "spatial" if self.modality == "2d" else "flat"
        (self.elements if self.modality == "2d" else self.atoms).requires_grad_(False)
        for layer in self.layers:
            layer.get_submodule(off).requires_grad_(False)

    @property
    def key(self) -> str:
        """Name in an export: ``interact`` only for what `InteractEncoder` computes the same."""
        return "molinteract" if self._extra else "interact"

    @property
    def sources(self) -> tuple[str, ...]:
        """Both names, so that a network of another interactor is refused by its sizes."""
        return ("interact", "molinteract")

    def sizes(self) -> dict[str, Any]:
        """What must agree with a pre-trained encoder."""
        return {**super().sizes(), **self._extra}

    @property
    def _extra(self) -> dict[str, str]:
        """Where it departs from `InteractEncoder`."""
        own = {"interactor": self.config.interactor, "jk": self.config.jk}
        usual = {"interactor": "mlp", "jk": "last"}
        return {name: value for name, value in own.items() if value != usual[name]}


class TowersEncoder(TwoViewEncoder):
    """GINE, SchNet, or both side by side: ``z = z + GINE(z)`` and ``z = z + SchNet(z)``.

    The towers and the names of their weights are MolInteract's. A single tower starts from either
    of a pre-trained pair.
    """

    def __init__(self, config: MoleculeEncoderConfig, modality: Modality) -> None:
        super().__init__(config, modality)
        d = config.d_model
        if modality != "3d":
            self.atoms = CategoryEmbedding(ATOM_CARDINALITIES, d)
        if modality != "2d":
            self.elements = CategoryEmbedding(ATOM_CARDINALITIES[:1], d)
        self.layers = nn.ModuleList(
            TowerBlock(d, modality, config.dropout) for _ in range(config.layers)
        )
        self.apply(glorot)

    @property
    def sources(self) -> tuple[str, ...]:
        """A single tower may come from a pair."""
        return (self.key,) if self.key == "two_towers" else (self.key, "two_towers")

    def _embed(self, batch: MoleculeBatch) -> Pair:
        off = torch.zeros((), device=batch.x.device)
        return (
            embed(self.atoms, batch.x) if self.modality != "3d" else off,
            embed(self.elements, batch.x[..., :1]) if self.modality != "2d" else off,
        )
