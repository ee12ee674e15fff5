"""Cohort and configuration in, concept folder out: views, then the codes of each kind.

::

    <home>/concepts/<name>-<digest8>/
        concepts.npz        views and codes
        manifest.json       inputs, seeds, collisions, memory, provenance
        descriptions.json   titles, and neighbours in the knowledge graph
        history.json        losses of the quantisers, per kind

A finished folder is found by the digest of its request. Views, and the codes of each kind, are kept
as soon as they are made, so that an interrupted call goes on where it stopped; views are shared by
all requests that want the same ones, so that the ablation w/o SE does not make them again.
"""

from __future__ import annotations

import io
import os
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medrec.concepts.collisions import collision_table, pair_codes
from medrec.concepts.memory import memory_report
from medrec.concepts.rqvae import TrainedCodes, train_codes
from medrec.concepts.table import (
    DESCRIPTIONS_FILE,
    KINDS,
    VIEWS,
    ConceptCodes,
    ConceptTable,
    ConceptViews,
)
from medrec.config import ConceptConfig
from medrec.data.cohort import Cohort
from medrec.data.schema import Progress, data_root, resolve_path
from medrec.runs import Home
from quantum.base import (
    InputError,
    digest,
    file_digest,
    now_utc,
    provenance,
    publish_folder,
    read_json,
    write_bytes_atomic,
    write_json_atomic,
)

if TYPE_CHECKING:
    from medrec.concepts.graph import KnowledgeGraph, Neighbour

FORMAT = 1
HISTORY_FILE = "history.json"
KNOWLEDGE_FOLDER = "knowledge"
PER_RELATION = 3
_SYSTEMS = {"diagnoses": "diagnosis", "procedures": "procedure", "drugs": "drug"}


@dataclass(frozen=True)
class StoredViews:
    """Views of all kinds, with what is told of them.

    Attributes
    ----------
    descriptions : dict
        Per kind ``titles`` and ``neighbours``.
    notes : dict
        What the makers of the views have to say.
    """

    views: dict[str, ConceptViews]
    descriptions: dict[str, Any]
    notes: dict[str, Any]
    seconds: float


def build_concepts(
    config: ConceptConfig, cohort: Cohort, home: Home, progress: Progress | None = None
) -> ConceptTable:
    """Make the concept table of a cohort, or find the one that the same request made before.

    Views hold titles and a knowledge graph, no patients: all concepts of the cohort are quantised,
    those of the test part too.

    Parameters
    ----------
    progress : callable, optional
        Called with a short text when something begins or a quantiser was checked.

    Raises
    ------
    InputError
        If a folder or file that the configuration names is not as expected.
    """
    report = progress or (lambda text: None)
    key = _request_digest(config, cohort)
    final = home.concepts / f"{config.name}-{key[:8]}"
    if final.is_dir():
        report(f"found {final.name}")
        return ConceptTable.load(final)
    work = home.concepts / f".{final.name}.work"
    stored = _views(config, cohort, home, report)
    trained = {
        kind: _codes(config, kind, stored.views[kind], work / kind, report) for kind in KINDS
    }
    report("writing")
    _publish(final, key, config, cohort, stored, trained)
    shutil.rmtree(work, ignore_errors=True)
    return ConceptTable.load(final)


# --------------------------------------------------------------------------- names


def _request_digest(config: ConceptConfig, cohort: Cohort) -> str:
    return digest(
        {
            "format": FORMAT,
            "views": _views_digest(config, cohort),
            "config": _settings(config) | {"name": config.name},
        }
    )


def _views_digest(config: ConceptConfig, cohort: Cohort) -> str:
    """Digest of all that decides the views; the quantiser's settings do not."""
    settings = _settings(config)
    files = {
        path.name: file_digest(path)
        for path in sorted((data_root() / KNOWLEDGE_FOLDER).glob("*"))
        if path.is_file()
    }
    wanted = {key: settings[key] for key in ("text", "graph", "seed")}
    return digest({"format": FORMAT, "cohort": cohort.digest, "files": files, **wanted})


def _settings(config: ConceptConfig) -> dict[str, Any]:
    """Configuration with each user folder replaced by the names and sizes of its files."""
    settings = config.model_dump(mode="json")
    for section, name in (("text", "path"), ("graph", "umls")):
        folder = settings[section][name]
        if folder is not None:
            files = sorted(path for path in resolve_path(folder).rglob("*") if path.is_file())
            settings[section][name] = [[path.name, path.stat().st_size] for path in files]
    return settings


# --------------------------------------------------------------------------- stages


def _views(config: ConceptConfig, cohort: Cohort, home: Home, report: Progress) -> StoredViews:
    place = home.concepts / ".views" / _views_digest(config, cohort)[:16]
    if place.is_dir():
        report("views: found")
        return _read_views(place)
    from medrec.concepts.views import build_views

    report("views")
    start = time.perf_counter()
    made = build_views(config, cohort, on_step=report)
    stored = StoredViews(
        made.views,
        _descriptions(made.views, made.graph, cohort),
        dict(made.notes),
        round(time.perf_counter() - start, 2),
    )
    _keep_views(place, stored)
    return stored


