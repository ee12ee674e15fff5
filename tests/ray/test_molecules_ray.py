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

from medrec.config import MoleculePretrainRunConfig, PropertyRunConfig
from medrec.config_molecules import LibraryConfig
from medrec.library.arrays import ARRAYS, MoleculeLibrary
from medrec.runs import Home
from orchestration.console import Terminal
from orchestration.fits import property_trial, run_fit
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


def trial(params: dict, settings: dict) -> None:
    """Body of a trial."""
    from ray import tune

    config = PropertyRunConfig.model_validate(
        {
            "task": {
                "name": "t",
                "encoder": {"d_model": params["d_model"], "layers": params["layers"]},
                "split": {"train": 0.5, "valid": 0.25},
                "fit": {"epochs": 3, "batch_size": 8, "lr": 1e-3},
            }
        }
    )
    library = MoleculeLibrary.load(Path(settings["library"]))
    property_trial(config.task, library, tune.report)


def test_a_search_over_size_and_depth(library, tmp_path):
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        "d_model": optuna.distributions.CategoricalDistribution([8, 16]),
        "layers": optuna.distributions.IntDistribution(1, 2),
    }
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial, settings={"library": str(library.folder)}), {"CPU": 1}
        ),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(
                space=space,
                metric="score",
                mode="min",
                sampler=optuna.samplers.RandomSampler(seed=0),
            ),
            num_samples=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="t", storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    assert [result.metrics["epochs"] for result in results] == [3, 3]
    assert all(np.isfinite(result.metrics["score"]) for result in results)
    best = results.get_best_result("score", "min").metrics["score"]
    assert best == min(result.metrics["score"] for result in results)
