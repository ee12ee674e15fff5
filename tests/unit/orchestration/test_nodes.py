"""What makes two nodes differ, and how many tasks nodes hold. No Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestration import cluster, doctor, nodes
from quantum.base import TransientError, code_version

GIB = 2**30


@pytest.fixture(scope="module")
def here() -> nodes.NodeFacts:
    return nodes.this_process()


def test_the_driver_knows_itself(here):
    assert here.version == code_version()["version"]
    assert here.packages["numpy"]
    assert len(here.source) == 64
    assert here.cores >= 1
    assert here.sees_store is None
    assert here.name == "this process"
    assert nodes.differences(here, here) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": "0.0.9"}, "medrec 0.0.9 instead of"),
        ({"packages": {"numpy": "1.0", "rdkit": None}}, "numpy 1.0 instead of"),
        ({"source": "f" * 64}, "source code of quantum/ ffffffffffff"),
    ],
)
def test_what_changes_numbers_is_a_difference(here, change, expected):
    assert expected in "; ".join(nodes.differences(here, replace(here, **change)))


def test_a_package_that_is_missing_is_named_as_such(here):
    packages = {**here.packages, "pyscf": None}
    (found,) = nodes.differences(here, replace(here, packages=packages))
    assert found == f"pyscf missing instead of {here.packages['pyscf']}"


def test_the_code_that_computes_counts_and_not_the_commit(here):
    clean = replace(here, commit="a" * 40, dirty=False)
    assert nodes.differences(clean, replace(clean, commit=None, dirty=None)) == []
    assert nodes.differences(clean, replace(clean, commit="b" * 40, dirty=True)) == []
    changed = replace(clean, source="f" * 64, commit="b" * 40, dirty=True)
    (text,) = nodes.differences(clean, changed)
    assert f"{'f' * 12}, commit {'b' * 12} with changes instead of {here.source[:12]}" in text


def test_other_packages_and_machines_may_differ(here):
    packages = {**here.packages, "torch": "1.0", "ray": "1.0"}
    other = replace(here, packages=packages, cores=1000, memory_gib=None, python="3.11.0")
    assert nodes.differences(here, other) == []


def ray_with(*resources: dict[str, float], dead: int = 0) -> SimpleNamespace:
    """What `cluster_slots` reads of Ray."""
    alive = [{"Alive": True, "Resources": item} for item in resources]
    return SimpleNamespace(nodes=lambda: alive + [{"Alive": False, "Resources": {}}] * dead)


def test_slots_are_counted_node_by_node():
    node = {"CPU": 5.0, "memory": 10.0 * GIB}
    assert cluster.cluster_slots(ray_with(node, node, dead=1), cpus=2) == 4
    assert cluster.cluster_slots(ray_with(node, node), 2, 6 * GIB) == 2
    assert cluster.cluster_slots(ray_with(node, {"memory": 10.0 * GIB}), 1, 4 * GIB) == 2
    assert cluster.cluster_slots(ray_with(node), cpus=6) == 0
    assert cluster.cluster_slots(ray_with(node), cpus=0, memory_bytes=5 * GIB) == 2
    assert cluster.cluster_slots(ray_with(node), cpus=0.5) == 10
    assert cluster.cluster_slots(ray_with(), cpus=1) == 0


def test_slots_of_a_cluster_that_may_grow(root: Path):
    from orchestration.cluster_files import read_cluster_file

    path = root / "cluster.yaml"
    pools = [pool for pool in read_cluster_file(path).pools if pool.resources.get("CPU", 0) >= 2]
    grown = sum(int(pool.resources["CPU"] // 2) * (pool.max_nodes or 0) for pool in pools)
    small = ray_with({"CPU": 2.0, "memory": 8.0 * GIB})
    assert grown > 1
    assert cluster.cluster_slots(small, 2, cluster_file=path) == grown
    assert cluster.cluster_slots(ray_with({"CPU": 4.0 * grown}), 2, cluster_file=path) == 2 * grown


def test_rows_of_the_doctor_tell_what_is_wrong_with_a_node(here):
    good = replace(here, node_id="a" * 56, host="n1", cpus=4.0, free_gib=50.0)
    old = replace(good, node_id="b" * 56, version="0.0.9")
    dead = nodes.NodeFacts("c" * 56, "n3", problem="no answer within 6 s")
    full = replace(good, node_id="d" * 56, free_gib=0.4, psi4=None)
    checks = doctor.node_checks(here, [good, old, dead, full])
    assert [check.level for check in checks] == ["ok", "problem", "problem", "problem"]
    assert "medrec 0.0.9 instead of" in checks[1].advice
    assert "no answer" in checks[2].found
    assert "0.4 GiB" in checks[3].advice


WATCH = """
import sys, threading, time
from types import SimpleNamespace
from orchestration.head import HeadWatch

frozen = threading.Event()

def nodes():
    if len(sys.argv) > 1:
        frozen.wait()
    return [{"NodeID": "a", "Alive": True}]

context = SimpleNamespace(get_node_id=lambda: "a")
ray = SimpleNamespace(nodes=nodes, is_initialized=lambda: True, get_runtime_context=lambda: context)
watch = HeadWatch(ray, limit_s=3, grace_s=0.5).start()
print("watching", flush=True)
sys.stdin.readline()
watch.check()
"""


def test_a_driver_that_was_stopped_itself_has_not_lost_its_head():
    with subprocess.Popen(
        [sys.executable, "-c", WATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout.readline().strip() == "watching"
        os.kill(driver.pid, signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            driver.wait(timeout=5)
        os.kill(driver.pid, signal.SIGCONT)
        driver.communicate("\n", timeout=60)
    assert driver.returncode == 0


def test_a_blocked_driver_without_a_head_ends_with_one_line():
    with subprocess.Popen(
        [sys.executable, "-c", WATCH, "frozen"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.wait(timeout=60) == TransientError.exit_code
        lines = driver.stderr.read().splitlines()
    assert lines == [
        "medrec: Ray's head has not answered for 3 s; "
        "finished work is kept, the same command goes on from there"
    ]
