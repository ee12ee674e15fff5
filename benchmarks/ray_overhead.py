"""What Ray, claims, child processes and commits cost per task, on two cores of this machine.

A task has one stage; its chemistry is a toy that sleeps or burns CPU time, everything around it is
what `medrec features run` does: keys, the driver, a Ray task, a child process, a claim, a commit to
a store in a folder, the ledger. Each measurement is a process with a Ray cluster of its own.

    make bench NAME=ray_overhead
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import Figure, publish

HERE = Path(__file__).parent
# kind and CPU or wall seconds of a task, how many; the goal is for tasks of a second
LENGTHS = (("sleep:0.1", 200), ("sleep:1", 30), ("burn:1", 30), ("sleep:10", 4), ("burn:10", 4))
GOAL_OVERHEAD = 0.02
GOAL_MEDIAN_S, GOAL_P99_S = 0.005, 0.020
GOAL_RATE, WINDOWS = 1000.0, (64, 1024, 16_000)
GOAL_RESUME_S, GOAL_FLAT_MB = 10.0, 100.0
PATHS = {
    "here": "without Ray: keys, look-up, claim, stage, commit",
    "empty": "Ray and driver alone, nothing computed or stored",
    "worker": "Ray, claim, commit, ledger; the stage in the Ray worker",
    "child": "Ray, claim, commit, ledger; the stage in a child process, as shipped",
}


def job(*words: Any) -> dict[str, Any]:
    """Measure in a process of its own."""
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "MEDREC_"))
        },
        "PYTHONPATH": os.pathsep.join((str(HERE / "traced_stages"), str(HERE))),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "ray_overhead_jobs.py"), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr[-2000:]}")
    print(*words, flush=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def overheads(share: float) -> tuple[list[Figure], dict[str, Any]]:
    """Seconds through Ray over half of the seconds of a plain loop."""
    rows, facts = [], {}
    for toy, count in LENGTHS:
        found = job("overhead", toy, max(2 * round(count * share / 2), 2))
        facts[toy] = found
        over = found["ray_s"] / found["ideal_s"] - 1.0
        goal = GOAL_OVERHEAD if toy.endswith(":1") else None
        how, seconds = toy.split(":")
        rows.append(
            Figure(
                f"overhead on two cores, tasks that {how} for {seconds} s",
                over, "1", None, None, goal, None if goal is None else over <= goal,
            )
        )  # fmt: skip
    return rows, facts


def latencies(count: int) -> list[Figure]:
    """Seconds per task, one at a time, by what is part of it."""
    rows = []
    for how, title in PATHS.items():
        words = ("here",) if how == "here" else ("latency", how)
        each = job(*words, count)["each_s"]
        for name, value, goal in (
            ("median", float(np.median(each)), GOAL_MEDIAN_S),
            ("99 %", float(np.quantile(each, 0.99)), GOAL_P99_S),
        ):
            judged = how in ("worker", "child")
            rows.append(
                Figure(
                    f"per task, {title}: {name}", value, "s", None, None,
                    goal if judged else None, value <= goal if judged else None,
                )
            )  # fmt: skip
    return rows


def rates(share: float) -> list[Figure]:
    """Empty tasks per second, beside a plain loop and a pool of processes."""
    processes = job("dispatch", "processes", int(20_000 * share), 0)["rate"]
    rows = []
    for window in WINDOWS:
        count = max(int(6000 * share), min(window + window // 4, int(20_000 * share)))
        ours = job("dispatch", "pool", count, window)["rate"]
        plain = job("dispatch", "plain", count, window)["rate"]
        rows.append(
            Figure(
                f"empty tasks per second, window {window}; peer: ray.remote and ray.get",
                ours, "1/s", plain, ours / plain, GOAL_RATE, ours >= GOAL_RATE,
            )
        )  # fmt: skip
    rows.append(
        Figure(
            "empty tasks per second, window 64; peer: ProcessPoolExecutor",
            rows[0].value, "1/s", processes, rows[0].value / processes,
        )
    )  # fmt: skip
    other = job("dispatch", "memory", int(2000 * share), 1024)["rate"]
    rows.append(
        Figure(
            "empty tasks per second, each of another shape (not shipped), window 1024", other, "1/s"
        )
    )
    return rows


def long_runs(share: float) -> tuple[list[Figure], dict[str, Any]]:
    """A finished sweep again, and the memory of a long one."""
    n_keys, n_tasks = int(10_000 * share), int(50_000 * share)
    again, long = job("resume", n_keys), job("memory", n_tasks)
    if again["left"] or again["ray_started"]:
        raise SystemExit(f"something was left of a finished sweep: {again}")
    grown = max(long["along_mb"].values()) - long["after_1000_mb"]
    rows = [
        Figure(
            f"resume of a finished sweep of {n_keys} molecules, with imports",
            again["with_imports_s"], "s", None, None, GOAL_RESUME_S,
            again["with_imports_s"] <= GOAL_RESUME_S,
        ),
        Figure(f"the same without imports, {n_keys} molecules", again["seconds"], "s"),
        Figure(
            f"driver's memory, {n_tasks} requests over 1,000",
            grown, "MiB", None, None, GOAL_FLAT_MB, grown <= GOAL_FLAT_MB,
        ),
        Figure(
            f"driver, {n_tasks} requests in one run, nothing computed",
            n_tasks / long["seconds"], "1/s",
        ),
    ]  # fmt: skip
    return rows, {"resume": again, "memory": long}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the numbers of tasks")
    words = parser.parse_args()
    begin = time.monotonic()
    first = job("start")
    loops, details = overheads(words.share)
    rows = [*loops, *latencies(max(int(400 * words.share), 20)), *rates(words.share)]
    more, facts = long_runs(words.share)
    publish(
        "ray_overhead",
        [
            *rows,
            *more,
            Figure("start of a local Ray", first["ray_s"], "s"),
            Figure("first piece after that", first["first_piece_s"], "s"),
        ],
        overhead=details,
        share=words.share,
        seconds=time.monotonic() - begin,
        **facts,
    )


if __name__ == "__main__":
    main()
