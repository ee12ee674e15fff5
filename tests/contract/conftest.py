"""A real S3 server in a process of its own, and stores on it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_DUMMY = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}


class S3Server:
    """Handle of the server; down and up again on the same port, with its objects kept."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("s3_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_DUMMY, **environment},
        )
        self.endpoint = f"http://127.0.0.1:{int(self._line())}"

    def _line(self) -> str:
        text = self.process.stdout.readline().strip()
        assert text, "the S3 server did not start"
        return text

    def tell(self, word: str) -> None:
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self._line() == word

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def environment(self) -> dict[str, str]:
        return {**_DUMMY, "AWS_ENDPOINT_URL_S3": self.endpoint}

    def raw(self):
        """A client of its own, to make buckets and to do damage."""
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint)


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The server, with this process' environment set to use it and a cache of the test's own."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "MEDREC_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEDREC_STORE_CACHE", str(tmp_path / "cache"))
    return s3_process


@pytest.fixture
def s3_url(s3: S3Server) -> str:
    """URL of a store in a fresh bucket."""
    bucket = f"b{uuid.uuid4().hex[:12]}"
    s3.raw().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/features"


@pytest.fixture
def start_s3() -> Iterator[Callable[..., S3Server]]:
    """Starts further servers, with settings of their own."""
    servers = []

    def start(**environment: str) -> S3Server:
        servers.append(S3Server(**environment))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
