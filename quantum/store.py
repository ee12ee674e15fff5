"""Content-addressed store: a key names a request, an object holds its answer.

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
import hashlib
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from quantum.base import (
    InputError,
    IntegrityError,
    ResourceError,
    StoreError,
    canonical_json,
    now_utc,
    publish_folder,
    read_json,
    write_bytes_atomic,
    write_json_atomic,
)

FORMAT_VERSION = 1
_DAY_S = 86_400.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
Array = npt.NDArray[Any]


class Record(BaseModel):
    """What a stage computed: request, scalars with units in their names, arrays, provenance."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    key: str
    stage: str
    request: dict[str, Any]
    scalars: dict[str, Any] = {}
    warnings: list[str] = []
    provenance: dict[str, Any] = {}
    arrays: dict[str, Array] = {}


class Failure(BaseModel):
    """Why a request has no result."""

    key: str
    stage: str
    kind: str
    message: str
    attempts: int = 1
    last_seen: str = ""


class StoreLike(Protocol):
    """What the pipeline needs of a store.

    Attributes
    ----------
    location : str
        What `open_store` takes to open the same store in another process.
    """

    @property
    def location(self) -> str:
        """What `open_store` takes to open the same store in another process."""

    def has(self, key: str) -> bool:
        """Tell whether a finished object of this name exists."""

    def get(self, key: str) -> Record:
        """Read an object and check its digests."""

    def put(self, record: Record) -> bool:
        """Publish an object; False if another writer was first."""

    def failure(self, key: str) -> Failure | None:
        """Return the recorded failure of a request."""

    def put_failure(self, failure: Failure) -> None:
        """Record a failure; attempts are added up."""

    def clear_failure(self, key: str) -> None:
        """Forget a failure."""

    def keys(self) -> Iterator[str]:
        """Iterate over the names of all finished objects."""

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of some keys that have a finished object; cheap for many keys."""

    def failures(self, keys: Iterable[str]) -> dict[str, Failure]:
        """Recorded failures of some keys; cheap for many keys."""

    def claim(self, key: str, owner: str) -> str | None:
        """Say that a key is being computed; None if nobody else says so.

        A claim keeps two drivers from computing the same thing at the same time; it saves work
        and is never needed for correctness, as the first object of a key wins.

        Parameters
        ----------
        owner : str
            Of the claim; the same owner may claim again.

        Returns
        -------
        str or None
            None if the claim is ours now. Otherwise what the holder wrote last, as text
            ``OWNER BEAT``: if it does not change for a while, the holder is dead, and
            `break_claim` with this text frees the key. No clock is read.
        """

    def renew(self, key: str, owner: str, beat: int) -> None:
        """Write a claim of ours again, so that others see that we live."""

    def release(self, key: str, owner: str) -> None:
        """Give up a claim, if it is ours."""

    def break_claim(self, key: str, seen: str) -> bool:
        """Remove a dead holder's claim if it still reads ``seen``; True for one caller only."""


