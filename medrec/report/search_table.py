"""Trials of a search as figures need them: what was varied, over which values, what came of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.runs import Run
from quantum.base import InputError

TRIALS, HISTORY = "trials.parquet", "trials_history.parquet"
_FACTS = ("number", "epochs", "full_budget", "seconds", "pareto", "state", "failure", "started")
_SETTINGS = {
    "d_model": "embedding size",
    "representation.layers": "GNN depth (layers)",
    "encoder.layers": "GNN depth (layers)",
    "gin_layers": "GNN depth (layers)",
    "ddi_target": "DDI threshold",
    "lr": "learning rate",
    "batch_patients": "patients per batch",
    "batch_size": "molecules per batch",
}
_METRICS = {
    "jaccard": "Jaccard",
    "f1": "F1",
    "prauc": "PRAUC",
    "ddi_rate": "DDI rate",
    "mean_n_drugs": "drugs per visit",
    "parameters": "parameters of the encoder",
}
_UNITS = {"angstrom": "Å", "bohr": "bohr", "s": "s", "ev": "eV", "kcal": "kcal/mol"}
_MOST_LEVELS, _N_BINS = 8, 6
# where a setting that a trial does not have stands, left of all values
_INACTIVE = -1.0


@dataclass(frozen=True)
class Objective:
    """A column that was to become large (``max``) or small (``min``)."""

    metric: str
    mode: str = "max"

    @property
    def label(self) -> str:
        """Name for people; all are measured on the validation part but sizes."""
        if self.metric in _METRICS:
            name = _METRICS[self.metric]
            return name if self.metric == "parameters" else f"{name}, validation"
        name = self.metric.removeprefix("valid_").removeprefix("val_").replace("_", " ")
        name = name.upper() if len(name) <= 4 else name
        return f"{name}, validation" if self.metric.startswith("val") else name

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return "higher is better" if self.mode == "max" else "lower is better"

    @property
    def sign(self) -> float:
        """Factor that makes larger better."""
        return 1.0 if self.mode == "max" else -1.0


@dataclass(frozen=True)
class Dimension:
    """One setting that was varied.

    Parameters
    ----------
    path : str
        Dotted path in the configuration.
    values : tuple
        Of a choice, in order; empty for a range.
    low, high : float
        Ends of a range.
    log : bool
        Whether equal factors are equal steps.
    """

    path: str
    label: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    @property
    def column(self) -> str:
        """Column of the table of trials."""
        return f"params.{self.path}"

    def positions(self, column: pd.Series) -> npt.NDArray[np.float64]:
        """Place of values between 0 and 1; -1 for trials without this setting."""
        if self.values:
            places = {text_of(v): (i + 0.5) / len(self.values) for i, v in enumerate(self.values)}
            return np.array([places.get(text_of(v), _INACTIVE) for v in column])
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            low, high = np.log10(low), np.log10(high)
            numbers = np.log10(np.where(numbers > 0, numbers, np.nan))
        if high <= low:
            return np.where(np.isnan(numbers), _INACTIVE, 0.5)
        scaled = np.clip((numbers - low) / (high - low), 0.0, 1.0)
        return np.where(np.isnan(scaled), _INACTIVE, scaled)

    def at(self, position: float) -> float:
        """Value of a range at a place between 0 and 1."""
        if self.log:
            return float(self.low * (self.high / self.low) ** position)
        return float(self.low + (self.high - self.low) * position)

    def levels(self, column: pd.Series) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Group trials by value, or by equal steps of a range with many values.

        Returns
        -------
        names : list of str
            In ascending order; only those that occur. A step is named by its middle.
        level : ndarray (n_trials,)
            Which one a trial belongs to; -1 without this setting.
        """
        if self.values:
            shown = [text_of(value) for value in self.values]
            found = [text_of(value) for value in column]
        else:
            numbers = pd.to_numeric(column, errors="coerce")
            unique = sorted(numbers.dropna().unique())
            if len(unique) > _MOST_LEVELS:
                return self._bins(column)
            shown, found = [text_of(v) for v in unique], [text_of(v) for v in numbers]
        names = [name for name in dict.fromkeys(shown) if name in set(found)]
        place = {name: i for i, name in enumerate(names)}
        return names, np.array([place.get(name, -1) for name in found], dtype=np.int64)

    def _bins(self, column: pd.Series) -> tuple[list[str], npt.NDArray[np.int64]]:
        places = self.positions(column)
        level = np.minimum((places * _N_BINS).astype(np.int64), _N_BINS - 1)
        used = sorted(set(level[places >= 0].tolist()))
        names = [f"{self.at((number + 0.5) / _N_BINS):.2g}" for number in used]
        new = {old: i for i, old in enumerate(used)}
        pairs = zip(level, places, strict=True)
        return names, np.array([new[i] if p >= 0 else -1 for i, p in pairs], dtype=np.int64)


