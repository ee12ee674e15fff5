"""What one process of `ray_overhead` measures.

``python benchmarks/ray_overhead_jobs.py JOB ARGUMENTS``; the last line of the output is the answer
as JSON. Each job has a process and a Ray cluster of its own, so that none inherits the memory or
the workers of another.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from soak_jobs import LIMITS, SPEC, toy_tasks

from orchestration.graph import Backlog, Piece, pieces_of
from orchestration.ledger import LEDGER, Ledger
from orchestration.precompute import Driver, Settings, Tally
from orchestration.tasks import Ask, RayPool
from quantum.pipeline import Claims, Outcome, Task, compute_features
from quantum.store import open_store

SLOTS = 2
TOY_VARIABLE = "MEDREC_TOY"


def nothing(_: Any) -> None:
    """An empty task."""


def empty_piece(piece: Piece) -> list[Outcome]:
    """Every task of a piece done, without doing it."""
    return [Outcome(species_key=t.species.key, status="done", stages=t.stages) for t in piece.tasks]


def without_child(piece: Piece, store: str, owner: str) -> list[Outcome]:
    """A piece in the Ray worker itself: key, claim, the stage, commit; for comparison alone."""
    _play_toys()
    from quantum.fork_server import claims_of  # as a child, one thread for all tasks

    claims = claims_of(owner)
    return [compute_features(task, open_store(store), piece.limits, claims) for task in piece.tasks]


def _play_toys() -> None:
    """What fork servers do when they start, done in this process, once."""
    import sitecustomize

    from quantum import pipeline

    if pipeline._run_stage.__name__ != "traced":
        sitecustomize.patch()


@contextlib.contextmanager
def cluster(n_cpus: int = SLOTS) -> Iterator[Any]:
    """A local Ray."""
    from orchestration.cluster import local_ray

    with local_ray(n_cpus) as ray:
        yield ray


def rss_mb() -> float:
    """Resident memory of this process, units of 2^20 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("memory is read from /proc/self/status: needs Linux")


class Drive:
    """Drivers over one store and one cluster, as `orchestration.features.compute` makes them.

    Parameters
    ----------
    window : int
        Pieces in flight.
    body : callable, optional
        Of the Ray task, in place of the child process.
    """

    def __init__(
        self, ray: Any, home: Path, window: int, body: Callable[..., Any] | None = None
    ) -> None:
        self.ray, self.home, self.window, self.body = ray, home, window, body
        self.store = open_store(home / "store")

    def run(self, tasks: list[Task], on_step: Callable[[Tally, str], None] | None = None) -> float:
        """Seconds that the driver takes for some tasks, from its pieces to its ledger."""
        ledger = Ledger(self.home / LEDGER)
        settings = Settings(limits=LIMITS, window=lambda: self.window)
        step = on_step or (lambda tally, note: None)
        driver = Driver(RayPool(self.ray), self.store, ledger, settings, print, on_step=step)
        if self.body is empty_piece:
            driver._work = self.body  # type: ignore[assignment]
        elif self.body is not None:
            driver._work = partial(self.body, store=self.store.location, owner=driver.owner)
        start = time.perf_counter()
        tally = driver.run(Backlog([], tasks, partial(pieces_of, limits=LIMITS)))
        seconds = time.perf_counter() - start
        ledger.close()
        if tally.done != len(tasks):
            raise SystemExit(f"{tally.done} of {len(tasks)} tasks done: {tally.examples}")
        return seconds


# --------------------------------------------------------------------------- the jobs


