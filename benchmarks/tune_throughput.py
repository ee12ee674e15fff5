"""Hyper-parameter search: trials per hour, overhead per trial, trials lost to killed drivers.

The peer is a loop of Optuna in one process (``study.optimize``) over the same trial function, with
the same sampler and number of trials; it has one core, ours has both. Real trials are small
recommenders on a synthetic cohort. Empty trials show what Ray Tune, the study on disk and the lease
cost. Then drivers of a search are killed with SIGKILL, and the study is counted.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import Figure, publish

GOAL_SPEEDUP, GOAL_OVERHEAD_MS = 1.3, 100.0
EPOCHS = 12


def empty_trial(params: dict[str, Any], settings: dict[str, Any], log: Any) -> None:
    log.epoch(1, {"jaccard": params["optim.lr"], "ddi_rate": 0.5}, 1)


def sleeping_trial(params: dict[str, Any], settings: dict[str, Any], log: Any) -> None:
    for epoch in range(1, 4):
        time.sleep(0.2)
        log.epoch(epoch, {"jaccard": params["optim.lr"], "ddi_rate": params["optim.lr"]}, 3)


def search_config(name: str, n_trials: int, **changes: Any) -> Any:
    from medrec.config import TuneConfig

    model = {"name": "molerec", "d_model": 32, "representation": {"layers": 2}}
    optim = {"epochs": EPOCHS, "patience": EPOCHS, "lr": 3e-3, "batch_patients": 4}
    tree = {
        "name": name,
        "base": {"name": "m", "model": model, "optim": optim},
        "space": {"optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
        "n_trials": n_trials,
        "stopper": "none",
        "max_concurrent": None,
    }
    return TuneConfig.model_validate(tree | changes)


# --------------------------------------------------------------------------- ours and the peer's


def ours(home: Path, config: Any, body: Callable[..., None], settings: dict[str, Any]) -> float:
    """Seconds of a search on a cluster that runs already."""
    from medrec.runs import Home, Run
    from orchestration.search import Search, at_work, run_trials

    run = Run.open(Home(home), "tune", config.name, config.key(), {})
    start = time.perf_counter()
    with at_work(run) as lease:
        run_trials(run, Search(config, body, settings, EPOCHS, ""), lease)
    return time.perf_counter() - start


class LastReport:
    """What the peer's trials report to: keeps the last values."""

    repeat, repeats, keep_states = 0, 1, False

    def epoch(self, done: int, values: dict[str, float], *_: Any) -> None:
        """Take the values of an epoch."""
        self.values = values

    def resumed(self) -> None:
        """There is nothing to go on from."""


def peer(folder: Path, config: Any, body: Callable[..., None], settings: dict[str, Any]) -> float:
    """Seconds of a loop of Optuna over the same function, with a journal file too."""
    import optuna
    import torch

    from orchestration.search import open_study, to_distribution
    from orchestration.search_schedulers import build_sampler

    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    study = open_study(folder, config)
    study.sampler = build_sampler(config, 0)
    space = {path: to_distribution(item) for path, item in config.space.items()}

    def objective(trial: optuna.Trial) -> float:
        log = LastReport()
        params = {path: trial._suggest(path, item) for path, item in space.items()}
        body(params, settings, log)
        return log.values["jaccard"]

    start = time.perf_counter()
    study.optimize(objective, n_trials=config.n_trials)
    return time.perf_counter() - start


def recommender_settings(home: Path, config: Any) -> dict[str, Any]:
    from medrec.config import CohortConfig
    from medrec.data.cohort import prepare_cohort
    from medrec.runs import Home

    source = {"format": "synthetic", "n_patients": 120, "n_diagnoses": 40, "n_procedures": 16}
    cohort = prepare_cohort(
        CohortConfig.model_validate({"name": "bench", "source": source | {"n_drugs": 20}}),
        Home(home),
    )
    return {
        "config": config.model_dump(mode="json"),
        "cohort": str(cohort.folder.resolve()),
        "features": None,
        "concepts": None,
    }


