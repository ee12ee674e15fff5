"""The chain of molecular pre-training as a person walks it, from a library to a recommender."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from medrec.config import RepresentationConfig
from medrec.fitting import build_learning_data
from medrec.library.arrays import MoleculeLibrary
from medrec.library.splits import random_split
from medrec.models.representations import InteractInput, Representation
from medrec.molecules.features import FeatureTable
from medrec.runs import Home, Run
from orchestration.features import cohort_species
from quantum.export import export_features
from quantum.pipeline import Task, compute_features
from quantum.schema import CalculationSpec, PipelineSpec
from quantum.store import Store

ENCODER = {"kind": "molinteract", "d_model": 16, "layers": 2}
TARGETS = ("gap", "u0", "mu")
SPEC = PipelineSpec(calculation=CalculationSpec(method="hf", basis="sto-3g"))


def medrec(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command inside this process: the same entry point, without seconds of imports."""
    from orchestration.cli import main

    out, err, words = io.StringIO(), io.StringIO(), ["medrec", *map(str, arguments)]
    code = 0
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def strict_json(text: str) -> Any:
    """Parse JSON and nothing beyond it: NaN is none."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def result(*arguments: object) -> Any:
    """What a command prints with --json."""
    done = medrec(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return strict_json(done.stdout)


def refused(*arguments: object) -> str:
    """The one line of a command that ends with exit code 2."""
    done = medrec(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def write_yaml(path: Path, tree: object) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def state_of_files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------- the steps


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, synthetic) -> Path:
    """Folder with the configurations and the home of this file; has the synthetic cohort."""
    folder = tmp_path_factory.mktemp("chain")
    home = Home(folder / "home")
    home.root.mkdir()
    home.cohorts.symlink_to(synthetic[0].cohorts)
    fit = {"epochs": 2, "batch_size": 64, "lr": 1e-3}
    pretrain = {"name": "pre", "encoder": ENCODER, "fit": fit}
    finetune = {
        "name": "fine",
        "encoder": ENCODER,
        "targets": list(TARGETS),
        "split": {"train": 200, "valid": 40},
        "fit": {**fit, "lr": 3e-3},
    }
    for name, task in (("pretrain", pretrain), ("finetune", finetune)):
        write_yaml(folder / f"{name}.yaml", {"task": task, "scaling": {"num_workers": 1}})
    model = {
        "name": "molerec",
        "d_model": 16,
        "dropout": 0.0,
        "representation": {"kind": "molinteract", "layers": 2, "dropout": 0.0},
    }
    # so slow that the weights after an epoch are those of the start
    optim = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0}
    write_yaml(folder / "train.yaml", {"name": "rec", "model": model, "optim": optim})
    return folder


@pytest.fixture(scope="module")
def home(place: Path) -> Home:
    return Home(place / "home")


def importing(root: Path, home: Home) -> tuple[object, ...]:
    return (
        "molecules", "import", root / "configs" / "molecules" / "fixture_qm9.yaml",
        "--set", "hydrogens=false", "--home", home.root,
    )  # fmt: skip


def pretraining(place: Path, library: MoleculeLibrary) -> tuple[object, ...]:
    return (
        "molecules", "pretrain", place / "pretrain.yaml", "--library", library.name,
        "--home", place / "home", "--quiet",
    )  # fmt: skip


def finetuning(place: Path, library: MoleculeLibrary, *more: object) -> tuple[object, ...]:
    return (
        "molecules", "finetune", place / "finetune.yaml", "--library", library.name,
        "--home", place / "home", "--quiet", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def library(root: Path, home: Home) -> MoleculeLibrary:
    found = result(*importing(root, home))
    return MoleculeLibrary.load(home.molecules / found["library"])


@pytest.fixture(scope="module")
def pretrained(place: Path, home: Home, library: MoleculeLibrary) -> Run:
    found = result(*pretraining(place, library))
    return Run.load(home.runs / found["run"])


@pytest.fixture(scope="module")
def finetuned(place: Path, home: Home, library: MoleculeLibrary, pretrained: Run) -> list[Run]:
    """Two seeds with both views."""
    arguments = finetuning(place, library, "--pretrained", pretrained.name, "--seeds", "1,2")
    return [Run.load(home.runs / row["run"]) for row in result(*arguments)["runs"]]


@pytest.fixture(scope="module")
def features(home: Home, synthetic) -> FeatureTable:
    """Conformers of six small species of the cohort; its other drugs have none."""
    species = sorted(cohort_species([synthetic[1]]), key=lambda item: item.n_atoms)[:6]
    store = Store(home.store)
    for item in species:
        done = compute_features(Task(species=item, spec=SPEC, stages=("conformer",)), store)
        assert done.status == "done"
    return FeatureTable.load(export_features(species, SPEC, store, home.features, "few"))


def training(place: Path, features: FeatureTable, *more: object) -> tuple[object, ...]:
    return (
        "train", place / "train.yaml", "--cohort", "tiny", "--features", features.folder.name,
        "--home", place / "home", "--quiet", *more,
    )  # fmt: skip


def best(run: Run) -> dict[str, Any]:
    """Export of a finished run."""
    state = run.load_checkpoint("best")
    assert state is not None
    return state


def towers(run: Run) -> dict[str, torch.Tensor]:
    """Weights of a recommender's molecule encoder."""
    prefix = "representation.molecule_encoder.towers."
    weights = best(run)["model"]
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def recommenders(home: Home) -> set[str]:
    return {path.name for path in home.runs.glob("rec-*")}


