"""A cheap model with three loss terms of very different counts, and a reporter that takes notes.

Tests reach it through the fixture ``toy`` of ``conftest.py``; a child process puts this folder on
its path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medrec.library.arrays import UNREACHABLE, MoleculeLibrary
from medrec.library.batches import MoleculeBatch
from medrec.pretrain.problem import LossModel, Problem


class ToyModel(LossModel):
    """Terms: one item per molecule, per atom and per connected pair of atoms.

    ``poison`` gives (epoch, row, how): ``loss`` makes the pair term of that molecule infinite,
    ``gradient`` leaves it finite with a gradient that is no number.
    """

    terms = ("molecule", "atom", "pair")

    def __init__(self, dropout: float = 0.0, poison: tuple[int, int, str] | None = None) -> None:
        super().__init__()
        self.poison = poison
        self.embed = nn.Embedding(119, 8)
        self.place = nn.Linear(3, 8)
        self.drop = nn.Dropout(dropout)
        self.of_atom, self.of_molecule = nn.Linear(8, 2), nn.Linear(8, 1)
        self.seen: list[tuple[int, ...]] = []
        self.dtypes: set[torch.dtype] = set()

    @staticmethod
    def _pairs(batch: MoleculeBatch) -> Tensor:
        return (batch.spd > 0) & (batch.spd < UNREACHABLE)

    def counts(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        parts = (batch.placed.sum(), 2 * batch.mask.sum(), self._pairs(batch).sum())
        return torch.stack(parts).float()

    def forward(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        self.seen.append(tuple(batch.rows.tolist()))
        h = torch.tanh(self.embed(batch.x[..., 0]) + self.place(batch.position))
        self.dtypes.add(self.place(batch.position).dtype)
        h = self.drop(h.float()) * batch.mask.unsqueeze(2)
        mean = h.sum(1) / batch.mask.sum(1, keepdim=True).clamp(min=1)
        error = self.of_molecule(mean).squeeze(1) - batch.targets[:, 0].float() / 100
        molecule = (error.abs() * batch.placed).sum()
        gap = (self.of_atom(h) - batch.centrality) * batch.mask.unsqueeze(2)
        product = h @ h.transpose(1, 2) - 1 / (1 + batch.spd.float())
        pair = (product.square() * self._pairs(batch)).sum() + self._poisoned(batch, epoch, h)
        return torch.stack([molecule.float(), gap.square().sum().float(), pair.float()])

    def _poisoned(self, batch: MoleculeBatch, epoch: int, h: Tensor) -> Tensor | float:
        if self.poison is None or epoch != self.poison[0]:
            return 0.0
        own = batch.rows == self.poison[1]
        if not own.any():
            return 0.0
        return h[own].sum() / 0.0 if self.poison[2] == "loss" else (h[own].sum() * 0.0).sqrt()

    def facts(self, batch: MoleculeBatch, epoch: int) -> dict[str, tuple[float, float]]:
        return {"atoms_per_molecule": (float(batch.mask.sum()), float(len(batch.rows)))}

    def export(self) -> dict[str, Any]:
        return {}


def toy_problem(
    library: MoleculeLibrary,
    rows: Any = None,
    *,
    dropout: float = 0.0,
    poison: tuple[int, int, str] | None = None,
    validate: Callable[..., dict[str, float]] | None = None,
    **score: Any,
) -> Problem:
    """A problem whose model has the same initial weights every time."""
    torch.manual_seed(5)
    model = ToyModel(dropout, poison)
    rows = np.arange(len(library)) if rows is None else np.asarray(rows)
    return Problem(library, rows, model, validate, **score)


class Notes:
    """A reporter.

    Parameters
    ----------
    save_at : collection of int
        Before which steps, counted from the start of the fit, it wants a checkpoint.
    stop_at : int, optional
        Checkpoint, counted from 0, after which it breaks off.
    """

    def __init__(self, save_at: Collection[int] = (), stop_at: int | None = None) -> None:
        self.save_at, self.stop_at = save_at, stop_at
        self.rows: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.saved: list[dict[str, Any]] = []
        self.shown: list[tuple[int, int, int, dict[str, float]]] = []
        self.asked = 0

    def epoch(self, metrics: dict[str, Any], make_state: Callable[[], dict[str, Any]]) -> None:
        self.rows.append(metrics)
        self.states.append(make_state())

    def checkpoint(self, make_state: Callable[[], dict[str, Any]]) -> None:
        self.saved.append(make_state())
        if len(self.saved) - 1 == self.stop_at:
            raise KeyboardInterrupt

    def progress(self, epoch: int, step: int, n_steps: int, numbers: dict[str, float]) -> None:
        self.shown.append((epoch, step, n_steps, numbers))

    def wants_checkpoint(self) -> bool:
        self.asked += 1
        return self.asked - 1 in self.save_at

    def numbers(self) -> list[dict[str, Any]]:
        """Metrics without times."""
        times = ("seconds", "molecules_per_s", "waited_s")
        return [{k: v for k, v in row.items() if k not in times} for row in self.rows]
