"""Compute ``data/atlas``: the standard level for the drugs of the demo and the made-up cohorts.

    python tools/build_atlas.py [HOME]

Prepares the cohorts, runs ``configs/quantum/atlas.yaml`` over the molecules of the demo cohorts
and ``configs/quantum/atlas_made_up.yaml`` over those of the made-up ones, and puts one table of
all of them into ``data/atlas`` beside its notice. What HOME holds is not computed again, so an
interrupted run continues; ``data/atlas`` is replaced at the end, as a whole.
"""

from __future__ import annotations

import shutil
import sys
import uuid
from pathlib import Path

from medrec.config import CohortConfig, FeatureRunConfig
from medrec.config_data import SyntheticSource
from medrec.data.cohort import Cohort
from medrec.loading import load_config
from medrec.runs import Home
from orchestration.console import Terminal
from orchestration.stages import Stages
from quantum.base import ConfigError, ResourceError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
DEMOS = ("mimic4_demo_strict", "mimic3_demo_strict")
MADE_UP = "synthetic"
N_DRUGS = (24, 40, 131)  # sizes of the made-up cohorts of tests, benchmarks and configurations
LARGEST_MB = 14.0
FILES = (
    "manifest.json",
    "species.parquet",
    "elf_features.npy",
    "elf_mask.npy",
    "elf_volumes.npz",
    "conformers.npz",
)


def main() -> None:
    """Compute, export and publish."""
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "medrec-work"
    stages = Stages(Home(home), Terminal())
    demos = [
        stages.prepare(load_config(CONFIGS / "data" / f"{name}.yaml", CohortConfig))
        for name in DEMOS
    ]
    made_up = [_made_up(stages, n) for n in N_DRUGS]
    for name, cohorts in (("atlas", demos), ("atlas_made_up", made_up)):
        stages.run_features(_config(name), cohorts, retry=("transient",))
    nothing_more = _config("atlas").model_copy(update={"scf_budget_cpu_s": 0.0})
    table = stages.run_features(nothing_more, [*demos, *made_up])
    stages.show_features(table)
    publish(table.folder, ROOT / "data" / "atlas")


def _config(name: str) -> FeatureRunConfig:
    return load_config(CONFIGS / "quantum" / f"{name}.yaml", FeatureRunConfig)


def _made_up(stages: Stages, n_drugs: int) -> Cohort:
    """A small made-up cohort; its drug classes depend on their number alone."""
    config = load_config(CONFIGS / "data" / f"{MADE_UP}.yaml", CohortConfig)
    if not isinstance(config.source, SyntheticSource):
        raise ConfigError(f"{MADE_UP}.yaml has source '{config.source.format}', not synthetic")
    source = config.source.model_copy(update={"n_drugs": n_drugs})
    return stages.prepare(config.model_copy(update={"source": source}))


def publish(table: Path, target: Path) -> None:
    """Replace the table in ``target``, which keeps its notice and licence, all at once.

    Raises
    ------
    ResourceError
        If the table is larger than `LARGEST_MB`; ``target`` stays as it was.
    """
    size = sum((table / name).stat().st_size for name in FILES) / 1e6
    if size > LARGEST_MB:
        raise ResourceError(f"the atlas has {size:.1f} MB, expected at most {LARGEST_MB:g}")
    mark = uuid.uuid4().hex[:8]
    new, old = (target.with_name(f".{target.name}-{mark}.{end}") for end in ("new", "old"))
    shutil.copytree(target, new)
    for name in FILES:
        shutil.copyfile(table / name, new / name)
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old)
    print(f"{target.name}: {size:.1f} MB")


if __name__ == "__main__":
    main()
