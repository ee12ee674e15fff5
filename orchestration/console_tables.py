"""Tables that fit the terminal: wide ones continue below, long texts fold, paths stay whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

_GAP = 2
_FOLDED_WIDTH = 14
"""Narrowest that a column of text becomes before a table is cut into parts."""
_NAME_WIDTH = 32


class FrameTable:
    """A table that chooses its layout when it is printed.

    Numbers are never folded. If a table is wider than the terminal, text columns fold at words;
    if that does not do, the columns are cut into parts below each other, and each part begins with
    the first column.

    Parameters
    ----------
    names : sequence of str
        Headers, C.
    cells : sequence of sequence of str
        Rows of C texts.
    numeric : sequence of bool
        Which of the C columns are numbers: to the right, never folded.
    title : str
    whole : int
        How many of the first columns are never folded, such as names to be copied.
    """

    def __init__(
        self,
        names: Sequence[str],
        cells: Sequence[Sequence[str]],
        numeric: Sequence[bool],
        title: str = "",
        whole: int = 0,
    ) -> None:
        self.names, self.cells, self.numeric = list(names), cells, list(numeric)
        self.title, self.whole = title, whole

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return len(self.cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one table per part."""
        parts = self.parts(options.max_width)
        for number, part in enumerate(parts):
            if number:
                yield ""
            yield self._table(part, self.title if not number else "", options.max_width)

    def parts(self, width: int) -> list[list[int]]:
        """Columns of each part, so that none is wider than ``width``."""
        if not self.names:
            return []
        needed = [self._least(column) for column in range(len(self.names))]
        found, room = [[0]], width - needed[0]
        for column in range(1, len(self.names)):
            if needed[column] + _GAP > room and len(found[-1]) > 1:
                found.append([0])
                room = width - needed[0]
            found[-1].append(column)
            room -= needed[column] + _GAP
        return found

    def _texts(self, column: int) -> list[str]:
        return [row[column] for row in self.cells]

    def _natural(self, column: int) -> int:
        """Width without folding."""
        return max(map(_widest_line, [self.names[column], *self._texts(column)]))

    def _least(self, column: int) -> int:
        """Width below which the column is not folded."""
        values = max(map(_widest_line, self._texts(column)), default=1)
        header = _widest_word(self.names[column])
        if self.numeric[column] or column < self.whole:
            return max(values, header)
        words = max(map(_widest_word, self._texts(column)), default=1)
        return max(header, min(values, max(_FOLDED_WIDTH, min(words, 2 * _FOLDED_WIDTH))))

    def _table(self, part: list[int], title: str, width: int) -> Table:
        table = Table(
            title=title or None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            header_style="bold cyan",
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
        )
        fits = sum(map(self._natural, part)) + _GAP * (len(part) - 1) <= width
        for column in part:
            fixed = fits or self.numeric[column] or column < self.whole
            least = min(self._natural(column) if fits else self._least(column), width)
            table.add_column(
                Text(self.names[column]),
                justify="right" if self.numeric[column] else "left",
                overflow="fold",
                min_width=least,
                width=least if fixed and not fits else None,
            )
        for row in self.cells:
            table.add_row(*(Text(row[column]) for column in part))
        return table


class PairsTable:
    """Two columns, what and value; a path is never cut in two.

    Parameters
    ----------
    pairs : iterable of (str, Any)
    title : str
    """

    def __init__(self, pairs: Iterable[tuple[str, Any]], title: str = "") -> None:
        self.pairs, self.title = [(str(name), value) for name, value in pairs], title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield lines: names to the left, values folded at words beside them."""
        if self.title:
            yield Text(self.title, style="bold")
        widest = max((cell_len(name) for name, _ in self.pairs), default=0)
        beside = max((_widest_line(cell_text(value)) for _, value in self.pairs), default=0)
        width = min(widest, _NAME_WIDTH, max(options.max_width // 3, 8))
        width = min(widest, max(width, options.max_width - 2 - _GAP - beside))
        room = max(options.max_width - width - 2 - _GAP, 10)
        for name, value in self.pairs:
            names = Text(name, style="cyan").wrap(console, width, overflow="fold")
            values = [Text(str(value))] if _is_path(value) else _folded(console, value, room)
            for row in range(max(len(names), len(values))):
                left = names[row] if row < len(names) else Text()
                right = values[row] if row < len(values) else Text()
                left.rstrip()
                line = Text(" ") + left + Text(" " * (width - left.cell_len + _GAP)) + right
                line.no_wrap, line.overflow = True, "ignore"
                line.rstrip()
                yield line


def _folded(console: Console, value: Any, room: int) -> list[Text]:
    lines = Text(cell_text(value)).wrap(console, room, overflow="fold")
    for line in lines:
        line.rstrip()
    return list(lines)


def _is_path(value: Any) -> bool:
    if isinstance(value, Path):
        return True
    return isinstance(value, str) and value.startswith(("/", "./", "../", "s3://", "http"))


def frame_table(
    frame: pd.DataFrame, title: str = "", digits: int = 4, whole: int = 0
) -> FrameTable:
    """Show a DataFrame as a table that fits a terminal: numbers right, text left.

    Parameters
    ----------
    digits : int
        Significant digits of floating-point numbers.
    whole : int
        How many of the first columns are never folded.
    """
    import pandas as pd

    numeric = [pd.api.types.is_numeric_dtype(frame.iloc[:, i]) for i in range(frame.shape[1])]
    cells = [
        [cell_text(value, digits) for value in row]
        for row in frame.itertuples(index=False, name=None)
    ]
    return FrameTable([str(name) for name in frame.columns], cells, numeric, title, whole)


def pairs_table(pairs: Iterable[tuple[str, Any]], title: str = "") -> PairsTable:
    """Two columns: what, value."""
    return PairsTable(pairs, title)


def cell_text(value: Any, digits: int = 4) -> str:
    """One value for people: ``-`` for what is missing, yes or no, thousands with commas."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if value is None or (isinstance(value, float) and value != value) or str(value) == "<NA>":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def timing_table(timings: Sequence[tuple[str, float]], total: float | None = None) -> Table:
    """Seconds of each stage, its share, and all.

    Parameters
    ----------
    timings : sequence of (str, float)
        Stage and seconds; a stage that comes again is added up.
    total : float, optional
        Wall time in seconds; what the stages do not cover is shown as ``rest``.
    """
    sums: dict[str, list[float]] = {}
    for title, seconds in timings:
        sums.setdefault(title, []).append(seconds)
    rows = [
        (title if len(each) == 1 else f"{title} ({len(each)} times)", sum(each))
        for title, each in sums.items()
    ]
    known = sum(seconds for _, seconds in rows)
    whole = max(known, total or 0.0)
    if total is not None and whole - known >= max(0.1, 0.01 * whole):
        rows.append(("rest", whole - known))
    table = Table(
        title="time", title_justify="left", title_style="bold", show_edge=False, pad_edge=False,
        box=box.SIMPLE_HEAD, header_style="bold cyan",
    )  # fmt: skip
    table.add_column("stage", overflow="fold")
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for title, seconds in rows:
        table.add_row(Text(title), f"{seconds:,.1f}", f"{100 * seconds / max(whole, 1e-9):.0f} %")
    table.add_section()
    table.add_row("all", f"{whole:,.1f}", "")
    return table


def _widest_line(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _widest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=1)
