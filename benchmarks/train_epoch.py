"""Training epochs of our models beside PyHealth 2.1's, on one synthetic cohort of MIMIC-III size.

Each model trains in a process of its own over the same training visits (about 10,000). Two threads
are free for either side: PyHealth runs with two, ours with what `medrec train` takes, which is one
(a second thread mostly waits). A second ratio has both on one thread. Seconds are those of
training; validation is not counted, and epochs during which the machine was busy with other things
are left out where there are others. After equal epochs the validation Jaccard stands beside the
peer's, both at the threshold 0.5 and with the field's average. The interaction loss is PyHealth's:
target 0.08 in SafeDrug and MoleRec, none in GAMENet.

PyHealth runs in its own environment: make it with ``benchmarks/peers/setup.sh FOLDER`` and set
``PEER_PYTHON=FOLDER/bin/python``. Without it the ratios refer to the figures that were recorded
before (``benchmarks/peers/recorded.json`` says how), and the table says so.

With ``--papers`` it measures BiMoRec, SCQMed and MMM instead, into ``train_epoch_papers.json``.
BiMoRec's peer is its original script: 2,950 CPU seconds and 11.9 GB for an epoch over 6,350
patients on two cores, extrapolated from 235 visits. Whether that meant all their 15,032 visits or
the training part of about 10,000 is open, so our seconds are scaled up to all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
THREADS = 2
PEER_NAMES = {
    "safedrug": "SafeDrug",
    "molerec": "MoleRec",
    "retain": "RETAIN",
    "gamenet": "GAMENet",
    "micron": "MICRON",
}
OVERRIDES = {
    "safedrug": ("loss.ddi_target=0.08",),
    "molerec": ("loss.ddi_target=0.08",),
    "gamenet": ("model.ddi_loss=shared", "loss.gate=none"),
}
PAPERS = ("bimorec", "scqmed", "mmm")
ORIGINAL_BIMOREC = {"cpu_s": 2950.0, "peak_mib": 11.9e9 / 2**20}
BIMOREC_GOAL, MEMORY_GOAL_MIB, EPOCH_GOAL_S = 50.0, 3e9 / 2**20, 10.0
GOALS = {"safedrug": 40.0, "molerec": 20.0, "retain": 5.0, "gamenet": 5.0}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def prepare(home_folder: Path) -> Any:
    from medrec.config import CohortConfig
    from medrec.data.cohort import prepare_cohort
    from medrec.loading import load_config
    from medrec.runs import Home

    config = load_config(HERE.parent / "configs/data/synthetic_mimic3.yaml", CohortConfig)
    return prepare_cohort(config, Home(home_folder))


def export(cohort: Any, folder: Path) -> None:
    """Write the cohort in the form that the peer's script reads."""
    part_of = {}
    for part, patients in cohort.split(0).parts().items():
        part_of |= dict.fromkeys(patients.tolist(), part)
    visits = cohort.visits
    visits.assign(part=visits["patient"].map(part_of)).to_parquet(folder / "visits.parquet")
    cohort.molecules[["atc", "smiles"]].to_parquet(folder / "molecules.parquet")
    pairs = cohort.ddi_pairs
    pairs = pairs[pairs["severity"] >= cohort.config.ddi.min_severity]
    pairs[["atc_a", "atc_b"]].to_parquet(folder / "ddi.parquet")


def work(name: str, epochs: int, home: Path) -> dict[str, Any]:
    """Train one model in this process."""
    import torch

    from medrec.config import TrainConfig
    from medrec.fitting import fit, fit_context
    from medrec.loading import load_config
    from medrec.models import build_model
    from medrec.models.base import Recommender
    from medrec.training import learning_data_of

    file = HERE.parent / f"configs/{'papers' if name in PAPERS else 'train'}/{name}.yaml"
    config = load_config(file, TrainConfig, OVERRIDES.get(name, ()))
    torch.set_num_threads(config.threads)
    optim = config.optim.model_copy(update={"epochs": epochs, "patience": epochs})
    config = config.model_copy(update={"optim": optim})
    cohort = prepare(home)
    data = learning_data_of(config, cohort, *extra_inputs(name, cohort, home))
    start = cpu_seconds()
    data = fit_context(config, data)
    context_s = cpu_seconds() - start
    torch.manual_seed(config.seed)
    model = build_model(config, data.context)
    assert isinstance(model, Recommender)
    rows: list[dict[str, Any]] = []
    clock = TrainingClock(model)

    def report(row: dict[str, Any], make_state: Any) -> None:
        rows.append({**row, **clock.read()})

    fit(config, data, model, report=report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "epochs": rows,
        "context_cpu_s": context_s,
        "peak_mib": round(peak, 1),
        "visits": data.dataset.n_visits(data.split.train),
        "config": config.model_dump(mode="json"),
    }


