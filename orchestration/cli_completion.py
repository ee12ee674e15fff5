"""`medrec completion`: the script that makes a shell complete commands, options and names."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

PROGRAM, VARIABLE = "medrec", "_MEDREC_COMPLETE"


class Shell(StrEnum):
    """Shells with completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="Shell that is to complete.")],
    install: Annotated[
        bool, typer.Option("--install", help="Write the script into your home folder.")
    ] = False,
) -> None:
    """Print the completion script of a shell, or install it.

    For this terminal alone: eval "$(medrec completion bash)".
    """
    from typer.completion import get_completion_script
    from typer.completion import install as write_script

    if install:
        name, path = write_script(shell=shell.value, prog_name=PROGRAM, complete_var=VARIABLE)
        typer.echo(f"{name} completion is in {path}; open a new terminal to use it", err=True)
        return
    script = get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell.value)
    typer.echo(script)
