"""Raw tables of full MIMIC-IV and MIMIC-III size to a cohort: wall and CPU seconds, peak memory.

The tables are made by `medrec synth raw`, so the counts after every filter are known and checked.
Each preparation runs in a process of its own, from an empty home folder. Peer for MIMIC-III's size:
PyHealth 2.1, recorded at 40 to 45 s and 2.7 GB for a cohort of 6,350 patients on two cores.

    make bench NAME=prepare_scale ARGS="[--scale 1.0] [--tables FOLDER] [mimic3] [mimic4]"

Tables in FOLDER/<name> are used again if they are of the scale asked for.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import Figure, publish

PYHEALTH_S, PYHEALTH_GB = 40.0, 2.7
GOALS: dict[str, dict[str, float]] = {
    "mimic3": {"wall": 8.0},
    "mimic4": {"wall": 600.0, "memory": 8.0},
}


def prepare(like: str, tables: str, home: str) -> None:
    """Body of the measured process: prints its own measurements as JSON."""
    begin = time.perf_counter()
    from medrec.config import CohortConfig
    from medrec.data.cohort import prepare_cohort
    from medrec.runs import Home

    source = {"format": like, "path": tables}
    config = CohortConfig.model_validate({"name": like, "source": source, "preset": "strict"})
    cohort = prepare_cohort(config, Home(Path(home)))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "wall": time.perf_counter() - begin,
                "cpu": usage.ru_utime + usage.ru_stime,
                "memory": usage.ru_maxrss * 1024 / 1e9,
                "funnel": cohort.funnel.to_dict("records"),
            }
        )
    )


def measure(like: str, tables: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, "--measure", like, str(tables), home]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"preparation of {like} failed:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": wall}


def find_tables(like: str, scale: float, folder: Path) -> dict[str, Any]:
    """Expected funnel of tables that are there, or of new ones."""
    from medrec.data.raw_tables import FUNNEL_FILE, write_raw_tables
    from orchestration.console import Terminal

    record = folder / FUNNEL_FILE
    if record.is_file():
        known: dict[str, Any] = json.loads(record.read_text())
        if (known["like"], known["scale"]) == (like, scale):
            return known
        raise SystemExit(f"{folder} holds tables like {known['like']} at scale {known['scale']}")
    with Terminal().progress(f"tables {like}", None) as step:
        return write_raw_tables(like, scale, folder, 0, step.at)  # type: ignore[arg-type]


def figures_of(like: str, found: dict[str, Any], scale: float) -> list[Figure]:
    goals = GOALS[like] if scale == 1.0 else {}
    peer = PYHEALTH_S if like == "mimic3" and scale == 1.0 else None
    rows, visits = found["funnel"][0]["rows"], found["funnel"][-1]["visits"]
    wall, memory = goals.get("wall"), goals.get("memory")
    return [
        Figure(
            f"{like}, {rows:,} rows to {visits:,} visits, wall",
            found["wall"],
            "s",
            peer,
            peer / found["wall"] if peer else None,
            wall,
            found["wall"] <= wall if wall else None,
        ),
        Figure(f"{like}, CPU", found["cpu"], "CPU s"),
        Figure(
            f"{like}, peak memory",
            found["memory"],
            "GB",
            PYHEALTH_GB if peer else None,
            PYHEALTH_GB / found["memory"] if peer else None,
            memory,
            found["memory"] <= memory if memory else None,
        ),
    ]


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        prepare(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--tables", type=Path, default=None)
    parser.add_argument("names", nargs="*")
    wanted = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        for like in wanted.names or sorted(GOALS):
            folder = (wanted.tables or Path(temporary)) / like
            expected = find_tables(like, wanted.scale, folder)
            found = measure(like, folder)
            if found["funnel"] != expected["funnel"]:
                raise SystemExit(
                    f"{like}: the funnel is not the known one\nexpected "
                    f"{expected['funnel']}\nfound    {found['funnel']}"
                )
            print(f"{like}: all {len(expected['funnel'])} filters as expected", flush=True)
            figures += figures_of(like, found, wanted.scale)
    publish("prepare_scale" if wanted.scale == 1.0 else "prepare_scale_small", figures)


if __name__ == "__main__":
    main()
