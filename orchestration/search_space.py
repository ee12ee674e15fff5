"""A search space in Optuna's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from medrec.config import Choice, FloatRange, IntRange
from medrec.config_search_space import Space, contains, is_active, is_conditional, parents_first

Params = dict[str, Any]


def to_distribution(dimension: FloatRange | IntRange | Choice) -> BaseDistribution:
    """Optuna distribution of one search dimension."""
    if isinstance(dimension, FloatRange):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.type == "loguniform")
    if isinstance(dimension, IntRange):
        return IntDistribution(dimension.low, dimension.high)
    return CategoricalDistribution(list(dimension.values))


def optuna_space(space: Space) -> dict[str, BaseDistribution] | Callable[[Any], None]:
    """Distributions by path; a function that asks for active dimensions, if there are conditions.

    The function is Optuna's define-by-run form: a trial has no value for an inactive dimension.
    """
    distributions = {path: to_distribution(item) for path, item in space.items()}
    if not is_conditional(space):
        return distributions
    ordered = parents_first(space)

    def define(trial: Any) -> None:
        chosen: Params = {}
        for path in ordered:
            if is_active(space[path], chosen):
                chosen[path] = _suggest(trial, path, space[path])

    return define


def _suggest(trial: Any, path: str, dimension: FloatRange | IntRange | Choice) -> Any:
    if isinstance(dimension, FloatRange):
        log = dimension.type == "loguniform"
        return trial.suggest_float(path, dimension.low, dimension.high, log=log)
    if isinstance(dimension, IntRange):
        return trial.suggest_int(path, dimension.low, dimension.high)
    return trial.suggest_categorical(path, list(dimension.values))


def fits_space(params: Params, space: Space) -> bool:
    """Whether parameters are exactly the active dimensions of a space, each in its range."""
    chosen: Params = {}
    for path in parents_first(space):
        if not is_active(space[path], chosen):
            continue
        if path not in params or not contains(space[path], params[path]):
            return False
        chosen[path] = params[path]
    return set(chosen) == set(params)
