"""Features of many molecules on a real Ray cluster in which something is killed all the time.

Nodes are `ray start --block` on this machine. At random a Ray worker, a calculation, the server
that starts calculations, a whole node or the driver is killed outright (``kill -9``); a node is
replaced, a driver is started again with the same command. At the end every molecule must be a
result or a recorded failure, and the table of features must be, bit for bit, that of a run which
nobody disturbed.

    make bench NAME=soak                       2,000 molecules, a kill every 20 s
    make bench NAME=soak ARGS="--kills 300"    toy tasks of half a second, killed without a pause
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray_nodes import Machine
from record import Figure, publish
from soak_jobs import Request, smallest, write_species
from soak_kills import Killer

from orchestration.cluster import ADDRESS_VARIABLE
from quantum.base import read_json
from quantum.pipeline import Task
from quantum.store import Store, open_store

HERE = Path(__file__).parent
N_NODES = 2  # of one core
GOAL_EXTRA = 1.2
TOY, TOYS_PER_ROUND = "sleep:0.5", 300
MOST_BROKEN = 5  # drivers that end by an error of their own


@dataclass
class Ended:
    """How a run went."""

    seconds: float
    kills: Counter[str]
    drivers: int
    broken: int


class Soak:
    """A cluster and what runs on it."""

    def __init__(self, folder: Path, seed: int, **environment: str) -> None:
        self.folder, self.trace = folder, folder / "trace"
        self.machine = Machine(
            OMP_NUM_THREADS="1",
            PYTHONPATH=str(HERE / "traced_stages"),
            MEDREC_TRACE=str(self.trace),
            RAY_task_oom_retries="1",
            **environment,
        )
        self.killer = Killer(self.machine, seed)
        self.drivers = 0

    def start_nodes(self) -> None:
        """Start the head, which runs no task, and the nodes."""
        self.machine.start_head()
        for number in range(N_NODES):
            self.machine.start_node(f"node{number + 1}")

    def start_driver(self, request: Request) -> subprocess.Popen[bytes]:
        """The same command every time."""
        self.drivers += 1
        path = request.save(self.folder / "request.json")
        program = (sys.executable, str(HERE / "soak_jobs.py"), str(path))
        address = {ADDRESS_VARIABLE: self.machine.address}
        return self.machine.start(f"driver{self.drivers}", *program, **address)

    def run(self, request: Request, kills: int = 0, every_s: float = 0.0) -> Ended:
        """Drive a request to its end, and kill meanwhile.

        Parameters
        ----------
        kills : int
            At most.
        every_s : float
            Seconds between two kills; 0: as soon as something runs again.
        """
        start, before, first = time.monotonic(), Counter(self.killer.kills), self.drivers
        driver, broken, kinds = self.start_driver(request), 0, self.killer.draw()
        due = start + every_s
        kind = next(kinds)
        while True:
            if driver.poll() is not None:
                if driver.returncode == 0:
                    break
                if driver.returncode > 0:
                    broken += 1
                    if broken > MOST_BROKEN:
                        raise SystemExit(self.machine.log(f"driver{self.drivers}"))
                driver = self.start_driver(request)
            done = sum((self.killer.kills - before).values())
            if done < kills and time.monotonic() >= due and self.killer.kill(kind, driver.pid):
                kind, due = next(kinds), time.monotonic() + every_s
                print(f"kill {done + 1}: {dict(self.killer.kills)}", flush=True)
                if not every_s:
                    self.killer.pause(1.0)
            time.sleep(0.05)
        seconds = time.monotonic() - start
        return Ended(seconds, self.killer.kills - before, self.drivers - first, broken)

    def close(self) -> None:
        """End all processes."""
        self.machine.close()


# --------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Trace:
    """What children wrote down: executions begun, and digests of those that ended, by key."""

    starts: Counter[str]
    digests: dict[str, set[str]]

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read a trace; a line that a kill cut short counts for nothing."""
        starts: Counter[str] = Counter()
        digests: dict[str, set[str]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            words = line.split()
            if words[0] == "start" and len(words) == 2:
                starts[words[1]] += 1
            elif len(words) == 3:
                digests.setdefault(words[1], set()).add(words[2])
        return cls(starts, digests)

    def extra(self, keys: set[str]) -> int:
        """Executions beyond one for each key."""
        return sum(count - 1 for key, count in self.starts.items() if key in keys)


@dataclass(frozen=True)
class Verdict:
    """Counts over molecules; ``divergent`` over keys; ``kinds`` are the failures' own words."""

    done: int
    failed: int
    lost: int
    twice: int
    divergent: int
    kinds: dict[str, int] = field(default_factory=dict, compare=False)


def judge(tasks: list[Task], location: Path, trace: Trace) -> Verdict:
    """Look at every key: a result, or a recorded failure, and never both.

    Divergent is a key whose executions gave different numbers, or whose object is of none of them.
    """
    store: Any = open_store(location)
    planned = [task.keys for task in tasks]
    every = {
        keys[stage] for task, keys in zip(tasks, planned, strict=True) for stage in task.stages
    }
    there, failures = store.present(every), store.failures(every)
    done = failed = lost = 0
    for task, keys in zip(tasks, planned, strict=True):
        mine = {keys[stage] for stage in task.stages}
        if mine <= there:
            done += 1
        elif mine & failures.keys():
            failed += 1
        else:
            lost += 1
    divergent = sum({store.numbers_of(key)} != trace.digests.get(key) for key in there)
    kinds = Counter(f"{f.stage}, {f.kind}: {f.message[:120]}" for f in failures.values())
    return Verdict(done, failed, lost, len(there & failures.keys()), divergent, dict(kinds))


def differences(one: Path, other: Path) -> list[str]:
    """Files and tables in which two exports differ; the time of the export is no difference."""
    found = [] if one.name == other.name else [f"names: {one.name}, {other.name}"]
    names = sorted({path.name for folder in (one, other) for path in folder.iterdir()})
    for name in names:
        a, b = one / name, other / name
        if not (a.exists() and b.exists()):
            found.append(f"{name} is not in both")
        elif not _equal(a, b):
            found.append(name)
    return found


def _equal(a: Path, b: Path) -> bool:
    if a.suffix == ".json":
        first, second = dict(read_json(a)), dict(read_json(b))
        return {**first, "created": ""} == {**second, "created": ""}
    if a.suffix == ".parquet":
        return pd.read_parquet(a).equals(pd.read_parquet(b))
    if a.suffix == ".npz":
        with np.load(a) as x, np.load(b) as y:
            return x.files == y.files and all(x[k].tobytes() == y[k].tobytes() for k in x.files)
    return a.read_bytes() == b.read_bytes()


def same_objects(tasks: list[Task], one: Store, other: Store) -> int:
    """Keys whose numbers differ between two stores, or that only one of them has."""
    every = {task.keys[stage] for task in tasks for stage in task.stages}
    left, right = one.present(every), other.present(every)
    both = left & right
    return len(left ^ right) + sum(one.numbers_of(key) != other.numbers_of(key) for key in both)


# --------------------------------------------------------------------------- the two tests


def soak(folder: Path, words: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Real molecules, disturbed and undisturbed."""
    write_species(smallest(words.molecules), folder / "species.json")
    disturbed = Request(str(folder / "disturbed"), species=str(folder / "species.json"))
    quiet = replace(disturbed, home=str(folder / "quiet"))
    run = Soak(folder, words.seed)
    try:
        run.start_nodes()
        ended = run.run(disturbed, words.max_kills, words.kill_every)
        trace = Trace.read(run.trace)
        run.trace.unlink()
        calm = run.run(quiet)
    finally:
        run.close()
    tasks = disturbed.tasks()
    homes = [Path(request.home) for request in (disturbed, quiet)]
    verdict = judge(tasks, homes[0] / "store", trace)
    (one,), (other,) = (list((home / "features").iterdir()) for home in homes)
    unlike = differences(one, other)
    objects = same_objects(tasks, *(Store(home / "store") for home in homes))
    title = f"soak, {words.molecules} molecules: "
    slower = ended.seconds / calm.seconds
    rows = [
        *_figures(title, verdict, trace, ended),
        Figure(
            f"{title}keys with other numbers than undisturbed",
            objects, "keys", 0, None, 0, not objects,
        ),
        Figure(
            f"{title}files of the export that differ from the undisturbed run's",
            len(unlike), "files", None, None, 0, not unlike,
        ),
        Figure(f"{title}wall time over undisturbed", slower, "times", calm.seconds),
    ]  # fmt: skip
    return rows, {"export": one.name, "differences": unlike, "seconds": ended.seconds,
                  **_facts(verdict, ended)}  # fmt: skip


def toys(folder: Path, words: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Toy tasks in rounds, until all kills are spent."""
    run = Soak(folder, words.seed, MEDREC_TOY=TOY)
    home, rounds, total = folder / "home", 0, Ended(0.0, Counter(), 0, 0)
    try:
        run.start_nodes()
        while (left := words.kills - sum(total.kills.values())) > 0:
            request = Request(str(home), toys=TOYS_PER_ROUND, first=rounds * TOYS_PER_ROUND)
            ended = run.run(request, left)
            rounds += 1
            total = Ended(
                total.seconds + ended.seconds,
                total.kills + ended.kills,
                total.drivers + ended.drivers,
                total.broken + ended.broken,
            )
    finally:
        run.close()
    trace, tasks = Trace.read(run.trace), Request("", toys=rounds * TOYS_PER_ROUND).tasks()
    verdict = judge(tasks, home / "store", trace)
    title = f"{len(tasks)} toy tasks of 0.5 s: "
    return _figures(title, verdict, trace, total), {
        "seconds": total.seconds,
        **_facts(verdict, total),
    }


def _figures(title: str, verdict: Verdict, trace: Trace, ended: Ended) -> list[Figure]:
    kills = sum(ended.kills.values())
    extra = trace.extra(set(trace.starts)) / max(kills, 1)
    rows = [
        Figure(f"{title}{name}", value, unit, None, None, 0, value == 0)
        for name, value, unit in (
            ("lost", verdict.lost, "molecules"),
            ("divergent", verdict.divergent, "keys"),
            ("both a result and a failure", verdict.twice, "keys"),
            ("drivers that ended by an error", ended.broken, "drivers"),
        )
    ]
    return [
        Figure(f"{title}kills", kills, "kills"),
        *rows,
        Figure(f"{title}failures recorded", verdict.failed, "molecules"),
        Figure(
            f"{title}extra executions per kill", extra, "executions", None, None,
            GOAL_EXTRA, extra <= GOAL_EXTRA if kills else None,
        ),
    ]  # fmt: skip


def _facts(verdict: Verdict, ended: Ended) -> dict[str, Any]:
    return {
        "kills": dict(ended.kills),
        "drivers": ended.drivers,
        "done": verdict.done,
        "failures": verdict.kinds,
        "nodes": N_NODES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=2000)
    parser.add_argument("--kill-every", type=float, default=20.0, help="seconds")
    parser.add_argument("--max-kills", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=0, help="toy tasks, this many kills")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures, facts = (toys if words.kills else soak)(Path(folder), words)
    name = "soak_toys" if words.kills else "soak"
    publish(name, figures, seed=words.seed, nodes_of_one_core=N_NODES, **facts)


if __name__ == "__main__":
    main()
