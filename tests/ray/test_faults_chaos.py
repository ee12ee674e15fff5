"""Random kills of workers, drivers and clusters over molecules of which some fail on their own.

``MEDREC_CHAOS_MOLECULES`` and ``MEDREC_CHAOS_KILLS`` make it larger, ``MEDREC_CHAOS_SEED`` another.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from quantum.base import InputError
from quantum.molecule import species_from_smiles

pytestmark = [pytest.mark.ray, pytest.mark.timeout(7200)]

MOLECULES = int(os.environ.get("MEDREC_CHAOS_MOLECULES", "60"))
KILLS = int(os.environ.get("MEDREC_CHAOS_KILLS", "4"))
SEED = int(os.environ.get("MEDREC_CHAOS_SEED", "0"))
DUPLICATES = 0.3
# what fails on its own, and how many per hundred molecules; at least one of each
SHARES = {"convergence": 3, "memory": 1, "segfault": 1, "hang": 1}
ONCE = ("hang",)


@pytest.fixture
def bench(root: Path, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tests" / "ray")
        made = importlib.import_module("faults").Bench(tmp_path, root / "tests" / "ray" / "faulty")
    yield made
    made.close()


def molecules(n: int) -> list[str]:
    """Chains of carbon, nitrogen and oxygen, shortest first, each once."""
    found: dict[str, None] = {}
    for length in itertools.count(1):
        for atoms in itertools.product("CNO", repeat=length):
            with contextlib.suppress(InputError):
                found[species_from_smiles("".join(atoms)).smiles] = None
            if len(found) == n:
                return list(found)
    raise AssertionError


def cases(names: list[str], draw: random.Random) -> list[dict[str, Any]]:
    made = []
    for do, share in SHARES.items():
        for _ in range(max(1, round(share * len(names) / 100))):
            smiles = names.pop(draw.randrange(len(names)))
            stage = draw.choice(("conformer", "scf"))
            made.append({"smiles": smiles, "stage": stage, "do": do, "mb": 50_000})
            if do in ONCE:
                made[-1]["times"] = 1
    return made


class Chaos:
    """Two drivers with overlapping molecules, and somebody who kills."""

    def __init__(self, bench: Any, names: list[str], draw: random.Random) -> None:
        shared = round(DUPLICATES * MOLECULES)
        alone = (len(names) - shared) // 2
        self.bench, self.draw, self.kills = bench, draw, Counter()
        self.parts = names[: shared + alone], names[:shared] + names[shared + alone :]
        self.running = [self.start(part) for part in self.parts]

    def start(self, part: list[str]) -> tuple[int, Any]:
        """Start a driver; returns its number too."""
        number = len(self.bench.drivers)
        return number, self.bench.start(part, workers=1)

    def kill(self) -> None:
        """Kill a worker, a driver, or a driver with its whole cluster; restart drivers."""
        which = self.draw.randrange(2)
        number, driver = self.running[which]
        what = self.draw.choices(("worker", "driver", "cluster"), (70, 20, 10))[0]
        if driver.poll() is not None:
            return
        if what == "worker":
            hit = self.bench.kill_one(self.bench.processes("ray::_call", number))
            self.kills[what] += bool(hit)
            return
        driver.send_signal(signal.SIGKILL)
        if what == "cluster":
            for pid in self.bench.processes("", number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        driver.wait()
        self.kills[what] += 1
        self.running[which] = self.start(self.parts[which])

    @property
    def is_over(self) -> bool:
        return all(driver.poll() is not None for _, driver in self.running)


def test_chaos(bench):
    draw = random.Random(SEED)
    names = molecules(round(MOLECULES * (1 - DUPLICATES)))
    bench.set_plan(*(planned := cases(list(names), draw)))
    bench.config = {"resources": {"memory_mb": 2000, "time_limit_s": 20.0}}
    draw.shuffle(names)
    bench.smiles = tuple(names)
    chaos = Chaos(bench, names, draw)
    while chaos.kills.total() < KILLS and not chaos.is_over:
        before = len(bench.events("end"))
        more = draw.randint(1, max(1, 3 * len(names) // KILLS))
        bench.wait_for(lambda: len(bench.events("end")) >= before + more or chaos.is_over)  # noqa: B023
        time.sleep(draw.uniform(0, 0.3))
        chaos.kill()
    for _, driver in chaos.running:
        driver.end()
    # one worker each: a kill ends one piece at most
    found = bench.check(extra=chaos.kills.total())
    print({**found, "molecules": len(names), "kills": dict(chaos.kills)})
    unlucky = [item for item in failures(bench).values() if item.kind == "transient"]
    print(f"hit four times, and so taken for a killer of workers: {len(unlucky)}")
    assert all("WorkerCrashed" in item.message for item in unlucky), unlucky
    if unlucky:
        bench.start(retry=["transient"]).end()
        bench.check(extra=chaos.kills.total())
    failed = {smiles: item.kind for smiles, item in failures(bench).items()}
    kinds = {"convergence": "convergence", "memory": "resource", "segfault": "crash"}
    assert failed == {case["smiles"]: kinds[case["do"]] for case in planned if case["do"] in kinds}
    assert chaos.kills.total() >= min(KILLS, 2)


def failures(bench: Any) -> dict[str, Any]:
    """Recorded failures by molecule."""
    found, store = {}, bench.store
    for task in bench.tasks():
        for failure in store.failures(task.keys.values()).values():
            found[task.species.smiles] = failure
    return found
