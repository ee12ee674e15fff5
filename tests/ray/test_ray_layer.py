"""The same functions on many workers: tasks, pre-training, search; with real kills."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from medrec.config import (
    FeatureRunConfig,
    PretrainRunConfig,
    TrainConfig,
)
from medrec.runs import Home, Run
from orchestration.cluster import check_shared, ensure_ray, require
from orchestration.console import Terminal
from orchestration.features import run_features
from orchestration.tasks import Answer, Ask, Lost, RayPool
from orchestration.train import run_pretrain
from quantum.base import ResourceError
from quantum.molecule import species_from_smiles
from quantum.pipeline import Outcome, Task
from quantum.schema import CalculationSpec, GridSpec, PipelineSpec

pytestmark = [
    pytest.mark.ray,
    # third-party: Ray warns about its own coming defaults and leaves pipes to the collector
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SPEC = PipelineSpec(
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=0.9, margin_bohr=3.0),
)
NAMES = ("O", "CCO", "N", "CC", "CCC", "CCCC")


def tasks() -> list[Task]:
    return [Task(species=species_from_smiles(s), spec=SPEC) for s in NAMES]


def outcome(task: Task, **facts: object) -> Outcome:
    return Outcome(species_key=task.species.key, status="done", **facts)


def behave(task: Task, folder: str = "") -> Outcome:
    """Raise for one molecule, die once for another, count threads for the rest."""
    from threadpoolctl import threadpool_info

    smiles = task.species.smiles
    if smiles == "N":
        raise ValueError("surprise")
    if smiles == "CC":
        mark = Path(folder) / "died"
        if not mark.exists():
            mark.write_text("once")
            os.kill(os.getpid(), signal.SIGKILL)
    threads = max([p["num_threads"] for p in threadpool_info()] or [1])
    return outcome(task, seconds=float(threads))


def run_all(ray, function, items, window: int, cpus: float = 1) -> dict[str, Answer]:
    """Answers by SMILES, in the order in which they came."""
    pool, waiting, answers = RayPool(ray), list(items), {}
    try:
        while waiting or len(pool):
            while waiting and len(pool) < window:
                item = waiting.pop(0)
                pool.submit(item.species.smiles, function, item, Ask(cpus))
            answers |= {answer.token: answer for answer in pool.finished()}
    finally:
        pool.cancel()
    return answers


def test_the_pool_survives_exceptions_and_killed_workers(ray, tmp_path):
    results = run_all(ray, partial(behave, folder=str(tmp_path)), tasks(), window=2)
    assert set(results) == set(NAMES)
    assert results["N"].value == Lost("unknown", "ValueError: surprise")
    assert results["CC"].value.status == "done"
    assert (tmp_path / "died").exists()
    done = [answer.value for name, answer in results.items() if name != "N"]
    assert {result.seconds for result in done} == {1.0}


def die(task: Task) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return outcome(task)


def test_a_poison_task_ends_as_lost(ray):
    (answer,) = run_all(ray, die, tasks()[:1], window=1).values()
    assert answer.value.kind == "lost"


def wait_long(task: Task, folder: str) -> Outcome:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)
    return outcome(task)


@pytest.fixture
def interruptible():
    """Let SIGINT raise here; processes that run tests side by side ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_cancels_what_runs(ray, tmp_path, interruptible):
    def interrupt_when_both_run():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_both_run, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_all(ray, partial(wait_long, folder=str(tmp_path)), tasks()[:2], window=2, cpus=0)
    deadline = time.monotonic() + 90
    pids = [int(p.name) for p in tmp_path.iterdir()]
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.2)
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_no_silent_downgrade(ray, tmp_path):
    check_shared(ray, tmp_path)
    assert ensure_ray() is ray
    with pytest.raises(ResourceError, match="1 GPU were asked for"):
        require(ray, gpus=1)
    with pytest.raises(ResourceError, match="99 CPU"):
        require(ray, cpus=99)


