"""Pieces of `medrec.pretrain.engine`: optimiser, learning rates, and how a batch is cut."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from medrec.config_molecules import FitConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.batches import MoleculeBatch
from medrec.library.loader import Rows

BYTES_PER_PAIR = 2**15
"""Memory of a pair of atoms in a forward pass that keeps its activations: eight layers with some
tensors of 128 float32 each, rounded up. It only says when a batch is cut."""
CPU_PAIRS = 2**17
"""Pairs, padding included, that pass at once on a CPU: about 4 GiB."""


def pairs_that_fit(device: torch.device) -> int:
    """Pairs of atoms, padding included, that may pass a network at once."""
    if device.type != "cuda":
        return CPU_PAIRS
    return int(torch.cuda.get_device_properties(device).total_memory // BYTES_PER_PAIR)


def build_optimiser(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """Adam with betas 0.9 and 0.999; AdamW if there is weight decay."""
    weights = [p for p in model.parameters() if p.requires_grad]
    # one kernel for all weights: several times faster than the default, on a CPU as well
    if config.weight_decay:
        return torch.optim.AdamW(
            weights, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.Adam(weights, lr=config.lr, fused=True)


def build_schedule(
    optimiser: torch.optim.Optimizer, config: FitConfig, n_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up from near 0, then a cosine that is 0 after the last step, or a constant."""
    warmup = config.warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (n_steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def cut(library: MoleculeLibrary, rows: Rows, parts: int, max_pairs: int) -> list[Rows]:
    """A worker's molecules of one step as parts that pass one after another.

    Parameters
    ----------
    parts : int
        How many at least, if there are as many molecules.
    max_pairs : int
        Largest B * n^2 of a part; a molecule that is larger passes alone.

    Returns
    -------
    list of int arrays
        None is empty.
    """
    found: list[Rows] = []
    waiting = list(np.array_split(rows, min(parts, max(len(rows), 1))))[::-1]
    while waiting:
        part = waiting.pop()
        n = int(library.n_atoms[part].max(initial=1))
        if len(part) > 1 and len(part) * n * n > max_pairs:
            waiting += np.array_split(part, 2)[::-1]
        elif len(part):
            found.append(part)
    return found


def stand_in(batch: MoleculeBatch) -> MoleculeBatch:
    """Molecules without positions, which no other molecule of a contrastive loss may find.

    They let a worker without molecules take part in a step, with weight 0. Not a batch of nothing,
    because that is a shape that networks are seldom written for.
    """
    return replace(batch, placed=torch.zeros_like(batch.placed))
