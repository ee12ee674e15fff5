"""Event files of a run for TensorBoard, written with tensorboardX; without it there are none.

``metrics.jsonl`` is the record, event files follow it and can be made from it at any time. A run
that is resumed begins a new file and drops the old one, so no step is there twice.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medrec.runs import Run

FOLDER = "tensorboard"
_EVENTS = "events.out.tfevents.*"
_TRIALS, _HISTORY = "trials.parquet", "trials_history.parquet"
_NO_OBJECTIVE = frozenset(
    {"number", "epochs", "full_budget", "seconds", "pareto", "state", "failure", "started"}
)
Row = dict[str, Any]


def available() -> bool:
    """Whether tensorboardX is installed."""
    return importlib.util.find_spec("tensorboardX") is not None


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Finite numbers of a row but its epoch; a table fills what a row lacks with NaN."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "epoch" and isinstance(value, int | float) and math.isfinite(value)
    }


def step_of(row: Mapping[str, Any], number: int) -> int:
    """Epoch of a row, or its place among all rows."""
    return int(row.get("epoch", number))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted path; lists as JSON text, empty leaves left out."""
    if isinstance(tree, Mapping):
        leaves: dict[str, Any] = {}
        for name, value in tree.items():
            leaves |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return leaves
    if tree is None:
        return {}
    if isinstance(tree, list | tuple):
        return {prefix: json.dumps(tree, default=str)}
    return {prefix: tree.item() if hasattr(tree, "item") else tree}


def report_numbers(run: Run) -> dict[str, float]:
    """Numbers of a finished run's report, by dotted path."""
    return scalars(flatten(run.report()))


class EventSink:
    """Event files of one run.

    Parameters
    ----------
    run : Run
        Their folder is ``tensorboard`` in the run's.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.folder / FOLDER
        self.config = flatten(run.config())
        self.written: list[tuple[int, dict[str, float]]] = []
        self._writer = self._begin()

    def _begin(self) -> _EventFile:
        # old files go first: a kill in between costs a picture, never doubles a step
        for path in self.folder.glob(_EVENTS):
            path.unlink()
        self.written = []
        return _EventFile(self.folder, self.config)

    def rows(self, rows: Sequence[Row]) -> None:
        """Write the rows that are new; start again if earlier ones were taken back."""
        wanted = [(step_of(row, number), scalars(row)) for number, row in enumerate(rows)]
        if wanted[: len(self.written)] != self.written:
            self._writer.close()
            self._writer = self._begin()
        new = wanted[len(self.written) :]
        if not new:
            return
        for at, (step, values) in zip(self._times(new), new, strict=True):
            self._writer.add(values, step, at)
        self._writer.flush()
        self.written += new

    def _times(self, new: Sequence[tuple[int, dict[str, float]]]) -> list[float]:
        """When epochs ended: the last one when the file changed, others by what they took."""
        path = self.run.folder / "metrics.jsonl"
        at = path.stat().st_mtime if path.exists() else time.time()
        found = []
        for _, values in reversed(new):
            found.append(at)
            at -= values.get("seconds", 0.0)
        return found[::-1]

    def close(self, status: str) -> None:
        """Add the report's numbers and, for a search, one folder of events per trial."""
        if status == "finished" and self.run.is_finished:
            last = self.written[-1][0] if self.written else 0
            numbers = {f"report/{name}": v for name, v in report_numbers(self.run).items()}
            self._writer.add(numbers, last)
        self._writer.close()
        if self.run.kind == "tune":
            write_trials(self.run)


class _EventFile:
    """One event file that begins with parameters.

    tensorboardX's own writer hands events to another thread, and its flush does not wait for that;
    this one writes at once.
    """

    def __init__(self, folder: Path, hparams: Mapping[str, Any]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import hparams as as_summary

        folder.mkdir(parents=True, exist_ok=True)
        self._new, self._file = event_pb2.Event, EventsWriter(str(folder / "events"))
        # a running TensorBoard forgets what it read from the file before
        log = event_pb2.SessionLog
        self._write(session_log=log(status=log.START))
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in hparams.items()}
        # without a list of metrics TensorBoard's table of parameters shows them all
        _, start, end = as_summary(plain, {})
        self._write(summary=start)
        self._write(summary=end)

    def _write(self, step: int = 0, at: float | None = None, **content: Any) -> None:
        when = time.time() if at is None else at
        self._file.write_event(self._new(step=step, wall_time=when, **content))

    def add(self, values: Mapping[str, float], step: int, at: float | None = None) -> None:
        """Add numbers of a step, at a time in seconds since 1970."""
        from tensorboardX.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, at, summary=Summary(value=shown))

    def flush(self) -> None:
        """Bring all to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def write_trials(run: Run) -> int:
    """Write one folder of events per trial of a search, from its tables.

    Returns
    -------
    int
        How many there are; 0 if the search has no table yet.
    """
    if not (run.folder / _TRIALS).exists():
        return 0
    trials = pd.read_parquet(run.folder / _TRIALS)
    path = run.folder / _HISTORY
    history = dict(list(pd.read_parquet(path).groupby("number"))) if path.exists() else {}
    for row in trials.to_dict("records"):
        number = int(row["number"])
        folder = run.folder / FOLDER / f"trial-{number:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        params = {
            str(name).removeprefix("params."): value
            for name, value in row.items()
            if str(name).startswith("params.") and not _is_missing(value)
        }
        writer = _EventFile(folder, flatten(params))
        for step, values in _epochs_of(row, history.get(number)):
            writer.add(values, step)
        writer.close()
    return len(trials)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _epochs_of(
    trial: Mapping[Any, Any], history: pd.DataFrame | None
) -> list[tuple[int, dict[str, float]]]:
    """Objectives by epoch: all epochs where they were kept, else the last one."""
    if history is None:
        values = {
            str(k): v
            for k, v in trial.items()
            if k not in _NO_OBJECTIVE and not str(k).startswith(("params.", "std."))
        }
        last: Any = trial.get("epochs")
        return [(0 if _is_missing(last) else int(last), scalars(values))]
    rows = history.rename(columns={"epochs": "epoch"}).drop(columns="number").to_dict("records")
    return [(int(row["epoch"]), scalars({str(k): v for k, v in row.items()})) for row in rows]