# --------------------------------------------------------------------------- library to vectors


def test_a_library_is_imported_shown_and_found_again(root: Path, home: Home, library):
    shown = result("molecules", "info", library.name, "--home", home.root)
    assert (shown["molecules"], shown["with 3D coordinates"], shown["left out"]) == (300, 300, 0)
    assert shown["atoms"] == "heavy atoms"
    units = {row["name"]: row["unit"] for row in shown["targets"]}
    assert [units[name] for name in TARGETS] == ["meV", "meV", "D"]
    assert all(row["labels"] == 300 for row in shown["targets"])
    before = state_of_files(home.molecules)
    assert result(*importing(root, home))["library"] == library.name
    assert state_of_files(home.molecules) == before
    text = medrec("molecules", "info", "fixture_qm9", "--home", home.root)
    assert text.returncode == 0
    assert "heavy atoms" in text.stdout


def test_pretraining_has_all_six_terms_and_is_found_again(place, home, library, pretrained):
    metrics = pretrained.metrics()
    terms = {"distance", "angle", "dihedral", "edge", "spd", "centrality"}
    assert {name.removeprefix("loss_") for name in metrics if name.startswith("loss_")} == terms
    assert metrics["loss"].is_monotonic_decreasing
    assert pretrained.inputs == {"library": library.digest}
    before = state_of_files(home.runs)
    assert result(*pretraining(place, library))["run"] == pretrained.name
    assert state_of_files(home.runs) == before


def test_finetuning_from_it_over_two_seeds_is_found_again(
    place, home, library, pretrained, finetuned
):
    assert len({run.name for run in finetuned}) == 2
    test_rows = set()
    for run in finetuned:
        assert run.inputs == {"library": library.digest, "pretrained": pretrained.digest}
        predictions = pd.read_parquet(run.folder / "predictions.parquet")
        assert len(predictions) == 60 * len(TARGETS)
        truth = library.targets[predictions["row"]]
        names = [target.name for target in library.targets_info]
        column = predictions["target"].map(names.index).to_numpy()
        assert (predictions["value"] == truth[np.arange(len(truth)), column]).all()
        test_rows.add(tuple(predictions["row"]))
    assert len(test_rows) == 1  # seeds change the weights, not the split
    before = state_of_files(home.runs)
    arguments = finetuning(place, library, "--pretrained", "pre", "--seeds", "1,2")
    again = result(*arguments)
    assert [row["run"] for row in again["runs"]] == [run.name for run in finetuned]
    assert state_of_files(home.runs) == before
    text = medrec(*arguments)
    assert "mean and SD over 2 runs" in text.stdout
    assert "research use only" in text.stdout


