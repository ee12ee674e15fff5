"""Search over the settings of a property prediction; see `orchestration.search`.

Trials are judged by the validation part. The best configuration is then fine-tuned as a run of its
own, which alone looks at the test part, once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from medrec.config import Objective, PropertyRunConfig, PropertyTuneConfig
from medrec.config_molecules import PropertyConfig
from medrec.fitting import choose_device
from medrec.library.arrays import MoleculeLibrary
from medrec.pretrain.encoders import build_encoder
from medrec.pretrain.engine import MakeState, fit
from medrec.pretrain.problem import Problem, State
from medrec.properties.finetune import property_problem
from medrec.runs import Home, Run
from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.fits import run_fit, start_state
from orchestration.molecules import RESEARCH_ONLY
from orchestration.search import (
    TRIALS,
    Params,
    Search,
    SearchRequest,
    TrialLog,
    at_work,
    check_sampler,
    is_complete,
    open_search,
    open_study,
    records,
    run_trials,
    search_report,
)
from orchestration.search_export import BEST, check_pick, command_for, export_best, trials_tables
from quantum.base import ConfigError, InputError

SIZE = Objective(metric="parameters", mode="min")
_TEST_COLUMNS = ("target", "unit", "metric", "value", "low", "high", "n")


def tune_properties(
    config: PropertyTuneConfig,
    library: MoleculeLibrary,
    home: Home,
    terminal: Terminal,
    start: Run | None = None,
    request: SearchRequest = SearchRequest(),
    pick: str | None = None,
) -> Run:
    """Search in a run folder, go on with a search of the same name, or find it finished.

    Parameters
    ----------
    start : Run, optional
        Whose encoder every trial starts from.
    request : SearchRequest
        Whether the search must be there, how many trials, from which searches it starts.
    pick : str, optional
        Objective that decides which trial is the best; the first one by default. Of a finished
        search the choice stays.

    Returns
    -------
    Run
        With ``trials.parquet``, ``trials_history.parquet``, ``best.yaml`` (a configuration for
        `orchestration.fits.run_fit`), and in its report the best trials, the run of the best one
        and its test metrics.

    Raises
    ------
    InputError, ConfigError
        If library, base, space, objectives and start do not fit each other; before any trial.
    ResourceError, TransientError
        See `orchestration.search.run_trials`.
    """
    if config.objectives:
        check_sampler(config)
    inputs = {"library": library.digest} | ({"pretrained": start.digest} if start else {})
    run, warm = open_search(home, config, inputs, request)
    if is_complete(run, config, request):
        return run
    seeds = {"optuna": config.seed, "torch": config.base.fit.seed}
    with at_work(run, seeds=seeds) as lease:
        state = None if start is None else start_state(start)
        config = with_objectives(config, library, state)
        check_pick(config, pick)
        check_encoders(config, state)
        score = config.objectives[0].metric
        settings = {
            "config": config.model_dump(mode="json"),
            "library": str(library.folder.resolve()),
            "start": None if start is None else str(start.folder.resolve()),
        }
        note = f"{score.removeprefix('valid_')} {{{score}:.4g}}"
        search = Search(config, _trial, settings, _most_epochs(config), note, warm)
        with terminal.progress("tune", request.n_trials or config.n_trials) as step:
            table = run_trials(run, search, lease, step.at, request)
        number = export_best(run, config, table, pick, lambda task: PropertyRunConfig(task=task))
        params = open_study(run.folder, config).trials[number].params
        best = PropertyRunConfig(task=config.with_params(params))
        with terminal.progress("finetune best", None) as step:
            fitted = run_fit(best, library, home, start, on_step=step.at)
        run.finish(
            {
                **search_report(config, table, run.folder),
                "best_trial": number,
                "best_params": params,
                "best_run": fitted.name,
                "next": command_for(
                    run.folder / BEST,
                    ("molecules", "finetune"),
                    {
                        "library": library.folder.name,
                        "pretrained": start.name if start else None,
                        "home": str(home.root),
                    },
                ),
                "test": fitted.report()["test"],
                "notes": fitted.report()["notes"],
            }
        )
    return run


def show_search(run: Run, terminal: Terminal) -> None:
    """Print all trials, the best one and its test metrics."""
    report = run.report()
    trials = pd.read_parquet(run.folder / TRIALS)
    facts = {
        "search": run.name,
        "best trial": report["best_trial"],
        **report["best_params"],
        "its configuration": str(run.folder / BEST),
        "its run": report["best_run"],
    }
    terminal.result(
        {
            "run": run.name,
            "trials": records(trials),
            "best_config": str(run.folder / BEST),
            **report,
            "note": RESEARCH_ONLY,
        },
        *trials_tables(run, trials, report),
        pairs_table(facts.items()),
        frame_table(pd.DataFrame(report["test"])[list(_TEST_COLUMNS)], "test part, best trial"),
        *(f"note: {note}" for note in report["notes"]),
        *([f"next: {report['next']}"] if "next" in report else []),
        RESEARCH_ONLY,
    )


# --------------------------------------------------------------------------- before the trials


def with_objectives(
    config: PropertyTuneConfig, library: MoleculeLibrary, start: State | None = None
) -> PropertyTuneConfig:
    """Fill in the validation score of the library's targets as the first objective.

    Raises
    ------
    InputError
        If there is no validation part, or base, library and start do not fit each other.
    ConfigError
        If other objectives are asked for.
    """
    problem = property_problem(config.base, library, start)
    if problem.score_name is None:
        raise InputError(
            f"split {config.base.split.kind} {config.base.split.train:g}/"
            f"{config.base.split.valid:g} of library {library.name} has no validation part; "
            "a search needs one"
        )
    score = Objective(metric=problem.score_name, mode=problem.score_mode)
    objectives = config.objectives or (score,)
    if objectives not in ((score,), (score, SIZE)):
        found = ", ".join(f"{item.metric} {item.mode}" for item in objectives)
        raise ConfigError(
            f"objectives {found}; expected {score.metric} {score.mode}, alone or before "
            f"{SIZE.metric} {SIZE.mode}"
        )
    return config.model_copy(update={"objectives": objectives})


def check_encoders(config: PropertyTuneConfig, start: State | None = None) -> None:
    """Make the encoders at the ends of every dimension, so that no trial finds one impossible.

    Raises
    ------
    InputError
        With the path and the value.
    """
    for path in config.space:
        if path.split(".")[0] not in ("encoder", "modality"):
            continue
        for value in config.limits(path):
            task = config.with_params({path: value})
            try:
                encoder = build_encoder(task.encoder, task.modality)
                if start is not None:
                    encoder.load_pretrained(start)
            except InputError as error:
                raise InputError(f"space path '{path}', value {value!r}: {error}") from error


def _most_epochs(config: PropertyTuneConfig) -> int:
    path = "fit.epochs"
    return int(max(config.limits(path))) if path in config.space else config.base.fit.epochs


# --------------------------------------------------------------------------- a trial


def _trial(params: Params, settings: dict[str, Any], log: TrialLog) -> None:
    """Body of one trial; the test part is not looked at."""
    search = PropertyTuneConfig.model_validate(settings["config"])
    config, score = search.with_params(params), search.objectives[0].metric
    seed = {"seed": config.fit.seed + log.repeat}
    config = config.model_copy(update={"fit": config.fit.model_copy(update=seed)})
    start = None if settings["start"] is None else start_state(Run.load(Path(settings["start"])))
    size = _encoder_parameters(config)

    def report(best: float, epochs: int) -> None:
        log.epoch(epochs, {score: best, SIZE.metric: size}, config.fit.epochs)

    problem = property_problem(config, MoleculeLibrary.load(Path(settings["library"])), start)
    device = choose_device("cuda" if search.gpus_per_trial else "cpu")
    fit(problem, config.fit, reporter=_TrialReporter(problem, report), device=device)


class _TrialReporter:
    """Reports the best validation score so far; a trial keeps no checkpoints."""

    def __init__(self, problem: Problem, report: Callable[[float, int], None]) -> None:
        self.name, self.report = problem.score_name or "loss", report
        self.better = max if problem.score_mode == "max" else min
        self.best: float | None = None

    def epoch(self, metrics: dict[str, Any], make_state: MakeState) -> None:
        score = float(metrics[self.name])
        self.best = score if self.best is None else self.better(self.best, score)
        self.report(self.best, int(metrics["epoch"]) + 1)

    def checkpoint(self, make_state: MakeState) -> None:
        pass

    def progress(self, epoch: int, step: int, n_steps: int, numbers: dict[str, float]) -> None:
        pass

    def wants_checkpoint(self) -> bool:
        return False


def _encoder_parameters(config: PropertyConfig) -> float:
    encoder = build_encoder(config.encoder, config.modality)
    return float(sum(item.numel() for item in encoder.parameters()))
