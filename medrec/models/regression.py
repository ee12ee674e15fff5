"""Logistic regressions on the codes of a visit, as one drug after the other needs them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from medrec.data.dataset import VisitDataset

ALWAYS = 8.0
"""Bias of a drug that every training visit has; its negative stands for no visit."""


class SolverSettings(Protocol):
    """What scikit-learn's solver has to know."""

    @property
    def c(self) -> float:
        """Inverse strength of the quadratic penalty."""

    @property
    def max_iterations(self) -> int:
        """Where the solver gives up."""

    @property
    def tolerance(self) -> float:
        """Largest component of the mean loss's gradient at the end."""

    @property
    def solver(self) -> str:
        """Name in scikit-learn."""


@dataclass(frozen=True)
class Fitted:
    """One drug's weights (N,) and bias, and whether the solver reached its tolerance."""

    weight: npt.NDArray[np.float64]
    bias: float
    converged: bool


def visit_matrix(
    dataset: VisitDataset, patients: npt.NDArray[np.int64]
) -> tuple[sparse.csr_matrix, npt.NDArray[np.int64]]:
    """Codes and drugs of all visits of some patients.

    Returns
    -------
    inputs : csr_matrix (n, N_diagnoses + N_procedures) of float64
        Multi-hot codes, diagnoses first.
    targets : ndarray (n, D) of int64
        Multi-hot drugs.
    """
    visits = dataset.visit_numbers(patients)
    n_diagnoses = len(dataset.vocabularies.diagnoses)
    n_inputs = n_diagnoses + len(dataset.vocabularies.procedures)
    diagnoses, d_row = dataset.diagnoses.gather(visits)
    procedures, p_row = dataset.procedures.gather(visits)
    columns = np.concatenate([diagnoses, procedures + n_diagnoses])
    rows = np.concatenate([d_row, p_row])
    inputs = sparse.csr_matrix(
        (np.ones(len(columns)), (rows, columns)), shape=(len(visits), n_inputs)
    )
    targets = np.zeros((len(visits), dataset.n_drugs), dtype=np.int64)
    drugs, row = dataset.drugs.gather(visits)
    targets[row, drugs] = 1
    return inputs, targets


def fit_drug(
    inputs: sparse.csr_matrix,
    target: npt.NDArray[np.int64],
    settings: SolverSettings,
    start: npt.NDArray[np.float64] | None = None,
    start_bias: float | None = None,
) -> Fitted:
    """Fit one drug with scikit-learn; the intercept is not penalised.

    The problem is convex: where the solver starts decides how long it takes, not where it ends.

    Parameters
    ----------
    inputs : csr_matrix (n, N)
    target : ndarray (n,)
        Holds both 0 and 1.
    start : ndarray (N,), optional
        Weights to start from; zeros by default.
    start_bias : float, optional
        Bias to start from; the log-odds of the drug by default.
    """
    from sklearn.linear_model import LogisticRegression

    share = float(target.mean())
    weight = np.zeros(inputs.shape[1]) if start is None else start
    bias = np.log(share / (1.0 - share)) if start_bias is None else start_bias
    solver = LogisticRegression(
        C=settings.c,
        max_iter=settings.max_iterations,
        tol=settings.tolerance,
        solver=settings.solver,
        warm_start=True,
    )
    solver.coef_, solver.intercept_ = weight.reshape(1, -1), np.array([bias])
    with warnings.catch_warnings(record=True) as caught:
        # too many iterations are a UserWarning, a line search that fails is a RuntimeWarning
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("always", RuntimeWarning)
        solver.fit(inputs, target)
    trouble = [w for w in caught if issubclass(w.category, (UserWarning, RuntimeWarning))]
    return Fitted(solver.coef_[0], float(solver.intercept_[0]), not trouble)
