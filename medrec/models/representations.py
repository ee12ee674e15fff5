"""Representations of molecules that plug into any recommender.

A recommender asks for vectors of K molecules and of S fragments, and for who owns what: the
projection (D, K) from molecules to drug classes and the mask (D, S) of fragments. With the kind
``none`` each class is its own molecule and its own fragment, with one learned vector each, so that
nothing of chemistry is left. With ``shuffle_seed`` each class gets the molecules and fragments of
another one: the null test of what molecules add. Fragments are encoded by a 2D graph network or a
learned table, whatever the kind: the kind is about whole molecules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medrec.config import RepresentationConfig
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.encoders_interact import InteractEncoder, pair_molecules, pooled
from medrec.molecules.structure import FINGERPRINT_BITS, MoleculeTables
from quantum.base import InputError


class Representation(nn.Module):
    """Vectors of molecules and fragments, and their owners.

    Parameters
    ----------
    config : RepresentationConfig
    tables : MoleculeTables
        Molecules of the drug classes.
    d_model : int
        Size of every vector.

    Raises
    ------
    InputError
        If the kind needs features or conformers that the tables do not hold.
    """

    projection: torch.Tensor
    fragment_mask: torch.Tensor

    def __init__(self, config: RepresentationConfig, tables: MoleculeTables, d_model: int) -> None:
        super().__init__()
        self.config, self.tables, self.d_model = config, tables, d_model
        projection, mask = owners(config, tables)
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("fragment_mask", mask, persistent=False)
        self.molecule_encoder = _molecule_encoder(config, tables, d_model, len(projection))
        if config.kind == "none" or config.fragments == "table":
            self.fragment_encoder: nn.Module = LearnedTable(mask.shape[1], d_model)
        else:
            self.fragment_encoder = GraphInput(config, d_model, fragments=True)

    def molecules(self) -> torch.Tensor:
        """Vectors of the molecules (K, d)."""
        vectors: torch.Tensor = self.molecule_encoder(self.tables)
        return vectors

    def fragments(self) -> torch.Tensor:
        """Vectors of the fragments (S, d)."""
        vectors: torch.Tensor = self.fragment_encoder(self.tables)
        return vectors

    def drugs(self) -> torch.Tensor:
        """Mean vector of each drug class (D, d)."""
        return self.projection @ self.molecules()

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Start graph networks from a pre-training run, batch-norm buffers included.

        ``molinteract`` starts its towers, from the key ``interact``; every other kind its 2D
        networks, from ``gin_molecule``.

        Raises
        ------
        InputError
            If this representation has no such network, or the run none that fits.
        """
        kind = InteractInput if self.config.kind == "molinteract" else GraphInput
        inputs: list[GraphInput | InteractInput] = [
            part
            for encoder in (self.molecule_encoder, self.fragment_encoder)
            for part in encoder.modules()
            if isinstance(part, kind)
        ]
        if not inputs or self.config.kind not in ("gin", "gin_elf", "molinteract"):
            raise InputError(
                f"representation '{self.config.kind}' has no molecule encoder to start from a run"
            )
        for part in inputs:
            part.load_pretrained(state)


def owners(config: RepresentationConfig, tables: MoleculeTables) -> tuple[Tensor, Tensor]:
    """Who owns which molecule and which fragment.

    Returns
    -------
    projection : FloatTensor (D, K)
        Mean over the molecules of a class; the identity for the kind ``none``.
    mask : BoolTensor (D, S)
        Fragments of a class; the identity for the kind ``none``.

    Raises
    ------
    InputError
        If a single class is to be shuffled.
    """
    projection, mask = tables.projection, tables.fragment_mask
    if config.kind == "none":
        projection = torch.eye(len(projection), device=projection.device)
        return projection, projection > 0
    if config.shuffle_seed is not None:
        order = derangement(len(projection), config.shuffle_seed).to(projection.device)
        return projection[order], mask[order]
    return projection, mask


def derangement(n: int, seed: int) -> Tensor:
    """Permutation (n,) that leaves nothing in its place: one cycle through everything, at random.

    A plain random permutation keeps one element in its place on average, and such a class would
    keep its own molecules in the null test.

    Raises
    ------
    InputError
        If ``n`` is below 2.
    """
    if n < 2:
        raise InputError(f"{n} drug class cannot be shuffled; expected 2 or more")
    cycle = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order


def _molecule_encoder(
    config: RepresentationConfig, tables: MoleculeTables, d_model: int, n_drugs: int
) -> nn.Module:
    if config.kind == "none":
        return LearnedTable(n_drugs, d_model)
    if config.kind == "gin":
        return GraphInput(config, d_model)
    if config.kind == "fingerprint":
        return FingerprintInput(d_model)
    if config.kind in ("elf", "gin_elf"):
        if tables.elf.shape[1] == 0:
            raise InputError(
                f"representation '{config.kind}' reads a feature table, and none was given; "
                "expected --features NAME"
            )
        hidden = hidden_maps(tables.elf_mask, config.hide_share)
        elf = FeatureInput(tables.elf.shape[1], d_model, hidden)
        return elf if config.kind == "elf" else SumInput(GraphInput(config, d_model), elf)
    return InteractInput(config, tables, d_model)


class LearnedTable(nn.Module):
    """One free vector per row."""

    def __init__(self, n_rows: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(n_rows, d_model).uniform_(-0.1, 0.1))

    def forward(self, tables: MoleculeTables) -> torch.Tensor:
        """All rows."""
        return self.table


