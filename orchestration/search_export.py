"""The best configuration of a search as a YAML file, and the command that takes it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medrec.config import SearchConfig
from medrec.runs import Run
from orchestration.console import Terminal, frame_table
from orchestration.search_study import complete_trials, open_study
from orchestration.search_tables import TRIALS, best_number, records
from quantum.base import ConfigError, Frozen, write_text_atomic

BEST, PARETO = "best.yaml", "pareto"
_SHOWN = 50
Wrap = Callable[[Any], Frozen]


def check_pick(config: SearchConfig[Any], pick: str | None) -> None:
    """Make sure that the picked objective is one.

    Raises
    ------
    ConfigError
        If it is not.
    """
    names = [item.metric for item in config.objectives]
    if pick is not None and pick not in names:
        raise ConfigError(f"--pick {pick} is no objective; expected one of: {', '.join(names)}")


def export_best(
    run: Run,
    config: SearchConfig[Any],
    table: pd.DataFrame,
    pick: str | None = None,
    wrap: Wrap = lambda best: best,
) -> int:
    """Write ``best.yaml`` and, of several objectives, a file in ``pareto/`` for each best trial.

    Parameters
    ----------
    pick : str, optional
        Objective that decides; the first one by default.
    wrap : callable
        Makes the configuration of a command from that of a trial.

    Returns
    -------
    int
        Number of the best trial.
    """
    check_pick(config, pick)
    params = {t.number: t.params for t in complete_trials(open_study(run.folder, config))}
    best = best_number(table, config.objectives, pick)
    _write(run.folder / BEST, wrap(config.with_params(params[best])), run, best)
    shutil.rmtree(run.folder / PARETO, ignore_errors=True)
    if len(config.objectives) > 1:
        for number in table.loc[table["pareto"], "number"]:
            path = run.folder / PARETO / f"trial_{number}.yaml"
            _write(path, wrap(config.with_params(params[number])), run, number)
    return best


def _write(path: Path, config: Frozen, run: Run, number: int) -> None:
    tree = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text_atomic(path, f"# trial {number} of {run.name}\n{tree}")


def command_for(path: Path, words: Sequence[str], options: dict[str, str | None]) -> str:
    """The exact next command, ready to paste."""
    given = [item for name, value in options.items() if value for item in (f"--{name}", value)]
    return shlex.join(["medrec", *words, str(path), *given])


def show_trials(terminal: Terminal, run: Run, options: dict[str, str | None] | None = None) -> None:
    """Print the trials of a search; the best or the Pareto front is marked.

    Parameters
    ----------
    options : dict, optional
        Options of the command that trains the best configuration, such as the cohort.
    """
    trials = pd.read_parquet(run.folder / TRIALS)
    report, best = run.report(), run.folder / BEST
    document = {"run": run.name, "trials": records(trials), "report": report}
    lines = []
    if best.exists() and options is not None:
        document["best_config"] = str(best)
        document["next"] = command_for(best, ("train",), options)
        lines.append(f"next: {document['next']}")
    terminal.result(document, *trials_tables(run, trials, report), *lines)


def trials_tables(run: Run, trials: pd.DataFrame, report: dict[str, Any]) -> list[Any]:
    """Table of trials, the best ones if there are many, and a line about failed ones."""
    short = {"full_budget": "full", "number": "trial", "seconds": "s"}
    title = f"trials of {run.name}"
    shown = trials
    if "state" in trials:  # searches made before list complete trials only
        shown = trials[trials["state"] == "complete"]
        empty = [name for name in ("failure", "started", "state") if name in shown]
        shown = shown.drop(columns=empty)
    if len(shown) > _SHOWN:
        first = report["objectives"][0]
        ascending = first["mode"] == "min"
        shown = shown.sort_values(first["metric"], ascending=ascending).head(_SHOWN)
        title += f", the best {_SHOWN} of {report['n_trials']}"
    parts: list[Any] = [frame_table(shown.rename(columns=lambda n: short.get(n, _last(n))), title)]
    failed = trials[trials["state"] == "failed"] if "state" in trials else trials.head(0)
    for reason, count in failed.get("failure", pd.Series(dtype=str)).value_counts().items():
        parts.append(f"{count} failed: {reason}")
    return parts


def _last(name: object) -> str:
    return str(name).rsplit(".", 1)[-1] if str(name).startswith("params.") else str(name)
