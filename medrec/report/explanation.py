"""The page of one explanation. It holds a patient's codes: the file belongs to who asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from medrec.explain.drawing import SEVERITY_COLOURS, fragment_svg, interaction_svg, molecule_svg
from medrec.report.figures import BLUE, ORANGE, style
from medrec.report.page import Page, escape, facts, paragraph, table
from quantum.base import write_text_atomic

_SHOWN_BARS, _SHOWN_FRAGMENTS, _SHOWN_PARTNERS = 14, 6, 16
_SINGULAR = {"diagnoses": "diagnosis", "procedures": "procedure", "drugs": "drug given"}


def write_explanation(result: dict[str, Any], out: Path) -> Path:
    """Write one self-contained HTML page.

    Parameters
    ----------
    result : dict
        Of `medrec.explain.explain.explain`.
    out : Path
        File to write; its folder is created.

    Returns
    -------
    Path
        ``out``.
    """
    model = result["model"]
    page = Page(
        f"Explanation: {model['run']}",
        f"{model['model']} on cohort {model['cohort']}, recommendation for visit "
        f"{result['visits']} of {result['visits']}",
    )
    page.add("What this is", *_preface(result))
    for drug in result["drugs"]:
        page.add(
            f"{drug['atc']} {drug['name']}".strip(),
            facts(_facts(drug, result["score"])),
            "<h3>History</h3>",
            *_history(page, drug, result["score"]),
            "<h3>Substructures</h3>",
            *_substructures(drug),
            "<h3>Interactions</h3>",
            *_interactions(drug),
        )
    write_text_atomic(out, page.render())
    return out


def _preface(result: dict[str, Any]) -> list[str]:
    recommended = ", ".join(result["recommended"]) or "nothing"
    return [
        paragraph(f"{result['caution']} {result['method']}", "caution"),
        paragraph(
            "This file holds the diagnoses, procedures and drugs of one patient. Keep it as you "
            "keep the record it came from."
        ),
        paragraph(f"Recommended classes: {recommended}."),
        *(paragraph(warning, "note") for warning in result["warnings"]),
    ]


def _facts(drug: dict[str, Any], score: str) -> list[tuple[str, Any]]:
    pairs = [
        ("recommended", "yes" if drug["selected"] else "no"),
        ("probability", f"{drug['probability']:.3f}"),
    ]
    return pairs + ([("logit", f"{drug['score']:+.3f}")] if score == "logit" else [])


def entry_text(entry: dict[str, Any]) -> str:
    """Name of what was left out, for tables and axes."""
    if entry["kind"] == "visit":
        return f"visit {entry['visit']}, all of it"
    kind = _SINGULAR[entry["kind"]]
    return f"visit {entry['visit']}, {kind} {entry['code']} {entry['title']}".strip()


def _history(page: Page, drug: dict[str, Any], score: str) -> list[str]:
    entries = [entry for entry in drug["history"] if entry["effect"] != 0.0]
    silent = len(drug["history"]) - len(entries)
    if not entries:
        return [paragraph(f"None of the {silent} visits and codes changed the score.")]
    figure = page.figure(_bars(entries[:_SHOWN_BARS], score), "effects of visits and codes")
    more = max(len(entries) - _SHOWN_BARS, 0)
    return [
        figure,
        paragraph(
            f"Blue raised the {score}, orange lowered it. {more} weaker effects are not drawn; "
            f"{silent} visits and codes had none.",
            "note",
        ),
    ]


def _bars(entries: list[dict[str, Any]], score: str) -> go.Figure:
    """Effects as bars, the strongest on top."""
    texts = [entry_text(entry) for entry in entries]
    # a number in front keeps equal texts apart; it is not shown
    places = list(range(len(entries)))
    values = [entry["effect"] for entry in entries]
    figure = go.Figure(
        go.Bar(
            x=values,
            y=places,
            orientation="h",
            marker_color=[BLUE if value > 0 else ORANGE for value in values],
            text=[f"{value:+.3g}" for value in values],
            textposition="outside",
            cliponaxis=False,
            customdata=texts,
            hovertemplate="%{customdata}<br>effect %{x:+.4g}<extra></extra>",
        )
    )
    figure.update_yaxes(
        autorange="reversed",
        tickvals=places,
        ticktext=[text if len(text) <= 52 else text[:51] + "…" for text in texts],
        showgrid=False,
        zeroline=False,
    )
    low, high = min(*values, 0.0), max(*values, 0.0)
    room = 0.18 * (high - low)
    figure.update_xaxes(
        title=f"effect on the {score}", range=[low - room * (low < 0), high + room * (high > 0)]
    )
    return style(figure, 100 + 26 * len(entries)).update_layout(margin={"l": 360, "t": 10})


def _substructures(drug: dict[str, Any]) -> list[str]:
    found = drug["substructures"]
    if not found["fragments"]:
        return [paragraph(found["note"])]
    scale = max(abs(item["effect"]) for item in found["fragments"]) or 1.0
    molecules = "".join(
        _plate(molecule_svg(item["smiles"], item["atom_effects"], scale), item["smiles"])
        for item in found["molecules"]
    )
    moved = [item for item in found["fragments"] if item["effect"] != 0.0][:_SHOWN_FRAGMENTS]
    fragments = "".join(
        _plate(
            fragment_svg(item["smiles"], item["effect"], scale),
            f"{item['effect']:+.3g}, in {item['molecules']} of the class's molecules",
        )
        for item in moved
    )
    silent = sum(item["effect"] == 0.0 for item in found["fragments"])
    return [
        f'<div class="plates">{molecules}</div>',
        paragraph(
            f"{found['note']}. Blue fragments raised the score of the class, orange ones lowered "
            "it; the deepest colour is the strongest fragment of the class. A fragment is left out "
            "where the model looks up the class's fragments; the molecule itself stays.",
            "note",
        ),
        f'<div class="plates">{fragments}</div>',
        paragraph(
            f"Strongest of {len(found['fragments'])} BRICS fragments; {silent} had no effect. "
            "A star marks where a fragment was cut off.",
            "note",
        ),
    ]


def _plate(svg: str, caption: str) -> str:
    """A drawing on white ground, in either theme, with a line below it."""
    return f'<figure class="plate">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def _interactions(drug: dict[str, Any]) -> list[str]:
    found = drug["interactions"]
    rates = paragraph(
        f"DDI rate of the set with this class {100 * found['ddi_rate_with']:.1f} %, without it "
        f"{100 * found['ddi_rate_without']:.1f} % ({found['set_size']} classes with it; pairs of "
        f"severity {found['least_severity']} or worse count)."
    )
    if not found["pairs"]:
        return [rates, paragraph("No listed interaction with another class of the set.")]
    shown = found["pairs"][:_SHOWN_PARTNERS]
    rows = [
        [pair["atc"], pair["name"], (f"{pair['severity']} {pair['severity_name']}", grade)]
        for pair in found["pairs"]
        for grade in [pair["severity"]]
    ]
    more = len(found["pairs"]) - len(shown)
    return [
        rates,
        f'<div class="drawing">{interaction_svg((drug["atc"], drug["name"]), shown)}</div>',
        _legend(sorted({(pair["severity"], pair["severity_name"]) for pair in shown})),
        *(
            [paragraph(f"{more} milder interactions stand in the table alone.", "note")]
            * bool(more)
        ),
        table(["class", "name", "severity"], rows),
        paragraph(
            "Interactions are between classes: any two member substances may be the cause.", "note"
        ),
    ]


def _legend(grades: list[tuple[int, str]]) -> str:
    items = "".join(
        f'<span class="key"><i style="background:{SEVERITY_COLOURS[grade]}"></i>'
        f"{escape(f'{grade} {name}')}</span>"
        for grade, name in reversed(grades)
    )
    return f'<p class="note">{items}</p>'
