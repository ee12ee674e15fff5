"""The HTML shell: escaping, tables, figures as data, theme. No external address anywhere."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_HEIGHT = 450  # Plotly's own
# the page may run what it holds and reach nothing else; Plotly compiles functions for WebGL
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "img-src data: blob:; font-src data:; connect-src data: blob:; worker-src blob:; "
    "form-action 'none'; base-uri 'none'"
)


def escape(value: Any) -> str:
    """Text that is safe inside HTML."""
    return html.escape(str(value), quote=True)


def script_json(value: str) -> str:
    """JSON text that cannot end the script element it stands in."""
    return value.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def paragraph(text: str, kind: str = "") -> str:
    """One paragraph; ``kind`` is a CSS class."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """A list of names and values."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
    return f'<dl class="facts">{items}</dl>'


def tiles(items: Iterable[Sequence[Any]]) -> str:
    """Cards with a large value, what it is, and, of items of three, a line in small print."""
    cards = []
    for value, label, *more in items:
        small = "".join(f"<small>{escape(text)}</small>" for text in more if text)
        cards.append(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span>{small}</div>'
        )
    return _joined(f'<div class="tiles">{"".join(cards)}</div>')


def findings(pairs: Iterable[tuple[str, str | Sequence[str]]]) -> str:
    """Short headings, each with a sentence or a list of sentences."""
    blocks = []
    for title, content in pairs:
        if isinstance(content, str):
            shown = paragraph(content)
        else:
            shown = "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in content) + "</ul>"
        blocks.append(f"<h3>{escape(title)}</h3>{shown}")
    return _joined(f'<div class="findings">{"".join(blocks)}</div>')


def _joined(text: str) -> str:
    """Text whose percent signs stay on the line of their numbers."""
    return text.replace(" %", "\u00a0%")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    sortable: bool = True,
    caption: str = "",
) -> str:
    """A table; numbers are aligned right, and a heading's button sorts.

    A cell may be a pair (shown text, sort key). Of a shown text with two lines the second stands
    in small print. Keys that are not a number (NaN) are sorted last.
    """
    body, numeric = [], set()
    for row in rows:
        cells = [_cell(value) for value in row]
        numeric |= {place for place, (_, number) in enumerate(cells) if number}
        body.append("<tr>" + "".join(text for text, _ in cells) + "</tr>")
    head = "".join(
        f'<th scope="col"{_NUMERIC if place in numeric else ""}>{escape(name)}</th>'
        for place, name in enumerate(columns)
    )
    kind = ' class="sortable"' if sortable else ""
    title = f"<caption><span>{escape(caption)}</span></caption>" if caption else ""
    return (
        f'<div class="scroll"><table{kind}>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


_NUMERIC = ' class="n"'


def _cell(value: Any) -> tuple[str, bool]:
    """A cell, and whether it holds a number."""
    shown, key = value if isinstance(value, tuple) else (value, value)
    number = isinstance(key, int | float) and not isinstance(key, bool)
    attribute = f'{_NUMERIC} data-key="{key}"' if number else ""
    first, _, second = str(shown).partition("\n")
    small = f"\n<small>{escape(second)}</small>" if second else ""
    return f"<td{attribute}>{escape(first)}{small}</td>", number


@dataclass
class Page:
    """Sections in order; `render` makes the file's text.

    Notes
    -----
    Scripts of sections (`use`) run after the page's own, which leaves them ``window.medrec``:
    ``plot(element, figure)`` draws a Plotly figure in the page's theme, ``recount()`` counts the
    drawn figures anew, and the document gets an event ``medrec:theme`` when the theme changes.
    Every element of class ``figure`` has to hold drawn marks once all are drawn.
    """

    title: str
    subtitle: str
    sections: list[tuple[str, str, str]] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    documents: dict[str, str] = field(default_factory=dict)
    assets: list[str] = field(default_factory=list)

    def add(self, title: str, *parts: str) -> None:
        """Append a section made of HTML parts."""
        known = {anchor for anchor, _, _ in self.sections}
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        # names that the page itself uses stay free
        anchor = f"s-{slug}"
        while anchor in known:
            anchor += "-more"
        self.sections.append((anchor, title, "\n".join(parts)))

    def figure(self, figure: go.Figure, label: str) -> str:
        """Register a figure; returns its place holder, which is as high as the figure."""
        name = f"figure-{len(self.figures) + 1}"
        self.figures.append((name, figure.to_json()))
        height = int(figure.layout.height or _HEIGHT)
        return (
            f'<div class="figure" id="{name}" role="img" aria-label="{escape(label)}" '
            f'style="min-height:{height}px"></div>'
        )

    def use(self, *names: str) -> None:
        """Put style sheets and scripts of the package's ``assets`` folder into the page, once."""
        self.assets += [name for name in names if name not in self.assets]

    def data(self, name: str, document: Any) -> None:
        """Put a JSON document into the page, as the script element ``name``."""
        self.documents[name] = script_json(json.dumps(document))

    def render(self) -> str:
        """The whole page as one string."""
        styles = "".join(f"<style>{_asset(n)}</style>" for n in self._named(".css"))
        scripts = "".join(f"<script>{_asset(n)}</script>" for n in self._named(".js"))
        documents = "".join(
            f'<script type="application/json" id="{escape(name)}">{text}</script>'
            for name, text in self.documents.items()
        )
        data = ",".join(f"{json.dumps(name)}:{text}" for name, text in self.figures)
        plotly = f"<script>{get_plotlyjs()}</script>" if self.figures or self.assets else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{_asset('report.css')}</style>{styles}"
            f"<script>{_asset('head.js')}</script></head><body>{self._body()}"
            f'<script type="application/json" id="figures">{script_json("{" + data + "}")}</script>'
            f"{documents}{plotly}<script>{_asset('report.js')}</script>{scripts}</body></html>"
        )

    def _named(self, ending: str) -> list[str]:
        return [name for name in self.assets if name.endswith(ending)]

    def _body(self) -> str:
        nav = "".join(f'<a href="#{a}">{escape(t)}</a>' for a, t, _ in self.sections)
        body = "".join(
            f'<section id="{a}"><h2>{escape(t)}</h2>{content}</section>'
            for a, t, content in self.sections
        )
        return (
            '<a class="skip" href="#main">Skip to the content</a>'
            '<div class="rail"><a class="brand" href="#top">medrec</a>'
            f'<nav aria-label="Sections">{nav}</nav>'
            '<button id="theme" type="button" aria-label="Switch between light and dark">'
            '<span aria-hidden="true">◐</span></button></div>'
            f'<div class="sheet"><header id="top"><h1>{escape(self.title)}</h1>'
            f'<p>{escape(self.subtitle)}</p></header><main id="main">{body}</main>'
            "<footer>Made by medrec. Research use only, not for clinical decisions.</footer></div>"
        )


def _asset(name: str) -> str:
    return (files("medrec.report") / "assets" / name).read_text(encoding="utf-8")
