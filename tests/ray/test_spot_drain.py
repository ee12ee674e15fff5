"""Two real preemptions, announced by a fake cloud, leave a task its one retry.

Head, nodes, driver and watchers are processes of their own with their own ports, token and folder;
the cluster of the other tests is not touched.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def tools(root: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        return importlib.import_module("ray_nodes")


@pytest.fixture
def machine(tools: Any) -> Iterator[Any]:
    cluster = tools.Machine()
    yield cluster
    cluster.close()


@pytest.fixture
def clouds(tools: Any) -> Iterator[list[Any]]:
    both = [tools.Aws(), tools.Aws()]
    yield both
    for cloud in both:
        cloud.close()


def test_two_preemptions_do_not_charge_the_one_retry(tools, machine, clouds, tmp_path):
    wait_for = tools.wait_for
    ran_on = tmp_path / "ran_on"
    ran_on.touch()

    def attempts() -> list[str]:
        return ran_on.read_text().split()

    machine.start_head()
    driver = machine.start("driver", sys.executable, "-c", DRIVER, machine.address, str(ran_on))
    machine.start_node("node1")
    wait_for(lambda: len(attempts()) == 1, 60, machine)
    machine.start_node("node2")

    first = machine.preempt("watch0", attempts()[-1], clouds[0])
    clouds[0].interrupt(12)
    assert first.wait(timeout=60) == 0, machine.everything()
    wait_for(lambda: len(attempts()) == 2, 60, machine)
    machine.start_node("node3")

    advised = ("--rebalance", "drain")  # advice, then the notice
    second = machine.preempt("watch1", attempts()[-1], clouds[1], *advised)
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
