"""The whole drug, SMILES to stored features, at the standard level: CPU seconds on one thread.

Each drug runs in a child process as in `medrec features`, so that the start of the interpreter and
the imports count. The paper that introduced ELF maps for drug recommendation (MMM) reports 30 hours
for 250 drugs, 432 seconds each; our projection for 250 drugs of this mix on 16 cores stands beside.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import statistics
import tempfile
from pathlib import Path

from drugs import DRUGS, chosen
from record import Figure, publish

from quantum.child import run_in_child
from quantum.molecule import species_from_smiles
from quantum.pipeline import Task
from quantum.schema import LEVELS, Resources

PAPER_S = 30 * 3600 / 250
GOAL_MEDIAN_S = 60.0
CORES = 16


def child_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    seconds, figures = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen():
            task = Task(species=species_from_smiles(DRUGS[name]), spec=LEVELS["standard"])
            before = child_cpu_seconds()
            outcome = run_in_child(task, Path(folder), Resources(threads=1, memory_mb=12_000))
            spent = child_cpu_seconds() - before
            if outcome.status != "done":
                raise SystemExit(f"{name} failed at {outcome.stage}: {outcome.message}")
            seconds.append(spent)
            print(f"{name}: {spent:.1f} CPU s", flush=True)
            figures.append(Figure(f"features, {name}", spent, "CPU s", PAPER_S, PAPER_S / spent))
    median, mean = statistics.median(seconds), statistics.mean(seconds)
    hours = 250 * mean / CORES / 3600
    publish(
        "drug_features",
        [
            Figure(
                "features, median of the set",
                median,
                "CPU s",
                PAPER_S,
                PAPER_S / median,
                GOAL_MEDIAN_S,
                median <= GOAL_MEDIAN_S,
            ),
            Figure(f"projection, 250 drugs on {CORES} cores", hours, "h", 30.0, 30.0 / hours),
            *figures,
        ],
    )


if __name__ == "__main__":
    main()