def _descriptions(
    views: dict[str, ConceptViews], graph: KnowledgeGraph, cohort: Cohort
) -> dict[str, Any]:
    """Titles of all concepts, and the first neighbours of those that the graph holds."""
    described: dict[str, Any] = {}
    for kind in KINDS:
        # the same digits may be a diagnosis and a procedure
        table = cohort.codes[cohort.codes["system"] == _SYSTEMS[kind]]
        known = dict(zip(table["code"], table["title"], strict=True))
        codes = views[kind].codes
        near = {}
        for code, node in zip(codes, graph.concepts.get(kind, ()), strict=False):
            if node >= 0:
                near[code] = _first_of_each(graph.neighbours(graph.nodes[node]))
        titles = {code: str(known[code]) for code in codes if known.get(code)}
        described[kind] = {"titles": titles, "neighbours": near}
    return described


def _first_of_each(edges: Sequence[Neighbour]) -> list[list[str]]:
    """Relation and label of a few edges of every relation; one of each comes first."""
    seen: dict[str, int] = {}
    ranked = []
    for edge in edges:
        rank = seen[edge.relation] = seen.get(edge.relation, -1) + 1
        if rank < PER_RELATION:
            ranked.append((rank, edge.relation, edge.label))
    return [[relation, label] for _, relation, label in sorted(ranked)]


def _keep_views(place: Path, stored: StoredViews) -> None:
    arrays: dict[str, Any] = {}
    for kind, views in stored.views.items():
        arrays[f"{kind}.codes"] = np.array(views.codes, dtype=np.str_)
        arrays |= {f"{kind}.{view}": getattr(views, view) for view in VIEWS}
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    _write_arrays(temporary / "views.npz", arrays)
    facts = {
        "descriptions": stored.descriptions,
        "notes": stored.notes,
        "seconds": stored.seconds,
    }
    write_json_atomic(temporary / "views.json", facts)
    publish_folder(temporary, place)


def _read_views(place: Path) -> StoredViews:
    try:
        with np.load(place / "views.npz", allow_pickle=False) as packed:
            views = {
                kind: ConceptViews(
                    tuple(str(code) for code in packed[f"{kind}.codes"]),
                    *(packed[f"{kind}.{view}"] for view in VIEWS),
                )
                for kind in KINDS
            }
        facts = read_json(place / "views.json")
        return StoredViews(views, facts["descriptions"], facts["notes"], facts["seconds"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"stored views of concepts are damaged: {place} ({type(error).__name__}); "
            "delete the folder and run `medrec concepts` again"
        ) from error


def _codes(
    config: ConceptConfig, kind: str, views: ConceptViews, work: Path, report: Progress
) -> TrainedCodes:
    """Codes of one kind, from the work folder if they are there."""
    record = work / "training.json"
    if record.is_file():
        report(f"{kind}: found")
        stored = read_json(record)
        with np.load(work / "codes.npz", allow_pickle=False) as packed:
            codes = ConceptCodes(packed["index"], packed["books"], tuple(stored["views"]))
        return TrainedCodes(codes, stored["history"], stored["facts"])

    def on_check(row: dict[str, float]) -> None:
        report(
            f"{kind}: epoch {row['epoch']:.0f}, unexplained {row['unexplained']:.3f}, "
            f"collisions {row['collisions']:.3f}"
        )

    trained = train_codes(
        views,
        getattr(config.quantiser.codebook_sizes, kind),
        config.quantiser,
        structure=config.structure,
        seed=config.seed,
        on_check=on_check,
    )
    codes = trained.codes
    _write_arrays(work / "codes.npz", {"index": codes.index, "books": codes.books})
    # written last: where it is, the arrays are
    write_json_atomic(
        record, {"views": codes.views, "history": trained.history, "facts": trained.facts}
    )
    return trained


def _publish(
    final: Path,
    key: str,
    config: ConceptConfig,
    cohort: Cohort,
    stored: StoredViews,
    trained: dict[str, TrainedCodes],
) -> None:
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": final.name,
        "digest": key,
        "config": config.model_dump(mode="json"),
        "cohort": cohort.digest,
        "cohort_name": cohort.folder.name,
        "views": list(trained[KINDS[0]].codes.views),
        "seeds": {"views": config.seed, "quantisers": config.seed},
        "notes": stored.notes,
        "seconds": {"views": stored.seconds}
        | {kind: item.facts.get("seconds", 0.0) for kind, item in trained.items()},
        "training": {kind: item.facts for kind, item in trained.items()},
        "created": now_utc(),
        "provenance": provenance("torch", "scikit-learn", "scipy"),
    }
    codes = {kind: item.codes for kind, item in trained.items()}
    table = ConceptTable(temporary, manifest, stored.views, codes)
    manifest["collisions"] = collision_table(table).to_dict("records")
    manifest["memory"] = memory_report(table)
    manifest["paper_pair"] = pair_codes(table)
    try:
        write_json_atomic(temporary / DESCRIPTIONS_FILE, stored.descriptions)
        write_json_atomic(
            temporary / HISTORY_FILE, {kind: item.history for kind, item in trained.items()}
        )
        table.save()
        publish_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes_atomic(path, buffer.getvalue())