def throughput(folder: Path, n_real: int, n_empty: int) -> list[Figure]:
    from orchestration.cluster import ensure_ray
    from orchestration.tune import _trial

    ensure_ray()
    real, empty = search_config("real", n_real), search_config("empty", n_empty)
    settings = recommender_settings(folder / "home", real)
    theirs = peer(folder / "peer_real", real, _trial, settings)
    mine = ours(folder / "home", real, _trial, settings)
    theirs_empty = peer(folder / "peer_empty", empty, empty_trial, {})
    mine_empty = ours(folder / "home", empty, empty_trial, {})
    # the start of the trials' processes is paid once: a second search on the same cluster shows it
    again = search_config("again", 3 * n_empty)
    longer = ours(folder / "home", again, empty_trial, {})
    overhead = 1e3 * (longer - mine_empty) / (again.n_trials - n_empty)
    return [
        _speed("trials per hour, recommenders", n_real, mine, theirs, GOAL_SPEEDUP),
        _speed("trials per hour, empty trials", n_empty, mine_empty, theirs_empty, None),
        Figure(
            "scheduler overhead per trial", round(overhead, 2), "ms",
            peer=round(1e3 * theirs_empty / n_empty, 2),
            ratio=round(theirs_empty / n_empty / (overhead / 1e3), 3),
            goal=GOAL_OVERHEAD_MS, met=overhead <= GOAL_OVERHEAD_MS,
        ),
    ]  # fmt: skip


def _speed(name: str, n: int, mine: float, theirs: float, goal: float | None) -> Figure:
    ratio = round(theirs / mine, 3)
    return Figure(
        name, round(3600 * n / mine, 1), "1/h", peer=round(3600 * n / theirs, 1), ratio=ratio,
        goal=goal, met=None if goal is None else ratio >= goal,
    )  # fmt: skip


# --------------------------------------------------------------------------- killed drivers


def drive(home: Path, text: str) -> None:
    """What one driver process does."""
    from medrec.config import TuneConfig
    from medrec.runs import Home, Run
    from orchestration.search import Search, at_work, run_trials

    config = TuneConfig.model_validate_json(text)
    run = Run.open(Home(home), "tune", config.name, config.key(), {})
    search = Search(config, sleeping_trial, {}, 3, "")

    def tell(done: int, wanted: int, note: str) -> None:
        print(json.dumps({"done": done}), flush=True)

    with at_work(run) as lease:
        run_trials(run, search, lease, tell)


def killed_drivers(home: Path, kills: int, several: bool) -> dict[str, int]:
    """Kill drivers of one search, let the last one finish, and count its trials."""
    from medrec.runs import Home, Run
    from orchestration.search import complete_trials, open_study

    both = [{"metric": "jaccard", "mode": "max"}, {"metric": "ddi_rate", "mode": "min"}]
    name = f"killed_{len(both) if several else 1}"
    config = search_config(name, 2 * (kills + 1), objectives=both if several else both[:1])
    run = Run.open(Home(home), "tune", name, config.key(), {})
    for _ in range(kills):
        with start_driver(home, config) as driver:
            assert driver.stdout is not None
            first = done = json.loads(driver.stdout.readline())["done"]
            while done == first:
                done = json.loads(driver.stdout.readline())["done"]
            time.sleep(0.1)  # into the next trials
            driver.send_signal(signal.SIGKILL)
    with start_driver(home, config) as driver:
        driver.communicate()
    trials = complete_trials(open_study(run.folder, config))
    different = {trial.params["optim.lr"] for trial in trials}
    return {"lost": config.n_trials - len(different), "repeated": len(trials) - len(different)}


def start_driver(home: Path, config: Any) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--drive", str(home), config.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def robustness(folder: Path, kills: int) -> list[Figure]:
    figures = []
    for several in (False, True):
        counts = killed_drivers(folder / "killed", kills, several)
        what = "several objectives" if several else "one objective"
        figures += [
            Figure(f"trials {kind}, {kills} driver kills, {what}", n, "trials", goal=0, met=n == 0)
            for kind, n in counts.items()
        ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few trials and kills; writes nothing")
    parser.add_argument("--trials", type=int, default=24, help="recommenders")
    parser.add_argument("--kills", type=int, default=10, help="drivers, half of each kind")
    parser.add_argument("--drive", nargs=2, metavar=("HOME", "CONFIG"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        drive(Path(given.drive[0]), given.drive[1])
        return
    n_real, n_empty, kills = (4, 8, 2) if given.quick else (given.trials, 100, given.kills)
    with tempfile.TemporaryDirectory() as folder:
        figures = robustness(Path(folder), max(1, kills // 2))
        figures += throughput(Path(folder), n_real, n_empty)
    if given.quick:
        for figure in figures:
            print(figure)
        return
    publish("tune_throughput", figures)


if __name__ == "__main__":
    main()
