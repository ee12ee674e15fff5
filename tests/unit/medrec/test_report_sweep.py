"""The report's section about a search: few trials, no trials, labels that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medrec.config import TuneConfig
from medrec.report import search_figures, search_lines
from medrec.report.page import Page
from medrec.report.search_axes import LINE_SCALE, ink_on
from medrec.report.search_table import SearchTrials
from medrec.report.sweep import sweep_section
from medrec.runs import Home, Run

EVIL = "<script>document.body.dataset.error='run'</script>"
GOALS = [{"metric": "jaccard", "mode": "max"}, {"metric": "ddi_rate", "mode": "min"}]
SPACE = {
    "model.d_model": {"type": "choice", "values": [32, 64]},
    "optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
}


def trials(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "number": range(n),
            "params.model.d_model": rng.choice([32, 64], n),
            "params.optim.lr": 10 ** rng.uniform(-4, -2, n),
            "jaccard": rng.uniform(0.2, 0.5, n),
            "ddi_rate": rng.uniform(0.05, 0.2, n),
        }
    )


def search_run(home: Path, table: pd.DataFrame | None) -> Run:
    base = {"name": "b", "model": {"name": "molerec"}}
    config = TuneConfig.model_validate(
        {"name": "s", "base": base, "space": SPACE, "objectives": GOALS}
    )
    run = Run.open(Home(home), "tune", "s", config, {"cohort": "c" * 64})
    with run.recording(seeds={"optuna": 0}):
        if table is not None:
            table.to_parquet(run.folder / "trials.parquet")
        run.finish({"objectives": GOALS, "n_trials": 0, "best": []})
    return run


@pytest.mark.parametrize(("n", "words"), [(6, "6 trials for 2 settings are few"), (2, "too few")])
def test_few_trials_are_shown_and_called_few(tmp_path: Path, n: int, words: str):
    page = Page("p", "q")
    text = "\n".join(sweep_section(page, search_run(tmp_path, trials(n))))
    assert words in text
    for title in ("All trials", "What mattered", "Trade-off and progress", "Best configuration"):
        assert f"<h3>{title}</h3>" in text
    # parallel axes and pairs per objective, front, history; importances with four or more
    assert len(page.figures) == 6 + (n >= 4)


def test_no_search_and_no_trials_are_said(tmp_path: Path):
    assert "No search was given" in sweep_section(Page("p", "q"), None)[0]
    assert "has no trials to show" in sweep_section(Page("p", "q"), search_run(tmp_path, None))[0]


def test_text_of_a_choice_is_escaped(tmp_path: Path):
    table = trials(8).assign(**{"params.model.d_model": [EVIL, "b"] * 4})
    page = Page("p", "q")
    page.add("search", *sweep_section(page, search_run(tmp_path, table)))
    assert EVIL not in page.render()


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    if colour.startswith("#"):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    else:
        parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)]
    low, high = (lambda c: c / 12.92), (lambda c: ((c + 0.055) / 1.055) ** 2.4)
    red, green, blue = (low(c) if c <= 0.04045 else high(c) for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_ink_is_known_at_the_ends_and_readable_between():
    assert ink_on("rgb(0, 32, 76)") == "#ffffff"
    assert ink_on("rgb(253, 231, 55)") == "#000000"
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for grey in range(256):
        colour = f"rgb({grey}, {grey}, {grey})"
        assert contrast(ink_on(colour), colour) >= 4.5


@pytest.mark.parametrize("goal", [0, 1])
def test_labels_of_cells_follow_the_cell(goal: int):
    table = pd.DataFrame({"params.a": [1, 1, 2, 2], "params.b": [1, 2, 1, 2]})
    table = table.assign(number=range(4), jaccard=[0, 1, 2, 3], ddi_rate=[0, 1, 2, 3])
    search = SearchTrials.from_frame(table, None, GOALS)
    heat, labels = search_figures.pair_maps(search, search.objectives[goal]).data
    found = dict(zip(labels.text, labels.textfont.color, strict=True))
    assert list(found) == ["0", "2", "1", "3"]  # row by row, as the cells
    assert list(heat.z[0]) == [0, 2]
    # dark blue is the worse end, whichever way is better
    dark, bright = ("0", "3") if goal == 0 else ("3", "0")
    assert (found[dark], found[bright]) == ("#ffffff", "#000000")


def test_one_line_per_trial_the_best_on_top():
    search = SearchTrials.from_frame(trials(9), SPACE, GOALS)
    for goal in search.objectives:
        figure = search_lines.parallel(search, goal)
        lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
        ends = [trace.y[len(search.dimensions)] for trace in lines]
        assert ends == sorted(ends, reverse=goal.mode == "min")
        assert contrast(lines[-1].line.color, LINE_SCALE[-1][1]) == pytest.approx(1)
        assert figure.layout.meta["brush"] == 3


@pytest.mark.parametrize("page", ["#ffffff", "#1a2028"])
def test_lines_are_seen_on_both_pages(page: str):
    assert all(contrast(colour, page) >= 2 for _, colour in LINE_SCALE)
