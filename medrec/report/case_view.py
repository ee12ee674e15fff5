"""HTML of the case study: a timeline of visits, a table per predicted visit, interacting pairs.

Plain HTML and CSS: all of it can be read without JavaScript.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medrec.data.cohort import Cohort
from medrec.explain.drawing import SEVERITY_COLOURS
from medrec.report.ddi_sources import pair_sources, source_title
from medrec.report.page import escape, paragraph

_SHOWN_CODES, _SHOWN_PAIRS, _CHIP = 10, 12, 56
GIVEN = "given"
_MARKS = {
    (True, True): ("hit", "✓ hit"),
    (True, False): ("miss", "○ missed"),
    (False, True): ("extra", "✗ extra"),
    (False, False): ("none", ""),
}
Pairs = Sequence[Mapping[str, Any]]
Visit = Mapping[Any, Any]


@dataclass(frozen=True)
class RunCase:
    """What one run recommended to the patient.

    Attributes
    ----------
    title : str
        Name of the run on the page.
    sets : list of frozenset of str
        ATC codes per visit.
    pairs : list of list of dict
        Interacting pairs of each set as of `medrec.recommend.interacting_pairs`, worst first.
    scores : list of dict of str to float
        Score of every class the model knows, per visit.
    """

    title: str
    sets: list[frozenset[str]]
    pairs: list[list[dict[str, Any]]]
    scores: list[dict[str, float]]


@dataclass(frozen=True)
class CaseNames:
    """Names of drug classes by ATC code, and titles of diagnoses and procedures by code."""

    drugs: Mapping[str, str] = field(default_factory=dict)
    diagnoses: Mapping[str, str] = field(default_factory=dict)
    procedures: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, cohort: Cohort) -> CaseNames:
        """Read the cohort's tables."""
        found = []
        for system in ("diagnosis", "procedure"):
            own = cohort.codes[cohort.codes["system"] == system]
            found.append(dict(zip(own["code"], own["title"], strict=True)))
        drugs = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
        return cls(drugs, *found)


def timeline(
    visits: Sequence[Visit],
    cases: Sequence[RunCase],
    true_pairs: Sequence[Pairs],
    names: CaseNames,
    predicted: int,
    history: int,
    cohort: Cohort,
) -> list[str]:
    """Visits in order of time; the last ones with predictions.

    Parameters
    ----------
    true_pairs : sequence of sequence of mapping
        Interacting pairs of what was given, per visit.
    predicted, history : int
        How many last visits have predictions, and how many before them are shown.
    """
    first_predicted = max(len(visits) - predicted, 0)
    first = max(first_predicted - history, 0)
    items = []
    for number in range(first, len(visits)):
        before = set(visits[number - 1]["drugs"]) if number else None
        parts = [
            f"<h3>Visit {number + 1}</h3>",
            *_chips(visits[number], before, names),
        ]
        if number >= first_predicted:
            given = {GIVEN: true_pairs[number]}
            sets = given | {case.title: case.pairs[number] for case in cases}
            parts.append(visit_table(set(visits[number]["drugs"]), cases, number, names.drugs))
            parts.append(pair_block(sets, names.drugs, cohort, shown=number == len(visits) - 1))
        items.append(f'<li data-visit="{number + 1}">{"".join(parts)}</li>')
    more = "1 earlier visit is" if first == 1 else f"{first} earlier visits are"
    earlier = [paragraph(f"{more} not shown.", "note")] if first else []
    legend = (
        '<p class="note case-key"><span class="hit">✓ hit</span> given and recommended'
        '<span class="miss">○ missed</span> given, not recommended'
        '<span class="extra">✗ extra</span> recommended, not given'
        '<span class="chip new">+ new</span> not given at the visit before</p>'
    )
    scores = paragraph(
        "Numbers in the tables are the models' scores, 0 to 1: probabilities for models with a "
        "threshold, frequencies or marks for others.",
        "note",
    )
    return [legend, scores, *earlier, f'<ol class="timeline">{"".join(items)}</ol>']


# --------------------------------------------------------------------------- codes of a visit


def _chips(visit: Visit, before: set[str] | None, names: CaseNames) -> list[str]:
    """Diagnoses, procedures and drugs of a visit, a line each."""
    rows = []
    for kind in ("diagnoses", "procedures"):
        titles: Mapping[str, str] = getattr(names, kind)
        codes = [str(code) for code in visit[kind]]
        rows.append((kind, [_chip(code, titles.get(code) or code) for code in codes]))
    drugs = sorted(map(str, visit["drugs"]))
    new = set() if before is None else set(drugs) - before
    chips = [_chip(c, f"{c} {names.drugs.get(c, '')}".strip(), new=c in new) for c in drugs]
    rows.append(("drug classes given", chips))
    return [_chip_row(label, chips) for label, chips in rows]


def _chip(code: str, text: str, *, new: bool = False) -> str:
    short = text if len(text) <= _CHIP else text[: _CHIP - 1] + "…"
    kind = "chip new" if new else "chip"
    full = text if code in text else f"{code} {text}"
    return f'<span class="{kind}" title="{escape(full)}">{"+ " * new}{escape(short)}</span>'


