"""Children that are killed, crash, hang or eat memory; servers and owners that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from quantum import child, fork_handle
from quantum.base import TransientError
from quantum.child import ChildRequest, run_all_in_child, run_in_child
from quantum.fork_handle import ForkServer
from quantum.molecule import species_from_smiles
from quantum.pipeline import Task
from quantum.schema import CalculationSpec, ConformerSpec, GridSpec, PipelineSpec, Resources
from quantum.store import Store

WAIT_S = 60
TAG = "MEDREC_FAULTS_TAG"
SPEC = PipelineSpec(
    conformer=ConformerSpec(n_conformers=1),
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=1.0, margin_bohr=2.5),
)
# what they do in the stage of the conformer, so that nothing slow comes before it
CASES = {
    "C": "kill",
    "CC": "segfault",
    "CCC": "hang",
    "CO": "kill_server",
}
MEMORY = {"smiles": "CN", "stage": "conformer", "do": "memory", "mb": 4000}


def task(smiles: str, *stages: str) -> Task:
    species = species_from_smiles(smiles)
    return Task(species=species, spec=SPEC, stages=stages or ("conformer",))


@pytest.fixture(scope="module")
def servers(root: Path, tmp_path_factory: pytest.TempPathFactory):
    """Fork servers whose children fail according to a plan; one for all tests of this file."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "log").touch()
    cases = [{"smiles": s, "stage": "conformer", "do": do} for s, do in CASES.items()]
    plan = {"log": str(folder / "log"), "cases": [*cases, MEMORY]}
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root / "tests" / "ray" / "faulty"))
        patch.setenv("MEDREC_FAULTS", str(folder / "plan.json"))
        child.close_servers()
        yield folder
        child.close_servers()


def test_a_killed_child_is_transient(servers, tmp_path):
    outcome = run_in_child(task("C"), tmp_path, Resources(), "me:1:2:3")
    assert (outcome.status, outcome.kind, outcome.stage) == ("failed", "transient", "conformer")
    assert "SIGKILL" in outcome.message
    store = Store(tmp_path)
    assert store.failure(task("C").keys["conformer"]) is None  # nothing is wrong with the molecule
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_segmentation_fault_is_a_crash_with_signal_and_output(servers, tmp_path):
    outcome = run_in_child(task("CC"), tmp_path, Resources(), "me:1:2:3")
    assert outcome.kind == "crash"
    assert "SIGSEGV" in outcome.message
    assert "about to read address 0" in outcome.message
    recorded = Store(tmp_path).failure(task("CC").keys["conformer"])
    assert (recorded.kind, recorded.message) == ("crash", outcome.message)


def test_the_deadline_and_the_memory_limit_are_resource(servers, tmp_path):
    late = run_in_child(task("CCC"), tmp_path, Resources(time_limit_s=0.5))
    assert (late.kind, late.status) == ("resource", "failed")
    assert "stopped after" in late.message
    large = run_in_child(task("CN"), tmp_path, Resources(memory_mb=1000))
    assert large.kind == "resource"
    assert "out of memory" in large.message
    assert run_in_child(task("O"), tmp_path, Resources()).status == "done"


def test_a_batch_goes_on_behind_the_one_that_died(servers, tmp_path):
    names, seen = ["O", "CC", "N", "C", "CF"], []
    request = ChildRequest(str(tmp_path), Resources(), "me:1:2:3")
    outcomes = run_all_in_child([task(name) for name in names], request, seen.append)
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "done", "failed", "done"]
    assert [outcome.kind for outcome in outcomes] == ["", "crash", "", "transient", ""]
    keys = [task(name).species.key for name in names]
    assert [outcome.species_key for outcome in outcomes] == keys
    assert seen == outcomes
    again = run_all_in_child([task("O"), task("CF")], request)
    assert [outcome.status for outcome in again] == ["present", "present"]


def test_a_child_takes_further_requests_while_they_are_small(servers, tmp_path, monkeypatch):
    assert run_in_child(task("O"), tmp_path, Resources()).status == "done"
    first = children()
    assert len(first) == 1
    request = ChildRequest(str(tmp_path), Resources(), "me:1:2:3")
    assert run_all_in_child([task("N"), task("CF")], request)[-1].status == "done"
    assert children() == first
    monkeypatch.setattr(fork_handle, "KEPT_S", 0.0)
    assert run_in_child(task("CCO"), tmp_path, Resources()).status == "done"  # its last one
    monkeypatch.undo()
    assert run_in_child(task("OO"), tmp_path, Resources()).status == "done"
    assert len(children()) == 1
    assert children() != first


