"""Molecules, and runs of `medrec features run` over them on a simulated cluster."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from cluster_calibration import ASSUMED, CONFIG, STANDARD, Assumed, Calibration
from simulate import Array, Batch, Cluster, Driver, Result, SharedStore, simulate

from orchestration.features import _WINDOW_WHEN_GROWING as LEAST_WINDOW
from orchestration.graph import _ALONE_FROM_S as ALONE_FROM_S
from orchestration.graph import _ELF_SHARE as ELF_SHARE
from orchestration.graph import SECONDS_PER_BATCH, memory_shape
from orchestration.tasks import _GATHER as GATHER
from quantum.cost import (
    n_basis_functions,
    predicted_conformer_s,
    predicted_cpu_s,
    predicted_memory_mb,
)
from quantum.molecule import Species

POLICIES = ("largest first", "submission order", "smallest first", "random")
OURS, NAIVE = POLICIES[:2]
CONFORMERS_MB = memory_shape(1000.0)
# columns of `facts_of`
SECONDS, FUNCTIONS, CONFORMER, MEMORY, HAS_SCF = range(5)


def facts_of(species: list[Species]) -> Array:
    """What the driver predicts of each: seconds, functions, conformer's seconds, MB, if an SCF."""
    spec, shape = STANDARD.calculation, STANDARD.conformer.n_conformers / 5.0
    return np.array(
        [
            (
                predicted_cpu_s(item, spec),
                n_basis_functions(item),
                predicted_conformer_s(item) * shape,
                predicted_memory_mb(item, spec),
                item.n_atoms <= CONFIG.max_atoms,
            )
            for item in species
        ],
        float,
    )


@dataclass(frozen=True)
class Molecules:
    """Predictions of the driver (`facts_of`) and, with the measured scatter, true seconds."""

    name: str
    facts: Array
    core_s: Array
    conformer_s: Array

    @property
    def with_scf(self) -> npt.NDArray[np.bool_]:
        """Those that get more than a conformer."""
        return self.facts[:, HAS_SCF] > 0


def draw(name: str, index: npt.NDArray[np.int64], facts: Array, found: Calibration) -> Molecules:
    """Molecules of the sizes of ``facts[index]``."""
    rng = np.random.default_rng(len(index))
    chosen, n = facts[index], len(index)
    relative = chosen[:, FUNCTIONS] / 300
    true = chosen[:, SECONDS] * found.cost_bias * relative**found.cost_size_exponent
    true *= np.exp(found.cost_sigma * rng.standard_normal(n))
    hard = rng.random(n) < ASSUMED.hard_molecule_share
    conformer = found.conformer_at_300_s * relative**found.conformer_exponent
    return Molecules(
        name,
        chosen,
        true * np.where(hard, ASSUMED.hard_molecule_factor, 1.0),
        conformer * np.exp(found.conformer_sigma * rng.standard_normal(n)),
    )


# --------------------------------------------------------------------------- pieces of work


@dataclass(frozen=True)
class Work:
    """Pieces of work as `orchestration.graph` cuts them; arrays of shape (n,).

    ``priority`` is what the driver sorts by, ``number`` the place in the table.
    """

    core_s: Array
    priority: Array
    number: Array
    memory_mb: Array
    size: Array
    after: npt.NDArray[np.int64]

    def order(self, policy: str, seed: int = 0) -> npt.NDArray[np.int64]:
        """Indices in the order of submission."""
        if policy == "largest first":
            return np.argsort(-self.priority, kind="stable")
        if policy == "smallest first":
            return np.argsort(self.priority, kind="stable")
        if policy == "random":
            return np.random.default_rng(seed).permutation(len(self.core_s))
        return np.argsort(self.number, kind="stable")


