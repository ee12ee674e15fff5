"""The command `medrec sweep-report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.options import (
    DEFAULT_HOME,
    RUNS,
    HomeOption,
    JsonOption,
    QuietOption,
    open_stages,
)


def sweep_report(
    run: Annotated[str, typer.Argument(help="Search, as `tune` printed it.", autocompletion=RUNS)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file to write.")] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Sensitivity figure to write: .html, or .png and .svg with kaleido."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write one self-contained HTML page about a search: best trial, what mattered, all trials.

    For searches of recommenders and of molecule models.
    """
    from medrec.report.search_figures import sensitivity
    from medrec.report.search_importance import importance
    from medrec.report.search_page import summary_lines, write_search_page
    from orchestration.console import frame_table
    from orchestration.frontier import check_figure, write_figure
    from orchestration.sweep import load_search, second_opinion

    stages = open_stages(home, as_json, quiet)
    check_figure(figure)
    found = stages.run(run)
    search = load_search(found)
    path = out or stages.home.reports / f"{found.name}.html"
    write_search_page(found, path, second_opinion(search))
    if figure is not None:
        write_figure(figure, sensitivity(search))
        stages.terminal.say(f"figure: {figure}")
    ranks, best = importance(search), search.best()
    lines = summary_lines(search, ranks)
    document: dict[str, Any] = {
        "run": found.name,
        "report": str(path),
        "figure": None if figure is None else str(figure),
        "n_trials": len(search.trials),
        "failed": search.failed,
        "best_trial": int(best["number"]),
        "best_params": search.params(best),
        "importance": ranks.to_dict("records"),
        "summary": lines,
    }
    shown = ranks.drop(columns="path").rename(columns={"label": "setting"})
    stages.terminal.result(
        document,
        *lines,
        *([frame_table(shown, "share of the variance between trials", 3)] if len(shown) else []),
        f"report: {path}",
    )
