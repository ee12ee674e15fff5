"""What there is to compute, cut into pieces of work: stages of a molecule with their own budgets.

A piece asks for cores, memory and time by the cost model. Conformers of many molecules are one
piece, because one takes a tenth of a second. A large molecule's SCF and what follows from it are
two pieces, because they differ in memory and a lost one should not take the other with it; stages
of a small one stay together, since each further piece costs a start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from orchestration.tasks import Ask
from quantum.cost import predicted_conformer_s, predicted_cpu_s, predicted_memory_mb
from quantum.pipeline import Stage, Task
from quantum.schema import Resources

SECONDS_PER_BATCH = 5.0
MOLECULES_PER_BATCH = 200
_ALONE_FROM_S = 120.0
_TIME_FACTOR, _LEAST_TIME_S = 30.0, 300.0
_ELF_SHARE = 0.15  # of the predicted seconds: the map and the features
_GROWTH = 2.0
_LEAST_MB, _MEMORY_STEP = 500.0, 2.0**0.25


@dataclass(frozen=True, slots=True)
class Piece:
    """Stages that one child process computes, for one molecule or for several.

    Parameters
    ----------
    tasks : tuple of Task
        Each with the stages of this piece alone.
    limits : Resources
        Threads, memory and time of each task.
    cost_s : float
        Predicted seconds of one core.
    pool : str
        Machines it prefers.
    then : Piece, optional
        What is to be done when this one is.
    failed : dict of str to int
        Attempts that failed so far, by kind.
    """

    tasks: tuple[Task, ...]
    limits: Resources
    cost_s: float
    pool: str
    then: Piece | None = None
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Key of the last stage of a piece of one molecule."""
        task = self.tasks[0]
        return task.keys[task.stages[-1]]

    @property
    def all_cost_s(self) -> float:
        """Predicted seconds of this piece and of those behind it."""
        return self.cost_s + (self.then.all_cost_s if self.then else 0.0)

    @property
    def priority(self) -> float:
        """Smaller goes first: conformers, which are cheap, then the largest molecules."""
        return -self.all_cost_s if self.pool == "dft" else -math.inf

    def ask(self, most_memory_mb: float | None = None) -> Ask:
        """What Ray is asked for; never more memory than the largest machine has."""
        memory = float(self.limits.memory_mb)
        if most_memory_mb is not None:
            memory = min(memory, most_memory_mb)
        return Ask(self.limits.threads, memory, self.pool)

    def alone(self, task: Task) -> Piece:
        """A piece of one of the tasks."""
        if len(self.tasks) == 1:
            return self
        return replace(self, tasks=(task,), cost_s=self.cost_s / len(self.tasks))

    def after_failure(self, kind: str, limits: Resources) -> Piece:
        """The same piece for another attempt; out of memory or time, it gets more of both.

        Parameters
        ----------
        limits : Resources
            What the user grants a task. The second attempt gets it, the third twice as much.
        """
        failed = {**self.failed, kind: self.failed.get(kind, 0) + 1}
        if kind != "resource":
            return replace(self, failed=failed)
        factor = _GROWTH ** (failed[kind] - 1)
        grown = limits.model_copy(
            update={
                "memory_mb": int(limits.memory_mb * factor),
                "time_limit_s": limits.time_limit_s * factor,
            }
        )
        return replace(self, failed=failed, limits=grown)


def pieces_of(task: Task, limits: Resources) -> Piece:
    """Work of one molecule: one piece, or a chain of two.

    Parameters
    ----------
    limits : Resources
        The most that a first attempt may take; predictions below it count.
    """
    cost_s = cost_of(task)
    memory_mb = predicted_memory_mb(task.species, task.spec.calculation)
    late: tuple[Stage, ...] = tuple(s for s in task.stages if s in ("elf", "features"))
    early: tuple[Stage, ...] = tuple(s for s in task.stages if s not in late)
    if cost_s < _ALONE_FROM_S or not late or not early:
        return Piece((task,), _within(limits, memory_mb, cost_s), cost_s, "dft")
    second = Piece(
        (task.model_copy(update={"stages": late}),),
        _within(limits, memory_mb * 0.5, cost_s),
        cost_s * _ELF_SHARE,
        "dft",
    )
    return Piece(
        (task.model_copy(update={"stages": early}),),
        _within(limits, memory_mb, cost_s),
        cost_s * (1.0 - _ELF_SHARE),
        "dft",
        then=second,
    )


