"""What every network over molecules offers to tasks, heads and exports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from medrec.config_molecules import Modality, MoleculeEncoderConfig
from medrec.library.batches import MoleculeBatch


class AtomStates(NamedTuple):
    """States of atoms from the 2D and the 3D view.

    Attributes
    ----------
    flat, spatial : Tensor (B, n, d) or None
        None if the encoder has no such view, or it is off. Arbitrary where padded.
    """

    flat: Tensor | None
    spatial: Tensor | None


class MoleculeEncoder(nn.Module, ABC):
    """A network from a batch to states of atoms.

    Attributes
    ----------
    config : MoleculeEncoderConfig
    modality : str
        ``both``, ``2d`` or ``3d``: which views are read.
    d_pooled : int
        Width of `pooled`: d for one view, 2 d for two.
    """

    config: MoleculeEncoderConfig
    modality: Modality
    d_pooled: int

    @abstractmethod
    def forward(self, batch: MoleculeBatch) -> AtomStates:
        """Encode atoms."""

    @abstractmethod
    def pooled(self, states: AtomStates, batch: MoleculeBatch) -> Tensor:
        """Mean over the real atoms of a molecule, views joined, (B, d_pooled)."""

    @abstractmethod
    def export(self) -> dict[str, Any]:
        """Sizes and weights: ``{config.kind: {"sizes": ..., "weights": ...}}``.

        For ``molinteract`` with the MLP interactor and its last layer it is under ``interact`` what
        `medrec.molecules.encoders_interact.InteractEncoder.load_pretrained` reads.
        """

    @abstractmethod
    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Take the weights of an export.

        Raises
        ------
        InputError
            If it holds no encoder of this kind and size.
        """
