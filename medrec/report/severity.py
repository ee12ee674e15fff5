"""Section about interactions by grade of severity: models, truth, chance, and which pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from medrec.data.cohort import Cohort
from medrec.data.ddi import SEVERITY_NAMES
from medrec.data.schema import Vocabulary
from medrec.evaluation.by_class import RecommendedSets, pair_counts
from medrec.evaluation.compare import Comparison, load_rows
from medrec.evaluation.metrics import SEVERITIES
from medrec.evaluation.severity import severity_context
from medrec.explain.drawing import SEVERITY_COLOURS
from medrec.molecules.drugs import ddi_matrix, severity_matrix
from medrec.report.ddi_sources import pair_sources, source_title
from medrec.report.figures import style
from medrec.report.learned import Models
from medrec.report.page import Page, paragraph, table
from medrec.report.predicted import predict_best
from medrec.runs import Run

SHOWN_PAIRS = 15
TRUTH, CHANCE = "physicians (ground truth)", "chance"
BY_FREQUENCY = "chance, drugs as frequent"
_WORST_FIRST = tuple(reversed(SEVERITIES))


def severity_section(
    page: Page,
    cohort: Cohort,
    comparison: Comparison | None,
    runs: Sequence[Run],
    models: Models | None = None,
) -> list[str]:
    """HTML parts: pairs by grade per model, beside truth and chance; the most frequent pairs.

    Parameters
    ----------
    models : Models, optional
        Runs of the comparison that are loaded already; see `medrec.report.predicted.predict_best`.
    """
    if comparison is None or not runs:
        return [paragraph("No training run was given.")]
    page.use("cases.css")
    return [
        *_by_grade(page, cohort, comparison, runs),
        "<h3>Most frequent interacting pairs</h3>",
        *_pairs(cohort, comparison, runs, models),
    ]


def graded(comparison: Comparison) -> bool:
    """Tell whether all runs of a comparison counted pairs by grade."""
    columns = [f"ddi_rate_severity_{grade}" for grade in SEVERITIES]
    return all(name in comparison.table for name in columns) and bool(
        comparison.table[columns].notna().all(axis=None)
    )


def grade_table(cohort: Cohort, comparison: Comparison, runs: Sequence[Run]) -> pd.DataFrame:
    """Rates of each grade: its pairs among all pairs of the sets.

    Returns
    -------
    pandas.DataFrame
        One row per kind of sets and grade: ``sets`` (models best first, `TRUTH`, `BY_FREQUENCY`,
        `CHANCE`), ``grade``, ``rate``, ``low``, ``high``; chance has no interval (NaN).
    """
    by_split = {int(run.report()["split"]): run for run in reversed(runs)}
    context = severity_context(cohort, {s: load_rows(run) for s, run in sorted(by_split.items())})
    rows: list[tuple[str, int, float, float, float]] = []
    named = comparison.table.assign(title=comparison.titles())
    for row in named.sort_values("jaccard", ascending=False, kind="stable").to_dict("records"):
        for grade in SEVERITIES:
            limits = (row[f"ddi_rate_severity_{grade}{end}"] for end in ("", "_low", "_high"))
            rows.append((str(row["title"]), grade, *limits))
    lines = context.to_dict("records")
    rows += [(TRUTH, c["grade"], c["truth"], c["truth_low"], c["truth_high"]) for c in lines]
    for title, key in ((BY_FREQUENCY, "chance_by_frequency"), (CHANCE, "chance")):
        rows += [(title, c["grade"], c[key], np.nan, np.nan) for c in lines]
    return pd.DataFrame(rows, columns=["sets", "grade", "rate", "low", "high"])


def _by_grade(page: Page, cohort: Cohort, comparison: Comparison, runs: Sequence[Run]) -> list[str]:
    if not graded(comparison):
        why = (
            "Interactions from TWOSIDES have no grades"
            if cohort.config.ddi.source == "twosides"
            else "The runs are older than the grades"
        )
        return [
            paragraph(
                f"{why}, so this page cannot say how severe the recommended pairs are: a "
                "contraindicated pair counts like one that needs a note in the file."
            )
        ]
    grades = grade_table(cohort, comparison, runs)
    rates = comparison.table["ddi_rate"].to_list()
    total = dict(zip(comparison.titles(), rates, strict=True))
    facts = comparison.facts
    total |= {
        TRUTH: facts["ddi_rate_true"],
        BY_FREQUENCY: facts["ddi_rate_chance_by_frequency"],
        CHANCE: facts["ddi_rate_chance"],
    }
    least = cohort.config.ddi.min_severity
    headings = [f"{SEVERITY_NAMES[grade]} ({grade})" for grade in _WORST_FIRST]
    return [
        paragraph(
            "Share of all drug pairs of the recommended sets that interact, by the grade of the "
            f"interaction. The DDI rate elsewhere on this page counts severity {least} or worse. "
            "A pair of classes has the highest grade of any two of its substances, so read the "
            "grades beside those of the physicians' own sets."
        ),
        page.figure(stacked(grades), "interacting pairs by grade of severity"),
        table(["sets", "DDI rate", *headings], _grade_rows(grades, total)),
        paragraph(
            "Brackets: 95 % interval from bootstrap resamples of the test patients; chance is "
            "computed and has none. Chance draws any class with equal probability; with drugs as "
            "frequent as they are, each class is drawn as often as it is given, independently.",
            "note",
        ),
    ]


def _grade_rows(grades: pd.DataFrame, total: dict[str, float]) -> list[list[Any]]:
    rows = []
    for title, part in grades.groupby("sets", sort=False):
        by_grade = part.set_index("grade").to_dict("index")
        cells: list[Any] = [title, (f"{100 * total[str(title)]:.2f} %", total[str(title)])]
        for grade in _WORST_FIRST:
            found = by_grade[grade]
            text = f"{100 * found['rate']:.2f} %"
            if found["low"] == found["low"]:
                text += f"\n[{100 * found['low']:.2f}, {100 * found['high']:.2f}]"
            cells.append((text, found["rate"]))
        rows.append(cells)
    return rows


def stacked(grades: pd.DataFrame) -> go.Figure:
    """Bars of `grade_table`, one per kind of sets, the worst grade at the axis."""
    figure = go.Figure()
    for grade in _WORST_FIRST:
        part = grades[grades["grade"] == grade]
        name = SEVERITY_NAMES[grade]
        figure.add_bar(
            x=(100 * part["rate"]).tolist(),
            y=part["sets"].tolist(),
            orientation="h",
            name=f"{name} ({grade})",
            marker={"color": SEVERITY_COLOURS[grade], "line": {"width": 1, "color": "#ffffff"}},
            customdata=[_interval(row) for row in part.to_dict("records")],
            hovertemplate="%{y}<br>" + name + ": %{x:.2f} % of pairs%{customdata}<extra></extra>",
        )
    n = grades["sets"].nunique()
    height = 150 + 34 * n
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(title="drug pairs that interact, %", rangemode="tozero")
    return style(figure, height).update_layout(
        barmode="stack",
        bargap=0.28,
        margin={"l": 20, "t": 36, "b": 90},
        legend={"y": -66 / (height - 126), "traceorder": "normal"},
    )


def _interval(row: dict[Any, Any]) -> str:
    if row["low"] != row["low"]:
        return ""
    return f" [{100 * row['low']:.2f}, {100 * row['high']:.2f}]"


# --------------------------------------------------------------------------- pairs


def _pairs(
    cohort: Cohort, comparison: Comparison, runs: Sequence[Run], models: Models | None
) -> list[str]:
    predicted, notes = predict_best(comparison, runs, 1, models)
    if not predicted:
        return [paragraph("No run could be loaded, so no pair can be named."), *notes]
    best = predicted[0]
    drugs = Vocabulary(best.sets.codes)
    counts = pair_counts(best.sets, ddi_matrix(cohort, drugs))
    if counts.empty:
        return [paragraph("No interacting pair was recommended or given."), *notes]
    n_visits = len(best.sets.visit)
    n_recommended, n_given = (counts[name].sum() / n_visits for name in ("recommended", "given"))
    least = cohort.config.ddi.min_severity
    kind = f" (severity {least} or worse)" if cohort.config.ddi.source == "ansm" else ""
    shown = counts[counts["recommended"] > 0].head(SHOWN_PAIRS)
    more = int((counts["recommended"] > 0).sum()) - len(shown)
    text = (
        f"In the {n_visits:,} visits of the test part, {best.title} recommends "
        f"{n_recommended:.1f} interacting pairs per visit{kind}; physicians gave {n_given:.1f}."
    )
    columns = ["pair", "severity", "recommended", "given", "both", source_title(cohort)]
    if shown.empty:
        return [paragraph(text), *notes]
    return [
        paragraph(text),
        f'<div class="pairs">{table(columns, _pair_rows(cohort, best.sets, shown))}</div>',
        paragraph(
            f"Visits in which {best.title} recommends the pair, physicians gave it, and both. "
            + (f"{more:,} less frequent pairs are not listed. " if more else "")
            + "Interactions are between classes; the substances named are one pair with the "
            "highest grade, not what was given.",
            "note",
        ),
        *notes,
    ]


def _pair_rows(cohort: Cohort, sets: RecommendedSets, shown: pd.DataFrame) -> list[list[Any]]:
    names = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
    severity = severity_matrix(cohort, Vocabulary(sets.codes))
    keys = [
        tuple(sorted((sets.codes[a], sets.codes[b])))
        for a, b in zip(shown["a"], shown["b"], strict=True)
    ]
    sources = pair_sources(cohort, [(a, b) for a, b in keys])
    rows = []
    for (a, b), row in zip(keys, shown.to_dict("records"), strict=True):
        grade = int(severity[row["a"], row["b"]])
        visits = [
            (f"{row[name]:,}\n{100 * row[name] / len(sets.visit):.1f} %", int(row[name]))
            for name in ("recommended", "given", "both")
        ]
        pair = f"{a} {names.get(a, '')} – {b} {names.get(b, '')}"
        rows.append([pair, (f"{grade} {SEVERITY_NAMES[grade]}", grade), *visits, sources[a, b]])
    return rows