def extra_inputs(name: str, cohort: Any, home: Path) -> tuple[Any, Any]:
    """Feature table and concept table that a paper's system reads; found or made."""
    from medrec.config import ConceptConfig, FeatureRunConfig
    from medrec.loading import load_config
    from medrec.runs import Home
    from orchestration.console import Terminal
    from orchestration.stages import Stages

    stages = Stages(Home(home), Terminal(as_json=True, quiet=True))
    if name == "mmm":
        file = HERE.parent / "configs/quantum/conformers.yaml"
        return stages.run_features(load_config(file, FeatureRunConfig), [cohort]), None
    if name == "scqmed":
        file = HERE.parent / "configs/concepts/open.yaml"
        return None, stages.build_concepts(load_config(file, ConceptConfig), cohort)
    return None, None


class TrainingClock:
    """CPU and wall seconds between `begin_epoch` and the first prediction after it."""

    def __init__(self, model: Any) -> None:
        self.found: dict[str, float] = {}
        begin, predict = model.begin_epoch, model.predict

        def on_begin(epoch: int) -> None:
            self.cpu, self.wall = cpu_seconds(), time.perf_counter()
            self.found = {}
            begin(epoch)

        def on_predict(batch: Any) -> Any:
            if not self.found:
                self.found = {
                    "cpu_s": cpu_seconds() - self.cpu,
                    "wall_s": time.perf_counter() - self.wall,
                }
            return predict(batch)

        model.begin_epoch, model.predict = on_begin, on_predict

    def read(self) -> dict[str, float]:
        """Seconds of the epoch that ended."""
        return self.found


