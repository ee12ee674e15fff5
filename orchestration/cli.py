"""The `medrec` command.

Nothing heavy is imported here. `orchestration.cli_index` holds the names and help lines, the module
of a command loads when it is called, and PyTorch, Ray and the rest load inside the command that
needs them: ``medrec --help`` answers at once and local work never starts Ray.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from orchestration.cli_group import LazyGroup

app = typer.Typer(
    name="medrec",
    cls=LazyGroup,
    help="Medication recommendation from health records and drug molecules.\n\n"
    "Research use only, not for clinical decisions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
)

_INTERRUPTED = "interrupted; finished work is kept, the same command goes on from there"
COMPLETE_VARIABLE = "_MEDREC_COMPLETE"
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"medrec {version('medrec')}")
        raise typer.Exit


def _install(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        from typer.completion import install_callback

        install_callback(ctx, None, wanted)  # type: ignore[arg-type]


def _show(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        from typer.completion import show_callback

        show_callback(ctx, None, wanted)  # type: ignore[arg-type]


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    install_completion: Annotated[
        bool, typer.Option("--install-completion", callback=_install, is_eager=True, hidden=True)
    ] = False,
    show_completion: Annotated[
        bool, typer.Option("--show-completion", callback=_show, is_eager=True, hidden=True)
    ] = False,
) -> None:
    """Medication recommendation from health records and drug molecules."""


def main() -> None:
    """Entry point: run the command; errors become one message and an exit code."""
    code: object
    try:
        _use_environment()
        if COMPLETE_VARIABLE in os.environ:
            from typer.completion import completion_init

            completion_init()
        code = app(standalone_mode=False, prog_name="medrec")
    except typer.Exit as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:  # noqa: BLE001 - the boundary of the program
        code = _failed(error)
    if code == 130:  # the command library turns Ctrl-C into this exit code on some paths
        _complain(_INTERRUPTED)
        _leave_at_once(code)
    sys.exit(code if isinstance(code, int) else 0)


def _leave_at_once(code: int) -> None:
    """End without the interpreter's tear-down, which can crash while Ray's threads are at work.

    A local cluster goes with its driver, as after a kill; a joined one drops the driver's tasks.
    """
    if "ray" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _use_environment() -> None:
    """Only the command line reads the environment."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if _JOB_VARIABLE in os.environ:
        from orchestration.job_request import use_job_environment

        use_job_environment()
    folder = os.environ.get("MEDREC_DATA")
    if folder and "--help" not in sys.argv and COMPLETE_VARIABLE not in os.environ:
        from pathlib import Path

        from medrec.data.schema import set_data_root

        set_data_root(Path(folder))


def _complain(message: str) -> None:
    """Write one message; the program's name is red on a terminal."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("medrec: ", "bold red"), message)
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def _failed(error: Exception) -> int:
    """Message and exit code of an error; what is none of ours is a defect of the program."""
    from quantum.base import InputError, MedrecError

    if isinstance(error, MedrecError):
        _complain(str(error))
        return error.exit_code
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _misused(error)
    if type(error).__name__ == "Abort":
        return 130
    if os.environ.get("MEDREC_TRACEBACK"):
        raise error
    if isinstance(error, OSError):
        wrapped = InputError(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
        _complain(str(wrapped))
        return wrapped.exit_code
    _complain(
        f"defect in medrec: {type(error).__name__}: {error}. "
        "Set MEDREC_TRACEBACK=1 to see where, and please report it."
    )
    return 70


def _misused(error: Exception) -> int:
    """Say what is wrong with the words after ``medrec``, and which help tells more."""
    message = " ".join(str(getattr(error, "format_message")()).split())  # noqa: B009
    message = message.replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" or not message:
        getattr(error, "show")()  # noqa: B009
    else:
        near = getattr(error, "possibilities", None)
        if near:
            message = f"{getattr(error, 'message', message)}; did you mean {min(near)}?"
        message = message[:1].lower() + message[1:].rstrip(".")
        path = getattr(context, "command_path", "medrec")
        _complain(f"{message} (see {path} --help)")
    return int(getattr(error, "exit_code", 2))
