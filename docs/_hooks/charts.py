"""Small charts as inline SVG, without a library in the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

_ROW, _WIDTH, _LONGEST = 24, 760, 52


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _room(names: Iterable[str]) -> int:
    """Width of the column of names."""
    return 30 + 7 * max(len(_shorten(name)) for name in names)


def _bar(kind: str, x: float, y: float, width: float) -> str:
    place = f'x="{x:.1f}" y="{y + 3:.0f}" width="{width:.1f}" height="18"'
    return f'<rect class="{escape(kind)}" {place}/>'


def _frame(height: int, label: str, body: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {_WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(label)}</title>{''.join(body)}</svg>"
    )


def _name(text: str, left: int, y: float) -> str:
    short = escape(_shorten(text))
    return f'<text class="name" x="{left - 10}" y="{y + 15:.0f}">{short}</text>'


def goal_bars(rows: Sequence[tuple[str, int, int]], label: str) -> str:
    """Stacked bars of goals met and not met.

    Parameters
    ----------
    rows : sequence of (name, met, not met)
        At least one.
    label : str
        What the picture shows, for readers who do not see it.
    """
    largest = max(met + missed for _, met, missed in rows)
    left = _room(name for name, _, _ in rows)
    unit = (_WIDTH - left - 70) / max(largest, 1)
    body = []
    for number, (name, met, missed) in enumerate(rows):
        y = number * _ROW
        body.append(_name(name, left, y))
        for start, count, kind in ((0, met, "met"), (met, missed, "missed")):
            if count:
                x, width = left + start * unit, count * unit
                body.append(_bar(kind, x, y, width))
        x = left + (met + missed) * unit + 6
        text = f"{met} of {met + missed}"
        body.append(f'<text class="value" x="{x:.1f}" y="{y + 15}">{text}</text>')
    return _frame(len(rows) * _ROW + 4, label, body)


def ratio_bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Bars of ratios on a logarithmic axis that begins at 1; bars to the left are below 1.

    Parameters
    ----------
    rows : sequence of (name, ratio, kind)
        Ratios above 0; the kind is ``met``, ``missed`` or ``open``.
    label : str
        What the picture shows.
    """
    logs = [math.log10(ratio) for _, ratio, _ in rows]
    low, high = min(0.0, *logs), max(0.0, *logs)
    span = max(high - low, 0.1)
    left = _room(name for name, _, _ in rows)
    unit = (_WIDTH - left - 60) / span
    zero = left - low * unit
    body = []
    for number, ((name, ratio, kind), log) in enumerate(zip(rows, logs, strict=True)):
        y = number * _ROW
        x, width = min(zero, zero + log * unit), max(abs(log) * unit, 1.0)
        body.append(_name(name, left, y))
        body.append(_bar(kind, x, y, width))
        end = max(zero, zero + log * unit) + 6
        body.append(f'<text class="value" x="{end:.1f}" y="{y + 15}">{ratio:.3g}</text>')
    height = len(rows) * _ROW
    axis = f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}"/>'
    return _frame(height + 4, label, [*body, axis])