def test_finetuning_on_the_graph_alone(place, home, library, pretrained, finetuned):
    arguments = finetuning(
        place, library, "--pretrained", pretrained.name, "--set", "task.modality=2d"
    )
    (row,) = result(*arguments)["runs"]
    assert row["run"] not in {run.name for run in finetuned}
    assert result(*arguments)["runs"][0]["run"] == row["run"]
    # frozen: the other tower is as it was pre-trained
    start, end = (
        best(run)["interact"]["weights"] for run in (pretrained, Run.load(home.runs / row["run"]))
    )
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert same >= {name for name in start if name.startswith(("elements.", "layers.0.spatial."))}
    assert not {name for name in same if name.startswith(("atoms.table", "layers.0.flat.mlp"))}


def test_an_encoder_of_heavy_atoms_on_all_atoms_is_noted(root, place, home, pretrained):
    arguments = (*importing(root, home), "--set", "hydrogens=true", "--set", "limit=60")
    library = MoleculeLibrary.load(home.molecules / result(*arguments)["library"])
    parts = ("--set", "task.split={train: 0.6, valid: 0.2}", "--set", "task.fit.epochs=1")
    note = "the encoder was trained on heavy atoms alone, the library has all atoms"
    (row,) = result(*finetuning(place, library, *parts, "--pretrained", "pre"))["runs"]
    assert row["notes"] == [note]
    assert note in medrec(*finetuning(place, library, *parts, "--pretrained", "pre")).stdout
    assert result(*finetuning(place, library, *parts))["runs"][0]["notes"] == []


def test_vectors_in_a_file_and_on_the_terminal(tmp_path: Path, home: Home, pretrained):
    common = ("molecules", "embed", "CCO", "c1ccccc1", "C(", "--home", home.root)
    path = tmp_path / "vectors.parquet"
    done = medrec(*common, "--pretrained", pretrained.name, "--out", path)
    assert done.returncode == 0
    assert "C(: RDKit cannot read the SMILES" in done.stderr
    written = pd.read_parquet(path)
    assert written["smiles"].tolist() == ["CCO", "c1ccccc1", "C("]
    numbers = written.filter(regex=r"^v\d+$").to_numpy()
    assert numbers.shape == (3, 16)
    assert np.isnan(numbers).all(axis=1).tolist() == [False, False, True]
    shown = result(*common)  # the only pre-training run needs no name
    assert shown["run"] == pretrained.name
    vectors = [row["vector"] for row in shown["vectors"]]
    assert vectors[2] is None
    np.testing.assert_allclose(vectors[:2], numbers[:2], rtol=1e-6)
    both = result(*common, "--conformers")["vectors"][0]["vector"]
    assert len(both) == 32


# --------------------------------------------------------------------------- what is not read


def spoilt(library: MoleculeLibrary, home: Home, name: str, rows: np.ndarray) -> MoleculeLibrary:
    """A copy of a library, of the same name, with other numbers in some rows of an array."""
    folder = home.molecules / library.name
    shutil.copytree(library.folder, folder)
    array = np.load(folder / f"{name}.npy")
    array[rows] = np.random.default_rng(1).normal(size=array[rows].shape)
    np.save(folder / f"{name}.npy", array)
    return MoleculeLibrary.load(folder)


def other_home(command: tuple[object, ...], home: Home, root: Path) -> tuple[object, ...]:
    return tuple(root if item == home.root else item for item in command)


def test_targets_of_the_test_part_do_not_reach_the_weights(tmp_path, place, home, library):
    command = (*finetuning(place, library), "--set", "task.name=alone")
    (row,) = result(*command)["runs"]
    run, other = Run.load(home.runs / row["run"]), Home(tmp_path / "home")
    test = random_split(300, 200, 40, 42).test
    assert set(pd.read_parquet(run.folder / "predictions.parquet")["row"]) == set(test)
    spoilt(library, other, "targets", test)
    again = Run.load(other.runs / result(*other_home(command, home, other.root))["runs"][0]["run"])
    assert again.name == run.name
    for part, weights in (("interact", best(run)["interact"]), ("property", best(run)["property"])):
        for name, value in weights["weights"].items():
            assert torch.equal(best(again)[part]["weights"][name], value), name
    assert again.report()["test"] != run.report()["test"]


