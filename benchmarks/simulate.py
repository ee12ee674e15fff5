"""A cluster as discrete events: one driver, spot nodes, one shared store.

What is modelled, for one batch of independent tasks (list scheduling, Graham, SIAM J. Appl. Math.
17, 416, 1969; here with a server in front and machines that come and go):

- the driver hands out tasks in a given order and keeps at most a window of them in flight; it is
  one serial process, and a task costs it a constant and a part that grows with those in flight;
- tasks in flight start in the order in which they were handed out, on the core that is free first;
- a task that has been computed is committed to the store, which all tasks share: a latency, and a
  transfer that waits for the transfers before it;
- a node is paid from its launch, takes a while to boot, has a speed of its own, and may be
  preempted: at the notice it takes no new task, later it is gone and what was running starts again
  elsewhere, behind the tasks that are in flight already;
- another node is launched for it if there is work left; idle nodes are released after a time-out.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_UP, _NOTICE, _KILL = 0, 1, 2
_NEVER = math.inf


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind.

    Parameters
    ----------
    preemptions_per_hour : float
        Rate per node; times to the notice are exponential.
    notice_s : float
        From the notice, when the node takes no new task, to its end; 0 without a watcher.
    speed_sigma : float
        Log-normal spread of the nodes' times per unit of work; the mean is 1.
    slow_share : float
        Share of nodes that take ``slow_factor`` times as long.
    """

    nodes: int
    cores: int = 16
    boot_s: float = 0.0
    idle_timeout_s: float = _NEVER
    preemptions_per_hour: float = 0.0
    notice_s: float = 0.0
    speed_sigma: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 2.0


@dataclass(frozen=True)
class Driver:
    """The process that submits tasks and takes their outcomes, one after the other.

    Parameters
    ----------
    window : int
        Tasks in flight at most.
    task_s : float
        Seconds per task.
    in_flight_s : float
        Further seconds per task for each task in flight.
    """

    window: int
    task_s: float = 0.0
    in_flight_s: float = 0.0


@dataclass(frozen=True)
class SharedStore:
    """Where results are committed: seconds per commit, bytes per second for all together."""

    commit_s: float = 0.0
    bytes_per_s: float = _NEVER


@dataclass(frozen=True)
class Batch:
    """Independent tasks.

    Parameters
    ----------
    core_s : array of shape (n,)
        Work of each task, seconds of one core of a node of mean speed.
    order : array of shape (n,)
        Indices in the order of submission.
    size : array of shape (n,), optional
        Bytes that each task commits.
    cores : int
        Cores per task.
    serial_share : float
        Share of the work that more cores do not speed up (Amdahl).
    """

    core_s: Array
    order: npt.NDArray[np.int64]
    size: Array | None = None
    cores: int = 1
    serial_share: float = 0.0

    @property
    def wall_s(self) -> Array:
        """Seconds per task on a node of mean speed, shape (n,)."""
        return self.core_s * (self.serial_share + (1.0 - self.serial_share) / self.cores)


@dataclass(frozen=True)
class Result:
    """Times in seconds; where the paid core-seconds went.

    ``useful_s`` is the work of the batch, counted once. ``slow_s`` is what slow nodes and the
    serial share add, ``driver_s`` cores whose next task the driver was still busy with,
    ``store_s`` waiting for the commit, ``lost_s`` work that a preempted node took with it,
    ``boot_s`` nodes that were not up, ``idle_s`` the rest: cores without a task.
    """

    makespan_s: float
    paid_s: float
    useful_s: float
    slow_s: float
    driver_s: float
    store_s: float
    lost_s: float
    boot_s: float
    node_s: float
    executions: int
    lost_executions: int
    preemptions: int
    nodes: int

    @property
    def idle_s(self) -> float:
        """Paid core-seconds that nothing else explains."""
        parts = self.useful_s + self.slow_s + self.driver_s + self.store_s + self.lost_s
        return self.paid_s - parts - self.boot_s

    @property
    def efficiency(self) -> float:
        """Useful over paid core-seconds."""
        return self.useful_s / self.paid_s

    def shares(self) -> dict[str, float]:
        """Shares of the paid core-seconds that were not useful, by cause."""
        names = ("slow", "driver", "store", "lost", "boot", "idle")
        return {name: float(getattr(self, f"{name}_s")) / self.paid_s for name in names}


