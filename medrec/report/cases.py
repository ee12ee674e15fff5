"""One test patient: what was given and what up to three runs recommended, visit by visit.

The patient is the one whose Jaccard, with the first run, is the median of the test patients with
three or more visits: neither the best nor the worst. No identifier is shown. A cohort of restricted
records shows no patient unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.data.cohort import Cohort
from medrec.data.dataset import collate, encode_patient
from medrec.evaluation.compare import load_rows
from medrec.recommend import interacting_pairs
from medrec.report.page import escape, paragraph
from medrec.runs import Run
from medrec.training import LoadedRun

MIN_VISITS = 3
SHOWN_VISITS = 3
_SHOWN_DIAGNOSES, _SHOWN_PAIRS = 8, 6
RESTRICTED = (
    "The records are restricted, so no patient is shown; `medrec report --with-patient` shows one "
    "to readers who may see them."
)
_MARKS = {
    (True, True): ("hit", "✓ hit"),
    (True, False): ("miss", "○ missed"),
    (False, True): ("extra", "✗ added"),
    (False, False): ("", ""),
}


@dataclass(frozen=True)
class RunCase:
    """What one run recommended to the patient.

    Attributes
    ----------
    title : str
        Name of the run on the page.
    sets : list of frozenset of str
        ATC codes per visit.
    pairs : list of list of str
        Interacting pairs of each set, worst first, as text.
    """

    title: str
    sets: list[frozenset[str]]
    pairs: list[list[str]]


def patient_section(
    cohort: Cohort, loaded: Sequence[tuple[str, Run, LoadedRun]], with_patient: bool
) -> list[str]:
    """HTML parts of the case study.

    Parameters
    ----------
    loaded : sequence of (title, run, loaded run)
        The first chooses the patient; others count if they were tested on the same split.
    with_patient : bool
        Show one even of restricted records.
    """
    if getattr(cohort.config.source, "restricted", False) and not with_patient:
        return [paragraph(RESTRICTED)]
    if not loaded:
        return [paragraph("No training run was given.")]
    split = loaded[0][1].report()["split"]
    same = [item for item in loaded if item[1].report()["split"] == split]
    rows = load_rows(same[0][1])
    patient = median_patient(rows)
    if patient is None:
        return [paragraph(f"No test patient has {MIN_VISITS} or more visits.")]
    own = cohort.visits[cohort.visits["patient"] == patient]
    visits: list[dict[Any, Any]] = own.sort_values("visit").to_dict("records")
    cases = [run_case(cohort, title, item, visits) for title, _, item in same]
    names = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
    first = max(len(visits) - SHOWN_VISITS, 0)
    parts = [
        paragraph(
            f"The test patient whose Jaccard with {same[0][0]} is the median of those with "
            f"{MIN_VISITS} or more visits. Visits {first + 1} to {len(visits)} of {len(visits)}; "
            "each prediction reads the earlier visits and the codes of its own. One patient shows "
            "what predictions look like; it is no evidence about models.",
            "note",
        )
    ]
    for number in range(first, len(visits)):
        parts.append(f"<h3>Visit {number + 1}</h3>")
        parts.append(_diagnoses(cohort, visits[number]))
        parts.append(visit_table(set(visits[number]["drugs"]), cases, number, names))
    left_out = [title for title, run, _ in loaded if run.report()["split"] != split]
    if left_out:
        parts.append(paragraph(f"Tested on another split: {', '.join(left_out)}.", "note"))
    return parts


def median_patient(rows: pd.DataFrame) -> int | None:
    """Position of the patient with the median Jaccard among those with enough visits.

    Of two in the middle the one with the lower Jaccard, of equal ones the first in the cohort.
    """
    union = rows["n_true"] + rows["n_selected"] - rows["n_hit"]
    jaccard: pd.Series = rows["n_hit"] / np.maximum(union, 1)
    table: pd.DataFrame = jaccard.groupby(rows["patient"]).agg(["mean", "size"]).reset_index()
    table = table[table["size"] >= MIN_VISITS]
    if table.empty:
        return None
    ordered = table.sort_values(["mean", "patient"], ignore_index=True)
    return int(ordered["patient"].iloc[(len(ordered) - 1) // 2])


def run_case(
    cohort: Cohort, title: str, loaded: LoadedRun, visits: Sequence[Mapping[Any, Any]]
) -> RunCase:
    """Predict every visit of the patient."""
    vocabulary = loaded.vocabularies.drugs
    columns = ([list(visit[k]) for visit in visits] for k in ("diagnoses", "procedures", "drugs"))
    patient = encode_patient(loaded.vocabularies, *columns)
    prediction = loaded.model.predict(collate([patient], [0], len(vocabulary)))
    chosen: npt.NDArray[np.bool_] = prediction.selected[0].cpu().numpy()
    sets = [frozenset(vocabulary.codes[i] for i in np.flatnonzero(row)) for row in chosen]
    pairs = [
        [
            f"{pair['atc_a']}–{pair['atc_b']} ({pair['severity_name']})"
            for pair in interacting_pairs(cohort, vocabulary, np.flatnonzero(row), {})
        ]
        for row in chosen
    ]
    return RunCase(title, sets, pairs)


def visit_table(
    truth: set[str], cases: Sequence[RunCase], number: int, names: Mapping[str, str]
) -> str:
    """Table of one visit: a row per class that was given or recommended, a column per run."""
    classes = sorted(truth.union(*(case.sets[number] for case in cases)))
    head = "".join(f'<th scope="col">{escape(case.title)}</th>' for case in cases)
    body = []
    for code in classes:
        cells = []
        for case in cases:
            kind, mark = _MARKS[code in truth, code in case.sets[number]]
            cells.append(f'<td class="{kind}">{mark}</td>')
        given = "● given" if code in truth else ""
        name = escape(f"{code} {names.get(code, '')}".strip())
        body.append(f'<tr><td>{name}</td><td class="given">{given}</td>{"".join(cells)}</tr>')
    body.append(_row("Jaccard", [_jaccard(truth, case.sets[number]) for case in cases]))
    pairs = [_listed(case.pairs[number]) for case in cases]
    body.append(_row("interacting pairs", pairs))
    return (
        '<div class="scroll"><table class="case"><thead><tr><th scope="col">class</th>'
        f'<th scope="col">truth</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _listed(pairs: Sequence[str]) -> str:
    """The worst pairs, and how many more there are."""
    more = len(pairs) - _SHOWN_PAIRS
    shown = ", ".join(pairs[:_SHOWN_PAIRS]) or "none"
    return shown + (f" and {more} more" if more > 0 else "")


def _row(title: str, values: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f'<tr class="sum"><td>{escape(title)}</td><td></td>{cells}</tr>'


def _jaccard(truth: set[str], chosen: frozenset[str]) -> str:
    union = truth | chosen
    return f"{len(truth & chosen) / len(union):.3f}" if union else "-"


def _diagnoses(cohort: Cohort, visit: Mapping[Any, Any]) -> str:
    """Titles of a visit's first diagnoses."""
    table = cohort.codes[cohort.codes["system"] == "diagnosis"]
    titles = dict(zip(table["code"], table["title"], strict=True))
    codes = list(visit["diagnoses"])
    shown = "; ".join(titles.get(code) or code for code in codes[:_SHOWN_DIAGNOSES])
    more = len(codes) - _SHOWN_DIAGNOSES
    return paragraph(
        f"Diagnoses: {shown or 'none'}" + (f"; and {more} more" if more > 0 else ""), "note"
    )
