"""What other programs see of runs: TensorBoard always, MLflow where asked for, Ray's dashboard.

A run writes ``metrics.jsonl`` and knows nothing of this. A thread follows the file and hands on
what is new; it works for Ray workers too, because they write into the same folder. What goes wrong
here is a warning and never the end of a training.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from medrec.runs import Run
from orchestration import tracking_tensorboard
from orchestration.console import Terminal
from orchestration.tracking_tensorboard import Row
from quantum.base import MedrecError

_EVERY_S = 1.0
_HEAD = "node:__internal_head__"


class Sink(Protocol):
    """Takes the rows of a run."""

    def rows(self, rows: list[Row]) -> None:
        """Take all rows that there are; most of them were there before."""

    def close(self, status: str) -> None:
        """End, with status finished, interrupted or failed."""


class MetricsFile:
    """Rows of a file that grows, and now and then is replaced by a shorter one.

    Parameters
    ----------
    path : Path
        ``metrics.jsonl`` of a run; need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._file, self._offset = 0, 0

    def read(self, *, again: bool = False) -> bool:
        """Read what is new, or everything ``again``; tells whether anything changed."""
        before = len(self.rows)
        replaced = again
        try:
            with self.path.open("rb") as handle:
                facts = os.fstat(handle.fileno())
                replaced = replaced or facts.st_ino != self._file or facts.st_size < self._offset
                if replaced:
                    self.rows, self._offset, self._file = [], 0, facts.st_ino
                if facts.st_size == self._offset:
                    return replaced and before > 0
                handle.seek(self._offset)
                text = handle.read()
        except FileNotFoundError:
            return False
        end = text.rfind(b"\n") + 1  # what stands behind it is still being written
        self._offset += end
        for line in text[:end].splitlines():
            try:
                self.rows.append(dict(json.loads(line)))
            except (ValueError, TypeError):  # cut off by a kill
                continue
        return replaced or len(self.rows) != before


class _Follower:
    """Thread that hands rows to sinks; a sink that fails is dropped with one warning."""

    def __init__(self, run: Run, sinks: list[Sink], warn: Callable[[str], None]) -> None:
        self.metrics = MetricsFile(run.folder / "metrics.jsonl")
        self.sinks, self.warn = sinks, warn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _loop(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._hand_on()

    def _hand_on(self, *, again: bool = False) -> None:
        if self.sinks and self.metrics.read(again=again):
            self._each(lambda sink: sink.rows(self.metrics.rows))

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                call(sink)
            except (OSError, MedrecError) as error:
                self.sinks.remove(sink)
                self.warn(f"no more numbers for {type(sink).__name__}: {error}")

    def stop(self, status: str) -> None:
        self._stop.set()
        self._thread.join()
        self._hand_on(again=True)
        self._each(lambda sink: sink.close(status))


def open_sinks(run: Run, warn: Callable[[str], None] = lambda text: None) -> list[Sink]:
    """Where the numbers of a run go.

    Raises
    ------
    ProgramMissingError, InputError
        If MLflow is asked for and cannot be had.
    """
    from orchestration.tracking_mlflow import MlflowSink, place

    sinks: list[Sink] = []
    where = place()
    if where is not None:
        sinks.append(MlflowSink(run, where))
    if tracking_tensorboard.available():
        try:
            sinks.append(tracking_tensorboard.EventSink(run))
        except OSError as error:
            warn(f"no event files for TensorBoard: {error}")
    return sinks


@contextmanager
def tracking(run: Run, terminal: Terminal | None = None) -> Iterator[None]:
    """Follow a run for the length of a block; goes inside ``with run.recording():``.

    Parameters
    ----------
    terminal : Terminal, optional
        Where warnings go, and where to look at the numbers.

    Raises
    ------
    ProgramMissingError, InputError
        If ``MEDREC_MLFLOW`` is set and MLflow is missing or does not answer.
    """
    warn = terminal.warn if terminal is not None else lambda text: None
    follower = _Follower(run, open_sinks(run, warn), warn)
    follower.start()
    status = "failed"
    try:
        yield
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        follower.stop(status)


# --------------------------------------------------------------------------- Ray's dashboard


def dashboard_line(ray: Any) -> str | None:
    """Say where the dashboard of the joined or started cluster is; None if it has none.

    Parameters
    ----------
    ray : module
        Initialised.

    Returns
    -------
    str or None
        With the command for a tunnel if the head is another machine: the dashboard runs whatever
        code it is given and so listens on the head's loopback only.
    """
    # the public way to the address: a second init hands out the context of the first
    context = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR)
    url = context.address_info.get("webui_url")
    if not url:
        return None
    port = str(url).rstrip("/").rpartition(":")[2]
    heads = [
        node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and _HEAD in node["Resources"]
    ]
    line = f"Ray dashboard: http://127.0.0.1:{port}"
    if not heads or heads[0] == ray.util.get_node_ip_address():
        return line
    return f"{line} after: ssh -N -L {port}:127.0.0.1:{port} {heads[0]}"
