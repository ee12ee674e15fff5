"""Molecules that do not converge, crash, hang, eat memory or kill workers; damaged records."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from quantum.base import IntegrityError
from quantum.molecule import species_from_smiles

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

FEW = ("O", "N", "C", "CO", "CN", "CC")


@pytest.fixture
def bench(root: Path, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tests" / "ray")
        faults = importlib.import_module("faults")
    made = faults.Bench(tmp_path, root / "tests" / "ray" / "faulty", FEW)
    yield made
    made.close()


def failure_of(bench: Any, smiles: str, stage: str) -> Any:
    (task,) = bench.tasks([smiles])
    return bench.store.failure(task.keys[stage])


def attempts_at(bench: Any, smiles: str, stage: str) -> int:
    asked = (species_from_smiles(smiles).smiles, stage)
    return sum((line["smiles"], line["stage"]) == asked for line in bench.events("start"))


def test_an_scf_that_never_converges(bench):
    """Every remedy is tried once, and the molecule is not tried again."""
    bench.smiles = ("O", "[He]")
    calculation = bench.spec.calculation.model_copy(update={"max_cycles": 1})
    spec = bench.spec.model_copy(update={"calculation": calculation})
    bench.config = {"pipeline": spec.model_dump(mode="json")}
    assert bench.start().end()["failed"] == 1
    failure = failure_of(bench, "O", "scf")
    assert failure.kind == "convergence"
    assert "remedies tried: none; " in failure.message
    bench.check(extra=0)
    assert bench.start().end()["molecules"] == 0
    assert attempts_at(bench, "O", "scf") == 1


def test_failures_of_a_program_end_after_their_attempts(bench):
    """A crash is tried twice, a hang and too little memory get more of what they lacked."""
    bench.config = {"resources": {"memory_mb": 2000, "time_limit_s": 60.0}}
    bench.set_plan(
        {"smiles": "N", "stage": "scf", "do": "segfault"},
        {"smiles": "C", "stage": "scf", "do": "segfault", "times": 1},
        {"smiles": "CO", "stage": "scf", "do": "memory", "mb": 2600, "times": 1},
        {"smiles": "CN", "stage": "scf", "do": "memory", "mb": 100_000},
        {"smiles": "CC", "stage": "elf", "do": "kill", "times": 2},
    )
    facts = bench.start().end()
    assert (facts["done"] + facts["present"], facts["failed"]) == (4, 2)
    assert failure_of(bench, "N", "scf").kind == "crash"
    assert "SIGSEGV" in failure_of(bench, "N", "scf").message
    assert failure_of(bench, "CN", "scf").kind == "resource"
    assert attempts_at(bench, "N", "scf") == 2
    assert attempts_at(bench, "C", "scf") == 2
    assert attempts_at(bench, "CO", "scf") == 2
    assert attempts_at(bench, "CC", "elf") == 3
    assert attempts_at(bench, "CN", "scf") in (2, 3)  # the third only where a machine has room
    bench.check(extra=0)
    assert bench.start().end()["molecules"] == 0


def test_a_straggler_meets_its_deadline_and_is_done_on_the_next_attempt(bench):
    bench.config = {"resources": {"time_limit_s": 20.0}}
    bench.set_plan({"smiles": "CO", "stage": "elf", "do": "hang", "times": 1})
    facts = bench.start().end()
    assert (facts["done"], facts["failed"]) == (len(FEW), 0)
    rows = bench.ledger()
    (late,) = rows[rows["status"] == "failed"].to_dict("records")
    assert (late["kind"], late["stage"]) == ("resource", "elf")
    assert "stopped after 20 s" in late["message"]
    bench.check(extra=0)


def test_a_molecule_that_kills_its_workers_is_quarantined(bench):
    bench.set_plan({"smiles": "CO", "stage": "scf", "do": "kill_worker"})
    facts = bench.start().end()
    assert (facts["done"] + facts["present"], facts["failed"]) == (len(FEW) - 1, 1)
    failure = failure_of(bench, "CO", "scf")
    assert failure.kind == "transient"
    assert "--retry transient" in failure.message
    assert attempts_at(bench, "CO", "scf") == 8  # two rounds: the first, and Ray's three
    bench.check(extra=0)
    assert bench.start().end()["molecules"] == 0
    assert attempts_at(bench, "CO", "scf") == 8
    bench.set_plan()
    assert bench.start(retry=["transient"]).end()["done"] == 1
    assert failure_of(bench, "CO", "scf") is None
    bench.check(extra=0)


def test_poison_in_a_batch_harms_nobody_else(bench):
    """Conformers of many molecules are one piece of work."""
    bench.stages = ("conformer",)
    bench.config = {"max_in_flight": 1}
    bench.set_plan({"smiles": "N", "stage": "conformer", "do": "kill_worker"})
    facts = bench.start(workers=1).end()
    assert (facts["done"] + facts["present"], facts["failed"]) == (len(FEW) - 1, 1)
    assert failure_of(bench, "N", "conformer").kind == "transient"
    bench.check(extra=0)


def test_a_killed_server_is_no_fault_of_the_molecule(bench):
    bench.set_plan({"smiles": "CO", "stage": "scf", "do": "kill_server", "times": 1})
    assert bench.start().end()["failed"] == 0
    bench.check(extra=0)


@pytest.mark.parametrize("damage", ["flip", "truncate", "array_gone"])
def test_a_damaged_record_is_set_aside_and_computed_once_more(bench, damage):
    bench.smiles = ("O", "N")
    bench.start().end()
    store, (task, _) = bench.store, bench.tasks()
    spoil(bench.home / "store" / "objects", task.keys["scf"], damage)
    # what follows from it is missing too, so that somebody reads it
    for stage in ("elf", "features"):
        remove(bench.home / "store" / "objects", task.keys[stage])
    facts = bench.start().end()
    assert (facts["molecules"], facts["failed"]) == (1, 0)
    assert len(list((bench.home / "store" / "damaged").iterdir())) == 1
    assert attempts_at(bench, "O", "scf") == 2
    assert attempts_at(bench, "O", "conformer") == 1
    assert store.verify() == (8, [])
    bench.check(
        extra=4
    )  # SCF, ELF map and features again; the map twice, as its first try met the damage


def test_verify_finds_damage_and_the_same_command_mends_it(bench):
    bench.smiles = ("O", "N")
    bench.start().end()
    (task, _) = bench.tasks()
    spoil(bench.home / "store" / "objects", task.keys["features"], "flip")
    store = bench.store
    with pytest.raises(IntegrityError):
        store.get(task.keys["features"])
    assert bench.start().end()["executions"] == 1
    assert store.verify() == (8, [])
    bench.check(extra=1)


def spoil(objects: Path, key: str, damage: str) -> None:
    folder = objects / key[:2] / key
    array = sorted(folder.glob("*.npy"))[0]
    if damage == "flip":
        data = bytearray(array.read_bytes())
        data[-1] ^= 1
        array.write_bytes(data)
    elif damage == "truncate":
        (folder / "record.json").write_bytes(b"")
    else:
        array.unlink()


def remove(objects: Path, key: str) -> None:
    folder = objects / key[:2] / key
    for path in folder.iterdir():
        path.unlink()
    os.rmdir(folder)