@pytest.fixture(scope="module")
def featured(ray, synthetic, tmp_path_factory):
    """Home with the synthetic cohort and a feature table computed by Ray tasks."""
    from medrec.molecules.features import FeatureTable

    home = Home(tmp_path_factory.mktemp("ray-home"))
    home.cohorts.symlink_to(synthetic[0].cohorts)
    config = FeatureRunConfig(name="t", pipeline=SPEC, scf_budget_cpu_s=14)
    folder = run_features(config, [synthetic[1]], home, Terminal(quiet=True))
    again = run_features(config, [synthetic[1]], home, Terminal(quiet=True))
    assert again == folder
    table = FeatureTable.load(folder)
    counts = table.coverage()
    assert counts["with conformer"] == counts["species"]
    assert 0 < counts["with ELF map"] < counts["species"]
    return home, synthetic[1], table


def pretrain_config(epochs: int, name: str = "p") -> PretrainRunConfig:
    return PretrainRunConfig.model_validate(
        {
            "task": {
                "name": name,
                "encoder": {"d_model": 16, "gin_layers": 2, "gvp_layers": 1, "dropout": 0.1},
                "epochs": epochs,
                "checkpoint_every_epochs": 2,
            },
            "scaling": {"num_workers": 2},
        }
    )


KILLED_PRETRAIN = """
import sys
from pathlib import Path
from medrec.config import PretrainRunConfig
from medrec.data.cohort import Cohort
from medrec.molecules.features import FeatureTable
from medrec.runs import Home
from orchestration.train import run_pretrain
home, cohort, features, config = sys.argv[1:]
run_pretrain(
    PretrainRunConfig.model_validate_json(config),
    Cohort.load(Path(cohort)),
    FeatureTable.load(Path(features)),
    Home(Path(home)),
    on_epoch=lambda row: print("epoch", int(row["epoch"]), flush=True),
)
"""


@pytest.mark.timeout(900)
def test_pretraining_goes_on_after_a_killed_driver(featured):
    home, cohort, features = featured
    config = pretrain_config(14)
    arguments = [home.root, cohort.folder, features.folder, config.model_dump_json()]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_PRETRAIN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as driver:
        for line in driver.stdout:
            if line.startswith("epoch") and int(line.split()[1]) >= 4:
                break
        driver.send_signal(signal.SIGKILL)
    (folder,) = home.runs.glob("p-*")
    before = Run.load(folder).metrics()["epoch"].max()
    run = run_pretrain(config, cohort, features, home)
    assert run.is_finished
    assert run.metrics()["epoch"].tolist() == list(range(14))
    assert run.record()["provenance"]["time"] > run.record()["started"]
    assert before >= 2
    losses = run.metrics()["loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    # and the recommender starts from it
    from medrec.training import run_training

    start = TrainConfig.model_validate(
        {
            "name": "m",
            "model": {
                "name": "molerec",
                "d_model": 16,
                "representation": {"kind": "gin_elf", "layers": 2},
            },
            "optim": {"epochs": 2},
        }
    )
    trained = run_training(start, cohort, home, features=features, pretrained=run)
    assert set(trained.inputs) == {"cohort", "features", "pretrained"}


@pytest.mark.slow  # the same on a molecule library is not: tests/ray/test_molecules_ray.py
@pytest.mark.timeout(900)
def test_pretraining_goes_on_after_a_killed_worker_as_if_nothing_had_been(featured):
    home, cohort, features = featured
    quiet = run_pretrain(pretrain_config(8, "undisturbed"), cohort, features, home)
    config = pretrain_config(8, "disturbed")
    config = config.model_copy(
        update={"scaling": config.scaling.model_copy(update={"max_failures": 3})}
    )
    killed: list[int] = []

    def kill_one(row):
        if row["epoch"] >= 3 and not killed:
            workers = _worker_processes()
            assert workers, "no Ray Train worker found"
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    run = run_pretrain(config, cohort, features, home, on_epoch=kill_one)
    assert killed
    assert run.is_finished
    assert run.metrics()["epoch"].tolist() == list(range(8))
    np.testing.assert_allclose(run.metrics()["loss"], quiet.metrics()["loss"], rtol=1e-4)


def _worker_processes() -> list[int]:
    """Process numbers of Ray Train's workers on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if b"RayTrainWorker" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return sorted(found)


def test_ctrl_c_in_pretraining_is_an_interruption_and_handlers_come_back(featured):
    home, cohort, features = featured
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(row):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_pretrain(pretrain_config(200, "cut"), cohort, features, home, on_epoch=interrupt)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    (folder,) = home.runs.glob("cut-*")
    assert Run.load(folder).record()["status"] == "interrupted"
