"""Native thread pools follow the cores of a task, also in a process that had other tasks before.

A pool has the size that it found when its library was loaded, so a reused worker keeps the one of
its first task, and a worker that inherited ``OMP_NUM_THREADS=1`` keeps that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from threadpoolctl import ThreadpoolController

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


_found: tuple[int, ThreadpoolController] | None = None


def thread_pools() -> ThreadpoolController:
    """Controller of the thread pools that are loaded; libraries are searched for only once.

    Looking for them takes milliseconds, as much as a small task. They are looked for again once
    further modules have been imported.
    """
    global _found
    if _found is None or _found[0] != len(sys.modules):
        _found = len(sys.modules), ThreadpoolController()
    return _found[1]


@contextmanager
def limit_threads(n: int) -> Iterator[None]:
    """Let native libraries use ``n`` threads within a block; before and after it counts as well.

    Covers OpenBLAS, MKL and OpenMP of libraries that are loaded, those that are loaded within the
    block and programs started there (through the environment), and PyTorch if it is loaded. Call it
    in the thread that computes: OpenMP's setting belongs to a thread.

    Polars makes its pool once in a process, with the size of the first block, and PyTorch's pool
    for tasks of its own (``torch.jit.fork``) stays at one thread.

    Parameters
    ----------
    n : int
        At least 1; zero counts as one.
    """
    n = max(1, n)
    kept = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(n)))
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        with thread_pools().limit(limits=n):
            if torch:
                torch.set_num_threads(n)
                with suppress(RuntimeError):  # settled by an earlier call, or in use already
                    torch.set_num_interop_threads(1)
            yield
    finally:
        if torch:
            torch.set_num_threads(before)
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
