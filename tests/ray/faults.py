"""Drivers of precomputation as real processes, what can be killed of them, and what must hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from orchestration.drivers import is_dead
from orchestration.ledger import LEDGER, Ledger
from orchestration.precompute import ATTEMPTS
from quantum.molecule import species_from_smiles
from quantum.pipeline import Task, wanted
from quantum.schema import CalculationSpec, ConformerSpec, GridSpec, PipelineSpec
from quantum.store import StoreLike, open_store

WAIT_S = 240.0
TAG, DRIVER_TAG = "MEDREC_FAULTS_TAG", "MEDREC_FAULTS_DRIVER"
SPEC = PipelineSpec(
    conformer=ConformerSpec(n_conformers=1),
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=1.0, margin_bohr=2.5),
)
SMALL = (
    "O",
    "N",
    "C",
    "CO",
    "CN",
    "CC",
    "C=O",
    "C#N",
    "C=C",
    "C#C",
    "CCO",
    "CCN",
    "CF",
    "OO",
    "NN",
    "NO",
)
DRIVER = """
import json, sys
from pathlib import Path

from medrec.config import FeatureRunConfig
from medrec.runs import Home
from orchestration.console import Terminal
from orchestration.features import compute
from orchestration.tally import facts
from quantum.base import MedrecError
from quantum.molecule import species_from_smiles
from quantum.pipeline import Task

request = json.loads(sys.argv[1])
config = FeatureRunConfig.model_validate(request["config"])
tasks = [
    Task(species=species_from_smiles(text), spec=config.pipeline, stages=request["stages"])
    for text in request["smiles"]
]
alone = [task for task in tasks if task.stages == ("conformer",)]
full = [task for task in tasks if task.stages != ("conformer",)]
try:
    tally = compute(
        config,
        (alone, full),
        Home(Path(request["home"])),
        Terminal(),
        tuple(request["retry"]),
        request["workers"],
    )
except MedrecError as error:
    print("error", error, flush=True)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
