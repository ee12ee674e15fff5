"""Molecule libraries and fits on workers of a local cluster; with real kills."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medrec.config import MoleculePretrainRunConfig, PropertyRunConfig, PropertyTuneConfig
from medrec.config_molecules import LibraryConfig
from medrec.library.arrays import ARRAYS, MoleculeLibrary
from medrec.loading import load_config
from medrec.runs import Home, Run
from orchestration.console import Terminal
from orchestration.fits import run_fit
from orchestration.molecule_tune import tune_properties
from orchestration.molecules import import_molecules
from quantum.base import ConvergenceError

pytestmark = [
    pytest.mark.ray,
    # third-party: Ray warns about its own coming defaults and leaves pipes to the collector
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SMILES = (
    "CCO", "CC(=O)O", "c1ccccc1", "NC(N)=O", "CCN", "OCC(O)CO", "CC(C)C#N", "C1CC1CO", "O=C1CCCN1",
    "c1ccoc1C=O", "CC(=O)Nc1ccc(O)cc1", "F/C=C/F", "C[C@H](N)C(=O)O", "CCCCCCCC", "CCOC", "CCS",
    "CC#C", "OC1CCCCC1", "Nc1ccccc1", "CC(C)=O", "COC(=O)C", "ClCCCl", "CNC", "O=CCC=O",
)  # fmt: skip


def library_config(folder: Path) -> LibraryConfig:
    pd.DataFrame({"smiles": SMILES, "length": [float(len(s)) for s in SMILES]}).to_csv(
        folder / "table.csv", index=False
    )
    source = {
        "format": "smiles",
        "path": str(folder / "table.csv"),
        "target_columns": ["length"],
        "units": ["characters"],
        "conformers": True,
    }
    return LibraryConfig.model_validate({"name": "tiny", "source": source})


@pytest.fixture(scope="module")
def library(ray, tmp_path_factory) -> MoleculeLibrary:
    """Imported by Ray tasks."""
    folder = tmp_path_factory.mktemp("ray-molecules")
    return import_molecules(library_config(folder), Home(folder / "home"), Terminal(quiet=True), 2)


def pretrain_config(name: str, workers: int, **changes: object) -> MoleculePretrainRunConfig:
    fit = {"epochs": 12, "batch_size": 4, "lr": 1e-3}
    return MoleculePretrainRunConfig.model_validate(
        {
            "task": {
                "name": name,
                "encoder": {"d_model": 16, "layers": 2},
                "fit": {**fit, **changes},
            },
            "scaling": {"num_workers": workers, "max_failures": 2},
        }
    )


def kill_after(run_folder: Path, n_lines: int, name: bytes, killed: list[int]) -> threading.Thread:
    """Kill -9 the newest process of that name once the run has so many epochs; note how many."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            with contextlib.suppress(OSError, ValueError):  # not there yet
                (metrics,) = run_folder.glob("runs/*/metrics.jsonl")
                done = len(metrics.read_text().splitlines())
                if done >= n_lines:
                    os.kill(max(processes(name)), signal.SIGKILL)
                    killed.append(done)
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def processes(name: bytes) -> list[int]:
    """Numbers of processes with a name that this one started, itself or through others."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if name in (folder / "cmdline").read_bytes() and is_ours(int(folder.name)):
                    found.append(int(folder.name))
    return sorted(found)


def is_ours(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1:
        if pid == os.getpid():
            return True
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(status.split("PPid:")[1].split()[0])
    return False


def test_import_by_tasks_is_the_same_library(library, tmp_path):
    plain = import_molecules(library_config(tmp_path), Home(tmp_path), Terminal(quiet=True))
    assert plain.digest == library.digest
    for name in (*ARRAYS, "starts", "targets"):
        ours, theirs = (np.load(item.folder / f"{name}.npy") for item in (library, plain))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.timeout(900)
def test_two_workers_of_which_one_is_killed_equal_one_that_was_not(library, tmp_path):
    plain = run_fit(pretrain_config("p", 1), library, Home(tmp_path / "plain"))
    home, killed = Home(tmp_path / "killed"), []
    watcher = kill_after(home.root, 4, b"RayTrainWorker", killed)
    # so often that most checkpoints are taken in the middle of an epoch, on both workers
    often = pretrain_config("p", 2, checkpoint_minutes=1e-3)
    run = run_fit(often, library, home)
    watcher.join()
    assert killed[0] < 12
    ours, theirs = run.metrics(), plain.metrics()
    assert ours["epoch"].tolist() == list(range(12))
    for column in ("loss", "loss_distance", "loss_spd"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-6)
    assert run.load_checkpoint("best").keys() == plain.load_checkpoint("best").keys()


@pytest.mark.timeout(900)
def test_a_final_error_of_the_workers_ends_the_run_at_its_first_restart(library, tmp_path):
    with pytest.raises(ConvergenceError, match="not finite in epoch 0"):
        run_fit(pretrain_config("nan", 2, lr=1e30), library, Home(tmp_path))


def test_a_search_over_size_and_depth(library, tmp_path):
    base = {
        "name": "t",
        "encoder": {"d_model": 8, "layers": 1},
        "split": {"train": 0.5, "valid": 0.25},
        "fit": {"epochs": 3, "batch_size": 8, "lr": 1e-3},
    }
    space = {
        "encoder.d_model": {"type": "choice", "values": [8, 16]},
        "encoder.layers": {"type": "int", "low": 1, "high": 2},
    }
    config = PropertyTuneConfig.model_validate(
        {"name": "size", "base": base, "space": space, "n_trials": 2, "sampler": "random"}
    )
    home, quiet = Home(tmp_path), Terminal(quiet=True)
    run = tune_properties(config, library, home, quiet)
    trials, report = pd.read_parquet(run.folder / "trials.parquet"), run.report()
    assert len(trials) == 2
    assert trials["epochs"].tolist() == [3, 3]
    best = trials.loc[trials["valid_mae"].idxmin()]
    assert report["best_trial"] == best["number"]
    # trained again as a run of its own, it is the same network
    (fitted,) = (Run.load(path) for path in home.runs.glob("t-*"))
    assert fitted.config()["encoder"]["d_model"] == best["params.encoder.d_model"]
    assert fitted.config()["encoder"]["layers"] == best["params.encoder.layers"]
    assert fitted.report()["best_score"] == pytest.approx(best["valid_mae"], rel=1e-4)
    assert report["test"] == fitted.report()["test"]
    assert (
        load_config(run.folder / "best.yaml", PropertyRunConfig).task.encoder.d_model
        == (best["params.encoder.d_model"])
    )
    before = run.record()
    assert tune_properties(config, library, home, quiet).record() == before
