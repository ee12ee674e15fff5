"""Figures about safety: Jaccard against DDI rate as curves, and DDI rates by grade."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from medrec.report.figures import GREY, PALETTE, RED, style


def ddi_curves(
    points: pd.DataFrame, truth: float | None = None, chance: float | None = None
) -> go.Figure:
    """Jaccard against DDI rate on the test part, one line per curve.

    Parameters
    ----------
    points : pandas.DataFrame
        Of `medrec.evaluation.frontier.Frontier`. Settings that are not on their curve, by
        validation, are open circles.
    truth, chance : float, optional
        DDI rates of the true and of random sets, as lines.
    """
    figure = go.Figure()
    for number, (name, own) in enumerate(points.groupby("curve", sort=False)):
        colour = PALETTE[number % len(PALETTE)]
        front = own[own["on_front"]].sort_values("ddi_rate")
        _add(figure, front, str(name), colour, "circle", "lines+markers")
        beaten = own[~own["on_front"]]
        if len(beaten):
            title = f"{name}, beaten on validation"
            _add(figure, beaten, title, colour, "circle-open", "markers")
    for value, text, colour, dash in (
        (truth, "ground truth", RED, "dash"),
        (chance, "chance", GREY, "dot"),
    ):
        if value is not None:
            figure.add_vline(x=value, line={"dash": dash, "color": colour}, annotation_text=text)
    figure.update_xaxes(title="DDI rate (lower is safer)")
    figure.update_yaxes(title="Jaccard (higher is better)")
    return style(figure, 460)


def _add(
    figure: go.Figure, rows: pd.DataFrame, name: str, colour: str, symbol: str, mode: str
) -> None:
    figure.add_scatter(
        x=rows["ddi_rate"].tolist(),
        y=rows["jaccard"].tolist(),
        mode=mode,
        name=name,
        line={"color": colour, "width": 2},
        marker={"symbol": symbol, "size": 9, "color": colour},
        error_x=_bars(rows, "ddi_rate"),
        error_y=_bars(rows, "jaccard"),
        customdata=rows["setting"].tolist(),
        hovertemplate="setting %{customdata:.3g}<br>Jaccard %{y:.3f}, DDI %{x:.3f}",
    )


def _bars(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "width": 2,
        "array": (rows[f"{metric}_high"] - rows[metric]).tolist(),
        "arrayminus": (rows[metric] - rows[f"{metric}_low"]).tolist(),
    }
