"""Makespan, efficiency and cost of a cluster of spot nodes, simulated from measured pieces.

What is measured and what is assumed is in `cluster_calibration`, how work is cut and handed out in
`cluster_runs`, the events in `simulate`. docs/scaling.md says what follows and what does not.

    make bench NAME=cluster_simulation
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from cluster_calibration import ASSUMED, CONFIG, Calibration, approved_drugs, calibrate
from cluster_runs import (
    FUNCTIONS,
    NAIVE,
    OURS,
    POLICIES,
    Molecules,
    calculate,
    draw,
    facts_of,
    log_normal,
    row,
    variations,
    whole_command,
)
from record import Figure, publish

from orchestration.console import Terminal, frame_table

NODES = (10, 30, 100, 300, 1000)
GOAL_EFFICIENCY = 0.95
AT_GOAL = ("100,000", 100)


def policy_table(populations: list[Molecules], found: Calibration) -> list[dict[str, Any]]:
    """All populations, nodes and policies; drawn molecules come in random order anyhow."""
    rows = []
    for molecules in populations:
        n = len(molecules.core_s)
        seeds = 5 if n < 10_000 else 3 if n < 1_000_000 else 1
        policies = POLICIES if n < 10_000 else POLICIES[:3] if n < 1_000_000 else POLICIES[:2]
        for nodes in NODES:
            for policy in policies:
                results = [
                    calculate(molecules, nodes, found, policy, seed=seed) for seed in range(seeds)
                ]
                rows.append(row(molecules, nodes, policy, results))
                print(f"{molecules.name}, {nodes} nodes, {policy}", flush=True)
    return rows


def whole_commands(populations: list[Molecules], found: Calibration) -> list[dict[str, Any]]:
    """The command as shipped, and with a window of twice the slots the cluster may grow to."""
    rows = []
    for molecules, nodes in zip(populations, (10, 100, 1000), strict=False):
        twice = 2 * ASSUMED.cores_per_node * nodes
        rows += [whole_command(molecules, nodes, found, window) for window in (None, twice)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1_000_000, help="molecules")
    most = parser.parse_args().most
    start = time.perf_counter()
    species, n_rows, smiles_s = approved_drugs()
    found = calibrate(species, smiles_s)
    print(f"calibrated in {time.perf_counter() - start:.0f} s", flush=True)
    facts, rng = facts_of(species), np.random.default_rng(0)
    populations = [draw(f"{n_rows:,} drugs", np.arange(len(species)), facts, found)]
    for count in (100_000, 1_000_000):
        index = rng.integers(0, len(species), count)
        if count <= most:
            populations.append(draw(f"{count:,}", index, facts, found))
    approved, middle = populations[:2]

    table = policy_table(populations, found)
    changed = variations(approved, 100, found, "max_in_flight", "four cores", "GB per node", "boot")
    changed += variations(middle, 100, found)
    for large in populations[2:]:
        words = ("10 GB/s", "driver", "no boot", "max_in_flight")
        changed += variations(large, 1000, found, *words)
    spread = log_normal(found)
    whole = whole_commands(populations, found)

    out = Terminal().out
    hidden = ("shares", "efficiency_range")
    shown = [{k: v for k, v in item.items() if k not in hidden} for item in (*table, *changed)]
    out.print(frame_table(pd.DataFrame(shown[: len(table)]), title="by policy"))
    out.print(frame_table(pd.DataFrame(shown[len(table) :]), title="one change at a time"))
    out.print(frame_table(pd.DataFrame(whole), title="the whole command"))
    core_s = approved.core_s[approved.with_scf]
    functions = approved.facts[approved.with_scf, FUNCTIONS]
    publish(
        "cluster_simulation",
        figures(table, changed, whole, spread),
        calibration=asdict(found),
        assumed={**asdict(ASSUMED), "task_memory_mb": ASSUMED.memory_mb},
        molecules={
            "table_rows": n_rows,
            "species": len(species),
            "calculations": len(core_s),
            "most_memory_mb": CONFIG.resources.memory_mb,
            "mean_core_s": float(core_s.mean()),
            "largest_core_s": float(core_s.max()),
            "mean_megabytes": float(
                (8 * functions**2 + found.bytes_per_function * functions).mean() / 1e6
            ),
        },
        policies=table,
        changes=changed,
        whole_command=whole,
        seconds=time.perf_counter() - start,
    )


def figures(
    table: list[dict[str, Any]],
    changed: list[dict[str, Any]],
    whole: list[dict[str, Any]],
    spread: dict[str, float],
) -> list[Figure]:
    """Ours beside submission order for each size and number of nodes; the goal at 100 nodes."""
    even, order = spread["makespan_efficiency"], spread["random_over_largest"]
    title = "log-normal times, 100,000 on 100 nodes, simulated: "
    rows = [
        Figure(f"{title}makespan efficiency", even, "1", None, None, 0.95, even >= 0.95),
        Figure(f"{title}random order takes", order, "times", None, None, 1.08, order >= 1.08),
    ]
    found = {(item["molecules"], item["nodes"], item["policy"]): item for item in table}
    for (name, nodes, policy), ours in found.items():
        if policy == OURS:
            rows += _beside(f"{name} on {nodes} nodes, simulated", ours, found[name, nodes, NAIVE])
    for item in changed:
        if (item["molecules"], item["nodes"]) == AT_GOAL:
            title = f"100,000 on 100 nodes, change: {item['change']}"
            rows.append(_efficiency(title, item, GOAL_EFFICIENCY if "GB per" in title else None))
    for item in whole:
        window = item["max_in_flight"] or "as shipped"
        title = f"whole command, {item['molecules']} on {item['nodes']} nodes, window {window}"
        rows.append(_efficiency(title, item))
    return rows


def _efficiency(title: str, item: dict[str, Any], goal: float | None = None) -> Figure:
    value = item["efficiency"]
    met = None if goal is None else value >= goal
    return Figure(f"{title}: efficiency, simulated", value, "1", goal=goal, met=met)


def _beside(title: str, ours: dict[str, Any], naive: dict[str, Any]) -> list[Figure]:
    hours, efficiency, cost = "makespan_h", "efficiency", "cost_usd"
    goal = GOAL_EFFICIENCY if (ours["molecules"], ours["nodes"]) == AT_GOAL else None
    rows = [
        Figure(f"{title}: makespan", ours[hours], "h", naive[hours], naive[hours] / ours[hours])
    ]
    for name, key in (
        (efficiency, efficiency),
        ("efficiency without boot", "efficiency_without_boot"),
    ):
        met = None if goal is None else ours[key] >= goal
        rows.append(
            Figure(
                f"{title}: {name}", ours[key], "1", naive[key], ours[key] / naive[key], goal, met
            )
        )
    return [*rows, Figure(f"{title}: cost", ours[cost], "USD", naive[cost])]


if __name__ == "__main__":
    main()
