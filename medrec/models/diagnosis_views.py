"""Two descriptions of every diagnosis, and who stands near whom; from training visits only.

The co-occurrence view says with which diagnoses, procedures and drugs a diagnosis is recorded, the
text view what its title and its place in the ICD say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from medrec.data.codes import CodeMaps
from medrec.data.dataset import CodeRows
from medrec.data.schema import data_root
from medrec.models.base import FittingData
from quantum.base import InputError

Array = npt.NDArray[np.float32]
_LABEL = re.compile(r"(?:icd(\d+):)?(.*)", re.DOTALL)


@dataclass(frozen=True)
class DiagnosisViews:
    """What pre-training reads; N diagnoses.

    Attributes
    ----------
    co_occurrence, text : ndarray (N, d_1), (N, d_2)
        The two views; rows of length 1, or 0.
    condition : ndarray (N, d_3)
        Procedures and drugs of the visits that have the diagnosis; rows of length 1, or 0.
    rare : ndarray (N,) of bool
        Whether few training visits have the diagnosis.
    near, far : ndarray (N,) of int64
        The diagnosis with the most, and with the least, similar drugs among the frequent ones.
    """

    co_occurrence: Array
    text: Array
    condition: Array
    rare: npt.NDArray[np.bool_]
    near: npt.NDArray[np.int64]
    far: npt.NDArray[np.int64]


def diagnosis_views(
    data: FittingData, n_dims: int, rare_share: float, seed: int, text: Array | None = None
) -> DiagnosisViews:
    """Build both views of the diagnosis vocabulary.

    Parameters
    ----------
    n_dims : int
        Largest size of each view.
    rare_share : float
        The share of the vocabulary, least frequent first, that counts as rare.
    text : ndarray (N, d), optional
        Takes the place of the text view, for example embeddings of a language model.
    """
    dataset, context = data.dataset, data.context
    visits = dataset.visit_numbers(data.patients)
    diagnoses = _multi_hot(dataset.diagnoses, visits, context.n_diagnoses)
    procedures = _multi_hot(dataset.procedures, visits, context.n_procedures)
    drugs = _multi_hot(dataset.drugs, visits, context.n_drugs)
    others = diagnoses.T @ sparse.hstack([diagnoses, procedures, drugs], format="csr")
    others.setdiag(0.0)  # a diagnosis always occurs with itself
    counts = np.asarray(diagnoses.sum(axis=0)).ravel().astype(np.int64)
    rare = rare_diagnoses(counts, rare_share)
    context_of = diagnoses.T @ sparse.hstack([procedures, drugs], format="csr")
    near, far = reference_diagnoses((diagnoses.T @ drugs).toarray(), counts, rare)
    if text is None:
        text = text_view(dataset.vocabularies.diagnoses.codes, n_dims, seed)
    return DiagnosisViews(
        compress(positive_pmi(others), n_dims, seed),
        check_view(text, context.n_diagnoses),
        compress(positive_pmi(context_of), n_dims, seed),
        rare,
        near,
        far,
    )


def _multi_hot(rows: CodeRows, visits: npt.NDArray[np.int64], n_codes: int) -> sparse.csr_matrix:
    codes, owner = rows.gather(visits)
    shape = (len(visits), n_codes)
    return sparse.csr_matrix((np.ones(len(codes)), (owner, codes)), shape=shape)


def positive_pmi(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Positive pointwise mutual information of co-occurrence counts (N, C)."""
    table = sparse.coo_matrix(counts)
    rows = np.asarray(counts.sum(axis=1)).ravel()
    columns = np.asarray(counts.sum(axis=0)).ravel()
    stored = table.data > 0
    row, column, value = table.row[stored], table.col[stored], table.data[stored]
    weight = np.log(value * rows.sum() / (rows[row] * columns[column])).clip(min=0.0)
    return sparse.csr_matrix((weight, (row, column)), shape=table.shape)


def compress(matrix: sparse.csr_matrix, n_dims: int, seed: int) -> Array:
    """Truncated SVD of a sparse matrix, rows scaled to length 1; zero rows stay zero."""
    from sklearn.decomposition import TruncatedSVD

    size = min(n_dims, min(matrix.shape) - 1)
    if size < 1 or matrix.nnz == 0:
        dense = np.zeros((matrix.shape[0], max(size, 1)))
    else:
        dense = TruncatedSVD(size, random_state=seed).fit_transform(matrix)
    length = np.linalg.norm(dense, axis=1, keepdims=True)
    return (dense / np.where(length > 1e-9, length, 1.0)).astype(np.float32)


def text_view(codes: tuple[str, ...], n_dims: int, seed: int) -> Array:
    """TF-IDF of the words of the ICD titles and of the codes' beginnings, compressed (N, d)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not codes:
        return np.zeros((0, 1), dtype=np.float32)
    maps = CodeMaps(data_root() / "codes")
    tokens = [code_tokens(code, maps) for code in codes]
    matrix = TfidfVectorizer(analyzer=lambda words: words).fit_transform(tokens)
    return compress(matrix, n_dims, seed)


def code_tokens(label: str, maps: CodeMaps) -> list[str]:
    """Words of a code's title, and its beginnings from three characters on.

    A label without an ICD version is looked up in ICD-9 first, then in ICD-10; a code that no table
    knows has its beginnings only.
    """
    found = _LABEL.fullmatch(label)
    version, code = (found.group(1), found.group(2)) if found else (None, label)
    title = ""
    for number in (int(version),) if version in ("9", "10") else (9, 10):
        title = title or maps.title("diagnosis", code, number)
    words = re.findall(r"[a-z]{3,}", title.split("[")[0].lower())
    return words + [f"^{code[:length]}" for length in range(min(3, len(code)), len(code) + 1)]


def rare_diagnoses(counts: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.bool_]:
    """Mark the least frequent share of the diagnoses."""
    rare = np.zeros(len(counts), dtype=bool)
    rare[np.argsort(counts, kind="stable")[: round(share * len(counts))]] = True
    return rare


def reference_diagnoses(
    drugs: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], rare: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Most and least similar frequent diagnosis of each, by the drugs given with them.

    Parameters
    ----------
    drugs : ndarray (N, D)
        Training visits that have the diagnosis and the drug.
    """
    n = len(counts)
    frequent = np.flatnonzero(~rare)
    if len(frequent) < 2:
        frequent = np.arange(n)
    # lift over the mean visit: what all patients get says nothing about a diagnosis
    rate = (drugs + drugs.sum(axis=0) / max(counts.sum(), 1)) / (counts[:, None] + 1.0)
    profile = np.log(rate.clip(min=1e-9))
    profile -= profile.mean(axis=0)
    profile /= np.linalg.norm(profile, axis=1, keepdims=True).clip(min=1e-9)
    likeness = profile @ profile[frequent].T
    own = frequent[None, :] == np.arange(n)[:, None]
    if n < 2:
        return np.zeros(n, np.int64), np.zeros(n, np.int64)
    near = frequent[np.where(own, -np.inf, likeness).argmax(axis=1)]
    far = frequent[np.where(own, np.inf, likeness).argmin(axis=1)]
    return near, far


def check_view(view: Array, n_codes: int) -> Array:
    """Refuse embeddings from outside that do not fit the vocabulary.

    Raises
    ------
    InputError
        If the shape is not (n_codes, d) or a value is not finite.
    """
    if view.ndim != 2 or view.shape[0] != n_codes or not np.isfinite(view).all():
        raise InputError(
            f"diagnosis embeddings have shape {tuple(view.shape)}; expected {n_codes} finite rows, "
            "in the order of the vocabulary"
        )
    return view.astype(np.float32)
