"""Pre-training on several workers through Ray Train.

The loop itself is `medrec.pretrain.loop.fit`, which knows nothing of Ray. This file gives it a
distributed model and reports checkpoints to Ray; see `orchestration.workers`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medrec.config import PretrainRunConfig
from medrec.data.cohort import Cohort
from medrec.molecules.features import FeatureTable
from medrec.pretrain.loop import build_data, export_encoder, fit
from medrec.runs import Home, Run
from orchestration.features import cohort_species
from orchestration.tracking import tracking
from orchestration.workers import OnEpoch, as_checkpoint, last_state, ray_folder, run_workers


def run_pretrain(
    config: PretrainRunConfig,
    cohort: Cohort,
    features: FeatureTable,
    home: Home,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Pre-train in a run folder, or find the finished run.

    Raises
    ------
    ResourceError
        If the cluster lacks the workers or GPUs asked for.
    TransientError
        If workers kept failing; the same command goes on from the last checkpoint.
    """
    inputs = {"cohort": cohort.digest, "features": features.digest}
    # the number of workers does not change the task, so it is not part of the name
    run = Run.open(home, "pretrain", config.task.name, config.task, inputs)
    if run.is_finished:
        return run
    seeds = {"torch": config.task.seed}
    with run.recording(seeds=seeds, scaling=config.scaling.model_dump()), tracking(run):
        settings = {
            "config": config.model_dump(mode="json"),
            "cohort": str(cohort.folder.resolve()),
            "features": str(features.folder.resolve()),
            "run": str(run.folder.resolve()),
        }
        state = run_workers(_worker, settings, config.scaling, run, on_epoch)
        run.save_checkpoint("best", export_encoder(config.task, state["best"]))
        metrics = run.metrics()
        run.finish(
            {
                "model": "bimodal 2D-3D",
                "workers": config.scaling.num_workers,
                **state["facts"],
                "best_loss": float(state["best_loss"]),
                "retrieval_accuracy": float(metrics["retrieval_accuracy"].iloc[-1]),
                "retrieval_accuracy_fragment": float(
                    metrics["retrieval_accuracy_fragment"].iloc[-1]
                ),
                "molecules_per_s": round(float(metrics["molecules_per_s"].median()), 1),
            }
        )
    shutil.rmtree(ray_folder(run), ignore_errors=True)
    return run


def _worker(settings: dict[str, Any]) -> None:
    """Body of one Ray Train worker."""
    from ray import train
    from ray.train.torch import get_device, prepare_model

    config = PretrainRunConfig.model_validate(settings["config"])
    task = config.task
    torch.set_num_threads(config.scaling.cpus_per_worker)
    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    run = Run.load(Path(settings["run"]))
    data = build_data(
        cohort_species([Cohort.load(Path(settings["cohort"]))]),
        FeatureTable.load(Path(settings["features"])),
        task.encoder.cutoff_angstrom,
    )
    resume = last_state(train.get_checkpoint())
    if rank == 0:
        run.keep_metrics_until(resume["epoch"] if resume else -1)

    def report(metrics: dict[str, Any], make_state: Callable[[], dict[str, Any]]) -> None:
        if rank == 0:
            run.append_metrics(metrics)
        epoch = metrics["epoch"]
        if (epoch + 1) % task.checkpoint_every_epochs and epoch + 1 != task.epochs:
            return
        # every worker reports equally often, only the first brings the checkpoint
        state = {**make_state(), "facts": data.facts} if rank == 0 else None
        with as_checkpoint(state) as checkpoint:
            train.report({"epoch": epoch, "loss": metrics["loss"]}, checkpoint=checkpoint)

    fit(
        task,
        data,
        report=report,
        wrap_model=prepare_model,
        resume=resume,
        rank=rank,
        world_size=world_size,
        device=get_device(),
    )
