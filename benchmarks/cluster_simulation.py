"""Makespan, efficiency and cost of a cluster of spot nodes, simulated from measured pieces.

Measured here, in a minute: seconds that the driver spends per task and per task in flight (a local
Ray), on a molecule before it is handed out, and on look-ups and commits in a store on a local
disk; conformers of the reference drugs. Taken from `drug_features.json`: CPU seconds per drug.
Assumed: everything in `ASSUMED`. docs/scaling.md says what follows and what does not.

    make bench NAME=cluster_simulation
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from drugs import DRUGS
from record import Figure, publish
from simulate import Array, Batch, Cluster, Driver, Result, SharedStore, simulate

from medrec.config import FeatureRunConfig
from medrec.data.schema import data_root
from orchestration.cluster import local_ray
from orchestration.console import Terminal, frame_table
from orchestration.tasks import RayExecutor
from quantum.base import MedrecError, read_json
from quantum.cost import n_basis_functions, predicted_cpu_s
from quantum.molecule import Species, species_from_smiles
from quantum.pipeline import Outcome, Task, compute_features, wanted
from quantum.schema import LEVELS
from quantum.store import Store

RESULTS = Path(__file__).parent / "results"
STANDARD = LEVELS["standard"]
MAX_ATOMS = 150  # of configs/quantum/standard.yaml
DEFAULT_WINDOW = int(FeatureRunConfig.model_fields["max_in_flight"].default)
NODES = (10, 30, 100, 300, 1000)
GOAL_EFFICIENCY = 0.95
POLICIES = ("largest first", "submission order", "smallest first", "random")
OURS, NAIVE = POLICIES[:2]
# look-ups of `medrec features run` per molecule: `wanted` asks for each open stage's object and
# failure; once before the conformers, twice (with the estimate) before the calculations
LOOKUPS_BEFORE_CONFORMERS, LOOKUPS_BEFORE_DFT = 2, 16
CONFORMER_FILES = 6


@dataclass(frozen=True)
class Assumed:
    """What was not measured. Prices are round figures, not quotations."""

    spot_usd_per_node_hour: float = 1.00
    head_usd_per_hour: float = 0.40
    preemptions_per_node_hour: float = 0.05
    notice_s: float = 120.0
    boot_s: float = 180.0
    idle_timeout_s: float = 300.0
    node_speed_sigma: float = 0.05
    slow_node_share: float = 0.01
    slow_node_factor: float = 2.0
    hard_molecule_share: float = 0.01
    hard_molecule_factor: float = 3.0
    round_trip_s: float = 0.0005
    round_trips_per_file: int = 5
    store_bytes_per_s: float = 1.0e9
    serial_share: float = 0.1


@dataclass(frozen=True)
class Calibration:
    """What was measured, here or for another result.

    CPU seconds, but for the commits, which wait for the disk.
    """

    cost_bias: float
    cost_size_exponent: float
    cost_sigma: float
    conformer_at_300_s: float
    conformer_exponent: float
    conformer_sigma: float
    driver_task_s: float
    driver_in_flight_s: float
    smiles_s: float
    keys_s: float
    lookup_s: float
    commit_s: float
    files_per_molecule: int
    bytes_per_function: float


ASSUMED = Assumed()


# --------------------------------------------------------------------------- calibration


def log_fit(x: Array, y: Array) -> tuple[float, float, float]:
    """``log y = log a + b log x``: a, b and the residuals' standard deviation."""
    design = np.column_stack([np.ones_like(x), np.log(x)])
    (log_a, b), *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    residuals = np.log(y) - design @ (log_a, b)
    return float(np.exp(log_a)), float(b), float(residuals.std(ddof=2))


def fit_cost() -> tuple[float, float, float]:
    """Measured over predicted CPU seconds, against basis functions in units of 300."""
    rows = read_json(RESULTS / "drug_features.json")["figures"]
    measured = {row["name"].removeprefix("features, "): row["value"] for row in rows}
    species = {name: species_from_smiles(DRUGS[name]) for name in DRUGS if name in measured}
    ratio = [measured[n] / predicted_cpu_s(s, STANDARD.calculation) for n, s in species.items()]
    sizes = [n_basis_functions(item) / 300 for item in species.values()]
    return log_fit(np.array(sizes), np.array(ratio))


