"""Jaccard against DDI rate per grade of severity, for several runs on one cohort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medrec.data.cohort import Cohort
from medrec.data.ddi import SEVERITY_NAMES
from medrec.evaluation.bootstrap import bootstrap_intervals
from medrec.evaluation.compare import Comparison, compare_runs
from medrec.evaluation.context import TestPart, ddi_rate_by_frequency
from medrec.evaluation.groups import load_rows
from medrec.evaluation.metrics import SEVERITIES, ddi_rate_chance, has_severity, summarise
from medrec.molecules.drugs import severity_matrix
from medrec.runs import Run
from quantum.base import InputError


@dataclass(frozen=True)
class SeverityTable:
    """DDI rates per grade: pairs of a grade among all pairs of the sets.

    Attributes
    ----------
    comparison : Comparison
        All metrics of the same runs.
    rates : pandas.DataFrame
        One row per run and grade: ``run``, ``model``, ``grade``, ``name``, ``rate`` with ``_low``
        and ``_high``, ``difference`` to the reference (paired) with ``_low`` and ``_high``.
    context : pandas.DataFrame
        One row per grade: ``truth`` (the true sets of the test part) with ``truth_low`` and
        ``truth_high``, ``chance`` (random sets of the drugs that models know),
        ``chance_by_frequency`` (all drugs, as frequent as they are, given independently). Means
        over the splits; the truth's interval is of the first one.
    """

    comparison: Comparison
    rates: pd.DataFrame
    context: pd.DataFrame

    def display(self) -> pd.DataFrame:
        """Text table: a row per run, then truth and chance; columns Jaccard, DDI, and grades."""
        rows = self.comparison.table.to_dict("records")
        titles = [title.replace(" ", "\n") for title in self.comparison.titles()]
        shown: dict[str, list[str]] = {"sets": [*titles, "truth", "chance"]}
        shown["jaccard"] = [*(_cell(row, "jaccard") for row in rows), "-", "-"]
        facts = self.comparison.facts
        shown["ddi"] = [
            *(_cell(row, "ddi_rate") for row in rows),
            f"{facts['ddi_rate_true']:.4f}",
            f"{facts['ddi_rate_chance']:.4f}",
        ]
        for line in self.context.to_dict("records"):
            cells = [_cell(row, f"ddi_rate_severity_{line['grade']}") for row in rows]
            shown[f"grade {line['grade']}"] = [
                *cells,
                f"{line['truth']:.4f}",
                f"{line['chance']:.4f}",
            ]
        return pd.DataFrame(shown)


def _cell(row: dict[Any, Any], name: str) -> str:
    low, high = (f"{row[f'{name}{end}']:.3f}".lstrip("0") for end in ("_low", "_high"))
    return f"{row[name]:.4f}\n{low}–{high}"


def severity_table(
    runs: list[Run], cohort: Cohort, reference: str | None = None, seed: int = 0
) -> SeverityTable:
    """Compare runs by grade; parameters as in `medrec.evaluation.compare.compare_runs`.

    Raises
    ------
    InputError
        If the cohort's interactions have no grades, and as `compare_runs`.
    """
    comparison = compare_runs(runs, cohort, reference, seed)
    by_split = {int(run.report()["split"]): run for run in reversed(runs)}
    tables = {split: load_rows(run) for split, run in sorted(by_split.items())}
    if not all(has_severity(rows) for rows in tables.values()):
        raise InputError(
            f"interactions of cohort {cohort.folder.name} have no grades (TWOSIDES has none), or "
            "the runs are older than the grades; expected a cohort with ddi.source: ansm"
        )
    rates = [
        _rate_row(row, grade) for row in comparison.table.to_dict("records") for grade in SEVERITIES
    ]
    return SeverityTable(comparison, pd.DataFrame(rates), severity_context(cohort, tables))


def _rate_row(row: dict[Any, Any], grade: int) -> dict[str, Any]:
    name = f"ddi_rate_severity_{grade}"
    found = {"run": row["run"], "model": row["model"], "grade": grade}
    found["name"] = SEVERITY_NAMES[grade]
    found |= {f"rate{end}": row[f"{name}{end}"] for end in ("", "_low", "_high")}
    return found | {
        f"difference{end}": row[f"{name}_difference{end}"] for end in ("", "_low", "_high")
    }


def severity_context(cohort: Cohort, tables: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """Rates by grade of the ground truth and of chance, averaged over splits."""
    summaries = [summarise(rows) for rows in tables.values()]
    intervals = bootstrap_intervals(next(iter(tables.values())))
    parts = [TestPart.of(cohort, split) for split in tables]
    severity = severity_matrix(cohort, parts[0].drugs)
    known = [severity_matrix(cohort, cohort.vocabularies(split).drugs) for split in tables]
    table = []
    for grade in SEVERITIES:
        key, pairs = f"ddi_rate_severity_{grade}_true", severity == grade
        table.append(
            {
                "grade": grade,
                "name": SEVERITY_NAMES[grade],
                "truth": float(np.mean([summary[key] for summary in summaries])),
                "truth_low": intervals[key][0],
                "truth_high": intervals[key][1],
                "chance": float(np.mean([ddi_rate_chance(own == grade) for own in known])),
                "chance_by_frequency": float(
                    np.mean([ddi_rate_by_frequency(part.target, pairs) for part in parts])
                ),
            }
        )
    return pd.DataFrame(table)