def test_molecules_outside_the_training_part_are_not_pretrained_on(tmp_path, place, home, library):
    split = ("--set", "task.split={kind: random, train: 200, valid: 0.0}")
    command = (*pretraining(place, library), *split, "--set", "task.name=part")
    run = Run.load(home.runs / result(*command)["run"])
    other = Home(tmp_path / "home")
    rows, _ = library.rows_of("atom", random_split(300, 200, 0, 42).test)
    spoilt(library, other, "position", rows)
    again = Run.load(other.runs / result(*other_home(command, home, other.root))["run"])
    weights = best(again)["interact"]["weights"]
    assert all(torch.equal(weights[k], v) for k, v in best(run)["interact"]["weights"].items())


# --------------------------------------------------------------------------- report


def test_report_of_both_kinds_of_runs(tmp_path: Path, home: Home, pretrained, finetuned):
    out = tmp_path / "page.html"
    names = [pretrained.name, *(run.name for run in finetuned)]
    done = medrec("report", *names, "--out", out, "--home", home.root)
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']https?:""", text)
    figures = json.loads(text.partition('id="figures">')[2].partition("</script>")[0])
    assert text.count('class="figure"') == len(figures) == 2 + len(finetuned)
    curves, terms, *parity = figures.values()
    score = finetuned[0].report()["score"]
    shown = [trace["y"] for trace in curves["data"]]
    for run in finetuned:
        assert run.metrics()["loss"].tolist() in shown
        assert run.metrics()[score].tolist() in shown
    assert {trace["name"] for trace in terms["data"]} >= {"distance", "spd", "spd (accuracy)"}
    for run, figure in zip(finetuned, parity, strict=True):
        titles = [item["text"] for item in figure["layout"]["annotations"]]
        assert titles == list(TARGETS)
        predictions = pd.read_parquet(run.folder / "predictions.parquet")
        own = predictions[predictions["target"] == "mu"]
        (points,) = (
            trace
            for trace in figure["data"]
            if trace.get("mode") == "markers" and trace["xaxis"] == f"x{1 + TARGETS.index('mu')}"
        )
        assert points["x"] == own["value"].tolist()
        assert points["y"] == pytest.approx(own["prediction"].tolist())
    report = finetuned[0].report()["test"]
    mae = next(r for r in report if (r["target"], r["metric"]) == ("mu", "mae"))
    assert f">{mae['value']:.4g}</td>" in text


def test_report_of_a_run_with_markup_in_its_name(tmp_path: Path, finetuned):
    """Folders can be renamed; what stands in their names is text."""
    evil = "<img src=x onerror=alert(1)>"
    home = Home(tmp_path / "home")
    home.runs.mkdir(parents=True)
    (home.runs / evil).symlink_to(finetuned[0].folder)
    out = tmp_path / "page.html"
    assert medrec("report", evil, "--out", out, "--home", home.root).returncode == 0
    text = out.read_text(encoding="utf-8")
    assert "<img" not in re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL)
    assert "&lt;img src=x" in text


def test_report_of_a_classification(tmp_path: Path, root: Path, place: Path):
    home = Home(tmp_path)
    config = write_yaml(
        tmp_path / "bbbp.yaml",
        {
            "name": "bbbp",
            "source": {
                "format": "moleculenet",
                "dataset": "bbbp",
                "path": str(root / "tests/data/molecules/bbbp.csv"),
            },
        },
    )
    library = result("molecules", "import", config, "--home", home.root)["library"]
    fit = medrec(
        "molecules", "finetune", place / "finetune.yaml", "--library", library, "--quiet",
        "--home", home.root, "--set", "task.modality=2d", "--set", "task.targets=null",
        "--set", "task.split={train: 0.6, valid: 0.2}", "--set", "task.fit.epochs=1",
    )  # fmt: skip
    assert fit.returncode == 0, fit.stderr
    assert "roc_auc" in fit.stdout
    done = medrec("report", "fine", "--home", home.root)
    assert done.returncode == 0, done.stderr
    (page,) = home.reports.iterdir()
    assert "histogram" in page.read_text(encoding="utf-8")


# --------------------------------------------------------------------------- a recommender


