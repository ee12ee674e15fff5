"""One look for all commands: tables, progress with rate and estimate, plain text when piped.

Progress and messages go to standard error, results to standard output, so that ``--json`` can
be piped into another program.
"""

from __future__ import annotations

import json
import math
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column, Table
from rich.text import Text

from orchestration.console_tables import (
    FrameTable,
    PairsTable,
    frame_table,
    pairs_table,
    timing_table,
)

__all__ = ["FrameTable", "PairsTable", "Step", "Terminal", "frame_table", "pairs_table"]

_SUMMARY_FROM_S = 2.0
"""Shorter commands end without a table of times."""
_LINE_EVERY_S = 10.0


class RateColumn(ProgressColumn):
    """Finished steps per second (or per minute when slow)."""

    def render(self, task: Task) -> Text:
        """Return the rate as text."""
        return Text(f"{rate_text(task.finished_speed or task.speed):>8}", style="dim")


class CountColumn(ProgressColumn):
    """Finished steps of all; only the finished ones where the sum is not known."""

    def render(self, task: Task) -> Text:
        """Return the count as text."""
        done = int(task.completed)
        if task.total is None:
            return Text(f"{done}" if done else "")
        total = int(task.total)
        return Text(f"{done:{len(str(total))}d}/{total}")


class ClockColumn(ProgressColumn):
    """Time gone, and time left while there is an estimate."""

    def render(self, task: Task) -> Text:
        """Return both as text."""
        gone = duration_text(task.finished_time if task.finished else task.elapsed)
        left = None if task.finished else task.time_remaining
        if left is None:
            return Text(gone, style="dim")
        return Text(f"{gone}, {duration_text(left)} left", style="dim")


def rate_text(per_second: float | None) -> str:
    """Steps per second, minute or hour, whichever is above 1; a dash without an estimate."""
    if not per_second:
        return "-"
    for factor, unit in ((1, "s"), (60, "min")):
        if per_second * factor >= 1:
            value = per_second * factor
            return f"{value:,.0f}/{unit}" if value >= 100 else f"{value:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


def duration_text(seconds: float | None) -> str:
    """Minutes and seconds, or hours, minutes and seconds: ``0:07``, ``1:02:03``."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
    _depth: int = 0
    _gathered: list[Any] | None = None

    def say(self, text: str) -> None:
        """Write one message line."""
        if not self.quiet:
            self.err.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Write a warning; shown even when quiet."""
        self.err.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def complain(self, text: str) -> None:
        """Write what is wrong; shown even when quiet."""
        self.err.print(Text.assemble(("medrec: ", "bold red"), text), soft_wrap=True)

    def result(self, document: Any, *tables: RenderableType) -> None:
        """Print a command's result, as JSON or as tables and lines."""
        if not self.as_json:
            for number, item in enumerate(tables):
                if number and isinstance(item, FrameTable | PairsTable) and item.title:
                    self.out.print()
                self._show(item)
        elif self._gathered is not None:
            self._gathered.append(document)
        else:
            text = json.dumps(plain(document), allow_nan=False)
            self.out.print_json(text, ensure_ascii=False)

    def _show(self, item: RenderableType) -> None:
        """Print one item; a path is never cut in two, and a pipe gets no blanks at line ends."""
        how: dict[str, Any] = {"crop": False}
        if isinstance(item, str):
            item = Text(_wrapped(item, self.out.width))
            how |= {"no_wrap": True, "overflow": "ignore"}
        if self.out.is_terminal:
            self.out.print(item, **how)
            return
        with self.out.capture() as kept:
            self.out.print(item, **how)
        lines = kept.get().splitlines()
        self.out.file.write("".join(f"{line.rstrip()}\n" for line in lines))
        self.out.file.flush()

    @contextmanager
    def gathered(self) -> Iterator[list[Any]]:
        """Keep the JSON documents of several results, for one document at the end.

        Whatever else is written goes to standard error meanwhile.
        """
        out, self.out = self.out, self.err
        self._gathered = []
        try:
            yield self._gathered
        finally:
            self.out, self._gathered = out, None

    # ------------------------------------------------------------------ time

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time a stage; the sum is printed by `timing_table`."""
        if not self.quiet:
            self.err.rule(title, align="left", style="cyan")
        with self.timed(title):
            yield

    @contextmanager
    def timed(self, title: str) -> Iterator[None]:
        """Note the time of the outermost stage or progress; what is inside belongs to it."""
        self._depth += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.timings.append((title, time.perf_counter() - start))

    @contextmanager
    def summary(self) -> Iterator[None]:
        """End a command of several stages with their times.

        Nothing is printed with ``--json`` or ``--quiet``, after an error, for a single stage, or
        when all took less than 2 s.
        """
        start = time.perf_counter()
        yield
        total = time.perf_counter() - start
        stages = {title for title, _ in self.timings}
        if self.quiet or self.as_json or total < _SUMMARY_FROM_S or len(stages) < 2:
            return
        self.err.print()
        self.err.print(timing_table(self.timings, total))

    def timing_table(self) -> Table:
        """Seconds per stage and in all."""
        return timing_table(self.timings)

    # ------------------------------------------------------------------ progress

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Step]:
        """Show a bar with count, rate and estimate; plain lines when not on a terminal."""
        with self.timed(label):
            if self.quiet or not self.err.is_terminal:
                yield _LineStep(self, label, total)
                return
            columns = progress_columns(self.err.width)
            with Progress(*columns, console=self.err, expand=True) as bar:
                yield _BarStep(bar, label, total)


def progress_columns(width: int) -> list[ProgressColumn]:
    """Columns of a progress line that fit ``width`` characters; what is left is for the note."""
    narrow = width < 100
    label, bar = (16, 12) if narrow else (24, 24)
    return [
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(width=label, no_wrap=True, overflow="ellipsis"),
        ),
        BarColumn(bar_width=bar),
        CountColumn(table_column=Column(no_wrap=True)),
        RateColumn(table_column=Column(no_wrap=True)),
        ClockColumn(table_column=Column(no_wrap=True)),
        TextColumn(
            "{task.fields[note]}",
            style="dim",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
    ]


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
        if now - self.last < _LINE_EVERY_S and self.done != self.total:
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / rate if self.total and rate > 0 else None
        estimate = f", about {left:.0f} s left" if left else ""
        position = f"{self.done}/{self.total or '?'}"
        self.terminal.say(f"{self.label}: {position} ({rate:.2g}/s{estimate}) {note}".rstrip())


def _wrapped(text: str, width: int) -> str:
    """Break prose at blanks; lines with a path or a command stay whole, to be copied."""
    lines = []
    for line in text.split("\n"):
        whole = "/" in line.replace(" / ", "") or "medrec " in line or len(line) <= width
        parts = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        lines += [line] if whole else parts
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """Turn frames, numpy values, dates and paths into JSON values; NaN and infinity are null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return plain(value.to_dict("records"))
    if hasattr(value, "tolist"):  # numpy scalars and arrays, pandas series
        return plain(value.tolist())
    return None if str(value) in ("NaT", "<NA>") else str(value)
