"""Runs of a home folder for the page: list, one run, its curves, its stored reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medrec.runs import Home, Run
from medrec.view.replies import NotThereError, folder_of, folders
from quantum.base import InputError, read_json

SHOWN = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")
_MOST_PANELS = 6
_FIRST_SERIES = (
    "train_loss",
    "loss",
    "val_jaccard",
    "val_ddi_rate",
    "val_f1",
    "val_prauc",
    "val_mean_n_drugs",
    "retrieval_accuracy",
)
_NO_SERIES = {"epoch", "seconds", "lr", "visits_per_s", "molecules_per_s"}


def list_runs(home: Home) -> list[dict[str, Any]]:
    """One row per run folder, newest first; a damaged one is shown as such."""
    cohorts = {path.name[-8:]: path.name for path in folders(home.cohorts)}
    rows = [_row(path, cohorts) for path in folders(home.runs)]
    return sorted(rows, key=lambda row: str(row["started"] or ""), reverse=True)


def _row(folder: Path, cohorts: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(
        ("kind", "cohort", "model", "started", "finished", "heartbeat", "seconds", "error")
    )
    row |= {"name": folder.name, "status": "unreadable", "metrics": {}, "note": ""}
    try:
        record = read_json(folder / "run.json")
        names = ("kind", "status", "started", "finished", "heartbeat", "error")
        row |= {name: record.get(name) for name in names}
        row["cohort"] = _cohort_name(record.get("inputs", {}), cohorts)
        if record.get("status") == "finished":
            row |= _results(read_json(folder / "report.json"))
    except (InputError, AttributeError, TypeError) as error:
        row["status"] = "unreadable"
        row["error"] = {"kind": "input", "message": f"damaged record ({type(error).__name__})"}
    return row


def _cohort_name(inputs: dict[str, str], cohorts: dict[str, str]) -> str:
    if "cohort" in inputs:
        return cohorts.get(inputs["cohort"][:8], f"gone ({inputs['cohort'][:8]})")
    return f"library {inputs['library'][:8]}" if "library" in inputs else ""


def _results(report: dict[str, Any]) -> dict[str, Any]:
    """Main numbers of a finished run, as far as its kind has them."""
    test = report.get("test") or {}
    metrics = {name: test.get(name) for name in SHOWN if test.get(name) is not None}
    names = ("n_trials", "n_finished", "best_loss", "best_epoch", "score", "best_score")
    facts = {name: report[name] for name in names if isinstance(report.get(name), int | float)}
    note = (
        "" if metrics else ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in facts.items())
    )
    return {
        "model": report.get("model"),
        "seconds": report.get("seconds"),
        "metrics": metrics,
        "note": note,
    }


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------- one run


def open_run(home: Home, name: str) -> Run:
    """Open a run by its full name.

    Raises
    ------
    NotThereError
        If there is none.
    """
    folder = folder_of(home.runs, name, "run")
    try:
        return Run.load(folder)
    except (KeyError, TypeError) as error:
        raise InputError(f"run.json of {name} lacks a field ({type(error).__name__})") from error


def run_detail(home: Home, name: str) -> dict[str, Any]:
    """Configuration, record, stored numbers and pages of one run."""
    run = open_run(home, name)
    cohorts = {path.name[-8:]: path.name for path in folders(home.cohorts)}
    record = run.record()
    cohort = _cohort_name(run.inputs, cohorts)
    report = run.report() if run.is_finished else {}
    return {
        **_row(run.folder, cohorts),
        "digest": run.digest,
        "inputs": {kind: _input_name(home, kind, key) for kind, key in run.inputs.items()},
        "seeds": record.get("seeds"),
        "provenance": record.get("provenance"),
        "config": (run.folder / "config.yaml").read_text(encoding="utf-8"),
        "report": {k: v for k, v in report.items() if not isinstance(v, dict | list)},
        "test": report.get("test") or {},
        "restricted": is_restricted(home, cohort),
        "reports": [file.name for file in _reports_of(home, name, cohort)],
        "has_rows": (run.folder / "visits.parquet").is_file(),
        "has_curves": (run.folder / "metrics.jsonl").is_file(),
        "trials": _trials(run.folder / "trials.parquet"),
    }


def _input_name(home: Home, kind: str, key: str) -> str:
    parents = {"cohort": home.cohorts, "features": home.features, "concepts": home.concepts}
    parents |= {"pretrained": home.runs, "library": home.molecules}
    found = [p.name for p in folders(parents.get(kind, home.runs)) if p.name.endswith(key[:8])]
    return found[0] if found else key[:8]


def is_restricted(home: Home, cohort: str) -> bool:
    """Tell whether a cohort's records are not open; an unknown cohort counts as open."""
    file = home.cohorts / cohort / "cohort.json"
    if not cohort or not file.is_file():
        return False
    return bool(read_json(file).get("config", {}).get("source", {}).get("restricted", False))


def _trials(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    table = pd.read_parquet(file)
    columns = [str(name) for name in table.columns]
    return {"columns": columns, "rows": table.astype(object).to_numpy().tolist()}


def run_metrics(home: Home, name: str) -> list[dict[str, Any]]:
    """Every metric of the test part with its bootstrap interval."""
    from medrec.evaluation.compare import evaluation_table

    rows: list[dict[str, Any]] = [
        {str(key): value for key, value in row.items()}
        for row in evaluation_table(open_run(home, name)).to_dict("records")
    ]
    return rows


def run_curves(home: Home, name: str) -> dict[str, Any]:
    """Numbers per epoch of a run, the telling ones first: ``epoch``, and ``name``, ``values``.

    Raises
    ------
    NotThereError
        If there is no such run.
    """
    table = open_run(home, name).metrics()
    shown = _series(table)
    return {
        "epoch": table["epoch"].tolist() if shown else [],
        "series": [{"name": name, "values": table[name].tolist()} for name in shown],
    }


def _series(table: pd.DataFrame) -> list[str]:
    if "epoch" not in table:
        return []
    numeric = [
        str(column)
        for column in table.columns
        if column not in _NO_SERIES and pd.api.types.is_numeric_dtype(table[column])
    ]
    first = [name for name in _FIRST_SERIES if name in numeric]
    return [*first, *(name for name in numeric if name not in first)][:_MOST_PANELS]


# --------------------------------------------------------------------------- stored reports


def _reports_of(home: Home, run: str, cohort: str) -> list[Path]:
    """HTML files of the reports folder that are named after the run or its cohort."""
    own = [file for file in report_files(home) if run in file.stem]
    return own or [file for file in report_files(home) if cohort and cohort == file.stem]


def report_files(home: Home) -> list[Path]:
    """All HTML files right in the reports folder, by name."""
    if not home.reports.is_dir():
        return []
    return sorted(p for p in home.reports.iterdir() if p.suffix == ".html" and p.is_file())


def report_file(home: Home, name: str) -> Path:
    """A stored report by its file name, looked up among those that there are.

    Raises
    ------
    NotThereError
        If there is none.
    """
    found = {file.name: file for file in report_files(home)}
    if name not in found:
        raise NotThereError("no report of that name; `medrec report` writes them")
    return found[name]
