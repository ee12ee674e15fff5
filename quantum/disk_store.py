"""The store in a folder, on a local disk or on a shared file system.

::

    <root>/store.json            format version
    <root>/objects/ab/<key>/     record.json and one .npy per array
    <root>/failures/ab/<key>.json
    <root>/damaged/<key>-<id>/   objects set aside because their bytes did not match
    <root>/claims/<key>.txt      who computes what right now; never needed for correctness
    <root>/tmp/                  unfinished folders, swept when older than a day

An object is written into ``tmp/`` and renamed into place, so readers see all of it or nothing, the
first writer wins, and no lock is needed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from quantum.base import (
    DiskFullError,
    IntegrityError,
    StoreError,
    publish_folder,
    write_bytes_atomic,
    write_json_atomic,
)
from quantum.disk_claims import DiskClaims
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
    verify_objects,
)
from quantum.store_retry import Retry, is_there, list_names, read_if_there, retry_budget

FORMAT_VERSION = 1
_DAY_S = 86_400.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FEW = 512


class Store(DiskClaims):
    """The store on disk.

    Parameters
    ----------
    root : Path
        Folder of the store.
    retry_s : float, optional
        Seconds to wait while the file system does not answer; default ``MEDREC_STORE_RETRY_S``
        or five minutes.
    make : bool
        Make the store if there is none.

    Raises
    ------
    StoreError
        If the folder holds a store of another format version, or may not be used, or if there is
        none and none is to be made.
    """

    def __init__(self, root: Path, retry_s: float | None = None, *, make: bool = True) -> None:
        self.root, self._make = root, make
        self._retry = Retry(str(root), retry_budget(retry_s))
        self._retry(self._open)

    def _open(self) -> None:
        marker = self.root / "store.json"
        text = read_if_there(marker)
        if text is None and not self._make:
            raise StoreError(f"no store at {self.root}; expected a folder with store.json")
        if text is None:
            try:
                for name in ("objects", "failures", "tmp"):
                    (self.root / name).mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise StoreError(
                    f"no store can be made at {self.root}: {error.filename} is a file, "
                    "expected a folder"
                ) from error
            write_json_atomic(marker, {"format": FORMAT_VERSION})
        else:
            check_format(text, FORMAT_VERSION, str(self.root))
        self._sweep()

    @property
    def location(self) -> str:
        """Path of the store."""
        return str(self.root.resolve())

    def _folder(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def _failure_file(self, key: str) -> Path:
        return self.root / "failures" / key[:2] / f"{key}.json"

    def _sweep(self) -> None:
        limit = time.time() - _DAY_S
        for path in (*(self.root / "tmp").glob("*"), *(self.root / "claims").glob("*")):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime >= limit:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _exists(self, path: Path) -> bool:
        """Tell whether a file exists; a store whose marker is gone is away and not empty."""
        if is_there(path):
            return True
        self._check_mounted()
        return False

    # ------------------------------------------------------------------ objects

    def has(self, key: str) -> bool:
        """Tell whether a finished object of this name exists."""
        return self._retry(lambda: self._exists(self._folder(key) / "record.json"))

    def put(self, record: Record) -> bool:
        """Publish an object; False if another writer was first (its object stays).

        Raises
        ------
        DiskFullError
            If the disk is full; nothing of the object stays.
        TransientError
            If the file system did not answer for too long.
        """
        if self.has(record.key):
            return False
        body, files = encode(record)
        try:
            won = self._retry(lambda: self._publish(record.key, body, files))
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFullError(
                    f"no space left in the store {self.root} for a {record.stage} object"
                ) from error
            raise
        self.clear_failure(record.key)
        return won

    def _publish(self, key: str, body: dict[str, Any], files: dict[str, bytes]) -> bool:
        self._check_mounted()
        temporary = self.root / "tmp" / uuid.uuid4().hex
        try:
            temporary.mkdir(parents=True)
            for name, data in files.items():
                write_bytes_atomic(temporary / f"{name}.npy", data)
            write_json_atomic(temporary / "record.json", body)
            return publish_folder(temporary, self._folder(key))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def get(self, key: str) -> Record:
        """Read an object and check its digests.

        Raises
        ------
        StoreError
            If there is no such object.
        IntegrityError
            If bytes do not match; the object is set aside, so that it is computed again.
        TransientError
            If the file system did not answer for too long; nothing is set aside.
        """
        body = self._body(key)
        folder = self._folder(key)
        try:
            return decode(
                body, key, lambda name: self._retry(lambda: (folder / f"{name}.npy").read_bytes())
            )
        except FileNotFoundError as error:
            if not self.has(key):  # set aside by somebody else just now
                raise self._absent(key) from error
            raise self._set_aside(key, error) from error
        except DAMAGE as error:
            raise self._set_aside(key, error) from error

    def _body(self, key: str) -> dict[str, Any]:
        path = self._folder(key) / "record.json"
        text = self._retry(lambda: read_if_there(path))
        if text is None:
            self.has(key)  # waits if the whole store is away
            raise self._absent(key)
        try:
            body = json.loads(text)
            if not isinstance(body, dict) or not isinstance(body.get("arrays"), dict):
                raise ValueError("record.json holds no record")
        except ValueError as error:
            raise self._set_aside(key, error) from error
        return body

    def _absent(self, key: str) -> StoreError:
        return StoreError(f"no object {key[:16]} in the store {self.root}")

    def _set_aside(self, key: str, error: Exception) -> IntegrityError:
        target = self.root / "damaged" / f"{key}-{uuid.uuid4().hex[:6]}"

        def move() -> None:
            target.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._folder(key).rename(target)

        self._retry(move)
        return IntegrityError(f"object {key[:16]} is damaged and was set aside: {error}")

    def digest_of(self, key: str) -> str:
        """Digest of an object's record, which holds the digests of its arrays."""
        return str(self._body(key)["digest"])

    def numbers_of(self, key: str) -> str:
        """Digest of an object's arrays alone."""
        return numbers_digest(self._body(key))

    # ------------------------------------------------------------------ failures

    def failure(self, key: str) -> Failure | None:
        """Return the recorded failure of a request."""
        text = self._retry(lambda: read_if_there(self._failure_file(key)))
        return None if text is None else read_failure(text)

    def put_failure(self, failure: Failure) -> None:
        """Record a failure; attempts are added up."""
        stamped = add_up(failure, self.failure(failure.key))
        self._retry(lambda: self._write_failure(stamped))

    def _write_failure(self, failure: Failure) -> None:
        self._check_mounted()
        write_json_atomic(self._failure_file(failure.key), failure)

    def clear_failure(self, key: str) -> None:
        """Forget a failure."""
        self._retry(lambda: self._failure_file(key).unlink(missing_ok=True))

    # ------------------------------------------------------------------ many keys

    def keys(self) -> Iterator[str]:
        """Iterate over the names of all finished objects."""
        for key in self._names("objects"):
            if self.has(key):
                yield key

    def failed_keys(self) -> Iterator[str]:
        """Iterate over the names of all recorded failures."""
        for name in self._names("failures"):
            if name.endswith(".json") and not name.startswith("."):
                yield name.removesuffix(".json")

    def _names(self, part: str) -> list[str]:
        prefixes = self._list(part)
        return [name for prefix in sorted(prefixes) for name in sorted(self._list(part, prefix))]

    def _list(self, *parts: str) -> list[str]:
        return self._retry(lambda: list_names(self.root.joinpath(*parts)))

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of some keys that have a finished object; one listing for many keys."""
        return self._found("objects", keys, lambda name: name, self.has)

    def failures(self, keys: Iterable[str]) -> dict[str, Failure]:
        """Recorded failures of some keys; one listing for many keys."""
        there = self._found(
            "failures",
            keys,
            lambda name: name.removesuffix(".json"),
            lambda key: self._retry(lambda: self._exists(self._failure_file(key))),
        )
        read = {key: self.failure(key) for key in there}
        return {key: failure for key, failure in read.items() if failure is not None}

    def _found(
        self,
        part: str,
        keys: Iterable[str],
        to_key: Callable[[str], str],
        there: Callable[[str], bool],
    ) -> set[str]:
        """Keys that a two-level folder holds: few are looked up, many found by listing it once."""
        wanted = set(keys)
        if len(wanted) <= _FEW:
            return {key for key in wanted if there(key)}
        found: set[str] = set()
        for prefix in {key[:2] for key in wanted}:
            names = self._list(part, prefix)
            found |= wanted.intersection(to_key(name) for name in names)
        if not found:
            self._retry(self._check_mounted)
        return found

    def verify(self, progress: Progress | None = None) -> tuple[int, list[str]]:
        """Read everything; return how many objects were checked and which were damaged."""
        return verify_objects(self.keys(), self.get, progress)
