"""`medrec jobs` against a real head with its job server, in processes of their own.

The head runs with token authentication, on loopback, on free ports, in a folder of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_MEDREC = "from orchestration.cli_jobs import jobs_app; from orchestration import cli; "
# the command is not yet part of the program when this file is tested alone
_MEDREC += "names = {group.name for group in cli.app.registered_groups}; "
_MEDREC += "'jobs' in names or cli.app.add_typer(jobs_app, name='jobs'); cli.main()"

_SAY_AND_TRY = """
import os
if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
    print("uploaded code", flush=True)
    exec(os.environ.get("TRY", ""), {})
"""
_SLEEP = """
import signal, sys, time
def save(*_):
    time.sleep(4)  # longer than Ray's own patience
    print("saved", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print("asleep", flush=True)
time.sleep(60)
"""
_JOIN = """
from orchestration.cluster import ensure_ray
ray = ensure_ray()
print("driver", ray.cluster_resources()["driver"], ray.available_resources()["driver"])
ray.shutdown()
"""
_JOIN_BY_HAND = """
import os
from orchestration.job_request import use_job_environment
use_job_environment()
from orchestration.cluster import ensure_ray
print("nodes", len(ensure_ray().nodes()), "home", os.environ["MEDREC_HOME"])
"""


@dataclass(frozen=True)
class Head:
    address: str
    env: dict[str, str]
    project: Path

    def jobs(
        self, *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``medrec jobs ...`` in a process."""
        return self.run(sys.executable, "-c", _MEDREC, "jobs", *arguments, env=env)

    def run(
        self, *command: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.env | {"RAY_API_SERVER_ADDRESS": self.address} | (env or {}),
            cwd=self.project,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


@pytest.fixture(scope="module")
def head(root: Path) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="medrec-job-"))  # paths of sockets must be short
    (folder / "token").write_text("a" * 40)
    (folder / "home").mkdir()
    project = _small_project(folder / "project", root)
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
        "HOME": str(folder / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_prestart_worker_first_driver": "0",
        "OMP_NUM_THREADS": "1",
    }
    process = _start_head(folder, env, ports := _free_ports(6))
    address = f"http://127.0.0.1:{ports[0]}"
    try:
        _wait_for(address, process)
        yield Head(address, env, project)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _small_project(project: Path, root: Path) -> Path:
    """A working folder whose code says in a job that it is the uploaded one, and can be asked."""
    for package in ("orchestration", "medrec", "quantum"):
        shutil.copytree(
            root / package, project / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    with (project / "orchestration" / "__init__.py").open("a") as handle:
        handle.write(_SAY_AND_TRY)
    return project


def _start_head(folder: Path, env: dict[str, str], ports: list[int]) -> subprocess.Popen[bytes]:
    dashboard, gcs, agent, client, metrics, runtime_env = map(str, ports)
    command = [
        *("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *(f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime_env}"),
        *("--num-cpus=1", '--resources={"driver": 2}', "--object-store-memory=80000000"),
        *(f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"),
    ]
    with (folder / "head.log").open("wb") as log:
        return subprocess.Popen(
            command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended at once"
        try:
            urlopen(f"{address}/api/version", timeout=5).close()
        except HTTPError:
            return  # it answers, and wants the token
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail("no job server after 60 s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head's processes, by their ids alone."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for item in [*family, process]:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            item.kill()
    process.wait(10)
    psutil.wait_procs(family, timeout=5)


def test_a_command_runs_once(head: Head):
    submit = ("submit", "--wait", "--json", "--", "molecule", "CCO", "--json")
    first = head.jobs(*submit)
    assert first.returncode == 0, first.stderr
    job = json.loads(first.stdout)
    assert (job["status"], job["submitted"], job["exit_code"]) == ("SUCCEEDED", True, 0)
    assert re.fullmatch(r"molecule-[0-9a-f]{8}-1", job["job"])
    assert '"formula": "C2H6O"' in first.stderr  # the log, as --json has standard output

    second = head.jobs(*submit)
    assert second.returncode == 0, second.stderr
    there = json.loads(second.stdout)
    assert (there["job"], there["submitted"]) == (job["job"], False)
    assert "not run again" in second.stderr

    log = head.jobs("logs", job["job"])
    assert '"formula": "C2H6O"' in log.stdout
    assert "uploaded code" in log.stdout

    other = head.jobs("submit", "--name", job["job"][:-2], "--", "molecule", "CO")
    assert other.returncode == 2
    assert "belongs to another command" in other.stderr


def test_a_failed_command_keeps_its_exit_code_and_gets_the_next_number(head: Head):
    submit = ("submit", "--wait", "--name", "bad", "--", "molecule", "not-a-smiles")
    for attempt in (1, 2):
        done = head.jobs(*submit)
        assert done.returncode == 2, done.stderr
        assert f"submitted as bad-{attempt}" in done.stderr
        assert "not-a-smiles" in done.stdout
    status = json.loads(head.jobs("status", "bad", "--json").stdout)
    assert (status["job"], status["status"], status["exit_code"]) == ("bad-2", "FAILED", 2)
    table = head.jobs("list").stdout
    assert re.search(r"bad-1 +FAILED +\d{4}-\d\d-\d\d", table)


def test_a_sleeping_job_is_stopped_and_has_time_to_save(head: Head):
    submit = ("submit", "--name", "sleeper", "--env", f"TRY={_SLEEP}", "--", "molecule", "CCO")
    assert head.jobs(*submit).returncode == 0
    again = head.jobs(*submit)
    assert again.returncode == 0
    assert re.search(r"sleeper-1 is (PENDING|RUNNING); not submitted a second time", again.stderr)
    _wait_until(lambda: "asleep" in head.jobs("logs", "sleeper-1").stdout)

    stopped = head.jobs("stop", "sleeper", "--json")
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(stopped.stdout)["status"] == "STOPPED"
    log = head.jobs("logs", "sleeper-1", "--follow")  # ends, as the job has
    assert "saved" in log.stdout
    assert "had ended before" in head.jobs("stop", "sleeper-1").stderr


def test_the_command_joins_the_cluster_as_driver_and_secrets_stay_unsaid(head: Head):
    done = head.jobs(
        *("submit", "--wait", "--name", "join", "--env", f"TRY={_JOIN}", "--env", "SECRET"),
        *("--", "molecule", "CCO"),
        env={"SECRET": "hunter2"},
    )
    assert done.returncode == 0, done.stderr
    assert "driver 2.0 1.0" in done.stdout
    said = [done, head.jobs("status", "join", "--json"), head.jobs("list", "--json")]
    assert all("hunter2" not in item.stdout + item.stderr for item in said)


def test_rays_own_command_submits_the_module(head: Head):
    submit = ("ray", "job", "submit", "--address", head.address, "--working-dir", ".")
    done = head.run(*submit, "--", "python", "-m", "orchestration", "molecule", "CCO")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "C2H6O" in done.stdout
    done = head.run(*submit, "--", "python", "-c", _JOIN_BY_HAND)
    assert "nodes 1 home " in done.stdout
    assert "/home/medrec-work" in done.stdout


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token: set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN": "b" * 40}, "refuses this token"),
    ],
)
def test_tokens_are_checked(head: Head, env, message):
    done = head.jobs("list", env=env)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "b" * 40 not in done.stderr


def test_unknown_jobs_and_closed_ports_are_one_line(head: Head):
    unknown = head.jobs("status", "nothing")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("medrec: no job 'nothing' at http://127.0.0.1:")
    (port,) = _free_ports(1)
    absent = head.jobs("list", "--address", f"http://127.0.0.1:{port}")
    assert absent.returncode == 5
    assert absent.stderr.startswith(f"medrec: no Ray job server at http://127.0.0.1:{port}")
    for done in (unknown, absent):
        assert len(done.stderr.strip().splitlines()) == 1


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.5)
