"""Studies: every file checked before anything runs, one table at the end, found again by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medrec.runs import Home
from orchestration.console import Terminal
from orchestration.stages import Stages
from orchestration.study import load_plan, run_study
from quantum.base import ConfigError

RECORDS = {
    "name": "tiny",
    "source": {
        "format": "synthetic",
        "n_patients": 60,
        "n_diagnoses": 30,
        "n_procedures": 12,
        "n_drugs": 20,
        "mean_diagnoses": 4,
        "mean_procedures": 2,
    },
}


def write(folder: Path, name: str, tree: object) -> str:
    (folder / name).write_text(yaml.safe_dump(tree))
    return name


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write(tmp_path, "records.yaml", RECORDS)
    for name in ("topk", "copy_last"):
        write(tmp_path, f"{name}.yaml", {"name": name, "model": {"name": name}})
    tree = {
        "name": "tiny",
        "records": "records.yaml",
        "systems": [{"train": "topk.yaml"}, {"train": "copy_last.yaml"}],
        "reference": "topk",
        "seeds": [1, 2],
    }
    return tmp_path / write(tmp_path, "study.yaml", tree)


def changed(study: Path, **values: object) -> Path:
    study.write_text(yaml.safe_dump({**yaml.safe_load(study.read_text()), **values}))
    return study


def test_systems_times_seeds(study):
    plan = load_plan(study, splits=[0, 1])
    assert [(c.name, c.split, c.seed) for _, c in plan.jobs()] == [
        (name, split, seed) for name in ("topk", "copy_last") for split in (0, 1) for seed in (1, 2)
    ]


def test_other_records_and_overrides(study, tmp_path):
    other = write(tmp_path, "other.yaml", {**RECORDS, "name": "other"})
    plan = load_plan(study, tmp_path / other, seeds=[5], overrides=["optim.lr=0.5"])
    assert plan.records.name == "other"
    assert {config.seed for _, config in plan.jobs()} == {5}
    assert {config.optim.lr for _, config in plan.jobs()} == {0.5}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reference": "molerec"}, "reference 'molerec' is none of the systems"),
        ({"systems": [{"train": "missing.yaml"}]}, "not found"),
        ({"systems": [{"train": "topk.yaml"}, {"train": "topk.yaml"}]}, "one name|tiny"),
        ({"seed": [1]}, "unknown key 'seed'"),
    ],
)
def test_faults_are_found_before_anything_runs(study, values, message):
    if "systems" in values and len(values["systems"]) == 2:
        second = study.parent / "again.yaml"
        second.write_text((study.parent / "topk.yaml").read_text())
        values = {"systems": [{"train": "topk.yaml"}, {"train": "again.yaml"}]}
    with pytest.raises(ConfigError, match=message):
        load_plan(changed(study, **values))


def test_pretraining_without_molecules_is_refused(study):
    task = {"task": {"name": "bimodal"}}
    write(study.parent, "pretrain.yaml", task)
    systems = [{"train": "topk.yaml", "pretrain": "pretrain.yaml"}]
    with pytest.raises(ConfigError, match="set 'features'"):
        load_plan(changed(study, systems=systems))


def test_a_study_runs_and_is_found_again(study, tmp_path, capsys):
    home = Home(tmp_path / "home")
    page = tmp_path / "page.html"
    stages = Stages(home, Terminal(quiet=True))
    runs = run_study(load_plan(study), stages, page=page)
    assert len(runs) == 4
    assert all(run.is_finished for run in runs)
    assert "copy last" in page.read_text() or "copy_last" in page.read_text()
    again = run_study(load_plan(study), stages, page=page)
    assert [run.name for run in again] == [run.name for run in runs]
    printed = capsys.readouterr().out
    assert "test part" in printed
