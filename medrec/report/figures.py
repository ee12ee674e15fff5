"""Plotly figures of the report. Each takes tables and returns a figure; no files, no HTML."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito: distinguishable with any colour vision
BLUE, ORANGE, GREEN, PURPLE, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, "#56B4E9", "#999999")


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
    """Visits and patients left after every filter, as bars with their counts."""
    figure = make_subplots(
        cols=3,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=("prescription rows", "visits", "patients"),
    )
    steps = table["step"].tolist()
    for column, (name, colour) in enumerate(
        (("rows", BLUE), ("visits", GREEN), ("patients", ORANGE)), start=1
    ):
        figure.add_bar(
            x=table[name].tolist(),
            y=steps,
            orientation="h",
            marker_color=colour,
            text=[f"{value:,}" for value in table[name]],
            textposition="auto",
            hovertemplate="%{y}<br>%{x:,} " + name + "<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    return style(figure, 90 + 34 * len(steps)).update_layout(margin={"l": 230, "t": 36, "b": 16})


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
    return style(figure, 300)


def training(curves: dict[str, pd.DataFrame]) -> go.Figure:
    """Loss, validation Jaccard and validation DDI rate per epoch, one line per model."""
    figure = make_subplots(
        cols=3,
        horizontal_spacing=0.08,
        subplot_titles=("training loss", "validation Jaccard", "validation DDI rate"),
    )
    for number, (name, table) in enumerate(curves.items()):
        for column, key in enumerate(("train_loss", "val_jaccard", "val_ddi_rate"), start=1):
            figure.add_scatter(
                x=table["epoch"].tolist(),
                y=table[key].tolist(),
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line={"color": PALETTE[number % len(PALETTE)], "width": 2},
                row=1,
                col=column,
            )
    figure.update_xaxes(title="epoch")
    return style(figure)


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
    return style(figure, 320)


def frontier(
    trials: pd.DataFrame | None, models: pd.DataFrame, truth: float, chance: float
) -> go.Figure:
    """Jaccard against DDI rate: trials on validation, models on test, truth and chance as lines."""
    figure = go.Figure()
    if trials is not None and {"jaccard", "ddi_rate"} <= set(trials.columns):
        for on_front, name, symbol, colour in (
            (False, "trial (validation)", "circle-open", "#7f8c99"),
            (True, "trial on the Pareto front", "circle", BLUE),
        ):
            part = trials[trials["pareto"] == on_front]
            figure.add_scatter(
                x=part["ddi_rate"].tolist(),
                y=part["jaccard"].tolist(),
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 11, "color": colour},
                customdata=[_trial_text(row) for row in part.to_dict("records")],
                hovertemplate="%{customdata}<br>Jaccard %{y:.3f}, DDI %{x:.3f}<extra></extra>",
            )
    for number, row in enumerate(models.to_dict("records")):
        figure.add_scatter(
            x=[row["ddi_rate"]],
            y=[row["jaccard"]],
            mode="markers",
            name=f"{row['model']} (test)",
            marker={"symbol": "diamond", "size": 13, "color": PALETTE[(number + 1) % 7]},
            error_y={
                "type": "data",
                "symmetric": False,
                "thickness": 1,
                "array": [row["jaccard_high"] - row["jaccard"]],
                "arrayminus": [row["jaccard"] - row["jaccard_low"]],
            },
        )
    figure.add_vline(x=truth, line={"dash": "dash", "color": RED})
    figure.add_vline(x=chance, line={"dash": "dot", "color": "#7f8c99"})
    for x, text, shift in ((truth, "ground truth", 4), (chance, "chance", -4)):
        figure.add_annotation(
            x=x,
            y=1.06,
            yref="paper",
            text=text,
            showarrow=False,
            xanchor="left" if shift > 0 else "right",
            xshift=shift,
        )
    figure.update_xaxes(title="DDI rate (lower is safer)")
    figure.update_yaxes(title="Jaccard (higher is better)")
    return style(figure, 440).update_layout(legend={"y": -0.2})


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
        line={"dash": "dash", "color": "#7f8c99", "width": 1},
        hoverinfo="skip",
    )
    for number, (name, table) in enumerate(tables.items()):
        used = table[table["n"] > 0]
        figure.add_scatter(
            x=used["predicted"].tolist(),
            y=used["observed"].tolist(),
            mode="lines+markers",
            name=name,
            line={"color": PALETTE[number % len(PALETTE)], "width": 2},
            customdata=used["n"].tolist(),
            hovertemplate="predicted %{x:.3f}, observed %{y:.3f}<br>%{customdata:,} scores",
        )
    figure.update_xaxes(title="mean predicted score", range=[0, 1])
    figure.update_yaxes(title="share of true drugs", range=[0, 1])
    return style(figure, 420)


def _trial_text(row: dict[Any, Any]) -> str:
    params = [f"{k.split('.')[-1]} {_short(v)}" for k, v in row.items() if k.startswith("params.")]
    budget = "" if row.get("full_budget") else " (stopped early)"
    return f"trial {row['number']}{budget}<br>" + ", ".join(params)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
