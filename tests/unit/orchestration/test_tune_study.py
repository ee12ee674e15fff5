"""The study is the record: translation of the space, adoption of dead trials. No cluster."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from medrec.config import Choice, FloatRange, IntRange, TuneConfig
from orchestration.search import (
    adopt_dead_trials,
    complete_trials,
    open_study,
    to_distribution,
    trials_table,
)

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
    assert again.ask(space).params == lost.params


def test_the_table_marks_the_front_and_the_budget(tmp_path: Path):
    study = open_study(tmp_path, CONFIG)
    space = {k: to_distribution(v) for k, v in CONFIG.space.items()}
    for values in ([0.5, 0.1], [0.4, 0.2], [0.6, 0.3]):
        study.tell(study.ask(space), values)
    lr = study.trials[0].params["optim.lr"]
    detail = (
        f'{{"epochs": 7, "full_budget": true, "params": {{"optim.lr": {lr!r}}}, "seconds": 1.5}}'
    )
    (tmp_path / "trials.jsonl").write_text(detail + '\n{"cut off')
    table = trials_table(study, CONFIG, tmp_path)
    assert table["pareto"].tolist() == [True, False, True]
    assert table["full_budget"].tolist() == [True, False, False]
    assert table["epochs"].iloc[0] == 7
    assert table["params.optim.lr"].iloc[0] == pytest.approx(lr)
