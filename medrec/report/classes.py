"""Section about single drug classes: which ones models find, miss and add, by ATC group and class.

Models are those of a comparison, at most `SHOWN_MODELS`, the best first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from medrec.data.cohort import Cohort
from medrec.evaluation.by_class import METRICS, RecommendedSets, class_performance
from medrec.evaluation.compare import Comparison
from medrec.report.embeddings import ATC_GROUPS
from medrec.report.figures import PALETTE, style
from medrec.report.learned import Models
from medrec.report.page import Page, escape, paragraph, table
from medrec.report.predicted import predict_best
from medrec.runs import Run

SHOWN_MODELS = 4
RARE = 5
"""Classes with fewer visits are marked: their numbers rest on next to nothing."""
_TITLES = {"precision": "precision", "recall": "recall", "f1": "F1"}
_OF_CLASS = ("class", "given", "given, %", "recommended, %")
_OF_GROUP = ("ATC main group", "given", "given per visit", "recommended per visit")
Table = pd.DataFrame


def class_section(
    page: Page,
    cohort: Cohort,
    comparison: Comparison | None,
    runs: Sequence[Run],
    models: Models | None = None,
) -> list[str]:
    """HTML parts: precision, recall and F1 per ATC main group and per drug class.

    Parameters
    ----------
    models : Models, optional
        Runs of the comparison that are loaded already; see `medrec.report.predicted.predict_best`.
    """
    if comparison is None or not runs:
        return [paragraph("No training run was given.")]
    predicted, notes = predict_best(comparison, runs, SHOWN_MODELS, models)
    if not predicted:
        return [paragraph("No run could be loaded, so nothing can be said by class."), *notes]
    page.use("cases.css")
    names = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
    groups = {
        item.title: class_performance(item.sets, [code[0] for code in item.sets.codes])
        for item in predicted
    }
    classes = {item.title: class_performance(item.sets) for item in predicted}
    left_out = len(comparison.table) - len(predicted)
    n_visits = len(predicted[0].sets.visit)
    return [
        paragraph(
            f"Each of the {len(cohort.drugs)} drug classes on its own, over the {n_visits:,} "
            "visits of the test part. Precision: of the visits in which the class was recommended, "
            "the share in which it was given. Recall: of the visits in which it was given, the "
            "share in which it was recommended. F1 is their harmonic mean."
            + (f" Shown are the {len(predicted)} best models." if left_out > 0 else "")
        ),
        "<h3>By ATC main group</h3>",
        page.figure(group_figure(groups), "precision, recall and F1 by ATC main group"),
        *_tables(groups, {g: ATC_GROUPS.get(g, "") for g in _names(groups)}, _OF_GROUP),
        "<h3>By class</h3>",
        page.figure(class_figure(classes, names, n_visits), "F1 of drug classes by frequency"),
        paragraph(_rare_text(next(iter(classes.values()))), "note"),
        *_tables(classes, names, _OF_CLASS, _unknown(predicted[0].sets)),
        paragraph(
            "Brackets: 95 % interval from bootstrap resamples of the test patients. Groups pool "
            "the counts of their classes. A dash: the class was never recommended (no precision) "
            "or never given (no recall).",
            "note",
        ),
        *notes,
    ]


def _names(tables: Mapping[str, Table]) -> list[str]:
    return [str(name) for name in next(iter(tables.values()))["name"]]


def _unknown(sets: RecommendedSets) -> set[str]:
    return {code for code, known in zip(sets.codes, sets.known, strict=True) if not known}


def _rare_text(first: Table) -> str:
    rare, never = int((first["support"] < RARE).sum()), int((first["support"] == 0).sum())
    text = (
        f"{rare} of {len(first)} classes were given in fewer than {RARE} visits of the test part; "
        "they are marked as rare and drawn as open circles: single visits decide their numbers."
        if rare
        else f"Every class was given in {RARE} or more visits of the test part."
    )
    return text + (f" {never} of them were never given and are not drawn." if never else "")


# --------------------------------------------------------------------------- tables


def _tables(
    tables: Mapping[str, Table],
    names: Mapping[str, str],
    first: Sequence[str],
    unknown: set[str] | None = None,
) -> list[str]:
    """A table per model; the first is open."""
    columns = [*first, *(_TITLES[metric] for metric in METRICS)]
    share = first is _OF_CLASS
    parts = []
    for number, (title, frame) in enumerate(tables.items()):
        rows = [_row(row, names, unknown or set(), share=share) for row in _most_given(frame)]
        state = "" if number else " open"
        parts.append(
            f'<details class="by-class"{state}><summary>{escape(title)}</summary>'
            f"{table(columns, rows)}</details>"
        )
    return parts


def _most_given(frame: Table) -> list[dict[Any, Any]]:
    ordered = frame.sort_values(["support", "name"], ascending=[False, True])
    return ordered.to_dict("records")


def _row(
    row: Mapping[Any, Any], names: Mapping[str, str], unknown: set[str], *, share: bool
) -> list[Any]:
    code = str(row["name"])
    title = f"{code} {names.get(code, '')}".strip()
    if code in unknown:
        title += " (no training patient had it)"
    rare = "\nrare" if row["support"] < RARE else ""
    return [
        title,
        (f"{row['support']:,}{rare}", int(row["support"])),
        *(
            (f"{100 * row[name]:.1f}" if share else f"{row[name]:.2f}", float(row[name]))
            for name in ("prevalence_true", "prevalence_recommended")
        ),
        *(_cell(row, metric) for metric in METRICS),
    ]


def _cell(row: Mapping[Any, Any], metric: str) -> tuple[str, float]:
    value = float(row[metric])
    if value != value:
        return "–", -1.0
    return f"{value:.3f}\n{_interval(row, metric)}", value


def _interval(row: Mapping[Any, Any], metric: str) -> str:
    return f"[{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]"


# --------------------------------------------------------------------------- figures


def group_figure(tables: Mapping[str, Table]) -> go.Figure:
    """Dots with intervals per ATC main group, a panel per metric, a colour per model."""
    figure = make_subplots(
        cols=3,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[_TITLES[m] for m in METRICS],
    )
    groups = _names(tables)
    for number, (title, frame) in enumerate(tables.items()):
        shift = 0.16 * (number - (len(tables) - 1) / 2)
        for column, metric in enumerate(METRICS, start=1):
            part = frame[frame[metric].notna()]
            rows = part.to_dict("records")
            figure.add_scatter(
                x=part[metric].tolist(),
                y=[groups.index(name) + shift for name in part["name"]],
                mode="markers",
                name=title,
                legendgroup=title,
                showlegend=column == 1,
                marker={"size": 9, "color": PALETTE[number % len(PALETTE)]},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": (part[f"{metric}_high"] - part[metric]).clip(lower=0).tolist(),
                    "arrayminus": (part[metric] - part[f"{metric}_low"]).clip(lower=0).tolist(),
                    "thickness": 1.5,
                    "width": 0,
                },
                customdata=[
                    f"{title}<br>{_group_text(row['name'])}: {_TITLES[metric]} "
                    f"{row[metric]:.3f} {_interval(row, metric)}<br>{row['classes']} classes, "
                    f"given {row['support']:,} times, recommended {row['recommended']:,}"
                    for row in rows
                ],
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=column,
            )
    height = 154 + (18 + 13 * len(tables)) * len(groups)
    figure.update_xaxes(range=[-0.04, 1.04], zeroline=False, dtick=0.25)
    figure.update_yaxes(
        tickvals=list(range(len(groups))),
        range=[len(groups) - 0.5, -0.5],
        zeroline=False,
    )
    figure.update_yaxes(
        ticktext=[_group_text(name) for name in groups], automargin=True, row=1, col=1
    )
    return style(figure, height).update_layout(
        margin={"l": 20, "t": 56, "b": 70}, legend={"y": -44 / (height - 126)}
    )


def _group_text(group: str) -> str:
    return f"{group} {ATC_GROUPS.get(group, '')}".strip()


def class_figure(tables: Mapping[str, Table], names: Mapping[str, str], n_visits: int) -> go.Figure:
    """F1 of every class that was given, against how often it was; rare ones are open circles."""
    figure = go.Figure()
    for number, (title, frame) in enumerate(tables.items()):
        part = frame[frame["support"] > 0].sort_values("support", ascending=False)
        rows = part.to_dict("records")
        shift = number - (len(tables) - 1) / 2  # models side by side, not over each other
        figure.add_scatter(
            x=(100 * part["prevalence_true"] * 1.03**shift).tolist(),
            y=part["f1"].tolist(),
            mode="markers",
            name=title,
            marker={
                "size": 9,
                "opacity": 0.8,
                "color": PALETTE[number % len(PALETTE)],
                "symbol": [
                    "circle-open" if support < RARE else "circle" for support in part["support"]
                ],
            },
            customdata=[_hover(row, title, names, n_visits) for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    figure.update_xaxes(
        title="visits in which the class was given, %",
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
    )
    figure.update_yaxes(title="F1", range=[-0.04, 1.04], zeroline=False)
    return style(figure, 440).update_layout(margin={"t": 36})


def _hover(row: Mapping[Any, Any], title: str, names: Mapping[str, str], n_visits: int) -> str:
    code = str(row["name"])
    metrics = "<br>".join(
        f"{_TITLES[m]} {row[m]:.3f} {_interval(row, m)}"
        if row[m] == row[m]
        else f"{_TITLES[m]}: none"
        for m in METRICS
    )
    rare = ", rare" if row["support"] < RARE else ""
    return (
        f"{title}<br><b>{escape(code)} {escape(names.get(code, ''))}</b><br>{metrics}<br>"
        f"given in {row['support']:,} of {n_visits:,} visits{rare}, "
        f"recommended in {row['recommended']:,}"
    )
