"""One task in a child process with its own threads, memory limit and deadline.

Native thread pools keep the size they had when a worker started, a stuck native call cannot be
cancelled, and a memory-hungry molecule takes its process with it. So a calculation runs in a
process of its own, and whatever happens to it comes back as an outcome with a kind.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from quantum.base import MedrecError
from quantum.pipeline import Outcome, Task, compute_features, record_failure
from quantum.schema import Resources
from quantum.store import Store

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_TAIL = 2000


def thread_environment(threads: int) -> dict[str, str]:
    """Environment of this process with all native thread pools set to ``threads``."""
    return {**os.environ, **{name: str(threads) for name in _THREAD_VARIABLES}}


def run_in_child(task: Task, store_root: Path, resources: Resources) -> Outcome:
    """Compute one task in a child process.

    Returns
    -------
    Outcome
        ``resource`` after the deadline or a kill by the memory limit, ``transient`` after another
        signal; otherwise what the child found. Such failures are recorded in the store.
    """
    start = time.perf_counter()
    request = {
        "task": task.model_dump(mode="json"),
        "store": str(store_root),
        "resources": resources.model_dump(mode="json"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "quantum.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=thread_environment(resources.threads),
    ) as child:
        try:
            out, err = child.communicate(json.dumps(request), timeout=resources.time_limit_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            message = f"stopped after {resources.time_limit_s:.0f} s ({task.species.n_atoms} atoms)"
            return _give_up(task, store_root, "resource", message, start)
        except BaseException:
            child.kill()
            raise
    if child.returncode == 0:
        return Outcome.model_validate_json(out.strip().splitlines()[-1])
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        kind, message = "transient", f"child ended by {name}; last output: {err[-_TAIL:].strip()}"
    else:
        kind, message = "unknown", f"child exit {child.returncode}: {err[-_TAIL:].strip()}"
    return _give_up(task, store_root, kind, message, start)


def _give_up(task: Task, store_root: Path, kind: str, message: str, start: float) -> Outcome:
    from quantum.pipeline import plan

    store = Store(store_root)
    keys = plan(task.species, task.spec)
    stage = next((item for item in task.stages if not store.has(keys[item])), task.stages[-1])
    record_failure(store, task, stage, kind, message)
    return Outcome(
        species_key=task.species.key,
        status="failed",
        stage=stage,
        kind=kind,
        message=message,
        seconds=time.perf_counter() - start,
    )


def main() -> None:
    """Body of the child: read one request from standard input, write one outcome."""
    request = json.load(sys.stdin)
    resources = Resources.model_validate(request["resources"])
    limit = (resources.memory_mb + 2000) * 2**20  # programs and libraries map about 2 GB of files
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    task = Task.model_validate(request["task"])
    try:
        outcome = compute_features(task, Store(Path(request["store"])), resources)
    except MedrecError as error:
        outcome = Outcome(
            species_key=task.species.key, status="failed", kind=error.kind, message=str(error)
        )
    print(outcome.model_dump_json())


if __name__ == "__main__":
    main()
