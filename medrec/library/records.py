"""What a reader yields for one molecule, and what a reader is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from rdkit import Chem


class Target(NamedTuple):
    """A column to predict."""

    name: str
    unit: str
    kind: Literal["regression", "classification"]


class Record(NamedTuple):
    """One entry of a source, readable or not.

    Attributes
    ----------
    identifier : str
        How the source calls it, or its number.
    smiles : str
        As in the source.
    mol : Chem.Mol or None
        With hydrogens only where the source has them as atoms; None if RDKit rejects it.
    element : uint8 array (n,) or None
        Atomic numbers of the 3D view, in the order of ``position``.
    position : float32 array (n, 3) or None
        In Angstrom; None without 3D coordinates.
    targets : float64 array (T,)
        NaN where missing.
    reason : str
        Why it cannot be used, or empty.
    """

    identifier: str
    smiles: str
    mol: Chem.Mol | None
    element: npt.NDArray[np.uint8] | None
    position: npt.NDArray[np.float32] | None
    targets: npt.NDArray[np.float64]
    reason: str = ""


class MoleculeReader(ABC):
    """Random access to the records of a source, so that several processes can share the work."""

    targets: tuple[Target, ...]

    @abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Record]:
        """Yield records ``start`` to ``stop``; an unreadable one comes with its reason."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the source's bytes."""
