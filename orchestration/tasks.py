"""The executor that spreads tasks over a Ray cluster.

Tasks are pure functions of a request that return a small outcome; arrays go to the store. A bounded
number is in flight, results come as they finish, and nothing that happens to one task stops the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from quantum.pipeline import Outcome, Task, unknown_failure

_LOST_WORKERS = 3


class RayExecutor:
    """Runs a function over tasks as Ray tasks, in the given order.

    Parameters
    ----------
    ray : module
        Initialised, see `orchestration.cluster.ensure_ray`.
    cpus_per_task : float
        Cores that Ray keeps free for a task; also the size of its native thread pools.
    max_in_flight : int
        Tasks submitted at a time; a tight window keeps an autoscaling cluster small.
    """

    def __init__(self, ray: Any, cpus_per_task: float = 1, max_in_flight: int = 64) -> None:
        self.ray, self.cpus, self.max_in_flight = ray, cpus_per_task, max_in_flight

    def run(
        self, function: Callable[[Task], Outcome], items: Sequence[Task]
    ) -> Iterator[tuple[Task, Outcome]]:
        """Yield items with their outcomes as they finish.

        An exception in one item becomes its outcome. A worker that is lost three times on one item
        ends it as ``transient``. Closing the iterator (Ctrl-C in the caller) cancels what runs.
        """
        ray = self.ray
        remote = ray.remote(num_cpus=self.cpus, max_retries=_LOST_WORKERS, retry_exceptions=False)(
            _call
        )
        threads = max(1, int(self.cpus))
        shared = ray.put(function)
        waiting = list(items)[::-1]
        running: dict[Any, Task] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.max_in_flight:
                    item = waiting.pop()
                    running[remote.remote(shared, item, threads)] = item
                done, _ = ray.wait(list(running), num_returns=1, timeout=5, fetch_local=False)
                for reference in done:
                    item = running.pop(reference)
                    yield item, self._collect(reference, item)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _collect(self, reference: Any, item: Task) -> Outcome:
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.OutOfMemoryError as error:
            return _failure(item, "resource", error)
        except (
            self.ray.exceptions.WorkerCrashedError,
            self.ray.exceptions.NodeDiedError,
            self.ray.exceptions.ObjectLostError,
        ) as error:
            return _failure(item, "transient", error)
        except self.ray.exceptions.RayTaskError as error:
            return unknown_failure(item, error.cause or error)
        return outcome


def _failure(item: Task, kind: str, error: BaseException) -> Outcome:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return Outcome(
        species_key=item.species.key,
        status="failed",
        kind=kind,
        message=f"{type(error).__name__}: {first_line}",
    )


def _call(function: Callable[[Task], Outcome], item: Task, threads: int) -> Outcome:
    """Body of a Ray task: native thread pools are set here, as a reused worker keeps old ones."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        return function(item)
