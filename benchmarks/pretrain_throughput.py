"""Molecules per second of pre-training and fine-tuning, beside PyTorch Geometric.

The peer is MolInteract as one would write it with PyTorch Geometric (`peer_molinteract`), in
float32: (a) with the labels of a molecule made in Python when it is asked for, in this process or
in one loading process, whichever is faster; (b) with all labels kept in memory, so that only
collation and network are left. Ours runs through `medrec.pretrain.engine.fit`, in float32 and in
bfloat16 (matrix products only). The goal is three times (a), in the faster of our precisions; (b),
and (b) under bfloat16 autocast, stand beside it.

Every contestant lives in a process of its own, on the same molecules, batch size and threads. They
take turns: one pass over the molecules each, round after round; the first round is not counted, and
a rate is the median over the rounds. A pass counts from its start to the end of its last step:
planning, loading and waiting included.

With ``--device cuda`` a step is first compared with the CPU's (loss and gradients, float32), rates
at batch 1024 stand beside the paper's (3.38 million molecules in 17.8 minutes on one A100), and the
result is ``pretrain_throughput_gpu.json``. Without ``--library`` or ``--qm9`` it runs on the
committed fixture of a few hundred molecules.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
FIXTURE = "configs/molecules/fixture_qm9.yaml"
PRECISIONS = ("float32", "bfloat16")
SMALL, PAPER_SIZE = (128, 4), "d 300, 8 layers"
GOAL = 3.0
PAPER_MOLECULES_PER_S, PAPER_BATCH = 3.38e6 / (17.8 * 60), 1024
PARITY_GOAL = 1e-4
TASKS = {
    "all": "L_All",
    "simple": "L_Simple",
    "contrastive": "contrastive, two towers",
    "masking": "masking, GINE",
    "both": "fine-tuning, both views",
    "2d": "fine-tuning, 2D only",
}
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

    @property
    def precision(self) -> str:
        """Of matrix products."""
        return "bfloat16" if self.bfloat16 else "float32"


# --------------------------------------------------------------------------- in the child


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


# --------------------------------------------------------------------------- in the parent


class Contestant:
    """A process that trains when asked."""

    def __init__(self, job: Job) -> None:
        self.rates: list[float] = []
        self.cpu_s: list[float] = []
        self.waited: list[float] = []
        self.process = start(job)

    def turn(self, counts: bool) -> None:
        """One pass."""
        answer = self._ask("go")
        if counts:
            self.rates.append(answer["rate"])
            self.cpu_s.append(answer["cpu_s"])
            self.waited.append(answer.get("waited_s", 0.0) / answer["seconds"])

    def result(self) -> Result:
        """End the process."""
        peak = self._ask("stop")["peak_mib"]
        self.process.wait()
        return Result(self.rates, self.cpu_s, statistics.median(self.waited), peak)

    def _ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return answer_of(self.process)


@dataclass(frozen=True)
class Result:
    """What all rounds took.

    Parameters
    ----------
    rates : list of float
        Molecules/s.
    cpu_s : list of float
        Of all threads, without loading processes; says whether the machine was busy otherwise.
    waited : float
        Share of the time spent waiting for data.
    """

    rates: list[float]
    cpu_s: list[float]
    waited: float
    peak_mib: float

    @property
    def rate(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rates)


def start(job: Job) -> subprocess.Popen[str]:
    words = json.dumps({**asdict(job), "library": str(job.library)})
    return subprocess.Popen(
        [sys.executable, __file__, "--job", words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a measuring process ended with code {process.wait()}")
    result: dict[str, Any] = json.loads(line)
    return result


def alone(job: Job) -> dict[str, Any]:
    """Answer of a process that takes no turns."""
    with start(job) as process:
        return answer_of(process)


def contest(jobs: dict[str, Job], rounds: int) -> dict[str, Result]:
    """Let contestants take turns; the first round builds and warms up."""
    running = {name: Contestant(job) for name, job in jobs.items()}
    try:
        for number in range(rounds + 1):
            for contestant in running.values():
                contestant.turn(counts=number > 0)
            print(f"round {number} of {rounds}, {len(running)} processes", flush=True)
        results = {name: contestant.result() for name, contestant in running.items()}
    finally:
        for contestant in running.values():
            contestant.process.kill()
    for name, result in results.items():
        cpu = statistics.median(result.cpu_s)
        print(f"{name}: {result.rate:.1f} molecules/s, {cpu:.2f} CPU s, {result.peak_mib:.0f} MiB")
    return results


def against_peer(base: Job, workers: list[int], rounds: int, log: dict[str, Any]) -> list[Any]:
    """L_All: ours in both precisions, the peer with labels made (a) and kept (b)."""
    peer = replace(base, who="peer")
    jobs = {precision: replace(base, bfloat16=precision == "bfloat16") for precision in PRECISIONS}
    jobs |= {f"peer (a), {n} loading processes": replace(peer, workers=n) for n in workers}
    jobs |= {
        "peer (b)": replace(peer, kept=True),
        "peer (b), bfloat16": replace(peer, kept=True, bfloat16=True),
    }
    where = size_of(base)
    found = contest(jobs, rounds)
    log[f"L_All, {where}"] = {name: asdict(result) for name, result in found.items()}
    made = max((found[name] for name in jobs if name.startswith("peer (a)")), key=rate_of)
    kept = found["peer (b)"]
    figures = []
    for precision in PRECISIONS:
        ours = found[precision]
        figures += [
            figure(f"L_All, {where}, {precision}, peer (a) labels made", ours, made),
            figure(f"L_All, {where}, {precision}, peer (b) labels kept", ours, kept),
            memory(f"L_All, {where}, {precision}, peak memory, peer (a)", ours, made),
        ]
    figures.append(
        figure(
            f"L_All, {where}, both bfloat16, peer (b) labels kept",
            found["bfloat16"],
            found["peer (b), bfloat16"],
        )
    )
    faster = max(PRECISIONS, key=lambda precision: found[precision].rate)
    best = found[faster]
    goal = figure(f"L_All, {where}, ours in {faster}, peer (a) in float32", best, made, GOAL)
    figures.insert(0, goal)
    if base.device == "cuda" and base.batch == PAPER_BATCH and where == PAPER_SIZE:
        figures.insert(1, against_paper(best, faster))
    return [*figures, waited(f"L_All, {where}, {faster}, share of time waiting for data", best)]


def other_tasks(base: Job, rounds: int, log: dict[str, Any]) -> list[Any]:
    """Rates of what has no peer here."""
    figures = []
    for task, label in TASKS.items():
        if task == "all":
            continue
        jobs = {
            precision: replace(base, task=task, bfloat16=precision == "bfloat16")
            for precision in PRECISIONS
        }
        found = contest(jobs, rounds)
        log[f"{label}, {size_of(base)}"] = {name: asdict(item) for name, item in found.items()}
        for precision in PRECISIONS:
            name = f"{label}, {size_of(base)}, {precision}"
            figures += [figure(name, found[precision]), memory(f"{name}, peak", found[precision])]
    return figures


def loading(base: Job, rounds: int, log: dict[str, Any]) -> list[Any]:
    """Data pipeline alone, over more molecules than a pass of the network has."""
    job = replace(base, who="loader", batches=20 * base.batches)
    found = contest({"loader": job}, rounds)
    log["data pipeline"] = {name: asdict(item) for name, item in found.items()}
    return [figure("data pipeline alone, molecules planned and collated", found["loader"])]


def rate_of(result: Result) -> float:
    return result.rate


def size_of(job: Job) -> str:
    return f"d {job.d}, {job.layers} layers"


def figure(name: str, ours: Result, peer: Result | None = None, goal: float | None = None) -> Any:
    from record import Figure

    rate, unit = round(ours.rate, 1), "molecules/s"
    if peer is None:
        return Figure(name, rate, unit)
    ratio = ours.rate / peer.rate
    met = None if goal is None else ratio >= goal
    return Figure(name, rate, unit, round(peer.rate, 1), round(ratio, 2), goal, met)


def against_paper(ours: Result, precision: str) -> Any:
    from record import Figure

    ratio = ours.rate / PAPER_MOLECULES_PER_S
    return Figure(
        f"L_All, {PAPER_SIZE}, batch {PAPER_BATCH}, {precision}; the paper's A100 on PCQM4Mv2",
        round(ours.rate, 1),
        "molecules/s",
        round(PAPER_MOLECULES_PER_S, 1),
        round(ratio, 2),
        GOAL,
        ratio >= GOAL,
    )


def memory(name: str, ours: Result, peer: Result | None = None) -> Any:
    from record import Figure

    if peer is None:
        return Figure(name, round(ours.peak_mib), "MiB")
    ratio = round(peer.peak_mib / ours.peak_mib, 2)
    return Figure(name, round(ours.peak_mib), "MiB", round(peer.peak_mib), ratio)


def waited(name: str, ours: Result) -> Any:
    from record import Figure

    return Figure(name, round(ours.waited, 4), "1")


def parity_figures(base: Job) -> list[Any]:
    from record import Figure

    found = alone(replace(base, who="parity", batch=min(base.batch, 128)))
    return [
        Figure(
            f"{name} of a step, float32, {base.device} against CPU, largest relative deviation",
            found[name],
            "1",
            goal=PARITY_GOAL,
            met=found[name] <= PARITY_GOAL,
        )
        for name in ("loss", "gradient")
    ]


def make_library(chosen: argparse.Namespace, folder: Path) -> Path:
    """Folder of the given library, or of one imported for this run."""
    if chosen.library:
        return Path(chosen.library)
    from medrec.config_molecules import LibraryConfig, QM9Source
    from medrec.library.build import import_library
    from medrec.loading import load_config
    from medrec.runs import Home

    if chosen.qm9:
        spread = folder / "qm9.parquet"
        spread_rows(chosen.qm9, spread, chosen.n)
        config = LibraryConfig(name="bench_qm9", source=QM9Source(path=spread), hydrogens=True)
    else:
        config = load_config(HERE.parent / FIXTURE, LibraryConfig)
    return import_library(config, Home(folder)).folder


def spread_rows(source: Path, target: Path, n: int) -> None:
    """Write n evenly spaced rows of a table: the first molecules of QM9 are its smallest."""
    import numpy as np
    from pyarrow import parquet

    table = parquet.read_table(source)
    rows = np.unique(np.linspace(0, len(table) - 1, min(n, len(table))).astype(np.int64))
    parquet.write_table(table.take(rows), target)


def facts_of(base: Job, rounds: int) -> dict[str, Any]:
    """What the rates refer to."""
    from medrec.library.arrays import MoleculeLibrary

    library = MoleculeLibrary.load(base.library)
    facts = {
        "library": library.name,
        "molecules": len(library),
        "atoms_per_molecule": round(float(library.n_atoms.mean()), 2),
        "hydrogens": library.hydrogens,
        "molecules_per_pass": base.batch * base.batches,
        "batch": base.batch,
        "rounds": rounds,
        "threads": base.threads,
        "device": base.device,
    }
    if base.device == "cuda":
        import torch

        facts["device"] = torch.cuda.get_device_name()
    return facts


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--library", type=Path, help="folder of an imported library with 3D")
    source.add_argument("--qm9", type=Path, help="QM9 as a Parquet file")
    parser.add_argument("--n", type=int, default=4_000, help="molecules of --qm9 to import")
    parser.add_argument("--d", type=int, default=300)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--no-small", action="store_true", help="leave d 128, 4 layers out")
    parser.add_argument("--peer-only", action="store_true", help="leave tasks without a peer out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="128 on a CPU, 1,024 on CUDA")
    parser.add_argument("--batches", type=int, help="of a pass; 2 on a CPU, 4 on CUDA")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--no-profile", action="store_true", help="leave shares of operators out")
    parser.add_argument("--no-save", action="store_true", help="print, write no result file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    if chosen.job:
        words = json.loads(chosen.job)
        child(Job(**{**words, "library": Path(words["library"])}))
        return
    on_gpu = chosen.device == "cuda"
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            print("no GPU benchmark: PyTorch finds no CUDA device")
            raise SystemExit(3)
    with tempfile.TemporaryDirectory() as temporary:
        base = Job(
            library=make_library(chosen, Path(temporary)),
            d=chosen.d,
            layers=chosen.layers,
            batch=chosen.batch or (PAPER_BATCH if on_gpu else 128),
            batches=chosen.batches or (4 if on_gpu else 2),
            threads=chosen.threads,
            device=chosen.device,
        )
        measure(chosen, base)


def measure(chosen: argparse.Namespace, base: Job) -> None:
    rates: dict[str, Any] = {}
    rounds = chosen.rounds
    sizes = [base]
    if not chosen.no_small:
        sizes.append(replace(base, d=SMALL[0], layers=SMALL[1]))
    figures = parity_figures(base) if base.device == "cuda" else []
    for size in sizes:
        figures += against_peer(size, chosen.peer_workers, rounds, rates)
    if not chosen.peer_only:
        for size in sizes:
            figures += other_tasks(size, rounds, rates)
    figures += loading(base, rounds, rates)
    profiles = {} if chosen.no_profile else profiles_of(base)
    save(chosen, base, figures, {"runs": rates, "operators": profiles})


def profiles_of(base: Job) -> dict[str, Any]:
    """Shares of operators in L_All."""
    jobs = {
        "ours, float32": replace(base, who="profile_ours"),
        "ours, bfloat16": replace(base, who="profile_ours", bfloat16=True),
        "peer (b), float32": replace(base, who="profile_peer", kept=True),
    }
    return {f"{name}, {size_of(base)}": alone(job)["shares"] for name, job in jobs.items()}


def save(chosen: argparse.Namespace, base: Job, figures: list[Any], extra: dict[str, Any]) -> None:
    """Publish the figures, and put settings, all rates and profiles beside them."""
    from record import command_line, publish

    from quantum.base import read_json, write_json_atomic

    facts = facts_of(base, chosen.rounds)
    print(json.dumps({"facts": facts, "operators": extra["operators"]}, indent=1))
    if chosen.no_save:
        for item in figures:
            print(item)
        return
    name = "pretrain_throughput_gpu" if base.device == "cuda" else "pretrain_throughput"
    publish(name, figures)
    path = HERE / "results" / f"{name}.json"
    command = command_line("pretrain_throughput")
    write_json_atomic(path, read_json(path) | {"command": command, "facts": facts} | extra)


if __name__ == "__main__":
    main()
