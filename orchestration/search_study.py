"""The Optuna study of a search: the only record of its trials.

States of a trial: complete, with values; failed, with the attribute ``failure``; failed without it,
which a dead session left and whose parameters were queued again; complete with the attribute
``from``, which another search made and which counts for nothing here but the sampler's knowledge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from medrec.config import SearchConfig
from medrec.config_search_space import grid_points
from medrec.runs import Run
from orchestration.search_journal import JOURNAL
from orchestration.search_space import Params, fits_space, to_distribution
from quantum.base import ConfigError, InputError

FAILURE, DETAIL, ORIGIN, AGAIN, WANTED = "failure", "detail", "from", "again", "wanted"
_WARM = "warm_start"


def open_storage(folder: Path) -> Any:
    """The journal of a search, as Optuna's storage."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def open_study(folder: Path, config: SearchConfig[Any]) -> optuna.Study:
    """Open the study of a run, or create it."""
    study = optuna.create_study(
        storage=open_storage(folder),
        study_name=config.name,
        directions=["maximize" if o.mode == "max" else "minimize" for o in config.objectives],
        load_if_exists=True,
    )
    if "objectives" not in study.user_attrs:
        study.set_user_attr("objectives", [o.model_dump() for o in config.objectives])
    return study


def is_foreign(trial: FrozenTrial) -> bool:
    """Whether a trial came with a warm start."""
    return ORIGIN in trial.user_attrs


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Own trials with values."""
    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in found if not is_foreign(trial)]


def failed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were tried and failed; those that a dead session left are not among them."""
    found = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in found if FAILURE in trial.user_attrs]


def adopt_dead_trials(study: optuna.Study) -> int:
    """Queue the parameters of trials that a dead session left running; mark those as failed.

    A session that dies in here leaves nothing to be queued twice: what waits in the queue names
    the trial that it repeats.

    Returns
    -------
    int
        How many there were.
    """
    dead = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    queued = {trial.user_attrs.get(AGAIN) for trial in study.get_trials(deepcopy=False)}
    for trial in dead:
        if trial.params and trial.number not in queued:
            study.enqueue_trial(
                trial.params, user_attrs={AGAIN: trial.number}, skip_if_exists=False
            )
        study.tell(trial.number, state=TrialState.FAIL)
    return len(dead)


def queue_grid(study: optuna.Study, config: SearchConfig[Any]) -> int:
    """Queue the points of a grid that are neither complete nor queued.

    Returns
    -------
    int
        How many are queued now.
    """
    states = (TrialState.COMPLETE, TrialState.WAITING, TrialState.RUNNING)
    there = {
        _point(trial.params or trial.system_attrs.get("fixed_params", {}))
        for trial in study.get_trials(deepcopy=False, states=states)
        if not is_foreign(trial)
    }
    for params in grid_points(config.space):
        if _point(params) not in there:
            study.enqueue_trial(params, skip_if_exists=False)
    return len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _point(params: Params) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((path, repr(value)) for path, value in params.items()))


def wanted_trials(study: optuna.Study, config: SearchConfig[Any]) -> int:
    """Complete trials that a search is to have: those of its configuration, or more if raised."""
    return max(config.n_trials, int(study.user_attrs.get(WANTED, 0)))


def check_wanted(before: int, config: SearchConfig[Any], n_trials: int) -> None:
    """Make sure that a search can have so many trials.

    Raises
    ------
    ConfigError
        If the number is smaller than before, or the search has all that its space holds.
    """
    if n_trials < before:
        raise ConfigError(
            f"--trials {n_trials} is less than the {before} trials that the search is to have; "
            "trials can only be added"
        )
    if n_trials > before and (config.sampler == "grid" or config.rule == "pbt"):
        what = "a grid" if config.sampler == "grid" else "a population"
        raise ConfigError(f"--trials {n_trials}: {what} of {before} trials cannot grow")


