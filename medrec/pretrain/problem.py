"""What `medrec.pretrain.engine.fit` optimises: a model that returns sums of its loss terms.

Sums and counts rather than means: a mean over the pairs, angles or labels of one worker's part of a
batch is not the mean over the whole batch. The engine adds up the counts of all workers and
accumulation steps first, so that one worker with 64 molecules and two with 32 have the same loss
and the same gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medrec.library.arrays import MoleculeLibrary
from medrec.library.batches import MoleculeBatch

State = dict[str, Any]


class LossModel(nn.Module, ABC):
    """An encoder with what turns its states into losses.

    Attributes
    ----------
    terms : tuple of str
        Names of the K loss terms; the loss is their sum, each divided by its count.
    separable : bool
        The sums of a batch are those of its parts, so the engine may cut it. False for a loss that
        compares the molecules of a batch; a worker then passes its whole part at once.
    """

    terms: tuple[str, ...]
    separable: bool = True

    @abstractmethod
    def counts(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Items of every term in a batch, float32 (K,); needs no network."""

    @abstractmethod
    def forward(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Sum of every term over its items, float32 (K,), differentiable.

        A term without items in the batch is 0 and still depends on its parameters, so that all
        workers take part in the exchange of gradients. What is drawn at random follows from
        ``epoch`` and ``batch.rows`` alone (`medrec.pretrain.draws`), never from the batch.

        A batch holds a molecule at least. A worker for which a step has none left passes one
        without position, and what comes out of it counts nowhere.
        """

    def facts(self, batch: MoleculeBatch, epoch: int) -> dict[str, tuple[float, float]]:
        """Further numbers about a batch as (sum, count), such as accuracies; none by default.

        Called after the backward pass of that batch.
        """
        return {}

    @abstractmethod
    def export(self) -> State:
        """What a run stores for users of the trained encoder."""


@dataclass
class Problem:
    """A model, the molecules that it learns from, and how it is judged.

    Attributes
    ----------
    rows : int array (M,)
        Training molecules of the library.
    model : LossModel
        On the CPU, initialised with the run's seed.
    validate : callable or None
        Numbers about a model after an epoch, computed by the first worker. ``score_name`` is one of
        them; without it the training loss decides which weights are kept.
    """

    library: MoleculeLibrary
    rows: npt.NDArray[np.int64]
    model: LossModel
    validate: Callable[[LossModel, torch.device | str], dict[str, float]] | None = None
    score_name: str | None = None
    score_mode: Literal["min", "max"] = "min"
