"""The pre-training loop: plain, or as one of several workers; it knows no Ray and no files.

With several workers each takes every n-th molecule of a batch, and the embeddings of all workers
are gathered for the loss, so that negatives, loss and gradients are those of the whole batch. Only
batch normalisation stays local to a worker, as usual.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from medrec.config import BimodalPretrainConfig
from medrec.molecules.features import FeatureTable
from medrec.molecules.geometries import Geometries, build_geometries
from medrec.molecules.structure import MoleculeGraphs, build_graphs
from medrec.pretrain.bimodal import BimodalEncoder, contrastive_loss, retrieval_accuracy
from quantum.base import InputError
from quantum.molecule import Species

State = dict[str, Any]
Report = Callable[[dict[str, Any], Callable[[], State]], None]


@dataclass
class PretrainData:
    """Unique molecules with a conformer."""

    smiles: tuple[str, ...]
    conformers: tuple[tuple[Any, Any], ...]
    cutoff_angstrom: float
    _cache: dict[tuple[int, ...], tuple[MoleculeGraphs, Geometries]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.smiles)

    def batch(self, index: Sequence[int]) -> tuple[MoleculeGraphs, Geometries]:
        """Both views of some molecules; the last few combinations are kept."""
        key = tuple(index)
        if key not in self._cache:
            if len(self._cache) >= 4:
                self._cache.clear()
            self._cache[key] = (
                build_graphs([self.smiles[i] for i in index]),
                build_geometries([self.conformers[i] for i in index], self.cutoff_angstrom),
            )
        return self._cache[key]


def build_data(
    species: Sequence[Species], features: FeatureTable, cutoff_angstrom: float
) -> PretrainData:
    """Molecules of a list that have a conformer of two or more atoms, without repetition.

    Raises
    ------
    InputError
        If fewer than two are left: there is nothing to contrast then.
    """
    ordered = sorted(set(species), key=lambda item: item.smiles)
    kept, conformers = [], []
    for item, row in zip(ordered, features.rows(ordered), strict=True):
        conformer = features.conformer(int(row)) if row >= 0 else None
        if conformer is not None and len(conformer[0]) > 1:
            kept.append(item.smiles)
            conformers.append(conformer)
    if len(kept) < 2:
        raise InputError(
            f"{len(kept)} molecules with a conformer in {features.folder.name}; expected at least 2"
        )
    return PretrainData(tuple(kept), tuple(conformers), cutoff_angstrom)


def fit(
    config: BimodalPretrainConfig,
    data: PretrainData,
    *,
    report: Report,
    wrap_model: Callable[[nn.Module], nn.Module] = lambda model: model,
    resume: State | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> State:
    """Pre-train, call ``report(metrics, make_state)`` after every epoch, return the last state.

    Parameters
    ----------
    wrap_model : callable
        Makes the model distributed; the identity for one process.
    resume : dict or None
        A state given to ``report`` before; training goes on after its epoch.

    Returns
    -------
    dict
        ``model``, ``best`` (weights of the lowest loss, copied), ``best_loss``, ``epoch`` and the
        optimiser's state; loads with the restricted unpickler.
    """
    torch.manual_seed(config.seed)
    model = BimodalEncoder(config.encoder).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, config.lr_step_epochs, config.lr_gamma)
    first, best_loss, best = 0, float("inf"), copy.deepcopy(model.state_dict())
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimiser.load_state_dict(resume["optimiser"])
        schedule.load_state_dict(resume["schedule"])
        first, best_loss, best = resume["epoch"] + 1, resume["best_loss"], resume["best"]
    wrapped = wrap_model(model)
    for epoch in range(first, config.epochs):
        start = time.perf_counter()
        # one generator per epoch and rank: dropout is the same whether or not a run was resumed
        torch.manual_seed(hash((config.seed, epoch, rank)) % 2**31)
        losses, hits = [], []
        wrapped.train()
        for graphs, geometries in _shares(config, data, epoch, rank, world_size):
            flat, spatial = wrapped(graphs.to(device), geometries.to(device))
            flat, spatial = gather(flat, world_size), gather(spatial, world_size)
            loss = contrastive_loss(flat, spatial, config.temperature, symmetric=config.symmetric)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            hits.append(retrieval_accuracy(flat.detach(), spatial.detach()))
        metrics: dict[str, Any] = {
            "epoch": epoch,
            "loss": float(np.mean(losses)),
            "retrieval_accuracy": float(np.mean(hits)),
            "lr": schedule.get_last_lr()[0],
            "seconds": time.perf_counter() - start,
        }
        metrics["molecules_per_s"] = len(data) / max(metrics["seconds"], 1e-9)
        schedule.step()
        if metrics["loss"] < best_loss:
            best_loss, best = metrics["loss"], copy.deepcopy(model.state_dict())
        state = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "epoch": epoch,
            "best": best,
            "best_loss": best_loss,
        }
        report(metrics, partial(copy.deepcopy, state))
    return {"model": model.state_dict(), "best": best, "best_loss": best_loss}


def _shares(
    config: BimodalPretrainConfig, data: PretrainData, epoch: int, rank: int, world_size: int
) -> Iterator[tuple[MoleculeGraphs, Geometries]]:
    """Yield a worker's part of every batch, cut so that all workers get equally many."""
    n = len(data)
    size = config.batch_size or n
    order = np.arange(n)
    if config.batch_size is not None:
        np.random.default_rng([config.seed, epoch]).shuffle(order)
    for start in range(0, n, size):
        chunk = order[start : start + size]
        chunk = chunk[: len(chunk) - len(chunk) % world_size]
        if len(chunk) >= 2 * world_size:
            yield data.batch(chunk[rank::world_size].tolist())


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all workers; the gradient of a row is summed over the workers."""

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(vectors) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, vectors.contiguous())
        ctx.rows = len(vectors)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous()
        distributed.all_reduce(total)
        start = distributed.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather(vectors: torch.Tensor, world_size: int) -> torch.Tensor:
    """Rows of all workers, with gradients flowing back to each."""
    return vectors if world_size == 1 else _Gather.apply(vectors)


def export_encoder(config: BimodalPretrainConfig, best: State) -> State:
    """Checkpoint that recommenders start from: the 2D encoder with its buffers, and its sizes."""
    prefix = "gin."
    weights = {k.removeprefix(prefix): v for k, v in best.items() if k.startswith(prefix)}
    return {
        "gin_molecule": weights,
        "encoder": {"d_model": config.encoder.d_model, "gin_layers": config.encoder.gin_layers},
    }