class Store:
    """The store on disk.

    Parameters
    ----------
    root : Path
        Folder of the store; created when missing.

    Raises
    ------
    StoreError
        If the folder holds a store of another format version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        marker = root / "store.json"
        if marker.exists():
            found = read_json(marker).get("format")
            if found != FORMAT_VERSION:
                raise StoreError(
                    f"store has format {found}, expected {FORMAT_VERSION}: {root}; "
                    "use another home folder or the version of medrec that wrote it"
                )
        else:
            for name in ("objects", "failures", "tmp"):
                (root / name).mkdir(parents=True, exist_ok=True)
            write_json_atomic(marker, {"format": FORMAT_VERSION})
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
        for folder in (self.root / "tmp").glob("*"):
            try:
                if folder.stat().st_mtime < limit:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:
                continue

    def has(self, key: str) -> bool:
        """Tell whether a finished object of this name exists."""
        return (self._folder(key) / "record.json").exists()

    def put(self, record: Record) -> bool:
        """Publish an object; False if another writer was first (its object stays).

        Raises
        ------
        ResourceError
            If the disk is full; nothing of the object stays.
        """
        if self.has(record.key):
            return False
        temporary = self.root / "tmp" / uuid.uuid4().hex
        temporary.mkdir(parents=True)
        try:
            table = {}
            for name, array in record.arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
                data = buffer.getvalue()
                write_bytes_atomic(temporary / f"{name}.npy", data)
                table[name] = {
                    "shape": list(array.shape),
                    "dtype": str(array.dtype),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            body = record.model_dump(mode="json", exclude={"arrays"})
            body["arrays"] = table
            body["digest"] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
            write_json_atomic(temporary / "record.json", body)
            won = publish_folder(temporary, self._folder(record.key))
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno in _FULL:
                raise ResourceError(
                    f"no space left in the store {self.root} for a {record.stage} object"
                ) from error
            raise
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.clear_failure(record.key)
        return won

    def get(self, key: str) -> Record:
        """Read an object and check its digests.

        Raises
        ------
        StoreError
            If there is no such object.
        IntegrityError
            If bytes do not match; the object is set aside, so that it is computed again.
        """
        folder = self._folder(key)
        if not (folder / "record.json").exists():
            raise StoreError(f"no object {key[:16]} in the store {self.root}")
        try:
            return self._read(folder, key)
        except (IntegrityError, InputError, OSError, ValueError, KeyError) as error:
            self._set_aside(folder)
            raise IntegrityError(
                f"object {key[:16]} is damaged and was set aside: {error}"
            ) from error

    def _read(self, folder: Path, key: str) -> Record:
        body = read_json(folder / "record.json")
        expected = body.pop("digest")
        if hashlib.sha256(canonical_json(body).encode()).hexdigest() != expected:
            raise IntegrityError("record.json does not match its digest")
        if body["key"] != key:
            raise IntegrityError(f"record is of key {body['key'][:16]}")
        arrays = {}
        for name, facts in body.pop("arrays").items():
            data = (folder / f"{name}.npy").read_bytes()
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                raise IntegrityError(f"array '{name}' does not match its digest")
            arrays[name] = np.load(io.BytesIO(data), allow_pickle=False)
        return Record(**body, arrays=arrays)

    def _set_aside(self, folder: Path) -> None:
        target = self.root / "damaged" / f"{folder.name}-{uuid.uuid4().hex[:6]}"
        target.parent.mkdir(exist_ok=True)
        try:
            folder.rename(target)
        except FileNotFoundError:
            return

    def digest_of(self, key: str) -> str:
        """Digest of an object's record, which holds the digests of its arrays."""
        return str(read_json(self._folder(key) / "record.json")["digest"])

    def failure(self, key: str) -> Failure | None:
        """Return the recorded failure of a request."""
        path = self._failure_file(key)
        return Failure(**read_json(path)) if path.exists() else None

    def put_failure(self, failure: Failure) -> None:
        """Record a failure; attempts are added up."""
        old = self.failure(failure.key)
        attempts = failure.attempts + (old.attempts if old else 0)
        stamped = failure.model_copy(update={"attempts": attempts, "last_seen": now_utc()})
        write_json_atomic(self._failure_file(failure.key), stamped)

    def clear_failure(self, key: str) -> None:
        """Forget a failure."""
        self._failure_file(key).unlink(missing_ok=True)

    def keys(self) -> Iterator[str]:
        """Iterate over the names of all finished objects."""
        for folder in sorted((self.root / "objects").glob("??/*")):
            if (folder / "record.json").exists():
                yield folder.name

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of some keys that have a finished object; one listing for many keys."""
        return _found(self.root / "objects", keys, lambda name: name, self.has)

    def failures(self, keys: Iterable[str]) -> dict[str, Failure]:
        """Recorded failures of some keys; one listing for many keys."""
        there = _found(
            self.root / "failures",
            keys,
            lambda name: name.removesuffix(".json"),
            lambda key: self._failure_file(key).exists(),
        )
        read = {key: self.failure(key) for key in there}
        return {key: failure for key, failure in read.items() if failure is not None}

    # ------------------------------------------------------------------ claims

    def _claim_file(self, key: str) -> Path:
        return self.root / "claims" / f"{key}.txt"

    def claim(self, key: str, owner: str) -> str | None:
        """Say that a key is being computed; None if nobody else says so."""
        path = self._claim_file(key)
        path.parent.mkdir(exist_ok=True)
        for _ in range(10):
            try:
                with path.open("x", encoding="ascii") as handle:
                    handle.write(f"{owner} 0")
                return None
            except FileExistsError:
                seen = self._read_claim(key)
            if seen:
                return None if seen.split()[0] == owner else seen
            time.sleep(0.02)  # gone again, or not written yet
        return "unknown 0"

    def _read_claim(self, key: str) -> str:
        try:
            return self._claim_file(key).read_text(encoding="ascii")
        except FileNotFoundError:
            return ""

    def renew(self, key: str, owner: str, beat: int) -> None:
        """Write a claim of ours again, so that others see that we live."""
        if self._read_claim(key).split()[:1] == [owner]:
            write_bytes_atomic(self._claim_file(key), f"{owner} {beat}".encode("ascii"))

    def release(self, key: str, owner: str) -> None:
        """Give up a claim, if it is ours."""
        if self._read_claim(key).split()[:1] == [owner]:
            self._claim_file(key).unlink(missing_ok=True)

    def break_claim(self, key: str, seen: str) -> bool:
        """Remove a dead holder's claim if it still reads ``seen``; True for one caller only."""
        if self._read_claim(key) != seen:
            return False
        aside = self.root / "tmp" / uuid.uuid4().hex
        try:
            self._claim_file(key).rename(aside)
        except FileNotFoundError:
            return False
        aside.unlink()
        return True

    def verify(self) -> tuple[int, list[str]]:
        """Read everything; return how many objects were checked and which were damaged."""
        checked, damaged = 0, []
        for key in list(self.keys()):
            checked += 1
            try:
                self.get(key)
            except IntegrityError:
                damaged.append(key)
        return checked, damaged


