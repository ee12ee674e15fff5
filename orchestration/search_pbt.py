"""Population based training: values change while networks train; Optuna only keeps the record.

The population lives in Ray Tune. If its driver dies the population begins again: what it had
learned is in checkpoints that no new population can take over.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback

from medrec.config import Choice, FloatRange, IntRange, SearchConfig
from medrec.config_search_space import Space
from medrec.runs import Run
from orchestration.search_lease import Lease
from orchestration.search_session import LOST, Log, OnTrial, tune_all
from orchestration.search_space import Params, to_distribution
from orchestration.search_study import DETAIL, FAILURE, open_study
from orchestration.search_tables import LOG
from orchestration.search_trial import FAILED, TrialPlan


def run_population(
    run: Run,
    config: SearchConfig[Any],
    plan: TrialPlan,
    note: str,
    *,
    lease: Lease,
    on_trial: OnTrial | None,
) -> list[str]:
    """Train a population of ``config.n_trials`` and write it into the study.

    Returns
    -------
    list of str
        Reasons of the failed trials.
    """
    from ray.tune.schedulers import PopulationBasedTraining
    from ray.tune.search.basic_variant import BasicVariantGenerator

    (run.folder / LOG).unlink(missing_ok=True)  # of a population whose driver died
    first = config.objectives[0]
    watch = _Population(config, Log(run.folder / LOG), note, on_trial)
    domains = {path: _domain(item) for path, item in config.space.items()}
    scheduler = PopulationBasedTraining(
        time_attr="epochs",
        metric=first.metric,
        mode=first.mode,
        perturbation_interval=config.pbt.perturb_epochs,
        quantile_fraction=config.pbt.quantile,
        resample_probability=config.pbt.resample,
        hyperparam_mutations={
            path: list(item.values) if isinstance(item, Choice) else domains[path]
            for path, item in config.space.items()
        },
        custom_explore_fn=_keep_inside(config.space),
        # all members wait for each other: with fewer places than members an early one would find
        # nobody to copy from
        synch=True,
        log_config=False,
        require_attrs=False,
    )
    tune_all(
        run, config, plan, [watch], param_space=domains, scheduler=scheduler,
        search_alg=BasicVariantGenerator(random_state=config.seed),
        num_samples=config.n_trials, reuse_actors=True,
    )  # fmt: skip
    if len(watch.ends) < config.n_trials and not lease.lost():
        raise KeyboardInterrupt  # Tune stops its trials at Ctrl-C, and returns
    study = open_study(run.folder, config)
    if not lease.lost():
        for number in range(len(watch.numbers)):
            study.add_trial(watch.as_trial(number))
    return [str(item[FAILED]) for item in watch.ends.values() if FAILED in item]


def _domain(dimension: FloatRange | IntRange | Choice) -> Any:
    from ray import tune

    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.values))
    if isinstance(dimension, IntRange):
        return tune.randint(dimension.low, dimension.high + 1)
    kind = tune.loguniform if dimension.type == "loguniform" else tune.uniform
    return kind(dimension.low, dimension.high)


def _keep_inside(space: Space) -> Callable[[Params], Params]:
    """Tune multiplies values by 0.8 or 1.2 and does not look at the ends of a range."""

    def clip(params: Params) -> Params:
        clipped = dict(params)
        for path, item in space.items():
            if not isinstance(item, Choice):
                value = min(max(params[path], item.low), item.high)
                clipped[path] = round(value) if isinstance(item, IntRange) else float(value)
        return clipped

    return clip


class _Population(Callback):
    """Log of a population, and its members' ends."""

    def __init__(
        self, config: SearchConfig[Any], log: Log, note: str, listener: OnTrial | None
    ) -> None:
        self.config, self.log, self.note, self.listener = config, log, note, listener
        self.numbers: dict[str, int] = {}
        self.started: list[datetime] = []
        self.trained: dict[int, dict[str, Any]] = {}
        self.ends: dict[int, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks."""
        return {}

    def _number(self, trial: Any) -> int:
        if trial.trial_id not in self.numbers:
            self.numbers[trial.trial_id] = len(self.numbers)
            self.started.append(datetime.now())  # noqa: DTZ005 - Optuna's times are local
        return self.numbers[trial.trial_id]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Number members in the order of their start."""
        self._number(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an epoch with the values of that epoch."""
        if FAILED not in result:
            params = self._params(trial)
            self.log.write(self._number(trial), result, params)
            self.trained[self._number(trial)] = {**result, "params": params}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep the last result, with its values: an exchange may follow the last epoch."""
        result = {**(trial.last_result or {}), "params": self._params(trial)}
        if FAILED not in result:
            result |= self.trained.get(self._number(trial), {})
        metrics = [item.metric for item in self.config.objectives]
        if FAILED not in result and any(name not in result for name in metrics):
            result[FAILED] = f"{LOST} or reported nothing"
        self._ended(trial, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A process died twice."""
        self._ended(trial, {FAILED: LOST, "params": self._params(trial)})

    def _ended(self, trial: Any, result: dict[str, Any]) -> None:
        self.ends[self._number(trial)] = result
        if self.listener is not None and FAILED not in result:
            done = sum(FAILED not in item for item in self.ends.values())
            self.listener(done, self.config.n_trials, self.note.format_map(result))

    def _params(self, trial: Any) -> Params:
        return {path: trial.config[path] for path in self.config.space}

    def as_trial(self, number: int) -> FrozenTrial:
        """A member as a trial of the study, with the values that it ended with."""
        trial = self._frozen(number)
        trial.datetime_start = self.started[number]
        return trial

    def _frozen(self, number: int) -> FrozenTrial:
        end = self.ends.get(number, {FAILED: LOST})
        params = end.get("params", {})
        common: dict[str, Any] = {
            "params": params,
            "distributions": {path: to_distribution(self.config.space[path]) for path in params},
        }
        if FAILED in end:
            attributes = {FAILURE: end[FAILED]}
            return optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attributes, **common)
        detail: dict[str, Any] = {"epochs": int(end["epochs"]), "full_budget": True}
        detail["seconds"] = end.get("trial_seconds")
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE,
            values=[float(end[item.metric]) for item in self.config.objectives],
            user_attrs={DETAIL: detail},
            **common,
        )
