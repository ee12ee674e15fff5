"""Drug vectors of models as figures: similarity terrain, PCA, t-SNE, and how they follow ATC.

After the embedding figures of BiMoRec (Mu et al.), figures 2 and 6, with two additions: a number
for what the eye is asked to see (silhouette by ATC main group) and what chance gives for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.metrics import silhouette_score

from medrec.data.cohort import Cohort
from medrec.data.schema import Vocabulary
from medrec.molecules.drugs import build_drug_molecules
from medrec.molecules.structure import fingerprint_bits
from medrec.report.figures import PALETTE, style

N_SHUFFLES = 500
SEED = 0
MIN_CLASSES = 5
"""Fewer points than this give no projection."""
_SYMBOLS = ("circle", "diamond", "square")
_COLOUR_ORDER = "ACNJBRMDGHLPSV?"  # the seven largest groups of hospital drugs get circles
Float = npt.NDArray[np.float64]

ATC_GROUPS = {
    "A": "alimentary tract and metabolism",
    "B": "blood",
    "C": "cardiovascular",
    "D": "dermatologicals",
    "G": "genito-urinary, sex hormones",
    "H": "systemic hormones",
    "J": "anti-infectives",
    "L": "antineoplastic, immunomodulating",
    "M": "musculo-skeletal",
    "N": "nervous system",
    "P": "antiparasitic",
    "R": "respiratory",
    "S": "sensory organs",
    "V": "various",
}


@dataclass(frozen=True)
class Embedding:
    """Vectors of drug classes, in order of their ATC codes.

    Attributes
    ----------
    codes, names : tuple of str
        Of the n classes.
    vectors : ndarray (n, d)
        Of unit length; a zero vector stays zero.
    source : str
        Where they come from.
    """

    codes: tuple[str, ...]
    names: tuple[str, ...]
    vectors: Float
    source: str

    @classmethod
    def of(
        cls, codes: Sequence[str], names: Mapping[str, str], vectors: Float, source: str
    ) -> Embedding:
        """Sort by ATC code and scale to unit length."""
        order = sorted(range(len(codes)), key=lambda i: codes[i])
        rows = vectors[order]
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        kept = tuple(codes[i] for i in order)
        return cls(
            kept,
            tuple(names.get(code, "") for code in kept),
            rows / np.where(length > 0, length, 1.0),
            source,
        )

    @property
    def similarity(self) -> Float:
        """Cosines (n, n)."""
        return np.clip(self.vectors @ self.vectors.T, -1.0, 1.0)

    @property
    def groups(self) -> list[str]:
        """ATC main group (first letter) of each class."""
        return [code[:1] for code in self.codes]


def fingerprint_similarity(cohort: Cohort, codes: Sequence[str]) -> Float:
    """Mean Tanimoto similarity of ECFP4 bits between the molecules of two classes.

    Returns
    -------
    ndarray (n, n)
        NaN where a class has no molecule; 1 on the diagonal.
    """
    drugs = build_drug_molecules(cohort, Vocabulary(tuple(codes)))
    bits = fingerprint_bits(drugs.smiles).double().numpy()
    projection = drugs.projection.astype(np.float64)
    found = np.asarray(projection @ tanimoto(bits) @ projection.T)
    np.fill_diagonal(found, 1.0)
    empty = projection.sum(axis=1) == 0
    found[empty] = np.nan
    found[:, empty] = np.nan
    return found


def tanimoto(bits: Float) -> Float:
    """Shared bits over all bits of each pair of rows, (n, n); 1 for two rows without bits."""
    common = bits @ bits.T
    count = bits.sum(axis=1)
    union = count[:, None] + count[None] - common
    return np.where(union > 0, common / np.maximum(union, 1.0), 1.0)


@dataclass(frozen=True)
class Separation:
    """Silhouette by ATC main group, and the same for shuffled groups.

    Attributes
    ----------
    score : float
        From -1 to 1; cosine distance, groups of two or more classes.
    null_mean, null_high : float
        Mean and 95 % quantile over shuffles.
    p : float
        Share of shuffles that score as high, the real order counted in.
    n_classes, n_groups : int
    """

    score: float
    null_mean: float
    null_high: float
    p: float
    n_classes: int
    n_groups: int


def separation(embedding: Embedding) -> Separation | None:
    """How far ATC main groups lie apart; None where fewer than two groups have two members."""
    return separation_of(embedding.similarity, embedding.groups)


def separation_of(similarity: Float, groups: Sequence[str]) -> Separation | None:
    """`separation` for any similarities of at most 1.

    Parameters
    ----------
    similarity : ndarray (n, n)
        1 minus it is the distance.
    groups : sequence of str (n,)
    """
    names = np.array(groups)
    sizes = {group: int((names == group).sum()) for group in set(groups)}
    kept = np.array([sizes[group] > 1 for group in groups], dtype=bool)
    labels = names[kept]
    if len(set(labels)) < 2:
        return None
    distance = 1.0 - similarity[np.ix_(kept, kept)]
    np.fill_diagonal(distance, 0.0)
    distance = np.maximum(distance, 0.0)
    score = float(silhouette_score(distance, labels, metric="precomputed"))
    rng = np.random.default_rng(SEED)
    null = np.array(
        [
            silhouette_score(distance, rng.permutation(labels), metric="precomputed")
            for _ in range(N_SHUFFLES)
        ]
    )
    p = (1 + int((null >= score).sum())) / (1 + N_SHUFFLES)
    return Separation(
        score, float(null.mean()), float(np.quantile(null, 0.95)), p, len(labels), len(set(labels))
    )


def group_mark(group: str) -> tuple[str, str]:
    """Colour and marker symbol of an ATC main group; seven colours, then the next symbol."""
    place = _COLOUR_ORDER.find(group) % len(_COLOUR_ORDER)
    return PALETTE[place % len(PALETTE)], _SYMBOLS[place // len(PALETTE)]


def fingerprint_agreement(similarity: Float, fingerprints: Float) -> tuple[float, float]:
    """Correlation with, and mean absolute difference to, fingerprint similarity; off-diagonal."""
    upper = np.triu_indices(len(similarity), k=1)
    ours, theirs = similarity[upper], fingerprints[upper]
    known = np.isfinite(theirs)
    ours, theirs = ours[known], theirs[known]
    if len(ours) < 3 or ours.std() == 0 or theirs.std() == 0:
        return float("nan"), float("nan")
    return float(np.corrcoef(ours, theirs)[0, 1]), float(np.abs(ours - theirs).mean())


# --------------------------------------------------------------------------- figures


def terrain(surfaces: Mapping[str, tuple[Embedding, Float]]) -> go.Figure:
    """Two landscapes over pairs of classes, both in order of ATC; a slider chooses whose.

    Left the cosine of two classes' vectors; right its absolute difference to the similarity of
    their fingerprints, as in BiMoRec's figure 2.

    Parameters
    ----------
    surfaces : mapping of str to (Embedding, ndarray (n, n))
        Title to vectors and fingerprint similarities.
    """
    figure = make_subplots(
        cols=2,
        specs=[[{"type": "surface"}, {"type": "surface"}]],
        horizontal_spacing=0.02,
        subplot_titles=("cosine similarity", "|cosine − fingerprint similarity|"),
    )
    titles, pairs = list(surfaces), list(surfaces.values())
    for number, (embedding, fingerprints) in enumerate(pairs):
        panels = (embedding.similarity, np.abs(embedding.similarity - fingerprints))
        for column, heights in enumerate(panels, start=1):
            figure.add_trace(_surface(embedding, heights, number == 0), row=1, col=column)
    first = pairs[0][0]
    scene = {
        "xaxis": _atc_axis(first),
        "yaxis": _atc_axis(first),
        "zaxis": {"title": "", "range": [-1, 1]},
        "camera": {"eye": {"x": 1.2, "y": -1.2, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.1}},
        "aspectratio": {"x": 1, "y": 1, "z": 0.55},
    }
    gaps = [float(np.nanmax(item.similarity - other, initial=0.0)) for item, other in pairs]
    gaps += [float(np.nanmax(other - item.similarity, initial=0.0)) for item, other in pairs]
    top = max(*gaps, 0.1)
    figure.update_layout(scene=scene, scene2={**scene, "zaxis": {"title": "", "range": [0, top]}})
    style(figure, 500).update_layout(margin={"l": 0, "r": 0, "t": 40, "b": 20})
    if len(titles) > 1:
        steps = [
            {
                "label": title,
                "method": "restyle",
                "args": [{"visible": [i // 2 == step for i in range(2 * len(titles))]}],
            }
            for step, title in enumerate(titles)
        ]
        figure.update_layout(
            height=560,
            margin={"b": 100},
            sliders=[
                {
                    "steps": steps,
                    "currentvalue": {"prefix": "vectors of "},
                    "pad": {"t": 4},
                    "len": 0.8,
                    "x": 0.1,
                }
            ],
        )
    return figure


def _surface(embedding: Embedding, heights: Float, visible: bool) -> go.Surface:
    rounded = np.round(heights, 3)
    return go.Surface(
        z=[[None if value != value else float(value) for value in row] for row in rounded],
        visible=visible,
        colorscale="Cividis",
        showscale=False,
        cmin=0.0,
        cmax=1.0,
        text=[[f"{a} and {b}" for a in embedding.codes] for b in embedding.codes],
        hovertemplate="%{text}<br>%{z:.3f}<extra></extra>",
    )


def _atc_axis(embedding: Embedding) -> dict[str, object]:
    """Letters of the main groups where each begins."""
    groups, shown = embedding.groups, [0]
    for i in range(1, len(groups)):
        # letters that stand closer than a twelfth of the axis would cover each other
        if groups[i] != groups[i - 1] and i - shown[-1] >= len(groups) / 12:
            shown.append(i)
    return {"title": "", "tickvals": shown, "ticktext": [groups[i] for i in shown]}
