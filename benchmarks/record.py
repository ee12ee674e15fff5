"""Write a benchmark's result file and print its table."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from orchestration.console import Terminal, frame_table
from quantum.base import code_version, machine, now_utc, write_json_atomic


@dataclass(frozen=True)
class Figure:
    """One measured number beside its peer.

    Parameters
    ----------
    value : float
        Ours, in `unit`.
    peer : float or None
        The named peer's value from the same run.
    ratio : float or None
        How many times better ours is; above 1 is better.
    goal : float or None
        Wanted ratio (or value where there is no peer).
    met : bool or None
        Whether the goal was reached; None without a goal.
    """

    name: str
    value: float
    unit: str
    peer: float | None = None
    ratio: float | None = None
    goal: float | None = None
    met: bool | None = None


def command_line(name: str) -> str:
    """The `make` command of this run; folders of this machine are written as FOLDER."""
    script = Path(sys.argv[0]).stem  # a script may publish under several names
    name = script if (Path(__file__).parent / f"{script}.py").exists() else name
    words = ["FOLDER" if Path(item).is_absolute() else item for item in sys.argv[1:]]
    return f"make bench NAME={name}" + (f' ARGS="{" ".join(words)}"' if words else "")


def publish(name: str, figures: list[Figure], **more: Any) -> None:
    """Print the table and write ``benchmarks/results/NAME.json``, with further keys if given."""
    rows = [asdict(figure) for figure in figures]
    Terminal().out.print(frame_table(pd.DataFrame(rows), title=name))
    write_json_atomic(
        Path(__file__).parent / "results" / f"{name}.json",
        {
            "benchmark": name,
            "machine": machine(),
            "command": command_line(name),
            "date": now_utc(),
            "code": code_version(),
            "figures": rows,
            **more,
        },
    )
