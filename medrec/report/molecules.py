"""Page about molecular pre-training and property prediction: curves, errors, parity plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from medrec.report.figures import BLUE, PALETTE, style
from medrec.report.page import Page, facts, paragraph, table
from medrec.runs import Run
from quantum.base import InputError, write_text_atomic

MOST_POINTS = 1500
"""Of a larger test part so many molecules are drawn in a parity plot, evenly spaced."""


def write_molecule_page(runs: Sequence[Run], path: Path) -> Path:
    """Write one self-contained HTML page about finished runs on molecule libraries.

    Parameters
    ----------
    runs : sequence of Run
        Kinds ``pretrain`` (on a library) and ``property``.

    Raises
    ------
    InputError
        If a run is not finished.
    """
    pretraining = [run for run in runs if run.kind == "pretrain"]
    properties = [run for run in runs if run.kind == "property"]
    for run in runs:
        if not run.is_finished:
            raise InputError(f"{run.name} is not finished: the same command goes on with it")
    page = Page("Molecules", f"{len(pretraining)} pre-training, {len(properties)} property runs")
    if properties:
        page.add("Errors on test molecules", *_summary(properties))
        page.add("Learning curves", *_curves(page, properties))
    for run in pretraining:
        page.add(f"Pre-training: {run.name}", *_pretraining(page, run))
    for run in properties:
        page.add(f"Predictions: {run.name}", *_parity(page, run))
    page.add("Provenance", *[_provenance(run) for run in runs])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, page.render())
    return path


def _summary(runs: Sequence[Run]) -> list[str]:
    frames = {run.name: pd.read_parquet(run.folder / "properties.parquet") for run in runs}
    rows: list[list[Any]] = []
    for name, frame in frames.items():
        for item in frame.to_dict("records"):
            interval = f"{item['low']:.4g} to {item['high']:.4g}"
            unit = str(item["unit"] or "")
            rows.append([name, item["target"], item["metric"], item["value"], interval, unit])
    for row in rows:
        row[3] = (f"{row[3]:.4g}", float(row[3]))
    columns = ("run", "target", "metric", "value", "95 % interval", "unit")
    note = "Intervals: percentile bootstrap over the molecules of the test part."
    return [paragraph(note), table(columns, rows)]


def _curves(page: Page, runs: Sequence[Run]) -> list[str]:
    figure = make_subplots(
        cols=2, horizontal_spacing=0.1, subplot_titles=("training loss", "validation score")
    )
    for number, run in enumerate(runs):
        metrics, score = run.metrics(), str(run.report()["score"])
        for column, key in enumerate(dict.fromkeys(("loss", score)), start=1):
            _line(figure, metrics, key, run.name, PALETTE[number % len(PALETTE)], column)
    figure.update_xaxes(title="epoch")
    return [page.figure(style(figure, 380), "training loss and validation score per epoch")]


def _line(
    figure: go.Figure, metrics: pd.DataFrame, key: str, name: str, colour: str, column: int
) -> None:
    figure.add_scatter(
        x=(metrics["epoch"] + 1).tolist(),
        y=metrics[key].tolist(),
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=column == 1,
        line={"color": colour, "width": 2},
        marker={"size": 5},
        row=1,
        col=column,
    )


def _pretraining(page: Page, run: Run) -> list[str]:
    metrics = run.metrics()
    names = [str(name) for name in metrics.columns]
    terms = [name for name in names if name.startswith("loss_")] or ["loss"]
    shares = [name for name in names if name.endswith("accuracy") and metrics[name].notna().any()]
    figure = make_subplots(
        cols=2, horizontal_spacing=0.1, subplot_titles=("loss of each term", "accuracy")
    )
    for column, keys in enumerate((terms, shares), start=1):
        for number, key in enumerate(keys):
            label = key.removeprefix("loss_").removesuffix("_accuracy").replace("_", " ")
            colour = PALETTE[number % len(PALETTE)]
            figure.add_scatter(
                x=(metrics["epoch"] + 1).tolist(),
                y=metrics[key].tolist(),
                mode="lines+markers",
                name=label if column == 1 else f"{label} (accuracy)",
                line={"color": colour, "width": 2, "dash": "solid" if column == 1 else "dot"},
                marker={"size": 5},
                row=1,
                col=column,
            )
    figure.update_xaxes(title="epoch")
    return [page.figure(style(figure, 400), f"pre-training curves of {run.name}")]


def _parity(page: Page, run: Run) -> list[str]:
    """Predicted against true values of every regression target; classes as score histograms."""
    predictions = pd.read_parquet(run.folder / "predictions.parquet")
    summary = pd.read_parquet(run.folder / "properties.parquet")
    # the first metric of a target is the one that it is judged by
    summary = summary.drop_duplicates("target").set_index("target")
    names = [name for name in summary.index if name in set(predictions["target"])][:12]
    columns = min(3, max(1, len(names)))
    n_rows = -(-len(names) // columns)
    figure = make_subplots(rows=n_rows, cols=columns, subplot_titles=names, vertical_spacing=0.09)
    for number, name in enumerate(names):
        own = predictions[predictions["target"] == name].dropna(subset=["value", "prediction"])
        place = {"row": number // columns + 1, "col": number % columns + 1}
        if summary.loc[name, "metric"] == "mae":
            _scatter(figure, own, str(summary.loc[name, "unit"] or ""), place)
        else:
            _classes(figure, own, place)
    note = (
        "Numbers: predicted against true value, line of equality. Classes: predicted probability."
    )
    return [
        paragraph(note),
        page.figure(style(figure, 90 + 270 * n_rows), f"predictions of {run.name}"),
    ]


def _scatter(figure: go.Figure, own: pd.DataFrame, unit: str, place: dict[str, int]) -> None:
    kept = own.iloc[np.linspace(0, len(own) - 1, min(len(own), MOST_POINTS)).astype(int)]
    low, high = float(kept["value"].min()), float(kept["value"].max())
    figure.add_scattergl(
        x=kept["value"].tolist(),
        y=kept["prediction"].tolist(),
        text=kept["identifier"].astype(str).tolist(),
        mode="markers",
        marker={"size": 4, "color": BLUE, "opacity": 0.5},
        hovertemplate="%{text}<br>true %{x:.5g}, predicted %{y:.5g} " + unit + "<extra></extra>",
        showlegend=False,
        **place,
    )
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": PALETTE[4], "width": 1},
        hoverinfo="skip",
        showlegend=False,
        **place,
    )


def _classes(figure: go.Figure, own: pd.DataFrame, place: dict[str, int]) -> None:
    for value, colour in ((0.0, PALETTE[6]), (1.0, PALETTE[4])):
        figure.add_histogram(
            x=own.loc[own["value"] == value, "prediction"].tolist(),
            marker_color=colour,
            opacity=0.65,
            name=f"label {value:.0f}",
            histnorm="probability",
            xbins={"start": 0.0, "end": 1.0, "size": 0.05},
            showlegend=place == {"row": 1, "col": 1},
            **place,
        )
    figure.update_layout(barmode="overlay")


def _provenance(run: Run) -> str:
    report = {k: v for k, v in run.report().items() if isinstance(v, int | float | str)}
    return facts([("run", run.name), *run.inputs.items(), *report.items()])
