"""Two real preemptions, announced by a fake cloud, leave a task its one retry.

Head, nodes, driver and watchers are processes of their own with their own ports, token and folder;
the cluster of the other tests is not touched.
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
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestration.spot_node import find_ray_node
from quantum.base import TransientError

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRIVER = """
import os, sys, time
import ray

ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1, max_retries=1)
def work(path):
    with open(path, "a") as log:
        print(ray.get_runtime_context().get_node_id(), file=log)
    attempt = len(open(path).readlines())
    if attempt < 3:
        time.sleep(600)
    if attempt == 3:
        os._exit(1)  # this one is charged, and the last there is
    return ray.get_runtime_context().get_node_id()

print("result", ray.get(work.remote(sys.argv[2]), timeout=150))
"""
WATCH = "from orchestration.cli_spot import spot_app; spot_app()"


class Machine:
    """A real Ray cluster in a folder of its own."""

    def __init__(self) -> None:
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
        }
        self.started: list[subprocess.Popen] = []

    def start(self, name: str, *command: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment
            )
        self.started.append(process)
        return process

    def start_ray(self, name: str, *flags: str) -> subprocess.Popen:
        program = str(Path(sys.executable).with_name("ray"))
        common = ("--block", "--node-ip-address=127.0.0.1", "--object-store-memory=78643200")
        return self.start(name, program, "start", *common, *flags)

    def start_head(self) -> None:
        port = self.address.rpartition(":")[2]
        temporary = f"--temp-dir={self.folder}"
        self.start_ray(
            "head", "--head", f"--port={port}", "--num-cpus=0", temporary, "--include-dashboard=0"
        )
        wait_for(lambda: "--block" in self.log("head"), 60, self)

    def start_node(self, name: str) -> None:
        """One after the other: of two that start at once, one may time out."""
        self.start_ray(name, f"--address={self.address}", "--num-cpus=1")
        wait_for(lambda: "--block" in self.log(name), 60, self)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def everything(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.stem}\n{path.read_text(errors='replace')}" for path in logs)

    def close(self) -> None:
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
                    if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found


@pytest.fixture
def machine() -> Iterator[Machine]:
    cluster = Machine()
    yield cluster
    cluster.close()


class Aws:
    """The metadata service of one spot machine."""

    def __init__(self) -> None:
        answers = self.answers = {}

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_PUT(self) -> None:
                self.reply("token")

            def do_GET(self) -> None:
                known = self.headers["X-aws-ec2-metadata-token"] == "token"
                self.reply(answers.get(self.path.rpartition("/")[2]) if known else None)

            def reply(self, text: str | None) -> None:
                self.send_response(404 if text is None else 200)
                self.end_headers()
                self.wfile.write((text or "").encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def recommend(self) -> None:
        self.answers["rebalance"] = json.dumps({"noticeTime": "2026-11-21T08:00:00Z"})

    def interrupt(self, seconds: float) -> None:
        end = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.answers["instance-action"] = json.dumps({"action": "terminate", "time": end})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def clouds() -> Iterator[list[Aws]]:
    both = [Aws(), Aws()]
    yield both
    for cloud in both:
        cloud.close()


def wait_for(condition: Callable[[], bool], seconds: float, machine: Machine) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, machine.everything()
        time.sleep(0.1)


def test_two_preemptions_do_not_charge_the_one_retry(machine, clouds, tmp_path):
    ran_on = tmp_path / "ran_on"
    ran_on.touch()

    def attempts() -> list[str]:
        return ran_on.read_text().split()

    def preempt(number: int, *flags: str) -> subprocess.Popen:
        """Watch the node that runs the task; the caller lets the cloud speak."""
        place = ("--node-id", attempts()[-1], "--metadata", clouds[number].url)
        timing = ("--lead", "6", "--interval", "0.2")
        watcher = machine.start(
            f"watch{number}", sys.executable, "-c", WATCH, "--cloud", "aws", *place, *timing, *flags
        )
        wait_for(lambda: "watching aws" in machine.log(f"watch{number}"), 30, machine)
        return watcher

    machine.start_head()
    driver = machine.start("driver", sys.executable, "-c", DRIVER, machine.address, str(ran_on))
    machine.start_node("node1")
    wait_for(lambda: len(attempts()) == 1, 60, machine)
    machine.start_node("node2")

    first = preempt(0)
    clouds[0].interrupt(12)
    assert first.wait(timeout=60) == 0, machine.everything()
    wait_for(lambda: len(attempts()) == 2, 60, machine)
    machine.start_node("node3")

    second = preempt(1, "--rebalance", "drain")  # advice, then the notice
    clouds[1].recommend()
    wait_for(lambda: "announced until" in machine.log("watch1"), 30, machine)
    clouds[1].interrupt(12)
    assert second.wait(timeout=60) == 0, machine.everything()

    assert driver.wait(timeout=60) == 0, machine.everything()
    nodes = attempts()
    assert len(nodes) == 4
    assert nodes[2] == nodes[3]
    assert len(set(nodes)) == 3
    assert f"result {nodes[3]}" in machine.log("driver")
    for number in (0, 1):
        steps = machine.log(f"watch{number}")
        assert steps.index("notice:") < steps.rindex("announced until") < steps.index("SIGTERM to")
        with pytest.raises(TransientError):
            find_ray_node(nodes[number])
