"""Results of several models side by side, and beside those of the paper.

All tables are long frames with one number per row, which files keep; `as_text` makes them wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.evaluation.significance import holm
from medrec.properties.finetune import MEAN, SD_UNIT
from medrec.properties.metrics import N_RESAMPLES, Metric, paired_difference
from medrec.properties.paper_rows import PaperTable
from quantum.base import InputError

Float = npt.NDArray[np.float64]
Runs = Mapping[str, Sequence[pd.DataFrame]]
"""Frames of every run (seed) of a model, by the model's name."""
OURS, PAPER = "this project", "paper"


def result_table(
    summaries: Runs, metric: Metric = "mae", dataset: str | None = None
) -> pd.DataFrame:
    """Mean and standard deviation over the runs of each model.

    Parameters
    ----------
    summaries : mapping of str to sequence of pandas.DataFrame
        As `medrec.properties.finetune.evaluate_property` makes them.
    dataset : str, optional
        Take the mean over the targets, in their own unit, as the one number of a data set.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``column`` (target, or data set), ``unit``, ``value``, ``spread`` (ddof 1; NaN
        for one run), ``n_runs``, ``source`` (`OURS`).
    """
    frames = []
    for model, runs in summaries.items():
        rows = pd.concat(runs, ignore_index=True)
        rows = rows[(rows["metric"] == metric) & (rows["unit"] != SD_UNIT)]
        rows = rows[(rows["target"] == MEAN) == (dataset is not None)]
        if rows.empty:
            what = f"mean {metric} over the targets" if dataset else metric
            raise InputError(f"model {model} has no {what}; its runs have other metrics or units")
        values = rows.groupby(["target", "unit"], sort=False)["value"]
        found = values.agg(value="mean", spread="std", n_runs="size").reset_index()
        frames.append(found.assign(model=model, source=OURS))
    table = pd.concat(frames, ignore_index=True).rename(columns={"target": "column"})
    if dataset is not None:
        table["column"] = dataset
    return table[["model", "column", "unit", "value", "spread", "n_runs", "source"]]


def beside_paper(results: pd.DataFrame, paper: PaperTable) -> pd.DataFrame:
    """Append the paper's rows for the columns of ``results``, in the paper's order and units.

    Raises
    ------
    InputError
        If units differ, other than by per cent.
    """
    ours, printed = results.copy(), paper.frame().assign(source=PAPER, n_runs=0)
    printed = printed[printed["column"].isin(ours["column"])]
    units = dict(zip(paper.columns, paper.units, strict=True))
    ours = ours[ours["column"].isin(units)]
    expected = ours["column"].map(units)
    percent = (expected == "%") & (ours["unit"] == "")
    ours.loc[percent, ["value", "spread"]] *= 100.0
    ours["unit"] = ours["unit"].mask(percent, "%")
    mixed = expected.str.startswith("mixed")
    other = ours[(ours["unit"] != expected) & ~mixed]
    if len(other):
        first = other.iloc[0]
        raise InputError(
            f"{first['column']} of model {first['model']} is in '{first['unit']}'; "
            f"{paper.source} has '{units[first['column']]}'"
        )
    return pd.concat([ours, printed], ignore_index=True)[list(results.columns)]


