"""Random numbers that depend on seed, epoch and molecule, not on the batch or the worker.

A counter-based generator (SplitMix64's mixing function on the counters): the n-th number of a
molecule in an epoch is the same on one worker or eight, after a resume, on a CPU or a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def uniforms(seed: int, epoch: int, rows: Tensor, n: int, stream: int = 0) -> Tensor:
    """Draw n numbers in [0, 1) for every molecule.

    Parameters
    ----------
    rows : LongTensor (B,)
        Numbers of the molecules in their library.
    stream : int
        Different purposes take different streams.

    Returns
    -------
    FloatTensor (B, n)
        float64.
    """
    start = torch.tensor([seed, epoch, stream], dtype=torch.int64)
    key = torch.zeros((), dtype=torch.int64)
    for part in start:
        key = _mix(key + _GOLDEN + part)
    of_molecule = _mix(rows.to(torch.int64) * _GOLDEN + key.to(rows.device))
    counter = torch.arange(1, n + 1, dtype=torch.int64, device=rows.device) * _GOLDEN
    mixed = _mix(of_molecule.unsqueeze(1) + counter)
    return _shift(mixed, 11).to(torch.float64) * 2.0**-53


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of signed numbers."""
    return torch.bitwise_and(z >> bits, (1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = torch.bitwise_xor(z, _shift(z, 30)) * _FIRST
    z = torch.bitwise_xor(z, _shift(z, 27)) * _SECOND
    return torch.bitwise_xor(z, _shift(z, 31))