def _chip_row(label: str, chips: Sequence[str]) -> str:
    shown = "".join(chips[:_SHOWN_CODES]) or '<span class="soft">none</span>'
    rest = chips[_SHOWN_CODES:]
    more = f"<details><summary>{len(rest)} more</summary>{''.join(rest)}</details>" if rest else ""
    return f'<div class="chips"><b>{escape(label)} ({len(chips)})</b><div>{shown}{more}</div></div>'


# --------------------------------------------------------------------------- table of a visit


def visit_table(
    truth: set[str], cases: Sequence[RunCase], number: int, names: Mapping[str, str]
) -> str:
    """Table of one visit: a row per class that was given or recommended, a column per run.

    Given classes come first; within both parts those with the higher mean score.
    """
    classes = truth.union(*(case.sets[number] for case in cases))

    def place(code: str) -> tuple[bool, float, str]:
        scores = [case.scores[number].get(code, 0.0) for case in cases]
        return code not in truth, -sum(scores), code

    head = "".join(
        f'<th scope="col">{escape(case.title)}'
        f"<small>{_summary(truth, case.sets[number])}</small></th>"
        for case in cases
    )
    body = []
    for code in sorted(classes, key=place):
        cells = "".join(_score_cell(code, truth, case, number) for case in cases)
        given = "● given" if code in truth else ""
        name = escape(f"{code} {names.get(code, '')}".strip())
        body.append(f'<tr><td>{name}</td><td class="given">{given}</td>{cells}</tr>')
    return (
        '<div class="scroll"><table class="case"><thead><tr><th scope="col">class</th>'
        f'<th scope="col">truth</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _score_cell(code: str, truth: set[str], case: RunCase, number: int) -> str:
    kind, mark = _MARKS[code in truth, code in case.sets[number]]
    score = case.scores[number].get(code)
    if score is None:
        return f'<td class="{kind}">{mark} <small>not in the vocabulary</small></td>'
    share = min(max(score, 0.0), 1.0)
    bar = f'<i class="score" style="--share:{100 * share:.0f}%">{score:.2f}</i>'
    return f'<td class="{kind}">{bar}<span>{mark}</span></td>'


def _summary(truth: set[str], chosen: frozenset[str]) -> str:
    return (
        f"{len(truth & chosen)} hit, {len(truth - chosen)} missed, {len(chosen - truth)} extra; "
        f"Jaccard {_jaccard(truth, chosen)}"
    )


def _jaccard(truth: set[str], chosen: frozenset[str]) -> str:
    union = truth | chosen
    return f"{len(truth & chosen) / len(union):.3f}" if union else "-"


# --------------------------------------------------------------------------- interacting pairs


def pair_block(
    sets: Mapping[str, Pairs], names: Mapping[str, str], cohort: Cohort, *, shown: bool
) -> str:
    """Interacting pairs of one visit, worst first: grade, in which sets they are, and source.

    Parameters
    ----------
    sets : mapping of str to sequence of mapping
        Pairs of what was given and of each run, by title.
    shown : bool
        Whether the block starts open.
    """
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    holders: dict[tuple[str, str], set[str]] = {}
    for title, pairs in sets.items():
        for pair in pairs:
            key = (pair["atc_a"], pair["atc_b"])
            found[key] = pair
            holders.setdefault(key, set()).add(title)
    counts = ", ".join(f"{title} {_worst(pairs)}" for title, pairs in sets.items())
    if not found:
        return paragraph("No interacting pair was given or recommended.", "note")
    # a pair that a model recommends is what the reader came for
    order = sorted(found, key=lambda k: (-found[k]["severity"], holders[k] <= {GIVEN}, k))
    listed = order[:_SHOWN_PAIRS]
    sources = pair_sources(cohort, listed)
    body = "".join(
        f"<tr><td>{escape(_pair_name(key, names))}</td><td>{_badge(found[key])}</td>"
        + "".join(f'<td class="mark">{"●" * (title in holders[key])}</td>' for title in sets)
        + f"<td>{escape(sources[key])}</td></tr>"
        for key in listed
    )
    columns = ("pair", "severity", *sets, source_title(cohort))
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns)
    more = len(order) - len(listed)
    rest = paragraph(f"{more} more pairs, none of them graded worse.", "note") if more else ""
    return (
        f'<details class="pairs"{" open" * shown}><summary>Interacting pairs: {escape(counts)}'
        f'</summary><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{rest}</details>"
    )


def _worst(pairs: Pairs) -> str:
    """Number of pairs, and how many have the worst grade among them."""
    if not pairs:
        return "0"
    grade = max(pair["severity"] for pair in pairs)
    worst = [pair for pair in pairs if pair["severity"] == grade]
    return f"{len(pairs)} ({len(worst)} {worst[0]['severity_name']})"


def _pair_name(key: tuple[str, str], names: Mapping[str, str]) -> str:
    return " – ".join(f"{code} {names.get(code, '')}".strip() for code in key)


def _badge(pair: Mapping[str, Any]) -> str:
    colour = SEVERITY_COLOURS[pair["severity"]]
    return (
        f'<span class="grade"><i style="background:{colour}"></i>'
        f"{escape(pair['severity_name'])}</span>"
    )
