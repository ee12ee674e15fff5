"""`medrec tune` where no trial is left to run, so no cluster is needed."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
import yaml

from medrec.config import TrainConfig, TuneConfig
from medrec.loading import load_config
from medrec.runs import Home, Run
from orchestration import cli
from orchestration.search import open_study, to_distribution

TREE = {
    "name": "s",
    "base": {"name": "m", "model": {"name": "retain"}},
    "space": {"optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
    "objectives": [{"metric": "jaccard", "mode": "max"}, {"metric": "ddi_rate", "mode": "min"}],
    "n_trials": 2,
}


@pytest.fixture
def medrec(synthetic, tmp_path, monkeypatch, capsys):
    _, cohort = synthetic
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(TREE))

    def call(*arguments: object) -> tuple[int, str, str]:
        command = ("tune", tmp_path / "s.yaml", "--cohort", f"{cohort.folder}")
        tail = ("--home", tmp_path / "home", "--quiet")
        monkeypatch.setattr(sys, "argv", ["medrec", *map(str, (*command, *tail, *arguments))])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def complete_search(home: Home, cohort) -> Run:
    """A search whose trials are told by hand."""
    config = TuneConfig.model_validate(TREE)
    run = Run.open(home, "tune", "s", config.key(), {"cohort": cohort.digest})
    study = open_study(run.folder, config)
    space = {path: to_distribution(item) for path, item in config.space.items()}
    for values in ([0.5, 0.1], [0.4, 0.05]):
        study.tell(study.ask(space), values)
    return run


def test_resume_needs_a_search(medrec, tmp_path):
    code, _, err = medrec("--resume")
    assert code == 2
    assert "to resume" in err
    assert "there is: none" in err
    assert not list((tmp_path / "home").glob("runs/*"))


def test_the_best_configuration_is_exported_with_the_next_command(medrec, synthetic, tmp_path):
    home = Home(tmp_path / "home")
    run = complete_search(home, synthetic[1])
    code, out, _ = medrec("--resume", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["run"] == run.name
    assert [row["state"] for row in document["trials"]] == ["complete"] * 2
    config = TuneConfig.model_validate(TREE)
    trials = open_study(run.folder, config).trials
    words = shlex.split(document["next"])
    assert words[:2] == ["medrec", "train"]
    assert load_config(words[2], TrainConfig) == config.with_params(trials[0].params)
    assert words[3:] == [
        "--cohort", str(synthetic[1].folder), "--home", str(tmp_path / "home"),
    ]  # fmt: skip
    assert len(list((run.folder / "pareto").iterdir())) == 2
    # another objective, of the finished search
    code, out, _ = medrec("--pick", "ddi_rate")
    assert code == 0
    assert "next: medrec train" in out
    chosen = load_config(run.folder / "best.yaml", TrainConfig)
    assert chosen == config.with_params(trials[1].params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trials", "1"), "--trials 1 is less than the 2 trials"),
        (("--pick", "f1"), "--pick f1 is no objective; expected one of: jaccard, ddi_rate"),
        (("--warm-start", "absent"), "no 'absent' in"),
        (("--set", "sampler=grid"), "is of type loguniform"),
    ],
)
def test_wrong_requests_end_before_anything_runs(medrec, synthetic, tmp_path, arguments, message):
    run = complete_search(Home(tmp_path / "home"), synthetic[1])
    code, _, err = medrec(*arguments)
    assert code == 2
    assert message in err
    assert run.record()["status"] == "created"
