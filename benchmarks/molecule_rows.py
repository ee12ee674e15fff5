"""Models of the molecular benchmarks, and the runs behind one table.

Every row is pre-trained (or not) and fine-tuned by the same engine with the same sizes, molecules,
batches and epochs: an equal budget of molecules seen. Runs are found by name when they exist, so an
interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIMPLE = {"kind": "predict", "terms": ["distance", "spd"]}


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Parameters
    ----------
    pretraining : dict or None
        Task of the pre-training, and the encoder that does it where it is another one than that
        which is fine-tuned.
    sizes : dict
        Of the network, where they are not those of the table.
    """

    name: str
    encoder: str
    modality: str
    pretraining: dict[str, Any] | None = None
    pretraining_encoder: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)


def rows(modality: str) -> tuple[Row, ...]:
    """Rows of a table; ``modality`` is ``both`` (2D and 3D input) or ``2d``."""
    towers = "two_towers" if modality == "both" else "gine"
    contrast: dict[str, Any] = {"kind": "contrastive", "loss": "nt_xent"}
    found = [
        Row("MolInteract, L_All", "molinteract", modality, {"kind": "predict"}),
        Row("MolInteract, L_Simple", "molinteract", modality, SIMPLE),
        Row("MolInteract, no pre-training", "molinteract", modality),
        Row("contrastive, NT-Xent (BiMoRec, 3D InfoMax)", towers, modality, contrast, "two_towers"),
        Row(
            "contrastive, InfoNCE",
            towers,
            modality,
            {"kind": "contrastive", "loss": "infonce"},
            "two_towers",
        ),
        Row("attribute masking (GINE)", "gine", "2d", {"kind": "masking"}),
        Row("GINE alone", "gine", "2d"),
    ]
    if modality == "both":
        found += [
            Row("GINE and SchNet side by side", "two_towers", "both"),
            Row("SchNet alone", "schnet", "3d"),
            # at the sizes of the others it takes ten times their time
            Row("ViSNet, d 64, 2 layers", "visnet", "3d", sizes={"d_model": 64, "layers": 2}),
        ]
    return tuple(found)


