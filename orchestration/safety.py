"""What `medrec evaluate --hard` and `medrec compare --severity` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from medrec.data.ddi import SEVERITY_NAMES
from medrec.runs import Run
from orchestration.console import frame_table, pairs_table
from orchestration.evidence import records

if TYPE_CHECKING:
    from orchestration.stages import Stages


def show_hard(stages: Stages, run: Run, severity: str) -> None:
    """Print what forbidding pairs of a grade or worse costs on the run's test part."""
    from medrec.evaluation.compare import caution
    from medrec.evaluation.hard_mode import EXACT_DRUGS, parse_grade
    from medrec.redecode import Redecoder, decode_hard

    grade = parse_grade(severity)
    result = decode_hard(Redecoder.of(run, stages.home), grade)
    facts = result.facts
    notes = [
        "probabilities and threshold stay, so PRAUC and calibration do too",
        f"connected conflicts of up to {EXACT_DRUGS} drugs are solved exactly, "
        f"{facts['visits_greedy']} visits greedily",
        caution(int(result.rows["patient"].nunique())),
    ]
    shown = [
        ("run", run.name),
        ("forbidden", f"{SEVERITY_NAMES[grade]} ({grade})" + (" and worse" if grade < 4 else "")),
        *((f"forbidden pairs, {name}", _rate(facts, name)) for name in ("before", "after")),
        ("forbidden pairs, ground truth", _rate(facts, "truth")),
        ("visits with one, ground truth", f"{facts['visits_truth']:.4f}"),
        ("visits changed", f"{facts['visits_changed']} of {facts['visits']}"),
        ("drugs dropped per visit", f"{facts['dropped_per_visit']:.4f}"),
        ("dropped, of these given", f"{facts['dropped']}, {facts['dropped_true']}"),
        *(("note", note) for note in notes),
    ]
    document = {"run": run.name, **facts, "metrics": records(result.table), "notes": notes}
    stages.terminal.result(
        document, pairs_table(shown), frame_table(_differences(result.table), "test part")
    )


def _rate(facts: dict[str, Any], name: str) -> str:
    value, low, high = (facts[f"forbidden_{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _differences(table: pd.DataFrame) -> pd.DataFrame:
    rows = table.to_dict("records")
    return pd.DataFrame(
        {
            "metric": [row["metric"] for row in rows],
            "before": [f"{row['before']:.4f}" for row in rows],
            "after": [f"{row['after']:.4f}" for row in rows],
            "difference": [
                f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" for row in rows
            ],
            "truth": [
                "-" if row["truth"] != row["truth"] else f"{row['truth']:.4f}" for row in rows
            ],
        }
    )


def show_severity(stages: Stages, runs: list[Run], reference: str | None) -> None:
    """Print Jaccard against the DDI rate of every grade."""
    from medrec.evaluation.severity import severity_table

    cohort = stages.cohort_of(runs[0])
    found = severity_table(runs, cohort, reference)
    header = found.comparison.header
    names = ("cohort", "split", "patients", "visits", "caution")
    note = (
        "a grade's rate: its pairs among all pairs of the sets; 'ddi' counts severity "
        f"{cohort.config.ddi.min_severity} and worse"
    )
    grades = ", ".join(f"{g} {SEVERITY_NAMES[g]}" for g in found.context["grade"])
    facts = [("grades", grades), ("note", note)]
    document = {
        "header": header,
        "facts": found.comparison.facts,
        "reference": found.comparison.reference,
        "rows": records(found.comparison.table),
        "rates": records(found.rates),
        "context": records(found.context),
    }
    stages.terminal.result(
        document,
        pairs_table([*((name, header[name]) for name in names), *facts]),
        frame_table(found.display(), "Jaccard and DDI rate per grade, test part"),
    )
