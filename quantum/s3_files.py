"""The few operations on S3 objects that a store needs, with waiting and clear errors.

Every operation asks the server itself (listings are not cached), is tried again while the server
does not answer, and tells "there is no such object" from every other answer. Endpoint, region and
credentials come from the standard AWS environment variables and profile files.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from quantum.base import DiskFullError, ProgramMissingError, StoreError
from quantum.store_retry import Retry, retry_budget

SCHEME = "s3://"
_PART_BYTES = 8 * 2**20  # S3 takes no parts below 5 MiB
_CONNECT_S, _READ_S = 10, 60  # of one attempt; the budget decides when to give up
_CONNECTIONS = 32
_ABSENT, _REFUSED, _EMPTY = 404, 412, 416
_DENIED = (401, 403)
_PASSING = (408, 409, 425, 429)  # 409: two conditional writes at the same moment
_PASSING_CODES = ("RequestTimeout", "SlowDown", "IncompleteBody", "BadDigest", "InternalError")
_DENIED_CODES = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
_FULL_CODES = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage")
_FULL = 507
_SIGNATURE = "write"  # name of the metadata that tells writes apart
_NOBODY = '"00000000000000000000000000000000"'  # etag that no object has
T = TypeVar("T")
_clients: dict[tuple[int, str], Any] = {}


class _AbsentError(Exception):
    """There is no such object."""


class _EmptyError(Exception):
    """The object has no first byte."""


class _RefusedError(Exception):
    """The condition of a write does not hold."""


@dataclass(frozen=True)
class Found:
    """An object, or what is known of it: ``etag`` names its present content."""

    etag: str
    metadata: dict[str, str]
    data: bytes = b""


class S3Files:
    """Objects below one prefix of a bucket.

    Parameters
    ----------
    url : str
        ``s3://BUCKET/PREFIX``.
    retry_s : float, optional
        Seconds to wait while the server does not answer; default ``MEDREC_STORE_RETRY_S`` or five
        minutes.

    Raises
    ------
    StoreError
        If the URL names no bucket.
    ProgramMissingError
        If s3fs is not installed.
    """

    def __init__(self, url: str, retry_s: float | None = None) -> None:
        self.bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        if not url.startswith(SCHEME) or not self.bucket:
            raise StoreError(f"no bucket in '{url}'; expected {SCHEME}BUCKET/PREFIX")
        self.prefix = "/".join(part for part in prefix.split("/") if part)
        self.url = f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")
        self.budget_s = retry_budget(retry_s)
        _client(self.url)

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _run(self, operation: Callable[[Any], Awaitable[T]]) -> T:
        """Run a coroutine function of the client on its own thread, again while it must wait."""
        from fsspec.asyn import sync

        def once() -> T:
            client = _client(self.url)
            found: T = sync(client.loop, operation, client)
            return found

        return Retry(self.url, self.budget_s, (Exception,), _explain)(once)

    # ------------------------------------------------------------------ reading

    def read(self, path: str) -> Found | None:
        """Content and etag of an object; None if there is no such object."""
        return self._get(path)

    def facts(self, path: str) -> Found | None:
        """Etag and metadata of an object; None if there is no such object.

        One byte is asked for: unlike a request for the head alone, the answer tells a missing
        bucket from a missing object.
        """
        try:
            return self._get(path, Range="bytes=0-0")
        except _EmptyError:
            return self._get(path)

    def _get(self, path: str, **more: str) -> Found | None:
        async def operation(client: Any) -> Found:
            answer = await client._call_s3(
                "get_object", Bucket=self.bucket, Key=self._key(path), **more
            )
            try:
                data = await answer["Body"].read()
            finally:
                answer["Body"].close()
            return Found(answer["ETag"], dict(answer.get("Metadata") or {}), data)

        try:
            return self._run(operation)
        except _AbsentError:
            return None

    def paths(self, start: str) -> list[str]:
        """Paths of all objects that begin in some way, sorted; one request per 1000."""
        cut = len(self._key(""))

        async def operation(client: Any) -> list[str]:
            found: list[str] = []
            more: dict[str, str] = {}
            while True:
                page = await client._call_s3(
                    "list_objects_v2", Bucket=self.bucket, Prefix=self._key(start), **more
                )
                found += [item["Key"][cut:] for item in page.get("Contents", [])]
                if not page.get("IsTruncated"):
                    return found
                more = {"ContinuationToken": page["NextContinuationToken"]}

        return sorted(self._run(operation))

    # ------------------------------------------------------------------ writing

    def create(self, path: str, data: bytes, metadata: dict[str, str] | None = None) -> bool:
        """Write an object unless there is one of this name; one of all writers gets True.

        Raises
        ------
        DiskFullError
            If the server has no space left.
        """
        notes = _signed(metadata)
        return self._write(path, notes, self._creation(path, data, notes))

    def _creation(
        self, path: str, data: bytes, notes: dict[str, str]
    ) -> Callable[[Any], Awaitable[None]]:
        async def operation(client: Any) -> None:
            await client._pipe_file(
                f"{self.bucket}/{self._key(path)}",
                data,
                chunksize=_PART_BYTES,
                mode="create",
                Metadata=notes,
            )

        return operation

    def replace(self, path: str, data: bytes, etag: str) -> bool:
        """Write an object if its content is still the one of the etag."""
        notes = _signed()
        try:
            return self._write(path, notes, self._replacement(path, data, notes, etag))
        except _AbsentError:
            return False

    def _replacement(
        self, path: str, data: bytes, notes: dict[str, str], etag: str
    ) -> Callable[[Any], Awaitable[None]]:
        async def operation(client: Any) -> None:
            await client._call_s3(
                "put_object",
                Bucket=self.bucket,
                Key=self._key(path),
                Body=data,
                IfMatch=etag,
                Metadata=notes,
            )

        return operation

    def keeps_conditions(self, path: str, data: bytes) -> bool:
        """Tell whether the server refuses writes whose condition does not hold.

        Parameters
        ----------
        data : bytes
            What the object at the path holds, so that a careless server changes nothing.
        """
        notes = _signed()
        writes = (
            self._creation(path, data, notes),
            self._replacement(path, data, notes, _NOBODY),
        )
        return all(self._is_refused(write) for write in writes)

    def _is_refused(self, write: Callable[[Any], Awaitable[None]]) -> bool:
        try:
            self._run(write)
        except _RefusedError:
            return True
        return False

    def _write(
        self, path: str, notes: dict[str, str], operation: Callable[[Any], Awaitable[None]]
    ) -> bool:
        try:
            self._run(operation)
            return True
        except _RefusedError:
            # if an answer was lost, it may be our own first attempt that stands in the way
            now = self.facts(path)
            return now is not None and now.metadata.get(_SIGNATURE) == notes[_SIGNATURE]

    def overwrite(self, path: str, data: bytes) -> None:
        """Write an object whatever is there."""

        async def operation(client: Any) -> None:
            await client._call_s3("put_object", Bucket=self.bucket, Key=self._key(path), Body=data)

        self._run(operation)

    def delete(self, path: str, etag: str | None = None) -> None:
        """Remove an object; with an etag only if its content is still that one.

        Not every server looks at the condition of a removal; nothing may rest on it.
        """
        condition = {} if etag is None else {"IfMatch": etag}

        async def operation(client: Any) -> None:
            await client._call_s3(
                "delete_object", Bucket=self.bucket, Key=self._key(path), **condition
            )

        try:
            self._run(operation)
        except (_AbsentError, _RefusedError):
            return


def _signed(metadata: dict[str, str] | None = None) -> dict[str, str]:
    """Metadata with a mark that no other write has."""
    return {**(metadata or {}), _SIGNATURE: uuid.uuid4().hex}


# --------------------------------------------------------------------------- client


def _client(url: str) -> Any:
    """The process' client for the present AWS environment; a forked child makes its own."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    name = (os.getpid(), hashlib.sha256(repr(settings).encode()).hexdigest())
    if name not in _clients:
        try:
            import s3fs
        except ImportError as error:
            raise ProgramMissingError(
                f"the store {url} needs the package s3fs: pip install 'medrec[s3]'"
            ) from error
        client = s3fs.S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": _CONNECT_S,
                "read_timeout": _READ_S,
                "max_pool_connections": _CONNECTIONS,
                "retries": {"total_max_attempts": 1, "mode": "standard"},
            },
        )
        client.retries = 1  # we wait and try again, in one place
        _clients[name] = client
    return _clients[name]


