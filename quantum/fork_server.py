"""A process that has loaded the programs once and forks a child for each request.

Importing PySCF takes seconds, a fork milliseconds. The server runs no calculation, so it has no
threads when it forks. All processes end with the one that started them: the server when its socket
closes, children by a signal of the kernel when the server ends. What a child leaves behind, such as
the program that a wrapper script had started, becomes the server's and is killed.

The request and the child's output are temporary files, results come line by line through a pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quantum.base import TransientError, code_version, die_with_parent, machine
from quantum.threads import limit_threads, thread_pools

_MIB = 2**20
_OUTPUT_KEPT = 4000
_LEAVE_S = 10.0
_PR_SET_CHILD_SUBREAPER = 36
# programs and libraries map about 2 GB of files
_MAPPED_MB = 2000
# address space that each of several threads of PySCF's integral code reserves and hardly touches
_RESERVED_MB = 3300
_PRELOADED = (
    "threadpoolctl",
    "quantum.pipeline",
    "scipy.ndimage",
    "pyscf.gto",
    "pyscf.dft",
    "pyscf.df",
    "pyscf.scf.dispersion",
    "quantum.backends.fields",
    "quantum.backends.orbitals",
    "quantum.backends.screened",
)


@dataclass(frozen=True)
class ChildEnd:
    """How a child ended.

    ``signal`` is 0 if it left by itself; ``output`` is the end of what it wrote.
    """

    exit_code: int = 0
    signal: int = 0
    timed_out: bool = False
    output: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0
    cpu_s: float = 0.0


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

    def is_alive(self) -> bool:
        """Tell whether the server can take a request."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the server and what it runs."""
        self._socket.close()
        self._process.wait()

    def run(
        self, request: dict[str, Any], n_results: int, limit_s: float
    ) -> tuple[list[str], ChildEnd]:
        """Run one child and read its results.

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
        with tempfile.TemporaryFile() as body, tempfile.TemporaryFile() as output:
            body.write(json.dumps(request).encode())
            body.seek(0)
            read_end, write_end = os.pipe()
            try:
                with os.fdopen(write_end, "wb") as sink:
                    self._await_ready()
                    start = time.perf_counter()
                    descriptors = [body.fileno(), sink.fileno(), output.fileno()]
                    socket.send_fds(self._socket, [b"r"], descriptors)
                lines, ended = self._follow(read_end, n_results, limit_s)
                state = self._end(kill=not ended)
            except OSError as error:
                self.close()
                raise TransientError(f"the process that starts children is lost: {error}") from None
            except BaseException:  # Ctrl-C: what runs must not go on
                self.close()
                raise
            finally:
                os.close(read_end)
            output.seek(max(output.seek(0, os.SEEK_END) - _OUTPUT_KEPT, 0))
            text = output.read().decode(errors="replace")
        return lines, ChildEnd(
            exit_code=state["exit_code"],
            signal=state["signal"],
            timed_out=not ended and len(lines) < n_results,
            output=text,
            seconds=time.perf_counter() - start,
            peak_mb=state["peak_mb"],
            cpu_s=state["cpu_s"],
        )

    def _await_ready(self) -> None:
        """Wait until the server has loaded the programs, so that no task pays for that."""
        if not self._is_ready and self._socket.recv(1) != b"+":
            raise OSError("it ended while it loaded the programs")
        self._is_ready = True

    def _follow(self, pipe: int, n_results: int, limit_s: float) -> tuple[list[str], bool]:
        """Read lines until the child closes the pipe (True) or one is too late (False)."""
        data, seen = b"", 0
        deadline = time.monotonic() + limit_s
        while True:
            if data.count(b"\n") > seen:
                seen = data.count(b"\n")
                deadline = time.monotonic() + (limit_s if seen < n_results else _LEAVE_S)
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


# --------------------------------------------------------------------------- in the server


def serve(connection: socket.socket) -> None:
    """Fork a child per request until the other side is gone."""
    server = os.getpid()
    connection.sendall(b"+")
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        if not message:
            return
        if message != b"r":
            continue  # a kill that came after the end
        child = os.fork()
        if child == 0:
            connection.close()
            _child(server, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        state = _await(child, connection)
        if state is None:
            return
        connection.sendall(json.dumps(state).encode() + b"\n")


def _await(child: int, connection: socket.socket) -> dict[str, Any] | None:
    """Wait for a child, or for the word to kill it; None if the other side is gone."""
    ended = os.pidfd_open(child)
    try:
        gone = False
        while True:
            ready, _, _ = select.select([ended, connection.fileno()], [], [])
            if ended in ready:
                break
            gone = connection.recv(1) == b""
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            if gone:
                break
    finally:
        os.close(ended)
    _, status, usage = os.wait4(child, 0)
    _kill_orphans()
    if gone:
        return None
    return {
        "exit_code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "peak_mb": round(usage.ru_maxrss * 1024 / _MIB, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
    }


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _kill_orphans() -> None:
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(ChildProcessError, FileNotFoundError):
        while True:
            for pid in listed.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)  # its own children are ours from here on


def _child(server: int, body: int, results: int, output: int) -> NoReturn:
    """Body of a child; leaves without the interpreter's tear-down."""
    code = 1
    try:
        die_with_parent()
        if os.getppid() != server:  # it ended before the line above
            os._exit(code)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides what ends
        os.dup2(output, 1)
        os.dup2(output, 2)
        with os.fdopen(body, "rb") as handle:
            request = json.load(handle)
        work(request, results)
        code = 0
    except BaseException as error:  # noqa: BLE001 - becomes the exit code and the output
        with contextlib.suppress(OSError):
            os.write(output, f"{type(error).__name__}: {error}\n".encode())
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def work(request: dict[str, Any], results: int) -> None:
    """Compute the tasks of a request and write an outcome per line to a descriptor."""
    from quantum.pipeline import Claims, Task, compute_features
    from quantum.schema import Resources
    from quantum.store import open_store

    if not request["tasks"]:
        return
    resources = Resources.model_validate(request["resources"])
    reserved = _RESERVED_MB * resources.threads if resources.threads > 1 else 0
    limit = (resources.memory_mb + _MAPPED_MB + reserved) * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    store = open_store(request["store"])
    claims = Claims(request["owner"]) if request["owner"] else None
    with limit_threads(resources.threads):
        for text in request["tasks"]:
            outcome = compute_features(Task.model_validate(text), store, resources, claims)
            os.write(results, outcome.model_dump_json().encode() + b"\n")


def main() -> None:
    """Load the programs, then serve."""
    import importlib

    _adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in (*_PRELOADED, *sys.argv[2:]):
        with contextlib.suppress(ImportError):  # a program that is not there is named when needed
            importlib.import_module(name)
    code_version(), machine(), thread_pools()  # asked once, and not by every child
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