def cost_of(task: Task) -> float:
    """Predicted seconds of one core for all stages of a molecule."""
    seconds = predicted_cpu_s(task.species, task.spec.calculation)
    return seconds + predicted_conformer_s(task.species)


class Backlog:
    """Pieces in the order to start them; those of molecules are made when their turn comes.

    A sweep of a million molecules is then a list of requests, and not of all that follows from
    them.

    Parameters
    ----------
    pieces : sequence of Piece
        Such as `conformer_batches`.
    tasks : sequence of Task
        Molecules; they come behind ``pieces``, the largest first.
    make : callable
        Piece of a task.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        tasks: Sequence[Task] = (),
        make: Callable[[Task], Piece] | None = None,
    ) -> None:
        self._pieces = sorted(pieces, key=lambda piece: piece.priority)
        costs = {id(task): cost_of(task) for task in tasks}
        self._tasks, self._make = sorted(tasks, key=lambda task: -costs[id(task)]), make
        self.n_tasks = len(tasks) + sum(len(piece.tasks) for piece in pieces)
        self.cost_s = sum(costs.values()) + sum(piece.all_cost_s for piece in pieces)

    def __iter__(self) -> Iterator[Piece]:
        yield from self._pieces
        if self._make is not None:
            yield from map(self._make, self._tasks)


def memory_shape(memory_mb: float) -> int:
    """Memory rounded up to a step: Ray gives a worker on to the next task of the same shape alone.

    Where each task asks for another amount, every one of them waits for a new lease.
    """
    steps = math.ceil(math.log(max(memory_mb, _LEAST_MB) / _LEAST_MB, _MEMORY_STEP) - 1e-9)
    return round(_LEAST_MB * _MEMORY_STEP**steps)


def _within(limits: Resources, memory_mb: float, cost_s: float) -> Resources:
    """Predicted memory and time, if they are below the limits."""
    time_s = max(_LEAST_TIME_S, _TIME_FACTOR * cost_s / limits.threads)
    memory = min(limits.memory_mb, memory_shape(memory_mb))
    return _limited(limits, memory, min(limits.time_limit_s, float(math.ceil(time_s))))


@lru_cache(maxsize=1024)
def _limited(limits: Resources, memory_mb: int, time_limit_s: float) -> Resources:
    """Limits that many pieces share."""
    return limits.model_copy(update={"memory_mb": memory_mb, "time_limit_s": time_limit_s})


def conformer_batches(tasks: Sequence[Task], limits: Resources, slots: int) -> list[Piece]:
    """Conformers of many molecules in pieces of some seconds, enough of them for all slots.

    Tasks with an optimisation by DFT are pieces of their own.
    """
    single = limits.model_copy(update={"threads": 1})
    every = [(task, _conformer_cost(task)) for task in tasks]
    most_s = min(SECONDS_PER_BATCH, sum(cost for _, cost in every) / max(4 * slots, 1))
    batches: list[Piece] = []
    part: list[Task] = []
    spent = 0.0
    for task, cost_s in sorted(every, key=lambda item: -item[1]):
        if part and (spent + cost_s > most_s or len(part) >= MOLECULES_PER_BATCH):
            batches.append(_batch(part, spent, single))
            part, spent = [], 0.0
        part.append(task)
        spent += cost_s
    return [*batches, _batch(part, spent, single)] if part else batches


def _conformer_cost(task: Task) -> float:
    conformer = task.spec.conformer
    cost_s = predicted_conformer_s(task.species) * conformer.n_conformers / 5.0
    if conformer.optimise == "dft":
        return cost_s + 20.0 * predicted_cpu_s(task.species, task.spec.calculation)
    return cost_s


def _batch(tasks: Sequence[Task], cost_s: float, limits: Resources) -> Piece:
    heaviest = max(tasks, key=lambda task: task.species.n_atoms)
    dft = heaviest.spec.conformer.optimise == "dft"
    memory_mb = predicted_memory_mb(heaviest.species, heaviest.spec.calculation) if dft else 1000
    return Piece(tuple(tasks), _within(limits, memory_mb, cost_s), cost_s, "conformers")