def cut(molecules: Molecules, bytes_per_function: float) -> Work:
    """Pieces: one per molecule, two of a large one, and conformers of those without an SCF."""
    number = np.flatnonzero(molecules.with_scf)
    facts, core_s = molecules.facts[number], molecules.core_s[number]
    cost = facts[:, SECONDS] + facts[:, CONFORMER]
    large = np.flatnonzero(cost >= ALONE_FROM_S)
    share = np.ones(len(number))
    share[large] -= ELF_SHARE
    orbitals, map_bytes = 8 * facts[:, FUNCTIONS] ** 2, bytes_per_function * facts[:, FUNCTIONS]
    first_bytes = orbitals + np.where(share < 1, 0.0, map_bytes)
    conformers, shapes = _conformer_batches(molecules), np.vectorize(memory_shape, otypes=[float])
    n, k, last = len(number), len(conformers), float(len(molecules.core_s))
    most = float(CONFIG.resources.memory_mb)
    return Work(
        core_s=np.concatenate([core_s * share, core_s[large] * ELF_SHARE, conformers]),
        priority=np.concatenate([cost, cost[large] * ELF_SHARE, np.full(k, np.inf)]),
        number=np.concatenate([number, number[large] + 0.5, np.full(k, last)]),
        memory_mb=np.concatenate(
            [
                np.minimum(shapes(facts[:, MEMORY]), most),
                np.minimum(shapes(facts[large, MEMORY] * 0.5), most),
                np.full(k, CONFORMERS_MB),
            ]
        ),
        size=np.concatenate([first_bytes, map_bytes[large], np.zeros(k)]),
        after=np.concatenate([np.full(n, -1), large, np.full(k, -1)]).astype(np.int64),
    )  # fmt: skip


def _conformer_batches(molecules: Molecules) -> Array:
    """True seconds of batches of conformers; no node is up when they are made."""
    alone = ~molecules.with_scf
    predicted, true = molecules.facts[alone, CONFORMER], molecules.conformer_s[alone]
    batches: list[float] = []
    spent = 0.0
    for i in np.argsort(-predicted, kind="stable"):
        if not batches or spent + predicted[i] > SECONDS_PER_BATCH:
            batches.append(0.0)
            spent = 0.0
        batches[-1] += float(true[i])
        spent += float(predicted[i])
    return np.array(batches)


# --------------------------------------------------------------------------- runs


def cluster_of(nodes: int, assumed: Assumed) -> Cluster:
    return Cluster(
        nodes=nodes,
        cores=assumed.cores_per_node,
        memory_mb=assumed.memory_mb,
        grows=True,
        boot_s=assumed.boot_s,
        idle_timeout_s=assumed.idle_timeout_s,
        preemptions_per_hour=assumed.preemptions_per_node_hour,
        notice_s=assumed.notice_s,
        speed_sigma=assumed.node_speed_sigma,
        slow_share=assumed.slow_node_share,
        slow_factor=assumed.slow_node_factor,
    )


def calculate(
    molecules: Molecules,
    nodes: int,
    found: Calibration,
    policy: str = OURS,
    assumed: Assumed = ASSUMED,
    window: int | None = None,
    threads: int = 1,
    seed: int = 0,
) -> Result:
    """From the first demand for nodes to the last commit.

    Parameters
    ----------
    nodes : int
        That the cluster may grow to.
    window : int, optional
        ``max_in_flight`` of the configuration; as shipped unless given.
    """
    work = cut(molecules, found.bytes_per_function)
    least, per_slot = (LEAST_WINDOW, 2.0 * threads) if window is None else (window, 0.0)
    driver = Driver(least, per_slot, found.driver_task_s, found.driver_in_flight_s, GATHER)
    trips = found.files_per_molecule * assumed.round_trips_per_file
    store = SharedStore(found.commit_s + trips * assumed.round_trip_s, assumed.store_bytes_per_s)
    batch = Batch(
        work.core_s,
        work.order(policy, seed),
        work.size,
        threads,
        assumed.serial_share if threads > 1 else 0.0,
        found.child_start_s,
        work.memory_mb,
        work.after,
    )
    return simulate(batch, cluster_of(nodes, assumed), driver, store, seed)


def usd(result: Result, assumed: Assumed = ASSUMED, head_s: float = 0.0) -> float:
    """Cost of nodes and head; ``head_s`` are seconds of the head beyond the makespan."""
    head = assumed.head_usd_per_hour * (result.makespan_s + head_s)
    return (assumed.spot_usd_per_node_hour * result.node_s + head) / 3600


def bottleneck(shares: dict[str, float]) -> str:
    """The largest share of the paid core-seconds that was not useful."""
    name = max(shares, key=lambda key: shares[key])
    return f"{name} {shares[name]:.1%}"


def row(molecules: Molecules, nodes: int, policy: str, results: list[Result]) -> dict[str, Any]:
    """Means over seeds."""

    def mean(value: Callable[[Result], float]) -> float:
        return statistics.fmean(value(item) for item in results)

    every = [item.shares() for item in results]
    shares = {name: statistics.fmean(item[name] for item in every) for name in every[0]}
    return {
        "molecules": molecules.name,
        "nodes": nodes,
        "policy": policy,
        "makespan_h": mean(lambda item: item.makespan_s) / 3600,
        "efficiency": mean(lambda item: item.efficiency),
        "efficiency_range": [
            min(item.efficiency for item in results),
            max(item.efficiency for item in results),
        ],
        "efficiency_without_boot": mean(lambda item: item.useful_s / (item.paid_s - item.boot_s)),
        "cost_usd": mean(usd),
        "lost_executions": mean(lambda item: item.lost_executions),
        "preemptions": mean(lambda item: item.preemptions),
        "largest_loss": bottleneck(shares),
        "shares": shares,
        "seeds": len(results),
    }


