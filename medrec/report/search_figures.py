"""Figures of a hyper-parameter search. Each takes the trials and returns a Plotly figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from medrec.report.figures import BLUE, ORANGE, PALETTE, style
from medrec.report.search_axes import (
    GREY,
    SCALE,
    axis_values,
    colour_bar,
    folded,
    ink_on,
    legend_below,
    objective_axis,
    panels,
    places_of,
    row_count,
    safe,
    setting_axis,
    y_axis_of,
)
from medrec.report.search_table import Dimension, Objective, SearchTrials

_MOST_PAIRED = 4
_MOST_TEXT_CELLS, _MOST_TEXT_COLUMNS = 16, 4


def importance_bars(table: pd.DataFrame, objectives: Sequence[Objective]) -> go.Figure:
    """Share of the variance per setting, with the range over trees.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `medrec.report.search_importance.importance`.
    """
    figure = go.Figure()
    order = table.groupby("label")["importance"].mean().sort_values().index
    for number, goal in enumerate(objectives):
        own = table[table["objective"] == goal.metric].set_index("label").reindex(order)
        figure.add_bar(
            x=own["importance"].tolist(),
            y=safe(order),
            orientation="h",
            name=goal.label,
            marker_color=PALETTE[number % len(PALETTE)],
            error_x={
                "type": "data",
                "symmetric": False,
                "thickness": 1.5,
                "color": GREY,
                "array": (own["high"] - own["importance"]).clip(lower=0).tolist(),
                "arrayminus": (own["importance"] - own["low"]).clip(lower=0).tolist(),
            },
            hovertemplate="%{y}: %{x:.2f}",
        )
    figure.update_xaxes(title="share of the variance between trials", range=[0, 1])
    height = 150 + 26 * len(order) * max(len(objectives), 1)
    return style(figure, height).update_layout(
        margin={"l": 190, "b": 84}, legend=legend_below(height), barmode="group"
    )


def pareto_front(search: SearchTrials, x: Objective, y: Objective) -> go.Figure:
    """All trials in two objectives; those that no other trial beats in both are joined."""
    figure, hover = go.Figure(), np.array(search.hover(), dtype=object)
    front = search.trials["pareto"].to_numpy(dtype=bool)
    for inside, name, symbol, colour, mode in (
        (False, "trial", "circle-open", GREY, "markers"),
        (True, "on the Pareto front", "circle", BLUE, "lines+markers"),
    ):
        chosen = np.flatnonzero(front == inside)
        part = search.trials.iloc[chosen].sort_values([x.metric, y.metric])
        figure.add_scatter(
            x=part[x.metric].tolist(),
            y=part[y.metric].tolist(),
            mode=mode,
            name=name,
            line={"color": colour, "width": 1.5, "dash": "dot"},
            marker={"symbol": symbol, "size": 10, "color": colour},
            customdata=hover[part.index.to_numpy()].tolist(),
            hovertemplate="%{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )
    objective_axis(figure.update_xaxes, x)
    objective_axis(figure.update_yaxes, y)
    return style(figure, 440).update_layout(legend=legend_below(440))


def history(search: SearchTrials) -> go.Figure:
    """Every objective by number of the trial, with the best until then."""
    goals = search.objectives
    figure = make_subplots(rows=len(goals), shared_xaxes=True, vertical_spacing=0.08)
    hover, numbers = search.hover(), search.trials["number"].tolist()
    for row, goal in enumerate(goals, start=1):
        values = search.trials[goal.metric]
        best = values.cummax() if goal.mode == "max" else values.cummin()
        figure.add_scatter(
            x=numbers,
            y=values.tolist(),
            mode="markers",
            name="trial",
            legendgroup="trial",
            showlegend=row == 1,
            marker={"color": GREY, "size": 7},
            customdata=hover,
            hovertemplate="%{customdata}<br>%{y:.4g}<extra></extra>",
            row=row,
            col=1,
        )
        figure.add_scatter(
            x=numbers,
            y=best.tolist(),
            mode="lines",
            name="best until then",
            legendgroup="best",
            showlegend=row == 1,
            line={"color": BLUE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
            row=row,
            col=1,
        )
        objective_axis(y_axis_of(figure, row, 1), goal, break_line=True)
    figure.update_xaxes(title="number of the trial", row=len(goals), col=1)
    height = 120 + 210 * len(goals)
    return style(figure, height).update_layout(legend=legend_below(height), margin={"l": 80})


def sensitivity(search: SearchTrials) -> go.Figure:
    """Each objective against each setting: mean over the other settings, and their spread.

    One row per objective, one column per setting. Bars are one standard deviation over all trials
    with that value: how much the other settings move the objective. Ranges with many values are
    put into six steps.
    """
    dims, goals = search.dimensions, search.objectives
    figure = make_subplots(
        rows=len(goals),
        cols=len(dims),
        shared_xaxes="columns",
        shared_yaxes="rows",
        horizontal_spacing=0.12 / len(dims),
        vertical_spacing=0.09,
    )
    for row, goal in enumerate(goals, start=1):
        values = search.trials[goal.metric].to_numpy(dtype=np.float64)
        colour = (BLUE, ORANGE)[(row - 1) % 2]
        for col, dim in enumerate(dims, start=1):
            _add_levels(figure, (row, col), dim, search.trials[dim.column], values, colour)
            setting_axis(figure, dim, row, col)
        objective_axis(y_axis_of(figure, row, 1), goal, break_line=True)
    for col, dim in enumerate(dims, start=1):
        title = folded(safe([dim.label])[0])
        figure.update_xaxes(title=title, row=len(goals), col=col)
    return style(figure, 130 + 240 * len(goals)).update_layout(margin={"l": 85, "b": 90})


def _add_levels(
    figure: go.Figure,
    place: tuple[int, int],
    dim: Dimension,
    column: pd.Series,
    values: npt.NDArray[np.float64],
    colour: str,
) -> None:
    where = {"row": place[0], "col": place[1]}
    names, level = dim.levels(column)
    groups = [values[level == i] for i in range(len(names))]
    shown = axis_values(dim, column)
    figure.add_scatter(
        x=shown,
        y=values.tolist(),
        mode="markers",
        marker={"size": 5, "color": GREY, "opacity": 0.45},
        showlegend=False,
        hovertemplate="%{x}: %{y:.4g}<extra></extra>",
        **where,
    )
    # a step of a range stands at the middle of its trials
    centres = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    figure.add_scatter(
        x=safe(names)
        if dim.values
        else [float(centres[level == i].mean()) for i in range(len(names))],
        y=[float(group.mean()) for group in groups],
        error_y={
            "type": "data",
            "array": [float(group.std(ddof=1)) if len(group) > 1 else 0.0 for group in groups],
            "thickness": 1.5,
            "width": 4,
        },
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 9, "color": colour},
        customdata=[len(group) for group in groups],
        hovertemplate="%{x}: mean %{y:.4g} of %{customdata} trials<extra></extra>",
        showlegend=False,
        **where,
    )


def pair_maps(
    search: SearchTrials, goal: Objective, dimensions: Sequence[Dimension] | None = None
) -> go.Figure | None:
    """Mean of an objective per pair of settings, as heat maps; empty cells were not tried.

    Parameters
    ----------
    dimensions : sequence of Dimension, optional
        Which, the first four at most; default those of the search.

    Returns
    -------
    plotly.graph_objects.Figure or None
        None with fewer than two settings.
    """
    chosen = list(dimensions or search.dimensions)[:_MOST_PAIRED]
    pairs = list(combinations(chosen, 2))
    if not pairs:
        return None
    figure = panels(len(pairs), [""] * len(pairs), gap=0.13)
    shown: list[float] = []
    values = search.trials[goal.metric].to_numpy(dtype=np.float64)
    for place, (x, y) in zip(places_of(len(pairs)), pairs, strict=True):
        x_names, x_level = x.levels(search.trials[x.column])
        y_names, y_level = y.levels(search.trials[y.column])
        cells = [
            [_mean(values[(x_level == i) & (y_level == j)]) for i in range(len(x_names))]
            for j in range(len(y_names))
        ]
        shown += [value for line in cells for value in line if value is not None]
        figure.add_heatmap(
            x=safe(x_names),
            y=safe(y_names),
            z=cells,
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="%{x}, %{y}: %{z:.4g}<extra></extra>",
            row=place[0],
            col=place[1],
        )
        for update, dim in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
            title = {"text": safe([dim.label])[0], "standoff": 4}
            look = {"type": "category", "showgrid": False, "tickfont": {"size": 11}}
            update(title=title, row=place[0], col=place[1], **look)
    ends = (min(shown), max(shown)) if shown else (0.0, 1.0)
    _label_cells(figure, ends, goal.mode == "min")
    height = 90 + 310 * row_count(len(pairs))
    return style(figure, height).update_layout(
        coloraxis={
            "colorscale": SCALE,
            "reversescale": goal.mode == "min",
            "cmin": ends[0],
            "cmax": ends[1],
            "colorbar": colour_bar(goal),
        },
        margin={"l": 85, "b": 80},
    )


def _label_cells(figure: go.Figure, ends: tuple[float, float], reverse: bool) -> None:
    """Write the numbers of small heat maps, black or white by the colour under them."""
    low, high = ends
    for heat in list(figure.data):
        if len(heat.x) > _MOST_TEXT_COLUMNS or len(heat.x) * len(heat.y) > _MOST_TEXT_CELLS:
            continue
        cells = [
            (x, y, value)
            for y, line in zip(heat.y, heat.z, strict=True)
            for x, value in zip(heat.x, line, strict=True)
            if value is not None
        ]
        shares = [(value - low) / (high - low) if high > low else 0.5 for *_, value in cells]
        colours = sample_colorscale(SCALE, [1 - s if reverse else s for s in shares])
        figure.add_scatter(
            x=[x for x, _, _ in cells],
            y=[y for _, y, _ in cells],
            text=[f"{value:.3g}" for *_, value in cells],
            mode="text",
            textfont={"size": 11, "color": [ink_on(colour) for colour in colours]},
            hoverinfo="skip",
            showlegend=False,
            xaxis=heat.xaxis,
            yaxis=heat.yaxis,
        )


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
