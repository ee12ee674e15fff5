"""Search over the settings of a property prediction; see `orchestration.search`.

Trials are judged by the validation part. The best configuration is then fine-tuned as a run of its
own, which alone looks at the test part, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medrec.config import Objective, PropertyRunConfig, PropertyTuneConfig
from medrec.config_molecules import PropertyConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.pretrain.encoders import build_encoder
from medrec.pretrain.problem import State
from medrec.properties.finetune import property_problem
from medrec.runs import Home, Run
from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.fits import property_trial, run_fit, start_state
from orchestration.molecules import RESEARCH_ONLY
from orchestration.search import (
    TRIALS,
    Params,
    Search,
    TrialLog,
    open_study,
    run_trials,
    search_report,
)
from quantum.base import ConfigError, InputError, write_text_atomic

BEST = "best.yaml"
SIZE = Objective(metric="parameters", mode="min")
_TEST_COLUMNS = ("target", "unit", "metric", "value", "low", "high", "n")


def tune_properties(
    config: PropertyTuneConfig,
    library: MoleculeLibrary,
    home: Home,
    terminal: Terminal,
    start: Run | None = None,
) -> Run:
    """Search in a run folder, go on with a search of the same name, or find it finished.

    Parameters
    ----------
    start : Run, optional
        Whose encoder every trial starts from.

    Returns
    -------
    Run
        With ``trials.parquet``, ``best.yaml`` (a configuration for `orchestration.fits.run_fit`),
        and in its report the best trials, the run of the best one and its test metrics. Of several
        objectives the first, the validation score, decides which is best.

    Raises
    ------
    InputError, ConfigError
        If library, base, space, objectives and start do not fit each other; before any trial.
    ResourceError, TransientError
        See `orchestration.search.run_trials`.
    """
    key = config.model_copy(update={"max_concurrent": 1, "cpus_per_trial": 1})
    inputs = {"library": library.digest} | ({"pretrained": start.digest} if start else {})
    run = Run.open(home, "tune", config.name, key, inputs)
    if run.is_finished:
        return run
    with run.recording(seeds={"optuna": config.seed, "torch": config.base.fit.seed}):
        state = None if start is None else start_state(start)
        config = with_objectives(config, library, state)
        check_encoders(config, state)
        score = config.objectives[0].metric
        settings = {
            "config": config.model_dump(mode="json"),
            "library": str(library.folder.resolve()),
            "start": None if start is None else str(start.folder.resolve()),
        }
        note = f"{score.removeprefix('valid_')} {{{score}:.4g}}"
        search = Search(config, _trial, settings, _most_epochs(config), note)
        with terminal.progress("tune", config.n_trials) as step:
            table = run_trials(run, search, step.at)
        number = _best_trial(table, config.objectives)
        params = open_study(run.folder, config).trials[number].params
        best = PropertyRunConfig(task=config.with_params(params))
        _write_config(run.folder / BEST, best, f"trial {number} of {run.name}")
        with terminal.progress("finetune best", None) as step:
            fitted = run_fit(best, library, home, start, on_step=step.at)
        run.finish(
            {
                **search_report(config, table),
                "best_trial": number,
                "best_params": params,
                "best_run": fitted.name,
                "test": fitted.report()["test"],
                "notes": fitted.report()["notes"],
            }
        )
    return run


def show_search(run: Run, terminal: Terminal) -> None:
    """Print all trials, the best one and its test metrics."""
    report = run.report()
    trials = pd.read_parquet(run.folder / TRIALS)
    short = {"full_budget": "full", "number": "trial", "seconds": "s"}
    shown = trials.rename(columns=lambda name: short.get(name, str(name).rsplit(".", 1)[-1]))
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
            "trials": trials.to_dict("records"),
            "best_config": str(run.folder / BEST),
            **report,
            "note": RESEARCH_ONLY,
        },
        frame_table(shown, f"trials of {run.name}"),
        pairs_table(facts.items()),
        frame_table(pd.DataFrame(report["test"])[list(_TEST_COLUMNS)], "test part, best trial"),
        *(f"note: {note}" for note in report["notes"]),
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


# --------------------------------------------------------------------------- a trial, the best one


def _trial(params: Params, settings: dict[str, Any]) -> None:
    """Body of one trial."""
    import torch

    search = PropertyTuneConfig.model_validate(settings["config"])
    torch.set_num_threads(search.cpus_per_trial)
    config, score = search.with_params(params), search.objectives[0].metric
    start = None if settings["start"] is None else start_state(Run.load(Path(settings["start"])))
    size = _encoder_parameters(config)
    log = TrialLog(params, settings, config.fit.epochs)

    def report(row: dict[str, Any]) -> None:
        log.epoch(row["epochs"], {score: row["score"], SIZE.metric: size})

    property_trial(config, MoleculeLibrary.load(Path(settings["library"])), report, start)


def _encoder_parameters(config: PropertyConfig) -> float:
    encoder = build_encoder(config.encoder, config.modality)
    return float(sum(item.numel() for item in encoder.parameters()))


def _best_trial(table: pd.DataFrame, objectives: Sequence[Objective]) -> int:
    """Number of the best trial by the first objective; of equal ones by the next."""
    names = [item.metric for item in objectives]
    ordered = table.sort_values(names, ascending=[item.mode == "min" for item in objectives])
    return int(ordered["number"].iloc[0])


def _write_config(path: Path, config: PropertyRunConfig, source: str) -> None:
    tree = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text_atomic(path, f"# {source}\n{tree}")
