"""`medrec molecules tune` without a cluster: what is refused, a trial, what becomes of the best."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
import yaml

from medrec.config import Objective, PropertyRunConfig, PropertyTuneConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.loading import load_config, validate_config
from medrec.runs import Home, Run
from orchestration import cli, molecule_tune
from orchestration.console import Terminal
from orchestration.molecule_tune import check_encoders, tune_properties, with_objectives
from orchestration.search import TrialLog, open_study, to_distribution
from quantum.base import ConfigError, InputError

SMILES = (
    "CCO", "CC(=O)O", "c1ccccc1", "NC(N)=O", "CCN", "OCC(O)CO", "CC(C)C#N", "C1CC1CO", "O=C1CCCN1",
    "CCCCCCCC", "CCOC", "CCS", "CC#C", "OC1CCCCC1", "Nc1ccccc1", "CC(C)=O",
)  # fmt: skip
SPACE = {
    "encoder.d_model": {"type": "choice", "values": [4, 8]},
    "encoder.layers": {"type": "int", "low": 1, "high": 2},
}


def tree(**changes: object) -> dict:
    base = {
        "name": "t",
        "encoder": {"kind": "gine", "d_model": 8, "layers": 1},
        "modality": "2d",
        "targets": ["length"],
        "split": {"train": 0.5, "valid": 0.25},
        "fit": {"epochs": 2, "batch_size": 4, "lr": 1e-2},
    }
    return {"name": "s", "base": base, "space": SPACE, "n_trials": 3, **changes}


def config(**changes: object) -> PropertyTuneConfig:
    return validate_config(tree(**changes), PropertyTuneConfig, "f")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> MoleculeLibrary:
    from medrec.config import LibraryConfig
    from orchestration.molecules import import_molecules

    folder = tmp_path_factory.mktemp("tune")
    table = pd.DataFrame({"smiles": SMILES, "length": [float(len(item)) for item in SMILES]})
    table["long"] = [float(len(item) > 5) for item in SMILES]
    table.to_csv(folder / "table.csv", index=False)
    source = {
        "format": "smiles",
        "path": str(folder / "table.csv"),
        "target_columns": ["length", "long"],
        "units": ["characters", "1"],
    }
    settings = LibraryConfig.model_validate({"name": "tiny", "source": source})
    return import_molecules(settings, Home(folder / "home"), Terminal(quiet=True))


@pytest.mark.parametrize(
    ("path", "dimension", "message"),
    [
        ("encoder.d_modle", {"type": "choice", "values": [8]}, "did you mean 'd_model'"),
        ("encodr.layers", {"type": "int", "low": 1, "high": 2}, "did you mean 'encoder'"),
        ("encoder.layers", {"type": "int", "low": 1, "high": 99}, "'encoder.layers', value 99"),
        ("encoder.kind", {"type": "choice", "values": ["gine", "schnet"]}, "needs modality 3d"),
        ("encoder", {"type": "choice", "values": [8]}, "'encoder', value 8"),
        ("split.seed", {"type": "int", "low": 1, "high": 9}, "could not be compared"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(path, dimension, message):
    with pytest.raises(ConfigError, match=message):
        config(space={path: dimension})


def test_the_first_objective_is_the_validation_score(library):
    assert with_objectives(config(), library).objectives == (
        Objective(metric="valid_mae", mode="min"),
    )
    both = [{"metric": "valid_mae", "mode": "min"}, {"metric": "parameters", "mode": "min"}]
    assert len(with_objectives(config(objectives=both), library).objectives) == 2
    for wrong in ([{"metric": "jaccard"}], both[::-1], [{"metric": "valid_mae", "mode": "max"}]):
        with pytest.raises(ConfigError, match="expected valid_mae min, alone or before parameters"):
            with_objectives(config(objectives=wrong), library)
    base = tree()["base"] | {"split": {"train": 0.5, "valid": 0.0}}
    with pytest.raises(InputError, match="no validation part"):
        with_objectives(config(base=base), library)


def test_a_pretrained_encoder_of_another_size_is_refused_before_any_trial(library):
    from medrec.properties.finetune import property_problem

    state = property_problem(config().base, library).model.export()
    check_encoders(
        config(space={"head_dropout": {"type": "uniform", "low": 0, "high": 0.5}}), state
    )
    with pytest.raises(InputError, match=r"space path 'encoder.d_model', value 4: "):
        check_encoders(config(), state)


def test_a_trial_reports_the_score_and_the_size_of_the_encoder(library, monkeypatch):
    rows: list[dict] = []
    monkeypatch.setattr("ray.tune.report", rows.append)
    settings = {
        "config": with_objectives(config(), library).model_dump(mode="json"),
        "library": str(library.folder),
        "start": None,
    }
    for d_model in (4, 8):
        molecule_tune._trial({"encoder.d_model": d_model}, settings, TrialLog())
    assert [row["epochs"] for row in rows] == [1, 2, 1, 2]
    assert {row["budget"] for row in rows} == {2}
    assert rows[1]["valid_mae"] <= rows[0]["valid_mae"]
    assert rows[0]["parameters"] < rows[2]["parameters"]
    # the seeds of a trial are other networks on the same split
    second = TrialLog(repeat=1, repeats=2)
    molecule_tune._trial({"encoder.d_model": 8}, settings, second)
    assert len(rows) == 4
    assert second.last["valid_mae"] != rows[3]["valid_mae"]


def test_the_best_trial_is_trained_again_and_evaluated_once(library, tmp_path, monkeypatch, capsys):
    objectives = [{"metric": "valid_mae", "mode": "min"}, {"metric": "parameters", "mode": "min"}]
    search, home = config(objectives=objectives), Home(tmp_path)
    inputs = {"library": library.digest}
    key = search.model_copy(update={"max_concurrent": 1})
    begun = Run.open(home, "tune", "s", key, inputs)
    study = open_study(begun.folder, search)
    space = {path: to_distribution(item) for path, item in search.space.items()}
    # as good as the best and smaller; the first one is the smallest
    for sizes, values in (((4, 1), [2.0, 10.0]), ((8, 2), [1.0, 30.0]), ((8, 1), [1.0, 20.0])):
        study.enqueue_trial(dict(zip(space, sizes, strict=True)))
        study.tell(study.ask(space), values)
    run = tune_properties(search, library, home, Terminal(quiet=True))
    assert run.folder == begun.folder
    report = run.report()
    assert report["best_trial"] == 2
    assert {item["number"] for item in report["best"]} == {0, 2}
    best = run.folder / "best.yaml"
    assert load_config(best, PropertyRunConfig).task.encoder.d_model == 8
    # the exported configuration names the run that is there
    arguments = ["molecules", "finetune", best, "--library", library.folder, "--home", tmp_path]
    monkeypatch.setattr(sys, "argv", ["medrec", *map(str, arguments), "--json", "--quiet"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["run"] == report["best_run"]
    assert found["test"] == report["test"]


def test_the_command_names_a_wrong_path_and_shows_a_finished_search(
    library, tmp_path, monkeypatch, capsys
):
    def medrec(*arguments: object) -> tuple[int, str, str]:
        command = ("molecules", "tune", tmp_path / "s.yaml", "--library", library.folder)
        tail = ("--home", tmp_path / "home", "--quiet")
        monkeypatch.setattr(sys, "argv", ["medrec", *map(str, (*command, *tail, *arguments))])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(tree(space={"fit.lrr": {"type": "int", "low": 1, "high": 2}})))
    code, _, err = medrec()
    assert code == 2
    assert "space path 'fit.lrr' names no field of base (did you mean 'lr'?)" in err
    assert not (tmp_path / "home").exists()

    path.write_text(yaml.safe_dump(tree(n_trials=1)))
    search = with_objectives(config(n_trials=1), library)
    inputs = {"library": library.digest}
    key = config(n_trials=1).model_copy(update={"max_concurrent": 1})
    run = Run.open(Home(tmp_path / "home"), "tune", "s", key, inputs)
    study = open_study(run.folder, search)
    study.tell(study.ask({k: to_distribution(v) for k, v in search.space.items()}), [1.5])
    code, out, _ = medrec("--json")
    assert code == 0
    document = json.loads(out)
    assert document["trials"][0]["valid_mae"] == 1.5
    assert document["test"][0]["metric"] == "mae"
    code, out, _ = medrec()
    assert code == 0
    assert "valid_mae" in out
    assert "not for clinical decisions" in out
