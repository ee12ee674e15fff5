"""Figure of a cross table: paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from medrec.report.figures import PALETTE, style


def forest(table: pd.DataFrame, titles: Mapping[str, str]) -> go.Figure:
    """Draw one panel per comparison, one line per recommender and representation.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `medrec.evaluation.cross.cross_table`.
    titles : mapping of str to str
        Title of each comparison's panel.
    """
    figure = make_subplots(
        cols=len(titles),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[f"Jaccard, difference {title}" for title in titles.values()],
    )
    colours = {
        name: PALETTE[number % len(PALETTE)]
        for number, name in enumerate(table["recommender"].unique())
    }
    for column, comparison in enumerate(titles, start=1):
        for recommender, own in table.groupby("recommender", sort=False):
            value, low, high = (own[f"to_{comparison}{end}"] for end in ("", "_low", "_high"))
            figure.add_scatter(
                x=value.tolist(),
                y=[[recommender] * len(own), own["representation"].tolist()],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": (high - value).tolist(),
                    "arrayminus": (value - low).tolist(),
                },
                mode="markers",
                marker={"size": 9, "color": colours[recommender]},
                name=str(recommender),
                legendgroup=str(recommender),
                showlegend=column == 1,
                hovertemplate="%{y}<br>%{x:+.4f}<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_vline(x=0.0, line={"width": 1, "dash": "dot"}, row=1, col=column)
    figure.update_yaxes(autorange="reversed")
    height = 140 + 34 * len(table)
    return style(figure, height).update_layout(margin={"l": 170, "t": 48, "b": 72})
