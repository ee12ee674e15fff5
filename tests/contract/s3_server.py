"""An S3 server on loopback that can be shut down and brought back with its objects.

Run as a program: prints its port, then obeys ``down``, ``up`` and ``lose`` (carry out the next
writing, but lose the answer) on standard input. Requests are
served one after the other and connections are not kept, so that a condition of a write is decided
before the next write, and a server that is down is really gone.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server


def serve(app, port: int) -> BaseWSGIServer:
    server = make_server("127.0.0.1", port, app, threaded=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Careless:
    """An S3 server that ignores a header, as older ones do, or whose answers get lost."""

    def __init__(self, app) -> None:
        self.app, self.ignored = app, os.environ.get("IGNORED_HEADER", "")
        self.to_lose = 0

    def __call__(self, environ, start_response):
        environ.pop(self.ignored, None)
        answer = self.app(environ, start_response)
        if self.to_lose and environ["REQUEST_METHOD"] == "PUT":
            self.to_lose -= 1
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return answer


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = serve(Careless(DomainDispatcherApplication(create_backend_app)), 0)
    port = server.port
    print(port, flush=True)
    for line in sys.stdin:
        if line.strip() == "down":
            server.shutdown()
            server.server_close()
        elif line.strip() == "up":
            server = serve(server.app, port)
        elif line.strip() == "lose":
            server.app.to_lose += 1
        print(line.strip(), flush=True)
    os._exit(0)  # whoever started this is gone


if __name__ == "__main__":
    main()
