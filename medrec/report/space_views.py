"""Maps of the molecule space: what is placed, by which vectors, where, and next to what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from medrec.molecules.drugs import DrugMolecules
from medrec.molecules.features import FeatureTable
from medrec.molecules.structure import fingerprint_bits
from medrec.report.embeddings import (
    MIN_CLASSES,
    SEED,
    Embedding,
    Separation,
    separation_of,
    tanimoto,
)
from medrec.report.pretrained import molecule_vectors
from medrec.runs import Run

N_NEIGHBOURS = 5
MOLECULE, CLASS = "molecule", "class"
Float = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """One map.

    Attributes
    ----------
    title : str
    kind : {"molecule", "class"}
        What a point is.
    places : ndarray (n,)
        Of the points in the list of molecules, or of classes.
    similarity : ndarray (n, n)
        1 for equal vectors.
    measure : str
        Name of the similarity.
    pca, tsne : ndarray (n, 2)
    shares : tuple of float
        Of the variance, of the two components of PCA.
    perplexity : float
    separation : Separation or None
        Silhouette by ATC main group; None where fewer than two groups have two points.
    """

    title: str
    kind: str
    places: Places
    similarity: Float
    measure: str
    pca: Float
    tsne: Float
    shares: tuple[float, float]
    perplexity: float
    separation: Separation | None

    @classmethod
    def of(
        cls,
        title: str,
        kind: str,
        places: Places,
        vectors: Float,
        groups: Sequence[str],
        similarity: Float | None = None,
        measure: str = "cosine",
    ) -> View | None:
        """Project vectors (n, d); None for fewer than five.

        PCA is of the vectors as they are. t-SNE starts from it, with a fixed seed, on squared
        distances 2 (1 - similarity), which for unit vectors are the Euclidean ones; perplexity 30,
        or a third of the points less one where these are few.

        Parameters
        ----------
        groups : sequence of str (n,)
            ATC main group of each point.
        similarity : ndarray (n, n), optional
            Cosine by default.
        """
        n = len(places)
        if n < MIN_CLASSES:
            return None
        if similarity is None:
            length = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.where(length > 0, length, 1.0)
            similarity = np.clip(vectors @ vectors.T, -1.0, 1.0)
        pca = PCA(n_components=2, random_state=SEED)
        with np.errstate(invalid="ignore"):  # equal vectors have no variance to share
            flat = pca.fit_transform(vectors)
        distance = np.sqrt(2.0 * np.maximum(1.0 - similarity, 0.0))
        np.fill_diagonal(distance, 0.0)
        perplexity = min(30.0, (n - 1) / 3)
        spread = flat[:, 0].std()
        start = (flat / (spread if spread > 0 else 1.0) * 1e-4).astype(np.float32)
        near = TSNE(perplexity=perplexity, metric="precomputed", init=start, random_state=SEED)
        first, second = (float(share) for share in np.nan_to_num(pca.explained_variance_ratio_))
        return cls(
            title,
            kind,
            np.asarray(places, dtype=np.int64),
            similarity,
            measure,
            flat.astype(np.float64),
            near.fit_transform(distance).astype(np.float64),
            (first, second),
            perplexity,
            separation_of(similarity, groups),
        )

    def neighbours(self, n: int = N_NEIGHBOURS) -> tuple[Places, Float]:
        """Points most similar to each point, and how similar.

        Returns
        -------
        ndarray (n_points, n), ndarray (n_points, n)
            Numbers of points of this view, the nearest first, of equal ones the earlier; without
            the point itself.
        """
        others = self.similarity.copy()
        np.fill_diagonal(others, -np.inf)
        order = np.argsort(-others, axis=1, kind="stable")[:, : min(n, len(others) - 1)]
        return order, np.take_along_axis(others, order, axis=1)


def molecule_views(
    drugs: DrugMolecules, groups: Sequence[str], pretrain: Run | None, features: FeatureTable | None
) -> list[View]:
    """Maps of single molecules: pre-trained encoders, ELF features, fingerprints; what exists.

    Parameters
    ----------
    groups : sequence of str (n_molecules,)
        ATC main group of each molecule.
    """
    if not len(drugs):
        return []
    bits = fingerprint_bits(drugs.smiles).double().numpy()
    everything = np.arange(len(drugs))
    found = []
    if pretrain is not None:
        found += [
            View.of(title, MOLECULE, places, vectors, [groups[int(i)] for i in places])
            for title, places, vectors in molecule_vectors(drugs, pretrain, features)
        ]
    if features is not None:
        values, mask = features.align(drugs.species)
        places = np.flatnonzero(mask)
        own = values[places].astype(np.float64)
        found.append(
            View.of("ELF features", MOLECULE, places, own, [groups[int(i)] for i in places])
        )
    title, similarity = "fingerprints (ECFP4)", tanimoto(bits)
    found.append(View.of(title, MOLECULE, everything, bits, groups, similarity, "Tanimoto"))
    return [view for view in found if view is not None]


def class_views(found: Sequence[tuple[str, Embedding]], place_of: Mapping[str, int]) -> list[View]:
    """Maps of drug classes by the vectors of runs.

    Parameters
    ----------
    found : sequence of (title, Embedding)
        Of `medrec.report.learned.class_embeddings`.
    place_of : mapping of str to int
        Place of each ATC code in the list of classes.
    """
    views = []
    for title, item in found:
        kept = [i for i, code in enumerate(item.codes) if code in place_of]
        places = np.array([place_of[item.codes[i]] for i in kept], dtype=np.int64)
        groups = [item.groups[i] for i in kept]
        views.append(View.of(title, CLASS, places, item.vectors[kept], groups))
    return [view for view in views if view is not None]
