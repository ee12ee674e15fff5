"""Writes down every stage that a fork server's children run, and plays toy stages for real ones.

Python imports a module of this name when it starts, if its folder is on ``PYTHONPATH``. It acts in
the fork server alone, and its children inherit what it did.

- ``MEDREC_TRACE``: file that gets a line ``start KEY`` and a line ``end KEY DIGEST`` per execution.
- ``MEDREC_TOY``: ``sleep:SECONDS`` or ``burn:SECONDS`` in place of the chemistry. ``sleep`` leaves
  the core to others, ``burn`` takes that many CPU seconds.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

TRACE, TOY = "MEDREC_TRACE", "MEDREC_TOY"


def toy_record(key: str, stage: str) -> Any:
    """A small record whose numbers follow from its key."""
    import numpy as np

    from quantum.store import Record

    numbers = np.frombuffer(bytes.fromhex(key), dtype=np.uint8).astype(np.float64)
    return Record(key=key, stage=stage, request={}, arrays={"numbers": numbers})


def spend(text: str) -> None:
    """Sleep, or burn CPU time."""
    how, _, seconds = text.partition(":")
    if how == "sleep":
        time.sleep(float(seconds))
        return
    end = time.process_time() + float(seconds)
    while time.process_time() < end:
        sum(range(1000))


def write(line: str) -> None:
    """Append a line to the trace; short appends of several processes do not mix."""
    path = os.environ.get(TRACE)
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode("ascii"))
        finally:
            os.close(descriptor)


def patch() -> None:
    """Put the traced stage in the place of the pipeline's."""
    from quantum import pipeline
    from quantum.store_base import encode, numbers_digest

    real = pipeline._run_stage

    def traced(stage: Any, task: Any, keys: Any, store: Any, resources: Any) -> Any:
        write(f"start {keys[stage]}")
        toy = os.environ.get(TOY)
        if toy:
            spend(toy)
            record = toy_record(keys[stage], stage)
        else:
            record = real(stage, task, keys, store, resources)
        write(f"end {keys[stage]} {numbers_digest(encode(record)[0])}")
        return record

    pipeline._run_stage = traced


if "quantum.fork_server" in sys.orig_argv:
    patch()
