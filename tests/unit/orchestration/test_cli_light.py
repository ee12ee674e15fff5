"""The command line: fast to start, clear about bad input, honest exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from orchestration import doctor
from orchestration.configs import check_folder, kind_of
from quantum.base import InputError


def medrec(*arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from orchestration.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **kwargs,
    )


def test_start_loads_neither_ray_nor_torch():
    code = (
        "import sys, medrec, quantum, orchestration.cli;"
        "print([m for m in ('ray', 'optuna', 'torch', 'pyscf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_lists_every_command():
    done = medrec("--help")
    assert done.returncode == 0
    for command in (
        "doctor",
        "demo",
        "prepare",
        "features",
        "pretrain",
        "tune",
        "train",
        "evaluate",
        "compare",
        "recommend",
        "report",
    ):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("prepare", "absent.yaml"), 2, "not found: absent.yaml"),
        (("prepar",), 2, "prepare"),
        (("train", "--cohort"), 2, "--cohort"),
        (("evaluate", "nothing"), 2, "no 'nothing'"),
        (("compare", "nothing"), 2, "there is: nothing yet"),
    ],
)
def test_bad_input_ends_with_one_message(tmp_path: Path, arguments, code, expected):
    done = medrec(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert expected in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_unknown_key_names_the_close_one(tmp_path: Path):
    path = tmp_path / "cohort.yaml"
    path.write_text("name: x\nsource: {format: mimic4, path: nowhere}\nmin_visit: 2\n")
    done = medrec("prepare", path, "--home", tmp_path / "home")
    assert done.returncode == 2
    assert "unknown key 'min_visit' (did you mean 'min_visits'?)" in done.stderr
    assert not (tmp_path / "home").exists()


def test_doctor_reports_as_json(tmp_path: Path):
    done = medrec("doctor", "--json", "--home", tmp_path)
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert rows["torch"]["level"] == "ok"
    assert rows["home folder"]["found"].startswith(str(tmp_path))
    assert done.returncode == 0


def test_doctor_says_how_to_get_psi4(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    check = doctor.psi4_check()
    assert check.level == "optional"
    assert "apt-get install psi4" in check.advice


def test_doctor_reports_a_home_that_cannot_be_written(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = medrec("doctor", "--home", blocked / "home")
    assert done.returncode == 3
    assert "problem" in done.stdout


def test_check_configs_finds_the_broken_file(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "good.yaml").write_text("name: a\nmodel: {name: topk}\n")
    (tmp_path / "train" / "bad.yaml").write_text("name: a\nmodel: {name: tpok}\n")
    checked, problems = check_folder(tmp_path)
    assert [path.name for path, _ in checked] == ["good.yaml"]
    assert len(problems) == 1
    assert "bad.yaml" in problems[0]
    with pytest.raises(InputError, match="one of the folders"):
        kind_of(Path("elsewhere/x.yaml"))


def test_brackets_in_tables_are_no_markup(capsys: pytest.CaptureFixture[str]):
    from orchestration.console import Terminal, frame_table, pairs_table

    smiles, advice = "C[C@@H](N)C(=O)[O-]", "pip install 'medrec[vision]'"
    Terminal().result(
        {}, frame_table(pd.DataFrame({"smiles": [smiles]})), pairs_table([("x", advice)])
    )
    out = capsys.readouterr().out
    assert smiles in out
    assert advice in out
