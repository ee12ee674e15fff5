"""The head of a cluster is lost or comes back: real processes, real kills."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster import ADDRESS_VARIABLE
from quantum.base import TransientError

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Ray's own patience is 60 s; these ends are for a machine that is much slower than usual
WAIT_S = 180
RESUME = "the same command goes on from there"
FEATURES = """
name: tiny
scf_budget_cpu_s: 60
max_atoms: 40
max_in_flight: 2
atlas: none
pipeline:
  conformer: {n_conformers: 2}
  calculation: {method: hf, basis: sto-3g, grid_level: 0}
  grid: {spacing_bohr: 0.8, margin_bohr: 3.0}
"""


@pytest.fixture(scope="module")
def tools(root: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        return importlib.import_module("ray_nodes")


@pytest.fixture
def machines(tools: Any) -> Iterator[Any]:
    """Makes clusters, one after the other."""
    made: list[Any] = []

    def make(**environment: str) -> Any:
        made.append(tools.Machine(**environment))
        made[-1].start_head(n_cpus=1)
        return made[-1]

    yield make
    for machine in made:
        machine.close()


WATCHED = """
import sys, time
from orchestration.cluster import ensure_ray
from orchestration.head import check_head
from quantum.base import TransientError

ray = ensure_ray(address=sys.argv[1])

@ray.remote(num_cpus=1, max_retries=3)
def work():
    time.sleep(3600)

task = work.remote()
print("at work", flush=True)
if sys.argv[2] == "blocked":
    ray.get(task)
try:
    while True:
        ray.wait([task], timeout=2, fetch_local=False)
        check_head()
except TransientError as error:
    print("raised", error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["loop", "blocked"])
def test_a_driver_whose_head_dies_ends_with_one_line_and_code_5(tools, machines, way):
    machine = machines()
    driver = machine.start("driver", sys.executable, "-c", WATCHED, machine.address, way)
    tools.wait_for(lambda: "at work" in machine.log("driver"), WAIT_S, machine)
    machine.kill_ray()
    assert driver.wait(timeout=WAIT_S) == TransientError.exit_code, machine.everything()
    first, *lines = machine.log("driver").splitlines()
    assert first == "at work"
    (line,) = lines
    assert line.startswith("raised Ray's head" if way == "loop" else "medrec: Ray's head")
    assert line.endswith(RESUME)


STAYS = """
import os, sys, time
from orchestration.cluster import ensure_ray
from orchestration.head import head_watch

watch = head_watch(ensure_ray(address=sys.argv[1]))
print("at work", flush=True)
while sys.stdin.readline():
    watch.check()
    print("unharmed", watch.limit_s, flush=True)
"""


@pytest.mark.timeout(600)
def test_a_frozen_head_is_lost_only_after_the_limit(tools, machines):
    """A stopped process still accepts connections: only an answer counts."""
    machine = machines()
    (gcs,) = [
        pid
        for pid in machine.left_over()
        if tools.arguments(pid).split(b"\0")[0].endswith(b"gcs_server")
    ]
    with subprocess.Popen(
        [sys.executable, "-c", STAYS, machine.address],
        env=machine.environment | {"RAY_gcs_rpc_server_reconnect_timeout_s": "40"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout.readline().strip() == "at work"
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert driver.stdout.readline().strip() == "unharmed 20.0"
        os.kill(gcs, signal.SIGSTOP)
        assert driver.wait(timeout=WAIT_S) == TransientError.exit_code
        os.kill(gcs, signal.SIGCONT)
        (line,) = driver.stderr.read().splitlines()
    assert line.startswith("medrec: Ray's head has not answered for 20 s")


JOIN = "import sys; from orchestration.cluster import ensure_ray; ensure_ray(address=sys.argv[1])"


def test_a_cluster_that_is_not_there_is_one_line_and_soon():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"quantum.base.TransientError: no Ray cluster answers at {address}")


# --------------------------------------------------------------------------- control plane

DURABLE = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from orchestration.cluster import ensure_ray
from orchestration.head import head_watch

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
ray = ensure_ray(address=cluster.address)

@ray.remote(num_cpus=1, max_retries=0)
def task(name):
    with (folder / name).open("a") as log:
        print("start", file=log)
    while not (folder / "over").exists():
        time.sleep(0.1)
    return name

watch = head_watch(ray)
running = task.remote("running")
while not (folder / "running").exists():
    time.sleep(0.1)
cluster.head_node.kill_gcs_server()
silent = time.monotonic()
while watch.silent_s < 8:
    time.sleep(0.5)
cluster.head_node.start_gcs_server()
while watch.silent_s > 4:
    time.sleep(0.5)
    watch.check()
print("back after", round(time.monotonic() - silent, 1), flush=True)
(folder / "over").touch()
print("finished", ray.get(running, timeout=120), flush=True)
print("new", ray.get([task.remote(f"new{i}") for i in range(3)], timeout=120), flush=True)
watch.check()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.timeout(600)
def test_a_control_plane_with_durable_storage_comes_back_and_work_goes_on(tmp_path):
    (tmp_path / "gcs").mkdir()
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(tmp_path / "gcs"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", DURABLE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished running" in done.stdout
    assert "new ['new0', 'new1', 'new2']" in done.stdout
    assert (tmp_path / "running").read_text().split() == ["start"]  # its first attempt ended well


# --------------------------------------------------------------------------- the command


@pytest.mark.timeout(900)
def test_the_same_command_on_a_new_cluster_repeats_only_what_was_in_flight(
    tools, machines, synthetic, tmp_path
):
    from medrec.runs import Home

    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.cohorts.symlink_to(synthetic[0].cohorts)
    config = tmp_path / "features.yaml"
    config.write_text(FEATURES)
    medrec = str(Path(sys.executable).with_name("medrec"))
    place = ("--cohort", synthetic[1].folder.name, "--home", str(home.root))
    command = (medrec, "features", "run", str(config), *place)

    def records() -> set[str]:
        """Finished objects, with the time of each."""
        return {
            f"{path.parent.name} {path.stat().st_mtime_ns}"
            for path in home.store.glob("objects/*/*/record.json")
        }

    first = machines()
    driver = first.start("driver", *command, **{ADDRESS_VARIABLE: first.address})
    tools.wait_for(lambda: len(records()) >= 3 or driver.poll() is not None, WAIT_S, first)
    first.kill_ray()
    code = driver.wait(timeout=WAIT_S)
    kept = records()
    assert len(kept) >= 3
    assert code == TransientError.exit_code, first.everything()
    assert RESUME in first.log("driver").splitlines()[-1]

    second = machines()
    again = second.start("again", *command, **{ADDRESS_VARIABLE: second.address})
    assert again.wait(timeout=3 * WAIT_S) == 0, second.everything()
    assert kept <= records()  # nothing that was finished was computed again
