"""Workers, nodes and drivers of precomputation are killed: nothing is lost, little is repeated."""

from __future__ import annotations

import importlib
import random
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def bench(root: Path, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tests" / "ray")
        made = importlib.import_module("faults").Bench(tmp_path, root / "tests" / "ray" / "faulty")
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_workers(bench, seed):
    """Ray tries the piece again on another worker; the driver does not even notice."""
    draw = random.Random(seed)
    bench.set_plan(sleep_s=0.3)
    driver = bench.start()
    kills = 0
    while kills < 5 and driver.poll() is None:
        bench.wait_for_ends(4 * kills + draw.randint(1, 6), driver)
        time.sleep(draw.uniform(0, 0.5))
        kills += bench.kill_one(draw.sample(busy := bench.busy_workers(), len(busy))) > 0
    facts = driver.end()
    assert kills >= 3
    assert facts["done"] + facts["present"] == len(bench.smiles)  # a report may be lost
    assert bench.check(extra=kills)["keys"] == 4 * len(bench.smiles)


@pytest.mark.slow
def test_a_driver_killed_and_started_again(bench):
    bench.set_plan(sleep_s=0.3)
    for _ in range(2):
        driver = bench.start()
        bench.wait_for_ends(len(bench.events("end")) + 5, driver)
        driver.kill_hard()
        assert bench.wait_until_gone() == []
    facts = bench.start().end()
    assert facts["failed"] == 0
    assert 0 < facts["molecules"] < len(bench.smiles)
    bench.check(extra=2 * 2)
    again = bench.start()
    assert again.end() == {
        **dict.fromkeys(("molecules", "done", "present", "failed", "executions", "attempts"), 0)
    }


@pytest.mark.slow
def test_two_drivers_share_the_work(bench):
    """Overlapping molecules at the same time: every key is computed once, exactly."""
    bench.set_plan(sleep_s=0.3)
    first = bench.start(bench.smiles[:12], workers=1)
    second = bench.start(bench.smiles[4:], workers=1)
    both = first.end(), second.end()
    found = bench.check(extra=0)
    assert found == {"executions": 64, "keys": 64, "extra": 0}
    assert sum(facts["executions"] for facts in both) == 64
    assert all(facts["executions"] > 0 for facts in both)


@pytest.mark.slow
def test_a_driver_takes_over_from_one_that_was_killed(bench):
    bench.set_plan(sleep_s=0.5)
    first, second = bench.start(workers=1), bench.start(workers=1)
    bench.wait_for(lambda: len({line["pid"] for line in bench.events("start")}) >= 4)
    bench.wait_for(lambda: claims_of(bench, first), first)
    first.kill_hard()
    facts = second.end()
    assert facts["done"] + facts["present"] == len(bench.smiles)
    bench.check(extra=2)


def claims_of(bench: Any, driver: Any) -> list[str]:
    """Claims that a driver holds; its process number is a part of its name."""
    found = []
    for path in (bench.home / "store" / "claims").glob("*"):
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        if text.split(":")[1] == str(driver.pid):
            found.append(text)
    return found


@pytest.mark.slow
def test_clocks_that_differ_by_hours(bench):
    """One driver and its workers live six hours ahead: claims are judged without clocks."""
    bench.set_plan(sleep_s=0.3)
    first = bench.start(workers=1)
    second = bench.start(workers=1, MEDREC_FAULTS_CLOCK_S="21600")
    assert all(driver.end()["failed"] == 0 for driver in (first, second))
    found = bench.check(extra=0)
    assert found["executions"] == found["keys"] == 4 * len(bench.smiles)


@pytest.mark.slow
def test_one_interruption_lets_running_pieces_finish(bench):
    bench.set_plan(sleep_s=0.5)
    bench.config = {"interrupt_grace_s": 120.0}
    driver = bench.start()
    bench.wait_for_ends(6, driver)
    driver.interrupt()
    driver.end(130)
    assert "interrupted" in driver.text
    done = len(bench.events("end"))
    assert done == len(bench.events("start"))  # what had begun was finished
    assert bench.wait_until_gone() == []
    assert bench.left_over() == []
    facts = bench.start().end()
    assert facts["executions"] == 4 * len(bench.smiles) - done
    bench.check(extra=0)


@pytest.mark.slow
def test_a_second_interruption_ends_at_once(bench):
    bench.set_plan({"smiles": "CCO", "stage": "scf", "do": "hang", "times": 1}, sleep_s=0.2)
    bench.config = {"interrupt_grace_s": 100_000.0}
    driver = bench.start()
    bench.wait_for(lambda: bench.events("fault"), driver)
    driver.interrupt()
    bench.wait_for(lambda: "interrupted" in driver.text, driver)
    driver.interrupt()
    driver.end(130)
    assert bench.wait_until_gone() == []
    assert bench.left_over() == []
    assert bench.start().end()["failed"] == 0
    bench.check(extra=2)


@pytest.mark.slow
def test_sigterm_is_an_interruption(bench):
    bench.set_plan(sleep_s=0.5)
    driver = bench.start()
    bench.wait_for_ends(3, driver)
    driver.terminate()
    driver.end(130)
    assert bench.wait_until_gone() == []
    assert bench.left_over() == []
    assert bench.start().end()["failed"] == 0
    bench.check(extra=2)
