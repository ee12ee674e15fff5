"""The study is the record: translation of the space, adoption of dead trials. No cluster."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import optuna
import pytest

from medrec.config import Choice, FloatRange, IntRange, TrainConfig, TuneConfig
from medrec.loading import load_config
from medrec.runs import Home, Run
from orchestration.search import (
    adopt_dead_trials,
    best_number,
    complete_trials,
    open_study,
    records,
    to_distribution,
    trials_table,
)
from orchestration.search_export import check_pick, command_for, export_best
from orchestration.search_study import raise_wanted, wanted_trials, warm_start
from orchestration.search_tables import history_table
from quantum.base import ConfigError

CONFIG = TuneConfig.model_validate(
    {
        "name": "s",
        "base": {"name": "m", "model": {"name": "molerec"}},
        "space": {"optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
        "objectives": [{"metric": "jaccard"}, {"metric": "ddi_rate", "mode": "min"}],
        "n_trials": 3,
    }
)


def test_dimensions_become_distributions():
    log = to_distribution(FloatRange(type="loguniform", low=1e-4, high=1e-2))
    assert isinstance(log, optuna.distributions.FloatDistribution)
    assert log.log
    whole = to_distribution(IntRange(type="int", low=2, high=4))
    assert (whole.low, whole.high) == (2, 4)
    assert to_distribution(Choice(type="choice", values=(1, 2))).choices == (1, 2)


def test_parameters_are_set_where_their_path_says():
    trial = CONFIG.with_params({"optim.lr": 0.005, "model.d_model": 32})
    assert trial.optim.lr == 0.005
    assert trial.model.d_model == 32
    assert CONFIG.base.model.d_model == 64


def test_trials_of_a_dead_session_are_queued_again(tmp_path: Path):
    study = open_study(tmp_path, CONFIG)
    space = {k: to_distribution(v) for k, v in CONFIG.space.items()}
    done, lost = study.ask(space), study.ask(space)
    study.tell(done, [0.5, 0.1])
    again = open_study(tmp_path, CONFIG)
    assert adopt_dead_trials(again) == 1
    assert len(complete_trials(again)) == 1
    assert again.trials[lost.number].state == optuna.trial.TrialState.FAIL
    # a session that died between queueing and marking leaves nothing to be queued twice
    waiting = again.trials[-1]
    assert (waiting.state.name, waiting.user_attrs) == ("WAITING", {"again": lost.number})
    assert again.ask(space).params == lost.params


def test_a_death_while_adopting_queues_nothing_twice(tmp_path: Path):
    study = open_study(tmp_path, CONFIG)
    space = {k: to_distribution(v) for k, v in CONFIG.space.items()}
    lost = study.ask(space)
    study.enqueue_trial(lost.params, user_attrs={"again": lost.number})
    assert adopt_dead_trials(study) == 1
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


def tell(study: optuna.Study, values: list[float], **detail: object) -> None:
    trial = study.ask({k: to_distribution(v) for k, v in CONFIG.space.items()})
    trial.set_user_attr("detail", detail)
    study.tell(trial, values)


def test_the_table_marks_the_front_the_budget_and_failures(tmp_path: Path):
    study = open_study(tmp_path, CONFIG)
    tell(study, [0.5, 0.1], epochs=7, full_budget=True, seconds=1.5)
    tell(study, [0.4, 0.2], epochs=2, full_budget=False, seconds=0.5)
    broken = study.ask({k: to_distribution(v) for k, v in CONFIG.space.items()})
    broken.set_user_attr("failure", "ValueError: no")
    study.tell(broken, state=optuna.trial.TrialState.FAIL)
    study.ask()  # a dead session's
    tell(study, [0.6, 0.3], epochs=7, full_budget=True, seconds=1.5)
    assert adopt_dead_trials(study) == 1
    log = [
        {"number": n, "epoch": e, "seconds": 0.1, "jaccard": 0.1} for n in (0, 3) for e in (1, 2)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in [*log, log[0] | {"jaccard": 0.9}])
    (tmp_path / "trials.jsonl").write_text(lines + '{"number": 0, "ep')

    table = trials_table(study, CONFIG, tmp_path)
    assert table["number"].tolist() == [0, 1, 2, 4]
    assert table["state"].tolist() == ["complete", "complete", "failed", "complete"]
    assert table["pareto"].tolist() == [True, False, False, True]
    assert table["full_budget"].tolist() == [True, False, False, True]
    assert table["failure"].dropna().tolist() == ["ValueError: no"]
    assert table["epochs"].iloc[0] == 7
    assert table["params.optim.lr"].iloc[0] == pytest.approx(study.trials[0].params["optim.lr"])
    assert table["jaccard"].isna().tolist() == [False, False, True, False]
    table.to_parquet(tmp_path / "t.parquet")
    assert records(table)[2]["jaccard"] is None

    history = history_table(study, tmp_path)
    assert history["number"].tolist() == [0, 0]  # trial 3 is in no table
    assert history["jaccard"].tolist() == [0.9, 0.1]  # a retried trial's last word


def test_details_of_older_searches_are_read_too(tmp_path: Path):
    study = open_study(tmp_path, CONFIG)
    study.tell(study.ask({k: to_distribution(v) for k, v in CONFIG.space.items()}), [0.5, 0.1])
    row = {"epochs": 7, "full_budget": True, "params": study.trials[0].params, "seconds": 1.5}
    (tmp_path / "trials.jsonl").write_text(json.dumps(row) + "\n{cut off")
    table = trials_table(study, CONFIG, tmp_path)
    assert (table["epochs"].iloc[0], table["full_budget"].iloc[0]) == (7, True)


@pytest.mark.parametrize("several", [True, False])
def test_the_front_is_the_one_that_optuna_finds(tmp_path: Path, several: bool):
    objectives = CONFIG.objectives if several else CONFIG.objectives[:1]
    config = CONFIG.model_copy(update={"objectives": objectives})
    study, rng = open_study(tmp_path, config), np.random.default_rng(0)
    for values in rng.integers(0, 5, (40, 2)):
        trial = study.ask({k: to_distribution(v) for k, v in config.space.items()})
        study.tell(trial, [float(v) for v in values[: len(objectives)]])
    table = trials_table(study, config, tmp_path)
    theirs = {t.number for t in study.best_trials} if several else {
        t.number for t in study.trials if t.value == study.best_value}  # fmt: skip
    assert set(table.loc[table["pareto"], "number"]) == theirs


def test_the_best_trial_had_its_full_budget(tmp_path: Path):
    study = open_study(tmp_path, CONFIG)
    tell(study, [0.9, 0.1], epochs=2, full_budget=False)
    tell(study, [0.5, 0.3], epochs=7, full_budget=True)
    tell(study, [0.5, 0.2], epochs=7, full_budget=True)
    tell(study, [0.4, 0.1], epochs=7, full_budget=True)
    table = trials_table(study, CONFIG, tmp_path)
    assert best_number(table, CONFIG.objectives) == 2
    assert best_number(table, CONFIG.objectives, "ddi_rate") == 3
    with pytest.raises(ConfigError, match="--pick f1 is no objective; expected one of: jaccard"):
        check_pick(CONFIG, "f1")
    run = Run(tmp_path, "tune", "0" * 64)
    assert export_best(run, CONFIG, table) == 2
    params = study.trials[2].params
    assert load_config(tmp_path / "best.yaml", TrainConfig) == CONFIG.with_params(params)
    front = sorted(path.name for path in (tmp_path / "pareto").iterdir())
    assert front == ["trial_0.yaml"]
    assert export_best(run, CONFIG, table, "ddi_rate") == 3
    line = command_for(Path("a folder/best.yaml"), ("train",), {"cohort": "c", "home": None})
    assert line == "medrec train 'a folder/best.yaml' --cohort c"


def test_more_trials_than_the_configuration_asks_for(tmp_path: Path):
    study = open_study(tmp_path, CONFIG)
    assert wanted_trials(study, CONFIG) == 3
    raise_wanted(study, CONFIG, 5)
    assert wanted_trials(open_study(tmp_path, CONFIG), CONFIG) == 5
    with pytest.raises(ConfigError, match="--trials 4 is less than the 5"):
        raise_wanted(study, CONFIG, 4)


def test_trials_of_another_search_teach_the_sampler_and_count_for_nothing(tmp_path: Path):
    home = Home(tmp_path)
    earlier = Run.open(home, "tune", "s", CONFIG.key(), {})
    study = open_study(earlier.folder, CONFIG)
    for values in ([0.5, 0.1], [0.6, 0.2], [0.7, 0.3]):
        tell(study, values, epochs=1, full_budget=True)
    low = sorted(trial.params["optim.lr"] for trial in study.trials)[1]
    space = {"optim.lr": {"type": "loguniform", "low": low, "high": 1e-1}}
    config = TuneConfig.model_validate(CONFIG.model_dump(mode="json") | {"space": space, "seed": 1})
    child = open_study(tmp_path / "runs", config)
    for _ in range(2):  # a second session adds nothing
        assert [vars(item) for item in warm_start(child, config, [earlier])] == [
            {"run": earlier.name, "used": 2, "out_of_range": 1}
        ]
    assert [trial.user_attrs["from"] for trial in child.trials] == [earlier.name] * 2
    assert complete_trials(child) == []
    assert trials_table(child, config, tmp_path).empty
