"""Latency of one new drug with `medrec features add`, and how far each level is from ``tight``.

CPU seconds and wall seconds of the whole command on one thread, from the shell. ELF of all levels
is compared on the grid of ``tight`` (they share geometry and grid) where rho is at least 1e-3 a.u.;
features by the mean absolute deviation in units of their spread over the drugs of this benchmark.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from drugs import DRUGS, chosen
from record import Figure, publish

from quantum.molecule import species_from_smiles
from quantum.pipeline import Task
from quantum.schema import LEVELS
from quantum.store import Store

DEFAULT = ("metformin", "paracetamol", "aspirin", "warfarin")
GOAL_FAST_WARFARIN_S = 10.0


def run(name: str, level: str, home: Path) -> tuple[float, float]:
    """CPU and wall seconds of the command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    program = str(Path(sys.executable).with_name("medrec"))
    command = [program, "features", "add", DRUGS[name]]
    command += ["--level", level, "--home", str(home), "--memory-mb", "16000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} at {level}: exit {done.returncode}: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start


def records(name: str, level: str, home: Path):
    task = Task(species=species_from_smiles(DRUGS[name]), spec=LEVELS[level])
    store = Store(home / "store")
    return store.get(task.keys["elf"]), store.get(task.keys["features"])


def main() -> None:
    names, figures = chosen(DEFAULT), []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        spent = {}
        for name in names:
            for level in LEVELS:
                spent[name, level] = run(name, level, home)
                print(name, level, f"{spent[name, level][0]:.1f} CPU s", flush=True)
        tight = {name: records(name, "tight", home) for name in names}
        vectors = np.stack([tight[name][1].arrays["vector"] for name in names])
        spread = vectors.std(axis=0)
        varies = spread > 1e-6
        for level in LEVELS:
            for name in names:
                cpu, wall = spent[name, level]
                is_goal = (name, level) == ("warfarin", "fast")
                goal = GOAL_FAST_WARFARIN_S if is_goal else None
                met = cpu <= GOAL_FAST_WARFARIN_S if is_goal else None
                figures += [
                    Figure(f"{level}, {name}, CPU", cpu, "CPU s", None, None, goal, met),
                    Figure(f"{level}, {name}, latency", wall, "s"),
                ]
                if level == "tight":
                    continue
                elf, features = records(name, level, home)
                reference = tight[name]
                dense = reference[0].arrays["rho"] >= 1e-3
                difference = np.abs(elf.arrays["elf"] - reference[0].arrays["elf"])[dense]
                off = np.abs(features.arrays["vector"] - reference[1].arrays["vector"])
                off = off[varies] / spread[varies]
                figures += [
                    Figure(f"{level}, {name}, ELF deviation, mean", float(difference.mean()), "1"),
                    Figure(
                        f"{level}, {name}, ELF deviation, largest", float(difference.max()), "1"
                    ),
                    Figure(f"{level}, {name}, features, mean", float(off.mean()), "spreads"),
                ]
    publish("new_drug", figures)


if __name__ == "__main__":
    main()