def test_each_request_has_its_own_memory_limit_time_and_output(servers, tmp_path):
    small = run_in_child(task("O"), tmp_path, Resources(memory_mb=1000))
    large = run_in_child(task("CN"), tmp_path, Resources(memory_mb=12_000))
    assert (small.status, large.status) == ("done", "done")
    assert large.peak_mb > 4000 > small.peak_mb > 0
    assert run_in_child(task("N"), tmp_path, Resources()).peak_mb < 4000
    crash = run_in_child(task("CC"), tmp_path, Resources())
    assert crash.message.count("about to read address 0") == 1


def test_a_child_that_was_killed_between_two_requests_costs_neither(servers, tmp_path):
    assert run_in_child(task("O"), tmp_path, Resources()).status == "done"
    (pid,) = children()
    os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: children() == [])
    outcome = run_in_child(task("N"), tmp_path, Resources())
    assert (outcome.status, outcome.kind) == ("done", "")


def children() -> list[str]:
    """Process numbers of what the server has started."""
    (server,) = child._servers.values()
    pid = server._process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_killed_server_is_transient_and_the_next_call_has_a_new_one(servers, tmp_path):
    with pytest.raises(TransientError, match="starts children is lost"):
        run_in_child(task("CO"), tmp_path, Resources())
    assert run_in_child(task("O"), tmp_path, Resources()).status == "done"


def test_a_server_that_cannot_start_is_transient(tmp_path):
    server = ForkServer({"PATH": os.environ["PATH"], "PYTHONHOME": str(tmp_path)})
    with pytest.raises(TransientError, match="loaded the programs"):
        server.run({"tasks": []}, 0, 10.0)
    assert not server.is_alive()


def test_lines_of_outcomes_may_hold_any_character():
    reader = ForkServer.__new__(ForkServer)
    told = {"text": "one\u2028line\x85still"}
    read_end, write_end = os.pipe()
    os.write(write_end, json.dumps(told, ensure_ascii=False).encode() + b'\n{"cut off": "\xe2\x80')
    os.close(write_end)
    lines, ended = reader._follow(read_end, 2, 10.0)
    os.close(read_end)
    assert ended
    assert [json.loads(line) for line in lines] == [told]


# --------------------------------------------------------------------------- no orphans

OWNER = """
import sys
from pathlib import Path
from quantum.child import run_in_child
from quantum.pipeline import Task
from quantum.schema import Resources
run_in_child(Task.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Resources())
"""
PSI4 = """#!/bin/sh
if [ "$1" = --version ]; then echo 1.9; exit; fi
sleep 600 &
wait
"""


@pytest.mark.parametrize("kept_s", [1e9, 0.0], ids=["child at hand", "child has left"])
def test_an_owner_that_ends_leaves_no_word_and_no_process(kept_s, tmp_path):
    tag = uuid.uuid4().hex
    script = f"from quantum import fork_handle\nfork_handle.KEPT_S = {kept_s}{OWNER}"
    wanted = task("O").model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", script, wanted, str(tmp_path)],
        env={**os.environ, TAG: tag},
        capture_output=True,
        timeout=WAIT_S,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert Store(tmp_path).has(task("O").keys["conformer"])
    wait_for(lambda: commands(tag) == [])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_its_owner(how, tmp_path):
    """Server, child, a program that the child runs, and what that program runs."""
    program, tag = tmp_path / "psi4", uuid.uuid4().hex
    program.write_text(PSI4)
    program.chmod(0o755)
    calculation = SPEC.calculation.model_copy(update={"backend": "psi4"})
    spec = SPEC.model_copy(update={"calculation": calculation})
    long = Task(species=species_from_smiles("O"), spec=spec)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, long.model_dump_json(), str(tmp_path / "store")],
        env={**os.environ, "MEDREC_PSI4": str(program), TAG: tag},
        stderr=subprocess.DEVNULL,
        # processes that run tests side by side ignore it, and children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as owner:
        wait_for(lambda: b"sleep" in b" ".join(commands(tag)))
        assert len(commands(tag)) == 5  # owner, server, child, the script and its sleep
        owner.send_signal(how)
        owner.wait(timeout=WAIT_S)
    wait_for(lambda: commands(tag) == [])


def commands(tag: str) -> list[bytes]:
    """Command lines of processes with a tag in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and tag.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes())
        except OSError:
            continue
    return found


def wait_for(condition) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
