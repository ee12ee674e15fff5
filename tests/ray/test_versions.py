"""Nodes with other versions, without Psi4, or silent are noticed; real nodes, started otherwise."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.nodes import MIXED_VARIABLE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

WAIT_S = 120
DRIVER = """
import dataclasses, json, os, sys
from pathlib import Path
from orchestration.cluster import ensure_ray
from orchestration.nodes import check_nodes
from quantum.base import MedrecError

ray = ensure_ray(address=sys.argv[1])

@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_id()

for line in sys.stdin:
    request = json.loads(line)
    os.environ.update(request.get("environment", {}))
    answer = {"lines": [], "places": []}
    try:
        if request["do"] == "check":
            settings = request["settings"]
            if "store" in settings:
                settings["store"] = Path(settings["store"])
            roster = check_nodes(ray, **settings)
        elif request["do"] == "update":
            answer["lines"] = roster.update(wait_s=request["wait_s"])
        else:
            placed = where.options(label_selector=roster.label_selector())
            tasks = [placed.remote() for _ in range(5)]
            answer["places"] = ray.get(tasks)
        answer["excluded"] = roster.excluded
        answer["facts"] = [dataclasses.asdict(facts) for facts in roster.facts.values()]
    except MedrecError as error:
        answer |= {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def tools(root: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        return importlib.import_module("ray_nodes")


@pytest.fixture(scope="module")
def code(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, that nobody edits meanwhile."""
    folder = tmp_path_factory.mktemp("code")
    for package in ("quantum", "medrec", "orchestration"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / package, folder / package, ignore=ignore)
    return folder


class Driver:
    """A driver of a cluster that does what it is told, line by line."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        # Ray's workers look first where the driver's file and working folder are: nothing else
        # may be there
        folder = machine.folder / "driver"
        folder.mkdir()
        program = folder / "program.py"
        program.write_text(DRIVER)
        self.process = subprocess.Popen(
            [sys.executable, str(program), machine.address],
            env=machine.environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.machine.everything()
        return json.loads(line)

    def check(self, **settings: Any) -> dict[str, Any]:
        return self.ask("check", settings=settings)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=WAIT_S)
        self.process.stdout.close()


@pytest.fixture
def cluster(tools: Any, code: Path) -> Iterator[tuple[Any, Driver]]:
    machine = tools.Machine(PYTHONPATH=str(code))
    driver = None
    try:
        machine.start_head(n_cpus=1)
        driver = Driver(machine)
        yield machine, driver
    finally:
        if driver is not None:
            driver.close()
        machine.close()


def pretend_version(code: Path, folder: Path, package: str, version: str) -> str:
    """Make a folder in which an installed package has another version; returns PYTHONPATH."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return f"{folder}:{code}"


def without_psi4(folder: Path) -> str:
    """Make a PATH that has all programs but Psi4."""
    folder.mkdir()
    for place in os.environ["PATH"].split(":")[::-1]:
        for program in Path(place).glob("*"):
            link = folder / program.name
            if program.name != "psi4":
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return str(folder)


def raylets(machine: Any, tools: Any) -> set[int]:
    return {
        pid
        for pid in machine.left_over()
        if Path(os.fsdecode(tools.arguments(pid).split(b"\0")[0])).name == "raylet"
    }


def test_a_node_with_another_version_gets_no_work(cluster, code, tmp_path):
    machine, driver = cluster
    alone = driver.check(store=str(tmp_path / "store"))
    assert alone["excluded"] == []
    (head,) = alone["facts"]
    assert head["sees_store"] is True
    assert head["packages"]["pyscf"]
    assert list((tmp_path / "store").iterdir()) == []  # the probe is gone

    other = pretend_version(code, tmp_path / "other", "medrec", "9.9.9")
    machine.start_node("other", PYTHONPATH=other)
    late = driver.ask("update", wait_s=WAIT_S)
    (line,) = late["lines"]
    assert "medrec 9.9.9 instead of" in line
    (excluded,) = late["excluded"]
    assert excluded[:12] in line
    assert driver.ask("update", wait_s=WAIT_S)["lines"] == []  # said once
    places = driver.ask("place")["places"]
    assert set(places) == {head["node_id"]}

    refused = driver.check()
    assert refused["error"] == "ConfigError"
    assert f"({excluded[:12]}) has medrec 9.9.9 instead of" in refused["message"]
    assert MIXED_VARIABLE in refused["message"]
    allowed = driver.ask("check", settings={}, environment={MIXED_VARIABLE: "1"})
    assert allowed["excluded"] == []


def test_a_node_with_another_numpy_or_edited_code_is_refused(cluster, code, tmp_path):
    machine, driver = cluster
    other = pretend_version(code, tmp_path / "other", "numpy", "1.0.0")
    machine.start_node("numpy", PYTHONPATH=other)
    refused = driver.check()
    assert refused["error"] == "ConfigError"
    assert "numpy 1.0.0 instead of" in refused["message"]

    edited = tmp_path / "edited"
    shutil.copytree(code / "quantum", edited / "quantum")
    with (edited / "quantum" / "units.py").open("a") as units:
        units.write("HARTREE_IN_EV = 27.0\n")
    machine.start_node("edited", PYTHONPATH=f"{edited}:{code}")
    found = driver.ask("check", settings={}, environment={MIXED_VARIABLE: "1"})
    assert found["excluded"] == []
    assert len({facts["source"] for facts in found["facts"]}) == 2
    refused = driver.ask("check", settings={}, environment={MIXED_VARIABLE: ""})
    assert refused["error"] == "ConfigError"


@pytest.mark.psi4
@pytest.mark.skipif(shutil.which("psi4") is None, reason="needs psi4")
def test_a_node_without_psi4_is_left_out_and_none_with_it_is_an_error(tools, code, tmp_path):
    machine = tools.Machine(PYTHONPATH=str(code), PATH=without_psi4(tmp_path / "programs"))
    driver = None
    try:
        machine.start_head(n_cpus=1)
        driver = Driver(machine)
        missing = driver.check(need_psi4=True)
        assert missing["error"] == "ProgramMissingError"
        assert "none of 1 nodes has a Psi4" in missing["message"]
        assert driver.check()["excluded"] == []  # who does not need it may work there

        broken = tmp_path / "psi4"
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        machine.start_node("broken", MEDREC_PSI4=str(broken))
        assert driver.check(need_psi4=True)["error"] == "ProgramMissingError"

        machine.start_node("good", MEDREC_PSI4=shutil.which("psi4"), PATH=os.environ["PATH"])
        found = driver.check(need_psi4=True)
        able = [facts["node_id"] for facts in found["facts"] if facts["psi4"]]
        assert len(able) == 1
        assert len(found["excluded"]) == 2
        assert set(driver.ask("place")["places"]) == set(able)
    finally:
        if driver is not None:
            driver.close()
        machine.close()


def test_a_silent_node_is_left_out_until_it_answers(tools, cluster):
    machine, driver = cluster
    before = raylets(machine, tools)
    machine.start_node("silent")
    (raylet,) = raylets(machine, tools) - before
    os.kill(raylet, signal.SIGSTOP)
    try:
        found = driver.check(answer_s=6)
        silent = [facts for facts in found["facts"] if facts["problem"]]
        assert [facts["problem"] for facts in silent] == ["no answer within 6 s"]
        assert found["excluded"] == [silent[0]["node_id"]]
    finally:
        os.kill(raylet, signal.SIGCONT)
    for _ in range(10):
        found = driver.ask("update", wait_s=10)
        if not found["excluded"]:
            break
    assert found["excluded"] == []
