"""The store on S3 or a server that speaks its protocol.

::

    <url>/store.json             format version and the store's own name
    <url>/objects/<key>.npz      record.json and one .npy per array, in one object
    <url>/failures/<key>.json
    <url>/damaged/<key>-<id>.npz objects set aside because their bytes did not match
    <url>/claims/<key>.txt       who computes what right now; never needed for correctness

An object is one file, written under the condition that there is none of its name: the server lets
one writer win, and readers see all of it or nothing. Claims change under the condition that they
still have the content that was read, so that one of many callers wins. When a store is opened, the
server is asked to refuse such writes, because a server that ignores conditions would lose results.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from quantum.base import IntegrityError, StoreError, TransientError, canonical_json
from quantum.s3_files import SCHEME, Found, S3Files
from quantum.store_base import (
    DAMAGE,
    Failure,
    Progress,
    Record,
    add_up,
    check_format,
    decode,
    encode,
    numbers_digest,
    read_failure,
)
from quantum.store_cache import ObjectCache, open_cache

__all__ = ["SCHEME", "RemoteStore", "pack", "unpack"]

REMOTE_FORMAT = 1
_OPEN_S = 30.0  # a mistyped endpoint is told soon; later faults have the whole budget
_FEW = 64
_THREADS = 8
_DIGEST_LENGTH = 64
_FREE = "free"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can hold: no clock in the bytes


class RemoteStore:
    """The store on S3; the contract is in `quantum.store_base.StoreLike`.

    Parameters
    ----------
    url : str
        ``s3://BUCKET/PREFIX``; the bucket must exist.
    retry_s : float, optional
        Seconds to wait while the server does not answer; default ``MEDREC_STORE_RETRY_S`` or five
        minutes.
    make : bool
        Make the store if there is none. Without, the server is not asked whether it can write.

    Raises
    ------
    StoreError
        If the server cannot be reached, refuses access or lacks conditional writes, if the store
        is of another format version, or if there is none and none is to be made.
    ProgramMissingError
        If s3fs is not installed.
    """

    def __init__(self, url: str, retry_s: float | None = None, *, make: bool = True) -> None:
        self._files = S3Files(url, retry_s)
        marker = _open(self._files, make)
        where = hashlib.sha256(f"{self._files.url} {marker.get('id')}".encode()).hexdigest()
        self._cache: ObjectCache | None = open_cache(where[:16])

    @property
    def location(self) -> str:
        """URL of the store."""
        return self._files.url

    # ------------------------------------------------------------------ objects

    def has(self, key: str) -> bool:
        """Tell whether a finished object of this name exists; the server is asked."""
        return self._files.facts(_object(key)) is not None

    def put(self, record: Record) -> bool:
        """Publish an object; False if another writer was first (its object stays).

        Raises
        ------
        DiskFullError
            If the server has no space left.
        TransientError
            If the server did not answer for too long.
        """
        if self.has(record.key):
            return False
        body, data = pack(record)
        metadata = {"digest": body["digest"], "numbers": numbers_digest(body)}
        won = self._files.create(_object(record.key), data, metadata)
        if won and self._cache is not None:
            self._cache.write(record.key, data)
        self.clear_failure(record.key)
        return won

    def get(self, key: str) -> Record:
        """Read an object, from the cache if it is there, and check its digests.

        Raises
        ------
        StoreError
            If there is no such object.
        IntegrityError
            If bytes do not match; the object is set aside, so that it is computed again.
        TransientError
            If the server did not answer for too long; nothing is set aside.
        """
        cached = None if self._cache is None else self._cache.read(key)
        if cached is not None and self._cache is not None:
            try:
                return unpack(cached, key)
            except DAMAGE:
                self._cache.drop(key)
        return self._fetch(key)

    def _fetch(self, key: str) -> Record:
        found = self._download(key)
        try:
            record = unpack(found.data, key)
        except DAMAGE:
            found = self._download(key)  # once more: damaged there, or on its way?
            try:
                record = unpack(found.data, key)
            except DAMAGE as error:
                self._set_aside(key, found)
                raise IntegrityError(
                    f"object {key[:16]} is damaged and was set aside: {error}"
                ) from error
        if self._cache is not None:
            self._cache.write(key, found.data)
        return record

    def _download(self, key: str) -> Found:
        found = self._files.read(_object(key))
        if found is None:
            raise StoreError(f"no object {key[:16]} in the store {self.location}")
        return found

    def _set_aside(self, key: str, found: Found) -> None:
        self._files.overwrite(f"damaged/{key}-{uuid.uuid4().hex[:6]}.npz", found.data)
        now = self._files.facts(_object(key))
        if now is not None and now.etag == found.etag:  # not yet computed again by somebody else
            self._files.delete(_object(key), found.etag)

    def digest_of(self, key: str) -> str:
        """Digest of an object's record, which holds the digests of its arrays."""
        return self._noted(key, "digest")

    def numbers_of(self, key: str) -> str:
        """Digest of an object's arrays alone."""
        return self._noted(key, "numbers")

    def _noted(self, key: str, name: str) -> str:
        # written beside the object by `put`, so that it need not be fetched
        facts = self._files.facts(_object(key))
        if facts is None:
            raise StoreError(f"no object {key[:16]} in the store {self.location}")
        if name in facts.metadata:
            return facts.metadata[name]
        body = encode(self.get(key))[0]
        return str(body["digest"]) if name == "digest" else numbers_digest(body)

    # ------------------------------------------------------------------ failures

    def failure(self, key: str) -> Failure | None:
        """Return the recorded failure of a request."""
        found = self._files.read(_failure(key))
        return None if found is None else read_failure(found.data.decode(errors="replace"))

    def put_failure(self, failure: Failure) -> None:
        """Record a failure; attempts are added up."""
        stamped = add_up(failure, self.failure(failure.key))
        self._files.overwrite(_failure(failure.key), stamped.model_dump_json(indent=2).encode())

    def clear_failure(self, key: str) -> None:
        """Forget a failure."""
        self._files.delete(_failure(key))

    # ------------------------------------------------------------------ many keys

    def keys(self) -> Iterator[str]:
        """Iterate over the names of all finished objects."""
        yield from self._listed("objects", ".npz")

    def failed_keys(self) -> Iterator[str]:
        """Iterate over the names of all recorded failures."""
        yield from self._listed("failures", ".json")

    def _listed(self, folder: str, suffix: str, start: str = "") -> list[str]:
        paths = self._files.paths(f"{folder}/{start}")
        names = [path.removeprefix(f"{folder}/") for path in paths if path.endswith(suffix)]
        return [name.removesuffix(suffix) for name in names]

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of some keys that have a finished object; many are found by listing."""
        wanted = set(keys)
        if len(wanted) > _FEW:
            return self._found("objects", ".npz", wanted)
        names = sorted(wanted)
        with ThreadPoolExecutor(_THREADS) as pool:
            return {
                key for key, there in zip(names, pool.map(self.has, names), strict=True) if there
            }

    def _found(self, folder: str, suffix: str, wanted: set[str]) -> set[str]:
        """Keys that a folder holds, listed at once in parts by their first digit."""
        starts = sorted({key[:1] for key in wanted})
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = pool.map(lambda start: self._listed(folder, suffix, start), starts)
            return {key for part in parts for key in wanted.intersection(part)}

    def failures(self, keys: Iterable[str]) -> dict[str, Failure]:
        """Recorded failures of some keys; many are found by listing."""
        wanted = set(keys)
        if len(wanted) > _FEW:
            wanted = self._found("failures", ".json", wanted)
        names = sorted(wanted)
        with ThreadPoolExecutor(_THREADS) as pool:
            read = dict(zip(names, pool.map(self.failure, names), strict=True))
        return {key: failure for key, failure in read.items() if failure is not None}

    def verify(self, progress: Progress | None = None) -> tuple[int, list[str]]:
        """Read everything from the server; return how many were checked and which are damaged."""
        names, damaged = list(self.keys()), []
        with ThreadPoolExecutor(_THREADS) as pool:
            for begin in range(0, len(names), _THREADS):
                part = names[begin : begin + _THREADS]
                sound = pool.map(self._is_sound, part)
                damaged += [key for key, fine in zip(part, sound, strict=True) if not fine]
                if progress is not None:
                    progress(begin + len(part), len(names))
        return len(names), damaged

    def _is_sound(self, key: str) -> bool:
        try:
            self._fetch(key)
        except IntegrityError:
            return False
        return True

    # ------------------------------------------------------------------ claims

    def claim(self, key: str, owner: str) -> str | None:
        """Say that a key is being computed; None if nobody else says so."""
        mine = f"{owner} 0".encode("ascii")
        for _ in range(10):
            if self._files.create(_claim(key), mine):
                return None
            found = self._files.read(_claim(key))
            if found is None:
                continue  # given up in between
            holder = _holder(found)
            if holder == owner:
                return None
            if holder != _FREE:
                return _text(found)
            if self._files.replace(_claim(key), mine, found.etag):
                return None
        return "unknown 0"

    def renew(self, key: str, owner: str, beat: int) -> None:
        """Write a claim of ours again, so that others see that we live."""
        found = self._files.read(_claim(key))
        if found is not None and _holder(found) == owner:
            self._files.replace(_claim(key), f"{owner} {beat}".encode("ascii"), found.etag)

    def release(self, key: str, owner: str) -> None:
        """Give up a claim, if it is ours."""
        found = self._files.read(_claim(key))
        if found is not None and _holder(found) == owner:
            self._files.delete(_claim(key), found.etag)

    def break_claim(self, key: str, seen: str) -> bool:
        """Remove a dead holder's claim if it still reads ``seen``; True for one caller only.

        The claim is overwritten on condition that it has not changed, which one caller wins.
        It then reads as free, so that nothing is stuck if the winner is killed right here.
        """
        found = self._files.read(_claim(key))
        if found is None or _text(found) != seen:
            return False
        free = f"{_FREE} {uuid.uuid4().hex}".encode("ascii")
        return self._files.replace(_claim(key), free, found.etag)


def _object(key: str) -> str:
    return f"objects/{key}.npz"


def _failure(key: str) -> str:
    return f"failures/{key}.json"


def _claim(key: str) -> str:
    return f"claims/{key}.txt"


def _text(claim: Found) -> str:
    return claim.data.decode("ascii", errors="replace").strip() or "unknown 0"


def _holder(claim: Found) -> str:
    return _text(claim).split()[0]


# --------------------------------------------------------------------------- opening


def _open(files: S3Files, make: bool) -> dict[str, Any]:
    """Find or make the marker of a store and try what the store rests on."""
    hasty = S3Files(files.url, min(files.budget_s, _OPEN_S))
    try:
        found = hasty.read("store.json")
        if found is None and not make:
            raise StoreError(f"no store at {files.url}; expected store.json below this prefix")
        if found is None:
            marker = {"format": REMOTE_FORMAT, "layout": "one npz per key", "id": uuid.uuid4().hex}
            hasty.create("store.json", canonical_json(marker).encode())
            found = hasty.read("store.json")
        if found is None:
            raise StoreError(f"the store {files.url} does not show an object just written")
        content = check_format(found.data.decode(errors="replace"), REMOTE_FORMAT, files.url)
        if make:
            _probe(hasty, found.data)
    except TransientError as error:
        raise StoreError(f"{error}; check the endpoint (AWS_ENDPOINT_URL_S3)") from error
    return content


def _probe(files: S3Files, marker: bytes) -> None:
    """Try what the store rests on, at the marker."""
    if "store.json" not in files.paths("store.json"):
        raise StoreError(f"the store {files.url} does not list an object just written")
    if not files.keeps_conditions("store.json", marker):
        raise StoreError(
            f"the server of {files.url} lacks conditional writes (If-None-Match and If-Match "
            "of PUT); results could be overwritten there: use another server or a folder"
        )


# --------------------------------------------------------------------------- bytes of an object


def pack(record: Record) -> tuple[dict[str, Any], bytes]:
    """Put a record into one file: content of its ``record.json``, and all bytes.

    The bytes are an uncompressed .npz, which numpy can read, with ``record.json`` in it. Its
    comment, the last 64 bytes, is the SHA-256 of everything before.
    """
    body, files = encode(record)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        text = json.dumps(body, indent=2, sort_keys=True, allow_nan=False) + "\n"
        archive.writestr(zipfile.ZipInfo("record.json", _EPOCH), text)
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), data)
        archive.comment = b"0" * _DIGEST_LENGTH
    data = buffer.getvalue()[:-_DIGEST_LENGTH]
    return body, data + hashlib.sha256(data).hexdigest().encode("ascii")


def unpack(data: bytes, key: str) -> Record:
    """Check and read what `pack` wrote.

    Raises
    ------
    IntegrityError
        If any byte differs, or if it is of another key.
    """
    content = memoryview(data)[:-_DIGEST_LENGTH]
    if hashlib.sha256(content).hexdigest().encode("ascii") != data[-_DIGEST_LENGTH:]:
        raise IntegrityError(f"{len(data)} bytes do not match their digest")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        body = json.loads(archive.read("record.json"))
        return decode(body, key, lambda name: archive.read(f"{name}.npy"))
