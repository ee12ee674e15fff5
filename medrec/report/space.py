"""Section "Molecule space": an interactive map of a cohort's molecules and drug classes.

The map shows PCA and t-SNE of the vectors of runs and of single molecules. The terrain of
similarities, its table and the comparison of 2D with 3D (`medrec.report.learned.vector_parts`)
follow below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from medrec.data.cohort import Cohort
from medrec.molecules.features import FeatureTable
from medrec.report.embeddings import ATC_GROUPS, N_SHUFFLES, Separation, group_mark
from medrec.report.figures import style
from medrec.report.learned import Models, class_embeddings, vector_parts
from medrec.report.page import Page, escape, paragraph, table
from medrec.report.space_subjects import Subjects, describe
from medrec.report.space_views import MOLECULE, View, class_views, molecule_views
from medrec.runs import Run

_SMALLEST, _LARGEST = 7.0, 19.0


def space_section(
    page: Page,
    cohort: Cohort,
    models: Models,
    pretrain_run: Run | None = None,
    features: FeatureTable | None = None,
) -> list[str]:
    """HTML parts: the map with its card, the numbers of each map, and `vector_parts`.

    Parameters
    ----------
    page : Page
        Gets the figure, the script and the data.
    models : Models
        Runs with one vector per drug class, at most three are shown.
    pretrain_run : Run, optional
        With encoders of molecules.
    features : FeatureTable, optional
        With ELF features, and with the conformers that the 3D encoder reads.
    """
    subjects = describe(cohort, features)
    found, failed = class_embeddings(cohort, models, pretrain_run)
    place_of = {str(item["atc"]): i for i, item in enumerate(subjects.classes)}
    views = molecule_views(subjects.drugs, subjects.groups, pretrain_run, features)
    views += class_views(found, place_of)
    notes = [paragraph(text, "note") for text in failed]
    below = vector_parts(page, cohort, found, pretrain_run, features)
    if not views:
        few = "Fewer than five molecules or drug classes have vectors: there is no map."
        return [paragraph(few), *below, *notes]
    return [
        *_map(page, subjects, views, features is not None),
        _numbers(views),
        "<h3>Vectors of drug classes</h3>",
        *below,
        *notes,
    ]


def _map(page: Page, subjects: Subjects, views: Sequence[View], with_elf: bool) -> list[str]:
    holder = page.figure(space_figure(subjects, views[0]), "map of molecules; the card has details")
    page.use("space.css", "space.js")
    name = page.figures[-1][0]
    page.data("space-data", space_document(subjects, views, name))
    text = (
        "Each point is a molecule of the cohort's drug classes, or a class; near points have "
        "similar vectors. Point at one, tap it, or use the arrow keys on the map: the card shows "
        "its structure. A click keeps the card; a click on a group below "
        "hides it, a double click shows it alone."
    )
    marks = (
        "Colour and shape: ATC main group, of a molecule in several classes that of the class with "
        "the most visits. Size: visits with that class."
    )
    if with_elf:
        marks += " Filled: with ELF features; ring: without."
    rest = []
    if subjects.n_left_out:
        rest.append(f"{subjects.n_left_out} molecules of rarer classes are not on the map.")
    if subjects.n_drawn < len(subjects.molecules):
        missing = len(subjects.molecules) - subjects.n_drawn
        rest.append(f"{missing} molecules have no drawing, to keep the page small.")
    return [
        paragraph(text),
        '<div class="space">',
        _bar(views),
        f'<div class="space-body"><div class="space-map" tabindex="0" aria-label="map of '
        f'molecules: arrow keys go from point to point">{holder}<div class="space-rings"></div>'
        '</div><aside class="space-card" aria-live="polite"><p class="space-hint">No molecule is '
        "chosen.</p></aside></div>",
        _legend(subjects),
        f'<p class="note space-note">{escape(_note(views[0]))}</p></div>',
        paragraph(" ".join([marks, *rest]), "note"),
    ]


def _bar(views: Sequence[View]) -> str:
    groups = []
    for kind, label in ((MOLECULE, "molecules"), ("class", "drug classes")):
        options = "".join(
            f'<option value="{i}">{escape(view.title)}</option>'
            for i, view in enumerate(views)
            if view.kind == kind
        )
        groups.append(f'<optgroup label="{label}">{options}</optgroup>' if options else "")
    return (
        '<div class="space-bar"><label>vectors of <select class="space-view">'
        f"{''.join(groups)}</select></label>"
        '<span class="space-switch" role="group" aria-label="projection">'
        '<button type="button" data-projection="tsne" aria-pressed="true">t-SNE</button>'
        '<button type="button" data-projection="pca" aria-pressed="false">PCA</button></span>'
        '<label>find <input class="space-find" type="search" placeholder="drug or ATC code" '
        'autocomplete="off" spellcheck="false"></label>'
        '<output class="space-found"></output></div>'
    )


def _legend(subjects: Subjects) -> str:
    """Buttons, one per ATC group, each with its colour and shape."""
    shapes = {
        "circle": '<circle cx="7" cy="7" r="5.5"/>',
        "diamond": '<path d="M7 .5L13.5 7L7 13.5L.5 7z"/>',
        "square": '<path d="M2 2h10v10h-10z"/>',
    }
    buttons = []
    for group in _all_groups(subjects):
        colour, symbol = group_mark(group)
        label = escape(f"{group} {ATC_GROUPS.get(group, '')}".strip())
        buttons.append(
            f'<button type="button" aria-pressed="true"><svg viewBox="0 0 14 14" fill="{colour}" '
            f'aria-hidden="true">{shapes[symbol]}</svg>{label} <span></span></button>'
        )
    return (
        '<div class="space-legend" role="group" aria-label="groups on the map">'
        f"{''.join(buttons)}</div>"
    )


def _numbers(views: Sequence[View]) -> str:
    """Silhouettes of the maps of molecules; those of classes stand with their vectors below."""
    rows: list[list[Any]] = []
    for view in views:
        if view.kind != MOLECULE:
            continue
        found = view.separation
        shown = [] if found is None else _silhouette(found)
        rows.append([view.title, view.measure, len(view.places), *(shown or ["-"] * 4)])
    if not rows:
        return ""
    columns = ["vectors of", "similarity", "molecules", "silhouette", "shuffled", "95 %", "p"]
    return table(columns, rows) + paragraph(
        "Silhouette by ATC main group over all dimensions, not over the map: 1 is apart, 0 is "
        f"mixed. Shuffled: mean and 95 % quantile of {N_SHUFFLES} shuffles of the groups, and p "
        "against them. ATC groups are therapeutic, so similar structures in different groups are "
        "no error.",
        "note",
    )


def _silhouette(found: Separation) -> list[Any]:
    pairs = ((found.score, "+.3f"), (found.null_mean, "+.3f"), (found.null_high, "+.3f"))
    return [*((f"{value:{form}}", value) for value, form in pairs), (f"{found.p:.3f}", found.p)]


def _note(view: View) -> str:
    found, what = view.separation, "molecules" if view.kind == MOLECULE else "drug classes"
    start = f"{len(view.places)} {what}, {view.measure} similarity. "
    if found is None:
        number = "Too few of one ATC group for a silhouette. "
    else:
        number = (
            f"Silhouette by ATC group {found.score:+.3f}; by chance {found.null_mean:+.3f}, in "
            f"95 % of shuffles below {found.null_high:+.3f} (p {found.p:.3f}). "
        )
    return (
        f"{start}{number}t-SNE with perplexity {view.perplexity:.3g}: distances mean nearness "
        "only, its axes and the gaps between clusters mean nothing."
    )


# --------------------------------------------------------------------------- data


def space_document(subjects: Subjects, views: Sequence[View], figure: str) -> dict[str, Any]:
    """What the page's script needs; drawings once, whatever the number of views.

    Parameters
    ----------
    figure : str
        Name of the figure's element.
    """
    return {
        "figure": figure,
        "molecules": subjects.molecules,
        "classes": subjects.classes,
        "views": [_view_document(subjects, view) for view in views],
    }


def _view_document(subjects: Subjects, view: View) -> dict[str, Any]:
    near, scores = view.neighbours()
    first, second = (100 * share for share in view.shares)
    return {
        "kind": view.kind,
        "measure": view.measure,
        "note": _note(view),
        "places": view.places.tolist(),
        "near": near.tolist(),
        "scores": np.round(scores, 2).tolist(),
        "axes": {
            "tsne": ["", ""],
            "pca": [f"first component, {first:.0f} % of variance", f"second, {second:.0f} %"],
        },
        "traces": [_points(subjects, view, group) for group in _all_groups(subjects)],
    }


def _all_groups(subjects: Subjects) -> list[str]:
    return sorted({*subjects.groups, *(str(item["atc"])[:1] for item in subjects.classes)})


def _points(subjects: Subjects, view: View, group: str) -> dict[str, Any]:
    """One trace: the points of an ATC group, the filled ones first."""
    kind, places = view.kind, view.places.tolist()
    most = max(1, *(subjects.visits(kind, place) for place in places))
    rows = [i for i, place in enumerate(places) if subjects.group(kind, place) == group]
    rows.sort(key=lambda i: (not subjects.has_elf(kind, places[i]), i))
    with_elf = any(item["elf"] for item in subjects.molecules)
    sizes, symbols = [], []
    for i in rows:
        share = subjects.visits(kind, places[i]) / most
        sizes.append(round(_SMALLEST + (_LARGEST - _SMALLEST) * share**0.5, 1))
        filled = subjects.has_elf(kind, places[i]) or not with_elf
        symbols.append(group_mark(group)[1] + ("" if filled else "-open"))
    return {
        "rows": rows,
        "tsne": np.round(view.tsne[rows].T, 2).tolist(),
        "pca": np.round(view.pca[rows].T, 3).tolist(),
        "size": sizes,
        "symbol": symbols,
    }


def space_figure(subjects: Subjects, view: View) -> go.Figure:
    """t-SNE of one view, one trace per ATC group; the script puts other views into it."""
    figure = go.Figure()
    for group in _all_groups(subjects):
        points, colour = _points(subjects, view, group), group_mark(group)[0]
        figure.add_scatter(
            x=points["tsne"][0],
            y=points["tsne"][1],
            customdata=points["rows"],
            mode="markers",
            name=f"{group} {ATC_GROUPS.get(group, '')}".strip(),
            hoverinfo="none",
            marker={
                "color": colour,
                "size": points["size"],
                "symbol": points["symbol"],
                "opacity": 0.85,
                "line": {"width": 1.6, "color": colour},
            },
        )
    figure.update_xaxes(title="", showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(title="", showticklabels=False, showgrid=False, zeroline=False)
    return style(figure, 560).update_layout(
        margin={"l": 12, "r": 12, "t": 12, "b": 12},
        showlegend=False,
        hovermode="closest",
        dragmode=False,
    )
