"""What `cluster_simulation` measures here, and what it assumes.

Measured in a minute: CPU seconds of the driver per piece of work and per piece in flight (a local
Ray), of a molecule before it is handed out, the start of a child, look-ups and commits in a store
on a local disk, conformers of the reference drugs. Taken from `drug_features.json`: CPU seconds
per drug. Assumed: everything in `ASSUMED`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from drugs import DRUGS
from simulate import Array

from medrec.config import FeatureRunConfig
from medrec.data.schema import data_root
from medrec.loading import load_config
from orchestration.cluster import local_ray
from orchestration.features import make_tasks
from orchestration.graph import Piece, pieces_of
from orchestration.ledger import LEDGER, Ledger
from orchestration.precompute import ATTEMPTS, Driver, Settings, with_history
from orchestration.tasks import Ask, RayPool
from quantum.base import MedrecError, read_json
from quantum.child import close_servers, measure_start
from quantum.cost import n_basis_functions, predicted_cpu_s
from quantum.export import Atlas
from quantum.molecule import Species, species_from_smiles
from quantum.pipeline import Outcome, Task, compute_features, wanted
from quantum.store import Store

RESULTS = Path(__file__).parent / "results"
CONFIG = load_config(
    Path(__file__).parent.parent / "configs" / "quantum" / "standard.yaml", FeatureRunConfig
)
STANDARD = CONFIG.pipeline


@dataclass(frozen=True)
class Assumed:
    """What was not measured. Prices are round figures, not quotations.

    Nodes are those of ``cluster.yaml``: 16 cores, a quarter of 256 GB left to the system.
    """

    cores_per_node: int = 16
    node_memory_gb: float = 256.0
    memory_share_of_tasks: float = 0.75
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

    @property
    def memory_mb(self) -> float:
        """Memory of a node that tasks may ask for, in units of 2^20 bytes."""
        return self.node_memory_gb * 1e9 * self.memory_share_of_tasks / 2**20


ASSUMED = Assumed()


@dataclass(frozen=True)
class Calibration:
    """What was measured, here or for another result.

    CPU seconds, but for the commits, which wait for the disk, and the start of a child.
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
    prepare_s: float
    child_start_s: float
    commit_s: float
    files_per_molecule: int
    bytes_per_function: float


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
    """One real molecule: seconds and files of its four commits, and their bytes."""
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
        size = sum(item.stat().st_size for item in files)
    return {
        "commit_s": statistics.median(commits),
        "files_per_molecule": len(files),
        "bytes_per_function": (size - 8 * functions**2) / functions,
    }


def measure_prepare(species: list[Species]) -> float:
    """CPU seconds per molecule from its species to its piece of work, over an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        store, ledger = Store(Path(folder) / "store"), Ledger(Path(folder) / LEDGER)

        def prepare() -> None:
            parts = make_tasks(CONFIG, tuple(species), Atlas.empty())
            left = [task for part in parts for task in wanted(part, store, (), ATTEMPTS)]
            pieces = [pieces_of(task, CONFIG.resources) for task in left]
            with_history(pieces, ledger, CONFIG.resources)

        spent = cpu_s(prepare, 3)
        ledger.close()
    return spent / len(species)


def measure_driver(n_tasks: int = 1500) -> tuple[float, float]:
    """Seconds of the shipped driver per empty piece, and per piece in flight when it looks.

    CPU seconds of the process and all its threads: the one worker, which is slower than the driver,
    does not count.
    """
    species = species_from_smiles(DRUGS["warfarin"])
    pieces = [pieces_of(Task(species=species, spec=STANDARD), CONFIG.resources)] * n_tasks

    def empty(piece: Piece) -> list[Outcome]:
        done = Outcome(species_key=piece.tasks[0].species.key, status="done")
        return [done for _ in piece.tasks]

    def block() -> None:
        time.sleep(600)

    with local_ray(1) as ray, tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / LEDGER)
        settings = Settings(limits=CONFIG.resources, window=lambda: 64)

        def run(count: int) -> None:
            store = Store(Path(folder) / "store")
            driver = Driver(RayPool(ray), store, ledger, settings, print)
            driver._work = empty  # type: ignore[assignment]
            if driver.run(pieces[:count]).done != count:
                raise SystemExit("an empty piece failed")

        run(100)
        start = time.process_time()  # all threads of the driver; the worker is another process
        run(n_tasks)
        per_task = (time.process_time() - start) / n_tasks
        ledger.close()
        # tasks that wait for an argument stay with the driver, as many as wanted
        blocker, pool = ray.remote(num_cpus=1)(block).remote(), RayPool(ray)
        later = ray.remote(num_cpus=1)(lambda _: None)
        counts, spent = (64, 1000, 4000, 16000), []
        for count in counts:
            while len(pool) < count:
                pool._running[later.remote(blocker)] = None, Ask()

            def look() -> None:
                pool._running[ray.put((None, ""))] = None, Ask()
                if len(pool.finished()) != 1:
                    raise SystemExit("one task was finished")

            spent.append(cpu_s(look, 15))
        ray.cancel(blocker, force=True)
    slope = float(np.polyfit(counts, spent, 1)[0])
    return per_task, max(slope, 0.0)


def measure_child(repeats: int = 10) -> float:
    """Seconds of an empty child of the fork server."""
    measure_start()
    spent = [measure_start() for _ in range(repeats)]
    close_servers()
    return statistics.median(spent)


def calibrate(species: list[Species], smiles_s: float) -> Calibration:
    """Measure everything; a minute."""
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
        prepare_s=measure_prepare(species),
        child_start_s=measure_child(),
        **measure_store(),  # type: ignore[arg-type]
    )


def approved_drugs() -> tuple[list[Species], int, float]:
    """Unique molecules, rows of the table, seconds per SMILES."""
    table = pd.read_parquet(data_root() / "molecules" / "chembl_approved_drugs.parquet")
    found: dict[Species, None] = {}
    start = time.process_time()
    for smiles in table["smiles"]:
        try:
            found[species_from_smiles(smiles)] = None
        except MedrecError:
            continue
    spent = (time.process_time() - start) / len(table)
    return list(found), len(table), spent
