"""Finished runs side by side: intervals, paired differences, and what the numbers rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from medrec.data.cohort import Cohort
from medrec.evaluation.bootstrap import bootstrap_intervals, percentile_interval
from medrec.evaluation.cells import Cells
from medrec.evaluation.context import ddi_by_frequency, optimum_rows
from medrec.evaluation.coverage import coverage_note
from medrec.evaluation.groups import (
    Group,
    find_group,
    group_runs,
    load_rows,
    seed_and_split_spread,
)
from medrec.evaluation.metrics import summarise
from medrec.evaluation.significance import TESTED, holm, patient_differences, wilcoxon_p
from medrec.runs import Run
from quantum.base import InputError

__all__ = ["PRIMARY", "Comparison", "caution", "compare_runs", "evaluation_table", "load_rows"]

PRIMARY = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")
SECONDARY = (
    "jaccard_first",
    "jaccard_later",
    "jaccard_visit_mean",
    "f1_visit_mean",
    "prauc_visit_mean",
    "micro_f1",
    "micro_precision",
    "micro_recall",
    "recall_at_n_true",
    "ddi_rate_visit_mean",
    "ddi_rate_severity_1",
    "ddi_rate_severity_2",
    "ddi_rate_severity_3",
    "ddi_rate_severity_4",
)
_SHORT = {"ddi_rate": "ddi", "mean_n_drugs": "drugs"}
_ENOUGH_PATIENTS = 500


@dataclass(frozen=True)
class Comparison:
    """A table and its header.

    Attributes
    ----------
    header : dict
        Cohort, preset, splits, counts, ground-truth and chance DDI, caution.
    table : pandas.DataFrame
        One row per model: ``run``, ``model``, ``name`` of the configuration, number of runs, seeds
        and splits, threshold, and per metric the mean over runs, ``_low``, ``_high``, the paired
        ``_difference`` to the reference with its interval, ``_sd_seeds``, ``_sd_splits``; for
        metrics with a value per patient ``_p`` (Wilcoxon) and ``_p_holm``; with a best possible
        Jaccard ``jaccard_optimum`` and ``jaccard_distance`` (best minus model) with its interval.
    reference : str
        The ``run`` that differences refer to.
    facts : dict
        The header's facts as plain values, for files.
    """

    header: dict[str, Any]
    table: pd.DataFrame
    reference: str
    facts: dict[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        from medrec.notebook import comparison_html

        return comparison_html(self)

    def titles(self) -> list[str]:
        """Name of each row: the shortest of model, configuration and run that no other row has."""
        columns = [[str(item) for item in self.table[c]] for c in ("model", "name", "run")]
        return [
            next(
                (column[i] for column in columns if column.count(column[i]) == 1), columns[-1][i]
            ).replace("_", " ")
            for i in range(len(self.table))
        ]

    def display(self) -> pd.DataFrame:
        """Text table: value with interval, difference to the reference, its corrected p-value."""
        # narrow cells: the whole table has to fit 80 columns
        shown = pd.DataFrame({"model": [title.replace(" ", "\n") for title in self.titles()]})
        rows = self.table.to_dict("records")
        for name in PRIMARY:
            value, interval = (1, 0) if name == "mean_n_drugs" else (3, 2)
            shown[_SHORT.get(name, name)] = [
                f"{row[name]:.{value}f}\n"
                f"{_bare(row[f'{name}_low'], interval)}–{_bare(row[f'{name}_high'], interval)}"
                for row in rows
            ]
        shown["Δ jaccard"] = [
            "reference"
            if row["run"] == self.reference
            else f"{row['jaccard_difference']:+.3f}\n{_bare(row['jaccard_difference_low'], 2, '+')}"
            f" to {_bare(row['jaccard_difference_high'], 2, '+')}"
            for row in rows
        ]
        shown["p"] = [_plain_p(row["jaccard_p_holm"]) for row in rows]
        if (self.table["n_runs"] > 1).any():
            shown["runs"] = self.table["n_runs"].to_list()
            shown["± seed\n± split"] = [
                f"{_plain_sd(row['jaccard_sd_seeds'])}\n{_plain_sd(row['jaccard_sd_splits'])}"
                for row in rows
            ]
        if "jaccard_distance" in self.table:
            shown["to best"] = [f"{row['jaccard_distance']:.3f}" for row in rows]
        return shown


def _bare(value: float, digits: int, sign: str = "") -> str:
    """Number without the zero before its point: .41, -.02."""
    return f"{value:{sign}.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.0f}"


def _plain_p(p: float) -> str:
    if p != p:
        return "-"
    return "<.001" if p < 0.001 else f"{p:.3f}"


def _plain_sd(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"


def caution(n_patients: int) -> str:
    """Say what a test part of this size supports."""
    if n_patients < _ENOUGH_PATIENTS:
        return (
            f"{n_patients} test patients support no claim about accuracy: the intervals are wide, "
            "and the order of the models may be chance."
        )
    return "Differences whose interval holds 0 are not established."


_BEST = -1


def compare_runs(
    runs: list[Run], cohort: Cohort, reference: str | None = None, seed: int = 0
) -> Comparison:
    """Compare training runs on one cohort; runs that differ in seed or split alone are one row.

    Parameters
    ----------
    reference : str, optional
        Name (or beginning) of the run or model that differences refer to; the first by default.
    seed : int
        Of the resamples.

    Raises
    ------
    InputError
        If runs are unfinished, belong to different cohorts, score different visits of a split, or
        have no split in common with the reference; or if the reference is none.
    """
    groups = group_runs(runs, cohort)
    base = find_group(groups, reference)
    rows: dict[tuple[int, int], Sequence[pd.DataFrame]] = {
        (number, split): tables
        for number, group in enumerate(groups)
        for split, tables in group.rows.items()
    }
    splits = sorted({split for _, split in rows})
    for split in splits:
        best = optimum_rows(cohort, split)
        if best is not None:
            rows[_BEST, split] = [best]
    cells = Cells(rows, (*PRIMARY, *SECONDARY), seed)
    table = []
    for number, group in enumerate(groups):
        common = [split for split in group.splits if split in groups[base].splits]
        if not common:
            raise InputError(
                f"runs of {group.label} and of the reference {groups[base].label} have no split in "
                f"common (splits {list(group.splits)} and {list(groups[base].splits)}); expected "
                "one at least"
            )
        table.append(_row(number, group, base, groups[base], common, cells))
    frame = pd.DataFrame(table)
    for name in TESTED:
        frame[f"{name}_p_holm"] = holm(frame[f"{name}_p"])
    facts = _facts(cohort, groups, splits, rows, cells)
    return Comparison(_header(facts), frame, groups[base].label, facts)


def _row(
    number: int,
    group: Group,
    base: int,
    reference: Group,
    common: Sequence[int],
    cells: Cells,
) -> dict[str, Any]:
    seconds = [report["seconds"] for report in group.reports if report.get("seconds") is not None]
    row: dict[str, Any] = {
        "run": group.label,
        "model": group.model,
        "name": group.runs[0].config().get("name", group.label),
        "runs": ", ".join(run.name for run in group.runs),
        "n_runs": len(group.runs),
        "n_seeds": len({run.config().get("seed") for run in group.runs}),
        "n_splits": len(group.splits),
        "splits_compared": ", ".join(map(str, common)),
        "n_parameters": group.reports[0].get("n_parameters"),
        "seconds": float(np.mean(seconds)) if seconds else None,
        "threshold": _threshold(group),
    }
    shared = set(cells.names(base))
    for name in cells.names(number):
        row[name] = cells.mean(number, group.splits, name)
        low, high = percentile_interval(cells.drawn(number, group.splits, name))
        row[f"{name}_low"], row[f"{name}_high"] = low, high
        if name in shared:
            difference = cells.difference(number, base, common, name)
            for suffix, value in zip(("", "_low", "_high"), difference, strict=True):
                row[f"{name}_difference{suffix}"] = value
        values = {s: [run[name] for run in cells.points[number, s]] for s in group.splits}
        row[f"{name}_sd_seeds"], row[f"{name}_sd_splits"] = seed_and_split_spread(values)
    for name in TESTED:
        row[f"{name}_p"] = float("nan")
        if number != base:
            ours, theirs = ([item.rows[s] for s in common] for item in (group, reference))
            row[f"{name}_p"] = wilcoxon_p(patient_differences(ours, theirs, name))
    if all((_BEST, split) in cells.points for split in group.splits):
        row["jaccard_optimum"] = cells.mean(_BEST, group.splits, "jaccard")
        distance = cells.difference(_BEST, number, group.splits, "jaccard")
        for suffix, value in zip(("", "_low", "_high"), distance, strict=True):
            row[f"jaccard_distance{suffix}"] = value
    return row


def _threshold(group: Group) -> str:
    """Threshold of the runs, or their range; models that generate sets have none."""
    found = sorted(
        {
            float(report["threshold"])
            for report in group.reports
            if report.get("threshold") is not None
        }
    )
    if not found:
        return "none" if "threshold" in group.reports[0] else "not recorded"
    return f"{found[0]:.3g}" + (f" to {found[-1]:.3g}" if len(found) > 1 else "")


# --------------------------------------------------------------------------- header


def _facts(
    cohort: Cohort,
    groups: list[Group],
    splits: list[int],
    rows: dict[tuple[int, int], Sequence[pd.DataFrame]],
    cells: Cells,
) -> dict[str, Any]:
    """What every table states, as plain values; of several splits the mean over them."""
    reports = {int(r["split"]): r for group in groups for r in group.reports}
    points = {s: next(p[0] for (_, split), p in cells.points.items() if split == s) for s in splits}
    tables = {s: next(t[0] for (_, split), t in rows.items() if split == s) for s in splits}
    facts: dict[str, Any] = {
        "cohort": cohort.folder.name,
        "preset": cohort.config.preset,
        "split_digests": {s: str(reports[s]["split_digest"]) for s in splits},
        "n_patients": cohort.n_patients,
        "n_visits": len(cohort.visits),
        "n_drugs": len(cohort.drugs),
        "n_test_patients": [int(tables[s]["patient"].nunique()) for s in splits],
        "n_test_visits": [len(tables[s]) for s in splits],
        "ddi_rate_true": float(np.mean([points[s]["ddi_rate_true"] for s in splits])),
        "ddi_rate_chance": float(np.mean([reports[s]["ddi_rate_chance"] for s in splits])),
        "ddi_rate_chance_by_frequency": float(
            np.mean([ddi_by_frequency(cohort, s) for s in splits])
        ),
        "mean_n_drugs_true": float(np.mean([points[s]["mean_n_drugs_true"] for s in splits])),
        "thresholds": {group.label: _threshold(group) for group in groups},
    }
    if (_BEST, splits[0]) in rows:
        low, high = percentile_interval(cells.drawn(_BEST, splits, "jaccard"))
        facts |= {
            "jaccard_optimum": cells.mean(_BEST, splits, "jaccard"),
            "jaccard_optimum_low": low,
            "jaccard_optimum_high": high,
            "jaccard_optimum_expected": float(
                np.mean([_expected(rows[_BEST, s][0]) for s in splits])
            ),
        }
    notes = {group.label: coverage_note(group.reports) for group in groups}
    facts["map_coverage"] = {label: note for label, note in notes.items() if note is not None}
    facts["caution"] = caution(min(facts["n_test_patients"]))
    return facts


def _expected(rows: pd.DataFrame) -> float:
    """Expected Jaccard of the best sets: over the visits of a patient, then over patients."""
    return float(rows.groupby("patient")["expected_jaccard"].mean().mean())


def _header(facts: dict[str, Any]) -> dict[str, Any]:
    splits = [f"{number} ({key[:8]})" for number, key in facts["split_digests"].items()]
    tested, visits = (
        ", ".join(map(str, facts[key])) for key in ("n_test_patients", "n_test_visits")
    )
    part = "the test part" if len(splits) == 1 else "the test parts"
    header = {
        "cohort": facts["cohort"],
        "preset": facts["preset"],
        "split": ", ".join(splits),
        "patients": f"{facts['n_patients']} in all, {tested} in {part}",
        "visits": f"{facts['n_visits']} in all, {visits} in {part}",
        "drug classes": facts["n_drugs"],
        "DDI of ground truth": round(facts["ddi_rate_true"], 4),
        "DDI of chance": round(facts["ddi_rate_chance"], 4),
        "DDI of chance, drugs as frequent": round(facts["ddi_rate_chance_by_frequency"], 4),
        "drugs per visit, truth": round(facts["mean_n_drugs_true"], 2),
        "thresholds": ", ".join(f"{name}: {text}" for name, text in facts["thresholds"].items()),
    }
    if "jaccard_optimum" in facts:
        header["best possible Jaccard"] = (
            f"{facts['jaccard_optimum']:.4f} [{facts['jaccard_optimum_low']:.4f}, "
            f"{facts['jaccard_optimum_high']:.4f}], expected "
            f"{facts['jaccard_optimum_expected']:.4f}"
        )
    if facts["map_coverage"]:
        found = facts["map_coverage"].items()
        header["drugs with a map"] = "; ".join(f"{name}: {note}" for name, note in found)
    header["caution"] = facts["caution"]
    return header


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
