"""`medrec molecules` in one process: libraries, fits that survive a kill, vectors, bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from medrec.config import MoleculePretrainRunConfig, PropertyRunConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.runs import Home, Run
from orchestration import cli, fits
from orchestration.molecules import encoder_run, read_smiles
from quantum.base import InputError

SMILES = (
    "CCO", "CC(=O)O", "c1ccccc1", "NC(N)=O", "CCN", "OCC(O)CO", "CC(C)C#N", "C1CC1CO", "O=C1CCCN1",
    "c1ccoc1C=O", "CC(=O)Nc1ccc(O)cc1", "F/C=C/F", "C[C@H](N)C(=O)O", "CCCCCCCC", "CCOC", "CCS",
    "CC#C", "OC1CCCCC1", "Nc1ccccc1", "CC(C)=O", "COC(=O)C", "ClCCCl", "CNC", "O=CCC=O",
)  # fmt: skip


def medrec(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["medrec", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def write_yaml(path: Path, tree: object) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Folder with a table of molecules and the configurations of this file."""
    folder = tmp_path_factory.mktemp("molecules")
    table = pd.DataFrame({"smiles": [*SMILES, "C(C"], "length": [*map(len, SMILES), 3.0]})
    table["even"] = table["length"] % 2
    table.to_csv(folder / "table.csv", index=False)
    write_yaml(
        folder / "library.yaml",
        {
            "name": "tiny",
            "source": {
                "format": "smiles",
                "path": str(folder / "table.csv"),
                "target_columns": ["length", "even"],
                "units": ["characters", "1"],
                "conformers": True,
            },
        },
    )
    write_yaml(folder / "pretrain.yaml", pretrain_tree())
    write_yaml(folder / "finetune.yaml", finetune_tree())
    return folder


def pretrain_tree(epochs: int = 2, name: str = "pre") -> dict:
    return {
        "task": {
            "name": name,
            "encoder": {"d_model": 16, "layers": 2},
            "fit": {"epochs": epochs, "batch_size": 8, "lr": 1e-3, "warmup_steps": 1},
        },
        "scaling": {"num_workers": 1},
    }


def finetune_tree() -> dict:
    return {
        "task": {
            "name": "fine",
            "encoder": {"d_model": 16, "layers": 2},
            "split": {"train": 0.5, "valid": 0.2},
            "fit": {"epochs": 2, "batch_size": 8, "lr": 1e-3},
        },
        "scaling": {"num_workers": 1},
    }


@pytest.fixture(scope="module")
def home(files: Path) -> Home:
    """Home with the library."""
    from orchestration.console import Terminal
    from orchestration.molecules import LibraryConfig, import_molecules

    tree = yaml.safe_load((files / "library.yaml").read_text())
    place = Home(files / "home")
    import_molecules(LibraryConfig.model_validate(tree), place, Terminal(quiet=True))
    return place


@pytest.fixture(scope="module")
def library(home: Home) -> MoleculeLibrary:
    return MoleculeLibrary.load(home.find(home.molecules, "tiny"))


@pytest.fixture(scope="module")
def pretrained(home: Home, library: MoleculeLibrary) -> Run:
    config = MoleculePretrainRunConfig.model_validate(pretrain_tree())
    return fits.run_fit(config, library, home)


# --------------------------------------------------------------------------- libraries


