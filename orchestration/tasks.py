"""Functions as Ray tasks: submit, take what is finished, and say what happened to the rest.

Tasks are pure functions of a request that return a small value; arrays go to the store. Nothing
that happens to one task stops the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from quantum.base import MedrecError

LOST_WORKERS = 3
MIB = 2**20
_GATHER = 256
_CANCEL_S = 3.0  # less than the time that `orchestration.head` leaves for an end in order


@dataclass(frozen=True)
class Ask:
    """What a task asks of a machine.

    Parameters
    ----------
    cpus : float
        Cores that Ray keeps free for it; also the size of its native thread pools.
    memory_mb : float
        Memory that Ray counts for it (2^20 bytes); 0 is not counted.
    pool : str
        Label of the machines that it prefers; any other machine will do if there is none.
    """

    cpus: float = 1
    memory_mb: float = 0
    pool: str = ""


@dataclass(frozen=True)
class Lost:
    """A task that brought no value: the kind of failure and one line."""

    kind: str
    message: str


@dataclass(frozen=True)
class Answer:
    """What became of a task: its value or its loss, and the node that it ran on, if known."""

    token: Any
    value: Any
    node: str = ""


class RayPool:
    """Tasks in flight on a Ray cluster.

    Parameters
    ----------
    ray : module
        Initialised, see `orchestration.cluster.ensure_ray`.
    """

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.excluded: set[str] = set()
        self._remote = ray.remote(max_retries=LOST_WORKERS, retry_exceptions=False)(_call)
        self._functions: dict[Any, Any] = {}
        self._remotes: dict[Ask, Any] = {}
        self._running: dict[Any, tuple[Any, Ask]] = {}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def asks(self) -> set[Ask]:
        """What is asked for by what is in flight."""
        return {ask for _, ask in self._running.values()}

    def exclude(self, nodes: Collection[str]) -> None:
        """Give these nodes (by Ray's id) no new task."""
        if not self.excluded.issuperset(nodes):
            self.excluded |= set(nodes)
            self._remotes.clear()

    def submit(self, token: Any, function: Callable[[Any], Any], item: Any, ask: Ask) -> None:
        """Start ``function(item)``; `finished` returns its answer with the token."""
        if function not in self._functions:
            self._functions[function] = self.ray.put(function)
        if ask not in self._remotes:  # making one takes longer than submitting
            self._remotes[ask] = self._remote.options(**self._options(ask))
        reference = self._remotes[ask].remote(
            self._functions[function], item, max(1, int(ask.cpus))
        )
        self._running[reference] = token, ask

    def _options(self, ask: Ask) -> dict[str, Any]:
        options: dict[str, Any] = {"num_cpus": ask.cpus}
        if ask.memory_mb:
            options["memory"] = int(ask.memory_mb * MIB)
        avoid = {"ray.io/node-id": f"!in({','.join(sorted(self.excluded))})"}
        labels = avoid if self.excluded else {}
        if ask.pool:
            options["label_selector"] = {**labels, "pool": ask.pool}
            options["fallback_strategy"] = [{"label_selector": labels}]
        elif labels:
            options["label_selector"] = labels
        return options

    def finished(self, timeout_s: float = 5.0) -> list[Answer]:
        """Wait until something is finished, or for some seconds; take all that is."""
        if not self._running:
            return []
        every = list(self._running)
        ready, _ = self.ray.wait(every, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and len(every) > 1:
            most = min(len(every), _GATHER)
            ready, _ = self.ray.wait(every, num_returns=most, timeout=0, fetch_local=False)
        return [self._collect(reference) for reference in ready]

    def _collect(self, reference: Any) -> Answer:
        (token, _), errors = self._running.pop(reference), self.ray.exceptions
        try:
            value, node = self.ray.get(reference)
        except errors.OutOfMemoryError as error:
            return Answer(token, Lost("resource", _first_line(error)))
        except (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.LocalRayletDiedError,
            errors.RuntimeEnvSetupError,
        ) as error:
            return Answer(token, Lost("lost", _first_line(error)))
        except errors.RayTaskError as error:
            cause = error.cause or error
            kind = cause.kind if isinstance(cause, MedrecError) else "unknown"
            return Answer(token, Lost(kind, _first_line(cause)))
        except errors.RayError as error:  # a kind that only newer versions know
            return Answer(token, Lost("lost", _first_line(error)))
        return Answer(token, value, node)

    def cancel(self) -> None:
        """Kill what is in flight."""
        running = list(self._running)
        for reference in running:
            self.ray.cancel(reference, force=True)
        if running:  # what still runs could claim its next key behind our back
            self.ray.wait(running, num_returns=len(running), timeout=_CANCEL_S, fetch_local=False)
        self._running.clear()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def _call(function: Callable[[Any], Any], item: Any, threads: int) -> tuple[Any, str]:
    """Body of a Ray task: native thread pools are set here, as a reused worker keeps old ones."""
    import ray

    from quantum.threads import limit_threads

    with limit_threads(threads):
        return function(item), ray.get_runtime_context().get_node_id()
