"""Tables of a search's trials, and the best of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from medrec.config import Objective, SearchConfig
from orchestration.search_study import DETAIL, FAILURE, complete_trials, failed_trials

TRIALS, HISTORY = "trials.parquet", "trials_history.parquet"
LOG = "trials.jsonl"


def trials_table(study: optuna.Study, config: SearchConfig[Any], folder: Path) -> pd.DataFrame:
    """One row per trial that is complete or failed.

    Returns
    -------
    pandas.DataFrame
        ``number``; ``params.*``, null where inactive; one column per objective, null for a failed
        trial; ``epochs``; ``full_budget`` (False if it was stopped early); ``seconds``; ``pareto``;
        ``state`` (complete, failed); ``failure``, kind and first line of an error; ``started``
        (UTC); ``std.*`` per objective, over the seeds of a trial, if there are several.
    """
    older = _details_by_params(folder)
    trials = sorted(
        [*complete_trials(study), *failed_trials(study)], key=lambda trial: trial.number
    )
    table = pd.DataFrame([_row(trial, config, older) for trial in trials], columns=_columns(config))
    table["pareto"] = pareto_front(table, config.objectives)
    for name in (name for name in table.columns if name.startswith("params.")):
        kinds = {type(value) for value in table[name] if not pd.isna(value)}
        if str in kinds and len(kinds) > 1:  # a choice between words and numbers
            table[name] = [None if pd.isna(value) else str(value) for value in table[name]]
    for name in ("number", "full_budget", "pareto"):
        table[name] = table[name].astype("int64" if name == "number" else "bool")
    for item in config.objectives:
        table[item.metric] = table[item.metric].astype("float64")
    return table


def _columns(config: SearchConfig[Any]) -> list[str]:
    metrics = [item.metric for item in config.objectives]
    return [
        "number",
        *(f"params.{path}" for path in config.space),
        *metrics,
        *("epochs", "full_budget", "seconds", "pareto", "state", "failure", "started"),
        *(f"std.{name}" for name in metrics if config.repeats > 1),
    ]


def _row(
    trial: FrozenTrial, config: SearchConfig[Any], older: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    detail = trial.user_attrs.get(DETAIL) or older.get(_params_key(trial.params), {})
    metrics = [item.metric for item in config.objectives]
    start = trial.datetime_start
    row = {
        "number": trial.number,
        **{f"params.{path}": trial.params.get(path) for path in config.space},
        **dict(zip(metrics, trial.values or [None] * len(metrics), strict=True)),
        "epochs": detail.get("epochs"),
        "full_budget": bool(detail.get("full_budget", False)),
        "seconds": detail.get("seconds"),
        "pareto": False,
        "state": "complete" if trial.values else "failed",
        "failure": trial.user_attrs.get(FAILURE),
        "started": start.astimezone(UTC).isoformat(timespec="seconds") if start else None,
    }
    if config.repeats > 1:
        row |= {f"std.{name}": detail.get("std", {}).get(name) for name in metrics}
    return row


def _details_by_params(folder: Path) -> dict[str, dict[str, Any]]:
    """Details of searches begun before details stood in the study."""
    lines = [item for item in _lines(folder / LOG) if "params" in item and "number" not in item]
    return {_params_key(item["params"]): item for item in lines}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines; those that a kill cut off are left out."""
    found = []
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines():
        try:
            found.append(dict(json.loads(line)))
        except ValueError:
            continue
    return found


def _params_key(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def history_table(study: optuna.Study, folder: Path) -> pd.DataFrame:
    """What trials reported, one row per trial and epoch.

    Returns
    -------
    pandas.DataFrame
        ``number``, ``epoch`` (finished ones, from 1), ``seconds`` since the trial began, and every
        reported metric. With population based training also ``params.*`` of the epoch.
    """
    numbers = {trial.number for trial in [*complete_trials(study), *failed_trials(study)]}
    rows = {
        (item["number"], item["epoch"]): item
        for item in _lines(folder / LOG)
        if item.get("number") in numbers and "epoch" in item
    }
    table = pd.DataFrame([rows[key] for key in sorted(rows)])
    first = ["number", "epoch", "seconds"]
    if table.empty:
        return pd.DataFrame(columns=first)
    return table[[*first, *sorted(name for name in table.columns if name not in first)]]


def pareto_front(table: pd.DataFrame, objectives: Sequence[Objective]) -> npt.NDArray[np.bool_]:
    """Rows that no other row beats in one objective and equals or beats in all."""
    signs = np.array([1.0 if item.mode == "max" else -1.0 for item in objectives])
    values = table[[item.metric for item in objectives]].to_numpy(dtype=float) * signs
    whole = np.isfinite(values).all(axis=1)
    front = np.zeros(len(values), dtype=bool)
    for row in np.flatnonzero(whole):
        others = values[whole]
        no_worse = (others >= values[row]).all(axis=1)
        front[row] = not (no_worse & (others > values[row]).any(axis=1)).any()
    return front


def best_number(
    table: pd.DataFrame, objectives: Sequence[Objective], pick: str | None = None
) -> int:
    """Number of the best trial.

    Trials that had their full budget go before those stopped early; then the objective named by
    ``pick`` decides, the first one by default, and the others in their order between equals.
    """
    complete = table[table["state"] == "complete"]
    full = complete[complete["full_budget"]]
    chosen = full if len(full) else complete
    ordered = sorted(objectives, key=lambda item: item.metric != pick) if pick else objectives
    found = chosen.sort_values(
        [item.metric for item in ordered], ascending=[item.mode == "min" for item in ordered]
    )
    return int(found["number"].iloc[0])


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values, with None for what is missing: JSON has no NaN."""
    whole = table.astype(object).where(table.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in whole.to_dict("records")]
