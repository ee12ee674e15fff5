"""One look for all commands: tables, progress with rate and estimate, plain text when piped.

Progress and messages go to standard error, results to standard output, so that ``--json`` can
be piped into another program.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class RateColumn(ProgressColumn):
    """Finished steps per second (or per minute when slow)."""

    def render(self, task: Task) -> Text:
        """Return the rate as text."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("    -  ", style="dim")
        if speed < 1:
            return Text(f"{speed * 60:5.1f}/min", style="dim")
        return Text(f"{speed:5.1f}/s  ", style="dim")


@dataclass
class Terminal:
    """Where a command writes: results to ``out``, everything else to ``err``.

    Parameters
    ----------
    as_json : bool
        Print results as one JSON document instead of tables.
    quiet : bool
        No progress and no messages; errors are still written.
    """

    as_json: bool = False
    quiet: bool = False
    out: Console = field(default_factory=lambda: Console(highlight=False))
    err: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    timings: list[tuple[str, float]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Write one message line."""
        if not self.quiet:
            self.err.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Write a warning; shown even when quiet."""
        self.err.print(Text("warning: ", style="yellow") + Text(text), soft_wrap=True)

    def result(self, document: Any, *tables: Table | str) -> None:
        """Print a command's result, as JSON or as tables and lines."""
        if self.as_json:
            self.out.print_json(json.dumps(document, default=_plain), ensure_ascii=False)
            return
        for item in tables:
            self.out.print(item, soft_wrap=isinstance(item, str))  # a path is never cut in two

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time a stage; the sum is printed by `timing_table`."""
        if not self.quiet:
            self.err.rule(title, align="left", style="cyan")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings.append((title, time.perf_counter() - start))

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Step]:
        """Show a bar with count, rate and estimate; plain lines when not on a terminal."""
        if self.quiet or not self.err.is_terminal:
            yield _LineStep(self, label, total)
            return
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=self.err, transient=False) as bar:
            yield _BarStep(bar, label, total)

    def timing_table(self) -> Table:
        """Seconds per stage and in all."""
        table = Table(title="time", title_justify="left", show_edge=False, pad_edge=False)
        table.add_column("stage")
        table.add_column("seconds", justify="right")
        for title, seconds in self.timings:
            table.add_row(title, f"{seconds:.1f}")
        table.add_section()
        table.add_row("all", f"{sum(seconds for _, seconds in self.timings):.1f}")
        return table


class Step:
    """Handle of a running progress display."""

    def advance(self, note: str = "", count: int = 1) -> None:
        """Count finished steps and show a short note."""

    def at(self, done: int, total: int | None = None, note: str = "") -> None:
        """Set the absolute position."""


class _BarStep(Step):
    def __init__(self, bar: Progress, label: str, total: int | None) -> None:
        self.bar = bar
        self.task = bar.add_task(label, total=total, note="")

    def advance(self, note: str = "", count: int = 1) -> None:
        self.bar.update(self.task, advance=count, note=note[:40])

    def at(self, done: int, total: int | None = None, note: str = "") -> None:
        self.bar.update(self.task, completed=done, total=total, note=note[:40])


class _LineStep(Step):
    """A line every few seconds, for logs and pipes."""

    def __init__(self, terminal: Terminal, label: str, total: int | None) -> None:
        self.terminal, self.label, self.total = terminal, label, total
        self.done, self.start, self.last = 0, time.monotonic(), time.monotonic()

    def advance(self, note: str = "", count: int = 1) -> None:
        self.at(self.done + count, None, note)

    def at(self, done: int, total: int | None = None, note: str = "") -> None:
        self.done, self.total = done, total or self.total
        now = time.monotonic()
        if now - self.last < 10 and self.done != self.total:
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / rate if self.total and rate > 0 else None
        estimate = f", about {left:.0f} s left" if left else ""
        position = f"{self.done}/{self.total or '?'}"
        self.terminal.say(f"{self.label}: {position} ({rate:.2g}/s{estimate}) {note}".rstrip())


def frame_table(frame: pd.DataFrame, title: str = "", digits: int = 4) -> Table:
    """Show a DataFrame as a table that fits a terminal: numbers right, text left."""
    table = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value, digits) for value in row))
    return table


def pairs_table(pairs: Iterable[tuple[str, Any]], title: str = "") -> Table:
    """Two columns: what, value."""
    table = Table(
        title=title or None, title_justify="left", show_header=False, show_edge=False, box=None
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(escape(name), _cell(value, 4))
    return table


def _cell(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(str(value))  # the brackets of a SMILES are no markup


def _plain(value: Any) -> Any:
    """Turn numpy scalars, frames and paths into JSON values."""
    if isinstance(value, pd.DataFrame):
        return value.to_dict("records")
    if hasattr(value, "item"):
        return value.item()
    return str(value)