def difference_table(
    predictions: Runs,
    reference: str,
    metric: Metric = "mae",
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Every model minus a reference, on the same test molecules and resamples.

    Parameters
    ----------
    predictions : mapping of str to sequence of pandas.DataFrame
        As `medrec.properties.finetune.evaluate_property` makes them; a model's metric is the mean
        over its runs.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``target``, ``difference``, ``low``, ``high`` (95 %), ``p``, ``p_holm``. The row
        `MEAN` is the mean over the targets, errors in standard deviations of the test labels.
        Holm's correction is over all models and targets; the rows `MEAN` are a family of their own.

    Raises
    ------
    InputError
        If the reference is unknown, or models were tested on other molecules or targets.
    """
    if reference not in predictions:
        raise InputError(f"no model '{reference}'; there is: {', '.join(predictions)}")
    known, theirs = _matrices(reference, predictions[reference])
    labels, names = known.to_numpy(np.float64), list(known.columns)
    scale = None if metric == "roc_auc" else np.nanstd(labels, axis=0)
    frames = []
    for model, runs in predictions.items():
        if model == reference:
            continue
        own, ours = _matrices(model, runs)
        if not own.equals(known):
            raise InputError(
                f"models {model} and {reference} were tested on other molecules or targets "
                f"({own.shape} and {known.shape}); expected the same"
            )
        found = paired_difference(
            metric, labels, ours, theirs, scale=scale, n_resamples=n_resamples, seed=seed
        )
        columns = dict(zip(("difference", "low", "high", "p"), found, strict=True))
        frames.append(pd.DataFrame({"model": model, "target": [*names, MEAN], **columns}))
    if not frames:
        raise InputError(f"there is nothing to compare {reference} with; expected another model")
    table = pd.concat(frames, ignore_index=True)
    is_mean = table["target"] == MEAN
    for family in (is_mean, ~is_mean):
        table.loc[family, "p_holm"] = holm(table.loc[family, "p"].to_numpy())
    return table


def _matrices(model: str, runs: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, list[Float]]:
    """Labels as a table of rows and targets (N, T), and the predictions (N, T) of every run."""
    labels, found = (
        [frame.pivot(index="row", columns="target", values=name) for frame in runs]
        for name in ("value", "prediction")
    )
    if not all(table.equals(labels[0]) for table in labels):
        raise InputError(
            f"runs of model {model} were tested on other molecules or targets; expected the same"
        )
    return labels[0], [table.to_numpy(np.float64) for table in found]


def learning_curves(metrics: Runs, measures: Sequence[str] | None = None) -> pd.DataFrame:
    """Numbers of every epoch, over the runs of each model.

    Parameters
    ----------
    metrics : mapping of str to sequence of pandas.DataFrame
        Rows of ``metrics.jsonl`` (`medrec.runs.Run.metrics`).
    measures : sequence of str, optional
        Columns to keep; all by default.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``measure``, ``epoch``, ``value`` (mean), ``spread`` (ddof 1; NaN for one run),
        ``n_runs`` (those that got so far).
    """
    frames = []
    for model, runs in metrics.items():
        rows = pd.concat(runs, ignore_index=True)
        long = rows.melt("epoch", measures, var_name="measure").dropna(subset="value")
        groups = long.groupby(["measure", "epoch"], sort=False)["value"]
        found = groups.agg(value="mean", spread="std", n_runs="size").reset_index()
        frames.append(found.assign(model=model))
    table = pd.concat(frames, ignore_index=True)
    return table[["model", "measure", "epoch", "value", "spread", "n_runs"]]


def as_text(results: pd.DataFrame) -> str:
    """Text with a line per model and a column per target: ``value ± spread``."""
    rows = results.assign(
        line=[
            model if source == OURS else f"{model} ({source})"
            for model, source in zip(results["model"], results["source"], strict=True)
        ],
        heading=[
            f"{column} [{unit}]" if unit else str(column)
            for column, unit in zip(results["column"], results["unit"], strict=True)
        ],
        cell=[
            _number(value) if np.isnan(spread) else f"{_number(value)} ± {_number(spread, 2)}"
            for value, spread in zip(results["value"], results["spread"], strict=True)
        ],
    )
    lines, headings = (list(dict.fromkeys(rows[name])) for name in ("line", "heading"))
    wide = rows.pivot(index="line", columns="heading", values="cell")
    wide = wide.reindex(index=lines, columns=headings).fillna("-")
    return str(wide.rename_axis(index=None, columns=None).to_string())


def _number(value: float, digits: int = 4) -> str:
    return f"{value:#.{digits}g}".rstrip(".")
