"""`medrec features`: the molecules of a cohort through conformer, SCF, ELF and features.

Every molecule gets a conformer. SCF and ELF are for those that the budget selects, cheapest first,
by prediction and not by clock, so that the same request selects the same molecules everywhere. The
others stay without: the exported table has a mask, and models have a learned vector for them. How
the work is cut is in `orchestration.graph`, how it is driven in `orchestration.precompute`.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from medrec.config import FeatureRunConfig
from medrec.data.cohort import Cohort
from medrec.data.schema import Vocabulary, data_root
from medrec.molecules.drugs import build_drug_molecules
from medrec.runs import Home
from orchestration.cluster import ADDRESS_VARIABLE, check_shared, cluster_slots, ensure_ray
from orchestration.console import Terminal
from orchestration.drivers import driver_name, term_is_interruption
from orchestration.graph import Backlog, conformer_batches, pieces_of
from orchestration.head import check_head
from orchestration.ledger import LEDGER, Ledger
from orchestration.nodes import NodeRoster, check_nodes
from orchestration.precompute import ATTEMPTS, Driver, with_history
from orchestration.tally import Settings, Tally, explain
from orchestration.tasks import MIB, Ask, RayPool
from quantum.base import MedrecError, ResourceError
from quantum.cost import n_basis_functions, predicted_cpu_s, select_within_budget
from quantum.export import Atlas, export_features
from quantum.molecule import Species
from quantum.pipeline import Task, plan, status, wanted
from quantum.store import StoreLike, is_url

# demand that a cluster which grows sees, so that it need not grow in many small steps
_WINDOW_WHEN_GROWING = 2048
_LOOK_EVERY_S = 5.0
_SAY_AFTER_S, _GIVE_UP_S = 120.0, 1800.0
ATLAS = "atlas"  # folder of the shipped feature table, under the data root


def cohort_species(cohorts: Sequence[Cohort]) -> tuple[Species, ...]:
    """Unique molecules of all drug classes of some cohorts."""
    found: dict[Species, None] = {}
    for cohort in cohorts:
        drugs = Vocabulary(tuple(cohort.drugs["atc"]))
        found |= dict.fromkeys(build_drug_molecules(cohort, drugs).species)
    return tuple(found)


def load_atlas(config: FeatureRunConfig) -> Atlas:
    """The shipped feature table, or an empty one."""
    folder = data_root() / ATLAS
    if config.atlas == "none" or not folder.exists():
        return Atlas.empty()
    return Atlas.load(folder)


def make_tasks(
    config: FeatureRunConfig, species: tuple[Species, ...], atlas: Atlas
) -> tuple[list[Task], list[Task]]:
    """Full tasks for those within the budget (largest first), conformer tasks for the others.

    What the atlas holds costs nothing and is not computed.
    """
    spec = config.pipeline
    others = [item for item in species if plan(item, spec)["features"] not in atlas.vectors]
    chosen = select_within_budget(
        others, spec.calculation, config.scf_budget_cpu_s, config.max_atoms
    )
    within = set(chosen)
    conformers = [
        Task(species=item, spec=spec, stages=("conformer",))
        for item in species
        if item not in within and plan(item, spec)["conformer"] not in atlas.conformers
    ]
    return conformers, [Task(species=item, spec=spec) for item in chosen]


def run_features(
    config: FeatureRunConfig,
    cohorts: Sequence[Cohort],
    home: Home,
    terminal: Terminal,
    retry: tuple[str, ...] = (),
    workers: int | None = None,
    export_every_s: float | None = None,
) -> Path:
    """Compute what is missing and export the table.

    Parameters
    ----------
    retry : tuple of str
        Kinds of recorded failures to try again.
    workers : int, optional
        Cores of a local cluster.
    export_every_s : float, optional
        Also export what is there while the work goes on, under the name ``NAME_partial``.

    Returns
    -------
    Path
        Folder of the exported table. Ray starts only if there is work.
    """
    species, atlas = cohort_species(cohorts), load_atlas(config)
    store = home.open_store()
    export = partial(export_features, species, config.pipeline, store, home.features)
    partly = PartialExport(export, config.name, atlas, export_every_s, terminal)
    compute(config, make_tasks(config, species, atlas), home, terminal, retry, workers, partly)
    folder = export(config.name, atlas)
    partly.close()
    return folder


def export_now(config: FeatureRunConfig, cohorts: Sequence[Cohort], home: Home) -> Path:
    """Export what the store holds; nothing is computed."""
    species = cohort_species(cohorts)
    atlas, store = load_atlas(config), home.open_store()
    return export_features(species, config.pipeline, store, home.features, config.name, atlas)


def compute(
    config: FeatureRunConfig,
    tasks: tuple[list[Task], list[Task]],
    home: Home,
    terminal: Terminal,
    retry: tuple[str, ...] = (),
    workers: int | None = None,
    on_tick: Callable[[], None] = lambda: None,
) -> Tally:
    """Work on tasks for conformers and full tasks until each is done or has failed for good."""
    store = home.open_store()
    conformers, full = (wanted(part, store, retry, ATTEMPTS) for part in tasks)
    for label, left, part in zip(
        ("conformers alone", "DFT and ELF"), (conformers, full), tasks, strict=True
    ):
        if part:
            present = len(part) - len(left)
            terminal.say(f"{label}: {present} of {len(part)} present or failed before")
    if not conformers and not full:
        return Tally()
    _say_estimate(config, full, terminal)
    ray = ensure_ray(workers)
    if not is_url(store.location):
        check_shared(ray, Path(store.location))
    machines, pool = Machines(ray, config), RayPool(ray)
    watch = Watch(machines, pool, config, store, terminal, on_tick)
    ledger = Ledger(home.root / LEDGER, driver_name())
    batches = conformer_batches(conformers, config.resources, cluster_slots(ray, 1))
    make = partial(pieces_of, limits=config.resources)
    backlog = Backlog(batches, full, with_history(make, ledger, config.resources, retry))
    settings = Settings(
        limits=config.resources,
        window=machines.window,
        most_memory_mb=machines.most_memory_mb,
        retry=retry,
        grace_s=config.interrupt_grace_s,
    )
    try:
        with terminal.progress("molecules", len(full) + len(conformers)) as step:
            driver = Driver(
                pool,
                store,
                ledger,
                settings,
                terminal.say,
                on_step=lambda tally, note: step.at(tally.finished, tally.total, _note(tally)),
                on_tick=watch,
            )
            with term_is_interruption():
                tally = driver.run(backlog)
    finally:
        ledger.close()
    for line in explain(tally):
        terminal.warn(line) if not line.startswith(" ") else terminal.say(line)
    return tally


def _note(tally: Tally) -> str:
    """Failures so far by kind."""
    kinds: Counter[str] = Counter()
    for (_, kind), count in tally.failed.items():
        kinds[kind] += count
    return ", ".join(f"{count} failed: {kind}" for kind, count in sorted(kinds.items()))


def _say_estimate(config: FeatureRunConfig, tasks: list[Task], terminal: Terminal) -> None:
    """Say what the open calculations will cost, before they start."""
    if not tasks:
        return
    costs = [predicted_cpu_s(task.species, config.pipeline.calculation) for task in tasks]
    sizes = [n_basis_functions(task.species) for task in tasks]
    terminal.say(
        f"DFT and ELF: {len(tasks)} molecules of {min(sizes)} to {max(sizes)} basis functions "
        f"(counted as def2-SVP), about {sum(costs) / 60:.1f} CPU minutes, largest first"
    )


class Machines:
    """What a cluster can hold, asked again as it grows.

    Parameters
    ----------
    ray : module
        Initialised.
    """

    def __init__(self, ray: Any, config: FeatureRunConfig) -> None:
        self.ray, self.config = ray, config
        self.is_local = ADDRESS_VARIABLE not in os.environ

    def _nodes(self) -> list[dict[str, float]]:
        alive = (node["Resources"] for node in self.ray.nodes() if node["Alive"])
        return [resources for resources in alive if resources.get("CPU")]

    def window(self) -> int:
        """Pieces in flight at most: what is running, and as much again so that nobody waits.

        A joined cluster may be one that grows on demand, so it sees more demand than it has room.
        """
        if self.config.max_in_flight is not None:
            return self.config.max_in_flight
        twice = 2 * cluster_slots(self.ray, 1)
        return max(4, twice) if self.is_local else max(_WINDOW_WHEN_GROWING, twice)

    def unmet(self, asks: Collection[Ask]) -> str | None:
        """Why no machine can ever take any of these; None if one can take one of them."""
        nodes = self._nodes()
        for ask in asks:
            wanted = {"CPU": ask.cpus, "memory": ask.memory_mb * MIB}
            if any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
                return None
        if not asks:
            return None
        least = min(asks, key=lambda ask: (ask.cpus, ask.memory_mb))
        most = max((node["CPU"] for node in nodes), default=0)
        memory = self.most_memory_mb() or 0
        return (
            f"no machine can run a task of {least.cpus:g} CPU and {least.memory_mb:,.0f} MB; "
            f"the largest of {len(nodes)} has {most:g} CPU and {memory:,.0f} MB"
        )

    def most_memory_mb(self) -> float | None:
        """Memory of the largest machine; None while there is none."""
        return max((r.get("memory", 0) / MIB for r in self._nodes()), default=None)


class Watch:
    """Looks at the nodes and the head of a joined cluster while work goes on.

    Raises
    ------
    MedrecError
        When made: if the nodes cannot do this work, see `orchestration.nodes.check_nodes`.
    """

    def __init__(
        self,
        machines: Machines,
        pool: RayPool,
        config: FeatureRunConfig,
        store: StoreLike,
        terminal: Terminal,
        then: Callable[[], None],
    ) -> None:
        self.machines, self.pool, self.terminal, self.then = machines, pool, terminal, then
        self._looked, self._unmet_since, self._was_said = -1e9, -1.0, False
        self._roster: NodeRoster | None = None
        if not machines.is_local:
            need_psi4 = config.pipeline.calculation.backend == "psi4"
            folder = None if is_url(store.location) else Path(store.location)
            self._roster = check_nodes(machines.ray, need_psi4, folder)
            for facts in self._roster.facts.values():
                reason = self._roster.complaint(facts)
                if reason:
                    terminal.warn(f"no work for node {facts.name}: {reason}")
            pool.exclude(self._roster.excluded)

    def __call__(self) -> None:
        """Take what nodes that joined have answered; stop if the head or all machines are lost.

        Raises
        ------
        TransientError
            If the head is lost.
        ResourceError
            If no machine can ever do the work, and none came for half an hour.
        """
        check_head()
        if time.monotonic() - self._looked > _LOOK_EVERY_S:
            self._looked = time.monotonic()
            if self._roster is not None:
                for line in self._roster.update():
                    self.terminal.warn(line)
                self.pool.exclude(self._roster.excluded)
            self._look_for_machines()
        self.then()

    def _look_for_machines(self) -> None:
        unmet, now = self.machines.unmet(self.pool.asks), time.monotonic()
        if unmet is None:
            self._unmet_since, self._was_said = -1.0, False
            return
        if self._unmet_since < 0:
            self._unmet_since = now
        waited = now - self._unmet_since
        if self.machines.is_local or waited > _GIVE_UP_S:
            raise ResourceError(unmet)
        if waited > _SAY_AFTER_S and not self._was_said:
            self._was_said = True
            self.terminal.warn(f"{unmet}; waiting for one")


class PartialExport:
    """Exports what the store holds every so often, beside the work.

    Parameters
    ----------
    export : callable
        Takes a name and an atlas, returns a folder.
    """

    def __init__(
        self,
        export: Callable[[str, Atlas], Path],
        name: str,
        atlas: Atlas,
        every_s: float | None,
        terminal: Terminal,
    ) -> None:
        self.export, self.name, self.atlas = export, f"{name}_partial", atlas
        self.every_s, self.terminal = every_s, terminal
        self._last, self._thread = time.monotonic(), threading.Thread()
        self.folder: Path | None = None

    def __call__(self) -> None:
        """Start an export if it is time and none is under way."""
        if self.every_s is None or self._thread.is_alive():
            return
        if time.monotonic() - self._last < self.every_s:
            return
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            folder = self.export(self.name, self.atlas)
        except (MedrecError, OSError) as error:
            self.terminal.warn(f"no partial export: {error}")
            return
        if self.folder not in (None, folder):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = folder
        self.terminal.say(f"exported what is there: {folder.name}")

    def close(self) -> None:
        """Wait for an export under way and remove it: the whole one is there."""
        if self._thread.is_alive():
            self._thread.join()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def feature_status(config: FeatureRunConfig, cohorts: Sequence[Cohort], home: Home) -> pd.DataFrame:
    """Present, failed by kind and missing, per stage; the atlas' molecules are not counted."""
    conformers, full = make_tasks(config, cohort_species(cohorts), load_atlas(config))
    return status([*full, *conformers], home.open_store())
