"""What a bimodal pre-training run did to molecules: vectors before and after, 2D against 3D."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import torch
from rdkit import Chem
from torch.nn import functional as F

from medrec.data.cohort import Cohort
from medrec.data.schema import Vocabulary
from medrec.molecules.drugs import DrugMolecules, build_drug_molecules
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.encoders_3d import GVPEncoder
from medrec.molecules.features import FeatureTable
from medrec.molecules.geometries import Conformer, atom_categories, build_geometries
from medrec.molecules.structure import build_graphs
from medrec.report.embeddings import Embedding
from medrec.report.figures import style
from medrec.runs import Run

MOST_MOLECULES = 150
"""Of a larger cohort the first by SMILES stand in the heat map; also a batch of conformers."""
Float = npt.NDArray[np.float64]


def cohort_molecules(cohort: Cohort) -> tuple[tuple[str, ...], DrugMolecules]:
    """Codes of all classes of a cohort, in order, and their molecules."""
    codes = tuple(sorted(cohort.drugs["atc"]))
    return codes, build_drug_molecules(cohort, Vocabulary(codes))


@torch.no_grad()
def class_vectors(cohort: Cohort, run: Run) -> list[tuple[str, Embedding]]:
    """Class vectors of the 2D encoder as the run first drew it, and after pre-training.

    Returns
    -------
    list of (title, Embedding)
        Classes with a molecule; empty if the run stored no 2D encoder.
    """
    state = run.load_checkpoint("best")
    if state is None or "gin_molecule" not in state or "encoder" not in state:
        return []
    codes, drugs = cohort_molecules(cohort)
    if not len(drugs):
        return []
    names = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
    graphs = build_graphs(drugs.smiles)
    with torch.random.fork_rng(devices=[]):
        # the 2D encoder of molecules is the first thing a run draws
        torch.manual_seed(int(run.config().get("seed", 0)))
        encoder = GINEncoder(state["encoder"]["d_model"], state["encoder"]["gin_layers"], 0.0)
    encoder.eval()
    known = drugs.projection.sum(axis=1) > 0
    kept = [code for code, has in zip(codes, known, strict=True) if has]
    found = []
    for title in ("before pre-training", "after pre-training"):
        if title.startswith("after"):
            encoder.load_state_dict(state["gin_molecule"])
        vectors = (drugs.projection[known] @ encoder(graphs).numpy()).astype(np.float64)
        found.append((title, Embedding.of(kept, names, vectors, "2D encoder, mean of a class")))
    return found


@torch.no_grad()
def two_views(cohort: Cohort, run: Run, features: FeatureTable | None) -> Float | str:
    """Cosines between the 2D vectors of molecules (rows) and the 3D vectors (columns).

    Returns
    -------
    ndarray (n, n) or str
        n molecules of the cohort with a conformer; or why there is nothing to show.
    """
    state = run.load_checkpoint("best") or {}
    if "gvp_molecule" not in state or "encoder_3d" not in state:
        return "The pre-training run holds no 3D encoder, so 2D and 3D cannot be compared."
    if features is None:
        return "The 3D view needs the feature table with the conformers; see --features."
    drugs = cohort_molecules(cohort)[1]
    with_conformer, conformers = _conformers(drugs, features)
    kept, conformers = with_conformer[:MOST_MOLECULES], conformers[:MOST_MOLECULES]
    if len(kept) < 2:
        return "Fewer than two molecules of the cohort have a conformer."
    flat, spatial = _flat_encoder(state), _spatial_encoder(state)
    rows = F.normalize(flat(build_graphs([drugs.smiles[i] for i in kept])), dim=1)
    cutoff = float(state["encoder_3d"]["cutoff_angstrom"])
    columns = F.normalize(spatial(build_geometries(conformers, cutoff)), dim=1)
    return (rows @ columns.T).double().numpy()


@torch.no_grad()
def molecule_vectors(
    drugs: DrugMolecules, run: Run, features: FeatureTable | None
) -> list[tuple[str, npt.NDArray[np.int64], Float]]:
    """Vectors of single molecules from the encoders that a pre-training run stored.

    Returns
    -------
    list of (title, places, vectors)
        Places (k,) of the molecules in ``drugs``, and their vectors (k, d). The 3D encoder's need
        conformers, so ``features``. Empty if the run stored no encoder of molecules.
    """
    state = run.load_checkpoint("best") or {}
    found = []
    if len(drugs) and "gin_molecule" in state and "encoder" in state:
        vectors = _flat_encoder(state)(build_graphs(drugs.smiles)).double().numpy()
        found.append(("2D encoder, pre-trained", np.arange(len(drugs)), vectors))
    if features is not None and "gvp_molecule" in state and "encoder_3d" in state:
        kept, conformers = _conformers(drugs, features)
        cutoff = float(state["encoder_3d"]["cutoff_angstrom"])
        if kept:
            encoder = _spatial_encoder(state)
            parts = [
                encoder(build_geometries(conformers[i : i + MOST_MOLECULES], cutoff))
                for i in range(0, len(kept), MOST_MOLECULES)
            ]
            spatial = torch.cat(parts).double().numpy()
            found.append(("3D encoder, pre-trained", np.array(kept, dtype=np.int64), spatial))
    return found


def _flat_encoder(state: dict[str, Any]) -> GINEncoder:
    encoder = GINEncoder(state["encoder"]["d_model"], state["encoder"]["gin_layers"], 0.0)
    encoder.load_state_dict(state["gin_molecule"])
    return encoder.eval()


def _spatial_encoder(state: dict[str, Any]) -> GVPEncoder:
    sizes = state["encoder_3d"]
    encoder = GVPEncoder(
        sizes["d_model"],
        sizes["gvp_layers"],
        cutoff_angstrom=float(sizes["cutoff_angstrom"]),
        n_rbf=sizes["n_rbf"],
    )
    encoder.load_state_dict(state["gvp_molecule"])
    return encoder.eval()


def _conformers(drugs: DrugMolecules, features: FeatureTable) -> tuple[list[int], list[Conformer]]:
    """Places and conformers of the molecules that have one of two or more atoms."""
    kept: list[int] = []
    found: list[Conformer] = []
    rows = features.rows(drugs.species)
    for place, (text, row) in enumerate(zip(drugs.smiles, rows, strict=True)):
        stored: Any = features.conformer(int(row)) if row >= 0 else None
        if stored is None or len(stored[0]) < 2:
            continue
        own = atom_categories(Chem.MolFromSmiles(text))
        hydrogens = np.zeros((len(stored[0]) - len(own), own.shape[1]), dtype=np.int64)
        kept.append(place)
        found.append(Conformer(stored[0], stored[1], np.concatenate([own, hydrogens])))
    return kept, found


def nearest_share(similarity: Float) -> float:
    """Share of molecules whose own 3D vector is the most similar to their 2D vector."""
    return float((similarity.argmax(axis=1) == np.arange(len(similarity))).mean())


def views_figure(similarity: Float) -> go.Figure:
    """Heat map; a bright diagonal means that the two views of a molecule agree."""
    figure = go.Figure(
        go.Heatmap(
            z=np.round(similarity, 3).tolist(),
            colorscale="Cividis",
            colorbar={"title": "cosine", "thickness": 12},
            hovertemplate="2D of %{y}, 3D of %{x}: %{z:.2f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="3D vector of molecule", constrain="domain")
    figure.update_yaxes(
        title="2D vector of molecule", autorange="reversed", scaleanchor="x", constrain="domain"
    )
    return style(figure, 480)