def changes(found: Calibration, nodes: int) -> dict[str, dict[str, Any]]:
    """Settings and assumptions to change, one at a time; arguments of `calculate`."""
    free = replace(found, driver_task_s=0.0, driver_in_flight_s=0.0)
    fast = replace(ASSUMED, store_bytes_per_s=1e10)
    often = replace(ASSUMED, preemptions_per_node_hour=0.2)
    small = replace(ASSUMED, node_memory_gb=64.0)
    twice = 2 * ASSUMED.cores_per_node * nodes
    return {
        "none": {},
        f"max_in_flight {twice}": {"window": twice},
        "four cores per task": {"threads": 4},
        "128 GB per node": {"assumed": replace(ASSUMED, node_memory_gb=128.0)},
        "64 GB per node": {"assumed": small},
        "64 GB per node, four cores per task": {"assumed": small, "threads": 4},
        "no boot": {"assumed": replace(ASSUMED, boot_s=0.0)},
        "no slow nodes": {"assumed": replace(ASSUMED, slow_node_share=0.0)},
        "no preemption": {"assumed": replace(ASSUMED, preemptions_per_node_hour=0.0)},
        "preemption 20 % per hour": {"assumed": often},
        "the same, no watcher": {"assumed": replace(often, notice_s=0.0)},
        "store of 0.3 GB/s": {"assumed": replace(ASSUMED, store_bytes_per_s=3e8)},
        "store of 10 GB/s": {"assumed": fast},
        "driver without cost": {"found": free},
        "store of 10 GB/s, driver without cost": {"found": free, "assumed": fast},
    }


def variations(
    molecules: Molecules, nodes: int, found: Calibration, *words: str
) -> list[dict[str, Any]]:
    """Largest first with one change at a time; only those that hold one of ``words``, if given."""
    rows = []
    for name, settings in changes(found, nodes).items():
        if words and name != "none" and not any(word in name for word in words):
            continue
        result = calculate(molecules, nodes, **{"found": found, **settings})
        rows.append({"change": name, **row(molecules, nodes, OURS, [result])})
        print(f"{molecules.name}, {nodes} nodes, change: {name}", flush=True)
    return rows


def log_normal(found: Calibration, nodes: int = 100, count: int = 100_000) -> dict[str, float]:
    """Log-normal times (spread 1, mean 60 s) predicted with the measured scatter.

    Returns
    -------
    dict
        Ideal over simulated makespan from the moment that nodes are up, and how much longer a
        random order takes.
    """
    rng = np.random.default_rng(3)
    core_s = 60.0 * np.exp(rng.standard_normal(count) - 0.5)
    facts = np.zeros((count, 5))
    facts[:, SECONDS] = core_s * np.exp(found.cost_sigma * rng.standard_normal(count))
    facts[:, HAS_SCF] = 1.0
    molecules = Molecules("log-normal", facts, core_s, np.zeros(count))
    ours, other = (
        calculate(molecules, nodes, found, policy).makespan_s - ASSUMED.boot_s
        for policy in (OURS, "random")
    )
    ideal = float(core_s.sum()) / (ASSUMED.cores_per_node * nodes)
    return {"makespan_efficiency": ideal / ours, "random_over_largest": other / ours}


def whole_command(
    molecules: Molecules, nodes: int, found: Calibration, window: int | None = None
) -> dict[str, Any]:
    """`medrec features run` from start to end: the driver prepares alone, then one graph."""
    prepare = len(molecules.core_s) * (found.smiles_s + found.prepare_s)
    result = calculate(molecules, nodes, found, window=window)
    return {
        "molecules": molecules.name,
        "nodes": nodes,
        "max_in_flight": window,
        "driver_alone_h": prepare / 3600,
        "cluster_h": result.makespan_s / 3600,
        "total_h": (prepare + result.makespan_s) / 3600,
        "efficiency": result.efficiency,
        "efficiency_without_boot": result.useful_s / (result.paid_s - result.boot_s),
        "largest_loss": bottleneck(result.shares()),
        "cost_usd": usd(result, head_s=prepare),
    }
