"""Settings of a driver of precomputation, and what it counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quantum.schema import Resources


@dataclass
class Tally:
    """Counts of a run: molecules in each state, and what there is left."""

    total: int = 0
    done: int = 0
    present: int = 0
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    executions: int = 0
    attempts: int = 0
    cost_left_s: float = 0.0
    cost_done_s: float = 0.0

    @property
    def finished(self) -> int:
        """Pieces' molecules that need nothing more."""
        return self.done + self.present + sum(self.failed.values())


@dataclass
class Settings:
    """How a driver behaves.

    Parameters
    ----------
    limits : Resources
        What a task may take.
    window : callable
        Pieces in flight at most; asked every few seconds, since clusters grow.
    most_memory_mb : callable
        Memory of the largest machine, None if not known yet.
    retry : tuple of str
        Kinds of failures that get new attempts.
    grace_s : float
        After an interruption, seconds that running pieces have to finish.
    """

    limits: Resources
    window: Callable[[], int]
    most_memory_mb: Callable[[], float | None] = lambda: None
    retry: tuple[str, ...] = ()
    grace_s: float = 10.0
    clock: Callable[[], float] = time.monotonic


def explain(tally: Tally) -> list[str]:
    """One line per kind of failure, then some examples."""
    lines = [
        f"{count} species failed at {stage or 'the start'}: {kind}"
        for (stage, kind), count in sorted(tally.failed.items())
    ]
    return [*lines, *(f"  for example: {text[:300]}" for text in tally.examples)]


def facts(tally: Tally) -> dict[str, Any]:
    """Numbers of a run."""
    return {
        "molecules": tally.total,
        "done": tally.done,
        "present": tally.present,
        "failed": sum(tally.failed.values()),
        "executions": tally.executions,
        "attempts": tally.attempts,
    }