def simulate(
    batch: Batch, cluster: Cluster, driver: Driver, store: SharedStore, seed: int = 0
) -> Result:
    """Run a batch to its end.

    Returns
    -------
    Result
        The same for the same seed. Nodes are paid until they are released or the batch has ended.

    Raises
    ------
    ValueError
        If a task does not fit on a node, or the order is not one of the batch.
    """
    if not 1 <= batch.cores <= cluster.cores:
        raise ValueError(f"a task of {batch.cores} cores on nodes of {cluster.cores}")
    if driver.window < 1 or cluster.nodes < 1 or len(batch.core_s) < 1:
        raise ValueError("a window, a node and a task are needed")
    if not np.array_equal(np.sort(batch.order), np.arange(len(batch.core_s))):
        raise ValueError("the order must name every task once")
    return _Run(batch, cluster, driver, store, seed).run()


class _Run:
    """State of one simulation.

    Heap entries are ``(time, code)``: a code ``2·slot`` is "computed", ``2·slot + 1`` "committed",
    and a negative one is an event of a node. A slot is the part of a node that runs one task.
    """

    def __init__(
        self, batch: Batch, cluster: Cluster, driver: Driver, store: SharedStore, seed: int
    ) -> None:
        self.batch, self.cluster, self.driver, self.store = batch, cluster, driver, store
        self.rng = np.random.default_rng(seed)
        self.n = len(batch.core_s)
        self.order: list[int] = batch.order.tolist()
        self.wall: list[float] = batch.wall_s.tolist()
        transfer = np.zeros(self.n) if batch.size is None else batch.size / store.bytes_per_s
        self.transfer: list[float] = transfer.tolist()
        self.slots = cluster.cores // batch.cores
        self.heap: list[tuple[float, int]] = []
        self.pending: deque[tuple[float, int]] = deque()  # (handed out at, task)
        self.idle: list[int] = []
        self.submitted = self.done = 0
        self.driver_free = self.store_free = 0.0
        # per slot
        self.task: list[int] = []
        self.begin: list[float] = []
        self.computed: list[float] = []
        # per node
        self.launched: list[float] = []
        self.ended: list[float] = []
        self.up_at: list[float] = []
        self.speed: list[float] = []
        self.draining: list[bool] = []
        self.replaced: list[bool] = []
        self.n_idle: list[int] = []
        self.last_busy: list[float] = []
        # core-seconds over slots; multiplied by the cores of a task at the end
        self.busy = self.driver_wait = self.store_wait = self.lost = 0.0
        self.lost_executions = self.preemptions = 0

    def run(self) -> Result:
        for _ in range(self.cluster.nodes):
            self._launch(0.0)
        while self.submitted < min(self.driver.window, self.n):
            self._hand_out(0.0, self.driver.task_s)
        time = 0.0
        while self.done < self.n:
            if not self.heap:  # every node was released while a last task waited
                self._launch(time)
            time, code = self.heap[0]
            if code < 0:
                heapq.heappop(self.heap)
                self._node_event(time, *divmod(-code - 1, 3))
            elif self.ended[(code >> 1) // self.slots] < _NEVER:
                heapq.heappop(self.heap)
            elif code & 1:
                self._committed(time, code >> 1)
            else:
                self._computed(time, code)
        return self._result(max(time, self.driver_free))

    # ----------------------------------------------------------------------- the driver

    def _hand_out(self, time: float, cost: float) -> None:
        """Spend the driver's time on one task, and submit the next if there is one."""
        self.driver_free = max(self.driver_free, time) + cost
        if self.submitted < self.n:
            self.pending.append((self.driver_free, self.order[self.submitted]))
            self.submitted += 1

    # ----------------------------------------------------------------------- a slot

    def _start(self, time: float, slot: int) -> tuple[float, int]:
        """Give the first task in flight to a slot; returns the entry of its end."""
        available, task = self.pending.popleft()
        begin = max(time, available)
        self.driver_wait += begin - time
        self.task[slot], self.begin[slot], self.computed[slot] = task, begin, _NEVER
        return begin + self.wall[task] * self.speed[slot // self.slots], slot << 1

    def _computed(self, time: float, code: int) -> None:
        slot = code >> 1
        self.computed[slot] = time
        self.store_free = max(self.store_free, time) + self.transfer[self.task[slot]]
        heapq.heapreplace(self.heap, (self.store_free + self.store.commit_s, code | 1))

    def _committed(self, time: float, slot: int) -> None:
        self.done += 1
        self.busy += self.computed[slot] - self.begin[slot]
        self.store_wait += time - self.computed[slot]
        in_flight = self.submitted - self.done
        self._hand_out(time, self.driver.task_s + self.driver.in_flight_s * in_flight)
        if self.pending and not self.draining[slot // self.slots]:
            heapq.heapreplace(self.heap, self._start(time, slot))
            return
        heapq.heappop(self.heap)
        self._rest(time, slot)
        self._feed_idle(time)

    def _rest(self, time: float, slot: int) -> None:
        node = slot // self.slots
        self.task[slot] = -1
        self.last_busy[node] = time
        self.n_idle[node] += 1
        if not self.draining[node]:
            self.idle.append(slot)

    def _feed_idle(self, time: float) -> None:
        """Start waiting tasks on idle slots of nodes that are still there."""
        while self.pending and self.idle:
            slot = self.idle.pop()
            node = slot // self.slots
            if self.draining[node] or self._released(time, node):
                continue
            self.n_idle[node] -= 1
            heapq.heappush(self.heap, self._start(time, slot))

    # ----------------------------------------------------------------------- a node

    def _launch(self, time: float) -> None:
        node = len(self.launched)
        sigma, slow = self.cluster.speed_sigma, self.rng.random() < self.cluster.slow_share
        speed = math.exp(sigma * self.rng.standard_normal() - sigma**2 / 2)
        self.speed.append(speed * (self.cluster.slow_factor if slow else 1.0))
        self.launched.append(time)
        self.up_at.append(time + self.cluster.boot_s)
        self.ended.append(_NEVER)
        self.draining.append(False)
        self.replaced.append(False)
        self.n_idle.append(0)
        self.last_busy.append(time + self.cluster.boot_s)
        self.task += [-1] * self.slots
        self.begin += [0.0] * self.slots
        self.computed += [_NEVER] * self.slots
        self._schedule(time + self.cluster.boot_s, node, _UP)

    def _schedule(self, time: float, node: int, event: int) -> None:
        heapq.heappush(self.heap, (time, -(3 * node + event) - 1))

    def _released(self, time: float, node: int) -> bool:
        """Whether the node has ended, by preemption or because nothing ran on it for long."""
        limit = self.last_busy[node] + self.cluster.idle_timeout_s
        if self.ended[node] == _NEVER and self.n_idle[node] == self.slots and time > limit:
            self.ended[node] = limit
        return self.ended[node] < _NEVER

    def _node_event(self, time: float, node: int, event: int) -> None:
        if event == _UP:
            self._up(time, node)
        elif self._released(time, node):
            return
        elif event == _NOTICE:
            self.preemptions += 1
            self.draining[node] = True
            if self.pending or self.submitted < self.n:
                self.replaced[node] = True
                self._launch(time)
            self._schedule(time + self.cluster.notice_s, node, _KILL)
        else:
            self._kill(time, node)

    def _up(self, time: float, node: int) -> None:
        for slot in range(node * self.slots, (node + 1) * self.slots):
            if self.pending:
                heapq.heappush(self.heap, self._start(time, slot))
            else:
                self._rest(time, slot)
        if self.cluster.preemptions_per_hour > 0:
            mean = 3600.0 / self.cluster.preemptions_per_hour
            self._schedule(time + self.rng.exponential(mean), node, _NOTICE)

    def _kill(self, time: float, node: int) -> None:
        self.ended[node] = time
        for slot in range(node * self.slots, (node + 1) * self.slots):
            task, begin = self.task[slot], self.begin[slot]
            if task < 0:
                continue
            if begin < time:
                self.lost += time - begin
                self.lost_executions += 1
            else:  # it still waited for the driver
                self.driver_wait -= begin - time
            self.pending.append((max(time, begin), task))
        self._feed_idle(time)
        if self.pending and not self.replaced[node]:
            self._launch(time)

    def _result(self, end: float) -> Result:
        for node in range(len(self.launched)):
            self._released(end, node)
        ended = np.minimum(self.ended, end)
        launched = np.array(self.launched)
        node_s = float((ended - launched).sum())
        boot_s = float((np.minimum(np.array(self.up_at), ended) - launched).sum())
        cores, useful = self.batch.cores, float(self.batch.core_s.sum())
        return Result(
            makespan_s=end,
            paid_s=node_s * self.cluster.cores,
            useful_s=useful,
            slow_s=cores * self.busy - useful,
            driver_s=cores * self.driver_wait,
            store_s=cores * self.store_wait,
            lost_s=cores * self.lost,
            boot_s=boot_s * self.cluster.cores,
            node_s=node_s,
            executions=self.n + self.lost_executions,
            lost_executions=self.lost_executions,
            preemptions=self.preemptions,
            nodes=len(self.launched),
        )
