"""Molecules per second of pre-training and fine-tuning, beside PyTorch Geometric.

The peer is MolInteract as one would write it with PyTorch Geometric (`peer_molinteract`), in
float32: (a) with the labels of a molecule made in Python when it is asked for, in this process or
in one loading process, whichever is faster; (b) with all labels kept in memory, so that only
collation and network are left. Ours runs through `medrec.pretrain.engine.fit`, in float32 and in
bfloat16 (matrix products only). The goal is three times (a), in the faster of our precisions; (b),
and (b) under bfloat16 autocast, stand beside it.

Every contestant lives in a process of its own, on the same molecules, batch size and threads. They
take turns: one pass over the molecules each, round after round; the first round is not counted, and
a rate is the median over the rounds. A pass counts from its start to the end of its last step:
planning, loading and waiting included.

With ``--device cuda`` a step is first compared with the CPU's (loss and gradients, float32), rates
at batch 1024 stand beside the paper's (3.38 million molecules in 17.8 minutes on one A100), and the
result is ``pretrain_throughput_gpu.json``. Without ``--library`` or ``--qm9`` it runs on the
committed fixture of a few hundred molecules.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import Figure, command_line, publish
from throughput_contest import (
    PAPER_BATCH,
    against_peer,
    loading,
    other_tasks,
    parity_figures,
    profiles_of,
)
from throughput_jobs import Job

FIXTURE = Path(__file__).parents[1] / "configs" / "molecules" / "fixture_qm9.yaml"
SMALL = (128, 4)


def make_library(chosen: argparse.Namespace, folder: Path) -> Path:
    """Folder of the given library, or of one imported for this run."""
    if chosen.library:
        return Path(chosen.library)
    from medrec.config_molecules import LibraryConfig, QM9Source
    from medrec.library.build import import_library
    from medrec.loading import load_config
    from medrec.runs import Home

    if chosen.qm9:
        spread = folder / "qm9.parquet"
        spread_rows(chosen.qm9, spread, chosen.n)
        config = LibraryConfig(name="bench_qm9", source=QM9Source(path=spread), hydrogens=True)
    else:
        config = load_config(FIXTURE, LibraryConfig)
    return import_library(config, Home(folder)).folder


def spread_rows(source: Path, target: Path, n: int) -> None:
    """Write n evenly spaced rows of a table: the first molecules of QM9 are its smallest."""
    import numpy as np
    from pyarrow import parquet

    table = parquet.read_table(source)
    rows = np.unique(np.linspace(0, len(table) - 1, min(n, len(table))).astype(np.int64))
    parquet.write_table(table.take(rows), target)


def facts_of(base: Job, rounds: int) -> dict[str, Any]:
    """What the rates refer to."""
    from medrec.library.arrays import MoleculeLibrary

    library = MoleculeLibrary.load(base.library)
    facts = {
        "library": library.name,
        "molecules": len(library),
        "atoms_per_molecule": round(float(library.n_atoms.mean()), 2),
        "hydrogens": library.hydrogens,
        "molecules_per_pass": base.batch * base.batches,
        "batch": base.batch,
        "rounds": rounds,
        "threads": base.threads,
        "device": base.device,
    }
    if base.device == "cuda":
        import torch

        facts["device"] = torch.cuda.get_device_name()
    return facts


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--library", type=Path, help="folder of an imported library with 3D")
    source.add_argument("--qm9", type=Path, help="QM9 as a Parquet file")
    parser.add_argument("--n", type=int, default=4_000, help="molecules of --qm9 to import")
    parser.add_argument("--d", type=int, default=300)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--no-small", action="store_true", help="leave d 128, 4 layers out")
    parser.add_argument("--peer-only", action="store_true", help="leave tasks without a peer out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="128 on a CPU, 1,024 on CUDA")
    parser.add_argument("--batches", type=int, help="of a pass; 2 on a CPU, 4 on CUDA")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--no-profile", action="store_true", help="leave shares of operators out")
    parser.add_argument("--no-save", action="store_true", help="print, write no result file")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    on_gpu = chosen.device == "cuda"
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            print("no GPU benchmark: PyTorch finds no CUDA device")
            raise SystemExit(3)
    with tempfile.TemporaryDirectory() as temporary:
        base = Job(
            library=make_library(chosen, Path(temporary)),
            d=chosen.d,
            layers=chosen.layers,
            batch=chosen.batch or (PAPER_BATCH if on_gpu else 128),
            batches=chosen.batches or (4 if on_gpu else 2),
            threads=chosen.threads,
            device=chosen.device,
        )
        measure(chosen, base)


def measure(chosen: argparse.Namespace, base: Job) -> None:
    rates: dict[str, Any] = {}
    rounds = chosen.rounds
    sizes = [base]
    if not chosen.no_small:
        sizes.append(replace(base, d=SMALL[0], layers=SMALL[1]))
    figures = parity_figures(base) if base.device == "cuda" else []
    for size in sizes:
        figures += against_peer(size, chosen.peer_workers, rounds, rates)
    if not chosen.peer_only:
        for size in sizes:
            figures += other_tasks(size, rounds, rates)
    figures += loading(base, rounds, rates)
    profiles = {} if chosen.no_profile else profiles_of(base)
    save(chosen, base, figures, {"runs": rates, "operators": profiles})


def save(
    chosen: argparse.Namespace, base: Job, figures: list[Figure], extra: dict[str, Any]
) -> None:
    """Publish the figures with settings, all rates and profiles."""
    facts = facts_of(base, chosen.rounds)
    print(json.dumps({"facts": facts, "operators": extra["operators"]}, indent=1))
    if chosen.no_save:
        for item in figures:
            print(item)
        return
    name = "pretrain_throughput_gpu" if base.device == "cuda" else "pretrain_throughput"
    publish(name, figures, command=command_line("pretrain_throughput"), facts=facts, **extra)


if __name__ == "__main__":
    main()
