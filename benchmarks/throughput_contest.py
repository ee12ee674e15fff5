"""Contestants of `pretrain_throughput`: processes that take turns, their results and figures."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from record import Figure
from throughput_jobs import Job

HERE = Path(__file__).parent
PRECISIONS = ("float32", "bfloat16")
PAPER_SIZE = "d 300, 8 layers"
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
    return subprocess.Popen(
        [sys.executable, HERE / "throughput_jobs.py", job.to_json()],
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


def against_peer(base: Job, workers: list[int], rounds: int, log: dict[str, Any]) -> list[Figure]:
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


def other_tasks(base: Job, rounds: int, log: dict[str, Any]) -> list[Figure]:
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


def loading(base: Job, rounds: int, log: dict[str, Any]) -> list[Figure]:
    """Data pipeline alone, over more molecules than a pass of the network has."""
    job = replace(base, who="loader", batches=20 * base.batches)
    found = contest({"loader": job}, rounds)
    log["data pipeline"] = {name: asdict(item) for name, item in found.items()}
    return [figure("data pipeline alone, molecules planned and collated", found["loader"])]


def rate_of(result: Result) -> float:
    return result.rate


def size_of(job: Job) -> str:
    return f"d {job.d}, {job.layers} layers"


def figure(
    name: str, ours: Result, peer: Result | None = None, goal: float | None = None
) -> Figure:
    rate, unit = round(ours.rate, 1), "molecules/s"
    if peer is None:
        return Figure(name, rate, unit)
    ratio = ours.rate / peer.rate
    met = None if goal is None else ratio >= goal
    return Figure(name, rate, unit, round(peer.rate, 1), round(ratio, 2), goal, met)


def against_paper(ours: Result, precision: str) -> Figure:
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


def memory(name: str, ours: Result, peer: Result | None = None) -> Figure:
    if peer is None:
        return Figure(name, round(ours.peak_mib), "MiB")
    ratio = round(peer.peak_mib / ours.peak_mib, 2)
    return Figure(name, round(ours.peak_mib), "MiB", round(peer.peak_mib), ratio)


def waited(name: str, ours: Result) -> Figure:
    return Figure(name, round(ours.waited, 4), "1")


def parity_figures(base: Job) -> list[Figure]:
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


def profiles_of(base: Job) -> dict[str, Any]:
    """Shares of operators in L_All."""
    jobs = {
        "ours, float32": replace(base, who="profile_ours"),
        "ours, bfloat16": replace(base, who="profile_ours", bfloat16=True),
        "peer (b), float32": replace(base, who="profile_peer", kept=True),
    }
    return {f"{name}, {size_of(base)}": alone(job)["shares"] for name, job in jobs.items()}
