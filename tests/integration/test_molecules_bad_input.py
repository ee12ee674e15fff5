"""Bad molecules, tables, libraries and checkpoints at the command line.

Each is left out and counted with a reason, or refused in one line with a documented exit code.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import yaml

from medrec.config import LibraryConfig
from medrec.library import build
from medrec.library.arrays import ARRAYS
from medrec.library.readers import open_source
from medrec.library.splits import random_split
from medrec.loading import load_config
from medrec.runs import Home, Run
from orchestration import molecules
from quantum.base import InputError, StoreError

FIT = {"epochs": 1, "batch_size": 8}
PREDICT = {"name": "pre", "encoder": {"kind": "molinteract", "d_model": 16, "layers": 2}}
MASKING = {
    "name": "mask",
    "encoder": {"kind": "gine", "d_model": 16, "layers": 2},
    "task": {"kind": "masking"},
}
SMILES = ("CCO", "CCN", "c1ccccc1", "CC(=O)O", "CCCC", "NCC=O", "C1CC1O", "CC#N", "OCCO", "CCS")


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


def no_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def result(*arguments: object) -> Any:
    """What a command prints with --json."""
    done = medrec(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=no_json)


def refused(*arguments: object, code: int = InputError.exit_code) -> str:
    """The one line of a command that is refused."""
    done = medrec(*arguments)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    return done.stderr


class Place:
    """A home, and the commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, Home(folder / "home")

    def write(self, name: str, tree: object) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def importing(self, source: dict[str, Any], **settings: Any) -> tuple[object, ...]:
        path = self.write("library", {"name": "bad", "source": source, **settings})
        return ("molecules", "import", path, "--home", self.home.root, "--quiet")

    def library(self, source: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """Facts of an imported library; ``rejected`` as a dictionary."""
        found = result(*self.importing(source, **settings))
        return {**found, "rejected": {row["reason"]: row["records"] for row in found["rejected"]}}

    def pretraining(self, library: str, task: dict[str, Any]) -> tuple[object, ...]:
        tree = {"task": {"fit": FIT, **task}, "scaling": {"num_workers": 1}}
        return self._fitting("pretrain", tree, library)

    def finetuning(self, library: str, **task: Any) -> tuple[object, ...]:
        own = {"name": "fine", "encoder": PREDICT["encoder"], "modality": "2d", "fit": FIT}
        tree = {"task": {**own, **task}, "scaling": {"num_workers": 1}}
        return self._fitting("finetune", tree, library)

    def _fitting(self, command: str, tree: object, library: str) -> tuple[object, ...]:
        config, home = self.write(command, tree), self.home.root
        return ("molecules", command, config, "--library", library, "--home", home, "--quiet")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def bad(root: Path) -> Path:
    return root / "tests" / "data" / "molecules" / "bad"


def table(path: Path, **columns: Any) -> dict[str, Any]:
    """A table on disk as a source; columns but ``smiles`` are targets."""
    pd.DataFrame(columns).to_csv(path, index=False)
    targets = [name for name in columns if name != "smiles"]
    return {"format": "smiles", "path": str(path), "target_columns": targets}


# --------------------------------------------------------------------------- molecules


def test_a_drawing_has_no_third_dimension(place: Place, bad: Path):
    source = {"format": "sdf", "path": str(bad / "flat.sdf")}
    line = refused(*place.importing(source, need_positions=True))
    assert "no molecule of library 'bad' can be used (no 3D coordinates: 1)" in line
    found = place.library(source)
    assert (found["molecules"], found["with 3D coordinates"]) == (1, 0)
    line = refused(*place.pretraining(found["library"], PREDICT))
    assert "has no 3D coordinates for any of its 1 molecules" in line


def test_a_flat_molecule_may_have_a_third_dimension(place: Place, bad: Path, tmp_path: Path):
    """In standard orientation a planar molecule lies in z = 0; the header says what it is."""
    text = (bad / "flat.sdf").read_text()
    (tmp_path / "planar.sdf").write_text(text.replace("RDKit          2D", "RDKit          3D"))
    found = place.library({"format": "sdf", "path": str(tmp_path / "planar.sdf")})
    assert found["with 3D coordinates"] == 1


def test_views_of_different_molecules_are_counted(place: Place, bad: Path):
    source = {"format": "sdf", "path": str(bad / "other_molecule.sdf")}
    found = place.library(
        source | {"targets": str(bad / "other_molecule.csv"), "target_columns": ["y"]}
    )
    assert found["molecules"] == 1
    assert found["rejected"] == {"SDF record and row of the table are different molecules": 1}
    qm9 = place.library({"format": "qm9", "path": str(bad / "qm9.parquet")})
    assert qm9["molecules"] + sum(qm9["rejected"].values()) == len(
        pd.read_parquet(bad / "qm9.parquet")
    )
    assert qm9["rejected"] == {
        "2D and 3D atoms do not match": 1,
        "3D coordinates of another number of atoms": 1,
        "NaN or infinite coordinates": 1,
        "two atoms at the same place": 1,
    }


@pytest.mark.parametrize("hydrogens", [False, True])
def test_odd_molecules_are_counted_or_learned_from(place: Place, bad: Path, hydrogens: bool):
    """Mixtures, single atoms and drawings stay; dummy atoms and broken records do not."""
    found = place.library({"format": "sdf", "path": str(bad)}, hydrogens=hydrogens)
    assert found["rejected"] == {"RDKit cannot read the SDF record": 2, "unknown element": 1}
    assert (found["molecules"], found["with 3D coordinates"]) == (7, 6)
    assert found["atoms of a molecule"].startswith("1 to ")
    loss = result(*place.pretraining(found["library"], PREDICT))["loss"]
    assert np.isfinite(loss)
    vectors = result(
        "molecules", "embed", "[He]", "CCO.Cl", "*CC", "[Na+].[Cl-]", "[H][H]", "",
        "--home", place.home.root,
    )["vectors"]  # fmt: skip
    reasons = [row["reason"] for row in vectors]
    assert reasons == ["", "", "unknown element", "", "", "no atoms"]
    assert [row["vector"] is None for row in vectors] == [bool(reason) for reason in reasons]


def test_a_table_with_everything_wrong_counts_every_row(place: Place, bad: Path):
    source = {
        "format": "smiles",
        "path": str(bad / "smiles.csv"),
        "target_columns": ["y", "label"],
        "conformers": True,
    }
    found = place.library(source)
    assert found["molecules"] == 4
    assert found["rejected"] == {
        "RDKit cannot read the SMILES": 1,
        "no SMILES": 1,
        "unknown element": 1,
        "infinite targets": 1,
    }
    assert {row["name"]: row["labels"] for row in found["targets"]} == {"y": 3, "label": 3}
    assert np.isfinite(result(*place.pretraining(found["library"], PREDICT))["loss"])


def test_a_thousand_atoms(place: Place, tmp_path: Path):
    big = "C" * 999 + "O"
    source = table(tmp_path / "t.csv", smiles=[*SMILES, big], y=np.arange(11.0))
    default = place.library(source)
    assert default["molecules"] == 10
    assert default["rejected"] == {"more than 256 atoms": 1}
    found = place.library(source, max_atoms=1024)
    assert found["rejected"] == {}
    assert found["atoms of a molecule"].endswith(f"mean {(1000 + 38) / 11:.1f}")
    name = found["library"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = result(*place.pretraining(name, MASKING))
    assert run["n_train"] == 11
    assert np.isfinite(run["loss"])
    seeds: dict[bool, int] = {}  # of splits with which the large one trains, and does not
    for seed in range(20):
        seeds.setdefault(10 in random_split(11, 8, 2, seed).train, seed)
    for seed in (seeds[True], seeds[False]):
        split = {"train": 8, "valid": 2, "seed": seed}
        (fit,) = result(*place.finetuning(name, split=split))["runs"]
        assert np.isfinite(fit["loss"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


# --------------------------------------------------------------------------- targets


def test_missing_targets(place: Place, tmp_path: Path):
    some, none = np.arange(10.0), np.full(10, np.nan)
    some[[1, 4]] = np.nan
    source = table(tmp_path / "t.csv", smiles=SMILES, some=some, none=none)
    found = place.library(source)
    assert {row["name"]: row["labels"] for row in found["targets"]} == {"some": 8, "none": 0}
    name, split = found["library"], {"train": 0.6, "valid": 0.2}
    line = refused(*place.finetuning(name, split=split))
    assert "none: no label among the 6 training molecules" in line
    (run,) = result(*place.finetuning(name, split=split, targets=["some"]))["runs"]
    assert np.isfinite(run["loss"])
    assert {row["target"] for row in run["test"]} == {"some", "mean over targets"}


def test_what_a_small_test_part_cannot_judge_has_no_number(place: Place, root: Path):
    tox21 = root / "tests" / "data" / "molecules" / "tox21.csv"
    found = place.library({"format": "moleculenet", "dataset": "tox21", "path": str(tox21)})
    split = {"train": 0.9, "valid": 0.05}
    fit = place.finetuning(found["library"], split=split)
    for command in (fit, (*fit, "--seeds", "1,2")):
        rows = result(*command)["test"]
        values = [row.get("value", row.get("mean")) for row in rows]
        assert None in values
        assert 0.0 <= values[-1] <= 1.0
    assert "-" in medrec(*fit).stdout


@pytest.mark.parametrize(
    ("values", "split", "words"),
    [
        ([2.5] * 10, {"train": 0.6, "valid": 0.2}, "y: the same value for all among the 6"),
        ([1.0] * 9 + [0.0], {"train": 0.6, "valid": 0.2, "seed": 1}, "no target has both classes"),
        (range(10), {"train": 1.0, "valid": 0.0}, "the test part of library"),
        (range(10), {"train": 9, "valid": 9}, "are 18 molecules"),
        (range(10), {"train": 0.05, "valid": 0.0}, "has none to train on"),
    ],
)
def test_targets_and_parts_that_teach_nothing(place: Place, tmp_path, values, split, words):
    source = table(tmp_path / "t.csv", smiles=SMILES, y=list(values))
    found = place.library(source)
    assert words in refused(*place.finetuning(found["library"], split=split))


def test_a_field_that_no_record_has_is_a_target_without_labels(place: Place, bad: Path):
    source = {"format": "sdf", "path": str(bad / "mixture.sdf"), "target_columns": ["y"]}
    assert place.library(source)["targets"][0]["labels"] == 0


# --------------------------------------------------------------------------- files of a source


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def spoilt(path: Path) -> Path:
    """Zeros in the first half: the footer of a Parquet file stays."""
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    return path


def sources(folder: Path, root: Path) -> dict[str, tuple[dict[str, Any], str]]:
    data = root / "tests" / "data" / "molecules"

    def copy(source: Path, name: str) -> Path:
        return Path(shutil.copy(source, folder / name))

    def wrote(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    own = pd.DataFrame({"smiles": SMILES * 500, "y": 1.5})
    own.to_parquet(folder / "own.parquet", index=False)
    own.head(0).to_parquet(folder / "empty.parquet", index=False)
    pd.DataFrame({"smiles": [1, 2]}).to_parquet(folder / "numbers.parquet", index=False)
    smiles, sdf, qm9 = ({"format": name} for name in ("smiles", "sdf", "qm9"))
    esol = {"format": "moleculenet", "dataset": "esol"}
    zipped = gzip.compress((data / "gdb9.sdf").read_bytes())
    cut = truncated(copy(data / "qm9.parquet", "cut.parquet"))
    return {
        "truncated Parquet of QM9": (qm9 | {"path": cut}, "cut.parquet"),
        "damaged pages of QM9": (
            qm9 | {"path": spoilt(copy(data / "qm9.parquet", "pages.parquet"))},
            "pages.parquet",
        ),
        "truncated table": (
            smiles | {"path": truncated(copy(folder / "own.parquet", "half.parquet"))},
            "half.parquet",
        ),
        "damaged pages of a table": (
            smiles | {"path": spoilt(copy(folder / "own.parquet", "spoilt.parquet"))},
            "spoilt.parquet",
        ),
        "table without rows": (smiles | {"path": folder / "empty.parquet"}, "no rows"),
        "CSV without rows": (smiles | {"path": wrote("h.csv", b"smiles,y\n")}, "no rows"),
        "nothing": (smiles | {"path": wrote("none.csv", b"")}, "empty"),
        "nothing as Parquet": (smiles | {"path": wrote("none.parquet", b"")}, "none.parquet"),
        "nothing as SDF": (sdf | {"path": wrote("none.sdf", b"")}, "no records"),
        "no text": (smiles | {"path": wrote("b.csv", bytes(range(256)) * 9)}, "b.csv"),
        "numbers as SMILES": (smiles | {"path": folder / "numbers.parquet"}, "cannot read"),
        "truncated gzip": (sdf | {"path": wrote("c.sdf.gz", zipped[:5000])}, "ends too early"),
        "no column of SMILES": (
            smiles | {"path": folder / "own.parquet", "smiles_column": "smile"},
            "did you mean 'smiles'",
        ),
        "no such target": (
            smiles | {"path": folder / "own.parquet", "target_columns": ["z"]},
            "no column 'z'",
        ),
        "one column in two cases": (
            smiles | {"path": folder / "own.parquet", "target_columns": ["y", "Y"]},
            "y and Y are one column",
        ),
        "no column of ESOL": (esol | {"path": data / "bbbp.csv"}, "no column"),
        "no file": (smiles | {"path": folder / "absent.csv"}, "file not found"),
        "no folder": (sdf | {"path": folder / "absent" / "x"}, "file not found"),
        "a file as folder": (sdf | {"path": folder / "h.csv" / "x.sdf"}, "file not found"),
        "a folder as file": (smiles | {"path": folder}, "is a folder"),
        "no table of targets": (
            sdf
            | {"path": data / "gdb9.sdf", "targets": folder / "no.csv", "target_columns": ["y"]},
            "source.targets: file not found",
        ),
        "no list to leave out": (
            qm9 | {"path": data / "qm9.parquet", "exclude": folder / "no.txt"},
            "source.exclude: file not found",
        ),
    }


def test_sources_that_cannot_be_read(place: Place, tmp_path: Path, root: Path):
    for name, (source, words) in sources(tmp_path, root).items():
        plain = {key: str(v) if isinstance(v, Path) else v for key, v in source.items()}
        line = refused(*place.importing(plain))
        assert words in line, (name, line)
    left = [path.name for path in place.home.molecules.glob("bad-*")]
    assert left == []


def test_paths_mean_the_same_to_a_worker(monkeypatch, tmp_path: Path, root: Path):
    """A Ray worker has another working folder, and perhaps another environment."""
    config = load_config(root / "configs" / "molecules" / "fixture_qm9.yaml", LibraryConfig)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    table(tmp_path / "t.csv", smiles=SMILES)
    own = {"format": "smiles", "path": "$SOME_FOLDER/t.csv"}
    variable = LibraryConfig.model_validate({"name": "own", "source": own})
    there = [molecules._with_whole_paths(item) for item in (config, variable)]
    monkeypatch.delenv("SOME_FOLDER")
    monkeypatch.chdir("/")
    assert [len(open_source(item)) for item in there] == [300, len(SMILES)]


@pytest.mark.parametrize("gone", [StoreError, FileNotFoundError])
def test_an_import_that_another_one_overtakes_finds_the_library(
    place: Place, tmp_path: Path, monkeypatch, gone: type[Exception]
):
    source = table(tmp_path / "t.csv", smiles=SMILES, y=np.arange(10.0))
    command, merge = place.importing(source), build._merge

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(build, "_merge", merge)
        result(*command)  # publishes the library and removes all parts
        raise gone("a part is not there any more")

    monkeypatch.setattr(build, "_merge", overtaken)
    assert result(*command)["molecules"] == 10
    assert not list(place.home.molecules.glob(".partial-*"))


# --------------------------------------------------------------------------- libraries on disk


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A good library of ten molecules with conformers, and an encoder pre-trained on it."""
    place = Place(tmp_path_factory.mktemp("whole"))
    source = table(place.folder / "t.csv", smiles=SMILES, y=np.arange(10.0))
    found = place.library(source | {"conformers": True})
    result(*place.pretraining(found["library"], PREDICT))
    return place


@pytest.fixture
def damaged(place: Place, whole: Place) -> Place:
    """A copy of it to damage."""
    shutil.copytree(whole.home.root, place.home.root)
    return place


def to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def to_text(path: Path) -> None:
    path.write_bytes(b"not an array" * 20)


def to_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(40))


def to_less(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def to_other_rows(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def to_other_numbers(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float16))


DAMAGES = [
    *((name, damage) for name in ("targets", *ARRAYS) for damage in (to_nothing, to_other_rows)),
    *(("x", damage) for damage in (to_text, to_zip, to_less, to_other_numbers, Path.unlink)),
    *(("starts", damage) for damage in (to_nothing, to_less, to_other_numbers, Path.unlink)),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_array_is_named_before_anything_is_learned(
    damaged: Place, name: str, damage: Callable[[Path], None]
):
    (folder,) = damaged.home.molecules.glob("bad-*")
    damage(folder / f"{name}.npy")
    split = {"train": 0.6, "valid": 0.2}
    commands = [
        damaged.pretraining(folder.name, {**MASKING, "name": "new"}),
        damaged.finetuning(folder.name, split=split),
    ]
    for command in commands:
        line = refused(*command, code=StoreError.exit_code)
        assert f"{name}.npy" in line
    assert all(Run.load(path).metrics().empty for path in damaged.home.runs.glob("new-*"))


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("manifest.json", b"", 2),
        ("manifest.json", b"[]", 2),
        ("manifest.json", b'{"format": 99}', 2),
        ("molecules.parquet", b"PAR1", 6),
        ("rejected.parquet", b"PAR1", 6),
    ],
)
def test_damaged_texts_of_a_library(damaged: Place, file: str, content: bytes, code: int):
    (folder,) = damaged.home.molecules.glob("bad-*")
    (folder / file).write_bytes(content)
    if file == "molecules.parquet":
        split = {"kind": "scaffold", "train": 0.6, "valid": 0.2}
        command: tuple[object, ...] = damaged.finetuning(folder.name, split=split)
    else:
        command = ("molecules", "info", folder.name, "--home", damaged.home.root)
    line = refused(*command, code=code)
    assert folder.name in line


# --------------------------------------------------------------------------- checkpoints, paths


@pytest.mark.parametrize("damage", [to_nothing, to_text, to_zip, to_less, Path.unlink])
def test_a_damaged_checkpoint_is_named(damaged: Place, damage: Callable[[Path], None]):
    (folder,) = damaged.home.molecules.glob("bad-*")
    (file,) = damaged.home.runs.glob("pre-*/checkpoints/best.pt")
    damage(file)
    tuned = damaged.finetuning(folder.name, split={"train": 0.6, "valid": 0.2})
    for command in (
        (*tuned, "--pretrained", "pre"),
        ("molecules", "embed", "CCO", "--home", damaged.home.root),
    ):
        line = refused(*command)
        assert "checkpoint" in line
        assert "pre-" in line


@pytest.mark.parametrize("damage", [to_nothing, to_text, to_less])
def test_a_run_with_a_damaged_state_to_go_on_from(damaged: Place, damage: Callable[[Path], None]):
    (library,) = damaged.home.molecules.glob("bad-*")
    command = damaged.pretraining(library.name, PREDICT)
    (run,) = damaged.home.runs.glob("pre-*")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    (run / "checkpoints" / "best.pt").rename(run / "checkpoints" / "last.pt")
    damage(run / "checkpoints" / "last.pt")
    line = refused(*command)
    assert "last.pt" in line
    (run / "checkpoints" / "last.pt").unlink()
    assert medrec(*command).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", "absent"), "no 'absent' in"),
        (("info", "/absent/library"), "no '/absent/library' in"),
        (("embed", "CCO", "--pretrained", "absent"), "no 'absent' in"),
        (("embed", "--file", "/absent/t.csv", "--pretrained", "pre"), "/absent/t.csv"),
        (("embed", "--file", "cut.parquet", "--pretrained", "pre"), "cut.parquet"),
        (("embed", "--file", "none.csv", "--pretrained", "pre"), "none.csv"),
        (("embed", "--file", "t.csv", "--column", "x", "--pretrained", "pre"), "no column 'x'"),
        (("embed", "CCO", "--pretrained", "pre", "--out", "t.csv/v.parquet"), "t.csv"),
        (("import", "absent.yaml"), "absent.yaml"),
        (("pretrain", "pretrain.yaml", "--library", "absent"), "no 'absent' in"),
        (("finetune", "absent.yaml", "--library", "bad"), "absent.yaml"),
    ],
)
def test_paths_and_names_that_do_not_exist(whole: Place, monkeypatch, arguments, words):
    monkeypatch.chdir(whole.folder)
    pd.DataFrame({"smiles": SMILES}).to_parquet("cut.parquet")
    truncated(Path("cut.parquet"))
    Path("none.csv").write_bytes(b"")
    line = refused("molecules", *arguments, "--home", whole.home.root)
    assert words in line
