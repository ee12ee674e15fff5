"""One page about a search: what was tried, what was best, what mattered."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medrec.report import search_figures as draw
from medrec.report import search_lines
from medrec.report.page import Page, escape, facts, paragraph, table
from medrec.report.search_importance import FEWEST, PER_SETTING, importance, is_few
from medrec.report.search_table import Objective, SearchTrials, missing, text_of
from medrec.runs import Run
from quantum.base import now_utc, write_text_atomic

BEST = "best.yaml"
BRUSH = (
    "Parallel axes: one line per trial, orange is better. Drag over an axis to keep the trials "
    "inside; with shift, over one more; a double click brings all back."
)


def write_search_page(run: Run, out: Path, second: pd.DataFrame | None = None) -> Path:
    """Write one self-contained HTML page about a search.

    Parameters
    ----------
    run : Run
        Of kind ``tune``; may be unfinished if it has a table of trials.
    out : Path
        File to write; its folder is created.
    second : pandas.DataFrame, optional
        Importance by another method: ``objective``, ``path``, ``importance``; and its name in
        ``attrs["method"]``.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    InputError
        If the run is no search, or has no trials.
    """
    search = SearchTrials.load(run)
    ranks = importance(search)
    page = Page(f"medrec: search {run.name}", _subtitle(search))
    page.add("Summary", *summary_parts(run, search, ranks))
    page.add("What mattered", *importance_parts(page, search, ranks, second))
    page.add("Sensitivity", *sensitivity_parts(page, search, ranks))
    page.add("Trade-off and progress", *progress_parts(page, search))
    page.add("Settings and results", *_details(page, search))
    page.add("Trials", _trials(search))
    page.add("Best configuration", *best_parts(run, search))
    page.add("Provenance", *_provenance(run))
    write_text_atomic(out, page.render())
    return out


def _subtitle(search: SearchTrials) -> str:
    goals = ", ".join(f"{goal.label} ({goal.better})" for goal in search.objectives)
    return f"{_count(len(search.trials), 'trial')}, {goals}"


def _by(search: SearchTrials) -> str:
    """Say by what a trial is best, where this page decided it."""
    return f" by {search.objectives[0].label}" if search.chosen is None else ""


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


# --------------------------------------------------------------------------- summary


def summary_lines(search: SearchTrials, ranks: pd.DataFrame) -> list[str]:
    """What came of a search, in sentences.

    Parameters
    ----------
    ranks : pandas.DataFrame
        Of `medrec.report.search_importance.importance`.
    """
    n, best = len(search.trials), search.best()
    varied = ", ".join(dim.label for dim in search.dimensions)
    lines = [f"{_count(n, 'trial')} with other values of: {varied}."]
    if "full_budget" in search.trials:
        early = int((search.trials["full_budget"] == False).sum())  # noqa: E712 - may hold None
        if early:
            lines[0] += (
                f" {early} of them were stopped early; their values are of their last epoch."
            )
    if search.failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in search.failed.items())
        lines.append(f"{_count(sum(search.failed.values()), 'more trial')} failed: {kinds}.")
    values = ", ".join(f"{g.label} {best[g.metric]:.4g}" for g in search.objectives)
    settings = ", ".join(f"{d.label} {text_of(best[d.column])}" for d in search.dimensions)
    lines.append(f"Best{_by(search)}: trial {best['number']} ({values}) with {settings}.")
    if len(search.objectives) > 1:
        front = int(search.trials["pareto"].sum())
        lines.append(
            f"{_count(front, 'trial')} on the Pareto front: no other trial is better in one "
            "objective and as good in all others."
        )
    return [*lines, *_mattered(search, ranks)]


def _mattered(search: SearchTrials, ranks: pd.DataFrame) -> list[str]:
    lines = []
    for goal in search.objectives:
        own = ranks[ranks["objective"] == goal.metric]
        if own.empty or own["importance"].iloc[0] == 0:
            continue
        first = own.iloc[0]
        text = (
            f"{goal.label} depended most on {first['label']}: it alone explains "
            f"{100 * first['importance']:.0f} % of the differences "
            f"({100 * first['low']:.0f} to {100 * first['high']:.0f} % over resampled trials)."
        )
        if len(own) > 1 and own.iloc[1]["high"] >= first["low"]:
            text += f" That it comes before {own.iloc[1]['label']} is not certain."
        lines.append(text)
    return lines


def _caution(search: SearchTrials) -> str | None:
    n, n_settings = len(search.trials), len(search.dimensions)
    if n < FEWEST:
        return f"{_count(n, 'trial')}: too few to say what mattered; expected {FEWEST} or more."
    if is_few(search):
        return (
            f"{n} trials for {_count(n_settings, 'setting')} are few: which setting mattered, and "
            "which trial is best, may change with more trials or other seeds; expected about "
            f"{PER_SETTING * n_settings}."
        )
    return None


def summary_parts(run: Run, search: SearchTrials, ranks: pd.DataFrame) -> list[str]:
    """HTML parts: what came of the search, how far to trust it, and its best values."""
    best = search.best()
    tiles = [(f"{best[g.metric]:.4g}", f"{g.label}, best trial") for g in search.objectives]
    tiles += [(str(len(search.trials)), "complete trials")]
    tiles += [(str(sum(search.failed.values())), "failed trials")] if search.failed else []
    cards = "".join(
        f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles
    )
    parts = [paragraph(line) for line in summary_lines(search, ranks)]
    if not run.is_finished:
        parts.append(paragraph(f"The search is not finished: {run.record()['status']}.", "caution"))
    caution = _caution(search)
    parts += [paragraph(caution, "caution")] if caution else []
    note = (
        "Trials are compared on the validation part. The best of many is better there than it will "
        "be on other patients or molecules: only a test part says how good it is."
    )
    return [*parts, f'<div class="tiles">{cards}</div>', paragraph(note, "note")]


# --------------------------------------------------------------------------- figures


def importance_parts(
    page: Page, search: SearchTrials, ranks: pd.DataFrame, second: pd.DataFrame | None = None
) -> list[str]:
    """HTML parts: how much each setting explains, with the method and its spread."""
    if ranks.empty:
        return [paragraph("Too few trials to say what mattered.")]
    other: dict[Any, Any] = {}
    if second is not None:
        keys = zip(second["objective"], second["path"], strict=True)
        other = dict(zip(keys, second["importance"], strict=True))
    goals = {goal.metric: goal.label for goal in search.objectives}
    rows = []
    for row in ranks.to_dict("records"):
        value = row["importance"]
        shown = (f"{value:.3f} [{row['low']:.3f}, {row['high']:.3f}]", value)
        cells: list[Any] = [goals[row["objective"]], row["label"], row["path"], shown]
        if other:
            found = other.get((row["objective"], row["path"]))
            cells.append(("-", -1.0) if found is None else (f"{found:.3f}", float(found)))
        rows.append(cells)
    columns = ["objective", "setting", "path", "share of variance"]
    columns += [str(second.attrs.get("method", "second method"))] if second is not None else []
    return [
        page.figure(draw.importance_bars(ranks, search.objectives), "importance of the settings"),
        paragraph(
            "Share of the variance of all trials that a setting explains alone, averaged over the "
            "others: functional ANOVA on a random forest (Hutter, Hoos, Leyton-Brown 2014). Lines "
            "and brackets: 10 to 90 % of the forest's trees, each grown on a resample of the "
            "trials. What is missing to 1 are joint effects of settings.",
            "note",
        ),
        table(columns[: len(rows[0])], rows),
    ]


def sensitivity_parts(page: Page, search: SearchTrials, ranks: pd.DataFrame) -> list[str]:
    """HTML parts: each objective against each setting, then by pairs of settings."""
    parts = [
        page.figure(draw.sensitivity(search), "sensitivity to each setting"),
        paragraph(
            "Large points: mean over all trials with that value; bars: one standard deviation of "
            "these trials, that is, how much the other settings move the result. Small points: "
            "single trials. If the search did not try all combinations, values were tried with "
            "different others, and means mix both effects.",
            "note",
        ),
    ]
    return [*parts, *pair_parts(page, search, ranks)]


def pair_parts(page: Page, search: SearchTrials, ranks: pd.DataFrame) -> list[str]:
    """HTML parts: heat maps of each objective over pairs of the settings that mattered most."""
    parts: list[str] = []
    by_rank = ranks.groupby("path")["importance"].mean().sort_values(ascending=False).index
    order = {path: i for i, path in enumerate(by_rank)}
    dims = sorted(search.dimensions, key=lambda dim: order.get(dim.path, len(order)))
    for goal in search.objectives:
        figure = draw.pair_maps(search, goal, dims)
        if figure is not None:
            parts.append(f"<h3>{escape(goal.label)} by two settings</h3>")
            parts.append(page.figure(figure, f"{goal.label} by pairs of settings"))
    if parts:
        text = "Mean of the trials in a cell; yellow is better; empty cells were not tried."
        text += " The four settings that mattered most." if len(dims) > 4 else ""
        parts.append(paragraph(text, "note"))
    return parts


def progress_parts(page: Page, search: SearchTrials) -> list[str]:
    """HTML parts: Pareto front of two objectives, and all of them by number of the trial."""
    parts = []
    if len(search.objectives) > 1:
        y, x = search.objectives[:2]
        parts.append(page.figure(draw.pareto_front(search, x, y), "Pareto front"))
    return [*parts, page.figure(draw.history(search), "objectives by number of the trial")]


def parallel_parts(page: Page, search: SearchTrials, goal: Objective) -> list[str]:
    """HTML parts: all trials on parallel axes, coloured by an objective, with a brush."""
    holder = page.figure(search_lines.parallel(search, goal), f"{goal.label}, parallel axes")
    page.use("sweep.js")
    return [holder]


def _details(page: Page, search: SearchTrials) -> list[str]:
    parts = []
    for goal in search.objectives:
        parts.append(f"<h3>{escape(goal.label)}</h3>")
        points = search_lines.slices(search, goal)
        parts += parallel_parts(page, search, goal)
        parts.append(page.figure(points, f"{goal.label} by setting"))
    return [paragraph(f"{BRUSH} Below: one point per trial.", "note"), *parts]


# --------------------------------------------------------------------------- table and files


def _trials(search: SearchTrials) -> str:
    names = {dim.column: dim.label for dim in search.dimensions}
    names |= {goal.metric: goal.label for goal in search.objectives}
    names |= {f"std.{goal.metric}": f"± {goal.label}" for goal in search.objectives}
    names |= {"epochs": "epochs", "full_budget": "all epochs", "seconds": "seconds"}
    names = {"number": "trial"} | names | {"pareto": "Pareto"}
    present = [name for name in names if name in search.trials]
    rows = [[_cell(row[name]) for name in present] for row in search.trials.to_dict("records")]
    return table([names[name] for name in present], rows)


def _cell(value: Any) -> Any:
    if missing(value):
        return ("-", -1.0)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (text_of(value), value) if isinstance(value, int | float) else value


def best_config(run: Run, search: SearchTrials) -> str:
    """YAML of the best trial: the file that the search left, or its base with the settings set."""
    path = run.folder / BEST
    if path.exists():
        return path.read_text(encoding="utf-8")
    tree = copy.deepcopy(dict(run.config().get("base", {})))
    for dotted, value in search.params(search.best()).items():
        *parents, last = dotted.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def best_parts(run: Run, search: SearchTrials) -> list[str]:
    """HTML parts: the best trial, its run on the test part, and its configuration."""
    best = search.best()
    about = f"Trial {best['number']}, the best{_by(search)}."
    report = run.report() if run.is_finished else {}
    parts = [paragraph(about)]
    if "best_run" in report:
        parts.append(paragraph(f"Its run, with results on the test part: {report['best_run']}."))
    return [*parts, f"<pre>{escape(best_config(run, search))}</pre>"]


def _provenance(run: Run) -> list[str]:
    record = run.record()
    code = record.get("provenance", {}).get("code", {})
    pairs = [
        ("page made", now_utc()),
        ("search", f"{run.name}, digest {run.digest}"),
        ("status", record["status"]),
        *((f"{name} digest", value) for name, value in run.inputs.items()),
        ("code", f"{code.get('version', 'unknown')}, commit {code.get('commit') or 'unknown'}"),
        ("seeds", record.get("seeds") or "unknown"),
    ]
    text = escape(yaml.safe_dump(run.config(), sort_keys=False, allow_unicode=True))
    return [
        facts(pairs),
        f"<details><summary>configuration of the search</summary><pre>{text}</pre></details>",
    ]
