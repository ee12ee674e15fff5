"""Calculations in child processes with their own threads, memory limit and deadline.

Native thread pools keep the size they had when a worker started, a stuck native call cannot be
cancelled, and a memory-hungry molecule takes its process with it. So a calculation runs in a
process of its own, and whatever happens to it comes back as an outcome with a kind.

Children are forked from a `quantum.fork_server` that has loaded the programs, so that a molecule
does not wait for imports. A child takes a list of tasks, one after the other; if one of them ends
it, the next child goes on behind that one. A child that has had small tasks alone takes the next
list, too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantum.base import MedrecError
from quantum.fork_handle import ChildEnd, ForkServer
from quantum.pipeline import Outcome, Stage, Task, open_stages, record_failure
from quantum.schema import Resources
from quantum.store import is_url, open_store
from quantum.threads import THREAD_VARIABLES

_TAIL = 2000
_CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
_servers: dict[tuple[int, bool], ForkServer] = {}
os.register_at_fork(after_in_child=_servers.clear)  # a server has one owner


@dataclass(frozen=True)
class ChildRequest:
    """What a child gets besides its tasks.

    Parameters
    ----------
    store : str
        Location, see `quantum.store.open_store`.
    owner : str, optional
        Of claims; None makes no claims.
    """

    store: str
    resources: Resources
    owner: str | None = None


def thread_environment(threads: int) -> dict[str, str]:
    """Environment of this process with all native thread pools set to ``threads``."""
    return {**os.environ, **{name: str(threads) for name in THREAD_VARIABLES}}


def run_in_child(
    task: Task, store: str | Path, resources: Resources, owner: str | None = None
) -> Outcome:
    """Compute one task in a child process; see `run_all_in_child`."""
    return run_all_in_child([task], ChildRequest(str(store), resources, owner))[0]


def run_all_in_child(
    tasks: Sequence[Task],
    request: ChildRequest,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Compute tasks one after the other in a child process, each with the whole deadline.

    Returns
    -------
    list of Outcome
        In the order of the tasks. ``resource`` after the deadline or a kill by the memory limit,
        ``crash`` after a fault of the program (segmentation fault, abort), ``transient`` after
        another signal; otherwise what the child found. Such failures are recorded in the store.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(tasks):
        rest = tasks[len(outcomes) :]
        found, end = _one_child(rest, request)
        if len(found) < len(rest):
            found.append(_explain(rest[len(found)], request, end))
        for outcome in found:
            if on_outcome is not None:
                on_outcome(outcome)
        outcomes += found
    return outcomes


def _one_child(tasks: Sequence[Task], request: ChildRequest) -> tuple[list[Outcome], ChildEnd]:
    server = _server(request.resources.threads, remote=is_url(request.store))
    body = {
        "tasks": [task.model_dump(mode="json") for task in tasks],
        "store": request.store,
        "resources": request.resources.model_dump(mode="json"),
        "owner": request.owner,
    }
    lines, end = server.run(body, len(tasks), request.resources.time_limit_s)
    facts = {"peak_mb": end.peak_mb, "cpu_s": end.cpu_s} if len(tasks) == 1 else {}
    return [Outcome.model_validate_json(text).model_copy(update=facts) for text in lines], end


def _server(threads: int, *, remote: bool = False) -> ForkServer:
    """The server for so many threads, and for stores on another machine; started when needed."""
    server = _servers.get((threads, remote))
    if server is None or not server.is_alive():
        more = ("s3fs",) if remote else ()
        server = _servers[threads, remote] = ForkServer(thread_environment(threads), more)
    return server


def _explain(task: Task, request: ChildRequest, end: ChildEnd) -> Outcome:
    """Outcome of a task whose child ended before it did."""
    resources, atoms = request.resources, f"({task.species.n_atoms} atoms)"
    tail = f"last output: {end.output[-_TAIL:].strip() or 'none'}"
    if end.timed_out:
        kind, message = "resource", f"stopped after {resources.time_limit_s:.0f} s {atoms}"
    elif end.signal in _CRASH_SIGNALS:
        kind, message = "crash", f"child ended by {signal.Signals(end.signal).name} {atoms}; {tail}"
    elif end.signal:
        name = signal.Signals(end.signal).name
        kind, message = "transient", f"child ended by {name} {atoms}; {tail}"
    else:
        kind, message = "unknown", f"child exit {end.exit_code} {atoms}; {tail}"
    stage = _open_stage(task, request)
    record_failure(open_store(request.store), task, stage, kind, message)
    return Outcome(
        species_key=task.species.key,
        status="failed",
        stage=stage,
        kind=kind,
        message=message,
        seconds=end.seconds,
        peak_mb=end.peak_mb,
        cpu_s=end.cpu_s,
    )


def _open_stage(task: Task, request: ChildRequest) -> Stage:
    """First stage without a result."""
    try:
        store = open_store(request.store)
        stage = next(iter(open_stages(task, store)), task.stages[-1])
        if request.owner:
            store.release(task.keys[stage], request.owner)
    except MedrecError:
        return task.stages[-1]
    return stage


def close_servers() -> None:
    """End the fork servers of this process; new ones start on demand."""
    while _servers:
        _servers.popitem()[1].close()


def measure_start() -> float:
    """Seconds that a new child takes for nothing once its server is there; for benchmarks."""
    server = _server(1)
    server.retire()
    start = time.perf_counter()
    server.run({"tasks": [], "store": "", "resources": {}, "owner": None}, 0, 60.0)
    return time.perf_counter() - start
