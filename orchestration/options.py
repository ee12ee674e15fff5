"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medrec.runs import Home
from orchestration.console import Terminal

if TYPE_CHECKING:
    from orchestration.stages import Stages

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="MEDREC_HOME", help="Folder for everything computed.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one value: key.path=value.")
]
CohortOption = Annotated[str, typer.Option("--cohort", help="Cohort name, as `prepare` printed.")]
FeaturesOption = Annotated[
    str | None, typer.Option("--features", help="Feature table name, as `features run` printed.")
]
ConceptsOption = Annotated[
    str | None, typer.Option("--concepts", help="Concept table name, as `concepts` printed.")
]
HardOption = Annotated[
    str | None,
    typer.Option("--hard", help="Forbid pairs of this severity or worse: contraindicated."),
]
SplitsOption = Annotated[
    str | None, typer.Option("--splits", help="Splits of the cohort, such as 0,1 or 0-4.")
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="Seeds, such as 1203,1204,1205.")]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, help="Runs at a time; more than one start Ray.")
]
ConfigArgument = Annotated[Path, typer.Argument(help="YAML configuration file.")]
DEFAULT_HOME = Path("medrec-work")


def open_stages(home: Path, as_json: bool = False, quiet: bool = False) -> Stages:
    """Stages on a home folder; loads what they need."""
    from orchestration.stages import Stages

    return Stages(Home(home), Terminal(as_json=as_json, quiet=quiet))