print("facts", json.dumps(facts(tally)), flush=True)
"""


class Process(subprocess.Popen):
    """A driver; its output goes to a file."""

    output: Path

    @property
    def text(self) -> str:
        """Output so far."""
        return self.output.read_text(errors="replace")

    @property
    def facts(self) -> dict[str, int]:
        """Numbers that it gave at its end."""
        (line,) = [line for line in self.text.splitlines() if line.startswith("facts ")]
        found: dict[str, int] = json.loads(line.removeprefix("facts "))
        return found

    def end(self, code: int = 0) -> dict[str, int]:
        """Wait for its end, which must be of this exit code."""
        assert self.wait(timeout=WAIT_S) == code, self.text
        return self.facts if code == 0 and "facts " in self.text else {}

    def interrupt(self) -> None:
        """Ctrl-C in a terminal: all processes of the group hear it."""
        os.killpg(self.pid, signal.SIGINT)

    def kill_hard(self) -> None:
        """Kill it with -9."""
        self.send_signal(signal.SIGKILL)
        self.wait()


class Bench:
    """A folder with a store, a plan of faults, and the drivers that work on it.

    Everything that is started inherits a tag in its environment, by which it is found again.
    """

    def __init__(self, folder: Path, faulty: Path, smiles: Iterable[str] = SMALL) -> None:
        self.folder, self.faulty, self.smiles = folder, faulty, tuple(smiles)
        self.home, self.log, self.plan = folder / "home", folder / "log", folder / "plan.json"
        self.tag = uuid.uuid4().hex
        self.location: str | None = None
        self.environment: dict[str, str] = {}
        self.config: dict[str, Any] = {}
        self.stages: tuple[str, ...] = ("conformer", "scf", "elf", "features")
        self.drivers: list[Process] = []
        self.log.touch()
        self.set_plan()

    # ------------------------------------------------------------------ set up

    def set_plan(self, *cases: dict[str, Any], sleep_s: float = 0.0) -> None:
        """Say which molecules fail, how, and how often."""
        named = [{**case, "smiles": species_from_smiles(case["smiles"]).smiles} for case in cases]
        draft = self.plan.with_suffix(".new")
        draft.write_text(json.dumps({"log": str(self.log), "sleep_s": sleep_s, "cases": named}))
        draft.replace(self.plan)

    @property
    def spec(self) -> PipelineSpec:
        """Pipeline of the drivers."""
        return PipelineSpec.model_validate(self.config.get("pipeline", SPEC))

    def tasks(self, smiles: Iterable[str] | None = None) -> list[Task]:
        """Tasks as the drivers make them."""
        return [
            Task(species=species_from_smiles(text), spec=self.spec, stages=self.stages)
            for text in smiles or self.smiles
        ]

    def start(
        self,
        smiles: Iterable[str] | None = None,
        retry: Iterable[str] = (),
        workers: int | None = 2,
        **environment: str,
    ) -> Process:
        """Start a driver, with a cluster of its own unless the environment names one."""
        config = {"name": "t", "pipeline": SPEC.model_dump(mode="json"), "max_in_flight": 2}
        request = {
            "config": {**config, **self.config},
            "smiles": list(smiles or self.smiles),
            "stages": self.stages,
            "home": str(self.home),
            "retry": list(retry),
            "workers": workers,
        }
        output = self.folder / f"driver{len(self.drivers)}.txt"
        with output.open("wb") as sink:
            process = Process(
                [sys.executable, "-c", DRIVER, json.dumps(request)],
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self.variables(**{DRIVER_TAG: str(len(self.drivers)), **environment}),
                start_new_session=True,
                # processes that run tests side by side ignore it, and children would inherit that
                preexec_fn=_hear_interrupts,
            )
        process.output = output
        self.drivers.append(process)
        return process

    def variables(self, **environment: str) -> dict[str, str]:
        """Environment of drivers and clusters."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        mine = {
            TAG: self.tag,
            "MEDREC_FAULTS": str(self.plan),
            "PYTHONPATH": str(self.faulty),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        return {**kept, **mine, **self.environment, **environment}

    # ------------------------------------------------------------------ watch and kill

    def events(self, event: str) -> list[dict[str, Any]]:
        """Lines of the log of one kind: ``start``, ``fault`` or ``end`` of a stage."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    def wait_for(self, condition: Callable[[], Any], driver: Process | None = None) -> None:
        """Wait until something is true; in vain once the driver that should do it has ended."""
        end = time.monotonic() + WAIT_S
        while not condition():
            said = "\n".join(process.text for process in self.drivers)
            assert time.monotonic() < end, said
            assert driver is None or driver.poll() is None or condition(), said
            time.sleep(0.1)

    def wait_for_ends(self, n: int, driver: Process | None = None) -> None:
        """Wait for some finished stages."""
        self.wait_for(lambda: len(self.events("end")) >= n, driver)

    def processes(self, part: str, driver: int | None = None) -> list[int]:
        """Processes of this bench, or of one driver of it, whose command line holds a text."""
        tag = f"{TAG}={self.tag}" if driver is None else f"{DRIVER_TAG}={driver}\0"
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                environment = (entry / "environ").read_bytes() if part.encode() in command else b""
                if tag.encode() in environment and self.tag.encode() in environment:
                    found.append(int(entry.name))
        return found

    def busy_workers(self) -> list[int]:
        """Ray workers that run a piece right now."""
        return self.processes("ray::_call")

    def kill_one(self, pids: list[int]) -> int:
        """Kill the first of some processes with -9; 0 if none is left."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return pid
        return 0

    def close(self) -> None:
        """End what is still there, after a test that failed."""
        for process in self.drivers:
            if process.poll() is None:
                process.kill_hard()
        self.wait_until_gone(20.0)
        for pid in self.processes(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_until_gone(self, seconds: float = WAIT_S) -> list[int]:
        """Wait for the end of all processes that compute; returns those that do not end."""
        end = time.monotonic() + seconds
        while (left := self.processes("quantum.fork_server")) and time.monotonic() < end:
            time.sleep(0.2)
        return left

    # ------------------------------------------------------------------ what must hold

    @property
    def store(self) -> StoreLike:
        """The drivers' store."""
        return open_store(self.location or self.home / "store", make=False)

    def ledger(self) -> Any:
        """Attempts of all drivers."""
        ledger = Ledger(self.home / LEDGER)
        table = ledger.table()
        ledger.close()
        return table

    def check(self, extra: int, smiles: Iterable[str] | None = None) -> dict[str, int]:
        """What must hold after every fault.

        (i) every key is committed or has a final failure; (ii) no key has two results that differ;
        (iii) no claim or process is left, and what was cut off while it was written is swept once
        it is a day old; (iv) at most ``extra`` stages ran more often than once without a planned
        fault, and as many were cut off while they wrote.

        Returns
        -------
        dict
            ``executions``, ``keys`` and ``extra``.
        """
        store, tasks = self.store, self.tasks(smiles)
        left = [task.species.smiles for task in wanted(tasks, store, attempts=ATTEMPTS)]
        assert left == [], left
        self._check_numbers(store)
        gone, left = self.wait_until_gone(), self.left_over()
        assert (gone, left) == ([], []), (gone, left)
        self._check_drafts(extra)
        counts = self.executions()
        found = sum(count - 1 for count in counts.values() if count > 1)
        assert found <= extra, counts.most_common(5)
        return {"executions": counts.total(), "keys": len(counts), "extra": found}

    def executions(self) -> Counter[str]:
        """How often each key was computed; starts that a planned fault ended do not count."""
        counts = Counter(line["key"] for line in self.events("start"))
        counts.subtract(line["key"] for line in self.events("fault") if line["do"] != "sleep")
        return counts

    def _check_numbers(self, store: StoreLike) -> None:
        found: dict[str, set[str]] = {}
        for line in self.events("end"):
            found.setdefault(line["key"], set()).add(line["numbers"])
        differ = [key for key, numbers in found.items() if len(numbers) > 1]
        assert differ == [], differ
        for key in list(store.keys()):
            assert found.get(key) == {store.numbers_of(key)}, key

    def _check_drafts(self, most: int) -> None:
        drafts = list((self.home / "store" / "tmp").glob("*"))
        assert len(drafts) <= most, drafts
        for path in drafts:
            os.utime(path, (time.time() - 2 * 86_400,) * 2)
        assert self.store.location
        assert not any(path.exists() for path in drafts), drafts

    def left_over(self) -> list[str]:
        """Claims of a store in a folder."""
        # a driver that was killed in the instant between result and end of claim leaves one that
        # nobody asks for again
        return [
            f"{path} {path.read_text()}"
            for path in (self.home / "store" / "claims").glob("*")
            if not (self.store.has(path.stem) and is_dead(path.read_text()))
        ]


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
