"""Plotly figures of the report. Each takes tables and returns a figure; no files, no HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito: distinguishable with any colour vision
BLUE, ORANGE, GREEN, PURPLE, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, "#56B4E9", "#999999")
GREY = "#7f8c99"


def style(figure: go.Figure, height: int = 360) -> go.Figure:
    """Common look; colours of text and grid come from the page's theme."""
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 24, "t": 40, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.22},
        hoverlabel={"font": {"size": 13}},
    )
    return figure


def funnel(table: pd.DataFrame) -> go.Figure:
    """Rows, visits and patients left after every filter, and what the filter removed.

    Parameters
    ----------
    table : pandas.DataFrame
        ``step``, ``rows``, ``visits``, ``patients``, in order of the filters.
    """
    figure = make_subplots(
        cols=3,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=("prescription rows", "visits", "patients"),
    )
    steps = table["step"].tolist()
    for column, (name, colour) in enumerate(
        (("rows", BLUE), ("visits", GREEN), ("patients", ORANGE)), start=1
    ):
        left = table[name].astype(int)
        removed = (-left.diff().fillna(0)).astype(int)
        texts = [
            f"{n:,}" + (f" (−{gone:,})" if gone > 0 else "")
            for n, gone in zip(left, removed, strict=True)
        ]
        figure.add_bar(
            x=left.tolist(),
            y=steps,
            orientation="h",
            marker_color=colour,
            customdata=removed.tolist(),
            hovertemplate="%{y}<br>%{x:,} "
            + name
            + " left, %{customdata:,} removed<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        figure.add_bar(
            x=removed.clip(lower=0).tolist(),
            y=steps,
            orientation="h",
            marker_color=colour,
            opacity=0.28,
            hovertemplate="%{y}<br>%{x:,} " + name + " removed<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        # counts stand in a column of their own right of the bars, where they can be read
        figure.add_scatter(
            x=[1.04 * max(int(left.max()), 1)] * len(steps),
            y=steps,
            mode="text",
            text=texts,
            textposition="middle right",
            textfont={"size": 11},
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=column,
        )
        figure.update_xaxes(range=[0, 2.4 * max(int(left.max()), 1)], col=column)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    return style(figure, 100 + 32 * len(steps)).update_layout(
        margin={"l": 10, "r": 0, "t": 56, "b": 10}, barmode="stack", bargap=0.35
    )


def coverage(table: pd.DataFrame) -> go.Figure:
    """Share of prescription rows that each route maps, alone and in the order of use."""
    figure = go.Figure()
    used = table[table["route"] != "unmapped"]
    figure.add_bar(
        x=used["route"].tolist(),
        y=(100 * used["share_alone"]).tolist(),
        name="route alone",
        marker_color="#9fb8cc",
    )
    figure.add_bar(
        x=table["route"].tolist(),
        y=(100 * table["share"]).tolist(),
        name="in order of use",
        marker_color=BLUE,
    )
    figure.update_yaxes(title="prescription rows, %", range=[0, 100])
    return style(figure, 300).update_layout(legend={"y": -0.16})


def training(curves: dict[str, pd.DataFrame], best: Mapping[str, int] | None = None) -> go.Figure:
    """Loss, validation Jaccard and validation DDI rate per epoch, one line per model.

    Parameters
    ----------
    curves : dict of str to pandas.DataFrame
        ``epoch`` and the metrics, by name of the model.
    best : mapping of str to int, optional
        Epoch that was kept, marked with a dot.
    """
    figure = make_subplots(
        cols=3,
        horizontal_spacing=0.08,
        subplot_titles=("training loss", "validation Jaccard", "validation DDI rate"),
    )
    for number, (name, table) in enumerate(curves.items()):
        colour = PALETTE[number % len(PALETTE)]
        kept = table[table["epoch"] == (best or {}).get(name)]
        for column, key in enumerate(("train_loss", "val_jaccard", "val_ddi_rate"), start=1):
            figure.add_scatter(
                x=table["epoch"].tolist(),
                y=table[key].tolist(),
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line={"color": colour, "width": 2},
                hovertemplate="epoch %{x}: %{y:.4g}",
                row=1,
                col=column,
            )
            figure.add_scatter(
                x=kept["epoch"].tolist(),
                y=kept[key].tolist(),
                mode="markers",
                name=f"{name}, kept",
                legendgroup=name,
                showlegend=False,
                marker={"color": colour, "size": 10},
                row=1,
                col=column,
            )
    figure.update_xaxes(title="epoch")
    return style(figure).update_layout(margin={"t": 60}, hovermode="x unified", legend={"y": -0.3})


def pretraining(table: pd.DataFrame) -> go.Figure:
    """Contrastive loss and retrieval accuracy per epoch."""
    figure = make_subplots(
        cols=2, subplot_titles=("contrastive loss (NT-Xent)", "2D finds its own 3D, share")
    )
    for column, (key, colour) in enumerate(
        (("loss", BLUE), ("retrieval_accuracy", GREEN)), start=1
    ):
        figure.add_scatter(
            x=table["epoch"].tolist(),
            y=table[key].tolist(),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 5},
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_xaxes(title="epoch")
    return style(figure, 340).update_layout(margin={"t": 60})


def intervals(models: pd.DataFrame, lines: Mapping[str, Sequence[tuple[str, float]]]) -> go.Figure:
    """Metrics of models as points with their intervals, one panel per metric.

    Parameters
    ----------
    models : pandas.DataFrame
        ``model``, and per metric the value, ``_low`` and ``_high``.
    lines : mapping of str to sequence of (name, value)
        Vertical lines in a metric's panel.
    """
    panels = {
        "jaccard": "Jaccard",
        "f1": "F1",
        "prauc": "PRAUC",
        "ddi_rate": "DDI rate",
        "mean_n_drugs": "drugs per visit",
    }
    figure = make_subplots(
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=list(panels.values()),
    )
    names = models["model"].tolist()
    colours = [PALETTE[number % len(PALETTE)] for number in range(len(names))]
    for column, metric in enumerate(panels, start=1):
        for number, row in enumerate(models.to_dict("records")):
            figure.add_scatter(
                x=[row[metric]],
                y=[row["model"]],
                mode="markers",
                marker={"size": 10, "color": colours[number]},
                error_x=_whiskers(row, metric, colours[number], 2),
                hovertemplate=(
                    f"%{{y}}<br>%{{x:.3f}} [{row[f'{metric}_low']:.3f}, "
                    f"{row[f'{metric}_high']:.3f}]<extra></extra>"
                ),
                showlegend=False,
                row=1,
                col=column,
            )
        for (title, value), (colour, dash) in zip(
            lines.get(metric, ()), ((RED, "dash"), (GREY, "dot")), strict=False
        ):
            figure.add_scatter(
                x=[value, value],
                y=[names[0], names[-1]],
                mode="lines",
                line={"color": colour, "dash": dash, "width": 1.5},
                name=title,
                legendgroup=title,
                showlegend=column == 4,
                hovertemplate=f"{title} %{{x:.3f}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(nticks=4, tickangle=0)
    height = 152 + 34 * len(names)
    return style(figure, height).update_layout(
        margin={"l": 10, "r": 10, "t": 56, "b": 70}, legend={"y": -34 / (height - 126)}
    )


def _whiskers(
    row: Mapping[Any, Any], metric: str, colour: str | None = None, thickness: float = 1
) -> dict[str, Any]:
    """Interval of a metric as an asymmetric error bar."""
    return {
        "type": "data",
        "symmetric": False,
        "thickness": thickness,
        "width": 3,
        "color": colour,
        "array": [row[f"{metric}_high"] - row[metric]],
        "arrayminus": [row[metric] - row[f"{metric}_low"]],
    }


def frontier(
    trials: pd.DataFrame | None, models: pd.DataFrame, truth: float, chance: float
) -> go.Figure:
    """Jaccard against DDI rate: trials on validation, models on test, truth and chance as lines."""
    figure = go.Figure()
    if trials is not None and {"jaccard", "ddi_rate"} <= set(trials.columns):
        for on_front, name, symbol, colour in (
            (False, "trial (validation)", "circle-open", GREY),
            (True, "trial on the Pareto front", "circle", BLUE),
        ):
            part = trials[trials["pareto"] == on_front].sort_values("ddi_rate")
            figure.add_scatter(
                x=part["ddi_rate"].tolist(),
                y=part["jaccard"].tolist(),
                mode="lines+markers" if on_front else "markers",
                line={"color": colour, "width": 1, "dash": "dot", "shape": "hv"},
                name=name,
                marker={"symbol": symbol, "size": 10, "color": colour},
                customdata=[_trial_text(row) for row in part.to_dict("records")],
                hovertemplate="%{customdata}<br>Jaccard %{y:.3f}, DDI %{x:.3f}<extra></extra>",
            )
    for number, row in enumerate(models.to_dict("records")):
        colour = PALETTE[(number + 1) % len(PALETTE)]
        figure.add_scatter(
            x=[row["ddi_rate"]],
            y=[row["jaccard"]],
            mode="markers",
            name=f"{row['model']} (test)",
            marker={"symbol": "diamond", "size": 13, "color": colour},
            error_y=_whiskers(row, "jaccard", colour),
            error_x=_whiskers(row, "ddi_rate", colour),
            hovertemplate=(
                f"{escape(str(row['model']))}<br>Jaccard %{{y:.3f}}, DDI %{{x:.3f}}<extra></extra>"
            ),
        )
    right = ("right", "left") if chance < truth else ("left", "right")
    for (x, text, colour, dash), anchor in zip(
        ((chance, "chance", GREY, "dot"), (truth, "ground truth", RED, "dash")), right, strict=True
    ):
        figure.add_vline(x=x, line={"dash": dash, "color": colour, "width": 1.5})
        figure.add_annotation(
            x=x,
            y=1,
            yref="paper",
            yanchor="bottom",
            text=text,
            font={"color": colour},
            showarrow=False,
            xanchor=anchor,
        )
    figure.update_xaxes(title="DDI rate (lower is safer)", zeroline=False)
    figure.update_yaxes(title="Jaccard (higher is better)", zeroline=False)
    return style(figure, 480).update_layout(legend={"y": -0.18})


def reliability(tables: dict[str, pd.DataFrame]) -> go.Figure:
    """Observed against predicted frequency per bin of the score, one line per model.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        Of `medrec.evaluation.describe.reliability`, by name of the model.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="calibrated",
        line={"dash": "dash", "color": GREY, "width": 1},
        hoverinfo="skip",
    )
    for number, (name, table) in enumerate(tables.items()):
        used = table[table["n"] > 0]
        most = max(int(used["n"].max()), 1) if len(used) else 1
        figure.add_scatter(
            x=used["predicted"].tolist(),
            y=used["observed"].tolist(),
            mode="lines+markers",
            name=name,
            line={"color": PALETTE[number % len(PALETTE)], "width": 2},
            marker={"size": (5 + 11 * (used["n"] / most) ** 0.5).round(1).tolist()},
            customdata=used["n"].tolist(),
            hovertemplate="predicted %{x:.3f}, observed %{y:.3f}<br>%{customdata:,} scores",
        )
    figure.update_xaxes(title="mean predicted score", range=[-0.02, 1.02], zeroline=False)
    figure.update_yaxes(title="share of true drugs", range=[-0.02, 1.02], zeroline=False)
    return style(figure, 460)


def _trial_text(row: dict[Any, Any]) -> str:
    params = [f"{k.split('.')[-1]} {_short(v)}" for k, v in row.items() if k.startswith("params.")]
    budget = "" if row.get("full_budget") else " (stopped early)"
    return f"trial {row['number']}{budget}<br>" + ", ".join(params)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
