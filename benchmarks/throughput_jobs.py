"""What one process of `pretrain_throughput` measures.

``python benchmarks/throughput_jobs.py JOB``, with a `Job` as JSON. Answers are lines of JSON. A
contestant makes one pass over the molecules for each line ``go`` on its standard input; any other
line ends it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

N_OPERATORS = 12


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Parameters
    ----------
    who : str
        ``ours``, ``peer``; ``loader``: our data pipeline alone; ``profile_ours``,
        ``profile_peer``: operators by time; ``parity``: a step on the device and on the CPU.
    kept : bool
        The peer's labels are made once and kept.
    workers : int
        The peer's loading processes.
    """

    library: Path
    who: Literal["ours", "peer", "loader", "profile_ours", "profile_peer", "parity"] = "ours"
    task: str = "all"
    bfloat16: bool = False
    kept: bool = False
    workers: int = 0
    d: int = 300
    layers: int = 8
    batch: int = 128
    batches: int = 2
    threads: int = 2
    device: str = "cpu"

    def to_json(self) -> str:
        """For the command line of a process."""
        return json.dumps({**asdict(self), "library": str(self.library)})

    @classmethod
    def from_json(cls, text: str) -> Job:
        """What `to_json` wrote."""
        words = json.loads(text)
        return cls(**{**words, "library": Path(words["library"])})

    @property
    def precision(self) -> str:
        """Of matrix products."""
        return "bfloat16" if self.bfloat16 else "float32"


class EnoughError(Exception):
    """Nobody asks for another pass."""


class Turns:
    """Reporter of a fit, and clock of every contestant: a pass begins when the parent asks."""

    def __init__(self, n_molecules: int) -> None:
        self.n_molecules = n_molecules

    def wait(self) -> None:
        """Until another pass is wanted."""
        if sys.stdin.readline().strip() != "go":
            raise EnoughError
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def done(self, **numbers: float) -> None:
        """Tell what the pass took."""
        seconds = time.perf_counter() - self.start
        cpu = time.process_time() - self.cpu
        answer = {"rate": self.n_molecules / seconds, "seconds": seconds, "cpu_s": cpu}
        print(json.dumps({**answer, **numbers}), flush=True)

    def epoch(self, metrics: dict[str, Any], make_state: Any) -> None:
        """After every epoch of a fit."""
        self.done(waited_s=metrics["waited_s"])
        self.wait()

    def checkpoint(self, make_state: Any) -> None:
        """None is wanted."""

    def progress(self, *_: Any) -> None:
        """Not shown."""

    def wants_checkpoint(self) -> bool:
        """No."""
        return False


def child(job: Job) -> None:
    """Run one process's job; answers are lines of JSON."""
    import torch

    torch.set_num_threads(job.threads)
    if job.who in ("profile_ours", "profile_peer", "parity"):
        found = parity(job) if job.who == "parity" else profile(job)
        print(json.dumps(found), flush=True)
        return
    turns = Turns(job.batch * job.batches)
    contest = {"ours": serve_ours, "peer": serve_peer, "loader": serve_loader}[job.who]
    try:
        contest(job, turns)
    except EnoughError:
        peak = torch.cuda.max_memory_allocated() / 2**20 if job.device == "cuda" else peak_mib()
        print(json.dumps({"peak_mib": peak}), flush=True)


