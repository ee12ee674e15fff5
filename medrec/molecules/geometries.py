"""Conformers as tensors: heavy atoms in space and the pairs within a cut-off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

_ELEMENTS = (1, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 20, 26, 30, 33, 34, 35, 53)
N_ELEMENT_CLASSES = len(_ELEMENTS) + 1


@dataclass(frozen=True)
class Geometries:
    """Conformers of n molecules as one disconnected graph; edges are computed once.

    Attributes
    ----------
    element : LongTensor (A,)
        Element class of each heavy atom.
    position : FloatTensor (A, 3)
        Angstrom, centred on the molecule.
    edge_index : LongTensor (2, E)
        Source and target of atom pairs within the cut-off.
    distance : FloatTensor (E,), direction : FloatTensor (E, 3)
        Length and unit vector of each edge.
    batch : LongTensor (A,)
        Molecule of each atom.
    """

    element: torch.Tensor
    position: torch.Tensor
    edge_index: torch.Tensor
    distance: torch.Tensor
    direction: torch.Tensor
    batch: torch.Tensor
    n_graphs: int

    def to(self, device: torch.device | str) -> Geometries:
        """Copy to a device."""
        return Geometries(
            self.element.to(device),
            self.position.to(device),
            self.edge_index.to(device),
            self.distance.to(device),
            self.direction.to(device),
            self.batch.to(device),
            self.n_graphs,
        )


def build_geometries(
    conformers: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], cutoff_angstrom: float
) -> Geometries:
    """Heavy atoms and their neighbours; a molecule of hydrogens only keeps them.

    Parameters
    ----------
    conformers : sequence of (atomic numbers (A,), coordinates (A, 3) in Angstrom)
    """
    elements, positions, pairs, batch = [], [], [], []
    offset = 0
    for number, (z, xyz) in enumerate(conformers):
        z, xyz = np.asarray(z), np.asarray(xyz, dtype=np.float64)
        heavy = z > 1 if (z > 1).any() else np.ones(len(z), bool)
        z, xyz = z[heavy], xyz[heavy]
        xyz = xyz - xyz.mean(axis=0)
        gap = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
        source, target = np.nonzero((gap < cutoff_angstrom) & ~np.eye(len(z), dtype=bool))
        elements += [_ELEMENTS.index(item) if item in _ELEMENTS else len(_ELEMENTS) for item in z]
        positions.append(xyz)
        pairs.append(np.stack([source, target]) + offset)
        batch += [number] * len(z)
        offset += len(z)
    position = torch.tensor(np.concatenate(positions), dtype=torch.float32)
    edge_index = torch.tensor(np.concatenate(pairs, axis=1), dtype=torch.long)
    difference = position[edge_index[0]] - position[edge_index[1]]
    distance = difference.norm(dim=1)
    return Geometries(
        torch.tensor(elements),
        position,
        edge_index,
        distance,
        difference / distance.clamp(min=1e-6).unsqueeze(1),
        torch.tensor(batch),
        len(conformers),
    )