def test_a_recommender_starts_from_the_pretrained_encoder(place, home, features, pretrained):
    before = recommenders(home)
    arguments = training(place, features, "--pretrained", pretrained.name)
    done = medrec(*arguments)
    assert done.returncode == 0, done.stderr
    (name,) = recommenders(home) - before
    run = Run.load(home.runs / name)
    assert run.inputs["pretrained"] == pretrained.digest
    export = best(pretrained)["interact"]["weights"]
    weights = towers(run)
    assert weights.keys() == export.keys()
    for key, value in export.items():  # an epoch of steps of 1e-12
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-8)
    files = state_of_files(home.runs)
    assert medrec(*arguments).returncode == 0
    assert state_of_files(home.runs) == files
    # without the run it starts elsewhere, under another name
    assert medrec(*training(place, features)).returncode == 0
    (other,) = recommenders(home) - before - {name}
    assert not torch.equal(
        towers(Run.load(home.runs / other))["atoms.table.weight"], export["atoms.table.weight"]
    )


def test_what_is_handed_over_is_the_export_to_the_bit(synthetic, features, pretrained):
    tables = build_learning_data(synthetic[1], 0, features, molecules=True).context.molecules
    assert tables is not None
    assert tables.with_geometry.any()
    assert not tables.with_geometry.all()  # the others have their 2D side
    config = RepresentationConfig(kind="molinteract", layers=2, dropout=0.0)
    part = Representation(config, tables, d_model=16)
    first = part.molecules().detach()
    part.load_pretrained(best(pretrained))
    assert isinstance(part.molecule_encoder, InteractInput)
    state = part.molecule_encoder.towers.state_dict()
    export = best(pretrained)["interact"]["weights"]
    assert all(torch.equal(state[name], value) for name, value in export.items())
    vectors = part.molecules().detach()
    assert torch.isfinite(vectors).all()
    assert ((vectors - first).abs().amax(dim=1) > 1e-4).all()


def test_a_finetuned_encoder_starts_a_recommender_too(place, home, features, finetuned):
    before = recommenders(home)
    done = medrec(*training(place, features, "--pretrained", finetuned[0].name))
    assert done.returncode == 0, done.stderr
    (name,) = recommenders(home) - before
    export = best(finetuned[0])["interact"]["weights"]
    weights = towers(Run.load(home.runs / name))
    torch.testing.assert_close(weights["layers.1.mix.2.weight"], export["layers.1.mix.2.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.d_model=24", "'d_model': 16"),
        ("model.representation.layers=3", "'layers': 2"),
        ("model.representation.kind=gin", "'gin_molecule'"),
    ],
)
def test_another_size_or_kind_is_refused(place, features, pretrained, change, words):
    line = refused(*training(place, features, "--pretrained", pretrained.name, "--set", change))
    assert words in line


def test_a_network_that_reads_other_layers_is_no_start_of_a_recommender(
    place, home, library, features, pretrained
):
    """`InteractEncoder` reads the last layer; a network of the mean has another meaning."""
    mean = ("--set", "task.encoder.jk=mean")
    name = result(*pretraining(place, library), *mean, "--set", "task.name=mean")["run"]
    state = best(Run.load(home.runs / name))
    assert "interact" not in state
    assert state["molinteract"]["sizes"] == {"d_model": 16, "layers": 2, "jk": "mean"}
    line = refused(*training(place, features, "--pretrained", name))
    assert "holds no MolInteract encoder" in line
    vectors = [
        result("molecules", "embed", "CCO", "--pretrained", run, "--home", home.root)["vectors"]
        for run in (name, pretrained.name)
    ]
    assert len(vectors[0][0]["vector"]) == 16
    assert vectors[0] != vectors[1]
    line = refused(*finetuning(place, library, "--pretrained", name))
    assert "'jk': 'mean'" in line
    assert medrec(*finetuning(place, library, "--pretrained", name, *mean)).returncode == 0


def test_runs_on_a_cohort_and_on_a_library_share_no_page(place, home, features, pretrained):
    before = recommenders(home)
    assert medrec(*training(place, features, "--set", "seed=7")).returncode == 0
    (name,) = recommenders(home) - before
    line = refused("report", pretrained.name, name, "--home", home.root)
    assert f"{name} is about a cohort" in line


def test_an_encoder_that_saw_hydrogens_is_no_start_of_a_recommender(root, place, home, features):
    found = result(*importing(root, home), "--set", "hydrogens=true", "--set", "limit=30")
    library = MoleculeLibrary.load(home.molecules / found["library"])
    name = result(*pretraining(place, library), "--set", "task.name=hydrogens")["run"]
    line = refused(*training(place, features, "--pretrained", name))
    assert "read hydrogens as atoms" in line
