"""A server on the loopback address, on a free port, that ends soon after Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from quantum.base import InputError, ResourceError

HOST = "127.0.0.1"
_TRIED_PORTS = 50
_GRACE_S = 1.5


def free_socket(port: int) -> socket.socket:
    """A socket bound to the loopback address, at a port or at the next free one.

    Raises
    ------
    InputError
        If the port is no port.
    ResourceError
        If none of `_TRIED_PORTS` is free.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"port is {port}; expected 1 to 65535")
    last = min(port + _TRIED_PORTS, 65536)
    for number in range(port, last):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, number))
        except OSError:
            found.close()
            continue
        return found
    raise ResourceError(f"no port from {port} to {last - 1} is free; expected one: --port N")


class _Server(uvicorn.Server):
    """A second after Ctrl-C it is over, also while a thread loads a model."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT:
            timer = threading.Timer(_GRACE_S, os._exit, (0,))
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


def serve(
    app: ASGIApp, bound: socket.socket, opened: str | None, ready: Callable[[], None]
) -> None:
    """Answer requests until Ctrl-C.

    Parameters
    ----------
    bound : socket
        Of `free_socket`.
    opened : str or None
        Address to show in the browser once the server listens.
    ready : callable
        Called once the server listens.
    """
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="error",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        lifespan="off",
        ws="none",
    )
    server = _Server(config)
    bound.listen(128)
    ready()
    if opened is not None:
        threading.Thread(target=webbrowser.open, args=(opened,), daemon=True).start()
    try:
        server.run(sockets=[bound])
    except KeyboardInterrupt:
        return