def _explain(error: BaseException, where: str) -> str:
    """Say what an error of the client means: a text if it may pass, an exception otherwise."""
    answer = _answer(error)
    if answer is None:
        return _explain_silence(error, where)
    code, status, text = answer
    said = f"{code} {text}".strip()
    if code == "NoSuchBucket":
        raise StoreError(f"no bucket for the store {where}; make it first") from error
    if code == "NoSuchUpload":  # a server that forgot half an upload takes the whole one
        return said
    if status == _ABSENT:
        raise _AbsentError(said) from error
    if status == _REFUSED:
        raise _RefusedError(said) from error
    if status == _EMPTY:
        raise _EmptyError(said) from error
    if code in _FULL_CODES or status == _FULL:
        raise DiskFullError(f"no space left in the store {where} ({said})") from error
    if status in _DENIED or code in _DENIED_CODES:
        raise StoreError(
            f"the store {where} refuses access ({said}); expected credentials with the right to "
            "list, read, write and remove objects there"
        ) from error
    if code in _PASSING_CODES or status in _PASSING or (status >= 500 and status != 501):
        return f"{said} (HTTP {status})"
    raise StoreError(f"the store {where} answers {said} (HTTP {status})") from error


def _answer(error: BaseException | None) -> tuple[str, int, str] | None:
    """Code, HTTP status and message of the server's answer behind an error."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            facts = response["Error"]
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(facts.get("Code", "")), int(status), str(facts.get("Message", ""))
        error = error.__cause__
    return None


def _explain_silence(error: BaseException, where: str) -> str:
    """As `_explain`, for an error without an answer of the server."""
    from botocore import exceptions as aws

    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        raise StoreError(
            f"no AWS credentials for the store {where}; expected AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a profile or a role"
        ) from error
    passing = (aws.HTTPClientError, aws.ConnectionError, aws.ResponseStreamingError)
    incomplete = (aws.IncompleteReadError, aws.CredentialRetrievalError, asyncio.TimeoutError)
    if isinstance(error, (OSError, *passing, *incomplete)):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, aws.BotoCoreError | ValueError):
        raise StoreError(f"the store {where} cannot be used: {error}") from error
    if type(error).__module__.partition(".")[0] in ("aiohttp", "botocore", "aiobotocore", "http"):
        return f"{type(error).__name__}: {error}"
    raise error
