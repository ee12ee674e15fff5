"""A cluster as discrete events: one driver, spot nodes, one shared store.

What is modelled, for one batch of tasks (list scheduling, Graham, SIAM J. Appl. Math. 17, 416,
1969; here with a server in front and machines that come and go):

- the driver hands out tasks in a given order and keeps at most a window of them in flight, which
  may grow with the nodes; it is one serial process, and a task costs it a constant, a look at
  those in flight a part that grows with them; it takes all outcomes that are there together;
- tasks in flight start in the order in which they were handed out, on the core that is free first
  and whose node has the memory; what does not fit waits, and smaller tasks pass it;
- a task that has been computed is committed to the store, which all tasks share: a latency, and a
  transfer that waits for the transfers before it; then what had to wait for it may be handed out;
- a node is paid from its launch, takes a while to boot, has a speed of its own, and may be
  preempted: at the notice it takes no new task, later it is gone and what was running starts again
  elsewhere, behind the tasks that are in flight already;
- another node is launched for it if there is work left; idle nodes are released after a time-out.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from simulate_model import NEVER, Array, Batch, Cluster, Driver, Result, SharedStore
from simulate_queues import Pending, Queue

__all__ = ["Array", "Batch", "Cluster", "Driver", "Result", "SharedStore", "simulate"]

_UP, _NOTICE, _KILL = 0, 1, 2


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
    if batch.memory_mb is not None and float(batch.memory_mb.max()) > cluster.memory_mb:
        raise ValueError(
            f"a task of {batch.memory_mb.max():.0f} MB on nodes of {cluster.memory_mb:.0f}"
        )
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
        self.queue = Queue(batch)
        self.wall: list[float] = batch.wall_s.tolist()
        transfer = np.zeros(self.n) if batch.size is None else batch.size / store.bytes_per_s
        self.transfer: list[float] = transfer.tolist()
        self.slots = cluster.cores // batch.cores
        self.heap: list[tuple[float, int]] = []
        self.pending = Pending(batch, cluster)
        self.free_mb: list[float] = []  # per node
        self.idle: list[list[int]] = []  # slots, per node
        self.idle_nodes: dict[int, None] = {}
        self.gap_mb = 0.0  # no idle slot has more
        self.submitted = self.done = self.slots_up = self.n_free = 0
        self.driver_free = self.store_free = self.batch_begin = 0.0
        self.batch_n = 0
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
        self.busy = self.driver_wait = self.store_wait = self.lost = self.memory_wait = 0.0
        self.lost_executions = self.preemptions = 0

    def run(self) -> Result:
        if not self.cluster.grows:
            for _ in range(self.cluster.nodes):
                self._launch(0.0)
        self._fill(0.0)
        time = 0.0
        while self.done < self.n:
            if not self.heap:  # every node was released while a last task waited
                self._launch(time)
            last, (time, code) = time, self.heap[0]
            if self.n_free and self.pending:  # what waits fits on none of them
                self.memory_wait += self.n_free * (time - last)
            if code < 0:
                heapq.heappop(self.heap)
                self._node_event(time, *divmod(-code - 1, 3))
            elif self.ended[(code >> 1) // self.slots] < NEVER:
                heapq.heappop(self.heap)
            elif code & 1:
                self._committed(time, code >> 1)
            else:
                self._computed(time, code)
        return self._result(max(time, self.driver_free))

    # ----------------------------------------------------------------------- the driver

    def _window(self) -> int:
        return max(self.driver.window, int(self.driver.per_slot * self.slots_up))

    def _fill(self, time: float) -> None:
        """Hand out tasks until the window is full, and launch nodes for them."""
        while self.queue and self.submitted - self.done < self._window():
            self.driver_free = max(self.driver_free, time) + self.driver.task_s
            self._submit(self.driver_free)
        self._grow(time)

    def _submit(self, available: float) -> None:
        self.pending.add(available, self.queue.take())
        self.submitted += 1

    def _take_outcome(self, time: float) -> None:
        """Spend the driver's time on one outcome, and submit the next task if there is one."""
        driver = self.driver
        if time <= self.batch_begin and self.batch_n < driver.gather:
            self.batch_n += 1  # it is there when the driver looks
        else:
            self.batch_begin, self.batch_n = max(self.driver_free, time), 1
            look = driver.in_flight_s * (self.submitted - self.done)
            self.driver_free = self.batch_begin + look
        self.driver_free += driver.task_s
        if self.queue and self.submitted - self.done < self._window():
            self._submit(self.driver_free)

    def _grow(self, time: float) -> None:
        """Launch nodes until those there are could hold what is in flight, or the cap is met."""
        if not self.cluster.grows:
            return
        in_flight = self.submitted - self.done
        by_memory = self.pending.in_flight_mb / self.cluster.memory_mb
        wanted = min(self.cluster.nodes, math.ceil(max(in_flight / self.slots, by_memory)))
        there = sum(
            end == NEVER and not draining
            for end, draining in zip(self.ended, self.draining, strict=True)
        )
        for _ in range(there, wanted):
            self._launch(time)

    # ----------------------------------------------------------------------- a slot

    def _start(self, time: float, slot: int, line: int) -> tuple[float, int]:
        """Give the first task of a line to a slot; returns the entry of its end."""
        available, task = self.pending.pop(line)
        self.free_mb[slot // self.slots] -= self.pending.asked_mb[task]
        begin = max(time, available)
        self.driver_wait += begin - time
        self.task[slot], self.begin[slot], self.computed[slot] = task, begin, NEVER
        return begin + self.wall[task] * self.speed[slot // self.slots], slot << 1

    def _computed(self, time: float, code: int) -> None:
        slot = code >> 1
        self.computed[slot] = time
        self.store_free = max(self.store_free, time) + self.transfer[self.task[slot]]
        heapq.heapreplace(self.heap, (self.store_free + self.store.commit_s, code | 1))

    def _committed(self, time: float, slot: int) -> None:
        task, node = self.task[slot], slot // self.slots
        self.done += 1
        self.busy += self.computed[slot] - self.begin[slot]
        self.store_wait += time - self.computed[slot]
        self.free_mb[node] += self.pending.asked_mb[task]
        self.pending.in_flight_mb -= self.pending.asked_mb[task]
        self.queue.release(task)
        self._take_outcome(time)
        line = -1 if self.draining[node] else self.pending.first(self.free_mb[node])
        if line >= 0:
            heapq.heapreplace(self.heap, self._start(time, slot, line))
        else:
            heapq.heappop(self.heap)
            self._rest(time, slot)
        if self.idle_nodes:
            self._feed_node(time, node)
            self._feed_idle(time)

    def _rest(self, time: float, slot: int) -> None:
        node = slot // self.slots
        self.task[slot] = -1
        self.last_busy[node] = time
        self.n_idle[node] += 1
        if not self.draining[node]:
            self.n_free += 1
            self.idle[node].append(slot)
            self.idle_nodes[node] = None
            self.gap_mb = max(self.gap_mb, self.free_mb[node])

    def _feed_idle(self, time: float) -> None:
        """Start waiting tasks on idle slots of nodes that are still there."""
        if self.pending.least_mb() > self.gap_mb:
            return
        for node in list(self.idle_nodes):
            if not self.pending:
                return
            self._feed_node(time, node)
        self.gap_mb = max((self.free_mb[node] for node in self.idle_nodes), default=0.0)

    def _feed_node(self, time: float, node: int) -> None:
        slots = self.idle[node]
        if slots and (self.draining[node] or self._released(time, node)):
            self._leave_idle(node)
        while slots:
            line = self.pending.first(self.free_mb[node])
            if line < 0:
                return
            self.n_idle[node] -= 1
            self.n_free -= 1
            heapq.heappush(self.heap, self._start(time, slots.pop(), line))
        self.idle_nodes.pop(node, None)

    def _leave_idle(self, node: int) -> None:
        """The node's idle slots get nothing more."""
        self.n_free -= len(self.idle[node])
        self.idle[node].clear()
        self.idle_nodes.pop(node, None)

    # ----------------------------------------------------------------------- a node

    def _launch(self, time: float) -> None:
        node = len(self.launched)
        sigma, slow = self.cluster.speed_sigma, self.rng.random() < self.cluster.slow_share
        speed = math.exp(sigma * self.rng.standard_normal() - sigma**2 / 2)
        self.speed.append(speed * (self.cluster.slow_factor if slow else 1.0))
        self.launched.append(time)
        self.up_at.append(time + self.cluster.boot_s)
        self.ended.append(NEVER)
        self.draining.append(False)
        self.replaced.append(False)
        self.n_idle.append(0)
        self.idle.append([])
        self.free_mb.append(self.cluster.memory_mb)
        self.last_busy.append(time + self.cluster.boot_s)
        self.task += [-1] * self.slots
        self.begin += [0.0] * self.slots
        self.computed += [NEVER] * self.slots
        self._schedule(time + self.cluster.boot_s, node, _UP)

    def _schedule(self, time: float, node: int, event: int) -> None:
        heapq.heappush(self.heap, (time, -(3 * node + event) - 1))

    def _released(self, time: float, node: int) -> bool:
        """Whether the node has ended, by preemption or because nothing ran on it for long."""
        limit = self.last_busy[node] + self.cluster.idle_timeout_s
        if self.ended[node] == NEVER and self.n_idle[node] == self.slots and time > limit:
            self.ended[node] = limit
            self.slots_up -= 0 if self.draining[node] else self.slots
        return self.ended[node] < NEVER

    def _node_event(self, time: float, node: int, event: int) -> None:
        if event == _UP:
            self._up(time, node)
        elif self._released(time, node):
            return
        elif event == _NOTICE:
            self.preemptions += 1
            self.draining[node] = True
            self.slots_up -= self.slots
            self._leave_idle(node)
            if self.pending or self.queue:
                self.replaced[node] = True
                self._launch(time)
            self._schedule(time + self.cluster.notice_s, node, _KILL)
        else:
            self._kill(time, node)

    def _up(self, time: float, node: int) -> None:
        self.slots_up += self.slots
        self._fill(time)
        for slot in range(node * self.slots, (node + 1) * self.slots):
            line = self.pending.first(self.free_mb[node])
            if line >= 0:
                heapq.heappush(self.heap, self._start(time, slot, line))
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
            self.pending.add(max(time, begin), task, again=True)
        self._leave_idle(node)
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
            memory_s=cores * self.memory_wait,
            boot_s=boot_s * self.cluster.cores,
            node_s=node_s,
            executions=self.n + self.lost_executions,
            lost_executions=self.lost_executions,
            preemptions=self.preemptions,
            nodes=len(self.launched),
        )
