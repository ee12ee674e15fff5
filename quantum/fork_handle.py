"""Handle of a `quantum.fork_server`: starts it, gives its children requests, reads their results.

Requests and results are lines in pipes; the child's output is a temporary file.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

from quantum.base import TransientError

_OUTPUT_KEPT = 4000
_LEAVE_S = 10.0
# a child that has worked longer, or has grown larger, takes no further request
KEPT_S, KEPT_MB = 5.0, 1000.0


@dataclass(frozen=True)
class ChildEnd:
    """How a request ended, and with it perhaps the child.

    ``signal`` is 0 if the child lives on or left by itself; ``output`` is the end of what it wrote.
    """

    exit_code: int = 0
    signal: int = 0
    timed_out: bool = False
    output: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0
    cpu_s: float = 0.0


@dataclass
class _Child:
    """Our ends of a child's pipes, and its output."""

    requests: BinaryIO
    results: int
    output: BinaryIO
    spent_s: float = 0.0

    def take(self, line: bytes) -> _Child:
        self.requests.write(line)
        self.requests.flush()
        return self

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it is gone, with a request unread
            self.requests.close()
        os.close(self.results)
        self.output.close()

    def written(self, since: int) -> str:
        """End of what it wrote since a position."""
        end = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(since, end - _OUTPUT_KEPT))
        return self.output.read().decode(errors="replace")


class ForkServer:
    """Handle of a server in a process of its own.

    Parameters
    ----------
    environment : dict
        Of the server and of all its children; holds the sizes of thread pools.
    more : tuple of str
        Modules to load beyond those of calculations.
    """

    def __init__(self, environment: dict[str, str], more: tuple[str, ...] = ()) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quantum.fork_server", str(theirs.fileno()), *more],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
            )
        self._socket, self._is_ready = ours, False
        self._child: _Child | None = None
        self._is_leaving = False

    def is_alive(self) -> bool:
        """Tell whether the server can take a request."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the server and what it runs."""
        self._socket.close()
        if self._child is not None:
            self._child.close()
            self._child = None
        self._process.wait()

    def run(
        self, request: dict[str, Any], n_results: int, limit_s: float
    ) -> tuple[list[str], ChildEnd]:
        """Let a child answer a request, and read its results.

        Parameters
        ----------
        n_results : int
            Lines that the child should write.
        limit_s : float
            Seconds that each of them may take; then the child is killed.

        Raises
        ------
        TransientError
            If the server is lost.
        """
        try:
            child = self._ask(json.dumps(request).encode() + b"\n")
            since = child.output.seek(0, os.SEEK_END)
            start = time.perf_counter()
            lines, ended = self._follow(child.results, n_results, limit_s)
            seconds = time.perf_counter() - start
            if len(lines) > n_results:  # the last one is the child's own: it lives
                facts, text = json.loads(lines.pop()), ""
                child.spent_s += seconds
                if child.spent_s > KEPT_S or facts["peak_mb"] > KEPT_MB:
                    self.retire()
            else:
                facts, text = self._end(kill=not ended), child.written(since)
                self._forget()
        except OSError as error:
            self.close()
            raise TransientError(f"the process that starts children is lost: {error}") from None
        except BaseException:  # Ctrl-C: what runs must not go on
            self.close()
            raise
        late = not ended and len(lines) < n_results
        return lines, ChildEnd(**facts, timed_out=late, output=text, seconds=seconds)

    def retire(self) -> None:
        """Let the present child end; the next request has another one."""
        if self._child is not None:
            self._forget()
            self._is_leaving = True

    def _forget(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask(self, line: bytes) -> _Child:
        """Send a request to the present child, or to a new one if it has been killed meanwhile."""
        if self._child is not None:
            try:
                return self._child.take(line)
            except BrokenPipeError:
                self.retire()
        self._child = self._start_child()
        return self._child.take(line)

    def _start_child(self) -> _Child:
        self._await_ready()
        if self._is_leaving:
            self._end(kill=False)
            self._is_leaving = False
        requests, ours = os.pipe()
        results, theirs = os.pipe()
        output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        socket.send_fds(self._socket, [b"r"], [requests, theirs, output.fileno()])
        os.close(requests)
        os.close(theirs)
        return _Child(os.fdopen(ours, "wb"), results, output)

    def _await_ready(self) -> None:
        """Wait until the server has loaded the programs, so that no task pays for that."""
        if not self._is_ready and self._socket.recv(1) != b"+":
            raise OSError("it ended while it loaded the programs")
        self._is_ready = True

    def _follow(self, pipe: int, n_results: int, limit_s: float) -> tuple[list[str], bool]:
        """Read lines until the child's own comes or the pipe closes (True), or one is late (False).

        The child writes a line of its own behind the results.
        """
        data, seen = b"", 0
        deadline = time.monotonic() + limit_s
        while True:
            if data.count(b"\n") > seen:
                seen = data.count(b"\n")
                deadline = time.monotonic() + (limit_s if seen < n_results else _LEAVE_S)
            if seen > n_results:
                return [line.decode() for line in data.split(b"\n")[:seen]], True
            ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0.0))
            chunk = os.read(pipe, 65536) if ready else b""
            data += chunk
            if not chunk:
                whole = data.split(b"\n")[:seen]  # one that was cut off is not a line
                return [line.decode() for line in whole], bool(ready)

    def _end(self, *, kill: bool) -> dict[str, Any]:
        if kill:
            self._socket.sendall(b"k")
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = self._socket.recv(4096)
            if not chunk:
                raise OSError("connection closed")
            answer += chunk
        state: dict[str, Any] = json.loads(answer)
        return state
