"""Searches over recommenders: killed drivers, more trials, warm starts, populations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

from medrec.config import TrainConfig, TuneConfig
from medrec.loading import load_config
from medrec.runs import Home, Run
from orchestration.search import SearchRequest, complete_trials, open_study
from orchestration.tune import run_tune
from quantum.base import ConfigError, ResourceError

pytestmark = [
    pytest.mark.ray,
    # third-party: Ray warns about its own coming defaults and leaves pipes to the collector
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def tune_config(n_trials: int, name: str = "search", **changes: object) -> TuneConfig:
    return TuneConfig.model_validate(
        {
            "name": name,
            "base": {
                "name": "m",
                "model": {"name": "molerec", "d_model": 16, "representation": {"layers": 2}},
                "optim": {"epochs": 6, "patience": 6, "lr": 5e-3},
            },
            "space": {
                "model.d_model": {"type": "choice", "values": [8, 16]},
                "model.representation.layers": {"type": "int", "low": 1, "high": 2},
                "loss.ddi_target": {"type": "uniform", "low": 0.02, "high": 0.2},
            },
            "objectives": [
                {"metric": "jaccard", "mode": "max"},
                {"metric": "ddi_rate", "mode": "min"},
            ],
            "n_trials": n_trials,
            "asha": {"grace_epochs": 2, "reduction_factor": 2},
        }
        | changes
    )


KILLED_TUNE = """
import sys
from pathlib import Path
from medrec.config import TuneConfig
from medrec.data.cohort import Cohort
from medrec.runs import Home
from orchestration.tune import run_tune
home, cohort, config = sys.argv[1:]
run_tune(
    TuneConfig.model_validate_json(config), Cohort.load(Path(cohort)), Home(Path(home)), None,
    on_trial=lambda done, wanted, note: print("done", done, flush=True),
)
"""


def test_a_search_goes_on_after_a_killed_driver(ray, synthetic, tmp_path):
    _, cohort = synthetic
    home, config = Home(tmp_path), tune_config(5)
    arguments = [home.root, cohort.folder, config.model_dump_json()]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_TUNE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as driver:
        for line in driver.stdout:
            if line.strip() == "done 1":
                break
        driver.send_signal(signal.SIGKILL)
    (folder,) = home.runs.glob("search-*")
    before = {t.number for t in complete_trials(open_study(folder, config))}
    assert 1 <= len(before) < 5
    run = run_tune(config, cohort, home, None, request=SearchRequest(resume=True))
    trials = complete_trials(open_study(folder, config))
    assert len(trials) == 5
    assert before <= {t.number for t in trials}
    parameters = [tuple(sorted(t.params.items())) for t in trials]
    assert len(set(parameters)) == 5
    table = pd.read_parquet(run.folder / "trials.parquet")
    assert table["pareto"].any()
    assert table["epochs"].between(2, 6).all()
    assert (table["full_budget"] == (table["epochs"] == 6)).all()
    best = table[table["pareto"]]
    for _, row in table.iterrows():
        dominated = (best["jaccard"] > row["jaccard"]) & (best["ddi_rate"] < row["ddi_rate"])
        assert not (row["pareto"] and dominated.any())
    check_exports(run, config, table)


def check_exports(run: Run, config: TuneConfig, table: pd.DataFrame) -> None:
    """Every point of the front, and the best trial, can be trained as it was searched."""
    params = {t.number: t.params for t in complete_trials(open_study(run.folder, config))}
    front = {
        path.stem: load_config(path, TrainConfig) for path in (run.folder / "pareto").iterdir()
    }
    assert front == {
        f"trial_{number}": config.with_params(params[number])
        for number in table.loc[table["pareto"], "number"]
    }
    full = table[table["full_budget"]]
    number = full.loc[full["jaccard"].idxmax(), "number"]
    chosen = load_config(run.folder / "best.yaml", TrainConfig)
    assert full.set_index("number").loc[number, "jaccard"] == max(full["jaccard"])
    assert chosen in [
        config.with_params(params[n])
        for n in full.loc[full["jaccard"] == full["jaccard"].max(), "number"]
    ]


@pytest.mark.slow
def test_more_trials_and_a_warm_start(ray, synthetic, tmp_path):
    home = Home(tmp_path)
    one = {"objectives": [{"metric": "jaccard", "mode": "max"}], "sampler": "random"}
    config = tune_config(2, "single", **one)
    run = run_tune(config, synthetic[1], home, None)
    trials = pd.read_parquet(run.folder / "trials.parquet")
    assert len(trials) == 2
    best = run.report()["best"]
    assert best
    assert {item["jaccard"] for item in best} == {trials["jaccard"].max()}
    # more of them, in the same run; the first two stay as they are
    more = SearchRequest(n_trials=3)
    assert run_tune(config, synthetic[1], home, None, request=more).name == run.name
    again = pd.read_parquet(run.folder / "trials.parquet")
    pd.testing.assert_frame_equal(
        again.head(2).drop(columns="pareto"), trials.drop(columns="pareto")
    )
    assert len(again) == 3
    with pytest.raises(ConfigError, match="--trials 2 is less than the 3 trials"):
        run_tune(config, synthetic[1], home, None, request=SearchRequest(n_trials=2))
    assert run.record()["status"] == "finished"
    # a narrower space that starts from what was learned
    space = config.model_dump(mode="json")["space"]
    space["loss.ddi_target"] |= {"low": float(again["params.loss.ddi_target"].median())}
    narrow = tune_config(1, "single", **one, space=space, warm_start=[run.name])
    child = run_tune(narrow, synthetic[1], home, None)
    assert child.inputs["warm_start"] == run.digest
    (source,) = child.report()["warm_start"]
    assert source == {"run": run.name, "used": 2, "out_of_range": 1}
    assert len(pd.read_parquet(child.folder / "trials.parquet")) == 1
    assert len(complete_trials(open_study(child.folder, narrow))) == 1
    assert len(open_study(child.folder, narrow).trials) == 3


@pytest.mark.slow
def test_a_population_copies_weights_and_changes_values(ray, synthetic, tmp_path):
    config = tune_config(
        4,
        "population",
        sampler="random",
        stopper="pbt",
        pbt={"perturb_epochs": 2, "quantile": 0.5},
        space={"optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1}},
    )
    run = run_tune(config, synthetic[1], Home(tmp_path), None)
    table = pd.read_parquet(run.folder / "trials.parquet")
    history = pd.read_parquet(run.folder / "trials_history.parquet")
    assert len(table) == 4
    assert (table["epochs"] == 6).all()
    rates = history.groupby("number")["params.optim.lr"].nunique()
    assert rates.max() > 1  # somebody took over another one's weights with other values
    assert history["params.optim.lr"].between(1e-4, 1e-1).all()
    last = history[history["epoch"] == 6].set_index("number")["params.optim.lr"]
    assert last.to_dict() == table.set_index("number")["params.optim.lr"].to_dict()


@pytest.mark.slow
def test_ctrl_c_interrupts_a_search_which_then_goes_on(ray, synthetic, tmp_path):
    home, config = Home(tmp_path), tune_config(3, "cut", asha=None)
    before = signal.getsignal(signal.SIGINT)

    def interrupt(done: int, wanted: int, note: str) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    interrupted = False
    try:
        run_tune(config, synthetic[1], home, None, on_trial=interrupt)
    except KeyboardInterrupt:  # nothing may hold the frames, which hold the trials' processes
        interrupted = True
    assert interrupted
    assert signal.getsignal(signal.SIGINT) == before
    (folder,) = home.runs.glob("cut-*")
    assert Run.load(folder).record()["status"] == "interrupted"
    run = run_tune(config, synthetic[1], home, None)
    table = pd.read_parquet(run.folder / "trials.parquet")
    assert table["full_budget"].tolist() == [True] * 3
    assert table["params.loss.ddi_target"].is_unique


def test_a_search_that_cannot_run_says_why(ray, synthetic, tmp_path):
    config = tune_config(1).model_copy(update={"objectives": ()})
    broken = config.model_dump(mode="json")
    broken["objectives"] = [{"metric": "accuracy", "mode": "max"}]
    with pytest.raises(ConfigError, match="none of: jaccard"):
        run_tune(TuneConfig.model_validate(broken), synthetic[1], Home(tmp_path), None)
    with pytest.raises(ResourceError, match="1 GPU were asked for; the cluster has 0"):
        run_tune(tune_config(1, gpus_per_trial=1), synthetic[1], Home(tmp_path), None)