class GraphInput(nn.Module):
    """2D graph isomorphism network over molecules or fragments."""

    def __init__(
        self, config: RepresentationConfig, d_model: int, *, fragments: bool = False
    ) -> None:
        super().__init__()
        self.of_fragments = fragments
        self.gin = GINEncoder(d_model, config.layers, config.dropout)

    def forward(self, tables: MoleculeTables) -> torch.Tensor:
        """Encode (n, d)."""
        vectors: torch.Tensor = self.gin(
            tables.fragments if self.of_fragments else tables.molecules
        )
        return vectors

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Take pre-trained weights and buffers; fragments take the molecules' if there are none.

        Raises
        ------
        InputError
            If the run holds no 2D graph network, or one of another size.
        """
        if "gin_molecule" not in state:
            raise InputError("pre-training run holds no 2D graph network ('gin_molecule')")
        ours = {"d_model": self.gin.d_model, "gin_layers": self.gin.n_layers}
        if state["encoder"] != ours:
            raise InputError(
                f"pre-trained encoder has sizes {state['encoder']}, the model has {ours}"
            )
        own = "gin_fragment" if self.of_fragments else "gin_molecule"
        self.gin.load_state_dict(state.get(own, state["gin_molecule"]))


class FeatureInput(nn.Module):
    """Projection of standardised features, and one learned vector for molecules without them.

    A row belongs to a molecule and not to a place: the table was aligned by species, and a molecule
    without features keeps its row, so that nothing moves up.

    Parameters
    ----------
    n_features : int
    hidden : BoolTensor (K,), optional
        Molecules whose features are not to be used, see `hidden_maps`; saved with the weights.
    """

    hidden: torch.Tensor | None

    def __init__(self, n_features: int, d_model: int, hidden: torch.Tensor | None = None) -> None:
        super().__init__()
        self.project = nn.Linear(n_features, d_model)
        # not zeros: a ReLU behind them would pass no gradient back
        self.missing = nn.Parameter(torch.empty(d_model).uniform_(-0.1, 0.1))
        self.free: nn.Parameter | None = None
        self.register_buffer("hidden", hidden)

    def release(self, tables: MoleculeTables) -> None:
        """Make the features free parameters (K, F) that start at the measured values."""
        self.free = nn.Parameter(tables.elf.clone())

    def present(self, tables: MoleculeTables) -> torch.Tensor:
        """Molecules whose features are used (K,)."""
        return tables.elf_mask if self.hidden is None else tables.elf_mask & ~self.hidden

    def forward(self, tables: MoleculeTables) -> torch.Tensor:
        """Vectors of K molecules (K, d)."""
        vectors = self.project(tables.elf if self.free is None else self.free)
        return torch.where(self.present(tables).unsqueeze(1), vectors, self.missing)


def hidden_maps(mask: torch.Tensor, share: float) -> torch.Tensor | None:
    """Draw molecules whose features are to be hidden.

    The draw takes torch's seed, which is the run's, and no number from torch's own sequence: the
    same seed gives the same initial weights at every share, and a larger share hides what a smaller
    one hides and more.

    Parameters
    ----------
    mask : BoolTensor (K,)
        Molecules with features.
    share : float
        Of these, to hide; rounded to whole molecules.

    Returns
    -------
    BoolTensor (K,) or None
        None where nothing is to be hidden.
    """
    if share == 0.0:
        return None
    measured = torch.nonzero(mask.cpu()).flatten()
    generator = torch.Generator().manual_seed(torch.initial_seed())
    order = measured[torch.randperm(len(measured), generator=generator)]
    hidden = torch.zeros(len(mask), dtype=torch.bool)
    hidden[order[: round(share * len(measured))]] = True
    return hidden.to(mask.device)


class FingerprintInput(nn.Module):
    """Two dense layers on ECFP4 bits."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FINGERPRINT_BITS, d_model), nn.ReLU(), nn.Linear(d_model, d_model)
        )

    def forward(self, tables: MoleculeTables) -> torch.Tensor:
        """Vectors of K molecules (K, d)."""
        vectors: torch.Tensor = self.layers(tables.fingerprints)
        return vectors


class InteractInput(nn.Module):
    """2D and 3D towers that interact; the means of both, joined, through a dense layer.

    Molecules without a conformer use the 2D tower alone.

    Raises
    ------
    InputError
        If no molecule has a conformer.
    """

    def __init__(self, config: RepresentationConfig, tables: MoleculeTables, d_model: int) -> None:
        super().__init__()
        if tables.geometries is None:
            raise InputError(
                "representation 'molinteract' reads conformers, and no molecule has one; expected "
                "--features NAME with conformers"
            )
        self.towers = InteractEncoder(d_model, config.layers, config.dropout)
        self.read_out = nn.Linear(2 * d_model, d_model)
        # pairs within the cut-off are found once and not in every step
        self.pairs = pair_molecules(tables.molecules, tables.geometries, tables.with_geometry)

    def forward(self, tables: MoleculeTables) -> torch.Tensor:
        """Vectors of K molecules (K, d)."""
        vectors: torch.Tensor = self.read_out(pooled(self.pairs, *self.towers(self.pairs)))
        return vectors

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Take pre-trained towers; the read-out starts anew."""
        self.towers.load_pretrained(state)


class SumInput(nn.Module):
    """Sum of two encoders."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, tables: MoleculeTables) -> torch.Tensor:
        """Vectors of K molecules (K, d)."""
        vectors: torch.Tensor = self.first(tables) + self.second(tables)
        return vectors
