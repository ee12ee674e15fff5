"""Figures of a search trial by trial: parallel axes and slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from medrec.report.figures import style
from medrec.report.search_axes import (
    GREY,
    LINE_SCALE,
    SCALE,
    axis_values,
    colour_bar,
    folded,
    objective_axis,
    panels,
    places_of,
    row_count,
    safe,
    setting_axis,
    y_axis_of,
)
from medrec.report.search_table import Dimension, Objective, SearchTrials, text_of


def parallel(search: SearchTrials, goal: Objective) -> go.Figure:
    """One line per trial through all settings to an objective; orange lines are the better ones.

    Better lines lie on top. ``meta["brush"]`` of the layout is the number of axes: where it stands,
    a box over an axis chooses trials.

    Drawn as plain lines: Plotly's own parallel coordinates need WebGL.
    """
    dims, values = search.dimensions, search.trials[goal.metric].to_numpy(dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    places = np.stack([d.positions(search.trials[d.column]) for d in dims] + [scaled], axis=1)
    places[:, :-1] = np.where(places[:, :-1] < 0, -0.08, places[:, :-1])
    figure, hover = go.Figure(), search.hover()
    good = scaled if goal.mode == "max" else 1 - scaled
    colours = sample_colorscale([colour for _, colour in LINE_SCALE], good.tolist())
    for trial in np.argsort(good, kind="stable"):
        text = f"{hover[trial]}<br>{goal.label} {values[trial]:.4g}"
        figure.add_scatter(
            x=[*range(places.shape[1]), None],
            y=[*np.round(places[trial], 4).tolist(), None],
            mode="lines+markers",
            line={"color": colours[trial], "width": 2},
            marker={"size": 4},
            opacity=0.85,
            customdata=[text] * (places.shape[1] + 1),
            hovertemplate="%{customdata}<extra></extra>",
            unselected={"marker": {"opacity": 1.0}},
            showlegend=False,
        )
    _add_axes(figure, dims, goal, (low, high))
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        showlegend=False,
        marker={
            "color": [low],
            "cmin": low,
            "cmax": high,
            "colorscale": LINE_SCALE,
            "reversescale": goal.mode == "min",
            "showscale": True,
            "colorbar": colour_bar(goal),
        },
    )
    # the page's script fades the lines outside the selected ranges
    return style(figure, 430).update_layout(
        margin={"b": 90, "r": 90},
        dragmode="select",
        meta={"brush": places.shape[1]},
        newselection={"line": {"color": GREY, "width": 1.5}},
        activeselection={"fillcolor": GREY, "opacity": 0.25},
    )


def _add_axes(
    figure: go.Figure, dims: Sequence[Dimension], goal: Objective, ends: tuple[float, float]
) -> None:
    for x, marks in enumerate([*(_marks(dim) for dim in dims), _ends(*ends)]):
        figure.add_vline(x=x, line={"color": GREY, "width": 1})
        for place, text in marks:
            figure.add_annotation(
                x=x, y=place, text=safe([text])[0], showarrow=False, xanchor="left", xshift=4,
                font={"size": 11},
            )  # fmt: skip
    names = [*(dim.label for dim in dims), goal.label]
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=[folded(name) for name in safe(names)],
        range=[-0.2, len(names) - 0.6],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(visible=False, range=[-0.12, 1.06])


def _marks(dim: Dimension) -> list[tuple[float, str]]:
    if dim.values:
        n = len(dim.values)
        return [((i + 0.5) / n, text_of(value)) for i, value in enumerate(dim.values)]
    return [(place, text_of(dim.at(place))) for place in (0.0, 0.5, 1.0)]


def _ends(low: float, high: float) -> list[tuple[float, str]]:
    return [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]


def slices(search: SearchTrials, goal: Objective) -> go.Figure:
    """Objective against each setting, one point per trial; later trials are darker."""
    figure = panels(len(search.dimensions), [d.label for d in search.dimensions])
    hover = search.hover()
    numbers = search.trials["number"].to_numpy(dtype=np.float64)
    for place, dim in zip(places_of(len(search.dimensions)), search.dimensions, strict=True):
        figure.add_scatter(
            x=axis_values(dim, search.trials[dim.column]),
            y=search.trials[goal.metric].tolist(),
            mode="markers",
            showlegend=False,
            marker={
                "size": 8,
                "opacity": 0.85,
                "color": numbers.tolist(),
                "coloraxis": "coloraxis",
            },
            customdata=hover,
            hovertemplate="%{customdata}<br>%{y:.4g}<extra></extra>",
            row=place[0],
            col=place[1],
        )
        setting_axis(figure, dim, *place)
        if place[1] == 1:
            objective_axis(y_axis_of(figure, *place), goal, break_line=True)
    height = 70 + 260 * row_count(len(search.dimensions))
    return style(figure, height).update_layout(
        coloraxis={"colorscale": SCALE, "reversescale": True, "colorbar": {"title": "trial"}},
        margin={"l": 80},
    )
