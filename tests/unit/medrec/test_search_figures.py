"""Figures and page of a search: what was planted is found, nothing breaks on odd tables."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from medrec.config import TuneConfig
from medrec.report import search_figures, search_lines
from medrec.report.search_importance import importance, is_few
from medrec.report.search_page import best_config, summary_lines, write_search_page
from medrec.report.search_table import Dimension, SearchTrials, label_settings
from medrec.runs import Home, Run
from quantum.base import InputError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>document.body.dataset.error='run'</script>"
SPACE = {
    "model.d_model": {"type": "choice", "values": [32, 64, 128]},
    "model.representation.layers": {"type": "int", "low": 1, "high": 4},
    "loss.ddi_target": {"type": "uniform", "low": 0.02, "high": 0.12},
    "optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
}
GOALS = [{"metric": "jaccard", "mode": "max"}, {"metric": "ddi_rate", "mode": "min"}]


def trials(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """Jaccard follows the learning rate, DDI rate the threshold; the rest is noise."""
    rng = np.random.default_rng(seed)
    lr, target = 10 ** rng.uniform(-4, -2, n), rng.uniform(0.02, 0.12, n)
    return pd.DataFrame(
        {
            "number": range(n),
            "params.model.d_model": rng.choice([32, 64, 128], n),
            "params.model.representation.layers": rng.integers(1, 5, n),
            "params.loss.ddi_target": target,
            "params.optim.lr": lr,
            "jaccard": 0.5 + 0.05 * np.log10(lr) + 0.1 * target + rng.normal(0, 0.003, n),
            "ddi_rate": 0.6 * target + rng.normal(0, 0.003, n),
            "epochs": 10,
            "full_budget": rng.random(n) < 0.8,
            "seconds": 1.5,
        }
    )


def search_of(table: pd.DataFrame) -> SearchTrials:
    return SearchTrials.from_frame(table, SPACE, GOALS)


def search_run(home: Path, table: pd.DataFrame, name: str = "s", **report) -> Run:
    base = {"name": "b", "model": {"name": "molerec"}}
    config = TuneConfig.model_validate(
        {"name": "s", "base": base, "space": SPACE, "objectives": GOALS}
    )
    run = Run.open(Home(home), "tune", name, config, {"cohort": "c" * 64})
    with run.recording(seeds={"optuna": 0}):
        table.to_parquet(run.folder / "trials.parquet")
        run.finish({"objectives": GOALS, "n_trials": len(table), "best": [], **report})
    return run


# --------------------------------------------------------------------------- importance


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_planted_setting_comes_first(seed: int):
    table = importance(search_of(trials(seed=seed)))
    first = table.groupby("objective").first()["path"]
    assert first["jaccard"] == "optim.lr"
    assert first["ddi_rate"] == "loss.ddi_target"
    assert ((table["low"] <= table["high"]) & table["importance"].between(0, 1)).all()
    assert (table.groupby("objective")["importance"].sum() <= 1 + 1e-9).all()


def test_shares_are_those_of_the_variances():
    """On a full grid the share of an additive setting is its variance over the sum of both."""
    grid = list(itertools.product(range(8), range(8)))
    table = pd.DataFrame(grid, columns=["params.a", "params.b"])
    table["jaccard"] = 2.0 * table["params.a"] + 1.0 * table["params.b"]
    table.insert(0, "number", range(len(table)))
    space = {n: {"type": "choice", "values": list(range(8))} for n in "ab"}
    found = importance(SearchTrials.from_frame(table, space, GOALS[:1])).set_index("path")
    assert found.loc["a", "importance"] == pytest.approx(0.8, abs=0.04)
    assert found.loc["b", "importance"] == pytest.approx(0.2, abs=0.04)


def test_a_joint_effect_belongs_to_no_single_setting():
    grid = list(itertools.product(range(6), range(6), range(2)))
    table = pd.DataFrame(grid, columns=["params.a", "params.b", "params.c"])
    table["jaccard"] = ((table["params.a"] < 3) ^ (table["params.b"] < 3)).astype(float)
    table.insert(0, "number", range(len(table)))
    found = importance(SearchTrials.from_frame(table, None, GOALS[:1]))
    assert found["importance"].sum() < 0.3


def test_a_setting_that_only_some_trials_have_counts_its_lack():
    table = trials(80)
    table["params.model.representation.layers"] = table["params.model.d_model"].where(
        table.index % 2 == 0
    )
    lacks = table["params.model.representation.layers"].isna()
    table["jaccard"] = np.where(lacks, 0.2, 0.4)
    space = {**SPACE, "model.representation.layers": {"type": "choice", "values": [32, 64, 128]}}
    found = importance(SearchTrials.from_frame(table, space, GOALS[:1])).iloc[0]
    assert found["path"] == "model.representation.layers"
    assert found["importance"] > 0.9


def test_nothing_varies_and_too_few():
    table = trials(12)
    table["jaccard"] = 0.3
    assert (importance(search_of(table)).query("objective == 'jaccard'")["importance"] == 0).all()
    assert importance(search_of(trials(3))).empty
    assert is_few(search_of(trials(12)))
    assert not is_few(search_of(trials(60)))


@pytest.mark.parametrize("method", ["fanova", "ped_anova"])
def test_optuna_agrees_on_what_comes_first(method: str):
    pytest.importorskip("optuna")
    from orchestration.sweep import optuna_importance

    search = search_of(trials())
    theirs = optuna_importance(search, method).groupby("objective").first()["path"]
    ours = importance(search).groupby("objective").first()["path"]
    assert (
        theirs.to_dict() == ours.to_dict() == {"jaccard": "optim.lr", "ddi_rate": "loss.ddi_target"}
    )


# --------------------------------------------------------------------------- tables


def test_older_and_newer_tables_are_read():
    old = search_of(trials(10))
    assert len(old.trials) == 10
    assert old.trials["pareto"].any()
    new = trials(10).assign(state="complete", failure=None, started="2026-01-01T00:00:00+00:00")
    new.loc[2, ["state", "failure"]] = ["failed", "resource: out of memory"]
    new.loc[[4, 5], "state"] = "failed"
    new.loc[[2, 4, 5], ["jaccard", "ddi_rate"]] = np.nan
    found = search_of(new)
    assert len(found.trials) == 7
    assert found.failed == {"unknown": 2, "resource": 1}
    assert any(
        "failed: 2 unknown, 1 resource" in line for line in summary_lines(found, importance(found))
    )


def test_the_front_is_what_nobody_beats():
    table = trials(4).assign(jaccard=[0.5, 0.4, 0.3, 0.5], ddi_rate=[0.1, 0.05, 0.06, 0.2])
    assert search_of(table).trials["pareto"].tolist() == [True, True, False, False]


def test_the_best_had_all_its_epochs_unless_the_search_says_otherwise(tmp_path: Path):
    table = trials(8).assign(full_budget=[False] + [True] * 7)
    table.loc[0, "jaccard"] = 0.9
    table.loc[3, "jaccard"] = 0.8
    assert search_of(table).best()["number"] == 3
    run = search_run(tmp_path, table, best_trial=0)
    assert SearchTrials.load(run).best()["number"] == 0


def test_scales_follow_the_space():
    search = search_of(trials())
    rate = next(dim for dim in search.dimensions if dim.path == "optim.lr")
    assert rate.positions(pd.Series([1e-4, 1e-3, 1e-2])) == pytest.approx([0, 0.5, 1])
    assert search_lines.slices(search, search.objectives[0]).layout.xaxis4.type == "log"
    assert Dimension("x", "x", (8, 16)).levels(pd.Series([16.0, 8.0, None]))[1].tolist() == [
        1,
        0,
        -1,
    ]
    assert label_settings(["a.lr", "b.lr"]) == {
        "a.lr": "learning rate, a",
        "b.lr": "learning rate, b",
    }


def test_sensitivity_shows_means_and_spread_over_the_others():
    grid = list(itertools.product([16, 32], [1, 2], [0.05, 0.1]))
    table = pd.DataFrame(grid, columns=["params.d", "params.l", "params.t"])
    table["jaccard"] = table["params.d"] / 100 + table["params.l"] / 10
    table["ddi_rate"] = table["params.t"]
    table.insert(0, "number", range(len(table)))
    space = {
        n: {"type": "choice", "values": v}
        for n, v in zip("dlt", zip(*grid, strict=True), strict=True)
    }
    space = {n: {**s, "values": sorted(set(s["values"]))} for n, s in space.items()}
    figure = search_figures.sensitivity(SearchTrials.from_frame(table, space, GOALS))
    assert len(figure.data) == 12  # trials and means, two objectives by three settings
    means = figure.data[1]
    assert list(means.x) == ["16", "32"]
    assert list(means.y) == pytest.approx([0.31, 0.47])
    rest = table[table["params.d"] == 16]["jaccard"]
    assert means.error_y.array[0] == pytest.approx(rest.std(ddof=1))
    titles = [figure.layout[name].title.text for name in ("yaxis", "yaxis4")]
    assert titles == [
        "Jaccard, validation<br>(higher is better)",
        "DDI rate, validation<br>(lower is better)",
    ]


def test_every_trial_is_in_every_figure():
    search = search_of(trials(30))
    goal, other = search.objectives
    front = search_figures.pareto_front(search, other, goal)
    assert sum(len(trace.x) for trace in front.data) == 30
    lines = search_lines.parallel(search, goal)
    assert sum(list(t.x).count(None) for t in lines.data if t.mode == "lines+markers") == 30
    best = search_figures.history(search).data[1].y
    assert list(best) == sorted(best)
    assert search_figures.pair_maps(search, goal, search.dimensions[:1]) is None


# --------------------------------------------------------------------------- the page


def test_what_is_no_search_is_refused(tmp_path: Path):
    run = search_run(tmp_path, trials(5))
    (run.folder / "trials.parquet").unlink()
    with pytest.raises(InputError, match="has no trials to show: finished"):
        SearchTrials.load(run)
    with pytest.raises(InputError, match="of kind train; expected a search"):
        SearchTrials.load(Run(run.folder, "train", run.digest))
    with pytest.raises(InputError, match="0 complete trials"):
        search_of(trials(3).assign(state="failed", failure="x"))


def test_the_best_configuration_can_be_trained(tmp_path: Path):
    table = trials(9)
    table["params.model.representation.layers"] = table[
        "params.model.representation.layers"
    ].astype(float)
    run = search_run(tmp_path, table)
    search = SearchTrials.load(run)
    tree = yaml.safe_load(best_config(run, search))
    config = TuneConfig.model_validate(run.config())
    assert type(config.base).model_validate(tree) == config.with_params(
        search.params(search.best())
    )
    assert isinstance(tree["model"]["representation"]["layers"], int)


def page_of(folder: Path, table: pd.DataFrame, name: str = "s") -> Path:
    return write_search_page(search_run(folder, table, name), folder / "page.html")


def test_the_page_is_one_escaped_file(tmp_path: Path):
    table = trials(40)
    table["params.model.d_model"] = [EVIL, "b"] * 20
    run = search_run(tmp_path, table)
    config = run.config()
    config["space"]["model.d_model"]["values"] = [EVIL, "b"]
    (run.folder / "config.yaml").write_text(yaml.safe_dump({**config, "name": EVIL}))
    moved = run.folder.with_name("<b>run<b>")
    run.folder.rename(moved)
    text = write_search_page(Run.load(moved), tmp_path / "page.html").read_text(encoding="utf-8")
    assert EVIL not in text
    assert "<b>run" not in text
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']https?:""", text)
    for words in ("Best by Jaccard", "depended most on", "40 complete", "Hutter"):
        assert words in re.sub(r"<b>(\d+)</b><span>", r"\1 ", text)


def test_few_trials_are_called_few(tmp_path: Path):
    text = page_of(tmp_path, trials(6)).read_text(encoding="utf-8")
    assert "6 trials for 4 settings are few" in text
    assert "expected about 40" in text
    text = page_of(tmp_path / "b", trials(2)).read_text(encoding="utf-8")
    assert "too few to say what mattered" in text


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
@pytest.mark.parametrize("width", [1280, 800])
def test_a_browser_draws_every_figure(tmp_path: Path, width: int):
    table = trials(25)
    table.loc[::3, "params.optim.lr"] = np.nan
    page = page_of(tmp_path, table)
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--window-size={width},900",
            "--virtual-time-budget=20000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    body = re.search(r"<body[^>]*>", done.stdout).group()
    counts = dict(re.findall(r'data-(\w+)="([^"]*)"', body))
    assert "error" not in counts, counts
    assert int(counts["figures"]) == 10
    assert counts["drawn"] == counts["figures"]
    assert not re.search(r"CONSOLE.*(?:Error|error)", done.stderr)
