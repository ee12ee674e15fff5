"""Batches of molecules with equal or similar numbers of atoms, as padded tensors.

Letters: B molecules, n atoms of the largest one, E directed bonds, A angles, R torsions, T targets.
Atoms have a flat number b * n + i, so that a (B, n, d) state reshaped to (B * n, d) can be indexed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class MoleculeBatch:
    """Some molecules.

    Attributes
    ----------
    x : LongTensor (B, n, 9)
        Categories of the atoms; 0 where padded.
    mask : BoolTensor (B, n)
        True for real atoms.
    position : FloatTensor (B, n, 3)
        Angstrom; 0 where padded or unknown.
    placed : BoolTensor (B,)
        Molecules with positions.
    edge_index : LongTensor (2, E)
        Flat source and target of every bond; columns 2 e and 2 e + 1 are the two directions of e.
    edge_attr : LongTensor (E, 3)
        Type, stereo, conjugated.
    angle : LongTensor (A, 3)
        Flat anchor, source, destination.
    torsion : LongTensor (R, 4)
        Flat atoms.
    spd : ByteTensor (B, n, n)
        Bonds on the shortest path; `UNREACHABLE` between parts of a molecule and where padded.
    centrality : FloatTensor (B, n, 2)
        Eigenvector, betweenness.
    targets : FloatTensor (B, T)
        float64, in units of the library; NaN is missing.
    rows : LongTensor (B,)
        Numbers of the molecules in their library.
    """

    x: Tensor
    mask: Tensor
    position: Tensor
    placed: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    angle: Tensor
    torsion: Tensor
    spd: Tensor
    centrality: Tensor
    targets: Tensor
    rows: Tensor

    @property
    def n_molecules(self) -> int:
        """B."""
        return len(self.x)

    @property
    def n_slots(self) -> int:
        """n, atoms of the largest molecule."""
        return int(self.x.shape[1])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MoleculeBatch:
        """Copy to a device."""
        return MoleculeBatch(
            *(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self))
        )

    def pin_memory(self) -> MoleculeBatch:
        """Copy to page-locked memory, from which a GPU reads while it computes."""
        return MoleculeBatch(*(getattr(self, f.name).pin_memory() for f in fields(self)))
