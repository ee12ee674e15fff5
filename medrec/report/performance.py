"""Sections about how models score: comparison, frontier, training, calibration, pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from medrec.evaluation.compare import PRIMARY, Comparison, load_rows
from medrec.evaluation.describe import reliability
from medrec.report import figures
from medrec.report.overview import NO_RUN
from medrec.report.page import Page, facts, paragraph, table
from medrec.runs import Run

_HEADINGS = {
    "jaccard": "Jaccard",
    "f1": "F1",
    "prauc": "PRAUC",
    "ddi_rate": "DDI rate",
    "mean_n_drugs": "drugs",
}
_IN_CAPTION = ("cohort", "preset", "split", "patients", "visits", "caution")


def titled(comparison: Comparison) -> pd.DataFrame:
    """Table of a comparison whose models are named apart."""
    return comparison.table.assign(model=comparison.titles())


# --------------------------------------------------------------------------- comparison


def comparison_section(page: Page, comparison: Comparison | None) -> list[str]:
    """HTML parts: intervals as a figure, the table with its header, how it is counted."""
    if comparison is None:
        return [paragraph(NO_RUN)]
    known, header = comparison.facts, comparison.header
    models = titled(comparison)
    figure = figures.intervals(
        models,
        {
            "ddi_rate": [
                ("ground truth", known["ddi_rate_true"]),
                ("chance", known["ddi_rate_chance"]),
            ],
            "mean_n_drugs": [("ground truth", known["mean_n_drugs_true"])],
        },
    )
    rows = [
        _model_row(row, comparison.reference) for row in models.to_dict("records")
    ]  # fmt: skip
    rows += _context_rows(known)
    columns = ["model", *(_HEADINGS[n] for n in PRIMARY), "Δ Jaccard", "p", "numbers", "s"]
    more = [(name, value) for name, value in header.items() if name not in _IN_CAPTION]
    reference = models.loc[models["run"] == comparison.reference, "model"].iloc[0]
    return [
        page.figure(figure, "metrics with intervals"),
        table(columns, rows, caption=_caption(header)),
        paragraph(
            "Brackets: 95 % interval from 10,000 bootstrap resamples of the test patients. "
            f"Δ: difference to {reference}, on the same resamples; p: Wilcoxon signed-rank test of "
            "the patients' Jaccards against it, corrected after Holm. Jaccard, F1 and PRAUC are "
            "averaged over the visits of a patient, then over patients; the DDI rate is pooled "
            "over drug pairs. Drugs: classes per visit; numbers: what a model stores, learned or "
            "counted; s: seconds of training.",
            "note",
        ),
        facts(more),
    ]


def _caption(header: Mapping[str, Any]) -> str:
    return (
        f"{header['cohort']} · preset {header['preset']} · split {header['split']} · patients: "
        f"{header['patients']} · visits: {header['visits']}"
    )


def _model_row(row: Mapping[Any, Any], reference: str) -> list[Any]:
    cells: list[Any] = [row["model"]]
    for name in PRIMARY:
        digits = 1 if name == "mean_n_drugs" else 3
        value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
        cells.append((f"{value:.{digits}f}\n[{low:.{digits}f}, {high:.{digits}f}]", float(value)))
    numbers, seconds = row["n_parameters"], row["seconds"]
    return [
        *cells,
        _difference(row, reference),
        _p(row["jaccard_p_holm"]),
        _MISSING if pd.isna(numbers) else (f"{numbers:,.0f}", float(numbers)),
        _MISSING if pd.isna(seconds) else (f"{seconds:.1f}", float(seconds)),
    ]


_MISSING: tuple[str, float] = ("–", float("nan"))


def _difference(row: Mapping[Any, Any], reference: str) -> Any:
    if row["run"] == reference:
        return ("reference", 0.0)
    value, low, high = (row[f"jaccard_difference{end}"] for end in ("", "_low", "_high"))
    return (f"{value:+.3f}\n[{low:+.3f}, {high:+.3f}]", float(value))


def _p(value: float) -> tuple[str, float]:
    if pd.isna(value):
        return _MISSING
    return ("< 0.001" if value < 0.001 else f"{value:.3f}", float(value))


def _context_rows(known: Mapping[str, Any]) -> list[list[Any]]:
    """Ground truth and chance as rows of the table, with what they have."""
    empty: list[Any] = [_MISSING] * 4
    rates = (
        ("ground truth", known["ddi_rate_true"]),
        ("random sets", known["ddi_rate_chance"]),
        ("random sets, drugs as frequent", known["ddi_rate_chance_by_frequency"]),
    )
    rows = [
        [title, *[_MISSING] * 3, (f"{rate:.3f}", float(rate)), _MISSING, *empty]
        for title, rate in rates
    ]
    drugs = float(known["mean_n_drugs_true"])
    rows[0][PRIMARY.index("mean_n_drugs") + 1] = (f"{drugs:.1f}", drugs)
    return rows


# --------------------------------------------------------------------------- frontier


def frontier_section(page: Page, comparison: Comparison | None, tune_run: Run | None) -> list[str]:
    """HTML parts: Jaccard against DDI rate, of models and of the trials of a search."""
    if comparison is None:
        return [paragraph(NO_RUN)]
    trials = None
    if tune_run is not None:
        trials = pd.read_parquet(tune_run.folder / "trials.parquet")
    known = comparison.facts
    figure = figures.frontier(
        trials, titled(comparison), known["ddi_rate_true"], known["ddi_rate_chance"]
    )
    parts = [page.figure(figure, "Jaccard against DDI rate")]
    if trials is None:
        return [*parts, paragraph("No search was given, so there are no trials.", "note")]
    text = (
        "Up and left is better. Trials are scored on the validation part, models on the test part: "
        "the two are shown together for orientation, not for comparison. Bars: 95 % intervals."
    )
    return [*parts, paragraph(text, "note")]


# --------------------------------------------------------------------------- curves


def training_section(page: Page, named: Mapping[str, Run]) -> list[str]:
    """HTML parts: loss and validation metrics per epoch.

    Parameters
    ----------
    named : mapping of str to Run
        Runs by their names on the page.
    """
    curves = {label: run.metrics() for label, run in named.items()}
    learned = {
        name: t for name, t in curves.items() if "train_loss" in t.columns and len(t) > 1
    }  # fmt: skip
    if not learned:
        return [paragraph("No model with epochs was given.")]
    best = {
        label: int(report["best_epoch"])
        for label, run in named.items()
        for report in [run.report()]
        if "best_epoch" in report
    }
    chosen = ", ".join(f"{label}: epoch {epoch}" for label, epoch in best.items())
    return [
        page.figure(figures.training(learned, best), "training curves"),
        paragraph(f"Selected on validation Jaccard (dots): {chosen}.", "note"),
    ]


def calibration_section(
    page: Page, comparison: Comparison | None, runs: Sequence[Run]
) -> list[str]:
    """HTML parts: reliability plot of each model, and how many scores a bin has."""
    if comparison is None:
        return [paragraph(NO_RUN)]
    # of several runs of a model the first: bins of other seeds are other models' scores
    firsts = [str(names).split(", ")[0] for names in comparison.table["runs"]]
    by_name = {run.name: run for run in runs}
    tables = {
        title: reliability(load_rows(by_name[name]))
        for title, name in zip(comparison.titles(), firsts, strict=True)
    }
    return [
        page.figure(figures.reliability(tables), "reliability plot"),
        paragraph(
            "Scores of the test part in ten bins: on the dashed line, of the drugs with score 0.3 "
            "three in ten were given. Larger points are bins with more scores. Counting baselines "
            "give frequencies, not probabilities of a visit.",
            "note",
        ),
    ]


def pretraining_section(page: Page, run: Run | None) -> list[str]:
    """HTML parts: curves of a pre-training run, and its report."""
    if run is None:
        return [paragraph("No pre-training run was given.")]
    return [
        page.figure(figures.pretraining(run.metrics()), "pre-training curves"),
        facts((name.replace("_", " "), _fact(value)) for name, value in run.report().items()),
    ]


def _fact(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else value
