"""The notebooks run, say what the library says, and hold nothing of the machine they ran on."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))}
# the same cells on a smaller molecule and for fewer epochs
SMALLER = {
    "molecule_to_elf": {"CC(=O)Nc1ccc(O)cc1": "CO", "Oc1ccc(NC(C)=O)cc1": "OC"},
    "cohort_to_recommender": {"epochs=8": "epochs=1"},
}


def cells(name: str, kind: str) -> list[str]:
    found = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a kernel does: the value of its last expression is what it shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def run_all(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setenv("MEDREC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = []
    for source in cells(name, "code"):
        for old, new in SMALLER[name].items():
            source = source.replace(old, new)
        shown.append(run_cell(source, names))
    return shown


def test_there_are_two():
    assert set(NOTEBOOKS) == set(SMALLER)


def test_the_cells_of_the_molecule_run(tmp_path: Path, monkeypatch, capsys):
    result, again, figure, *_ = run_all("molecule_to_elf", tmp_path, monkeypatch)
    assert result.species.formula == "CH4O"
    assert again == (True, 0.0)
    assert any(trace.type == "mesh3d" for trace in figure.data)
    assert "does not parse" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_the_cells_of_the_recommender_run(tmp_path: Path, monkeypatch):
    cohort, model, table, comparison, shapes, found = run_all(
        "cohort_to_recommender", tmp_path, monkeypatch
    )
    assert model.is_fitted
    assert model.cohort_.digest == cohort.digest
    assert list(table.columns) == ["metric", "value", "low", "high"]
    assert comparison.reference.startswith("logistic_regression")
    assert shapes[0][1] == len(found.drugs) == len(cohort.drugs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_the_core_is_ten_lines(name: str):
    core = {"molecule_to_elf": 3, "cohort_to_recommender": 4}[name]
    lines = [line for source in cells(name, "code")[:core] for line in source.splitlines()]
    code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 16
    assert not [line for line in code if len(line) > 100]


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_what_is_stored_names_no_machine(name: str):
    text = NOTEBOOKS[name].read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r"/(tmp|home|root|Users|work|var)/", text)
    stored = json.loads(text)
    outputs = [item for cell in stored["cells"] for item in cell.get("outputs", [])]
    assert outputs
    assert "error" not in {item["output_type"] for item in outputs}
    assert "Research use only" in text or "docs/quantum.md" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALLER))
def test_a_kernel_runs_it_and_writes_nowhere_else(name: str, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "tools" / "run_notebooks.py"),
            "--out", str(tmp_path / "out"), str(NOTEBOOKS[name]),
        ],
        capture_output=True, text=True, check=False, timeout=280,
        env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    cells_run = json.loads((tmp_path / "out" / f"{name}.ipynb").read_text())["cells"]
    outputs = [item for cell in cells_run for item in cell.get("outputs", [])]
    assert any("text/html" in item.get("data", {}) for item in outputs)
    written = {path.relative_to(home).parts[0] for path in home.rglob("*") if path.is_file()}
    assert written <= {".cache"}  # fonts and compiled kernels of libraries
