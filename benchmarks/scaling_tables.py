"""Writes the tables of docs/scaling.md from the result file of `cluster_simulation`.

``python benchmarks/scaling_tables.py``: what stands between ``<!-- NAME -->`` and ``<!-- end -->``
is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantum.base import read_json, write_text_atomic

HERE = Path(__file__).parent
PAGE, RESULT = HERE.parent / "docs" / "scaling.md", HERE / "results" / "cluster_simulation.json"
OURS, NAIVE = "largest first", "submission order"


def table(header: str, rows: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown."""
    names = header.split(" | ")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def hours(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def goals(result: dict[str, Any]) -> str:
    """Figures that have a goal, and whether it was met."""
    rows = [
        (item["name"].replace(", simulated", ""), f"{item['value']:.4f}", item["goal"],
         "met" if item["met"] else "**not met**")
        for item in result["figures"]
        if item["goal"] is not None
    ]  # fmt: skip
    return table("figure | value | goal | ", rows)


def policies(result: dict[str, Any]) -> str:
    """Largest first beside the order of the table."""
    every = {(row["molecules"], row["nodes"], row["policy"]): row for row in result["policies"]}
    rows = []
    for (name, nodes, policy), ours in every.items():
        if policy != OURS:
            continue
        naive = every[name, nodes, NAIVE]
        rows.append(
            (
                name, f"{nodes:,}", hours(ours["makespan_h"]), hours(naive["makespan_h"]),
                f"{ours['efficiency']:.3f}", f"{naive['efficiency']:.3f}",
                f"{ours['efficiency_without_boot']:.3f}",
                f"{ours['cost_usd']:,.0f}", f"{naive['cost_usd']:,.0f}",
                f"{ours['lost_executions']:.0f}", ours["largest_loss"],
            )
        )  # fmt: skip
    header = (
        "molecules | nodes | h, largest first | h, table | efficiency, largest | table | "
        "largest, without boot | USD, largest | table | lost | largest loss"
    )
    return table(header, rows)


def changes(result: dict[str, Any]) -> str:
    """One change at a time."""
    rows = [
        (
            f"{row['molecules']} on {row['nodes']:,}", row["change"], hours(row["makespan_h"]),
            f"{row['efficiency']:.3f}", f"{row['cost_usd']:,.0f}", f"{row['lost_executions']:.0f}",
            row["largest_loss"],
        )
        for row in result["changes"]
    ]  # fmt: skip
    return table("run | change | h | efficiency | USD | lost | largest loss", rows)


def whole(result: dict[str, Any]) -> str:
    """The whole command."""
    rows = [
        (
            f"{row['molecules']} on {row['nodes']:,}", row["max_in_flight"] or "as shipped",
            f"{row['driver_alone_h']:.3f}", hours(row["cluster_h"]), hours(row["total_h"]),
            f"{row['efficiency']:.3f}", f"{row['efficiency_without_boot']:.3f}",
            f"{row['cost_usd']:,.0f}", row["largest_loss"],
        )
        for row in result["whole_command"]
    ]  # fmt: skip
    header = (
        "run | max_in_flight | driver alone | cluster | total | efficiency | without boot | USD | "
        "largest loss"
    )
    return table(header, rows)


def measured(result: dict[str, Any]) -> str:
    """What was measured, in the units that people read."""
    c = result["calibration"]
    drugs, milli = "fit to the 12 drugs of `drug_features.json`, extrapolated above them", 1e3
    rows = [
        ("CPU seconds per molecule",
         f"cost model × {c['cost_bias']:.2f} (functions / 300)^{c['cost_size_exponent']:.2f}, "
         f"scatter {c['cost_sigma']:.0%}", drugs),
        ("conformers",
         f"{c['conformer_at_300_s']:.3f} s (functions / 300)^{c['conformer_exponent']:.2f}, "
         f"scatter {c['conformer_sigma']:.0%}", "the same 12 drugs"),
        ("driver, per piece", f"{c['driver_task_s'] * milli:.2f} ms",
         "CPU seconds of all its threads, 1,500 empty pieces through a local Ray"),
        ("driver, per piece in flight", f"{c['driver_in_flight_s'] * 1e6:.2f} µs",
         "once for all outcomes that are taken together; 64 to 16,000 in flight"),
        ("SMILES; species to piece of work",
         f"{c['smiles_s'] * milli:.2f} ms; {c['prepare_s'] * milli:.2f} ms", "all drugs"),
        ("start of a child", f"{c['child_start_s'] * milli:.0f} ms", "wall, fork server"),
        ("commit of four records",
         f"{c['commit_s'] * milli:.0f} ms wall, {c['files_per_molecule']} files",
         "metformin, local disk"),
        ("bytes per molecule", f"8 n² + {c['bytes_per_function']:,.0f} n for n functions",
         "metformin"),
    ]  # fmt: skip
    return table("measured | value | where", rows)


def assumed(result: dict[str, Any]) -> str:
    """What was assumed."""
    rows = sorted(result["assumed"].items())
    return table("assumed | value", [(f"`{name}`", f"{value:g}") for name, value in rows])


BLOCKS = {item.__name__: item for item in (goals, policies, changes, whole, measured, assumed)}


def fill(page: str, result: dict[str, Any]) -> str:
    """The page with all tables of the result."""
    for name, block in BLOCKS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, page, re.DOTALL):
            raise SystemExit(f"{PAGE.name} has no place for the table '{name}'")
        text = block(result)
        page = re.sub(pattern, lambda m, t=text: f"{m[1]}{t}\n{m[2]}", page, flags=re.DOTALL)  # type: ignore[misc]
    return page


if __name__ == "__main__":
    write_text_atomic(PAGE, fill(PAGE.read_text(encoding="utf-8"), read_json(RESULT)))