class MemoryStore:
    """The same contract without files, for tests and notebooks."""

    def __init__(self) -> None:
        self._objects: dict[str, Record] = {}
        self._failures: dict[str, Failure] = {}
        self._claims: dict[str, str] = {}

    @property
    def location(self) -> str:
        """Not to be opened elsewhere."""
        return "memory"

    def has(self, key: str) -> bool:
        """Tell whether a finished object of this name exists."""
        return key in self._objects

    def get(self, key: str) -> Record:
        """Return an object."""
        try:
            return self._objects[key].model_copy(deep=True)
        except KeyError:
            raise StoreError(f"no object {key[:16]} in the memory store") from None

    def put(self, record: Record) -> bool:
        """Keep an object; False if the name is taken."""
        if record.key in self._objects:
            return False
        self._objects[record.key] = record.model_copy(deep=True)
        self.clear_failure(record.key)
        return True

    def digest_of(self, key: str) -> str:
        """Digest of an object's numbers."""
        record = self.get(key)
        parts = [canonical_json(record.model_dump(mode="json", exclude={"arrays"}))]
        parts += [hashlib.sha256(a.tobytes()).hexdigest() for a in record.arrays.values()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def failure(self, key: str) -> Failure | None:
        """Return the recorded failure of a request."""
        return self._failures.get(key)

    def put_failure(self, failure: Failure) -> None:
        """Record a failure; attempts are added up."""
        old = self._failures.get(failure.key)
        attempts = failure.attempts + (old.attempts if old else 0)
        self._failures[failure.key] = failure.model_copy(update={"attempts": attempts})

    def clear_failure(self, key: str) -> None:
        """Forget a failure."""
        self._failures.pop(key, None)

    def keys(self) -> Iterator[str]:
        """Iterate over the names of all finished objects."""
        yield from sorted(self._objects)

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of some keys that have a finished object."""
        return {key for key in keys if key in self._objects}

    def failures(self, keys: Iterable[str]) -> dict[str, Failure]:
        """Recorded failures of some keys."""
        return {key: self._failures[key] for key in keys if key in self._failures}

    def claim(self, key: str, owner: str) -> str | None:
        """Say that a key is being computed; None if nobody else says so."""
        seen = self._claims.setdefault(key, f"{owner} 0")
        return None if seen.split()[0] == owner else seen

    def renew(self, key: str, owner: str, beat: int) -> None:
        """Write a claim of ours again, so that others see that we live."""
        if self._claims.get(key, " ").split()[:1] == [owner]:
            self._claims[key] = f"{owner} {beat}"

    def release(self, key: str, owner: str) -> None:
        """Give up a claim, if it is ours."""
        if self._claims.get(key, " ").split()[:1] == [owner]:
            del self._claims[key]

    def break_claim(self, key: str, seen: str) -> bool:
        """Remove a dead holder's claim if it still reads ``seen``."""
        return self._claims.get(key) == seen and self._claims.pop(key, None) is not None


_FEW = 512


def _found(
    folder: Path,
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
        with contextlib.suppress(FileNotFoundError), os.scandir(folder / prefix) as entries:
            found |= wanted.intersection(to_key(entry.name) for entry in entries)
    return found


def open_store(location: str | Path) -> StoreLike:
    """Open a store by its location.

    Parameters
    ----------
    location : str or Path
        A folder.

    Raises
    ------
    StoreError
        If it cannot be used.
    """
    return Store(Path(location))


def missing(store: StoreLike, keys: Mapping[str, str]) -> list[str]:
    """Names of the stages in ``{stage: key}`` that the store does not hold."""
    return [stage for stage, key in keys.items() if not store.has(key)]
