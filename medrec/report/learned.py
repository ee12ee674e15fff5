"""Sections about what models learned: drug vectors, one patient, medical concepts.

Models are loaded for these, at most `SHOWN_RUNS`, the best first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medrec.concepts.collisions import colliding_groups, collision_table, told_apart
from medrec.concepts.memory import memory_of
from medrec.concepts.table import KINDS, ConceptTable
from medrec.data.cohort import Cohort
from medrec.evaluation.compare import Comparison
from medrec.explain.vectors import drug_vectors
from medrec.molecules.features import FeatureTable
from medrec.report import embeddings
from medrec.report.embeddings import Embedding
from medrec.report.page import Page, escape, facts, paragraph, table
from medrec.report.pretrained import class_vectors, nearest_share, two_views, views_figure
from medrec.runs import Home, Run
from medrec.training import LoadedRun, load_predictor
from quantum.base import MedrecError

SHOWN_RUNS = 3
_SHOWN_GROUPS = 4
Loaded = tuple[str, Run, LoadedRun]


class Models:
    """Runs of a comparison, loaded when they are first asked for, best first.

    Parameters
    ----------
    runs : sequence of Run
        Of a row of the comparison the first is loaded.
    """

    def __init__(self, home: Home, comparison: Comparison | None, runs: Sequence[Run]) -> None:
        self.home = home
        self._known: dict[str, LoadedRun | None] = {}
        self._order: list[tuple[str, Run]] = []
        self.failed: list[str] = []
        if comparison is None:
            return
        by_name = {run.name: run for run in runs}
        rows = comparison.table.assign(title=comparison.titles())
        for row in rows.sort_values("jaccard", ascending=False).to_dict("records"):
            name = str(row["runs"]).split(", ")[0]
            self._order.append((str(row["title"]), by_name[name]))

    def __iter__(self) -> Iterator[Loaded]:
        for title, run in self._order:
            if run.name not in self._known:
                self._known[run.name] = self._load(run)
            loaded = self._known[run.name]
            if loaded is not None:
                yield title, run, loaded

    def _load(self, run: Run) -> LoadedRun | None:
        try:
            return load_predictor(run, self.home)
        except MedrecError as error:  # a page about other runs is still worth having
            self.failed.append(f"{run.name} could not be loaded: {error}")
            return None

    def first(self, n: int) -> list[Loaded]:
        """Load the n best that can be."""
        found: list[Loaded] = []
        for item in self:
            found.append(item)
            if len(found) == n:
                break
        return found


# --------------------------------------------------------------------------- drug vectors


def class_embeddings(
    cohort: Cohort, models: Models, pretrain: Run | None = None
) -> tuple[list[tuple[str, Embedding]], list[str]]:
    """Vectors of drug classes, of runs and of a pre-training run before and after it.

    Returns
    -------
    found : list of (title, Embedding)
    notes : list of str
        What could not be loaded, and why.
    """
    found = list(_embeddings(cohort, models))
    notes = list(models.failed)
    if pretrain is not None:
        before_after = class_vectors(cohort, pretrain)
        found += before_after
        if not before_after:
            notes.append("The pre-training run holds no 2D molecule encoder to draw.")
    return found, notes


def vector_parts(
    page: Page,
    cohort: Cohort,
    found: Sequence[tuple[str, Embedding]],
    pretrain: Run | None = None,
    features: FeatureTable | None = None,
) -> list[str]:
    """Terrain of similarities, how they follow ATC and fingerprints, and 2D against 3D.

    Parameters
    ----------
    found : sequence of (title, Embedding)
        Of `class_embeddings`.
    """
    if not found:
        return [paragraph("No run with one vector per drug class was given.")]
    surfaces = {
        title: (item, embeddings.fingerprint_similarity(cohort, item.codes))
        for title, item in found
    }
    parts = [
        paragraph(
            "One vector per drug class, from inside each model. The terrain stands over all pairs "
            "of classes in order of their ATC codes: ridges along the diagonal are classes of one "
            "group with similar vectors. On the right, its difference to the similarity of the "
            "classes' fingerprints (ECFP4, Tanimoto, mean over pairs of molecules); pairs without "
            "a molecule are left out."
        ),
        page.figure(embeddings.terrain(surfaces), "terrain of similarities between drug classes"),
        "<h3>How the vectors follow ATC and fingerprints</h3>",
        _separations(surfaces),
    ]
    return parts if pretrain is None else [*parts, *_views(page, cohort, pretrain, features)]


def _views(page: Page, cohort: Cohort, run: Run, features: FeatureTable | None) -> list[str]:
    """2D against 3D of a pre-training run."""
    title = "<h3>2D against 3D after pre-training</h3>"
    found = two_views(cohort, run, features)
    if isinstance(found, str):
        return [title, paragraph(found)]
    return [
        title,
        page.figure(views_figure(found), "similarity of 2D and 3D vectors of molecules"),
        paragraph(
            "Cosine between the 2D vector of one molecule and the 3D vector of another, "
            f"{len(found)} molecules that both have, in order of their SMILES. The own conformer "
            f"is the nearest for {100 * nearest_share(found):.0f} %; by chance it would be for "
            f"{100 / len(found):.1f} %. These are the molecules of pre-training, so this is fit "
            "and not a test.",
            "note",
        ),
    ]


def _embeddings(cohort: Cohort, models: Models) -> Iterator[tuple[str, Embedding]]:
    names = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
    n_found = 0
    for title, _, loaded in models:
        vectors = drug_vectors(loaded.model)
        if vectors is None or not np.isfinite(vectors.values).all():
            continue
        codes = loaded.vocabularies.drugs.codes
        yield title, Embedding.of(codes, names, vectors.values, vectors.source)
        n_found += 1
        if n_found == SHOWN_RUNS:
            return


def _separations(surfaces: dict[str, tuple[Embedding, Any]]) -> str:
    rows = []
    for title, (item, fingerprints) in surfaces.items():
        found = embeddings.separation(item)
        correlation, gap = embeddings.fingerprint_agreement(item.similarity, fingerprints)
        rows.append(
            [
                title,
                item.source,
                item.vectors.shape[1],
                *(
                    ["-"] * 4
                    if found is None
                    else [
                        (f"{found.score:+.3f}", found.score),
                        (f"{found.null_mean:+.3f}", found.null_mean),
                        (f"{found.null_high:+.3f}", found.null_high),
                        (f"{found.p:.3f}", found.p),
                    ]
                ),
                "-" if correlation != correlation else (f"{correlation:+.2f}", correlation),
                "-" if gap != gap else (f"{gap:.2f}", gap),
            ]
        )
    columns = ["vectors of", "taken from", "size", "silhouette", "shuffled", "95 %", "p"]
    columns += ["corr. with fingerprints", "mean difference"]
    return table(columns, rows) + paragraph(
        "Silhouette by ATC main group (cosine distance, groups of two or more classes): 1 is "
        f"apart, 0 is mixed. Shuffled: mean and 95 % quantile of {embeddings.N_SHUFFLES} shuffles "
        "of the groups, and p against them, without correction for several models.",
        "note",
    )


# --------------------------------------------------------------------------- concepts


def concept_section(home: Home, runs: Sequence[Run]) -> list[str]:
    """Collisions, memory and examples of the concept tables that runs read; empty without any."""
    parts: list[str] = []
    for digest in dict.fromkeys(run.inputs["concepts"] for run in runs if "concepts" in run.inputs):
        try:
            found = ConceptTable.load(home.by_digest(home.concepts, digest))
        except MedrecError as error:
            parts.append(paragraph(f"A concept table could not be loaded: {error}", "note"))
            continue
        parts += _concepts(found)
    return parts


def _concepts(found: ConceptTable) -> list[str]:
    costs = memory_of(found)
    parts = [
        f"<h3>{escape(found.folder.name)}</h3>",
        paragraph(
            "Concepts (diagnoses, procedures, drugs) as short sequences of shared codes. Two "
            "concepts collide where all their codes are equal: the model cannot tell them apart."
        ),
        _frame(collision_table(found)),
        facts(
            [
                ("one vector per concept", f"{costs.continuous_bytes:,} bytes"),
                ("codes", f"{costs.code_bytes:,} bytes"),
                ("indices of the codes", f"{costs.index_bytes:,} bytes"),
                ("vectors over codes and indices", f"{costs.ratio_bytes:.2f}"),
            ]
        ),
    ]
    groups = pd.concat([colliding_groups(found, kind) for kind in KINDS], ignore_index=True)
    groups = groups[groups["group"] < _SHOWN_GROUPS]
    parts.append("<h3>Concepts with equal codes</h3>")
    parts.append(_frame(groups) if len(groups) else paragraph("No two concepts have equal codes."))
    if len(found.codes[KINDS[0]].views) > 1:
        apart = pd.concat([told_apart(found, kind) for kind in KINDS], ignore_index=True)
        apart = apart[apart["group"] < _SHOWN_GROUPS]
        parts.append("<h3>Equal by their titles, told apart by the knowledge graph</h3>")
        parts.append(_frame(apart) if len(apart) else paragraph("There are none."))
    return parts


def _frame(frame: pd.DataFrame) -> str:
    """Any frame as a table; lists are joined, shares rounded."""
    rows = [[_shown(value) for value in row] for row in frame.itertuples(index=False)]
    return table([str(name).replace("_", " ") for name in frame.columns], rows)


def _shown(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return (f"{value:.3f}", float(value))
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, list | tuple | set):
        return "; ".join(map(str, value))
    return str(value)
