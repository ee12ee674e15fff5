"""Bad input at the command line: one message, exit code 2, nothing half-written."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

CODE = "from orchestration.cli import main; main()"


def medrec(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture
def tables(root: Path, tmp_path: Path) -> Path:
    """A copy of the MIMIC-III demo that a test may damage."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("ADMISSIONS", "DIAGNOSES_ICD", "PROCEDURES_ICD", "PRESCRIPTIONS", "PATIENTS"):
        shutil.copy(root / "data" / "mimic3-demo" / f"{name}.csv.gz", folder)
    return folder


def prepare(tables: Path, tmp_path: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    config = {"name": "x", "source": {"format": "mimic3", "path": str(tables)}, **changes}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    return medrec("prepare", path, "--home", tmp_path / "home")


def assert_refused(done: subprocess.CompletedProcess[str], tmp_path: Path, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("medrec:") == 1
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr
    cohorts = tmp_path / "home" / "cohorts"
    left = [p.name for p in cohorts.iterdir() if p.is_dir()] if cohorts.exists() else []
    assert left == []


def test_the_undamaged_copy_prepares(tables: Path, tmp_path: Path):
    done = prepare(tables, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "at least 2 visits left" in done.stdout


def test_missing_table(tables: Path, tmp_path: Path):
    (tables / "DIAGNOSES_ICD.csv.gz").unlink()
    assert_refused(prepare(tables, tmp_path), tmp_path, "diagnoses_icd", "expected")


def test_wrong_column(tables: Path, tmp_path: Path):
    path = tables / "PRESCRIPTIONS.csv.gz"
    pd.read_csv(path, dtype=str).rename(columns={"ndc": "nbc"}).to_csv(path, index=False)
    assert_refused(prepare(tables, tmp_path), tmp_path, "PRESCRIPTIONS", "ndc")


def test_unreadable_gzip(tables: Path, tmp_path: Path):
    path = tables / "PRESCRIPTIONS.csv.gz"
    path.write_bytes(path.read_bytes()[:5000])
    assert_refused(prepare(tables, tmp_path), tmp_path, "PRESCRIPTIONS")


def test_no_patient_left(tables: Path, tmp_path: Path):
    path = tables / "PROCEDURES_ICD.csv.gz"
    with gzip.open(path, "rt") as handle:
        header = handle.readline()
    with gzip.open(path, "wt") as handle:
        handle.write(header)
    assert_refused(prepare(tables, tmp_path), tmp_path, "procedure")


def test_no_such_folder(tmp_path: Path):
    assert_refused(prepare(tmp_path / "nowhere", tmp_path), tmp_path, "nowhere", "does not exist")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"min_visit": 3}, ("unknown key 'min_visit'", "min_visits")),
        ({"split_fractions": [0.9, 0.9, 0.1]}, ("split_fractions", "expected 1")),
        ({"min_visits": 0}, ("min_visits", "greater than 0")),
        ({"min_visits": 500}, ("500",)),
    ],
)
def test_impossible_settings(tables: Path, tmp_path: Path, changes, parts):
    assert_refused(prepare(tables, tmp_path, **changes), tmp_path, *parts)


def test_unset_variable(tmp_path: Path):
    done = prepare(Path("$NO_SUCH_VARIABLE_HERE"), tmp_path)
    assert_refused(done, tmp_path, "NO_SUCH_VARIABLE_HERE")


def test_patient_values_stay_out_of_messages(tables: Path, tmp_path: Path):
    path = tables / "ADMISSIONS.csv.gz"
    frame = pd.read_csv(path, dtype=str)
    frame.loc[0, "admittime"] = "the-secret-of-patient-10006"
    frame.to_csv(path, index=False)
    done = prepare(tables, tmp_path)
    assert_refused(done, tmp_path, "ADMISSIONS")
    assert "secret" not in done.stderr
    assert "10006" not in done.stderr


def test_a_smiles_that_does_not_parse(tmp_path: Path):
    done = medrec("molecule", "C1CC")
    assert done.returncode == 2
    assert "does not parse: 'C1CC'" in done.stderr


def test_a_molecule_that_parses():
    done = medrec("molecule", "CC(=O)[O-].[Na+]", "--json")
    assert done.returncode == 0
    assert '"charge": -1' in done.stdout


def test_unusable_patient_document(tmp_path: Path):
    (tmp_path / "runs" / "r-1").mkdir(parents=True)
    done = medrec("recommend", "r-1", tmp_path / "absent.json", "--home", tmp_path)
    assert done.returncode == 2
    assert "file not found" in done.stderr
