"""Two views of every concept of a cohort: its title, and its place in a knowledge graph.

No leak: the only thing that is read of the patients' records is *which* codes occur in them. Who
had them, how often, with what else and in which part of a split is not read, so the views may cover
the codes of test patients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from medrec.concepts.graph import Index, KnowledgeGraph
from medrec.concepts.graph_open import build_open_graph
from medrec.concepts.graph_umls import build_umls_graph
from medrec.concepts.kgin import embed_graph
from medrec.concepts.knowledge import KnowledgeTables
from medrec.concepts.links import Array
from medrec.concepts.table import KINDS, ConceptViews
from medrec.concepts.text import embed_titles
from medrec.concepts.titles import Describer, Titles
from medrec.config_papers import ConceptConfig
from medrec.data.codes import CodeMaps
from medrec.data.cohort import Cohort
from medrec.data.schema import Progress, data_root, resolve_path

_SYSTEM_OF_KIND = {"diagnoses": "diagnosis", "procedures": "procedure", "drugs": "drug"}
_REPORTS = 5
"""Reports per stage that counts its steps."""


@dataclass(frozen=True)
class ViewsResult:
    """Views of all concepts, and what they were made from.

    Attributes
    ----------
    views : dict
        `ConceptViews` per kind, codes in ascending order.
    graph : KnowledgeGraph
        Its ``concepts`` are in the order of the views.
    notes : dict
        ``replaced`` (what stands in for the paper's resources), ``leak``, ``nodes``, ``edges``
        (per type and relation), ``coverage`` (concepts with an edge, per kind), ``titles`` (share
        of each source, per kind), ``untitled``, ``graph_facts``, ``links`` (held-out link
        prediction), ``seconds``.
    """

    views: dict[str, ConceptViews]
    graph: KnowledgeGraph
    notes: dict[str, Any]


def build_views(
    config: ConceptConfig, cohort: Cohort, on_step: Progress | None = None
) -> ViewsResult:
    """Describe all diagnoses, procedures and drug classes of a cohort in two views.

    Parameters
    ----------
    on_step : callable, optional
        Called with a short text when a stage begins, and a few times during the longer ones.

    Raises
    ------
    InputError, DataError, ResourceError
        Missing or damaged files of the user, encoder that cannot be used.
    ConvergenceError
        If the graph encoder fails to learn.
    """
    report = on_step or (lambda text: None)
    root = data_root()
    describer = Describer(CodeMaps(root / "codes"), KnowledgeTables(root / "knowledge"))
    codes = concept_codes(cohort)
    seconds = {}
    start = time.perf_counter()
    report("titles")
    titles = {kind: describer.titles(kind, codes[kind]) for kind in KINDS}
    semantic = _semantic(config, titles, report)
    seconds["text"] = time.perf_counter() - start
    start = time.perf_counter()
    report("knowledge graph")
    graph, facts = _graph(config, cohort, codes, describer)
    seconds["graph"] = time.perf_counter() - start
    start = time.perf_counter()
    report(f"graph encoder: {len(graph.nodes)} nodes, {len(graph.edges)} edges")
    structural = embed_graph(graph, config.graph, config.seed, _counted(report, "graph encoder"))
    seconds["encoder"] = time.perf_counter() - start
    views = {
        kind: ConceptViews(
            codes[kind], semantic[kind], _rows(structural.vectors, graph.concepts[kind])
        )
        for kind in KINDS
    }
    notes = {
        "replaced": _replaced(config),
        "leak": "none: the list of codes alone is read, not who had them",
        **graph.counts(),
        "coverage": graph.coverage(),
        "titles": {kind: titles[kind].shares for kind in KINDS},
        "untitled": {kind: titles[kind].sources.count("none") for kind in KINDS},
        "graph_facts": facts,
        "links": structural.measured,
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
    }
    return ViewsResult(views, graph, notes)


def concept_codes(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """All codes of a cohort per kind, ascending: a superset of every split's vocabulary."""
    table = cohort.codes
    return {
        kind: tuple(sorted(set(table.loc[table["system"] == system, "code"])))
        for kind, system in _SYSTEM_OF_KIND.items()
    }


def _counted(report: Progress, stage: str) -> Callable[[int, int], None]:
    """Reporter of done and total that speaks a few times only."""

    def on_done(done: int, total: int) -> None:
        if done == total or done % max(1, total // _REPORTS) == 0:
            report(f"{stage}: {done} of {total}")

    return on_done


def _semantic(
    config: ConceptConfig, titles: dict[str, Titles], report: Progress
) -> dict[str, Array]:
    """Vectors of the titles per kind; one space for all kinds."""
    texts = [text for kind in KINDS for text in titles[kind].texts]
    vectors = embed_titles(texts, config.text, config.seed, _counted(report, "titles"))
    ends = np.cumsum([len(titles[kind].texts) for kind in KINDS])[:-1]
    return dict(zip(KINDS, np.split(vectors, ends), strict=True))


def _graph(
    config: ConceptConfig,
    cohort: Cohort,
    codes: dict[str, tuple[str, ...]],
    describer: Describer,
) -> tuple[KnowledgeGraph, dict[str, int]]:
    settings = config.graph
    if settings.source == "open":
        return build_open_graph(codes, describer, cohort.ddi_pairs)
    assert settings.umls is not None, "GraphConfig refuses umls without a folder"
    folder = resolve_path(settings.umls)
    return build_umls_graph(codes, describer, folder, settings.umls_hops, settings.umls_max_nodes)


def _rows(vectors: Array, places: Index) -> Array:
    """Vectors of concepts (N, d); zeros where the graph lacks one."""
    found = np.zeros((len(places), vectors.shape[1]), dtype=np.float32)
    found[places >= 0] = vectors[places[places >= 0]]
    return found


def _replaced(config: ConceptConfig) -> list[str]:
    """What stands in for the resources that the paper names."""
    notes = []
    if config.text.encoder == "tfidf_svd":
        notes.append("BioBERT by TF-IDF of character n-grams and truncated SVD")
    else:
        notes.append("BioBERT by the encoder in the folder given, unless that is BioBERT")
    if config.graph.source == "open":
        notes.append("UMLS by a graph of open tables")
    if config.graph.encoder == "kgin":
        notes.append("KGIN's users and clicks by the linked pairs of the graph")
    else:
        notes.append("KGIN by eigenvectors of the normalised adjacency")
    return notes
