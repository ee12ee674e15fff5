"""Who may ask, and what an answer may do: the outermost layer of the local web page.

A page on another site can make a browser send requests to this machine, and a name that points to
127.0.0.1 can make them look like requests to that site (DNS rebinding). Therefore, in this order:
the host must be a loopback name; every request needs the token of this start, in the address once
and then as a cookie; a POST must come from the page itself, as JSON, and be small.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import PurePath
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medrec.view.replies import complaint

MAX_BODY_BYTES = 256 * 1024
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Scripts from this server alone; Plotly sets styles in the page, so those may be inline."""
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; worker-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A stored report carries its scripts inside: it runs without an origin, and can reach nothing."""
VIEWER_POLICY = REPORT_POLICY.replace("frame-ancestors 'none'", "frame-ancestors 'self'")
"""The same in a frame of this page."""
DRAWING_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_log = logging.getLogger("medrec.view")


def new_token() -> str:
    """A random token of 192 bits."""
    return secrets.token_urlsafe(24)


class Guard:
    """Checks around the application; pure ASGI, so that nothing passes beside it.

    Parameters
    ----------
    app : ASGI application
    token : str
        What a request must know.
    port : int
        Cookies do not tell ports apart; the port is in the cookie's name.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self._token = app, token
        self.cookie = f"medrec_view_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        answered = _Answer(send)
        headers = Headers(scope=scope)
        refused = self._refusal(scope, headers)
        if refused is None and scope["method"] == "POST":
            receive, refused = await _whole_body(receive)
        if refused is not None:
            await refused(scope, receive, answered)
            return
        if self._in_address(scope):
            answered.cookie = f"{self.cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        await self._pass_on(scope, receive, answered)

    async def _pass_on(self, scope: Scope, receive: Receive, answered: _Answer) -> None:
        """Run the application; what it does not expect is logged without any value."""
        try:
            await self.app(scope, receive, answered)
        except Exception as error:  # noqa: BLE001 - the boundary of the program
            _log.error("defect in medrec: %s at %s", type(error).__name__, _place(error))
            if not answered.started:
                text = f"defect in medrec: {type(error).__name__}; please report it"
                await complaint(text, 500, "unknown")(scope, receive, answered)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if not LOOPBACK.fullmatch(headers.get("host", "")):
            return complaint("the host of the request is not this machine's loopback name", 400)
        if not (self._in_address(scope) or self._in_cookie(headers)):
            return complaint(
                "this page needs its token: open the address that `medrec view` printed", 403
            )
        return _refused_post(headers) if scope["method"] == "POST" else None

    def _in_address(self, scope: Scope) -> bool:
        if scope["path"] != "/":
            return False
        query = parse_qs(scope["query_string"].decode("latin-1"))
        return self._is_token(query.get("token", [""])[0])

    def _in_cookie(self, headers: Headers) -> bool:
        pairs = (item.strip().partition("=") for item in headers.get("cookie", "").split(";"))
        return any(name == self.cookie and self._is_token(value) for name, _, value in pairs)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self._token.encode())


def _refused_post(headers: Mapping[str, str]) -> Response | None:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and origin.lower() != f"http://{headers['host']}".lower():
        return complaint("the request comes from another site", 403)
    if site is not None and site not in ("same-origin", "none"):
        return complaint("the request comes from another site", 403)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return complaint("expected a body of type application/json", 415)
    return None


async def _whole_body(receive: Receive) -> tuple[Receive, Response | None]:
    """Read a body of at most `MAX_BODY_BYTES`, to be received again."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return receive, complaint("the request ended early", 400)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            text = f"the body is larger than {MAX_BODY_BYTES // 1024} KiB"
            return receive, complaint(text, 413)
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again, None


class _Answer:
    """Adds the headers that every answer has; those that it brings stay."""

    def __init__(self, send: Send) -> None:
        self._send, self.started, self.cookie = send, False, ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if self.cookie:
                headers.append("set-cookie", self.cookie)
        await self._send(message)


def _place(error: BaseException) -> str:
    """File and line where an error was raised; no message, which may hold values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown place"
    return f"{PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