def cpu_s(function: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds of a call, which a busy machine does not change much."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def fit_conformers() -> tuple[float, float, float]:
    """CPU seconds of the conformer stage against basis functions in units of 300."""
    sizes, spent = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for smiles in DRUGS.values():
            species = species_from_smiles(smiles)
            start = time.process_time()
            compute_features(Task(species=species, spec=STANDARD, stages=("conformer",)), store)
            spent.append(time.process_time() - start)
            sizes.append(n_basis_functions(species) / 300)
    return log_fit(np.array(sizes), np.array(spent))


def measure_store() -> dict[str, float]:
    """One real molecule: seconds and files of its four commits, bytes, look-ups of missing keys."""
    species = species_from_smiles(DRUGS["metformin"])
    task, functions = Task(species=species, spec=STANDARD), n_basis_functions(species)
    with tempfile.TemporaryDirectory() as folder:
        first = Store(Path(folder) / "first")
        outcome = compute_features(task, first)
        if outcome.status != "done":
            raise SystemExit(f"metformin failed: {outcome.message}")
        records = [first.get(key) for key in task.keys.values()]
        files = [item for item in (first.root / "objects").rglob("*") if item.is_file()]
        commits = []
        for attempt in range(10):
            again = Store(Path(folder) / f"again-{attempt}")
            start = time.perf_counter()
            for record in records:
                again.put(record)
            commits.append(time.perf_counter() - start)
        empty = Store(Path(folder) / "empty")
        size = sum(item.stat().st_size for item in files)
        lookups = 8  # per molecule: object and failure of four stages
        keys = cpu_s(lambda: task.keys, 500)
        return {
            "commit_s": statistics.median(commits),
            "files_per_molecule": len(files),
            "bytes_per_function": (size - 8 * functions**2) / functions,
            "keys_s": keys,
            "lookup_s": max(cpu_s(lambda: wanted([task], empty), 500) - keys, 0.0) / lookups,
        }


def measure_driver(n_tasks: int = 1500) -> tuple[float, float]:
    """Seconds of the driver per empty task of the shipped executor, and per task in flight.

    CPU seconds of the process and all its threads: the one worker, which is slower than the driver,
    does not count.
    """
    task = Task(species=species_from_smiles(DRUGS["warfarin"]), spec=STANDARD)

    def empty(item: Task) -> Outcome:
        return Outcome(species_key=item.species.key, status="done")

    def block() -> None:
        time.sleep(600)

    with local_ray(1) as ray:
        executor = RayExecutor(ray, 1, DEFAULT_WINDOW)

        def run(count: int) -> None:
            if any(end.status != "done" for _, end in executor.run(empty, [task] * count)):
                raise SystemExit("an empty task failed")

        run(100)
        start = time.process_time()  # all threads of the driver; the worker is another process
        run(n_tasks)
        per_task = (time.process_time() - start) / n_tasks
        # tasks that wait for an argument stay with the driver, as many as wanted
        blocker, ready = ray.remote(num_cpus=1)(block).remote(), ray.put(None)
        later = ray.remote(num_cpus=1)(lambda _: None)
        in_flight: dict[Any, None] = {}
        counts, spent = (64, 1000, 4000, 16000), []
        for count in counts:
            while len(in_flight) < count:
                in_flight[later.remote(blocker)] = None
            running = {**in_flight, ready: None}

            def wait(now: dict[Any, None] = running) -> None:
                ray.wait(list(now), num_returns=1, timeout=5, fetch_local=False)

            spent.append(cpu_s(wait, 15))
        ray.cancel(blocker, force=True)
    slope = float(np.polyfit(counts, spent, 1)[0])
    return per_task, max(slope, 0.0)


def calibrate(smiles_s: float) -> Calibration:
    bias, exponent, sigma = fit_cost()
    conformer, growth, spread = fit_conformers()
    per_task, per_flight = measure_driver()
    return Calibration(
        cost_bias=bias,
        cost_size_exponent=exponent,
        cost_sigma=sigma,
        conformer_at_300_s=conformer,
        conformer_exponent=growth,
        conformer_sigma=spread,
        driver_task_s=per_task,
        driver_in_flight_s=per_flight,
        smiles_s=smiles_s,
        **measure_store(),  # type: ignore[arg-type]
    )


# --------------------------------------------------------------------------- molecules


def approved_drugs() -> tuple[list[Species], int, float]:
    """Molecules that get an SCF, rows of the table, seconds per SMILES."""
    table = pd.read_parquet(data_root() / "molecules" / "chembl_approved_drugs.parquet")
    found: dict[Species, None] = {}
    start = time.process_time()
    for smiles in table["smiles"]:
        try:
            found[species_from_smiles(smiles)] = None
        except MedrecError:
            continue
    spent = (time.process_time() - start) / len(table)
    return [item for item in found if item.n_atoms <= MAX_ATOMS], len(table), spent


@dataclass(frozen=True)
class Molecules:
    """Predicted seconds, basis functions and, drawn with the measured scatter, true seconds."""

    name: str
    predicted_s: Array
    functions: Array
    core_s: Array
    conformer_s: Array

    @property
    def size(self) -> Array:
        """Bytes of the orbitals."""
        return 8 * self.functions**2


def draw(name: str, index: npt.NDArray[np.int64], drugs: Array, found: Calibration) -> Molecules:
    """Molecules of the sizes of ``drugs[index]`` (columns: predicted seconds, functions)."""
    rng = np.random.default_rng(len(index))
    predicted, functions = drugs[index].T
    relative, n = functions / 300, len(index)
    true = predicted * found.cost_bias * relative**found.cost_size_exponent
    true *= np.exp(found.cost_sigma * rng.standard_normal(n))
    hard = rng.random(n) < ASSUMED.hard_molecule_share
    conformer = found.conformer_at_300_s * relative**found.conformer_exponent
    return Molecules(
        name,
        predicted,
        functions,
        true * np.where(hard, ASSUMED.hard_molecule_factor, 1.0),
        conformer * np.exp(found.conformer_sigma * rng.standard_normal(n)),
    )


def ordered(predicted_s: Array, policy: str, seed: int = 0) -> npt.NDArray[np.int64]:
    """Indices in the order of submission."""
    if policy == "largest first":
        return np.argsort(-predicted_s, kind="stable")
    if policy == "smallest first":
        return np.argsort(predicted_s, kind="stable")
    if policy == "random":
        return np.random.default_rng(seed).permutation(len(predicted_s))
    return np.arange(len(predicted_s))


# --------------------------------------------------------------------------- runs


def cluster_of(nodes: int, assumed: Assumed) -> Cluster:
    return Cluster(
        nodes=nodes,
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
    """The phase "DFT and ELF"; a window of twice the slots unless given."""
    cluster = cluster_of(nodes, assumed)
    slots = nodes * (cluster.cores // threads)
    driver = Driver(window or 2 * slots, found.driver_task_s, found.driver_in_flight_s)
    trips = found.files_per_molecule * assumed.round_trips_per_file
    store = SharedStore(found.commit_s + trips * assumed.round_trip_s, assumed.store_bytes_per_s)
    batch = Batch(
        molecules.core_s,
        ordered(molecules.predicted_s, policy, seed),
        molecules.size + found.bytes_per_function * molecules.functions,
        threads,
        assumed.serial_share if threads > 1 else 0.0,
    )
    return simulate(batch, cluster, driver, store, seed)


def usd(result: Result, assumed: Assumed = ASSUMED, head_s: float = 0.0) -> float:
    """Cost of nodes and head; ``head_s`` are seconds of the head beyond the makespan."""
    head = assumed.head_usd_per_hour * (result.makespan_s + head_s)
    return (assumed.spot_usd_per_node_hour * result.node_s + head) / 3600


def bottleneck(shares: dict[str, float]) -> str:
    """The largest share of the paid core-seconds that was not useful."""
    name = max(shares, key=lambda key: shares[key])
    return f"{name} {shares[name]:.1%}"


def row(molecules: Molecules, nodes: int, policy: str, results: list[Result]) -> dict[str, Any]:
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
        "cost_usd": mean(usd),
        "lost_executions": mean(lambda item: item.lost_executions),
        "preemptions": mean(lambda item: item.preemptions),
        "largest_loss": bottleneck(shares),
        "shares": shares,
        "seeds": len(results),
    }


def policy_table(populations: list[Molecules], found: Calibration) -> list[dict[str, Any]]:
    """All populations, nodes and policies; drawn molecules come in random order anyhow."""
    rows = []
    for molecules in populations:
        n = len(molecules.core_s)
        seeds = 5 if n < 1_000_000 else 1
        policies = POLICIES if n < 10_000 else POLICIES[:3] if n < 1_000_000 else POLICIES[:2]
        for nodes in NODES:
            for policy in policies:
                results = [
                    calculate(molecules, nodes, found, policy, seed=seed) for seed in range(seeds)
                ]
                rows.append(row(molecules, nodes, policy, results))
                print(f"{molecules.name}, {nodes} nodes, {policy}", flush=True)
    return rows


def changes(found: Calibration) -> dict[str, dict[str, Any]]:
    """Settings and assumptions to change, one at a time; arguments of `calculate`."""
    free = replace(found, driver_task_s=0.0, driver_in_flight_s=0.0)
    fast = replace(ASSUMED, store_bytes_per_s=1e10)
    often = replace(ASSUMED, preemptions_per_node_hour=0.2)
    return {
        "none": {},
        f"window {DEFAULT_WINDOW} (default)": {"window": DEFAULT_WINDOW},
        "four cores per task": {"threads": 4},
        "no boot": {"assumed": replace(ASSUMED, boot_s=0.0)},
        "no preemption": {"assumed": replace(ASSUMED, preemptions_per_node_hour=0.0)},
        "preemption 20 % per hour": {"assumed": often},
        "the same, no watcher": {"assumed": replace(often, notice_s=0.0)},
        "store of 0.3 GB/s": {"assumed": replace(ASSUMED, store_bytes_per_s=3e8)},
        "store of 10 GB/s": {"assumed": fast},
        "driver without cost per task in flight": {"found": replace(found, driver_in_flight_s=0.0)},
        "driver without cost": {"found": free},
        "store of 10 GB/s, driver without cost": {"found": free, "assumed": fast},
    }


def variations(
    molecules: Molecules, nodes: int, found: Calibration, *words: str
) -> list[dict[str, Any]]:
    """Largest first with one change at a time; only those that hold one of ``words``, if given."""
    rows = []
    for name, settings in changes(found).items():
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
    predicted = core_s * np.exp(found.cost_sigma * rng.standard_normal(count))
    none = np.zeros(count)
    molecules = Molecules("log-normal", predicted, none, core_s, none)
    ours, other = (
        calculate(molecules, nodes, found, policy).makespan_s - ASSUMED.boot_s
        for policy in (OURS, "random")
    )
    ideal = float(core_s.sum()) / (16 * nodes)
    return {"makespan_efficiency": ideal / ours, "random_over_largest": other / ours}


def as_shipped(
    molecules: Molecules, nodes: int, found: Calibration, window: int | None = None
) -> dict[str, Any]:
    """`medrec features run` from start to end: driver alone, conformers, driver alone, DFT."""
    n, look = len(molecules.core_s), found.lookup_s + ASSUMED.round_trip_s
    prepare = n * (found.smiles_s + 2 * found.keys_s + LOOKUPS_BEFORE_CONFORMERS * look)
    gap = n * (2 * found.keys_s + LOOKUPS_BEFORE_DFT * look)
    small = replace(
        molecules,
        core_s=molecules.conformer_s,
        predicted_s=np.zeros(n),  # in the order of the table
        functions=np.zeros(n),
    )
    share = CONFORMER_FILES / found.files_per_molecule
    light = replace(found, files_per_molecule=CONFORMER_FILES, commit_s=found.commit_s * share)
    conformers = calculate(small, nodes, light, NAIVE, window=window)
    # nodes wait for the driver, or are released and boot again
    kept = gap <= ASSUMED.idle_timeout_s
    after = replace(ASSUMED, boot_s=0.0) if kept else ASSUMED
    dft = calculate(molecules, nodes, found, assumed=after, window=window)
    idle_node_s = nodes * min(gap, ASSUMED.idle_timeout_s)
    paid = conformers.paid_s + dft.paid_s + idle_node_s * 16
    total = prepare + conformers.makespan_s + gap + dft.makespan_s
    spent = ASSUMED.spot_usd_per_node_hour * idle_node_s / 3600
    return {
        "molecules": molecules.name,
        "nodes": nodes,
        "window": window or 2 * 16 * nodes,
        "driver_alone_before_h": prepare / 3600,
        "conformers_h": conformers.makespan_s / 3600,
        "driver_alone_between_h": gap / 3600,
        "dft_h": dft.makespan_s / 3600,
        "total_h": total / 3600,
        "efficiency": (conformers.useful_s + dft.useful_s) / paid,
        "cost_usd": usd(conformers) + usd(dft, head_s=prepare + gap) + spent,
    }


def main() -> None:
    start = time.perf_counter()
    species, n_rows, smiles_s = approved_drugs()
    found = calibrate(smiles_s)
    print(f"calibrated in {time.perf_counter() - start:.0f} s", flush=True)
    spec = STANDARD.calculation
    drugs = np.array([(predicted_cpu_s(s, spec), n_basis_functions(s)) for s in species], float)
    rng = np.random.default_rng(0)
    populations = [draw(f"{n_rows:,} drugs", np.arange(len(species)), drugs, found)]
    for count in (100_000, 1_000_000):
        index = rng.integers(0, len(species), count)
        populations.append(draw(f"{count:,}", index, drugs, found))
    approved, middle, large = populations

    table = policy_table(populations, found)
    changed = variations(approved, 100, found, "window", "four cores", "no boot")
    changed += variations(middle, 100, found)
    changed += variations(large, 1000, found, "10 GB/s", "driver", "no boot")
    spread = log_normal(found)
    whole = [as_shipped(approved, 10, found), as_shipped(approved, 10, found, DEFAULT_WINDOW)]
    whole += [as_shipped(middle, 100, found), as_shipped(middle, 100, found, DEFAULT_WINDOW)]
    whole += [as_shipped(large, 1000, found)]

    out = Terminal().out
    hidden = ("shares", "efficiency_range")
    shown = [{k: v for k, v in item.items() if k not in hidden} for item in (*table, *changed)]
    out.print(frame_table(pd.DataFrame(shown[: len(table)]), title="DFT and ELF, by policy"))
    out.print(frame_table(pd.DataFrame(shown[len(table) :]), title="one change at a time"))
    out.print(frame_table(pd.DataFrame(whole), title="the whole command"))
    publish(
        "cluster_simulation",
        figures(table, whole, spread),
        calibration=asdict(found),
        assumed=asdict(ASSUMED),
        molecules={
            "table_rows": n_rows,
            "calculations": len(species),
            "mean_core_s": float(approved.core_s.mean()),
            "largest_core_s": float(approved.core_s.max()),
            "mean_megabytes": float(
                (approved.size + found.bytes_per_function * approved.functions).mean() / 1e6
            ),
        },
        policies=table,
        changes=changed,
        whole_command=whole,
        seconds=time.perf_counter() - start,
    )


def figures(
    table: list[dict[str, Any]], whole: list[dict[str, Any]], spread: dict[str, float]
) -> list[Figure]:
    """Ours beside submission order for each size and number of nodes; the goal at 100 nodes."""
    found = {(item["molecules"], item["nodes"], item["policy"]): item for item in table}
    even, order = spread["makespan_efficiency"], spread["random_over_largest"]
    title = "log-normal times, 100,000 on 100 nodes, simulated: "
    rows = [
        Figure(f"{title}makespan efficiency", even, "1", None, None, 0.95, even >= 0.95),
        Figure(f"{title}random order takes", order, "times", None, None, 1.08, order >= 1.08),
    ]
    for (name, nodes, policy), ours in found.items():
        if policy != OURS:
            continue
        naive = found[name, nodes, NAIVE]
        ratio = naive["makespan_h"] / ours["makespan_h"]
        title = f"{name} on {nodes} nodes, simulated"
        rows.append(
            Figure(f"{title}: makespan", ours["makespan_h"], "h", naive["makespan_h"], ratio)
        )
        goal = GOAL_EFFICIENCY if (name, nodes) == ("100,000", 100) else None
        rows.append(
            Figure(
                f"{title}: efficiency",
                ours["efficiency"],
                "1",
                naive["efficiency"],
                ours["efficiency"] / naive["efficiency"],
                goal,
                None if goal is None else ours["efficiency"] >= goal,
            )
        )
        rows.append(Figure(f"{title}: cost", ours["cost_usd"], "USD", naive["cost_usd"]))
    for item in whole:
        title = f"whole command, {item['molecules']} on {item['nodes']} nodes, window "
        is_goal = (item["molecules"], item["nodes"]) == ("100,000", 100)
        rows.append(
            Figure(
                f"{title}{item['window']}: efficiency, simulated",
                item["efficiency"],
                "1",
                goal=GOAL_EFFICIENCY if is_goal else None,
                met=item["efficiency"] >= GOAL_EFFICIENCY if is_goal else None,
            )
        )
    return rows


if __name__ == "__main__":
    main()
