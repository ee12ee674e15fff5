"""Time training epochs of PyHealth 2.1 on an exported cohort, in PyHealth's own environment.

Nothing of medrec is imported: this file runs with the interpreter that ``setup.sh`` makes. The
folder holds ``visits.parquet`` (``patient``, ``visit``, ``diagnoses``, ``procedures``, ``drugs``,
``part``), ``molecules.parquet`` (``atc``, ``smiles``) and ``ddi.parquet`` (``atc_a``, ``atc_b``).
Each model runs in a fresh process, so that its peak memory and its random state are its own.
What is replaced in PyHealth, and why an epoch costs the same, is listed in ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pyhealth_cohort import PARTS, atoms_of, read_cohort, samples_of, supply_code_maps

MODELS = ("SafeDrug", "MoleRec", "RETAIN", "Transformer", "RNN", "GAMENet", "MICRON")
THRESHOLDS = (0.5, 0.3)
DISTURBED = 0.1  # share of a core that others may use before a figure counts as disturbed
CLOCK_TICKS_S = 0.05  # the kernel counts in ticks of 0.01 s per core
INPUTS = {
    "conditions": "nested_sequence",
    "procedures": "nested_sequence",
    "drugs_hist": "nested_sequence",
}


class Stopwatch:
    """Wall and CPU seconds of this process, all its threads together, since `start`.

    Also the CPU seconds that everything else on the machine used meanwhile. With several threads
    and busy neighbours, OpenMP's waiting loops add to CPU seconds as well as to wall seconds, by
    ten times and more, so such a figure must not be used; `disturbed` says so.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self.wall, self.cpu, self.machine = time.perf_counter(), cpu_seconds(), machine_seconds()

    def read(self) -> dict[str, Any]:
        """Seconds since the last `start`."""
        wall, cpu = time.perf_counter() - self.wall, cpu_seconds() - self.cpu
        others = max(0.0, machine_seconds() - self.machine - cpu)
        return {
            "wall_s": round(wall, 4),
            "cpu_s": round(cpu, 4),
            "others_cpu_s": round(others, 2),
            "disturbed": others > DISTURBED * wall + CLOCK_TICKS_S,
        }


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def machine_seconds() -> float:
    """Busy seconds of all cores, time taken by other virtual machines included (Linux)."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the exported cohort")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--max-batches", type=int, help="stop an epoch early and scale its seconds up"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--storage",
        choices=("memory", "disk"),
        default="memory",
        help="PyHealth's in-memory samples, or its disk cache (the cache costs more per epoch)",
    )
    parser.add_argument("--skip-validation", action="store_true", help="time training only")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    for name in ("epochs", "threads", "batch_size", "max_batches"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
    return chosen


def declare_vision_operators() -> object:
    """Let torchvision's Python code be imported where its compiled operators do not load.

    PyHealth imports torchvision for its image models. The registry's build of it needs CUDA; next
    to a CPU build of PyTorch only these two declarations are missed. No model here calls them.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def seed_all(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - PyHealth may draw from the global generator
    torch.manual_seed(seed)


def jaccard(true: Any, prob: Any, patients: list[str], threshold: float) -> float:
    """Jaccard of {p >= threshold}: mean over a patient's visits, then over patients.

    Parameters
    ----------
    true, prob : ndarray, shape (visits, drugs)
        Labels of 0 and 1; predicted probabilities.
    patients : list of str
        Patient of each visit.
    """
    import numpy as np

    truth, chosen = true > 0.5, prob >= threshold
    hit, union = (truth & chosen).sum(1), (truth | chosen).sum(1)
    score = np.where(union > 0, hit / np.maximum(union, 1), 1.0)  # two empty sets agree
    _, index = np.unique(patients, return_inverse=True)
    return float((np.bincount(index, score) / np.bincount(index)).mean())


def validation_scores(trainer: Any, loader: Any) -> dict[str, Any]:
    watch = Stopwatch()
    true, prob, loss, patients = trainer.inference(loader, return_patient_ids=True)
    scores: dict[str, Any] = {"loss": float(loss), "visits": len(true)}
    scores["patients"] = len(set(patients))
    for threshold in THRESHOLDS:
        scores[f"jaccard_at_{threshold}"] = jaccard(true, prob, patients, threshold)
        scores[f"drugs_at_{threshold}"] = float((prob >= threshold).sum(1).mean())
    return {**scores, **watch.read()}


def prepare(chosen: argparse.Namespace) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """PyHealth's sample dataset, its loaders, and what making them took."""
    from pyhealth.datasets import create_sample_dataset, get_dataloader

    cohort = read_cohort(chosen.folder)
    supply_code_maps(cohort["smiles"], cohort["pairs"])
    seed_all(chosen.seed)
    watch = Stopwatch()
    samples, parts = samples_of(cohort["visits"])
    dataset = create_sample_dataset(
        samples=samples,
        input_schema=dict(INPUTS),
        output_schema={"drugs": "multilabel"},
        dataset_name="exported",
        task_name="drug_recommendation",
        in_memory=chosen.storage == "memory",
    )
    train, validation = (dataset.subset(parts[part]) for part in PARTS[:2])
    size = chosen.batch_size
    loaders = {
        "train": get_dataloader(train, batch_size=size, shuffle=True, seed=chosen.seed),
        "validation": get_dataloader(validation, batch_size=size, shuffle=False),
    }
    labels = dataset.output_processors["drugs"].label_vocab
    facts = {
        **watch.read(),
        "peak_mib": peak_mib(),
        "samples": {part: len(rows) for part, rows in parts.items()},
        "patients": len(dataset.patient_to_index),
        "vocabulary": {
            **{key: len(dataset.input_processors[key].code_vocab) - 2 for key in INPUTS},
            "drugs": len(labels),
        },
        "classes_with_molecule": len(set(labels) & set(cohort["smiles"])),
        "atoms": atoms_of(cohort["smiles"], set(labels)),
        "ddi_pairs": len(cohort["pairs"]),
    }
    return dataset, loaders, facts


def epochs_of(chosen: argparse.Namespace, model: Any, loaders: dict[str, Any]) -> list[dict]:
    """Train with PyHealth's Trainer; one row of figures an epoch.

    The Trainer calls `evaluate` once after each training epoch and at no other time, so the clock
    is read there. Its evaluation is replaced by ours and left out of the epoch's seconds.
    """
    from pyhealth.trainer import Trainer

    full = len(loaders["train"])
    steps = min(chosen.max_batches or full, full)
    trainer = Trainer(model=model, device="cpu", enable_logging=False)
    rows: list[dict] = []
    watch = Stopwatch()

    def after_epoch(loader: Any) -> dict:
        row: dict[str, Any] = {"epoch": len(rows), **watch.read()}
        row |= {"batches": steps, "batches_full": full, "extrapolated": steps < full}
        row["wall_s_full"] = round(row["wall_s"] * full / steps, 3)
        row["cpu_s_full"] = round(row["cpu_s"] * full / steps, 3)
        row["validation"] = None if chosen.skip_validation else validation_scores(trainer, loader)
        rows.append(row)
        watch.start()
        return {}

    trainer.evaluate = after_epoch
    trainer.train(
        loaders["train"], loaders["validation"], epochs=chosen.epochs, steps_per_epoch=steps
    )
    return rows


def work(chosen: argparse.Namespace) -> dict[str, Any]:
    """Prepare, build and train the one model of this process."""
    library = declare_vision_operators()
    import torch

    torch.set_num_threads(chosen.threads)
    torch.set_num_interop_threads(1)
    import pyhealth
    import pyhealth.models

    logging.getLogger("pyhealth").setLevel(logging.WARNING)
    imported = peak_mib()
    dataset, loaders, preparation = prepare(chosen)
    (name,) = chosen.models
    seed_all(chosen.seed)
    watch = Stopwatch()
    model = getattr(pyhealth.models, name)(dataset)
    construction = watch.read()
    rows = epochs_of(chosen, model, loaders)
    del library
    return {
        "status": "ok",
        "samples_per_epoch": preparation["samples"]["train"],
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "preparation": preparation,
        "construction": construction,
        "epochs": rows,
        "peak_mib": peak_mib(),
        "peak_mib_after_import": imported,
    }


def versions() -> dict[str, Any]:
    from importlib.metadata import version

    names = ("pyhealth", "torch", "torchvision", "numpy", "rdkit", "ogb", "litdata", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def run_model(name: str, chosen: argparse.Namespace, home: str) -> dict[str, Any]:
    """One model in a process of its own, whose home folder takes PyHealth's global cache files."""
    result = Path(home) / f"{name}.json"
    command = [sys.executable, __file__, str(chosen.folder), "--worker", "--models", name]
    for option in ("epochs", "threads", "batch_size", "max_batches", "seed", "storage"):
        if (value := getattr(chosen, option)) is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    command += ["--skip-validation"] if chosen.skip_validation else []
    limits = {key: str(chosen.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    seeded = {"PYTHONHASHSEED": str(chosen.seed), "TQDM_DISABLE": "1", "HOME": home}
    done = subprocess.run(
        [*command, "--out", str(result)],
        env={**os.environ, **limits, **seeded},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not result.is_file():
        return {"status": "failed", "exit": done.returncode, "error": done.stderr[-2000:]}
    return json.loads(result.read_text())


def report(name: str, figures: dict[str, Any]) -> None:
    if figures["status"] != "ok":
        print(f"{name:12s} failed: {figures['error'].strip().splitlines()[-1:]}", flush=True)
        return
    for row in figures["epochs"]:
        scores = row["validation"] or {}
        print(
            f"{name:12s} epoch {row['epoch']}: {row['wall_s_full']:8.2f} s wall"
            f" {row['cpu_s_full']:8.2f} s CPU{' (extrapolated)' if row['extrapolated'] else ''}"
            f"{' DISTURBED' if row['disturbed'] else ''}"
            f" peak {figures['peak_mib']:.0f} MiB"
            + "".join(f" {key} {scores[key]:.4f}" for key in scores if key.startswith("jacc")),
            flush=True,
        )


def main() -> int:
    chosen = arguments()
    if chosen.worker:
        chosen.out.write_text(json.dumps(work(chosen)))
        return 0
    read_cohort(chosen.folder)
    results = {}
    with tempfile.TemporaryDirectory() as home:
        for name in chosen.models:
            results[name] = run_model(name, chosen, home)
            report(name, results[name])
    settings = {key: value for key, value in vars(chosen).items() if key != "worker"}
    record = {
        "peer": "PyHealth",
        "versions": versions(),
        "cores": os.cpu_count(),
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()},
        "optimiser": "the Trainer's default: Adam, learning rate 1e-3, no weight decay",
        "jaccard": "per visit, mean in patient, mean over patients",
        "models": results,
    }
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(figures["status"] != "ok" for figures in results.values()))


if __name__ == "__main__":
    sys.exit(main())
