"""Runs of one model over seeds and splits, and the checks that a comparison rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medrec.data.cohort import Cohort
from medrec.evaluation.bootstrap import require_same_visits
from medrec.runs import Run
from quantum.base import InputError, digest


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but seed and split.

    Parameters
    ----------
    label : str
        Name of the run; of several runs, their common name without digest.
    runs : tuple of Run
    reports : tuple of dict
        Of the runs, in order.
    rows : dict of int to tuple of pandas.DataFrame
        Per-visit rows by number of the split, one table per run.
    """

    label: str
    runs: tuple[Run, ...]
    reports: tuple[dict[str, Any], ...]
    rows: dict[int, tuple[pd.DataFrame, ...]]

    @property
    def model(self) -> str:
        """Name of the architecture."""
        return str(self.reports[0]["model"])

    @property
    def splits(self) -> tuple[int, ...]:
        """Numbers of the splits, ascending."""
        return tuple(sorted(self.rows))

    def names(self) -> set[str]:
        """All that a user may call this group."""
        runs = {run.name for run in self.runs}
        return {self.label} | runs | {name.rsplit("-", 1)[0] for name in runs}


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


def group_runs(runs: Sequence[Run], cohort: Cohort) -> list[Group]:
    """Put runs of the same configuration but for ``seed`` and ``split`` together.

    Groups keep the order in which their first runs were given; a run given twice counts once.

    Raises
    ------
    InputError
        If there is no run, a run is not finished, belongs to another cohort, or scores other
        visits than the others of its split.
    """
    runs = list({run.name: run for run in runs}.values())
    if not runs:
        raise InputError("no run to compare; expected at least one")
    rows = {run.name: load_rows(run) for run in runs}
    reports = {run.name: run.report() for run in runs}
    _check(runs, cohort, rows, reports)
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_key(run), []).append(run)
    labels = _labels(members)
    groups = []
    for key, own in members.items():
        by_split: dict[int, list[pd.DataFrame]] = {}
        for run in own:
            by_split.setdefault(int(reports[run.name]["split"]), []).append(rows[run.name])
        groups.append(
            Group(
                labels[key],
                tuple(own),
                tuple(reports[run.name] for run in own),
                {split: tuple(tables) for split, tables in by_split.items()},
            )
        )
    return groups


def _key(run: Run) -> str:
    """What makes two runs the same model: all of the configuration but seed and split."""
    settings = {k: v for k, v in run.config().items() if k not in ("seed", "split")}
    return digest({"config": settings, "inputs": run.inputs})


def _labels(members: dict[str, list[Run]]) -> dict[str, str]:
    """One run goes by its name; several by their common one, with a mark if two groups share it."""
    labels = {
        key: own[0].name if len(own) == 1 else own[0].name.rsplit("-", 1)[0]
        for key, own in members.items()
    }
    names = list(labels.values())
    return {
        key: label if names.count(label) == 1 else f"{label}~{key[:6]}"
        for key, label in labels.items()
    }


def _check(
    runs: list[Run],
    cohort: Cohort,
    rows: dict[str, pd.DataFrame],
    reports: dict[str, dict[str, Any]],
) -> None:
    if len({str(report.get("cohort")) for report in reports.values()}) > 1:
        raise InputError("runs differ in cohort; expected one cohort")
    first_of: dict[int, Run] = {}
    for run in runs:
        if run.inputs.get("cohort") != cohort.digest:
            raise InputError(
                f"run {run.name} was made on another cohort than {cohort.folder.name}; "
                "expected the runs' own"
            )
        split = int(reports[run.name]["split"])
        first = first_of.setdefault(split, run)
        ours, theirs = (reports[item.name].get("split_digest") for item in (run, first))
        if ours != theirs:
            raise InputError(
                f"runs {first.name} and {run.name} differ in split_digest for split {split}; "
                "expected the same patients"
            )
        require_same_visits(rows[run.name], rows[first.name])


def find_group(groups: Sequence[Group], wanted: str | None) -> int:
    """Position of the group that a name, a name without its digest, or a unique beginning means.

    Raises
    ------
    InputError
        If none or several fit.
    """
    if wanted is None:
        return 0
    exact = [i for i, group in enumerate(groups) if wanted in group.names()]
    matches = exact or [
        i
        for i, group in enumerate(groups)
        if any(name.startswith(wanted) for name in group.names())
    ]
    if len(matches) != 1:
        found = f"fits {len(matches)} runs" if matches else "is none"
        names = ", ".join(group.label for group in groups)
        raise InputError(f"reference '{wanted}' {found} of: {names}; expected one")
    return matches[0]


def seed_and_split_spread(values: dict[int, list[float]]) -> tuple[float, float]:
    """Standard deviation over the seeds of a split (pooled), and over the means of the splits.

    Parameters
    ----------
    values : dict of int to list of float
        One value per run, by split.

    Returns
    -------
    tuple of float
        The first is the square root of the mean within-split variance, weighted by its degrees of
        freedom; NaN without a split of two runs. The second has one value per split and holds, in
        addition, what other training and test patients change; NaN with one split.
    """
    groups = [np.array(found, dtype=np.float64) for found in values.values()]
    freedom = sum(len(found) - 1 for found in groups)
    within = sum(float(((found - found.mean()) ** 2).sum()) for found in groups)
    seeds = float(np.sqrt(within / freedom)) if freedom > 0 else float("nan")
    means = np.array([found.mean() for found in groups])
    return seeds, float(means.std(ddof=1)) if len(means) > 1 else float("nan")
