"""A process that has loaded the programs once and forks the children that calculate.

Importing PySCF takes seconds, a fork milliseconds. The server runs no calculation, so it has no
threads when it forks. A child takes requests one after the other as long as they were small; after
a large one it ends, and its memory with it. All processes end with the one that started them: the
server when its socket closes, children by a signal of the kernel when the server ends. What a child
leaves behind, such as the program that a wrapper script had started, becomes the server's and is
killed. The other side is `quantum.fork_handle`.
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
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from quantum.base import code_version, die_with_parent, machine
from quantum.threads import limit_threads, thread_pools

if TYPE_CHECKING:
    from quantum.pipeline import Claims

_MIB = 2**20
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


def serve(connection: socket.socket) -> None:
    """Fork children, one at a time, until the other side is gone."""
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
            gone = _is_gone(connection)
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


def _is_gone(connection: socket.socket) -> bool:
    """Take one byte; True if the other side is gone, also with something of ours unread."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


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


def _child(server: int, requests: int, results: int, output: int) -> NoReturn:
    """Body of a child; leaves without the interpreter's tear-down."""
    code = 1
    try:
        die_with_parent()
        if os.getppid() != server:  # it ended before the line above
            os._exit(code)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides what ends
        os.dup2(output, 1)
        os.dup2(output, 2)
        with os.fdopen(requests, "rb") as handle:
            for line in handle:
                before = _cpu_s()
                _forget_peak()
                work(json.loads(line), results)
                sys.stdout.flush()
                sys.stderr.flush()
                facts = {"peak_mb": _peak_mb(), "cpu_s": round(_cpu_s() - before, 3)}
                os.write(results, json.dumps(facts).encode() + b"\n")
        code = 0
    except BaseException as error:  # noqa: BLE001 - becomes the exit code and the output
        with contextlib.suppress(OSError):
            os.write(output, f"{type(error).__name__}: {error}\n".encode())
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _cpu_s() -> float:
    """CPU seconds of this process and of programs that it ran."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _forget_peak() -> None:
    """Let the kernel measure this process's peak of memory anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_bytes(b"5")


def _peak_mb() -> float:
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(who).ru_maxrss for who in both) * 1024 / _MIB, 1)


def work(request: dict[str, Any], results: int) -> None:
    """Compute the tasks of a request and write an outcome per line to a descriptor."""
    from quantum.pipeline import Task, compute_features
    from quantum.schema import Resources
    from quantum.store import open_store

    if not request["tasks"]:
        return
    resources = Resources.model_validate(request["resources"])
    reserved = _RESERVED_MB * resources.threads if resources.threads > 1 else 0
    limit = (resources.memory_mb + _MAPPED_MB + reserved) * _MIB
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))  # the next request has its own
    store = open_store(request["store"])
    claims = claims_of(request["owner"])
    with limit_threads(resources.threads):
        for text in request["tasks"]:
            outcome = compute_features(Task.model_validate(text), store, resources, claims)
            os.write(results, outcome.model_dump_json().encode() + b"\n")


@lru_cache(maxsize=1)
def claims_of(owner: str | None) -> Claims | None:
    """Claims of an owner, whose thread serves all requests of this process."""
    from quantum.pipeline import Claims

    return Claims(owner) if owner else None


def main() -> None:
    """Load the programs, then serve."""
    import importlib

    _adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in (*_PRELOADED, *sys.argv[2:]):
        with contextlib.suppress(ImportError):  # a program that is not there is named when needed
            importlib.import_module(name)
    code_version(), machine(), thread_pools()  # asked once, and not by every child
    with (
        socket.socket(fileno=int(sys.argv[1])) as connection,
        contextlib.suppress(ConnectionError),  # the other side is gone
    ):
        serve(connection)


if __name__ == "__main__":
    main()
