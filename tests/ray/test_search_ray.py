"""Searches with real trials, real processes and real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from medrec.config import TuneConfig
from medrec.runs import Home, Run
from orchestration.search import (
    Search,
    at_work,
    complete_trials,
    open_study,
    run_trials,
)
from orchestration.search_study import failed_trials
from quantum.base import ResourceError, TransientError

pytestmark = [
    pytest.mark.ray,
    # third-party: Ray warns about its own coming defaults and leaves pipes to the collector
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # third-party: Optuna's Gaussian process sampler is marked experimental
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

KILLS = int(os.environ.get("MEDREC_TEST_DRIVER_KILLS", "2"))
EPOCHS = 3


def search_config(**changes: object) -> TuneConfig:
    tree = {
        "name": "faults",
        "base": {"name": "m", "model": {"name": "molerec"}, "optim": {"epochs": EPOCHS}},
        "space": {"optim.lr": {"type": "uniform", "low": 0.1, "high": 1.0}},
        "n_trials": 4,
        "sampler": "random",
        "stopper": "none",
    }
    tree |= changes
    if tree["sampler"] == "grid":
        del tree["n_trials"]
    return TuneConfig.model_validate(tree)


def search_with(
    folder: Path, body, config: TuneConfig, epochs: int = EPOCHS
) -> tuple[Run, pd.DataFrame]:
    """A search over `body`, which reports what it likes under the name of a metric."""
    marks = folder / "marks"
    marks.mkdir(exist_ok=True)
    run = Run.open(Home(folder), "tune", config.name, config.key(), {})
    search = Search(config, body, {"marks": str(marks)}, epochs, "{jaccard:.2f}")
    with at_work(run) as lease:
        return run, run_trials(run, search, lease)


def first_time(settings: dict, name: str) -> bool:
    """Whether nobody asked before; across processes."""
    try:
        os.close(os.open(Path(settings["marks"]) / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def report_all(params: dict, log) -> None:
    for epoch in range(1, EPOCHS + 1):
        log.epoch(epoch, {"jaccard": params["optim.lr"], "ddi_rate": 0.5}, EPOCHS)


def misbehave(params: dict, settings: dict, log) -> None:
    """The first trials fail, each in its own way; what comes after them is well."""
    faults = ("raise", "nan", "inf", "silent")
    for fault in faults:
        if not first_time(settings, fault):
            continue
        log.epoch(1, {"jaccard": 0.5, "ddi_rate": 0.5}, EPOCHS)
        if fault == "raise":
            raise ValueError("the first line\nand a second one")
        if fault == "silent":
            hang(settings)
        log.epoch(2, {"jaccard": float(fault), "ddi_rate": 0.5}, EPOCHS)
    report_all(params, log)


def hang(settings: dict) -> None:
    (Path(settings["marks"]) / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)


def test_failed_trials_are_recorded_and_made_up_for(ray, tmp_path):
    config = search_config(max_failed_trials=4, trial_timeout_s=20)
    run, table = search_with(tmp_path, misbehave, config)
    assert (table["state"] == "complete").sum() == 4
    failed = table[table["state"] == "failed"]
    assert sorted(failed["failure"]) == [
        "ValueError: the first line",
        "not_finite: jaccard is inf after epoch 2",
        "not_finite: jaccard is nan after epoch 2",
        "timed out: no report for 20 s (trial_timeout_s)",
    ]
    assert failed["jaccard"].isna().all()
    assert not failed["pareto"].any()
    # what they reported before they failed is kept
    history = pd.read_parquet(run.folder / "trials_history.parquet")
    assert set(history.loc[history["number"].isin(failed["number"]), "epoch"]) == {1}
    # the process that hung is gone
    pid = int((tmp_path / "marks" / "pid").read_text())
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def always_raise(params: dict, settings: dict, log) -> None:
    raise KeyError("nothing works")


def raise_half(params: dict, settings: dict, log) -> None:
    if not first_time(settings, "one"):
        raise RuntimeError("broken")
    report_all(params, log)


@pytest.mark.slow
def test_too_many_failures_end_a_search_with_the_reason(ray, tmp_path):
    with pytest.raises(ResourceError, match=r"all 2 trials failed; the first: KeyError"):
        search_with(tmp_path, always_raise, search_config(max_failed_trials=1, max_concurrent=1))
    config = search_config(max_failed_trials=1, name="half")
    with pytest.raises(TransientError, match=r"more than the 1 of max_failed_trials.*1 of 4"):
        search_with(tmp_path, raise_half, config)
    (folder,) = (tmp_path / "runs").glob("half-*")
    assert len(complete_trials(open_study(folder, config))) == 1


def killed(params: dict, settings: dict, log) -> None:
    """One trial loses its process once, another one twice."""
    log.epoch(1, {"jaccard": 0.5, "ddi_rate": 0.5}, EPOCHS)
    mine = f"{params['optim.lr']!r}"
    if first_time(settings, "once"):
        (Path(settings["marks"]) / "once").write_text(mine)
        os.kill(os.getpid(), signal.SIGKILL)
    poisoned = first_time(settings, "twice")
    if poisoned and (Path(settings["marks"]) / "once").read_text() != mine:
        (Path(settings["marks"]) / "twice").write_text(mine)
    elif poisoned:
        (Path(settings["marks"]) / "twice").unlink()
    if (Path(settings["marks"]) / "twice").exists() and (
        Path(settings["marks"]) / "twice"
    ).read_text() == mine:
        os.kill(os.getpid(), signal.SIGKILL)
    report_all(params, log)


@pytest.mark.slow
def test_a_killed_trial_is_tried_once_more_and_counted_once(ray, tmp_path):
    run, table = search_with(tmp_path, killed, search_config())
    complete, failed = (table[table["state"] == state] for state in ("complete", "failed"))
    assert len(complete) == 4
    once, twice = ((tmp_path / "marks" / name).read_text() for name in ("once", "twice"))
    assert complete["params.optim.lr"].map(repr).tolist().count(once) == 1
    assert failed["params.optim.lr"].map(repr).tolist() == [twice]
    assert failed["failure"].tolist() == ["lost: the process of the trial died twice"]
    history = pd.read_parquet(run.folder / "trials_history.parquet")
    assert not history.duplicated(["number", "epoch"]).any()


def look_around(params: dict, settings: dict, log) -> None:
    """Reports what a trial was given."""
    import torch
    from threadpoolctl import threadpool_info

    pools = [pool["num_threads"] for pool in threadpool_info()]
    seen = {"torch": torch.get_num_threads(), "pools": pools, "repeat": log.repeat}
    with (Path(settings["marks"]) / "seen.jsonl").open("a") as handle:
        handle.write(json.dumps(seen) + "\n")
    for epoch in range(1, EPOCHS + 1):
        value = params["optim.lr"] + log.repeat
        log.epoch(epoch, {"jaccard": value, "ddi_rate": 0.5}, EPOCHS)


@pytest.mark.slow
def test_seeds_of_a_trial_threads_and_fractions_of_a_core(ray, tmp_path):
    config = search_config(n_trials=3, repeats=3, cpus_per_trial=0.5, max_concurrent=None)
    run, table = search_with(tmp_path, look_around, config)
    seen = [json.loads(line) for line in (tmp_path / "marks" / "seen.jsonl").open()]
    assert sorted(item["repeat"] for item in seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {item["torch"] for item in seen} == {1}
    assert {n for item in seen for n in item["pools"]} == {1}
    assert table["jaccard"].tolist() == pytest.approx((table["params.optim.lr"] + 1).tolist())
    assert table["std.jaccard"].tolist() == pytest.approx([1.0] * 3)
    assert table["full_budget"].all()
    # the curves are those of the first seed
    history = pd.read_parquet(run.folder / "trials_history.parquet")
    assert len(history) == 3 * EPOCHS
    assert history["jaccard"].max() < 1.0


@pytest.mark.slow
def test_a_grid_tries_every_point_once_and_conditions_hold(ray, tmp_path):
    space = {
        "loss.gate": {"type": "choice", "values": ["none", "molerec"]},
        "optim.lr": {"type": "choice", "values": [0.1, 0.2]},
        "loss.gate_kp": {
            "type": "choice", "values": [0.05, 0.5], "when": {"loss.gate": ["molerec"]},
        },
    }  # fmt: skip
    config = search_config(space=space, sampler="grid")
    assert config.n_trials == 6
    _, table = search_with(tmp_path, _report_lr, config)
    assert len(table) == 6
    assert not table.duplicated([name for name in table if name.startswith("params.")]).any()
    inactive = table["params.loss.gate"] == "none"
    assert inactive.sum() == 2
    assert table.loc[inactive, "params.loss.gate_kp"].isna().all()
    assert table.loc[~inactive, "params.loss.gate_kp"].notna().all()
    # the same space, drawn
    drawn = config.model_dump(mode="json") | {"sampler": "tpe", "n_trials": 8, "name": "drawn"}
    _, table = search_with(tmp_path, _report_lr, TuneConfig.model_validate(drawn))
    inactive = table["params.loss.gate"] == "none"
    assert (table["params.loss.gate_kp"].isna() == inactive).all()


def _report_lr(params: dict, settings: dict, log) -> None:
    report_all(params, log)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["nsga2", "gp"])
def test_several_objectives_with_other_samplers(ray, tmp_path, sampler):
    both = [{"metric": "jaccard", "mode": "max"}, {"metric": "ddi_rate", "mode": "min"}]
    config = search_config(sampler=sampler, objectives=both, n_trials=7)
    _, table = search_with(tmp_path, _trade_off, config)
    assert len(table) == 7
    assert table["pareto"].all()  # more of one is less of the other
    assert table["params.optim.lr"].is_unique


def _trade_off(params: dict, settings: dict, log) -> None:
    value = params["optim.lr"]
    log.epoch(1, {"jaccard": value, "ddi_rate": value}, 1)


def _slow_to_learn(params: dict, settings: dict, log) -> None:
    """Good trials are good from the start."""
    for epoch in range(1, 10):
        log.epoch(epoch, {"jaccard": params["optim.lr"] * epoch, "ddi_rate": 0.5}, 9)


@pytest.mark.slow
@pytest.mark.parametrize("stopper", ["asha", "median"])
def test_bad_trials_are_stopped_early(ray, tmp_path, stopper):
    config = search_config(
        n_trials=8, stopper=stopper, max_concurrent=1, asha={"grace_epochs": 1},
        median={"grace_epochs": 2, "min_trials": 2},
    )  # fmt: skip
    run, table = search_with(tmp_path, _slow_to_learn, config, epochs=9)
    assert table["full_budget"].any()
    assert (~table["full_budget"]).any()
    assert (table.loc[table["full_budget"], "epochs"] == 9).all()
    best = table.loc[table["params.optim.lr"].idxmax()]
    assert best["full_budget"]
    history = pd.read_parquet(run.folder / "trials_history.parquet")
    assert (history.groupby("number")["epoch"].max() == table.set_index("number")["epochs"]).all()


# --------------------------------------------------------------------------- killed drivers

KILLED = """
import sys, time
from pathlib import Path
from medrec.config import TuneConfig
from medrec.runs import Home, Run
from orchestration.search import Search, at_work, run_trials

