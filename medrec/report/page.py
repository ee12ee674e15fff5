"""The HTML shell: escaping, tables, figures as data, theme. No external address anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs


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


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, sortable: bool = True) -> str:
    """A table; numbers are aligned right, and a click on a heading sorts.

    A cell may be a pair (shown text, sort key).
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    shown, key = value if isinstance(value, tuple) else (value, value)
    numeric = isinstance(key, int | float) and not isinstance(key, bool)
    attribute = f' class="n" data-key="{key}"' if numeric else ""
    return f"<td{attribute}>{escape(shown)}</td>"


@dataclass
class Page:
    """Sections in order; `render` makes the file's text."""

    title: str
    subtitle: str
    sections: list[tuple[str, str, str]] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    documents: dict[str, str] = field(default_factory=dict)
    assets: list[str] = field(default_factory=list)

    def add(self, title: str, *parts: str) -> None:
        """Append a section made of HTML parts."""
        anchor = f"s{len(self.sections) + 1}"
        self.sections.append((anchor, title, "\n".join(parts)))

    def figure(self, figure: go.Figure, label: str) -> str:
        """Register a figure; returns its place holder."""
        name = f"figure-{len(self.figures) + 1}"
        self.figures.append((name, figure.to_json()))
        return f'<div class="figure" id="{name}" role="img" aria-label="{escape(label)}"></div>'

    def use(self, *names: str) -> None:
        """Put style sheets and scripts of the package's ``assets`` folder into the page, once."""
        self.assets += [name for name in names if name not in self.assets]

    def data(self, name: str, document: Any) -> None:
        """Put a JSON document into the page, as the script element ``name``."""
        self.documents[name] = script_json(json.dumps(document))

    def render(self) -> str:
        """The whole page as one string."""
        assets = files("medrec.report") / "assets"
        more = {name: (assets / name).read_text(encoding="utf-8") for name in self.assets}
        styles = "".join(f"<style>{t}</style>" for n, t in more.items() if n.endswith(".css"))
        scripts = "".join(f"<script>{t}</script>" for n, t in more.items() if n.endswith(".js"))
        documents = "".join(
            f'<script type="application/json" id="{escape(name)}">{text}</script>'
            for name, text in self.documents.items()
        )
        css = (assets / "report.css").read_text(encoding="utf-8")
        javascript = (assets / "report.js").read_text(encoding="utf-8")
        nav = "".join(f'<a href="#{a}">{escape(t)}</a>' for a, t, _ in self.sections)
        body = "".join(
            f'<section id="{a}"><h2>{escape(t)}</h2>{content}</section>'
            for a, t, content in self.sections
        )
        data = script_json(json.dumps({name: json.loads(text) for name, text in self.figures}))
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{css}</style>{styles}</head><body>"
            f"<header><div><h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p></div>"
            '<button id="theme" type="button" aria-label="switch between light and dark">◐</button>'
            f"</header><nav>{nav}</nav><main>{body}</main>"
            "<footer>Made by medrec. Research use only, not for clinical decisions.</footer>"
            f'<script type="application/json" id="figures">{data}</script>'
            f"{documents}<script>{get_plotlyjs()}</script><script>{javascript}</script>{scripts}"
            "</body></html>"
        )
