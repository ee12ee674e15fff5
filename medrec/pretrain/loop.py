"""The pre-training loop: plain, or as one of several workers; it knows no Ray and no files.

With several workers each takes every n-th molecule and fragment of a batch, and the embeddings of
all workers are gathered for the loss, so that negatives, loss and gradients are those of the whole
batch. Only batch normalisation stays local to a worker, as usual.

"Best" is the epoch with the lowest total loss, kept as a copy; in the released script it is a
reference to the weights that go on changing, and both losses had to fall at once.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from medrec.config import BimodalPretrainConfig
from medrec.molecules.geometries import Geometries
from medrec.molecules.structure import MoleculeGraphs
from medrec.pretrain.bimodal import (
    PARTS,
    BimodalEncoder,
    Embeddings,
    contrastive_loss,
    retrieval_accuracy,
)
from medrec.pretrain.data import PretrainData, build_data
from quantum.base import InputError

__all__ = ["PretrainData", "build_data", "export_encoder", "fit", "gather"]

State = dict[str, Any]
Report = Callable[[dict[str, Any], Callable[[], State]], None]
Views = tuple[MoleculeGraphs, Geometries, MoleculeGraphs, Geometries]


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

    Raises
    ------
    InputError
        If there are fewer than two molecules or fragments for each worker.
    """
    _check_enough(config, data, world_size)
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
        rows = []
        wrapped.train()
        for views in _shares(config, data, epoch, rank, world_size):
            vectors = wrapped(*(view.to(device) for view in views))
            vectors = tuple(gather(item, world_size) for item in vectors)
            molecule, fragment, row = _losses(config, vectors)
            optimiser.zero_grad()
            (molecule + fragment).backward()
            optimiser.step()
            rows.append(row)
        metrics: dict[str, Any] = {
            "epoch": epoch,
            **{name: float(np.mean([row[name] for row in rows])) for name in rows[0]},
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


def _losses(
    config: BimodalPretrainConfig, vectors: Embeddings
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """L_mol, L_sub, and a row of numbers about one step."""

    def loss(flat: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(flat, spatial, config.temperature, symmetric=config.symmetric)

    molecule, fragment = loss(*vectors[:2]), loss(*vectors[2:])
    detached = [item.detach() for item in vectors]
    row = {
        "loss": float(molecule.detach() + fragment.detach()),
        "loss_molecule": float(molecule.detach()),
        "loss_fragment": float(fragment.detach()),
        "retrieval_accuracy": retrieval_accuracy(*detached[:2]),
        "retrieval_accuracy_fragment": retrieval_accuracy(*detached[2:]),
    }
    return molecule, fragment, row


def _check_enough(config: BimodalPretrainConfig, data: PretrainData, world_size: int) -> None:
    for what, n in (("molecules", len(data.molecules)), ("fragments", len(data.fragments))):
        largest = n if config.batch_size is None else min(n, config.batch_size)
        if largest < 2 * world_size:
            raise InputError(
                f"{largest} {what} in a batch for {world_size} workers; expected two for each"
            )


def _shares(
    config: BimodalPretrainConfig, data: PretrainData, epoch: int, rank: int, world_size: int
) -> Iterator[Views]:
    """Yield a worker's part of every batch, cut so that all workers get equally many.

    Fragments are dealt to as many batches as there are of molecules.
    """
    n_batches = -(-len(data) // (config.batch_size or len(data)))
    molecules, fragments = np.arange(len(data)), np.arange(len(data.fragments))
    if config.batch_size is not None:
        rng = np.random.default_rng([config.seed, epoch])
        rng.shuffle(molecules)
        rng.shuffle(fragments)
    for pair in zip(
        np.array_split(molecules, n_batches), np.array_split(fragments, n_batches), strict=True
    ):
        ours, theirs = (part[: len(part) - len(part) % world_size] for part in pair)
        if min(len(ours), len(theirs)) >= 2 * world_size:
            yield (
                *data.molecules.batch(ours[rank::world_size].tolist()),
                *data.fragments.batch(theirs[rank::world_size].tolist()),
            )


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
    """Checkpoint that recommenders start from.

    The 2D encoders with their buffers (``gin_molecule``, ``gin_fragment``) and their sizes
    (``encoder``); the 3D encoders, which no recommender reads, for figures (``gvp_molecule``,
    ``gvp_fragment``, ``encoder_3d``).
    """
    sizes = config.encoder
    weights: dict[str, Any] = {
        part: {k.removeprefix(f"{part}."): v for k, v in best.items() if k.startswith(f"{part}.")}
        for part in PARTS
    }
    return {
        **weights,
        "encoder": {"d_model": sizes.d_model, "gin_layers": sizes.gin_layers},
        "encoder_3d": {
            "d_model": sizes.d_model,
            "gvp_layers": sizes.gvp_layers,
            "cutoff_angstrom": sizes.cutoff_angstrom,
            "n_rbf": sizes.n_rbf,
        },
    }
