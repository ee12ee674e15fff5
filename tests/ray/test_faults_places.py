"""Nodes that die, lack a program or memory; stores that are full or away."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster import ADDRESS_VARIABLE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

FEW = ("O", "N", "C", "CO", "CN", "CC", "C=O", "OO")


@pytest.fixture(scope="module")
def faults(root: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tests" / "ray")
        patch.syspath_prepend(root / "benchmarks")
        importlib.import_module("ray_nodes")
        return importlib.import_module("faults")


@pytest.fixture
def bench(faults: Any, root: Path, tmp_path: Path):
    made = faults.Bench(tmp_path, root / "tests" / "ray" / "faulty", FEW)
    yield made
    made.close()


# --------------------------------------------------------------------------- nodes


@pytest.fixture
def cluster(bench: Any):
    """A head without cores and two nodes; ``nodes`` has settings of their environments."""
    made = []

    def start(**nodes: dict[str, str]) -> Any:
        machine = importlib.import_module("ray_nodes").Machine()
        made.append(machine)
        machine.environment |= {
            name: text for name, text in bench.variables().items() if name not in os.environ
        }
        machine.environment |= {"PYTHONPATH": str(bench.faulty)}
        machine.start_head()
        for name, environment in nodes.items():
            machine.start_node(name, **{bench.tag: name}, **environment)
        keys = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
        bench.environment = {key: machine.environment[key] for key in keys}
        bench.environment[ADDRESS_VARIABLE] = machine.address
        return machine

    yield start
    for machine in made:
        machine.close()


def of_node(bench: Any, name: str, part: str) -> list[int]:
    """Processes of one node: its name stands in their environment."""
    found = []
    for pid in bench.processes(part):
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"{bench.tag}={name}".encode() in text:
            found.append(pid)
    return found


def test_a_killed_raylet(bench, cluster):
    """Its work goes on elsewhere; what its worker finishes all the same is no second record."""
    bench.set_plan(sleep_s=0.3)
    cluster(left={}, right={})
    driver = bench.start()
    bench.wait_for(lambda: of_node(bench, "right", "ray::_call"), driver)
    bench.wait_for_ends(4, driver)
    (raylet,) = of_node(bench, "right", "/raylet/raylet")
    os.kill(raylet, signal.SIGKILL)
    facts = driver.end()
    assert facts["done"] + facts["present"] == len(FEW)
    bench.check(extra=2)


def test_a_machine_that_loses_its_power(bench, cluster):
    bench.set_plan(sleep_s=0.3)
    cluster(left={}, right={})
    driver = bench.start()
    bench.wait_for(lambda: of_node(bench, "right", "ray::_call"), driver)
    bench.wait_for_ends(4, driver)
    for pid in of_node(bench, "right", ""):
        bench.kill_one([pid])
    facts = driver.end()
    assert facts["done"] + facts["present"] == len(FEW)
    bench.check(extra=2)


@pytest.mark.psi4
@pytest.mark.skipif(shutil.which("psi4") is None, reason="psi4 is not installed")
def test_a_node_without_psi4(bench, cluster):
    bench.smiles = FEW[:4]
    calculation = bench.spec.calculation.model_copy(update={"backend": "psi4"})
    spec = bench.spec.model_copy(update={"calculation": calculation})
    bench.config = {"pipeline": spec.model_dump(mode="json")}
    cluster(bare={"MEDREC_PSI4": str(bench.folder / "nowhere")}, able={})
    facts = bench.start().end()
    assert facts["done"] == 4
    assert bench.ledger()["node"].nunique() == 1
    programs = [bench.store.get(task.keys["scf"]).scalars["program"] for task in bench.tasks()]
    assert programs == ["psi4"] * 4
    bench.check(extra=0)


def test_rays_own_memory_monitor(bench):
    """The child's limit ends the first attempt, Ray the second (twice), and the third is done."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(facts[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    if free < 8 * 2**20:
        pytest.skip("needs 8 GiB of free memory")
    threshold = (total - free + 2.5 * 2**20) / total
    bench.smiles = FEW[:3]
    bench.config = {"resources": {"memory_mb": 4000}, "max_in_flight": 1}
    bench.set_plan({"smiles": "O", "stage": "conformer", "do": "eat", "mb": 4000, "times": 3})
    driver = bench.start(workers=1, RAY_memory_usage_threshold=f"{threshold:.3f}")
    assert driver.end()["failed"] == 0
    assert len(bench.events("fault")) == 3
    rows = bench.ledger()
    failed = rows[rows["status"] == "failed"]
    assert list(failed["kind"]) == ["resource", "resource"]
    assert ["OutOfMemoryError" in text for text in failed["message"]] == [False, True]
    bench.check(extra=1)


# --------------------------------------------------------------------------- stores


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "medrec", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(bench, small_disk):
    """The driver waits for space, and then goes on."""
    bench.home = small_disk / "home"
    bench.set_plan(sleep_s=0.2)
    bench.smiles = FEW[:6]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(4 * 2**20 - 400 * 2**10))
    driver = bench.start()
    bench.wait_for(lambda: "paused: no space left" in driver.text, driver)
    time.sleep(5)
    assert driver.poll() is None
    filler.unlink()
    facts = driver.end()
    assert facts["done"] + facts["present"] == 6
    rows = bench.ledger()
    tries = int((rows["kind"] == "disk_full").sum())
    assert tries >= 1
    assert set(rows.loc[rows["status"] == "failed", "kind"]) == {"disk_full"}
    bench.check(extra=tries)  # a result that could not be written is computed again


@pytest.fixture
def s3(root: Path):
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    path = root / "tests" / "contract" / "conftest.py"
    spec = importlib.util.spec_from_file_location("s3_servers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.S3Server()
    yield server
    server.close()


def test_a_store_that_is_away_for_a_while(bench, s3, monkeypatch):
    """Workers wait for it; nothing that it holds counts as missing."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    environment = {**s3.environment, "MEDREC_STORE_CACHE": str(bench.folder / "cache")}
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    bucket = f"b{uuid.uuid4().hex[:12]}"
    s3.raw().create_bucket(Bucket=bucket)
    bench.location = f"s3://{bucket}/features"
    bench.environment = {"MEDREC_STORE": bench.location}
    bench.smiles = FEW[:6]
    bench.set_plan(sleep_s=0.3)
    driver = bench.start()
    for _ in range(2):
        bench.wait_for_ends(len(bench.events("end")) + 4, driver)
        s3.tell("down")
        time.sleep(8)
        s3.tell("up")
    facts = driver.end()
    assert facts["done"] + facts["present"] == 6
    bench.check(extra=0)
    listed = s3.raw().list_objects_v2(Bucket=bucket).get("Contents", [])
    assert [item["Key"] for item in listed if "/claims/" in item["Key"]] == []