def test_import_finds_the_library_and_counts(monkeypatch, capsys, files, home, library):
    before = (library.folder / "manifest.json").stat().st_mtime_ns
    code, out, _ = medrec(
        monkeypatch, capsys, "molecules", "import", files / "library.yaml", "--home", home.root,
        "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["library"] == library.name
    assert found["molecules"] == len(SMILES)
    assert found["left out"] == 1
    assert [row["records"] for row in found["rejected"]] == [1]
    assert [(row["name"], row["unit"]) for row in found["targets"]] == [
        ("length", "characters"), ("even", "1"),
    ]  # fmt: skip
    assert (library.folder / "manifest.json").stat().st_mtime_ns == before


def test_info_shows_targets_and_reasons(monkeypatch, capsys, home):
    code, out, _ = medrec(monkeypatch, capsys, "molecules", "info", "tiny", "--home", home.root)
    assert code == 0
    for text in ("characters", "left out", "RDKit", "24"):
        assert text in out


# --------------------------------------------------------------------------- fits


def test_pretraining_is_found_again_and_reports(
    monkeypatch, capsys, files, home, library, pretrained, tmp_path
):
    arguments = (
        "molecules", "pretrain", files / "pretrain.yaml", "--library", library.folder, "--json",
        "--quiet",
    )  # fmt: skip
    code, out, err = medrec(monkeypatch, capsys, *arguments, "--home", home.root)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["run"] == pretrained.name
    assert found["n_train"] == len(SMILES)
    assert found["epochs"] == 2
    assert found["parameters"] > 0
    assert set(pretrained.load_checkpoint("best")) >= {"interact"}
    assert pretrained.load_checkpoint("last") is None
    other = ("--home", tmp_path, "--set", "task.fit.seed=7")
    _, out, _ = medrec(monkeypatch, capsys, *arguments, *other)
    assert json.loads(out)["run"] != pretrained.name


KILLED = """
import sys
from pathlib import Path
from medrec.config import MoleculePretrainRunConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.runs import Home
from orchestration.fits import run_fit
library, home, config = sys.argv[1:]
run_fit(
    MoleculePretrainRunConfig.model_validate_json(config),
    MoleculeLibrary.load(Path(library)),
    Home(Path(home)),
    on_step=lambda done, total, note: print(done, "ray" in sys.modules, flush=True),
)
"""


def test_a_killed_pretraining_ends_like_one_never_interrupted(library, tmp_path):
    config = MoleculePretrainRunConfig.model_validate(pretrain_tree(40, "killed"))
    home = Home(tmp_path / "killed")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, library.folder, home.root, config.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        for line in child.stdout:
            done, used_ray = line.split()
            assert used_ray == "False"
            if int(done) >= 6:
                break
        child.send_signal(signal.SIGKILL)
    (folder,) = home.runs.iterdir()
    cut = Run.load(folder)
    assert cut.load_checkpoint("last")["epoch"] >= 1
    assert 2 <= len(cut.metrics()) < 40
    again = fits.run_fit(config, library, home)
    whole = fits.run_fit(config, library, Home(tmp_path / "whole"))
    assert again.name == whole.name
    assert again.metrics()["epoch"].tolist() == list(range(40))
    assert again.metrics()["loss"].tolist() == whole.metrics()["loss"].tolist()
    ours, theirs = (run.load_checkpoint("best")["interact"]["weights"] for run in (again, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_fit_goes_on_from_what_ray_workers_left(library, tmp_path, monkeypatch):
    config = MoleculePretrainRunConfig.model_validate(pretrain_tree(4, "left"))
    whole = fits.run_fit(config, library, Home(tmp_path / "whole"))
    home = Home(tmp_path / "home")

    class Cut(Exception):
        pass

    def cut(done, total, note):
        if done >= 2 * total // 4:
            raise Cut

    with pytest.raises(Cut):
        fits.run_fit(config, library, home, on_step=cut)
    (folder,) = home.runs.iterdir()
    run = Run.load(folder)
    left = folder / "ray" / "name" / "checkpoint_1"
    left.mkdir(parents=True)
    shutil.move(run.checkpoint_file("last"), left / "state.pt")
    first = []
    again = fits.run_fit(config, library, home, on_step=lambda *row: first.append(row[0]))
    assert min(first) > 3
    assert again.metrics()["loss"].tolist() == whole.metrics()["loss"].tolist()
    assert not (folder / "ray").exists()


def test_one_worker_needs_ray_only_for_a_gpu_or_a_cluster(monkeypatch):
    scaling = PropertyRunConfig.model_validate(finetune_tree()).scaling
    assert fits.runs_here(scaling)
    assert not fits.runs_here(scaling.model_copy(update={"num_workers": 2}))
    assert not fits.runs_here(scaling.model_copy(update={"use_gpu": True}))
    monkeypatch.setenv("MEDREC_RAY_ADDRESS", "ray-head:6379")
    assert not fits.runs_here(scaling)


def test_finetuning_over_seeds(monkeypatch, capsys, files, home, pretrained):
    code, out, err = medrec(
        monkeypatch, capsys, "molecules", "finetune", files / "finetune.yaml", "--library", "tiny",
        "--pretrained", "pre", "--seeds", "1,2", "--home", home.root, "--json", "--quiet",
        "--set", "task.targets=[length]",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert len({run["run"] for run in found["runs"]}) == 2
    mae = next(r for r in found["test"] if (r["target"], r["metric"]) == ("length", "mae"))
    assert mae["unit"] == "characters"
    values = []
    for row in found["runs"]:
        folder = home.runs / row["run"]
        assert Run.load(folder).inputs["pretrained"] == pretrained.digest
        table = pd.read_parquet(folder / "predictions.parquet")
        values.append(np.abs(table["value"] - table["prediction"]).mean())
        assert row["n_train"] == 12
        assert row["seconds"] > 0
    assert mae["mean"] == pytest.approx(np.mean(values))
    assert mae["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "Research use only" in found["note"] or "research use only" in found["note"]


# --------------------------------------------------------------------------- vectors


def test_vectors_of_smiles_and_of_a_table(monkeypatch, capsys, tmp_path, home, pretrained):
    table = tmp_path / "drugs.csv"
    pd.DataFrame({"code": ["CCO", None]}).to_csv(table, index=False)
    arguments = ("molecules", "embed", "CCN", "--file", table, "--column", "code")
    where = ("--pretrained", pretrained.name, "--home", home.root)
    code, out, err = medrec(monkeypatch, capsys, *arguments, *where, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["molecules"], found["without a vector"]) == (3, 1)
    vectors = [row["vector"] for row in found["vectors"]]
    assert vectors[2] is None
    assert len(vectors[0]) == len(vectors[1])
    assert not np.allclose(vectors[0], vectors[1])
    assert "warning" in err
    for name in ("out.csv", "out.parquet"):
        path = tmp_path / "new" / name
        code, _, _ = medrec(monkeypatch, capsys, *arguments, *where, "-o", path)
        assert code == 0
        written = pd.read_csv(path) if name.endswith("csv") else pd.read_parquet(path)
        assert len(written) == 3
        numbers = written.select_dtypes("number").to_numpy()[0]
        np.testing.assert_allclose(numbers, vectors[0], rtol=1e-5)
    code, out, _ = medrec(monkeypatch, capsys, "molecules", "embed", "CCO", *where)
    assert "CCO" in out


def test_the_only_encoder_is_found(home, pretrained, tmp_path):
    with pytest.raises(InputError, match="nothing yet"):
        encoder_run(Home(tmp_path), None)
    assert encoder_run(home, pretrained.name).name == pretrained.name


def test_smiles_have_to_come_from_somewhere(tmp_path):
    with pytest.raises(InputError, match="no SMILES given"):
        read_smiles([], None, "smiles")
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has no column 'smiles'; it has: a, b"):
        read_smiles([], path, "smiles")


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("info", "absent"), "no 'absent' in"),
        (("pretrain", "pretrain.yaml", "--library", "absent"), "there is: tiny-"),
        (("pretrain", "absent.yaml", "--library", "tiny"), "not found"),
        (("import", "library.yaml", "--set", "source.path=none.csv"), "none.csv"),
        (("import", "library.yaml", "--set", "max_atom=3"), "did you mean 'max_atoms'"),
        (("finetune", "finetune.yaml", "--library", "tiny", "--pretrained", "no"), "no 'no' in"),
        (
            ("finetune", "finetune.yaml", "--library", "tiny", "--set", "task.targets=[lenght]"),
            "did you mean 'length'",
        ),
        (
            ("finetune", "finetune.yaml", "--library", "tiny", "--seeds", "x"),
            "--seeds has 'x'",
        ),
        (
            ("finetune", "finetune.yaml", "--library", "tiny", "--pretrained", "pre",
             "--set", "task.encoder.d_model=24", "--set", "task.targets=[length]"),
            "16",
        ),
        (("embed", "CCO", "-o", "x.txt"), "neither .parquet nor .csv"),
        (("embed", "CCO", "--pretrained", "absent"), "no 'absent' in"),
        (("embed", "--file", "absent.csv"), "absent.csv"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch, capsys, files, home, pretrained, arguments, expected
):
    monkeypatch.chdir(files)
    code, out, err = medrec(monkeypatch, capsys, "molecules", *arguments, "--home", home.root, "-q")
    if arguments[0] == "info":  # has no --quiet
        code, out, err = medrec(monkeypatch, capsys, "molecules", *arguments, "--home", home.root)
    assert code == 2
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
