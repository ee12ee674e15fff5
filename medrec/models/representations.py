"""Representations of molecules that plug into any recommender.

A recommender asks for vectors of K molecules and of S fragments, and for who owns what: the
projection (D, K) from molecules to drug classes and the mask (D, S) of fragments. With the kind
``none`` each class is its own molecule and its own fragment, with one learned vector each, so that
nothing of chemistry is left. With ``shuffle_seed`` each class gets the molecules and fragments of
another one: the null test of what molecules add.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medrec.config import RepresentationConfig
from medrec.molecules.encoders_2d import GINEncoder
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
        projection, mask = tables.projection, tables.fragment_mask
        if config.kind == "none":
            projection = torch.eye(len(projection), device=projection.device)
            mask = projection > 0
        elif config.shuffle_seed is not None:
            order = torch.randperm(
                len(projection), generator=torch.Generator().manual_seed(config.shuffle_seed)
            ).to(projection.device)
            projection, mask = projection[order], mask[order]
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

        Raises
        ------
        InputError
            If this representation has no such network, or one of another size.
        """
        inputs = [
            part
            for encoder in (self.molecule_encoder, self.fragment_encoder)
            for part in encoder.modules()
            if isinstance(part, GraphInput)
        ]
        if not inputs or self.config.kind not in ("gin", "gin_elf"):
            raise InputError(
                f"representation '{self.config.kind}' has no 2D encoder to start from a run"
            )
        for part in inputs:
            part.load_pretrained(state)


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
        elf = FeatureInput(tables.elf.shape[1], d_model)
        return elf if config.kind == "elf" else SumInput(GraphInput(config, d_model), elf)
    raise InputError(f"representation '{config.kind}' is not available")


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
        """Take pre-trained weights and buffers; fragments take the molecules' if there are none."""
        ours = {"d_model": self.gin.d_model, "gin_layers": self.gin.n_layers}
        if state["encoder"] != ours:
            raise InputError(
                f"pre-trained encoder has sizes {state['encoder']}, the model has {ours}"
            )
        own = "gin_fragment" if self.of_fragments else "gin_molecule"
        self.gin.load_state_dict(state.get(own, state["gin_molecule"]))


class FeatureInput(nn.Module):
    """Projection of standardised features, and one learned vector for molecules without them."""

    def __init__(self, n_features: int, d_model: int) -> None:
        super().__init__()
        self.project = nn.Linear(n_features, d_model)
        self.missing = nn.Parameter(torch.zeros(d_model))

    def forward(self, tables: MoleculeTables) -> torch.Tensor:
        """Vectors of K molecules (K, d)."""
        vectors = self.project(tables.elf)
        return torch.where(tables.elf_mask.unsqueeze(1), vectors, self.missing)


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


class SumInput(nn.Module):
    """Sum of two encoders."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, tables: MoleculeTables) -> torch.Tensor:
        """Vectors of K molecules (K, d)."""
        vectors: torch.Tensor = self.first(tables) + self.second(tables)
        return vectors