def in_process(name: str, epochs: int, home: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--epochs", str(epochs)]
    done = subprocess.run(
        [*command, "--home", str(home)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ask_peer(python: str, folder: Path, name: str, epochs: int) -> dict[str, Any]:
    """Run PyHealth on the exported cohort: all epochs on two threads, one epoch on one."""
    both = run_peer(python, folder, name, "--epochs", str(epochs), "--threads", str(THREADS))
    single = run_peer(python, folder, name, "--threads", "1", "--skip-validation")
    return peer_figures(both) | {"cpu_s_one_thread": single["epochs"][0]["cpu_s_full"]}


def run_peer(python: str, folder: Path, name: str, *options: str) -> dict[str, Any]:
    out = folder / "peer.json"
    script = str(HERE / "peers/pyhealth_epoch.py")
    command = [python, script, str(folder), "--models", PEER_NAMES[name], "--out", str(out)]
    subprocess.run([*command, *options], check=True)
    result: dict[str, Any] = json.loads(out.read_text())["models"][PEER_NAMES[name]]
    return result


def peer_figures(result: dict[str, Any]) -> dict[str, Any]:
    validation, n_epochs = result["epochs"][-1]["validation"], len(result["epochs"])
    rows = [row for row in result["epochs"] if not row["disturbed"]] or result["epochs"]
    return {
        "cpu_s": sum(row["cpu_s_full"] for row in rows) / len(rows),
        "wall_s": sum(row["wall_s_full"] for row in rows) / len(rows),
        "jaccard": validation["jaccard_at_0.5"] if validation else None,
        "epochs": n_epochs,
        "peak_mib": result["peak_mib"],
        "disturbed": any(row["disturbed"] for row in rows),
    }


def figures_of(name: str, ours: dict[str, Any], peer: dict[str, Any], where: str) -> list[Any]:
    from record import Figure

    rows = ours["epochs"]
    cpu = sum(row["cpu_s"] for row in rows) / len(rows)
    wall = sum(row["wall_s"] for row in rows) / len(rows)
    ratio, goal = peer["cpu_s"] / cpu, GOALS.get(name)
    label = f"{name}, epoch ({where})"
    met = None if goal is None else ratio >= goal
    figures = [
        Figure(label, round(cpu, 3), "CPU s", round(peer["cpu_s"], 2), round(ratio, 1), goal, met)
    ]
    if peer.get("disturbed"):
        figures[0] = replace(figures[0], name=f"{label}, machine busy: do not trust")
    if alone := peer.get("cpu_s_one_thread"):
        one = Figure(f"{name}, epoch, both on one thread", round(cpu, 3), "CPU s", round(alone, 2))
        figures.append(replace(one, ratio=round(alone / cpu, 1)))
    if peer.get("wall_s"):
        theirs = round(peer["wall_s"], 2)
        figures.append(
            Figure(f"{name}, epoch", round(wall, 3), "s wall", theirs, round(theirs / wall, 1))
        )
    if peer.get("jaccard") is not None:
        score = rows[peer["epochs"] - 1]["val_jaccard"]
        figures.append(
            Figure(
                f"{name}, validation Jaccard after {peer['epochs']} epochs",
                round(score, 4),
                "",
                round(peer["jaccard"], 4),
                round(score / peer["jaccard"], 3),
                1.0,
                score >= peer["jaccard"],
            )
        )
    theirs = peer.get("peak_mib")
    gain = round(theirs / ours["peak_mib"], 2) if theirs else None
    figures.append(Figure(f"{name}, peak memory", ours["peak_mib"], "MiB", theirs, gain))
    return figures


def paper_figures(name: str, ours: dict[str, Any]) -> list[Any]:
    """Epoch and memory of a paper's system beside their goals."""
    from record import Figure

    rows = ours["epochs"]
    cpu, wall = (sum(row[key] for row in rows) / len(rows) for key in ("cpu_s", "wall_s"))
    peak = ours["peak_mib"]
    score = Figure(
        f"{name}, validation Jaccard after {len(rows)} epochs",
        round(rows[-1]["val_jaccard"], 4),
        "",
    )
    if name != "bimorec":
        met = wall <= EPOCH_GOAL_S
        epoch = Figure(f"{name}, epoch", round(wall, 3), "s wall", goal=EPOCH_GOAL_S, met=met)
        return [epoch, Figure(f"{name}, peak memory", peak, "MiB"), score]
    peer = ORIGINAL_BIMOREC
    # the stricter of two readings: the original's epoch may have had the training part only
    scaled = cpu * 15_032 / ours["visits"]
    ratio = peer["cpu_s"] / scaled
    label = "bimorec, epoch over 15,032 visits (original: extrapolated)"
    return [
        Figure(
            label,
            round(scaled, 2),
            "CPU s",
            peer["cpu_s"],
            round(ratio, 1),
            BIMOREC_GOAL,
            ratio >= BIMOREC_GOAL,
        ),
        Figure("bimorec, epoch over the training part", round(cpu, 2), "CPU s"),
        Figure(
            "bimorec, peak memory",
            peak,
            "MiB",
            round(peer["peak_mib"], 0),
            round(peer["peak_mib"] / peak, 2),
            round(MEMORY_GOAL_MIB, 0),
            peak <= MEMORY_GOAL_MIB,
        ),
        score,
    ]


def measure_papers(epochs: int, home: Path) -> None:
    """Train each paper's system in a process of its own."""
    from record import publish

    cohort = prepare(home)
    figures: list[Any] = []
    for name in PAPERS:
        extra_inputs(name, cohort, home)  # made here, so that it is not part of the measurement
        found = paper_figures(name, in_process(name, epochs, home))
        for item in found:
            print(item, flush=True)
        figures += found
    publish("train_epoch_papers", figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(PEER_NAMES), choices=PEER_NAMES)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--papers", action="store_true", help="BiMoRec, SCQMed and MMM instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(work(chosen.one, chosen.epochs, chosen.home)))
        return
    if chosen.papers:
        with tempfile.TemporaryDirectory() as temporary:
            measure_papers(chosen.epochs, chosen.home or Path(temporary))
        return
    from record import publish

    from quantum.base import write_json_atomic

    peer_python = os.environ.get("PEER_PYTHON")
    recorded = json.loads((HERE / "peers/recorded.json").read_text())
    figures: list[Any] = []
    peers: dict[str, Any] = dict(recorded["models"])
    with tempfile.TemporaryDirectory() as temporary:
        home, folder = chosen.home or Path(temporary) / "home", Path(temporary) / "exported"
        folder.mkdir()
        export(prepare(home), folder)
        for name in chosen.models:
            ours = in_process(name, chosen.epochs, home)
            if peer_python:
                peer, where = ask_peer(peer_python, folder, name, chosen.epochs), "this run"
            else:
                peer, where = recorded["models"][name], "peer recorded before"
            found = figures_of(name, ours, peer, where)
            for item in found:
                print(item, flush=True)
            figures += found
            peers[name] = peer
        publish("train_epoch", figures)
    if peer_python:
        write_json_atomic(HERE / "peers/recorded.json", recorded | {"models": peers})


if __name__ == "__main__":
    main()