@dataclass
class Plan:
    """What all runs of a table share.

    Parameters
    ----------
    encoder : dict
        Sizes of the networks.
    pretraining : dict
        Fields of `MoleculePretrainConfig` other than name, encoder and task.
    processes : int
        Runs at a time, each with an equal share of the cores.
    """

    home: Path
    encoder: dict[str, Any]
    pretraining: dict[str, Any]
    processes: int = 2
    runs: dict[str, str] = field(default_factory=dict)

    def pretrain(self, table: Sequence[Row], library: Path) -> None:
        """Pre-train what the rows ask for; each task once."""
        jobs = {}
        for row in table:
            if row.pretraining is not None:
                kind = row.pretraining_encoder or row.encoder
                task = {
                    "name": slug(row.name),
                    "encoder": {**self.encoder, "kind": kind},
                    "task": row.pretraining,
                    **self.pretraining,
                }
                jobs[row.name] = ("pretrain", task, str(library), None)
        self.runs.update(self.execute(jobs))

    def finetune(
        self, table: Sequence[Row], library: Path, settings: dict[str, Any], seeds: Sequence[int]
    ) -> dict[str, list[str]]:
        """Run names of every row, one for each seed."""
        jobs = {}
        for row in table:
            for seed in seeds:
                task = {
                    **settings,
                    "name": slug(row.name),
                    "encoder": {
                        **self.encoder,
                        **settings.get("encoder", {}),
                        **row.sizes,
                        "kind": row.encoder,
                    },
                    "modality": row.modality,
                    "fit": {**settings["fit"], "seed": seed},
                }
                start = self.runs[row.name] if row.pretraining is not None else None
                jobs[(row.name, seed)] = ("property", task, str(library), start)
        done = self.execute(jobs)
        return {row.name: [done[row.name, seed] for seed in seeds] for row in table}

    def execute(self, jobs: dict[Any, tuple[str, dict[str, Any], str, str | None]]) -> Any:
        """Run jobs side by side; returns names of runs by the jobs' keys."""
        threads = max(1, len(os.sched_getaffinity(0)) // self.processes)
        context = multiprocessing.get_context("spawn")
        done, begin = {}, time.perf_counter()
        with ProcessPoolExecutor(
            self.processes, context, initializer=set_threads, initargs=(threads,)
        ) as pool:
            waiting = {pool.submit(run_one, str(self.home), *job): key for key, job in jobs.items()}
            for future in as_completed(waiting):
                done[waiting[future]], seconds = future.result()
                print(
                    f"{len(done)}/{len(jobs)} {waiting[future]}: {seconds:.0f} s "
                    f"(in all {time.perf_counter() - begin:.0f} s)",
                    flush=True,
                )
        return done


def pretraining_fit(epochs: int, molecules: int, precision: str) -> dict[str, Any]:
    """Settings of a pre-training, the same for all tasks."""
    batch = 128
    return {
        "epochs": epochs,
        "batch_size": batch,
        "lr": 3e-4,
        "warmup_steps": warmup(epochs, molecules, batch),
        "precision": precision,
    }


def warmup(epochs: int, molecules: int, batch: int) -> int:
    """A twentieth of all steps."""
    return epochs * -(-molecules // batch) // 20


def slug(name: str) -> str:
    """Name of a run: letters, digits, underscores."""
    kept = "".join(letter if letter.isalnum() else "_" for letter in name.lower())
    return "_".join(part for part in kept.split("_") if part)


def set_threads(threads: int) -> None:
    """Give a process its share of the cores."""
    import torch

    torch.set_num_threads(threads)


def run_one(
    home: str, kind: str, task: dict[str, Any], library: str, start: str | None
) -> tuple[str, float]:
    """Do one run in this process; returns its name and how long it took."""
    from medrec.config import MoleculePretrainRunConfig, PropertyRunConfig
    from medrec.library.arrays import MoleculeLibrary
    from medrec.runs import Home
    from orchestration.fits import run_fit
    from orchestration.molecules import find_run

    place = Home(Path(home))
    settings = MoleculePretrainRunConfig if kind == "pretrain" else PropertyRunConfig
    config = settings.model_validate({"task": task, "scaling": {"num_workers": 1}})
    begin = time.perf_counter()
    first = None if start is None else find_run(place, start)
    run = run_fit(config, MoleculeLibrary.load(Path(library)), place, first)
    return run.name, time.perf_counter() - begin


def frames(home: Path, names: dict[str, list[str]], file: str) -> dict[str, list[Any]]:
    """A table of every run, by row."""
    import pandas as pd

    return {
        row: [pd.read_parquet(home / "runs" / name / file) for name in own]
        for row, own in names.items()
    }


def metrics(home: Path, names: dict[str, list[str]]) -> dict[str, list[Any]]:
    """Numbers of every epoch, by row."""
    from medrec.runs import Run

    return {
        row: [Run.load(home / "runs" / name).metrics() for name in own]
        for row, own in names.items()
    }


def plain(frame: Any) -> list[dict[str, Any]]:
    """Rows of a table for a result file, in which a missing number is null."""
    return frame.round(5).astype(object).where(frame.notna(), None).to_dict("records")


def library_of(name: str, home: Path, **changes: Any) -> Path:
    """Folder of a library: found, or imported from the files that ``changes`` name."""
    from medrec.config import LibraryConfig
    from medrec.loading import load_config
    from medrec.runs import Home
    from orchestration.console import Terminal
    from orchestration.molecules import import_molecules

    path = Path(__file__).parent.parent / f"configs/molecules/{name}.yaml"
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    config = load_config(path, LibraryConfig, overrides)
    return import_molecules(config, Home(home), Terminal(), workers=None).folder
