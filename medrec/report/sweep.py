"""Section of the report about a search of settings; the page of its own is `search_page`."""

from __future__ import annotations

from medrec.report.page import Page, escape, paragraph
from medrec.report.search_importance import importance
from medrec.report.search_page import (
    BRUSH,
    best_parts,
    importance_parts,
    pair_parts,
    parallel_parts,
    progress_parts,
    summary_parts,
)
from medrec.report.search_table import SearchTrials
from medrec.runs import Run
from quantum.base import InputError


def sweep_section(page: Page, run: Run | None) -> list[str]:
    """HTML parts: all trials on parallel axes, what mattered, pairs of settings, Pareto, best.

    Parameters
    ----------
    page : Page
        Gets the figures.
    run : Run or None
        Of kind ``tune``; without one, or without trials, a sentence says so.
    """
    if run is None:
        return [paragraph("No search was given, so there are no trials.")]
    try:
        search = SearchTrials.load(run)
    except InputError as error:
        return [paragraph(f"{error}.")]
    ranks = importance(search)
    parts = [*summary_parts(run, search, ranks), "<h3>All trials</h3>"]
    for goal in search.objectives:
        parts += [paragraph(f"Colour: {goal.label} ({goal.better}).")]
        parts += parallel_parts(page, search, goal)
    parts += [
        paragraph(BRUSH, "note"),
        "<h3>What mattered</h3>",
        *importance_parts(page, search, ranks),
        *pair_parts(page, search, ranks),
        "<h3>Trade-off and progress</h3>",
        *progress_parts(page, search),
        "<h3>Best configuration</h3>",
    ]
    about, *more = best_parts(run, search)
    title = escape("configuration that can be trained with medrec train")
    return [*parts, about, f"<details><summary>{title}</summary>{''.join(more)}</details>"]
