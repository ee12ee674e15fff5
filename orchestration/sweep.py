"""What `medrec sweep-report` needs beside the page: Optuna's own importance of the settings."""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd

from medrec.report.search_table import Dimension, SearchTrials, plain
from medrec.runs import Run
from quantum.base import InputError

_METHODS = {"fanova": "fANOVA of Optuna, sum 1", "ped_anova": "PED-ANOVA of Optuna, sum 1"}


def optuna_importance(search: SearchTrials, method: str = "fanova") -> pd.DataFrame:
    """Importance by Optuna, from the table of trials alone.

    Parameters
    ----------
    method : str
        ``fanova`` (of all differences) or ``ped_anova`` (of what sets good trials apart).

    Returns
    -------
    pandas.DataFrame
        ``objective``, ``path``, ``importance`` (sum 1 per objective). fANOVA leaves out settings
        that some trials do not have.

    Raises
    ------
    InputError
        If the method is not known.
    """
    import optuna
    from optuna.importance import (
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    if method not in _METHODS:
        raise InputError(f"importance {method!r}; expected one of: {', '.join(_METHODS)}")
    rows = []
    for goal in search.objectives:
        study = _study(search, goal.metric, goal.mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            evaluator: Any = (
                FanovaImportanceEvaluator(seed=0)
                if method == "fanova"
                else PedAnovaImportanceEvaluator()
            )
            found = get_param_importances(study, evaluator=evaluator)
        rows += [
            {"objective": goal.metric, "path": path, "importance": float(value)}
            for path, value in found.items()
        ]
    table = pd.DataFrame(rows, columns=["objective", "path", "importance"])
    table.attrs["method"] = _METHODS[method]
    return table


def _study(search: SearchTrials, metric: str, mode: str) -> Any:
    import optuna

    spaces = {dim.path: _distribution(dim) for dim in search.dimensions}
    kinds = {dim.path: dim for dim in search.dimensions}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    for _, row in search.trials.iterrows():
        params = search.params(row)
        study.add_trial(
            optuna.trial.create_trial(
                params={path: plain(value, kinds[path]) for path, value in params.items()},
                distributions={path: spaces[path] for path in params},
                value=float(row[metric]),
            )
        )
    return study


def _distribution(dim: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dim.values:
        return CategoricalDistribution(list(dim.values))
    if isinstance(dim.low, int) and isinstance(dim.high, int):
        return IntDistribution(dim.low, dim.high, log=dim.log)
    return FloatDistribution(float(dim.low), float(dim.high), log=dim.log)


def second_opinion(search: SearchTrials) -> pd.DataFrame | None:
    """Optuna's importance, or None where it cannot be had: too few trials, or no differences."""
    try:
        return optuna_importance(search)
    except (ValueError, RuntimeError, ImportError):
        return None


def load_search(run: Run) -> SearchTrials:
    """Trials of a search's run; see `medrec.report.search_table.SearchTrials.load`."""
    return SearchTrials.load(run)