@dataclass(frozen=True)
class SearchTrials:
    """What a search found.

    Attributes
    ----------
    trials : pandas.DataFrame
        Complete trials with all objectives, by number.
    failed : dict of str to int
        Number of failed trials per kind.
    chosen : int or None
        Number of the trial that the search itself called best.
    """

    trials: pd.DataFrame
    dimensions: tuple[Dimension, ...]
    objectives: tuple[Objective, ...]
    failed: dict[str, int] = field(default_factory=dict)
    chosen: int | None = None

    @classmethod
    def from_frame(
        cls,
        table: pd.DataFrame,
        space: dict[str, Any] | None = None,
        objectives: Sequence[dict[str, Any]] = (),
    ) -> SearchTrials:
        """Take a table of trials apart.

        Parameters
        ----------
        table : pandas.DataFrame
            ``number``, ``params.*`` and one column per objective; the other columns of
            ``trials.parquet`` may be missing.
        space : dict, optional
            Of the search's configuration; without it kinds and ends are those of the values.
        objectives : sequence of dict
            With ``metric`` and ``mode``; without any, columns that are nothing else.

        Raises
        ------
        InputError
            If there is no complete trial, or nothing was varied.
        """
        good, failed = _split_failed(table)
        goals = tuple(Objective(str(o["metric"]), str(o.get("mode", "max"))) for o in objectives)
        goals = goals or tuple(Objective(name) for name in _other_columns(table))
        goals = tuple(goal for goal in goals if goal.metric in good.columns)
        good = good.dropna(subset=[goal.metric for goal in goals]).sort_values("number")
        paths = [str(c).removeprefix("params.") for c in good if str(c).startswith("params.")]
        paths = [path for path in paths if good[f"params.{path}"].notna().any()]
        if good.empty or not goals or not paths:
            raise InputError(
                f"the table of trials has {len(good)} complete trials, {len(paths)} settings and "
                f"{len(goals)} objectives; expected one or more of each"
            )
        labels = label_settings(paths)
        dimensions = tuple(
            _dimension(path, labels[path], good[f"params.{path}"], (space or {}).get(path))
            for path in paths
        )
        return cls(_with_front(good.reset_index(drop=True), goals), dimensions, goals, failed)

    @classmethod
    def load(cls, run: Run) -> SearchTrials:
        """Read the trials of a search's run.

        Raises
        ------
        InputError
            If the run is no search, or has no table yet.
        """
        if run.kind != "tune":
            raise InputError(f"run {run.name} is of kind {run.kind}; expected a search (tune)")
        path = run.folder / TRIALS
        if not path.exists():
            raise InputError(
                f"search {run.name} has no trials to show: {run.record()['status']}; "
                "the same search command goes on with it"
            )
        config = run.config()
        report = run.report() if run.is_finished else {}
        goals = report.get("objectives") or config.get("objectives") or ()
        found = cls.from_frame(pd.read_parquet(path), config.get("space"), goals)
        number = report.get("best_trial")
        if number is None or number not in set(found.trials["number"]):
            return found
        return replace(found, chosen=int(number))

    def best(self) -> pd.Series:
        """Trial that the search chose; else the best by the first objective, then by the next.

        Trials that were stopped early come after those that were not.
        """
        trials = self.trials
        if self.chosen is not None:
            return trials[trials["number"] == self.chosen].iloc[0]
        if "full_budget" in trials:
            whole = trials[trials["full_budget"].fillna(False).astype(bool)]
            trials = whole if len(whole) else trials
        ordered = trials.sort_values(
            [goal.metric for goal in self.objectives],
            ascending=[goal.mode == "min" for goal in self.objectives],
        )
        return ordered.iloc[0]

    def params(self, trial: pd.Series) -> dict[str, Any]:
        """Settings of a trial by dotted path, as plain values; those it lacks are left out."""
        return {
            dim.path: plain(trial[dim.column], dim)
            for dim in self.dimensions
            if not missing(trial[dim.column])
        }

    def hover(self) -> list[str]:
        """One text per trial: number, settings, whether it was stopped early."""
        texts = []
        for _, row in self.trials.iterrows():
            shown = [f"{d.label} {text_of(row[d.column])}" for d in self.dimensions]
            early = row.get("full_budget") is not None and not row.get("full_budget", True)
            head = f"trial {row['number']}" + (" (stopped early)" if early else "")
            texts.append("<br>".join(_plain_text(item) for item in [head, *shown]))
        return texts


