"""Pre-training on several workers through Ray Train.

The loop itself is `medrec.pretrain.loop.fit`, which knows nothing of Ray. This file gives it a
distributed model, reports checkpoints to Ray, and lets a run go on after a lost worker or a lost
driver from the last checkpoint: Ray finds it under the run's own folder.
"""

from __future__ import annotations

import io
import logging
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medrec.config import PretrainRunConfig
from medrec.data.cohort import Cohort
from medrec.molecules.features import FeatureTable
from medrec.pretrain.loop import build_data, export_encoder, fit
from medrec.runs import Home, Run
from orchestration.cluster import check_shared, ensure_ray, require
from orchestration.features import cohort_species
from quantum.base import MedrecError, TransientError, write_bytes_atomic

OnEpoch = Callable[[dict[str, Any]], None]
_STATE = "state.pt"


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
    with run.recording(seeds={"torch": config.task.seed}, scaling=config.scaling.model_dump()):
        scaling = config.scaling
        ray = ensure_ray()
        require(
            ray,
            cpus=scaling.num_workers * scaling.cpus_per_worker,
            gpus=scaling.num_workers if scaling.use_gpu else 0,
        )
        check_shared(ray, run.folder)
        with _follow(run, on_epoch):
            state = _run_workers(config, cohort, features, run)
        run.save_checkpoint("best", export_encoder(config.task, state["best"]))
        metrics = run.metrics()
        run.finish(
            {
                "model": "bimodal 2D-3D",
                "workers": scaling.num_workers,
                **state["facts"],
                "best_loss": float(state["best_loss"]),
                "retrieval_accuracy": float(metrics["retrieval_accuracy"].iloc[-1]),
                "retrieval_accuracy_fragment": float(
                    metrics["retrieval_accuracy_fragment"].iloc[-1]
                ),
                "molecules_per_s": round(float(metrics["molecules_per_s"].median()), 1),
            }
        )
    shutil.rmtree(run.folder / "ray", ignore_errors=True)
    return run


def _run_workers(
    config: PretrainRunConfig, cohort: Cohort, features: FeatureTable, run: Run
) -> dict[str, Any]:
    """Start the workers, wait, and return the state of the last checkpoint."""
    from ray import train
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scaling = config.scaling
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "cohort": str(cohort.folder.resolve()),
            "features": str(features.folder.resolve()),
            "run": str(run.folder.resolve()),
        },
        scaling_config=train.ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker}
            | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=train.RunConfig(
            name=run.digest[:16],
            storage_path=str((run.folder / "ray").resolve()),
            failure_config=train.FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with warnings.catch_warnings(), _own_signals():
            warnings.simplefilter("ignore")
            result = trainer.fit()
    except train.TrainingFailedError as error:
        raise _explain(error, scaling.max_failures) from error
    state = _last_state(result.checkpoint)
    if state is None:
        raise TransientError(f"pre-training of {run.name} ended without a checkpoint; run it again")
    return state


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give the signal handlers back after Ray Train, and let its Ctrl-C be one."""
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {item: signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as error:  # what Train's own handler makes of Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        if in_main:
            for item, handler in handlers.items():
                signal.signal(item, handler)


def _explain(error: Exception, max_failures: int) -> MedrecError:
    """Give a worker's own error its class back; everything else counts as passing."""
    for inner in getattr(error, "worker_failures", {}).values():
        cause = getattr(inner, "cause", inner)
        if isinstance(cause, MedrecError):
            return cause
    text = str(error).strip().splitlines()
    return TransientError(
        f"pre-training workers failed more than {max_failures} times; last: "
        f"{text[-1] if text else type(error).__name__}. The same command goes on from the last "
        "checkpoint"
    )


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
    resume = _last_state(train.get_checkpoint())
    if rank == 0:
        run.keep_metrics_until(resume["epoch"] if resume else -1)

    def report(metrics: dict[str, Any], make_state: Callable[[], dict[str, Any]]) -> None:
        if rank == 0:
            run.append_metrics(metrics)
        epoch = metrics["epoch"]
        if (epoch + 1) % task.checkpoint_every_epochs and epoch + 1 != task.epochs:
            return
        # every worker reports equally often, only the first brings the checkpoint
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                buffer = io.BytesIO()
                torch.save({**make_state(), "facts": data.facts}, buffer)
                write_bytes_atomic(Path(folder) / _STATE, buffer.getvalue())
                checkpoint = train.Checkpoint.from_directory(folder)
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


def _last_state(checkpoint: Any) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(
            Path(folder) / _STATE, map_location="cpu", weights_only=True
        )
    return state


@contextmanager
def _follow(run: Run, on_epoch: OnEpoch | None) -> Iterator[None]:
    """Call ``on_epoch`` for the lines that a worker adds to the run's metrics."""
    stop = threading.Event()

    def loop() -> None:
        last = -1
        while not stop.wait(0.5):
            metrics = run.metrics()
            if len(metrics) and int(metrics["epoch"].iloc[-1]) != last:
                last = int(metrics["epoch"].iloc[-1])
                assert on_epoch is not None
                on_epoch({str(name): value for name, value in metrics.iloc[-1].items()})

    thread = threading.Thread(target=loop, daemon=True)
    if on_epoch is not None:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
