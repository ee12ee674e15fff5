"""Real Ray nodes of one machine and a fake cloud that takes them away.

Head, nodes, driver and watchers are processes of their own with their own ports, token and folder;
no other cluster of the machine is touched. For benchmarks and tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WATCH = "from orchestration.cli_spot import spot_app; spot_app()"


class Machine:
    """A real Ray cluster in a folder of its own."""

    def __init__(self, **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="swd"))  # short: Ray's socket names are long
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        } | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
            **environment,
        }
        self.started: list[subprocess.Popen] = []
        self.rays: list[subprocess.Popen] = []

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen:
        """Start a program; its output goes to the log of that name."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment | environment,
            )
        self.started.append(process)
        return process

    def start_ray(self, name: str, *flags: str, **environment: str) -> subprocess.Popen:
        """Run `ray start --block` with a small object store."""
        program = str(Path(sys.executable).with_name("ray"))
        common = ("--block", "--node-ip-address=127.0.0.1", "--object-store-memory=78643200")
        self.rays.append(self.start(name, program, "start", *common, *flags, **environment))
        return self.rays[-1]

    def start_head(self, n_cpus: int = 0) -> None:
        """Start the head; it runs no tasks unless it has cores."""
        port = self.address.rpartition(":")[2]
        temporary = f"--temp-dir={self.folder}"
        cpus = f"--num-cpus={n_cpus}"
        self.start_ray("head", "--head", f"--port={port}", cpus, temporary, "--include-dashboard=0")
        wait_for(lambda: "--block" in self.log("head"), 120, self)

    def start_node(self, name: str, *flags: str, **environment: str) -> None:
        """One after the other: of two that start at once, one may time out."""
        self.start_ray(name, f"--address={self.address}", "--num-cpus=1", *flags, **environment)
        wait_for(lambda: "--block" in self.log(name), 120, self)

    def preempt(self, name: str, node_id: str, cloud: Aws, *flags: str) -> subprocess.Popen:
        """Watch a node; the caller lets the cloud speak."""
        place = ("--node-id", node_id, "--metadata", cloud.url)
        timing = ("--lead", "6", "--interval", "0.2")
        watcher = self.start(
            name, sys.executable, "-c", WATCH, "--cloud", "aws", *place, *timing, *flags
        )
        wait_for(lambda: "watching aws" in self.log(name), 60, self)
        return watcher

    def kill_ray(self) -> None:
        """Kill the head and all nodes outright, as when the machine loses power."""
        starts = [process.pid for process in self.rays if process.poll() is None]
        for pid in [*starts, *(pid for pid in self.left_over() if is_of_ray(pid))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log(self, name: str) -> str:
        """Output of a program so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def everything(self) -> str:
        """All logs, for messages."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.stem}\n{path.read_text(errors='replace')}" for path in logs)

    def close(self) -> None:
        """End what was started."""
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.left_over():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def left_over(self) -> list[int]:
        """Processes of this cluster: its folder's name is unique and stands in their arguments."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if str(self.folder).encode() in arguments(int(entry.name)):
                        found.append(int(entry.name))
        return found


class Aws:
    """The metadata service of one spot machine."""

    def __init__(self) -> None:
        answers: dict[str, str] = {}
        self.answers = answers

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Stay quiet."""

            def do_PUT(self) -> None:
                """Give the token."""
                self.reply("token")

            def do_GET(self) -> None:
                """Answer those who have it."""
                known = self.headers["X-aws-ec2-metadata-token"] == "token"
                self.reply(answers.get(self.path.rpartition("/")[2]) if known else None)

            def reply(self, text: str | None) -> None:
                """Send text, or that there is none."""
                self.send_response(404 if text is None else 200)
                self.end_headers()
                self.wfile.write((text or "").encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def recommend(self) -> None:
        """Advise that the machine may go soon."""
        self.answers["rebalance"] = json.dumps({"noticeTime": "2026-11-21T08:00:00Z"})

    def interrupt(self, seconds: float) -> None:
        """Say that the machine goes."""
        end = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.answers["instance-action"] = json.dumps({"action": "terminate", "time": end})

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def arguments(pid: int) -> bytes:
    """Command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_of_ray(pid: int) -> bool:
    """Tell Ray's own processes from drivers and watchers."""
    first = arguments(pid).split(b"\0")[0]
    inside = Path(first.decode(errors="replace")).name in ("raylet", "gcs_server")
    return inside or first.startswith(b"ray::") or b"/site-packages/ray/" in arguments(pid)


def wait_for(condition: Callable[[], Any], seconds: float, machine: Machine) -> None:
    """Wait; the logs are in the message if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(machine.everything())
        time.sleep(0.1)
