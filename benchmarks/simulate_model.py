"""What a simulated cluster is made of: nodes, a driver, a store, tasks; and what a run gives.

The events are in `simulate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
NEVER = math.inf


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind.

    Parameters
    ----------
    nodes : int
        At most.
    memory_mb : float
        That tasks of a node may ask for.
    grows : bool
        Nodes are launched for tasks in flight, as an autoscaler does; otherwise all at once.
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
    memory_mb: float = NEVER
    grows: bool = False
    boot_s: float = 0.0
    idle_timeout_s: float = NEVER
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
    per_slot : float
        The same per slot of the nodes that are up, where that is more.
    task_s : float
        Seconds per task.
    in_flight_s : float
        Further seconds for each task in flight, once for all outcomes that are taken together.
    gather : int
        Outcomes that are taken together at most; those that are there when the driver looks.
    """

    window: int
    per_slot: float = 0.0
    task_s: float = 0.0
    in_flight_s: float = 0.0
    gather: int = 1


@dataclass(frozen=True)
class SharedStore:
    """Where results are committed: seconds per commit, bytes per second for all together."""

    commit_s: float = 0.0
    bytes_per_s: float = NEVER


@dataclass(frozen=True)
class Batch:
    """Tasks; independent but for chains.

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
    start_s : float
        Seconds that each task takes before its work, on a node of mean speed.
    memory_mb : array of shape (n,), optional
        That each task asks for; one that waits for memory lets smaller ones pass.
    after : array of shape (n,), optional
        Index of the task that must be done before, -1 for none; one task follows on each at most.
    """

    core_s: Array
    order: npt.NDArray[np.int64]
    size: Array | None = None
    cores: int = 1
    serial_share: float = 0.0
    start_s: float = 0.0
    memory_mb: Array | None = None
    after: npt.NDArray[np.int64] | None = None

    @property
    def wall_s(self) -> Array:
        """Seconds per task on a node of mean speed, shape (n,)."""
        work = self.core_s * (self.serial_share + (1.0 - self.serial_share) / self.cores)
        return work + self.start_s


@dataclass(frozen=True)
class Result:
    """Times in seconds; where the paid core-seconds went.

    ``useful_s`` is the work of the batch, counted once. ``slow_s`` is what slow nodes, the serial
    share and starts add, ``driver_s`` cores whose next task the driver was still busy with,
    ``store_s`` waiting for the commit, ``lost_s`` work that a preempted node took with it,
    ``memory_s`` cores whose node had no memory for the tasks that waited, ``boot_s`` nodes that
    were not up, ``idle_s`` the rest: cores without a task.
    """

    makespan_s: float
    paid_s: float
    useful_s: float
    slow_s: float
    driver_s: float
    store_s: float
    lost_s: float
    memory_s: float
    boot_s: float
    node_s: float
    executions: int
    lost_executions: int
    preemptions: int
    nodes: int

    @property
    def idle_s(self) -> float:
        """Paid core-seconds that nothing else explains."""
        parts = (
            self.useful_s + self.slow_s + self.driver_s + self.store_s + self.lost_s + self.memory_s
        )
        return self.paid_s - parts - self.boot_s

    @property
    def efficiency(self) -> float:
        """Useful over paid core-seconds."""
        return self.useful_s / self.paid_s

    def shares(self) -> dict[str, float]:
        """Shares of the paid core-seconds that were not useful, by cause."""
        names = ("slow", "driver", "store", "lost", "memory", "boot", "idle")
        return {name: float(getattr(self, f"{name}_s")) / self.paid_s for name in names}
