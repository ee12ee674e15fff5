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
"""Of a larger cohort the first by SMILES are drawn."""
Float = npt.NDArray[np.float64]


def _molecules(cohort: Cohort) -> tuple[tuple[str, ...], DrugMolecules]:
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
    codes, drugs = _molecules(cohort)
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
    smiles, conformers = _conformers(_molecules(cohort)[1], features)
    if len(smiles) < 2:
        return "Fewer than two molecules of the cohort have a conformer."
    flat = GINEncoder(state["encoder"]["d_model"], state["encoder"]["gin_layers"], 0.0)
    sizes = state["encoder_3d"]
    cutoff = float(sizes["cutoff_angstrom"])
    spatial = GVPEncoder(
        sizes["d_model"], sizes["gvp_layers"], cutoff_angstrom=cutoff, n_rbf=sizes["n_rbf"]
    )
    flat.load_state_dict(state["gin_molecule"])
    spatial.load_state_dict(state["gvp_molecule"])
    rows = F.normalize(flat.eval()(build_graphs(smiles)), dim=1)
    columns = F.normalize(spatial.eval()(build_geometries(conformers, cutoff)), dim=1)
    return (rows @ columns.T).double().numpy()


def _conformers(drugs: DrugMolecules, features: FeatureTable) -> tuple[list[str], list[Conformer]]:
    """SMILES and conformers of the first molecules that have one of two or more atoms."""
    smiles: list[str] = []
    found: list[Conformer] = []
    for text, row in zip(drugs.smiles, features.rows(drugs.species), strict=True):
        stored: Any = features.conformer(int(row)) if row >= 0 else None
        if stored is None or len(stored[0]) < 2 or len(found) == MOST_MOLECULES:
            continue
        own = atom_categories(Chem.MolFromSmiles(text))
        hydrogens = np.zeros((len(stored[0]) - len(own), own.shape[1]), dtype=np.int64)
        smiles.append(text)
        found.append(Conformer(stored[0], stored[1], np.concatenate([own, hydrogens])))
    return smiles, found


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
