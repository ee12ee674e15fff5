"""Results page, made from ``benchmarks/results/*.json``; goals that were not met come first.

Every file has ``benchmark``, ``command``, ``date``, ``machine``, ``code`` and ``figures``, as
`benchmarks/record.py` writes them. A file that cannot be read ends the build.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from charts import goal_bars, ratio_bars
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_KEYS = ("benchmark", "command", "date", "machine", "code", "figures")
_FIGURE_KEYS = ("name", "value", "unit", "peer", "ratio", "goal", "met")
_WORDS = {True: "met", False: "not met", None: "no goal"}
_KINDS = {True: "met", False: "missed", None: "open"}
_EXCERPT = re.compile(r"<!-- figures: (\w+) \| (.*?) -->")
_TOP = """---
hide: [navigation]
---

# Results

{counts}

All figures of `benchmarks/results/`, put here when this page was built; nothing is chosen or left
out. A **ratio** says how many times better the value is than the peer's (PySCF, a published script,
a paper's table, a simple way of doing the same); above 1 is better. A **goal** is what the project
had set itself: a ratio where there is one, the value otherwise. Goals that were not met stay here.

Other work ran on the machines at the same time: trust ratios more than seconds.

{chart}

## Goals not met

{missed}

## All figures

<div class="filter">
<input type="radio" name="show" id="show-all" checked><label for="show-all">all</label>
<input type="radio" name="show" id="show-goals"><label for="show-goals">with a goal</label>
<input type="radio" name="show" id="show-missed"><label for="show-missed">not met</label>
</div>

"""


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Result files of a folder, by name.

    Raises
    ------
    PluginError
        If there is none, or one cannot be read or lacks a key.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in _KEYS if key not in record]
            missing += [
                key for f in record.get("figures", []) for key in _FIGURE_KEYS if key not in f
            ]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise PluginError(f"{path.name}: not a result file: {error}") from error
        if missing:
            raise PluginError(f"{path.name}: lacks {sorted(set(missing))}")
        records.append(record)
    if not records:
        raise PluginError(f"no result files in {folder.name}, expected benchmarks/results/*.json")
    return records


def number(value: float | bool | None) -> str:
    """A number with four digits; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    size = abs(float(value))
    if size != 0.0 and (size < 1e-3 or size >= 1e7):
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _status(met: bool | None) -> str:
    return f'<span class="status {_KINDS[met]}">{_WORDS[met]}</span>'


def figure_row(figure: dict[str, Any], first: str = "") -> str:
    """HTML row of one figure; text of the file is escaped."""
    cells = [escape(" ".join(str(figure["name"]).split()))]
    unit = escape(str(figure["unit"]) if figure["unit"] != "1" else "")
    cells += [f"{number(figure['value'])} {unit}".strip()]
    cells += [number(figure[key]) for key in ("peer", "ratio", "goal")]
    cells.append(_status(figure["met"]))
    body = f"<td>{cells[0]}</td><td>{cells[1]}</td>"
    body += "".join(f'<td class="n">{cell}</td>' for cell in cells[2:])
    return f'<tr class="{_KINDS[figure["met"]]}">{first}{body}</tr>'


def table(rows: list[str], first: str = "") -> str:
    """HTML table around rows of `figure_row`."""
    names = ("figure", "value", "peer", "ratio", "goal", "")
    head = first + "".join(f"<th>{name}</th>" for name in names)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<table>{body}</table>"


def origin(record: dict[str, Any]) -> str:
    """Date, command, commit and machine of a record, as HTML."""
    machine, code = record["machine"], record["code"]
    changed = ", with uncommitted changes" if code.get("dirty") else ""
    parts = {
        "date": str(record["date"])[:10],
        "command": record["command"],
        "commit": f"{str(code.get('commit'))[:10]}{changed}",
        "machine": f"{machine.get('cores')} cores, {machine.get('memory_gib')} GiB, "
        f"{machine.get('processor')}, {machine.get('platform')}, Python {machine.get('python')}",
    }
    cells = "".join(
        f"<dt>{name}</dt><dd><code>{escape(str(text))}</code></dd>" for name, text in parts.items()
    )
    return f'<dl class="origin">{cells}</dl>'


def section(record: dict[str, Any]) -> str:
    """Markdown of one benchmark: where it comes from, a chart of ratios, every figure."""
    figures = record["figures"]
    with_ratio = [f for f in figures if f["ratio"] and f["ratio"] > 0]
    chart = ""
    if 2 <= len(with_ratio) <= 40:
        rows = [(f["name"], float(f["ratio"]), _KINDS[f["met"]]) for f in with_ratio]
        label = f"{record['benchmark']}: times better than the peer, logarithmic"
        chart = f'<figure class="ratios">{ratio_bars(rows, label)}<figcaption>{escape(label)}'
        chart += "</figcaption></figure>"
    title = escape(str(record["benchmark"]))
    parts = [f"### {title}", origin(record), chart, table([figure_row(f) for f in figures])]
    return "\n\n".join(part for part in parts if part) + "\n"


def missed_table(records: list[dict[str, Any]]) -> str:
    """Table of every goal that was not met, or a sentence that there is none."""
    rows = []
    for record in records:
        name = escape(str(record["benchmark"]))
        rows += [
            figure_row(figure, f'<td class="n"><a href="#{name}">{name}</a></td>')
            for figure in record["figures"]
            if figure["met"] is False
        ]
    return table(rows, "<th>benchmark</th>") if rows else "All goals were met."


def results(records: list[dict[str, Any]]) -> str:
    """Markdown of the whole page."""
    counted = [
        (
            str(record["benchmark"]),
            sum(f["met"] is True for f in record["figures"]),
            sum(f["met"] is False for f in record["figures"]),
        )
        for record in records
    ]
    total = sum(len(record["figures"]) for record in records)
    met, missed = sum(row[1] for row in counted), sum(row[2] for row in counted)
    tiles = [
        (total, f"figures of {len(records)} benchmarks", ""),
        (met, f"of {met + missed} goals met", "met"),
        (missed, "goals not met", "missed"),
    ]
    counts = "".join(
        f'<div class="tile {kind}"><strong>{count}</strong><span>{words}</span></div>'
        for count, words, kind in tiles
    )
    with_goals = [row for row in counted if row[1] + row[2]]
    chart = goal_bars(with_goals, "Goals met and not met, by benchmark") if with_goals else ""
    top = _TOP.format(
        counts=f'<div class="tiles">{counts}</div>', chart=chart, missed=missed_table(records)
    )
    return top + "\n".join(section(record) for record in records)


def excerpt(records: list[dict[str, Any]], benchmark: str, beginning: str) -> str:
    """Table of the figures of a benchmark whose names begin with a text, with their origin.

    Raises
    ------
    PluginError
        If there is none.
    """
    for record in records:
        if record["benchmark"] == benchmark:
            chosen = [f for f in record["figures"] if str(f["name"]).startswith(beginning)]
            if chosen:
                return f"{table([figure_row(f) for f in chosen])}\n\n{origin(record)}"
    raise PluginError(f"no figures of '{benchmark}' that begin with '{beginning}'")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put figures in the place of ``<!-- figures: BENCHMARK | BEGINNING OF THE NAME -->``."""
    if not _EXCERPT.search(markdown):
        return markdown
    records = read_results(Path(config.config_file_path).parent / "benchmarks" / "results")
    return _EXCERPT.sub(lambda match: excerpt(records, match[1], match[2]), markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the build."""
    folder = Path(config.config_file_path).parent / "benchmarks" / "results"
    content = results(read_results(folder))
    files.append(File.generated(config, "results.md", content=content))
    return files
