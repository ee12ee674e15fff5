"""Samplers (which values next) and stopping rules (which trials end early) of a search."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import optuna

from medrec.config import SearchConfig
from quantum.base import ConfigError, ProgramMissingError

_STARTUP = 5


def check_sampler(config: SearchConfig[Any]) -> None:
    """Make sure that sampler and objectives fit, before the first trial.

    Raises
    ------
    ConfigError
        If they do not.
    ProgramMissingError
        If the sampler needs a package that is not installed.
    """
    n = len(config.objectives)
    if not n:
        raise ConfigError(f"search {config.name} has no objective; expected at least one")
    metrics = [item.metric for item in config.objectives]
    twice = sorted({name for name in metrics if metrics.count(name) > 1})
    if twice:
        raise ConfigError(f"objective {twice[0]!r} is named twice")
    if config.sampler == "nsga2" and n < 2:
        raise ConfigError(
            f"sampler nsga2 is for several objectives, there is one ({metrics[0]}); "
            "expected tpe, gp, random or grid"
        )
    if config.sampler == "gp" and importlib.util.find_spec("torch") is None:
        raise ProgramMissingError("sampler gp needs PyTorch: pip install 'medrec[learn]'")


def build_sampler(config: SearchConfig[Any], n_trials_before: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler; a resumed search does not draw the numbers of its first session again."""
    seed = config.seed + 1000 * n_trials_before
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(
            seed=seed, population_size=_population(config.n_trials)
        ),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP),
        # its points stand in the study's queue, so nothing is drawn
        "grid": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    return samplers[config.sampler]()


def _population(n_trials: int) -> int:
    """About five generations; Optuna's default, 50, would draw the first 50 trials at random."""
    return min(50, max(4, n_trials // 5))


def build_stopper(config: SearchConfig[Any], epochs: int) -> Any:
    """Ray Tune's scheduler for the first objective; None runs every trial to its end."""
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    first = config.objectives[0]
    common: dict[str, Any] = {"time_attr": "epochs", "metric": first.metric, "mode": first.mode}
    if config.rule == "asha" and config.asha is not None:
        return ASHAScheduler(
            **common,
            max_t=epochs,
            grace_period=min(config.asha.grace_epochs, epochs),
            reduction_factor=config.asha.reduction_factor,
        )
    if config.rule == "median":
        return MedianStoppingRule(
            **common,
            grace_period=config.median.grace_epochs,
            min_samples_required=config.median.min_trials,
        )
    return None