def overhead(toy: str, count: str) -> dict[str, float]:
    """Tasks of one length: seconds through Ray on two cores, and one after the other here."""
    n = int(count)
    os.environ[TOY_VARIABLE] = toy
    with tempfile.TemporaryDirectory() as folder, cluster() as ray:
        drive = Drive(ray, Path(folder) / "ray", 2 * SLOTS)
        drive.run(toy_tasks(1_000_000, 3 * SLOTS))  # workers and their fork servers start
        through_ray = drive.run(toy_tasks(0, n))
    _play_toys()
    with tempfile.TemporaryDirectory() as folder:
        store, few = open_store(Path(folder)), toy_tasks(0, max(n // 4, 2))
        compute_features(toy_tasks(1_000_000, 1)[0], store)
        start = time.perf_counter()
        for task in few:
            compute_features(task, store)
        serial = (time.perf_counter() - start) * n / len(few)
    return {"ray_s": through_ray, "serial_s": serial, "ideal_s": serial / SLOTS}


def latency(how: str, count: str) -> dict[str, Any]:
    """Seconds of each empty task, one at a time, from its submission to the next."""
    os.environ[TOY_VARIABLE] = "sleep:0"
    body = {"child": None, "worker": without_child, "empty": empty_piece}[how]
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder, cluster(1) as ray:
        drive = Drive(ray, Path(folder), 1, body)
        drive.run(toy_tasks(1_000_000, 5))
        drive.run(toy_tasks(0, int(count)), lambda tally, note: ends.append(time.perf_counter()))
    return {"each_s": [b - a for a, b in itertools.pairwise(ends)]}


def here(count: str) -> dict[str, Any]:
    """Seconds of each empty task in this process: keys, look-up, claim, stage, commit."""
    os.environ[TOY_VARIABLE] = "sleep:0"
    _play_toys()
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        store, claims = open_store(Path(folder)), Claims("nobody")
        for task in toy_tasks(0, int(count)):
            start = time.perf_counter()
            compute_features(task, store, LIMITS, claims)
            spent.append(time.perf_counter() - start)
    return {"each_s": spent}


def dispatch(how: str, count: str, window: str) -> dict[str, float]:
    """Empty tasks per second.

    ``pool`` is ours, ``memory`` ours with another memory for each task, ``plain`` a loop over
    ``ray.remote`` and one ``ray.get`` per window, ``processes`` a pool of the standard library.
    """
    n, most = int(count), int(window)
    if how == "processes":
        return {"rate": _processes(n)}
    with cluster() as ray:
        run = {"pool": _pool, "memory": partial(_pool, shapes=n), "plain": _plain}[how]
        run(ray, 200, 64)
        start = time.perf_counter()
        run(ray, n, most)
        return {"rate": n / (time.perf_counter() - start)}


def _pool(ray: Any, n: int, window: int, shapes: int = 0) -> None:
    pool, sent = RayPool(ray), 0
    while sent < n or len(pool):
        while sent < n and len(pool) < window:
            pool.submit(sent, nothing, None, Ask(1, 500 + sent if shapes else 500))
            sent += 1
        for answer in pool.finished():
            if answer.value is not None:
                raise SystemExit(f"an empty task failed: {answer.value}")


def _plain(ray: Any, n: int, window: int) -> None:
    empty = ray.remote(num_cpus=1)(nothing)
    for start in range(0, n, window):
        ray.get([empty.remote(None) for _ in range(min(window, n - start))])


def _processes(n: int) -> float:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(SLOTS) as pool:
        list(pool.map(nothing, range(200)))
        start = time.perf_counter()
        for future in [pool.submit(nothing, None) for _ in range(n)]:
            future.result()
        return n / (time.perf_counter() - start)


def resume(count: str) -> dict[str, Any]:
    """Seconds of a command that has nothing left to do, in a new process."""
    import subprocess

    from sitecustomize import toy_record

    n = int(count)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "store")
        for task in toy_tasks(0, n):
            store.put(toy_record(task.keys["conformer"], "conformer"))
        command = [sys.executable, __file__, "resume_now", count, folder]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        whole = time.perf_counter() - start
    return {**json.loads(done.stdout.splitlines()[-1]), "with_imports_s": whole}


def resume_now(count: str, folder: str) -> dict[str, Any]:
    """The same command again, over a store that has everything."""
    import ray

    from medrec.config import FeatureRunConfig
    from medrec.runs import Home
    from orchestration.console import Terminal
    from orchestration.features import compute

    config = FeatureRunConfig(name="resume", pipeline=SPEC, atlas="none", resources=LIMITS)
    start = time.perf_counter()
    tasks = toy_tasks(0, int(count))
    tally = compute(config, ([], tasks), Home(Path(folder)), Terminal(quiet=True))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "left": tally.total, "ray_started": ray.is_initialized()}


def memory(count: str) -> dict[str, Any]:
    """Resident memory of a driver along many empty tasks; requests are objects of their own."""
    n, seen = int(count), {}

    def step(tally: Tally, note: str) -> None:
        if tally.done in (n // 50, n // 2, n):
            seen[tally.done] = rss_mb()

    with tempfile.TemporaryDirectory() as folder, cluster() as ray:
        drive = Drive(ray, Path(folder), 64, empty_piece)
        drive.run(toy_tasks(1_000_000, 1000))
        before = rss_mb()
        tasks = distinct_tasks(n)
        seconds = drive.run(tasks, step)
    return {"after_1000_mb": before, "along_mb": seen, "seconds": seconds}


def distinct_tasks(n: int) -> list[Task]:
    """Requests as a sweep has them: molecules of their own (invented), one specification."""
    (pattern,) = toy_tasks(0, 1)
    invented = ({"charge": i, "inchikey": f"{i:027d}"} for i in range(n))
    species = (pattern.species.model_copy(update=item) for item in invented)
    return [pattern.model_copy(update={"species": item}) for item in species]


def start() -> dict[str, float]:
    """Seconds until Ray is up, and until the first piece is done after that."""
    os.environ[TOY_VARIABLE] = "sleep:0"
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, cluster() as ray:
        up = time.perf_counter()
        Drive(ray, Path(folder), 1).run(toy_tasks(0, 1))
        first = time.perf_counter()
    return {"ray_s": up - begin, "first_piece_s": first - up}


JOBS: dict[str, Callable[..., Any]] = {
    job.__name__: job
    for job in (overhead, latency, here, dispatch, resume, resume_now, memory, start)
}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])), flush=True)
