"""Pre-training tasks by configuration, on a library."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch

from medrec.config_molecules import (
    ContrastiveTaskConfig,
    MaskingTaskConfig,
    Modality,
    MoleculePretrainConfig,
)
from medrec.library.arrays import MoleculeLibrary
from medrec.library.loader import plan_epoch, stream
from medrec.library.splits import split_library
from medrec.pretrain.encoders import build_encoder
from medrec.pretrain.problem import LossModel, Problem
from medrec.pretrain.steps import cut, pairs_that_fit
from medrec.pretrain.tasks_contrast import ContrastiveTask
from medrec.pretrain.tasks_mask import MaskingTask
from medrec.pretrain.tasks_predict import PredictTask
from quantum.base import InputError

Rows = npt.NDArray[np.int64]

MAX_VALID = 2_000
"""Validation molecules at most: a loss and not a result, after every epoch."""
VALID_EPOCH = 0
"""Pairs and masks of validation molecules are the same after every epoch."""


def build_task(config: MoleculePretrainConfig) -> LossModel:
    """Encoder with the heads of its task, on the CPU, initialised with ``config.fit.seed``."""
    task, seed = config.task, config.fit.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(config.encoder, _modality(config))
        if isinstance(task, ContrastiveTaskConfig):
            return ContrastiveTask(encoder, task)
        if isinstance(task, MaskingTaskConfig):
            return MaskingTask(encoder, task, seed)
        return PredictTask(encoder, task, seed)


def pretrain_problem(config: MoleculePretrainConfig, library: MoleculeLibrary) -> Problem:
    """What `medrec.pretrain.engine.fit` needs to pre-train on a library.

    Molecules without positions are left out where the task needs them. With a validation part of
    two molecules or more, ``valid_loss`` on at most `MAX_VALID` of them decides which weights are
    kept.

    Raises
    ------
    InputError
        If the library has no 3D coordinates but the task needs them, or fewer than two molecules
        are left to train on.
    """
    split = split_library(library, config.split)
    rows = _usable(config, library, split.train)
    if config.limit is not None:
        rows = _subset(rows, config.limit, config.fit.seed)
    if len(rows) < 2:
        kind = "molecules" if _modality(config) == "2d" else "molecules with 3D coordinates"
        raise InputError(
            f"molecule library {library.name} leaves {len(rows)} {kind} to pre-train "
            f"{config.name} on; expected at least 2"
        )
    problem = Problem(library, rows, build_task(config))
    valid = _subset(_usable(config, library, split.valid), MAX_VALID, config.fit.seed)
    if len(valid) > 1:
        problem.validate = _Validation(config, library, valid)
        problem.score_name = "valid_loss"
    return problem


def _modality(config: MoleculePretrainConfig) -> Modality:
    modalities: dict[str, Modality] = {"gine": "2d", "schnet": "3d"}
    return modalities.get(config.encoder.kind, "both")


def _usable(config: MoleculePretrainConfig, library: MoleculeLibrary, rows: Rows) -> Rows:
    """Molecules that the task can use."""
    if _modality(config) == "2d":
        return rows
    placed = np.asarray(library.arrays["placed"])
    if not placed.any():
        raise InputError(
            f"molecule library {library.name} has no 3D coordinates for any of its {len(library)} "
            f"molecules; pre-training task {config.task.kind} of {config.encoder.kind} needs them. "
            "Import a source with geometries, or SMILES with conformers: true"
        )
    return rows[placed[rows]]


def _subset(rows: Rows, limit: int, seed: int) -> Rows:
    """Random molecules in the order of the library; a smaller subset is part of a larger one."""
    chosen: Rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
    return chosen


class _Validation:
    """Losses and facts of a model on validation molecules."""

    def __init__(self, config: MoleculePretrainConfig, library: MoleculeLibrary, rows: Rows):
        self.library, self.rows = library, rows
        self.batch_size = config.fit.batch_size

    @torch.no_grad()
    def __call__(self, model: LossModel, device: torch.device | str) -> dict[str, float]:
        """``valid_loss``, ``valid_loss_<term>`` and ``valid_<fact>``; terms without items not.

        Raises
        ------
        InputError
            If no term has an item, for 0 would be the best of losses.
        """
        found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        # always the same batches, of molecules of similar size as in training
        parts = plan_epoch(self.library, self.rows, self.batch_size, seed=0, epoch=VALID_EPOCH)
        if model.separable:
            most = pairs_that_fit(torch.device(device))
            parts = [small for part in parts for small in cut(self.library, part, 1, most)]
        was_training = model.training
        model.eval()
        with stream(self.library, parts, device) as batches:
            for batch in batches:
                sums = model(batch, VALID_EPOCH).tolist()
                counts = model.counts(batch, VALID_EPOCH).tolist()
                news = model.facts(batch, VALID_EPOCH)
                for term, total, n in zip(model.terms, sums, counts, strict=True):
                    news[f"loss_{term}"] = (total, n)
                for name, (total, n) in news.items():
                    found[name] = (found[name][0] + total, found[name][1] + n)
        model.train(was_training)
        means = {f"valid_{name}": total / n for name, (total, n) in found.items() if n}
        losses = [f"valid_loss_{term}" for term in model.terms if f"valid_loss_{term}" in means]
        if not losses:
            raise InputError(
                f"none of {len(self.rows)} validation molecules of library {self.library.name} has "
                f"an item of the loss terms {', '.join(model.terms)}; choose a larger split.valid"
            )
        return {"valid_loss": sum(means[name] for name in losses), **means}
