"""HTML views of cohorts, runs, feature tables, comparisons and recommenders for notebooks.

Counts and metrics only: no view holds a value of a patient. Views are built of
`quantum.show`, which escapes every text and sets no colours of its own.
"""

from __future__ import annotations

from typing import Any

from quantum.show import facts_html, note_html, table_html

_METRICS = (
    ("jaccard", "Jaccard"),
    ("f1", "F1"),
    ("prauc", "PRAUC"),
    ("ddi_rate", "DDI rate"),
    ("mean_n_drugs", "drugs per visit"),
)
_SHOWN_DRUGS = 10


def cohort_html(cohort: Any) -> str:
    """View of a `medrec.data.cohort.Cohort`: counts, interactions, funnel."""
    counts = cohort.counts
    rows = [
        ("preset", cohort.config.preset),
        ("source", cohort.config.source.format),
        ("patients", cohort.n_patients),
        ("visits", counts.get("visits")),
        ("drug classes", counts.get("drugs")),
        ("splits", cohort.n_splits),
        *((f"DDI {name}", value) for name, value in cohort.ddi.items()),
        ("digest", cohort.digest[:16]),
    ]
    funnel = table_html(cohort.funnel.columns, cohort.funnel.itertuples(index=False), "funnel")
    below = "".join(note_html(text) for text in cohort.notes)
    return facts_html(f"Cohort {cohort.name}", rows, beside=[funnel], below=below)


def run_html(run: Any) -> str:
    """View of a `medrec.runs.Run`: status, and the numbers of a finished run."""
    record = run.record()
    rows = [("kind", run.kind), ("status", record.get("status"))]
    beside = []
    if run.is_finished:
        report = run.report()
        shown = ("model", "split", "seed", "n_parameters", "best_epoch", "threshold", "seconds")
        rows += [(name.replace("_", " "), report[name]) for name in shown if name in report]
        beside = [test_table(report)] if isinstance(report.get("test"), dict) else []
    return facts_html(f"Run {run.name}", rows, beside=beside)


def test_table(report: dict[str, Any]) -> str:
    """Primary metrics of the test part, with chance beside the DDI rate."""
    test = report["test"]
    rows = [(title, test[name]) for name, title in _METRICS if name in test]
    if "ddi_rate_true" in test:
        rows.append(("DDI rate of ground truth", test["ddi_rate_true"]))
    if "ddi_rate_chance" in report:
        rows.append(("DDI rate of chance", report["ddi_rate_chance"]))
    return table_html(("test part", ""), rows)


def features_html(table: Any) -> str:
    """View of a `medrec.molecules.features.FeatureTable`: coverage and feature sets."""
    sets = table.manifest.get("feature_sets", {})
    rows = [
        *table.coverage().items(),
        ("features", table.n_features),
        ("digest", table.digest[:16]),
    ]
    beside = [table_html(("set", "features"), sets.items())] if sets else []
    return facts_html(f"Feature table {table.folder.name}", rows, beside=beside)


def comparison_html(comparison: Any) -> str:
    """View of a `medrec.evaluation.compare.Comparison`: header, table, caution."""
    header = dict(comparison.header)
    caution = str(header.pop("caution", ""))
    shown = comparison.display()
    table = table_html(shown.columns, shown.itertuples(index=False))
    below = table.replace("\n", "<br>") + (note_html(caution) if caution else "")
    return facts_html("Comparison on the test part", header.items(), below=below)


def recommender_html(model: Any) -> str:
    """View of a `medrec.estimator.Recommender`: what was set, and the numbers once fitted."""
    rows = [(name, value) for name, value in model.get_params().items() if value is not None]
    if not model.is_fitted:
        return facts_html(f"Recommender {model.name}, not fitted", _plain(rows))
    report = model.run_.report()
    rows += [("run", model.run_.name), ("cohort", model.cohort_.name)]
    caution = note_html("Research use only, not for clinical decisions.")
    title = f"Recommender {model.name}, fitted"
    return facts_html(title, _plain(rows), beside=[test_table(report)], below=caution)


def _plain(rows: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Parameters that are no plain values are shown by the name of their type."""
    plain = (str, int, float, bool, dict)
    return [
        (name, value if isinstance(value, plain) else type(value).__name__) for name, value in rows
    ]


def recommendation_html(recommendation: Any) -> str:
    """View of a `medrec.estimator.Recommendation`: best drugs, counts of pairs and warnings."""
    drugs = recommendation.drugs
    rows = [
        ("model", recommendation.model),
        ("selected", int(drugs["selected"].sum())),
        ("interacting pairs", len(recommendation.interactions)),
        ("warnings", len(recommendation.warnings)),
    ]
    best = drugs.head(_SHOWN_DRUGS)
    caption = f"first {len(best)} of {len(drugs)}"
    beside = [table_html(best.columns, best.itertuples(index=False), caption)]
    return facts_html(
        "Recommendation for the latest visit",
        rows,
        beside=beside,
        below=note_html(recommendation.caution),
    )
