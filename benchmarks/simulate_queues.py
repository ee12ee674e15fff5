"""Tasks of a simulated cluster that wait: with the driver, and in flight for a core and memory."""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np
from simulate_model import NEVER, Batch, Cluster


class Queue:
    """Tasks that the driver has not handed out and could: in their order, followers when due."""

    def __init__(self, batch: Batch) -> None:
        n = len(batch.core_s)
        after = np.full(n, -1) if batch.after is None else batch.after
        self.rank = np.empty(n, np.int64)
        self.rank[batch.order] = np.arange(n)
        self.follower = {int(before): task for task, before in enumerate(after) if before >= 0}
        self.first: list[int] = batch.order[after[batch.order] < 0].tolist()
        self.next = 0
        self.later: list[tuple[int, int]] = []

    def __bool__(self) -> bool:
        return self.next < len(self.first) or bool(self.later)

    def take(self) -> int:
        """The first in order."""
        if self.next < len(self.first):
            task = self.first[self.next]
            if not self.later or self.rank[task] < self.later[0][0]:
                self.next += 1
                return task
        return heapq.heappop(self.later)[1]

    def release(self, done: int) -> None:
        """What followed on a task may go."""
        task = self.follower.get(done)
        if task is not None:
            heapq.heappush(self.later, (int(self.rank[task]), task))


class Pending:
    """Tasks in flight that have not started: a line for each size of memory, by their number."""

    def __init__(self, batch: Batch, cluster: Cluster) -> None:
        n = len(batch.core_s)
        if batch.memory_mb is None or cluster.memory_mb == NEVER:
            self.asked_mb, self.line_of, sizes = [0.0] * n, [0] * n, np.zeros(1)
        else:
            sizes, lines = np.unique(batch.memory_mb, return_inverse=True)
            self.asked_mb, self.line_of = batch.memory_mb.tolist(), lines.tolist()
        self.sizes: list[float] = sizes.tolist()
        self.lines: list[deque[tuple[int, float, int]]] = [deque() for _ in self.sizes]
        self.added = self.waiting = 0
        self.in_flight_mb = 0.0

    def __bool__(self) -> bool:
        return self.waiting > 0

    def add(self, available: float, task: int, again: bool = False) -> None:
        """Put a task at the end of its line; ``again`` if it was lost."""
        self.lines[self.line_of[task]].append((self.added, available, task))
        self.added += 1
        self.waiting += 1
        if not again:
            self.in_flight_mb += self.asked_mb[task]

    def first(self, free_mb: float) -> int:
        """Line of the task that was handed out first of those that fit; -1 if there is none."""
        best, number = -1, self.added
        for line, size in enumerate(self.sizes):
            if size > free_mb:
                break
            if self.lines[line] and self.lines[line][0][0] < number:
                best, number = line, self.lines[line][0][0]
        return best

    def least_mb(self) -> float:
        """Memory of the smallest that waits; infinite if none does."""
        return next(
            (size for size, line in zip(self.sizes, self.lines, strict=True) if line), NEVER
        )

    def pop(self, line: int) -> tuple[float, int]:
        """Take the first of a line: when it was handed out, and which it is."""
        self.waiting -= 1
        _, available, task = self.lines[line].popleft()
        return available, task
