"""Notice the loss of Ray's head, and end with one line instead of hanging.

A driver whose head is gone sees nothing: ``ray.wait`` returns as if work went on. After 60 s
without control plane (``RAY_gcs_rpc_server_reconnect_timeout_s``) Ray ends the process from a
thread of its own, with exit code 1 and no chance to say what to do. `HeadWatch` is there first.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from typing import Any

from quantum.base import TransientError

_RECONNECT_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RECONNECT_S = 60.0  # Ray's default
_BEFORE_RAY_S = 20.0  # time to end in order before Ray ends the process
_ASK_EVERY_S = 2.0
_TICK_S = 0.5
RESUME = "finished work is kept, the same command goes on from there"


class HeadWatch:
    """Asks the control plane from a thread, for as long as this process is a driver.

    A loop calls `check`. A driver that waits elsewhere (``trainer.fit``) is ended from here: one
    line, and the exit code of `TransientError`.

    Parameters
    ----------
    ray : module
        Initialised.
    limit_s : float, optional
        Seconds without an answer that are waited out, so that a head with durable storage can come
        back; by default 20 s less than Ray's own patience.
    grace_s : float
        Seconds that the driver has to end after that.

    Attributes
    ----------
    silent_s : float
        Seconds of this process without an answer; time in which it was stopped does not count.
    """

    def __init__(self, ray: Any, limit_s: float | None = None, grace_s: float = 10.0) -> None:
        if limit_s is None:
            patience = float(os.environ.get(_RECONNECT_VARIABLE, _RECONNECT_S))
            limit_s = max(patience / 2, patience - _BEFORE_RAY_S)
        self.ray, self.limit_s, self.grace_s = ray, limit_s, grace_s
        self.node_id = ray.get_runtime_context().get_node_id()
        self.silent_s = 0.0
        self.node_gone = False
        self.lost: str | None = None
        self.told = False
        self._over = threading.Event()

    def start(self) -> HeadWatch:
        """Start watching; it ends with ``ray.shutdown()``."""
        for job in (self._ask, self._judge):
            threading.Thread(target=job, name=f"head{job.__name__}", daemon=True).start()
        return self

    @property
    def is_over(self) -> bool:
        """Tell whether the cluster that was watched has been left."""
        return self._over.is_set()

    def check(self) -> None:
        """Stop the driver if the head is lost.

        Raises
        ------
        TransientError
            With what to do.
        """
        if self.lost is not None:
            self.told = True
            raise TransientError(self.lost)

    def _ask(self) -> None:
        """Ask in a thread of its own: without control plane the call does not return."""
        while self.ray.is_initialized():
            try:
                nodes = self.ray.nodes()
            except Exception:  # noqa: BLE001 - whatever it is, it is no answer
                nodes = None
            if nodes:
                self.silent_s = 0.0
                self.node_gone = any(
                    node["NodeID"] == self.node_id and not node["Alive"] for node in nodes
                )
            time.sleep(_ASK_EVERY_S)
        self._over.set()

    def _judge(self) -> None:
        while not self._over.wait(_TICK_S):
            self.silent_s += _TICK_S
            reason = self._reason()
            if reason is not None and self.ray.is_initialized():
                self._leave(reason)
                return

    def _reason(self) -> str | None:
        if self.node_gone:
            return "the Ray node that this driver is attached to is gone"
        if self.silent_s > self.limit_s:
            return f"Ray's head has not answered for {self.limit_s:.0f} s"
        return None

    def _leave(self, reason: str) -> None:
        # Ray's own clean-up would wait for the head; this runs before it
        atexit.register(_end, TransientError.exit_code)
        self.lost = f"{reason}; {RESUME}"
        time.sleep(self.grace_s)
        if not self.told:
            sys.stderr.write(f"medrec: {self.lost}\n")
        _end(TransientError.exit_code)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_current: HeadWatch | None = None


def head_watch(ray: Any) -> HeadWatch:
    """Watch the head of the cluster that this process has joined; one watch per process."""
    global _current
    if _current is None or _current.is_over:
        _current = HeadWatch(ray).start()
    return _current


def check_head() -> None:
    """Stop if the head is lost; nothing if none is watched.

    Raises
    ------
    TransientError
        With what to do.
    """
    if _current is not None:
        _current.check()
