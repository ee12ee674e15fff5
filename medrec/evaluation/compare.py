"""Finished runs side by side: intervals, paired differences, and what the numbers rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.data.cohort import Cohort
from medrec.evaluation.bootstrap import (
    bootstrap_intervals,
    percentile_interval,
    require_same_visits,
    resample,
)
from medrec.evaluation.metrics import summarise
from medrec.runs import Run
from quantum.base import InputError

PRIMARY = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")
_SHORT = {"ddi_rate": "ddi", "mean_n_drugs": "drugs"}
_ENOUGH_PATIENTS = 500


@dataclass(frozen=True)
class Comparison:
    """A table and its header.

    Attributes
    ----------
    header : dict
        Cohort, preset, split, counts, ground-truth and chance DDI, caution.
    table : pandas.DataFrame
        One row per run: ``run``, ``model``, and per metric the value, ``_low``, ``_high``, and the
        paired ``_difference`` to the reference with its interval.
    reference : str
        The run that differences refer to.
    """

    header: dict[str, Any]
    table: pd.DataFrame
    reference: str

    def display(self) -> pd.DataFrame:
        """Text table: value with interval, and the Jaccard difference to the reference."""
        shown = pd.DataFrame({"model": [str(m).replace("_", " ") for m in self.table["model"]]})
        rows = self.table.to_dict("records")
        for name in PRIMARY:
            value, interval = (1, 0) if name == "mean_n_drugs" else (3, 2)
            shown[_SHORT.get(name, name)] = [
                f"{row[name]:.{value}f}\n"
                f"{row[f'{name}_low']:.{interval}f}–{row[f'{name}_high']:.{interval}f}"
                for row in rows
            ]
        shown["Δ jaccard"] = [
            "reference"
            if row["run"] == self.reference
            else f"{row['jaccard_difference']:+.3f}\n{row['jaccard_difference_low']:+.2f} to "
            f"{row['jaccard_difference_high']:+.2f}"
            for row in rows
        ]
        return shown


def load_rows(run: Run) -> pd.DataFrame:
    """Per-visit rows of a finished training run.

    Raises
    ------
    InputError
        If the run is of another kind or not finished.
    """
    path = run.folder / "visits.parquet"
    if run.kind != "train" or not run.is_finished or not path.exists():
        raise InputError(
            f"run {run.name} has no per-visit rows (kind {run.kind}, status "
            f"{run.record()['status']}); expected a finished training run"
        )
    return pd.read_parquet(path)


def caution(n_patients: int) -> str:
    """Say what a test part of this size supports."""
    if n_patients < _ENOUGH_PATIENTS:
        return (
            f"{n_patients} test patients support no claim about accuracy: the intervals are wide, "
            "and the order of the models may be chance."
        )
    return "Differences whose interval holds 0 are not established."


def compare_runs(runs: list[Run], cohort: Cohort, reference: str | None = None) -> Comparison:
    """Compare training runs on one cohort, split and part.

    Parameters
    ----------
    reference : str, optional
        Name (or beginning) of the run that differences refer to; the first run by default.

    Raises
    ------
    InputError
        If runs are unfinished, belong to different cohorts or splits, or the reference is none.
    """
    if not runs:
        raise InputError("no run to compare; expected at least one")
    rows = {run.name: load_rows(run) for run in runs}
    reports = {run.name: run.report() for run in runs}
    for key in ("cohort", "split_digest"):
        values = {str(reports[name].get(key)) for name in rows}
        if len(values) > 1:
            raise InputError(f"runs differ in {key}; expected one cohort and one split")
    for run in runs:
        if run.inputs.get("cohort") != cohort.digest:
            raise InputError(
                f"run {run.name} was made on another cohort than {cohort.folder.name}; "
                "expected the runs' own"
            )
    chosen = _find_reference(list(rows), reference)
    base = rows[chosen]
    resampled = {name: resample(frame) for name, frame in rows.items()}
    table = []
    for run in runs:
        require_same_visits(rows[run.name], base)
        table.append(_row(run, rows, resampled, chosen, reports[run.name]))
    first = reports[runs[0].name]
    summary = summarise(base)
    header = {
        "cohort": cohort.folder.name,
        "preset": cohort.config.preset,
        "split": f"{first['split']} ({str(first['split_digest'])[:8]})",
        "patients": f"{cohort.n_patients} in all, {base['patient'].nunique()} in the test part",
        "visits": f"{len(cohort.visits)} in all, {len(base)} in the test part",
        "DDI of ground truth": round(summary["ddi_rate_true"], 4),
        "DDI of chance": round(float(first["ddi_rate_chance"]), 4),
        "drugs per visit, truth": round(summary["mean_n_drugs_true"], 2),
        "caution": caution(base["patient"].nunique()),
    }
    return Comparison(header, pd.DataFrame(table), chosen)


def _find_reference(names: list[str], wanted: str | None) -> str:
    """Run that differences refer to: a name, a name without its digest, or a unique beginning."""
    if wanted is None:
        return names[0]
    exact = [name for name in names if wanted in (name, name.rsplit("-", 1)[0])]
    matches = exact or [name for name in names if name.startswith(wanted)]
    if len(matches) != 1:
        found = f"fits {len(matches)} runs" if matches else "is none"
        raise InputError(f"reference '{wanted}' {found} of: {', '.join(names)}; expected one")
    return matches[0]


def _row(
    run: Run,
    rows: dict[str, pd.DataFrame],
    resampled: dict[str, dict[str, npt.NDArray[np.float64]]],
    reference: str,
    report: dict[str, Any],
) -> dict[str, Any]:
    summary, base = summarise(rows[run.name]), summarise(rows[reference])
    ours, theirs = resampled[run.name], resampled[reference]
    row: dict[str, Any] = {
        "run": run.name,
        "model": report["model"],
        "n_parameters": report.get("n_parameters"),
        "seconds": report.get("seconds"),
    }
    for name in PRIMARY:
        row[name] = summary[name]
        row[f"{name}_low"], row[f"{name}_high"] = percentile_interval(ours[name])
        low, high = percentile_interval(ours[name] - theirs[name])
        row[f"{name}_difference"] = summary[name] - base[name]
        row[f"{name}_difference_low"], row[f"{name}_difference_high"] = low, high
    return row


def evaluation_table(run: Run) -> pd.DataFrame:
    """Every metric of one run: ``metric``, ``value``, ``low``, ``high``."""
    rows = load_rows(run)
    summary, intervals = summarise(rows), bootstrap_intervals(rows)
    summary["ddi_rate_chance"] = float(run.report()["ddi_rate_chance"])
    table = [
        {"metric": name, "value": value, "low": low, "high": high}
        for name, value in summary.items()
        for low, high in [intervals.get(name, (float("nan"), float("nan")))]
    ]
    return pd.DataFrame(table)