def missing(value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def plain(value: Any, dimension: Dimension) -> Any:
    """Value as it stands in a configuration: a column with gaps turns whole numbers into floats."""
    value = value.item() if hasattr(value, "item") else value
    for choice in dimension.values:
        if text_of(choice) == text_of(value):
            return choice
    if isinstance(value, float) and value.is_integer() and float(dimension.low).is_integer():
        whole = isinstance(dimension.low, int) and isinstance(dimension.high, int)
        return int(value) if whole else value
    return value


def text_of(value: Any) -> str:
    """Short text of a value; the same for 64 and 64.0."""
    if missing(value):
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.number):
        return f"{float(value):.4g}" if abs(float(value)) < 1e4 else f"{float(value):g}"
    return str(value)


def _plain_text(text: str) -> str:
    """Text in which Plotly finds no markup: a break is the only tag that is ours."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def label_settings(paths: Sequence[str]) -> dict[str, str]:
    """Names for people of dotted paths, all different."""
    labels = {path: _label(path) for path in paths}
    names = list(labels.values())
    return {
        path: name if names.count(name) == 1 else f"{name}, {path.rpartition('.')[0]}"
        for path, name in labels.items()
    }


def _label(path: str) -> str:
    parts = path.split(".")
    for tail in (".".join(parts[-2:]), parts[-1]):
        if tail in _SETTINGS:
            return _SETTINGS[tail]
    found = re.fullmatch(r"(.+)_(" + "|".join(_UNITS) + ")", parts[-1])
    if found:
        return f"{found[1].replace('_', ' ')} ({_UNITS[found[2]]})"
    return parts[-1].replace("_", " ")


def _other_columns(table: pd.DataFrame) -> list[str]:
    return [
        str(name)
        for name in table.columns
        if name not in _FACTS
        and not str(name).startswith(("params.", "std."))
        and pd.api.types.is_numeric_dtype(table[name])
    ]


def _split_failed(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    if "state" not in table:
        return table, {}
    bad = table[table["state"] != "complete"]
    reasons = bad["failure"] if "failure" in bad else pd.Series("", index=bad.index)
    kinds = ["unknown" if missing(r) or not r else str(r).split(":")[0].strip() for r in reasons]
    counts = pd.Series(kinds, dtype=object).value_counts()
    return table[table["state"] == "complete"], {str(k): int(v) for k, v in counts.items()}


def _dimension(path: str, label: str, column: pd.Series, declared: Any) -> Dimension:
    present = column.dropna()
    if isinstance(declared, dict) and "values" in declared:
        values = tuple(declared["values"])
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        return Dimension(path, label, tuple(sorted(values)) if numeric else values)
    if isinstance(declared, dict) and {"low", "high"} <= declared.keys():
        log = str(declared.get("type", "")).startswith("log") or bool(declared.get("log"))
        return Dimension(path, label, (), declared["low"], declared["high"], log)
    if not pd.api.types.is_numeric_dtype(present) or pd.api.types.is_bool_dtype(present):
        return Dimension(path, label, tuple(dict.fromkeys(present.tolist())))
    whole = bool((present == present.round()).all())
    low, high = (int(v) if whole else float(v) for v in (present.min(), present.max()))
    return Dimension(path, label, (), low, high)


def _with_front(trials: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Trials with the column ``pareto``, found anew where the table lacks it."""
    if "pareto" in trials and trials["pareto"].notna().all():
        return trials.assign(pareto=trials["pareto"].astype(bool))
    scores = np.stack([goal.sign * trials[goal.metric].to_numpy(float) for goal in objectives], 1)
    beaten = [
        bool(((scores >= own).all(axis=1) & (scores > own).any(axis=1)).any()) for own in scores
    ]
    return trials.assign(pareto=~np.array(beaten))
