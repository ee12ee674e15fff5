"""Compute ``data/atlas``: the standard level for the drugs of the demo cohorts.

    python tools/build_atlas.py [HOME]

Prepares both demo cohorts, runs ``configs/quantum/atlas.yaml`` over their molecules (what HOME
holds is not computed again), and puts the exported table into ``data/atlas`` beside its notice.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from medrec.config import CohortConfig, FeatureRunConfig
from medrec.loading import load_config
from medrec.runs import Home
from orchestration.console import Terminal
from orchestration.stages import Stages

ROOT = Path(__file__).resolve().parents[1]
COHORTS = ("mimic4_demo_strict", "mimic3_demo_strict")
FILES = (
    "manifest.json",
    "species.parquet",
    "elf_features.npy",
    "elf_mask.npy",
    "elf_volumes.npz",
    "conformers.npz",
)


def main() -> None:
    """Compute and copy."""
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "medrec-work"
    stages = Stages(Home(home), Terminal())
    folder = ROOT / "configs" / "data"
    cohorts = [
        stages.prepare(load_config(folder / f"{name}.yaml", CohortConfig)) for name in COHORTS
    ]
    config = load_config(ROOT / "configs" / "quantum" / "atlas.yaml", FeatureRunConfig)
    table = stages.run_features(config, cohorts, retry=("transient",))
    stages.show_features(table)
    target = ROOT / "data" / "atlas"
    target.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(table.folder / name, target / name)
    size = sum((target / name).stat().st_size for name in FILES) / 1e6
    print(f"{target.relative_to(ROOT)}: {size:.1f} MB")


if __name__ == "__main__":
    main()
