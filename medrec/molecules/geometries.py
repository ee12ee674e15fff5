"""Conformers as tensors: heavy atoms in space and the pairs within a cut-off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rdkit import Chem

# the elements of the usual 44 atom classes of molecular graph networks
_ELEMENTS = (
    *(6, 7, 8, 16, 9, 14, 15, 17, 35, 12, 11, 20, 26, 33, 13, 53, 5, 23, 19, 81, 70, 51, 50, 47),
    *(46, 27, 34, 22, 30, 1, 3, 32, 29, 79, 28, 48, 49, 25, 40, 24, 78, 80, 82),
)
N_ELEMENT_CLASSES = len(_ELEMENTS) + 1  # the last is any other element
_LARGEST = 6  # of the counts: degree, hydrogens, implicit valence
N_ATOM_SCALARS = N_ELEMENT_CLASSES + 3 * (_LARGEST + 1) + 1

_CLASS = np.full(128, len(_ELEMENTS), dtype=np.int64)
_CLASS[list(_ELEMENTS)] = range(len(_ELEMENTS))


class Conformer(NamedTuple):
    """One geometry.

    Attributes
    ----------
    atomic_numbers : array (A,)
    coords_angstrom : array (A, 3)
    categories : ndarray (A, 4) or None
        See `atom_categories`; None where the bonds are not known.
    """

    atomic_numbers: npt.ArrayLike
    coords_angstrom: npt.ArrayLike
    categories: npt.NDArray[np.int64] | None = None


def atom_categories(mol: Chem.Mol) -> npt.NDArray[np.int64]:
    """Degree without hydrogens, hydrogens, implicit valence, aromatic; for every atom (A, 4).

    Parameters
    ----------
    mol : rdkit.Chem.Mol
        Without hydrogen atoms, as parsed. A fragment's dummy atoms count as neighbours.
    """
    rows = [
        (a.GetDegree(), a.GetTotalNumHs(), a.GetNumImplicitHs(), a.GetIsAromatic())
        for a in mol.GetAtoms()
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


@dataclass(frozen=True)
class Geometries:
    """Conformers of n molecules as one disconnected graph; edges are computed once.

    All pairs within the cut-off are kept: molecules of drugs have few enough neighbours that the
    usual limit of 32 would only cut some at random.

    Attributes
    ----------
    element : LongTensor (A,)
        Element class of each heavy atom.
    position : FloatTensor (A, 3)
        Angstrom, centred on the molecule.
    edge_index : LongTensor (2, E)
        Source and target of atom pairs within the cut-off.
    distance : FloatTensor (E,), direction : FloatTensor (E, 3)
        Length and unit vector, from target to source, of each edge.
    batch : LongTensor (A,)
        Molecule of each atom.
    atoms : FloatTensor (A, 66)
        One-hot element class (44), degree, hydrogens and implicit valence (7 each, the last for 6
        and more), one bit for aromatic; all but the element are 0 where bonds are not known.
    """

    element: torch.Tensor
    position: torch.Tensor
    edge_index: torch.Tensor
    distance: torch.Tensor
    direction: torch.Tensor
    batch: torch.Tensor
    n_graphs: int
    atoms: torch.Tensor

    def to(self, device: torch.device | str) -> Geometries:
        """Copy to a device."""

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, torch.Tensor) else value

        return Geometries(*(move(getattr(self, f.name)) for f in fields(self)))


def build_geometries(
    conformers: Sequence[Conformer | tuple[npt.ArrayLike, npt.ArrayLike]], cutoff_angstrom: float
) -> Geometries:
    """Heavy atoms and their neighbours; a molecule of hydrogens only keeps them.

    Parameters
    ----------
    conformers : sequence of Conformer, or of (atomic numbers (A,), coordinates (A, 3) in Angstrom)
    """
    elements, positions, pairs, batch, scalars = [], [], [], [], []
    offset = 0
    for number, item in enumerate(conformers):
        conformer = Conformer(*item)
        z = np.asarray(conformer.atomic_numbers)
        xyz = np.asarray(conformer.coords_angstrom, dtype=np.float64)
        heavy = z > 1 if (z > 1).any() else np.ones(len(z), bool)
        z, xyz = z[heavy], xyz[heavy]
        xyz = xyz - xyz.mean(axis=0)
        gap = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
        target, source = np.nonzero((gap < cutoff_angstrom) & ~np.eye(len(z), dtype=bool))
        known = conformer.categories
        elements.append(_CLASS[z])
        scalars.append(_one_hot(_CLASS[z], None if known is None else known[heavy]))
        positions.append(xyz)
        pairs.append(np.stack([source, target]) + offset)
        batch += [number] * len(z)
        offset += len(z)
    position = torch.tensor(np.concatenate(positions), dtype=torch.float32)
    edge_index = torch.tensor(np.concatenate(pairs, axis=1), dtype=torch.long)
    difference = position[edge_index[0]] - position[edge_index[1]]
    distance = difference.norm(dim=1)
    return Geometries(
        torch.from_numpy(np.concatenate(elements)),
        position,
        edge_index,
        distance,
        difference / distance.clamp(min=1e-6).unsqueeze(1),
        torch.tensor(batch),
        len(conformers),
        torch.from_numpy(np.concatenate(scalars)),
    )


def _one_hot(
    element: npt.NDArray[np.int64], categories: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.float32]:
    """Node scalars (A, 66) of element classes (A,) and categories (A, 4)."""
    row = np.arange(len(element))
    out = np.zeros((len(element), N_ATOM_SCALARS), dtype=np.float32)
    out[row, element] = 1.0
    if categories is not None:
        for column in range(3):
            start = N_ELEMENT_CLASSES + column * (_LARGEST + 1)
            out[row, start + np.minimum(categories[:, column], _LARGEST)] = 1.0
        out[:, -1] = categories[:, 3]
    return out
