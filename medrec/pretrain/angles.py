"""Labels from positions: distances, bond angles, dihedral angles and their bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_SINE = 0.02
"""A dihedral angle needs both of its bond angles this far from 0 and pi (sine; about 1 degree)."""


def distances(position: Tensor, pairs: Tensor) -> Tensor:
    """Distances of atoms.

    Parameters
    ----------
    position : FloatTensor (N, 3)
    pairs : LongTensor (..., 2)

    Returns
    -------
    FloatTensor (...)
        In the unit of ``position``.
    """
    first, second = position[pairs].unbind(dim=-2)
    return torch.linalg.vector_norm(first - second, dim=-1)


def bond_angles(position: Tensor, triples: Tensor) -> Tensor:
    """Angles at an atom between two others.

    Parameters
    ----------
    position : FloatTensor (N, 3)
    triples : LongTensor (A, 3)
        Anchor, source, destination.

    Returns
    -------
    FloatTensor (A,)
        Radians in [0, pi].
    """
    anchor, source, destination = position[triples].unbind(dim=-2)
    u, v = source - anchor, destination - anchor
    # the arccosine of a dot product loses digits near 0 and pi
    return torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1), _dot(u, v))


def dihedrals(position: Tensor, quadruples: Tensor) -> tuple[Tensor, Tensor]:
    """Signed dihedral angles i-j-k-l, positive if l is clockwise of i, seen from j to k (IUPAC).

    Parameters
    ----------
    position : FloatTensor (N, 3)
    quadruples : LongTensor (R, 4)

    Returns
    -------
    angle : FloatTensor (R,)
        Radians in [-pi, pi]; arbitrary where undefined.
    defined : BoolTensor (R,)
        False where i, j, k or j, k, l lie on a line (`MIN_SINE`), or atoms coincide.
    """
    i, j, k, last = position[quadruples].unbind(dim=-2)
    a, b, c = j - i, k - j, last - k
    first, second = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
    length = torch.linalg.vector_norm(b, dim=-1)
    angle = torch.atan2(length * _dot(a, second), _dot(first, second))
    defined = _apart(first, a, length) & _apart(second, c, length)
    return angle, defined


def angle_bins(angle: Tensor, n_bins: int) -> Tensor:
    """Equal bins of (-pi, pi], closed at their upper ends; -pi is the same angle as pi.

    Parameters
    ----------
    angle : FloatTensor (...)
        Radians in [-pi, pi].

    Returns
    -------
    LongTensor (...)
        0 to ``n_bins`` - 1.
    """
    upper = torch.ceil((angle.double() / math.pi + 1.0) * (n_bins / 2.0)).long() - 1
    return upper.clamp(max=n_bins - 1) % n_bins


def _apart(normal: Tensor, arm: Tensor, length: Tensor) -> Tensor:
    sine = torch.linalg.vector_norm(normal, dim=-1)
    return sine > MIN_SINE * torch.linalg.vector_norm(arm, dim=-1) * length


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)
