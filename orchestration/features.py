"""`medrec features`: the molecules of a cohort through conformer, SCF, ELF and features.

Every molecule gets a conformer. SCF and ELF are for those that the budget selects, cheapest first,
by prediction and not by clock, so that the same request selects the same molecules everywhere. The
others stay without: the exported table has a mask, and models have a learned vector for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from medrec.config import FeatureRunConfig
from medrec.data.cohort import Cohort
from medrec.data.schema import Vocabulary, data_root
from medrec.molecules.drugs import build_drug_molecules
from medrec.runs import Home
from orchestration.cluster import check_shared, ensure_ray
from orchestration.console import Terminal
from orchestration.tasks import RayExecutor
from quantum.child import run_in_child
from quantum.cost import n_basis_functions, predicted_cpu_s, select_within_budget
from quantum.export import Atlas, export_features
from quantum.molecule import Species
from quantum.pipeline import Outcome, Task, compute_features, plan, run_many, status, wanted
from quantum.schema import Resources
from quantum.store import Store

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
    """Conformer tasks for all, full tasks for those within the budget (largest first).

    What the atlas holds costs nothing and is not computed.
    """
    spec = config.pipeline
    conformers = [
        Task(species=item, spec=spec, stages=("conformer",))
        for item in species
        if plan(item, spec)["conformer"] not in atlas.conformers
    ]
    others = [item for item in species if plan(item, spec)["features"] not in atlas.vectors]
    chosen = select_within_budget(
        others, spec.calculation, config.scf_budget_cpu_s, config.max_atoms
    )
    return conformers, [Task(species=item, spec=spec) for item in chosen]


def run_features(
    config: FeatureRunConfig,
    cohorts: Sequence[Cohort],
    home: Home,
    terminal: Terminal,
    retry: tuple[str, ...] = (),
    workers: int | None = None,
) -> Path:
    """Compute what is missing and export the table.

    Parameters
    ----------
    retry : tuple of str
        Kinds of recorded failures to try again.
    workers : int, optional
        Cores of a local cluster.

    Returns
    -------
    Path
        Folder of the exported table. Ray starts only if there is work.
    """
    species, atlas = cohort_species(cohorts), load_atlas(config)
    conformers, full = make_tasks(config, species, atlas)
    store = Store(home.store)
    in_process = partial(_in_process, root=home.store.resolve(), resources=config.resources)
    in_child = partial(run_in_child, store_root=home.store.resolve(), resources=config.resources)
    _run_phase("conformers", conformers, in_process, store, config, 1, terminal, retry, workers)
    threads = config.resources.threads
    _say_estimate(config, wanted(full, store, retry), terminal)
    _run_phase("DFT and ELF", full, in_child, store, config, threads, terminal, retry, workers)
    return export_features(species, config.pipeline, store, home.features, config.name, atlas)


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


def _in_process(task: Task, root: Path, resources: Resources) -> Outcome:
    return compute_features(task, Store(root), resources)


def _run_phase(
    label: str,
    tasks: list[Task],
    function: Callable[[Task], Outcome],
    store: Store,
    config: FeatureRunConfig,
    cpus: int,
    terminal: Terminal,
    retry: tuple[str, ...],
    workers: int | None,
) -> None:
    left = wanted(tasks, store, retry)
    terminal.say(f"{label}: {len(tasks) - len(left)} of {len(tasks)} present or failed before")
    if not left:
        return
    ray = ensure_ray(workers)
    check_shared(ray, store.root)
    executor = RayExecutor(ray, cpus, config.max_in_flight)
    with terminal.progress(label, len(left)) as step:
        outcomes = run_many(
            left, function, executor, lambda task, outcome: step.advance(task.species.formula)
        )
    failed = [item for item in outcomes if item.status == "failed"]
    for (stage, kind), count in sorted(Counter((f.stage, f.kind) for f in failed).items()):
        terminal.warn(f"{count} species failed at {stage or label}: {kind}")
    for outcome in failed[:3]:
        terminal.say(f"  for example: {outcome.message[:300]}")


def feature_status(config: FeatureRunConfig, cohorts: Sequence[Cohort], home: Home) -> pd.DataFrame:
    """Present, failed by kind and missing, per stage; the atlas' molecules are not counted."""
    conformers, full = make_tasks(config, cohort_species(cohorts), load_atlas(config))
    store = Store(home.store)
    within = {task.species.key for task in full}
    others = [task for task in conformers if task.species.key not in within]
    return status([*full, *others], store)
