"""Drive pieces of work through a cluster until each molecule has a result or a final failure.

The store is the truth: what it holds is done, whoever computed it. The driver keeps a bounded
number of pieces in flight, gives a failed one another attempt where that can help, waits for what
another driver is computing, and loses nothing when it is interrupted or killed: the same command
goes on with what is missing.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from orchestration.drivers import driver_name, is_dead
from orchestration.graph import Backlog, Piece
from orchestration.ledger import Ledger
from orchestration.tally import Settings, Tally
from orchestration.tasks import Answer, Lost, RayPool
from quantum.base import MedrecError, ProgramMissingError, ResourceError, TransientError
from quantum.child import ChildRequest, run_all_in_child
from quantum.pipeline import Outcome, Task, open_stages
from quantum.schema import Resources
from quantum.store import Failure, StoreLike

# attempts in all, by the kind of failure; what cannot change is not tried twice
ATTEMPTS: dict[str, int] = {
    "input": 1,
    "convergence": 1,
    "config": 1,
    "lost": 2,  # each is an attempt and further ones by Ray, on other workers
    "crash": 2,
    "unknown": 2,
    "integrity": 2,
    "resource": 3,
    "transient": 5,
    "store": 5,
    "program_missing": 5,
}
_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
_CLAIM_POLL_S, _CLAIM_DEAD_S = 5.0, 60.0
_DISK_PATIENCE_S = 600.0
_BAD_NODE_FAILURES = 5
_NODE_KINDS = ("program_missing", "unknown", "crash", "transient", "disk_full")
_LOOK_S = 10.0


@dataclass(frozen=True)
class _Seen:
    """A claim of another driver, as it was when it last changed."""

    text: str
    since: float


class Driver:
    """One run over pieces.

    Parameters
    ----------
    say : callable
        Takes one line for people.
    on_step : callable
        Called with the tally and the SMILES after every answer.
    on_tick : callable, optional
        Called every few seconds, such as for an export of what is there.
    """

    def __init__(
        self,
        pool: RayPool,
        store: StoreLike,
        ledger: Ledger,
        settings: Settings,
        say: Callable[[str], None],
        on_step: Callable[[Tally, str], None] = lambda tally, note: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.pool, self.store, self.ledger, self.settings = pool, store, ledger, settings
        self.say, self.on_step, self.on_tick = say, on_step, on_tick
        self.owner, self.tally = ledger.driver or driver_name(), Tally()
        self._work = partial(work, store=store.location, owner=self.owner)
        self._ready: list[tuple[float, int, Piece]] = []
        self._later: list[tuple[float, int, Piece]] = []
        self._flying: dict[int, Piece] = {}
        self._numbers = itertools.count()
        self._source: Iterator[Piece] = iter(())
        self._pulled: Piece | None = None
        self._claims: dict[str, _Seen] = {}
        self._nodes: dict[str, Counter[str]] = {}
        self._disk_full_since: float | None = None
        self._window, self._looked = 0, -1e9
        self._most_mb: float | None = None

    # ------------------------------------------------------------------ the loop

    def run(self, pieces: Backlog | Sequence[Piece]) -> Tally:
        """Work until nothing is left.

        Raises
        ------
        ProgramMissingError
            If no node has a program that is needed.
        ResourceError
            If the store's disk stays full, or no node can ever hold a piece.
        KeyboardInterrupt
            After an interruption; what ran had `Settings.grace_s` to finish.
        """
        backlog = pieces if isinstance(pieces, Backlog) else Backlog(pieces)
        self.tally.total += backlog.n_tasks
        self.tally.cost_left_s += backlog.cost_s
        self._source = iter(backlog)
        self._pull()
        try:
            while self._ready or self._later or self._flying:
                self._feed()
                for answer in self.pool.finished(1.0) if self._flying else self._idle():
                    self._take(answer)
                self._tick()
        except KeyboardInterrupt:
            self._wind_down()
            raise
        finally:
            self.pool.cancel()
            self._release_all()
            self.ledger.write()
        return self.tally

    def _idle(self) -> list[Answer]:
        """Nothing runs: wait for the next piece that was put off."""
        if self._later:
            time.sleep(min(max(self._later[0][0] - self.settings.clock(), 0.0), 1.0))
        return []

    def _push(self, piece: Piece, pause_s: float = 0.0) -> None:
        number = next(self._numbers)
        if pause_s > 0:
            heapq.heappush(self._later, (self.settings.clock() + pause_s, number, piece))
            return
        heapq.heappush(self._ready, (piece.priority, number, piece))

    def _pull(self) -> None:
        """Queue the next piece of the backlog; there is always one in the queue until its end."""
        self._pulled = next(self._source, None)
        if self._pulled is not None:
            self._push(self._pulled)

    def _pop(self) -> Piece:
        piece = heapq.heappop(self._ready)[2]
        if piece is self._pulled:
            self._pull()
        return piece

    def _feed(self) -> None:
        now = self.settings.clock()
        while self._later and self._later[0][0] <= now:
            piece = heapq.heappop(self._later)[2]
            if not self._failed_elsewhere(piece):
                self._push(piece)
        if now - self._looked > _LOOK_S:
            self._looked, self._window = now, max(1, self.settings.window())
            self._most_mb = self.settings.most_memory_mb()  # asks the head: not for every piece
        most = self._window if self._disk_full_since is None else 1
        while self._ready and len(self._flying) < most:
            number, piece = next(self._numbers), self._pop()
            self._flying[number] = piece
            self.tally.attempts += len(piece.tasks)
            self.pool.submit(number, self._work, piece, piece.ask(self._most_mb))

    def _tick(self) -> None:
        full = self._disk_full_since
        if full is not None and self.settings.clock() - full > _DISK_PATIENCE_S:
            raise ResourceError(
                f"no space left for results in {self.store.location} for "
                f"{_DISK_PATIENCE_S / 60:.0f} minutes; free some, then run the same command again"
            )
        self.on_tick()

    # ------------------------------------------------------------------ answers

    def _take(self, answer: Answer) -> None:
        piece = self._flying.pop(answer.token)
        if isinstance(answer.value, Lost):
            self._release(piece)
            if len(piece.tasks) > 1:  # one of them is to blame, or none: nobody is charged
                for task in piece.tasks:
                    self._push(piece.alone(task))
                return
            outcomes = [self._lost(piece.tasks[0], answer)]
        else:
            outcomes = [o.model_copy(update={"node": answer.node}) for o in answer.value]
        for task, outcome in zip(piece.tasks, outcomes, strict=True):
            self._settle(piece.alone(task), task, outcome)
            task.forget_keys()
            self.on_step(self.tally, task.species.smiles)

    def _lost(self, task: Task, answer: Answer) -> Outcome:
        """What became of a task that brought no answer; its results may be there all the same."""
        left = open_stages(task, self.store)
        if not left:
            return Outcome(species_key=task.species.key, status="present", node=answer.node)
        return Outcome(
            species_key=task.species.key,
            status="failed",
            stage=left[0],
            kind=answer.value.kind,
            message=answer.value.message,
            node=answer.node,
        )

    def _settle(self, piece: Piece, task: Task, outcome: Outcome) -> None:
        self.tally.executions += len(outcome.stages)
        if outcome.status == "elsewhere":
            self._wait_for_other(piece, outcome)
            return
        self._claims.pop(piece.key, None)
        if outcome.stages or outcome.status == "failed":
            stage = outcome.stage or outcome.stages[-1]
            noted = outcome.model_copy(update={"stage": stage})
            self.ledger.add(task.keys.get(stage, piece.key), noted)  # type: ignore[call-overload]
        self._judge_node(task, outcome)
        if outcome.status == "failed":
            self._failed(piece, task, outcome)
            return
        self._disk_full_since = None
        self._spent(piece.cost_s)
        if piece.then is not None:
            self._push(piece.then)
        elif outcome.status == "present":
            self.tally.present += 1
        else:
            self.tally.done += 1

    def _failed(self, piece: Piece, task: Task, outcome: Outcome) -> None:
        kind = outcome.kind
        if kind == "disk_full":
            if self._disk_full_since is None:
                self._disk_full_since = self.settings.clock()
                self.say(f"paused: {outcome.message}; trying again until there is space")
            times = piece.failed.get(kind, 0)
            self._push(replace(piece, failed={**piece.failed, kind: times + 1}), _pause(times))
            return
        again = piece.after_failure(kind, self.settings.limits)
        largest = self.settings.most_memory_mb()
        too_large = largest is not None and again.limits.memory_mb > max(
            largest, self.settings.limits.memory_mb
        )
        if again.failed[kind] < ATTEMPTS.get(kind, 1) and not (kind == "resource" and too_large):
            passing = kind in ("lost", "transient", "store", "program_missing", "unknown")
            self._push(again, _pause(piece.failed.get(kind, 0)) if passing else 0.0)
            return
        if kind == "program_missing":
            raise ProgramMissingError(outcome.message)
        if kind == "store":
            raise TransientError(f"{outcome.message}; the same command goes on where this ended")
        self._record_final(task, outcome)
        self._give_up(piece, outcome.stage, kind, outcome.message)

    def _give_up(self, piece: Piece, stage: str, kind: str, message: str) -> None:
        self._spent(piece.all_cost_s)
        self.tally.failed[stage, kind] += 1
        if len(self.tally.examples) < 3:
            self.tally.examples.append(message)

    def _record_final(self, task: Task, outcome: Outcome) -> None:
        """Have the store say that no attempt is left; what ended several workers is quarantined."""
        stage, kind, message = outcome.stage or task.stages[0], outcome.kind, outcome.message
        if kind in ("lost", "transient"):
            kind, message = "transient", f"{message}; --retry transient tries again"
        key = task.keys[stage]  # type: ignore[index]
        known = self.store.failure(key)
        attempts = ATTEMPTS.get(kind, 1) - (known.attempts if known else 0)
        if attempts > 0:
            self.store.put_failure(
                Failure(key=key, stage=stage, kind=kind, message=message, attempts=attempts)
            )

    def _spent(self, cost_s: float) -> None:
        self.tally.cost_left_s -= cost_s
        self.tally.cost_done_s += cost_s

    def _wait_for_other(self, piece: Piece, outcome: Outcome) -> None:
        """Another driver has it: look again later, and take it over once that driver is dead."""
        now, text = self.settings.clock(), outcome.message
        seen = self._claims.get(piece.key)
        if seen is None or seen.text != text:
            seen = self._claims[piece.key] = _Seen(text, now)
        if is_dead(text) or now - seen.since > _CLAIM_DEAD_S:
            key = piece.tasks[0].keys[outcome.stage]  # type: ignore[index]
            self.store.break_claim(key, text)
            self._push(piece)
            return
        self._push(piece, _CLAIM_POLL_S)

    def _failed_elsewhere(self, piece: Piece) -> bool:
        """What another driver has given up while we waited for it is not tried again here."""
        if piece.key not in self._claims:
            return False
        task = piece.tasks[0]
        found = self.store.failures(task.keys[stage] for stage in task.stages).values()
        for failure in found:
            is_final = failure.attempts >= ATTEMPTS.get(failure.kind, 1)
            if is_final and failure.kind not in self.settings.retry:
                del self._claims[piece.key]
                self._give_up(piece, failure.stage, failure.kind, failure.message)
                return True
        return False

    def _judge_node(self, task: Task, outcome: Outcome) -> None:
        """Stop using a node on which different molecules fail and none succeeds."""
        if not outcome.node or outcome.node in self.pool.excluded:
            return
        counts = self._nodes.setdefault(outcome.node, Counter())
        if outcome.status != "failed":
            counts["fine"] += bool(outcome.stages)
        elif outcome.kind in _NODE_KINDS:
            counts[task.species.key] = 1
        missing = outcome.kind == "program_missing"
        failed = len(counts) - ("fine" in counts)
        bad = failed >= _BAD_NODE_FAILURES and not counts["fine"]
        if (missing or bad) and self._other_nodes(outcome.node):
            self.pool.exclude([outcome.node])
            why = outcome.message if missing else f"{failed} molecules failed, none succeeded"
            self.say(f"node {outcome.node[:8]} gets no more work: {why}")

    def _other_nodes(self, node: str) -> bool:
        alive = {item["NodeID"] for item in self.pool.ray.nodes() if item["Alive"]}
        return bool(alive - {node} - self.pool.excluded)

    # ------------------------------------------------------------------ the end

    def _wind_down(self) -> None:
        """Feed nothing more, and give what runs a little time; a second Ctrl-C ends that."""
        self._ready.clear()
        self._later.clear()
        if self._flying:
            self.say(
                f"interrupted: up to {self.settings.grace_s:.0f} s for {len(self._flying)} running "
                "pieces to finish; Ctrl-C again stops at once"
            )
        deadline = time.monotonic() + self.settings.grace_s
        try:
            while len(self.pool) and time.monotonic() < deadline:
                for answer in self.pool.finished(0.5):
                    self._take(answer)
        except KeyboardInterrupt:
            self.say("stopped")

    def _release_all(self) -> None:
        """Give up the claims of what was cut off; without this others wait a minute for us."""
        for piece in self._flying.values():
            self._release(piece)
        self._flying.clear()

    def _release(self, piece: Piece) -> None:
        names = [task.keys[stage] for task in piece.tasks for stage in task.stages]
        with suppress(OSError, MedrecError):  # claims are never needed for correctness
            for name in names:
                self.store.release(name, self.owner)


def _pause(failures: int) -> float:
    return float(min(_PAUSE_S * 2**failures, _LONGEST_PAUSE_S))


def work(piece: Piece, store: str, owner: str) -> list[Outcome]:
    """Body of a Ray task: one piece in a child process."""
    return run_all_in_child(piece.tasks, ChildRequest(store, piece.limits, owner))


def with_history(
    make: Callable[[Task], Piece], ledger: Ledger, limits: Resources, retry: Iterable[str] = ()
) -> Callable[[Task], Piece]:
    """Pieces of tasks with the failures that earlier drivers had; retried kinds start anew."""
    known, forgiven = ledger.failures(), set(retry)

    def remembering(task: Task) -> Piece:
        piece = make(task)
        return _remember(piece, known, limits, forgiven) if known else piece

    return remembering


def _remember(
    piece: Piece, known: dict[str, dict[str, int]], limits: Resources, forgiven: set[str]
) -> Piece:
    counts: Counter[str] = Counter()
    for stage in piece.tasks[0].stages:
        counts.update(known.get(piece.tasks[0].keys[stage], {}))
    for kind, count in counts.items():
        # at least one attempt is left: final failures are recorded in the store
        for _ in range(min(count, ATTEMPTS.get(kind, 1) - 1) if kind not in forgiven else 0):
            piece = piece.after_failure(kind, limits)
    return piece
