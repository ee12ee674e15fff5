"""The command `medrec view`."""

from __future__ import annotations

from typing import Annotated

import typer

from medrec.runs import Home
from orchestration.console import Terminal
from orchestration.options import DEFAULT_HOME, HomeOption


def view(
    port: Annotated[
        int, typer.Option(help="Port on this machine; the next free one if it is taken.")
    ] = 8765,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the web browser.")
    ] = True,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Show runs, molecules and recommendations as a web page on this machine; Ctrl-C ends it.

    The page answers to this machine alone (127.0.0.1) and to the address printed here, which holds
    a new token at every start. Research use only, not for clinical decisions.
    """
    from quantum.base import InputError, ProgramMissingError

    if not home.is_dir():
        raise InputError(
            f"no home folder at {home}; expected one that `medrec prepare` or `make demo` made: "
            "--home FOLDER"
        )
    try:
        from medrec.view.app import create_app
        from medrec.view.security import new_token
        from medrec.view.server import HOST, free_socket, serve
    except ImportError as error:
        raise ProgramMissingError(
            f"package '{error.name}' is not installed; expected pip install 'medrec[view]'"
        ) from error
    terminal, token = Terminal(), new_token()
    bound = free_socket(port)
    own_port = int(bound.getsockname()[1])
    address = f"http://{HOST}:{own_port}/?token={token}"

    def ready() -> None:
        if own_port != port:
            terminal.say(f"port {port} is taken")
        terminal.out.print(address, soft_wrap=True, markup=False, highlight=False)
        terminal.say("research use only, not for clinical decisions; Ctrl-C ends it")

    serve(create_app(Home(home), token, own_port), bound, address if browser else None, ready)