def peak_mib() -> float:
    """Largest resident memory of this program.

    ``ru_maxrss`` will not do: on Linux a child starts with its parent's, whatever it runs.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the peak memory is read from /proc/self/status (VmHWM): needs Linux")


def molecules(job: Job) -> tuple[Any, Any]:
    """Library, and the molecules of a pass; repeated if the library has fewer."""
    import numpy as np

    from medrec.library.arrays import MoleculeLibrary

    library = MoleculeLibrary.load(job.library)
    order = np.random.default_rng(0).permutation(len(library)).astype(np.int64)
    return library, np.resize(order, job.batch * job.batches)


def problem_of(job: Job) -> tuple[Any, Any]:
    """Problem and settings of a fit, as the commands make them, on the molecules of a pass."""
    from medrec.config_molecules import FitConfig

    library, rows = molecules(job)
    fit = FitConfig(epochs=1_000, batch_size=job.batch, precision=job.precision)
    problem = (finetuning if job.task in ("both", "2d") else pretraining)(job, fit, library)
    return replace(problem, rows=rows, validate=None, score_name=None), fit


def pretraining(job: Job, fit: Any, library: Any) -> Any:
    from medrec.config_molecules import (
        ContrastiveTaskConfig,
        MaskingTaskConfig,
        MoleculeEncoderConfig,
        MoleculePretrainConfig,
        PredictTaskConfig,
        PretrainTask,
    )
    from medrec.pretrain.tasks import pretrain_problem

    choices: dict[str, tuple[str, PretrainTask]] = {
        "all": ("molinteract", PredictTaskConfig()),
        "simple": ("molinteract", PredictTaskConfig(terms=("distance", "spd"))),
        "contrastive": ("two_towers", ContrastiveTaskConfig()),
        "masking": ("gine", MaskingTaskConfig()),
    }
    kind, task = choices[job.task]
    encoder = MoleculeEncoderConfig(kind=kind, d_model=job.d, layers=job.layers)
    config = MoleculePretrainConfig(name="bench", encoder=encoder, task=task, fit=fit)
    return pretrain_problem(config, library)


def finetuning(job: Job, fit: Any, library: Any) -> Any:
    from medrec.config_molecules import MoleculeEncoderConfig, PropertyConfig
    from medrec.properties.finetune import property_problem

    encoder = MoleculeEncoderConfig(d_model=job.d, layers=job.layers)
    config = PropertyConfig(name="bench", encoder=encoder, modality=job.task, fit=fit)
    return property_problem(config, library)


def serve_ours(job: Job, turns: Turns) -> None:
    from medrec.pretrain.engine import fit

    problem, config = problem_of(job)
    turns.wait()
    fit(problem, config, reporter=turns, device=job.device)


def serve_loader(job: Job, turns: Turns) -> None:
    """Plan and stream the molecules of a pass to nobody."""
    from medrec.library.loader import plan_epoch, stream

    library, rows = molecules(job)
    epoch = 0
    while True:
        turns.wait()
        with stream(library, plan_epoch(library, rows, job.batch, 0, epoch), job.device) as batches:
            for _ in batches:
                pass
        turns.done()
        epoch += 1


def peer_of(job: Job) -> tuple[Any, Any, Any]:
    """Model, loader and optimiser of the peer."""
    import torch
    from peer_molinteract import LabelledMolecules, PreTraining, graphs_of
    from torch_geometric.loader import DataLoader

    loader = DataLoader(
        LabelledMolecules(graphs_of(*molecules(job)), keep=job.kept),
        batch_size=job.batch,
        shuffle=True,
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        pin_memory=job.device == "cuda",
    )
    model = PreTraining(job.d, job.layers).to(job.device)
    return model, loader, torch.optim.Adam(model.parameters(), lr=1e-4)


def serve_peer(job: Job, turns: Turns) -> None:
    from peer_molinteract import train_pass

    model, loader, optimiser = peer_of(job)
    while True:
        turns.wait()
        train_pass(model, loader, optimiser, job.device, job.bfloat16)
        turns.done()


def profile(job: Job) -> dict[str, Any]:
    """Operators of one pass by their share of the time, after a pass that is not counted."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    one_pass = pass_of_peer(job) if job.who == "profile_peer" else pass_of_ours(job)
    one_pass()
    on_gpu = job.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with record(activities=activities) as profiler:
        one_pass()
    times = {
        item.key: item.self_device_time_total if on_gpu else item.self_cpu_time_total
        for item in profiler.key_averages()
    }
    total = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:N_OPERATORS]
    return {"shares": {name: round(time / total, 4) for name, time in largest}}


def pass_of_ours(job: Job) -> Callable[[], Any]:
    from medrec.pretrain.engine import fit

    class Silent(Turns):
        def epoch(self, metrics: dict[str, Any], make_state: Any) -> None:
            """Goes on."""

    problem, config = problem_of(job)
    once = config.model_copy(update={"epochs": 1})
    return lambda: fit(problem, once, reporter=Silent(0), device=job.device)


def pass_of_peer(job: Job) -> Callable[[], Any]:
    from peer_molinteract import train_pass

    model, loader, optimiser = peer_of(job)
    return lambda: train_pass(model, loader, optimiser, job.device, job.bfloat16)


def parity(job: Job) -> dict[str, Any]:
    """Largest relative deviations of a step on the device from the CPU's, in float32."""
    import torch

    from medrec.library.loader import collate

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    problem, _ = problem_of(job)
    batch = collate(problem.library, problem.rows[: job.batch])
    found = []
    for device in ("cpu", job.device):
        model, here = problem.model.to(device), batch.to(device)
        model.zero_grad(set_to_none=True)
        terms = model(here, 0) / model.counts(here, 0).clamp(min=1.0)
        terms.sum().backward()
        gradients = {
            name: p.grad.detach().cpu().clone()
            for name, p in model.named_parameters()
            if p.grad is not None
        }
        found.append((terms.detach().cpu(), gradients))
    (expected, slopes), (terms, others) = found
    if slopes.keys() != others.keys():
        raise AssertionError("other parameters have gradients on the device than on the CPU")
    worst = max(
        float((others[name] - value).norm() / value.norm().clamp(min=1e-12))
        for name, value in slopes.items()
    )
    loss = float(((terms - expected).abs() / expected.abs().clamp(min=1e-12)).max())
    return {"loss": loss, "gradient": worst}


if __name__ == "__main__":
    child(Job.from_json(sys.argv[1]))
