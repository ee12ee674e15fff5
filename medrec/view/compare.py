"""Runs of one cohort side by side, for the page."""

from __future__ import annotations

from typing import Any

from medrec.runs import Home
from medrec.view.runs import open_run
from quantum.base import InputError

_COLUMNS = ("run", "model", "name", "runs", "n_runs", "n_seeds", "n_splits", "threshold")


def compare(home: Home, names: list[str], reference: str | None) -> dict[str, Any]:
    """Comparison table with intervals, its header, and the DDI rates of truth and chance.

    Raises
    ------
    NotThereError
        If there is no run of a name.
    InputError
        If there is none to compare, or as `medrec.evaluation.compare.compare_runs`.
    """
    from medrec.data.cohort import Cohort
    from medrec.evaluation.compare import PRIMARY, compare_runs

    runs = [open_run(home, name) for name in names]
    if not runs:
        raise InputError("no run to compare; expected at least one")
    if "cohort" not in runs[0].inputs:
        raise InputError(f"run {runs[0].name} has no cohort; expected training runs")
    cohort = Cohort.load(home.by_digest(home.cohorts, runs[0].inputs["cohort"]))
    comparison = compare_runs(runs, cohort, reference or None)
    table = comparison.table
    titles = comparison.titles()
    ends = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high")
    wanted = [*_COLUMNS, "n_parameters", "seconds", "jaccard_p_holm"]
    wanted += [f"{name}{end}" for name in PRIMARY for end in ends]
    present = [name for name in wanted if name in table.columns]
    rows = [
        {"title": title, **{name: row[name] for name in present}}
        for title, row in zip(titles, table.to_dict("records"), strict=True)
    ]
    return {
        "header": comparison.header,
        "reference": comparison.reference,
        "rows": rows,
        "truth": comparison.facts["ddi_rate_true"],
        "chance": comparison.facts["ddi_rate_chance"],
    }
