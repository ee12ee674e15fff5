"""Causal structure and effects of codes, estimated on training visits only.

Discovery is Greedy Equivalence Search (Chickering, JMLR 3, 2002) as causal-learn provides it, with
the linear-Gaussian BIC of the covariance matrix. Its run time grows without bound with the number
of edges, hence three limits, none of which depends on the clock: only the most frequent codes take
part, a node has few parents, and the penalty of the BIC is raised until a stated number of pairs of
codes are still worth an edge on their own. Sixty codes on 10,000 visits take about 10 s.

Effects are the coefficients of one logistic regression per drug on all codes of the visit: the
effect of a code is adjusted for all other diagnoses and procedures of the same visit, and for
nothing else. Whether that makes it causal is the assumption of the published model, not a finding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from medrec.models.base import FittingData
from quantum.base import ProgramMissingError

MAX_PARENTS = 3
MIN_VISITS = 20
"""A code takes part in discovery if at least that many visits have it, and as many have not."""


def code_matrix(data: FittingData) -> sparse.csr_matrix:
    """Multi-hot diagnoses, then procedures, of the training visits (n, N)."""
    visits = data.dataset.visit_numbers(data.patients)
    diagnoses, d_row = data.dataset.diagnoses.gather(visits)
    procedures, p_row = data.dataset.procedures.gather(visits)
    columns = np.concatenate([diagnoses, procedures + data.context.n_diagnoses])
    rows = np.concatenate([d_row, p_row])
    n_codes = data.context.n_diagnoses + data.context.n_procedures
    return sparse.csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(visits), n_codes))


def causal_graph(
    codes: sparse.csr_matrix, n_codes: int, pairs_per_code: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Directed acyclic graph of the most frequent codes.

    Parameters
    ----------
    codes : csr_matrix (n, N)
        Multi-hot codes of the training visits.
    n_codes : int
        How many codes take part, G at most.
    pairs_per_code : float
        The BIC's penalty is raised until at most this many pairs per code would gain from an edge.

    Returns
    -------
    ndarray (G,) of int64
        Columns of the codes in the graph, the most frequent first.
    ndarray (G, G) of bool
        Element (i, j) tells whether there is an edge i -> j. Edges whose direction the data leave
        open are directed by a consistent extension of the equivalence class.
    """
    n_visits = codes.shape[0]
    counts = np.asarray(codes.sum(axis=0)).ravel()
    able = np.flatnonzero((counts >= MIN_VISITS) & (n_visits - counts >= MIN_VISITS))
    chosen = able[np.argsort(-counts[able], kind="stable")][:n_codes]
    if len(chosen) < 2:
        return chosen, np.zeros((len(chosen), len(chosen)), dtype=bool)
    covariance = np.cov(codes[:, chosen].toarray().T, ddof=0)
    penalty = bic_penalty(covariance, n_visits, pairs_per_code)
    search, extend = _causal_learn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = search(cov=covariance, n=n_visits, maxP=MAX_PARENTS, lambda_value=penalty)
        marks = extend(found["G"]).graph
    # an arrowhead at j and a tail at i: the edge i -> j
    return chosen, (marks.T == 1) & (marks == -1)


def bic_penalty(covariance: npt.NDArray[np.float64], n_visits: int, pairs_per_code: float) -> float:
    """BIC penalty per parameter in units of log(n): 1/2, or more on densely related codes.

    An edge between two codes with correlation r gains ``-n/2 log(1 - r^2)`` in log-likelihood.
    """
    spread = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(spread, spread)
    pairs = correlation[np.triu_indices(len(spread), 1)]
    gain = -0.5 * n_visits * np.log1p(-np.clip(pairs**2, 0.0, 1.0 - 1e-12)) / np.log(n_visits)
    allowed = int(pairs_per_code * len(spread))
    return max(0.5, float(np.sort(gain)[::-1][allowed])) if allowed < len(gain) else 0.5


def _causal_learn() -> tuple[Callable[..., dict[str, Any]], Callable[[Any], Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from causallearn.search.ScoreBased.GES import ges
            from causallearn.utils.PDAG2DAG import pdag2dag
    except ImportError as error:
        raise ProgramMissingError(
            "causal discovery needs causal-learn; pip install 'medrec[causal]'"
        ) from error
    return ges, pdag2dag


def code_effects(codes: sparse.csr_matrix, data: FittingData) -> npt.NDArray[np.float32]:
    """Log odds ratio of each code for each drug (N, D), from scikit-learn's logistic regression.

    L2 penalty with C = 1, so that the effect of a rare code is drawn towards 0. A drug that all or
    no training visits have gets zeros.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    visits = data.dataset.visit_numbers(data.patients)
    target = np.zeros((len(visits), data.context.n_drugs), dtype=np.int64)
    drugs, row = data.dataset.drugs.gather(visits)
    target[row, drugs] = 1
    effects = np.zeros((codes.shape[1], target.shape[1]), dtype=np.float32)
    for drug in range(target.shape[1]):
        wanted = target[:, drug]
        if wanted.min() == wanted.max():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            effects[:, drug] = LogisticRegression(C=1.0).fit(codes, wanted).coef_[0]
    return effects


def effect_levels(effects: npt.NDArray[np.float32], n_levels: int) -> npt.NDArray[np.int64]:
    """Rank effects into levels of equal size; 0 is the most negative."""
    if effects.size == 0:
        return np.zeros(effects.shape, dtype=np.int64)
    edges = np.quantile(effects, np.arange(1, n_levels) / n_levels)
    return np.digitize(effects, edges).astype(np.int64)
