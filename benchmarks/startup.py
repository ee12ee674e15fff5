"""Time until the command answers: help, version, completion, a misspelt word.

Peers: ``python -c pass`` is what no Python program can beat, ``import typer, rich`` what no program
with these two libraries can beat. Each figure is the smallest of several runs, and the runs take
turns, so that other load on the machine meets all of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from record import Figure, publish

GOAL_S = 0.5
_HOME = os.path.devnull  # no names to complete
PEERS = {
    "python -c pass": ("-c", "pass"),
    "import typer, rich": ("-c", "import typer, rich"),
    "import typer, rich help": ("-c", "import typer, typer.rich_utils"),
}
COMMANDS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "medrec --help": (("--help",), {}),
    "medrec --version": (("--version",), {}),
    "medrec features --help": (("features", "--help"), {}),
    "medrec train --help": (("train", "--help"), {}),
    "medrec jobs --help": (("jobs", "--help"), {}),
    "medrec trian (misspelt)": (("trian",), {}),
    "completion of a command": (
        (),
        {"_MEDREC_COMPLETE": "complete_bash", "COMP_WORDS": "medrec tr", "COMP_CWORD": "1"},
    ),
    "completion of a run": (
        (),
        {"_MEDREC_COMPLETE": "complete_bash", "COMP_WORDS": "medrec evaluate ", "COMP_CWORD": "2"},
    ),
}
HELP = "import typer, rich help"


def seconds(words: tuple[str, ...], variables: dict[str, str]) -> float:
    """Wall time of one new Python process, s."""
    env = {**os.environ, "MEDREC_HOME": _HOME, **variables}
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=False, env=env)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    runs = {name: (words, {}) for name, words in PEERS.items()} | {
        name: (("-m", "orchestration", *words), env) for name, (words, env) in COMMANDS.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (words, env) in runs.items():
            taken[name].append(seconds(words, env))
    best = {name: min(values) for name, values in taken.items()}
    figures = [Figure(name, round(best[name], 3), "s") for name in PEERS]
    for name in COMMANDS:
        met = best[name] <= GOAL_S
        ratio = round(best[HELP] / best[name], 2)
        peer = round(best[HELP], 3)
        figures.append(Figure(name, round(best[name], 3), "s", peer, ratio, GOAL_S, met))
    publish(
        "startup",
        figures,
        repeats=repeats,
        goals="seconds, not ratios",
        load_average=os.getloadavg()[0],
        median_s={name: round(sorted(v)[len(v) // 2], 3) for name, v in taken.items()},
    )


if __name__ == "__main__":
    main()
