"""Bad input at the command line: one message, exit code 2, nothing half-written."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import yaml

CODE = "from orchestration.cli import main; main()"
ENVIRONMENT = {"COLUMNS": "200"}


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **ENVIRONMENT},
    )


def medrec(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command inside this process: the same entry point, without seconds of imports."""
    from orchestration.cli import main

    out, err, words = io.StringIO(), io.StringIO(), ["medrec", *map(str, arguments)]
    code = 0
    with (
        mock.patch.dict(os.environ, ENVIRONMENT),
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture
def tables(root: Path, tmp_path: Path) -> Path:
    """A copy of the MIMIC-III demo that a test may damage."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("ADMISSIONS", "DIAGNOSES_ICD", "PROCEDURES_ICD", "PRESCRIPTIONS", "PATIENTS"):
        shutil.copy(root / "data" / "mimic3-demo" / f"{name}.csv.gz", folder)
    return folder


def prepare(
    tables: Path, tmp_path: Path, run=medrec, **changes: object
) -> subprocess.CompletedProcess[str]:
    config = {"name": "x", "source": {"format": "mimic3", "path": str(tables)}, **changes}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    return run("prepare", path, "--home", tmp_path / "home")


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
    done = prepare(tables, tmp_path, in_a_process)
    assert done.returncode == 0, done.stderr
    assert "at least 2 visits left" in done.stdout


def test_a_refusal_ends_the_process_with_its_code(tables: Path, tmp_path: Path):
    (tables / "DIAGNOSES_ICD.csv.gz").unlink()
    done = prepare(tables, tmp_path, in_a_process)
    assert_refused(done, tmp_path, "diagnoses_icd", "expected")


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


def test_oddities_are_listed_with_what_was_done(tables: Path, tmp_path: Path):
    """One run over tables with many small faults; each has its line in the table of problems."""
    path = tables / "ADMISSIONS.csv.gz"
    stays = pd.read_csv(path, dtype=str)
    first = stays.iloc[0]
    stays.loc[1, "dischtime"] = "2000-01-01 00:00:00"
    stays.loc[2, "admittime"] = stays.loc[2, "admittime"].replace(" ", "T")
    again = stays.iloc[[3]]
    other_patient = stays.iloc[[4]].assign(subject_id=first["subject_id"])
    pd.concat([stays, again, other_patient]).to_csv(path, index=False)
    path = tables / "DIAGNOSES_ICD.csv.gz"
    codes = pd.read_csv(path, dtype=str)
    codes.loc[0, "icd9_code"] = " v1.0"
    codes.loc[1, "icd9_code"] = "I509"
    codes.to_csv(path, index=False)
    path = tables / "PRESCRIPTIONS.csv.gz"
    orders = pd.read_csv(path, dtype=str)
    orders.loc[0, "ndc"] = "0006-4943-00"
    orders.loc[1, "ndc"] = "0053633810"
    orders.loc[2, "hadm_id"] = None
    orders.to_csv(path, index=False)
    done = prepare(tables, tmp_path)
    assert done.returncode == 0, done.stderr
    for problem in (
        "stay listed again", "stay under several patients", "stay ends before it starts",
        "admittime in another form", "code with blanks", "code in small letters",
        "code with a dot", "code has the form of the other ICD version",
        "NDC with dashes (4-4-2)", "NDC of 10 digits without dashes", "no NDC (empty or 0)",
        "row without an admission",
    ):  # fmt: skip
        assert problem in done.stdout, problem


def test_check_lists_problems_and_writes_nothing(tables: Path, tmp_path: Path):
    path = tables / "PROCEDURES_ICD.csv.gz"
    pd.read_csv(path, dtype=str).head(0).to_csv(path, index=False)
    config = {"name": "x", "source": {"format": "mimic3", "path": str(tables)}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = medrec("records", "check", tmp_path / "c.yaml", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["rows"]["procedures"] == 0
    assert "table without a row" in [item["problem"] for item in document["problems"]]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["c.yaml", "tables"]


def test_export_and_what_it_refuses(root: Path, tmp_path: Path):
    config = root / "configs" / "data" / "mimic4_demo_strict.yaml"
    done = medrec("records", "export-meds", config, tmp_path / "meds", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["subjects"] == 100
    again = medrec("records", "export-meds", config, tmp_path / "meds")
    assert again.returncode == 2
    assert "exists; expected a folder that is not there yet" in again.stderr
    made_up = root / "configs" / "data" / "synthetic.yaml"
    refused = medrec("records", "export-meds", made_up, tmp_path / "other")
    assert refused.returncode == 2
    assert "'synthetic' has no tables" in refused.stderr


@pytest.mark.parametrize(
    ("column", "value", "parts"),
    [
        ("hadm_id", "12.5", ("column hadm_id: 1 of", "not whole numbers")),
        ("admittime", "03/04/2150 10:00", ("column admittime: 1 of", "expected YYYY-MM-DD")),
    ],
)
def test_refused_by_name(tables: Path, tmp_path: Path, column, value, parts):
    path = tables / "ADMISSIONS.csv.gz"
    frame = pd.read_csv(path, dtype=str)
    frame.loc[5, column] = value
    frame.to_csv(path, index=False)
    done = prepare(tables, tmp_path)
    assert_refused(done, tmp_path, "ADMISSIONS", *parts)
    assert value not in done.stderr


@pytest.mark.parametrize("kind", ["eicu", "meds"])
def test_a_folder_of_something_else(tables: Path, tmp_path: Path, kind):
    done = prepare(tables, tmp_path, source={"format": kind, "path": str(tables)})
    assert_refused(done, tmp_path, "expected")


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
