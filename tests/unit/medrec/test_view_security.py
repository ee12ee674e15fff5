"""Who may ask the local web page, and what its answers carry."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from medrec.runs import Home
from medrec.view.app import ASSETS, create_app
from medrec.view.replies import plain
from medrec.view.security import MAX_BODY_BYTES, Guard, new_token
from medrec.view.server import HOST, free_socket
from quantum.base import InputError

TOKEN = "t" * 32
EVIL = "<script>document.body.dataset.error='run'</script>"


def ask(
    app,
    method: str,
    path: str,
    *,
    host: str = "127.0.0.1:8765",
    known: bool = True,
    **options,
) -> httpx.Response:
    """One request; `known` sends the cookie of the first answer."""
    headers = {"host": host, **options.pop("headers", {})}
    if known:
        headers["cookie"] = f"medrec_view_8765={TOKEN}"

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, headers=headers, **options)

    return asyncio.run(send())


@pytest.fixture
def app(tmp_path: Path) -> Guard:
    """The application over an empty home."""
    return create_app(Home(tmp_path), TOKEN, 8765)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8765"]
)
def test_loopback_names_are_answered(app, host: str):
    assert ask(app, "GET", "/api/runs", host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8765",
        "192.168.0.1:8765",
        "127.0.0.1:8765@evil.example",
        "0.0.0.0:8765",
        "",
    ],
)
def test_other_hosts_are_refused(app, host: str):
    answer = ask(app, "GET", "/api/runs", host=host)
    assert answer.status_code == 400
    assert "loopback" in answer.json()["error"]["message"]


def test_without_the_token_nothing_is_given(app):
    for path in ("/", "/api/runs", "/assets/view.css", "/?token=wrong", "/?token=", "/nowhere"):
        assert ask(app, "GET", path, known=False).status_code == 403, path
    assert ask(app, "GET", f"/api/runs?token={TOKEN}", known=False).status_code == 403
    wrong = {"cookie": f"medrec_view_8765=x{TOKEN}; other={TOKEN}"}
    assert ask(app, "GET", "/api/runs", known=False, headers=wrong).status_code == 403


def test_the_token_becomes_a_strict_cookie(app):
    answer = ask(app, "GET", f"/?token={TOKEN}", known=False)
    assert answer.status_code == 200
    assert answer.headers["set-cookie"].split("; ") == [
        f"medrec_view_8765={TOKEN}",
        "Path=/",
        "HttpOnly",
        "SameSite=Strict",
    ]
    assert "set-cookie" not in ask(app, "GET", "/").headers


def test_tokens_are_long_and_new():
    tokens = {new_token() for _ in range(20)}
    assert len(tokens) == 20
    assert all(len(token) == 32 for token in tokens)  # 24 bytes in base64


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "https://127.0.0.1:8765"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_posts_of_other_sites_are_refused(app, headers: dict[str, str]):
    answer = ask(app, "POST", "/api/compare", json={"runs": []}, headers=headers)
    assert answer.status_code == 403


def test_posts_of_the_page_itself_pass(app):
    headers = {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}
    answer = ask(app, "POST", "/api/compare", json={"runs": []}, headers=headers)
    assert answer.status_code == 400
    assert "no run to compare" in answer.json()["error"]["message"]


def test_posts_are_json_and_small(app):
    form = ask(app, "POST", "/api/compare", data={"runs": "a"})
    assert form.status_code == 415
    text = {"content-type": "text/plain"}
    assert ask(app, "POST", "/api/compare", content="{}", headers=text).status_code == 415
    large = json.dumps({"runs": ["x" * MAX_BODY_BYTES]})
    kind = {"content-type": "application/json"}
    assert ask(app, "POST", "/api/compare", content=large, headers=kind).status_code == 413


def test_answers_carry_their_policy(app):
    for path in ("/", "/api/runs", "/assets/view.js", "/nowhere"):
        headers = ask(app, "GET", path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/..%2f..%2fsecret",
        "/api/runs/../../secret",
        "/reports/..%2fsecret.html",
        "/reports/%2e%2e%2fsecret.html",
        "/reports/..%5csecret.html",
        "/assets/..%2fapp.py",
        "/assets/",
        "/assets",
        "/reports/",
        "/api/molecules/..%2f..%2fsecret",
        "/openapi.json",
        "/docs",
    ],
)
def test_names_never_become_paths(tmp_path: Path, path: str):
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    (home / "reports").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "run.json").write_text("{}")
    (home / "secret.html").write_text("secret")
    answer = ask(create_app(Home(home), TOKEN, 8765), "GET", path)
    assert answer.status_code == 404, answer.text
    assert "not_found" in answer.text


def test_a_stored_report_is_shut_in(tmp_path: Path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "page.html").write_text("<h1>page</h1>")
    answer = ask(create_app(Home(tmp_path), TOKEN, 8765), "GET", "/reports/page.html")
    assert answer.text == "<h1>page</h1>"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy


def test_defects_give_no_traceback_and_no_value(caplog: pytest.LogCaptureFixture):
    async def broken(scope, receive, send) -> None:
        raise KeyError("a patient's value")

    with caplog.at_level(logging.ERROR):
        answer = ask(Guard(broken, TOKEN, 8765), "GET", "/api/runs")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"].startswith("defect in medrec: KeyError")
    assert "patient" not in answer.text + caplog.text
    assert "test_view_security.py" in caplog.text


def test_requests_that_do_not_fit_name_places_only(app):
    document = {"run": 7, "document": "a patient's value"}
    answer = ask(app, "POST", "/api/recommend", json=document)
    assert answer.status_code == 422
    assert "body.document" in answer.text
    assert "patient" not in answer.text


def test_websockets_are_not_spoken(app):
    sent = []

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(app({"type": "websocket", "path": "/"}, None, send))
    assert sent == []


def test_the_page_has_no_inline_script_and_no_address():
    text = (ASSETS / "index.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert " on" not in text.replace(" only", "").replace(" content", "")
    for file in ASSETS.iterdir():
        source = file.read_text(encoding="utf-8")
        assert "innerHTML" not in source, file.name
        assert "insertAdjacentHTML" not in source, file.name
        assert "http://" not in source, file.name
        assert "https://" not in source, file.name


def test_the_socket_is_on_the_loopback_and_the_next_free_one():
    first = free_socket(20765)
    try:
        first.listen()
        second = free_socket(first.getsockname()[1])
        try:
            assert first.getsockname()[0] == second.getsockname()[0] == HOST == "127.0.0.1"
            assert second.getsockname()[1] > first.getsockname()[1]
        finally:
            second.close()
    finally:
        first.close()
    with pytest.raises(InputError, match="port is 0"):
        free_socket(0)


def test_plain_values_are_json():
    import numpy as np

    found = plain({"a": np.float32("nan"), "b": np.arange(2), "c": (np.int64(3), float("inf"))})
    assert found == {"a": None, "b": [0, 1], "c": [3, None]}


def test_other_answers_are_left_as_they_are():
    guarded = Guard(PlainTextResponse("hello", headers={"cache-control": "private"}), TOKEN, 8765)
    answer = ask(guarded, "GET", "/x")
    assert (answer.text, answer.headers["cache-control"]) == ("hello", "private")
