"""Options that several commands share, and the names that a shell completes for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestration.stages import Stages

HOME_VARIABLE = "MEDREC_HOME"
DEFAULT_HOME = Path("medrec-work")
Complete = Callable[[typer.Context, str], list[str]]


def names_in(kind: str) -> Complete:
    """Completion with the folders of one kind in the home folder; nothing is opened.

    Parameters
    ----------
    kind : str
        ``runs``, ``cohorts``, ``features``, ``concepts`` or ``molecules``.
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        home = ctx.params.get("home") or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME
        try:
            found = sorted(item.name for item in os.scandir(Path(home) / kind) if item.is_dir())
        except OSError:
            return []
        return [name for name in found if name.startswith(incomplete) and name[0] != "."]

    return complete


def one_of(*words: str) -> Complete:
    """Completion with a few fixed words."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


RUNS, COHORTS, FEATURES = names_in("runs"), names_in("cohorts"), names_in("features")
CONCEPTS, LIBRARIES = names_in("concepts"), names_in("molecules")
SEVERITIES = one_of("contraindicated", "not-recommended", "precaution", "take-into-account")

HomeOption = Annotated[
    Path, typer.Option("--home", envvar=HOME_VARIABLE, help="Folder for everything computed.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one value: key.path=value.")
]
CohortOption = Annotated[
    str,
    typer.Option("--cohort", help="Cohort name, as `prepare` printed.", autocompletion=COHORTS),
]
FeaturesOption = Annotated[
    str | None,
    typer.Option(
        "--features",
        help="Feature table name, as `features run` printed.",
        autocompletion=FEATURES,
    ),
]
ConceptsOption = Annotated[
    str | None,
    typer.Option(
        "--concepts", help="Concept table name, as `concepts` printed.", autocompletion=CONCEPTS
    ),
]
PretrainedOption = Annotated[
    str | None,
    typer.Option(help="Pre-training run whose encoder starts the model.", autocompletion=RUNS),
]
HardOption = Annotated[
    str | None,
    typer.Option(
        "--hard",
        help="Forbid pairs of this severity or worse: contraindicated.",
        autocompletion=SEVERITIES,
    ),
]
SplitsOption = Annotated[
    str | None, typer.Option("--splits", help="Splits of the cohort, such as 0,1 or 0-4.")
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="Seeds, such as 1203,1204,1205.")]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, help="Runs at a time; more than one start Ray.")
]
ConfigArgument = Annotated[Path, typer.Argument(help="YAML configuration file.")]
RunArgument = Annotated[str, typer.Argument(help="Training run.", autocompletion=RUNS)]


def open_stages(home: Path, as_json: bool = False, quiet: bool = False) -> Stages:
    """Stages on a home folder; loads what they need."""
    from medrec.runs import Home
    from orchestration.console import Terminal
    from orchestration.stages import Stages

    return Stages(Home(home), Terminal(as_json=as_json, quiet=quiet))
