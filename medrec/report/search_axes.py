"""Axes, names and panels that the figures of a search share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from medrec.report.search_table import Dimension, Objective, text_of

GREY = "#7f8c99"
# one order of lightness for all colour visions; yellow is the better end
SCALE = "Cividis"
# for lines, which must be seen on a light and on a dark page; orange is the better end
LINE_SCALE = ((0.0, "rgb(47, 127, 193)"), (0.5, "rgb(143, 143, 143)"), (1.0, "rgb(230, 159, 0)"))
COLUMNS = 3


def row_count(n: int) -> int:
    """Rows of panels that n panels need."""
    return -(-n // COLUMNS)


def places_of(n: int) -> list[tuple[int, int]]:
    """Row and column of each of n panels, from 1."""
    return [(i // COLUMNS + 1, i % COLUMNS + 1) for i in range(n)]


def panels(n: int, titles: Sequence[str], gap: float = 0.07) -> go.Figure:
    """Empty figure with n panels, three in a row; ``gap`` between columns as a share of it."""
    rows, cols = row_count(n), min(n, COLUMNS)
    return make_subplots(
        rows=rows,
        cols=cols,
        horizontal_spacing=gap,
        vertical_spacing=0.34 / rows if rows > 1 else 0.1,
        subplot_titles=safe(titles) if any(titles) else None,
    )


def safe(names: Iterable[Any]) -> list[str]:
    """Text without markup: Plotly reads some tags."""
    return [str(name).replace("&", "&amp;").replace("<", "&lt;") for name in names]


def ink_on(colour: str) -> str:
    """Black or white, whichever has more contrast to a colour by WCAG 2's relative luminance.

    Parameters
    ----------
    colour : str
        As Plotly samples it: ``rgb(0, 32, 76)``.
    """
    parts = [float(part) / 255.0 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    luminance = sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def folded(text: str) -> str:
    """Break a long name before what explains it."""
    return text.replace(" (", "<br>(").replace(", ", ",<br>")


def legend_below(height: int) -> dict[str, Any]:
    """Below the axis title, whatever the height."""
    return {"orientation": "h", "yref": "paper", "yanchor": "top", "y": -68 / (height - 96)}


def colour_bar(goal: Objective) -> dict[str, Any]:
    """Colour bar with an objective's name."""
    return {"title": {"text": folded(goal.label), "side": "right"}, "thickness": 14}


def objective_axis(
    update: Callable[..., Any], goal: Objective, *, break_line: bool = False
) -> None:
    """Name an axis by its objective and say which way is better; sizes are on a log scale."""
    text = f"{goal.label}{'<br>' if break_line else ' '}({goal.better})"
    update(title=text, type="log" if goal.metric == "parameters" else "linear")


def y_axis_of(figure: go.Figure, row: int, col: int) -> Callable[..., Any]:
    """What changes the y axis of one panel."""
    return lambda **changes: figure.update_yaxes(row=row, col=col, **changes)


def axis_values(dim: Dimension, column: pd.Series) -> list[Any]:
    """Values of a setting as the axis of `setting_axis` takes them."""
    if dim.values:
        return safe([text_of(value) for value in column])
    return [None if value != value else float(value) for value in pd.to_numeric(column)]


def setting_axis(figure: go.Figure, dim: Dimension, row: int, col: int) -> None:
    """Values of a choice in order; a range as numbers, on a log scale if it was searched so."""
    if dim.values:
        order = safe([text_of(value) for value in dim.values])
        extra: dict[str, Any] = {"categoryorder": "array", "categoryarray": order}
        figure.update_xaxes(type="category", row=row, col=col, **extra)
    else:
        kind: dict[str, Any] = {"type": "log", "dtick": 1} if dim.log else {"type": "linear"}
        figure.update_xaxes(row=row, col=col, nticks=5, **kind)