def body(params, settings, log):
    value = params["optim.lr"]
    for epoch in range(1, 4):
        time.sleep(0.15)
        log.epoch(epoch, {"jaccard": value, "ddi_rate": value}, 3)

home, config = sys.argv[1:]
config = TuneConfig.model_validate_json(config)
run = Run.open(Home(Path(home)), "tune", config.name, config.key(), {})
search = Search(config, body, {}, 3, "")
with at_work(run) as lease:
    run_trials(run, search, lease, lambda done, wanted, note: print("done", done, flush=True))
"""


def start_driver(home: Path, config: TuneConfig) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(home), config.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def kill_driver_after(home: Path, config: TuneConfig, trials: int) -> None:
    """Kill a driver once it has completed so many trials more than it found."""
    with start_driver(home, config) as driver:
        assert driver.stdout is not None
        counts = [int(driver.stdout.readline().split()[1])]
        while counts[-1] < counts[0] + trials:
            counts.append(int(driver.stdout.readline().split()[1]))
        driver.send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(120 + 120 * KILLS)
@pytest.mark.parametrize("several", [False, True])
def test_no_trial_is_lost_or_repeated_when_drivers_are_killed(tmp_path, several):
    both = [{"metric": "jaccard", "mode": "max"}, {"metric": "ddi_rate", "mode": "min"}]
    config = search_config(
        n_trials=3 * (KILLS + 1), objectives=both if several else both[:1], sampler="tpe"
    )
    (run,) = [Run.open(Home(tmp_path), "tune", config.name, config.key(), {})]
    seen: set[int] = set()
    for _ in range(KILLS):
        kill_driver_after(tmp_path, config, trials=2)
        now = {trial.number for trial in complete_trials(open_study(run.folder, config))}
        assert seen < now
        seen = now
    with start_driver(tmp_path, config) as driver:
        assert driver.wait() == 0
    trials = complete_trials(open_study(run.folder, config))
    assert len(trials) == config.n_trials
    assert seen < {trial.number for trial in trials}
    assert len({trial.params["optim.lr"] for trial in trials}) == config.n_trials
    assert not failed_trials(open_study(run.folder, config))
    table = pd.read_parquet(run.folder / "trials.parquet")
    assert len(table) == config.n_trials
    assert (table["epochs"] == 3).all()