def raise_wanted(study: optuna.Study, config: SearchConfig[Any], n_trials: int) -> None:
    """Ask for more trials than the configuration does; stays so for later sessions.

    Raises
    ------
    ConfigError
        See `check_wanted`.
    """
    before = wanted_trials(study, config)
    check_wanted(before, config, n_trials)
    if n_trials > before:
        study.set_user_attr(WANTED, n_trials)


# --------------------------------------------------------------------------- warm start


@dataclass(frozen=True)
class WarmStart:
    """Trials taken over from one earlier search.

    Parameters
    ----------
    used, out_of_range : int
        Trials taken over, and those left out because the new ranges do not hold them.
    """

    run: str
    used: int
    out_of_range: int


def warm_start(
    study: optuna.Study, config: SearchConfig[Any], runs: Sequence[Run]
) -> list[WarmStart]:
    """Add complete trials of earlier searches, once, when a search begins.

    Returns
    -------
    list of WarmStart
        Also of an earlier session.

    Raises
    ------
    ConfigError
        If an earlier search has other paths or other objectives.
    """
    done: dict[str, Any] = dict(study.user_attrs.get(_WARM, {}))
    present = {
        (trial.user_attrs[ORIGIN], trial.user_attrs["from_number"])
        for trial in study.get_trials(deepcopy=False)
        if is_foreign(trial)
    }
    for run in runs:
        if run.name in done:
            continue
        earlier = earlier_trials(run, config)
        usable = [trial for trial in earlier if _is_usable(trial, config)]
        for trial in usable:
            if (run.name, trial.number) not in present:
                study.add_trial(_as_foreign(trial, config, run.name))
        done[run.name] = {"used": len(usable), "out_of_range": len(earlier) - len(usable)}
        study.set_user_attr(_WARM, done)
    return [WarmStart(name, **counts) for name, counts in done.items()]


def earlier_trials(run: Run, config: SearchConfig[Any]) -> list[FrozenTrial]:
    """Complete own trials of an earlier search that asks the same.

    Raises
    ------
    ConfigError, InputError
        If it is no search, or one with other paths or objectives.
    """
    if run.kind != "tune" or not (run.folder / JOURNAL).exists():
        raise InputError(f"run {run.name} is of kind {run.kind}; expected a search with a study")
    settings = run.config()
    study = optuna.load_study(study_name=settings["name"], storage=open_storage(run.folder))
    theirs, ours = set(settings["space"]), set(config.space)
    if theirs != ours:
        odd = ", ".join(sorted(theirs ^ ours))
        raise ConfigError(
            f"warm start from {run.name}: only one of the two searches has {odd}; "
            "expected the same paths"
        )
    objectives = _objectives_of(run, study, settings)
    wanted = [item.model_dump() for item in config.objectives]
    if objectives != wanted:
        names = [", ".join(f"{o['metric']} {o['mode']}" for o in each) for each in
                 (objectives, wanted)]  # fmt: skip
        raise ConfigError(
            f"warm start from {run.name}: its objectives are {names[0]}; expected {names[1]}"
        )
    return complete_trials(study)


def _objectives_of(run: Run, study: optuna.Study, settings: dict[str, Any]) -> list[Any]:
    found = study.user_attrs.get("objectives")  # studies made before do not have it
    if found is None and run.is_finished:
        found = run.report().get("objectives")
    return list(found if found is not None else settings["objectives"])


def _is_usable(trial: FrozenTrial, config: SearchConfig[Any]) -> bool:
    finite = all(math.isfinite(value) for value in trial.values)
    return finite and fits_space(trial.params, config.space)


def _as_foreign(trial: FrozenTrial, config: SearchConfig[Any], name: str) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=list(trial.values),
        params=trial.params,
        distributions={path: to_distribution(config.space[path]) for path in trial.params},
        user_attrs={ORIGIN: name, "from_number": trial.number},
    )
