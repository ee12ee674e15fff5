"""What all stores share: records, failures, the contract, and how a record becomes bytes."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from quantum.base import InputError, IntegrityError, StoreError, canonical_json, now_utc

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
# what a damaged record may raise while it is decoded
_PLAIN = r"[A-Za-z0-9_-]*"  # keys and array names become file names: no dots, no slashes
DAMAGE = (IntegrityError, InputError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


class Record(BaseModel):
    """What a stage computed: request, scalars with units in their names, arrays, provenance."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    key: str = Field(pattern=f"^{_PLAIN}$")
    stage: str
    request: dict[str, Any]
    scalars: dict[str, Any] = {}
    warnings: list[str] = []
    provenance: dict[str, Any] = {}
    arrays: dict[str, Array] = {}

    def _repr_html_(self) -> str:
        from quantum.show import record_html

        return record_html(self)


class Failure(BaseModel):
    """Why a request has no result."""

    key: str = Field(pattern=f"^{_PLAIN}$")
    stage: str
    kind: str
    message: str
    attempts: int = 1
    last_seen: str = ""


class StoreLike(Protocol):
    """What the pipeline needs of a store.

    No method takes an I/O fault for "not there": it is tried again for a while, and then a
    `TransientError` or a `StoreError` is raised.

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

    def digest_of(self, key: str) -> str:
        """Digest of an object's record, which holds the digests of its arrays."""

    def numbers_of(self, key: str) -> str:
        """Digest of an object's arrays alone; scalars hold times and machine names too."""

    def failure(self, key: str) -> Failure | None:
        """Return the recorded failure of a request."""

    def put_failure(self, failure: Failure) -> None:
        """Record a failure; attempts are added up."""

    def clear_failure(self, key: str) -> None:
        """Forget a failure."""

    def keys(self) -> Iterator[str]:
        """Iterate over the names of all finished objects."""

    def failed_keys(self) -> Iterator[str]:
        """Iterate over the names of all recorded failures."""

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

    def verify(self, progress: Progress | None = None) -> tuple[int, list[str]]:
        """Read everything; return how many objects were checked and which were damaged.

        Parameters
        ----------
        progress : callable, optional
            Told the number of objects checked and of all.
        """


# --------------------------------------------------------------------------- bytes of a record


def encode(record: Record) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Turn a record into the content of ``record.json`` and of one .npy file per array.

    Raises
    ------
    IntegrityError
        If the key or an array's name would not do as the name of a file.
    """
    _check_names(record.key, record.arrays)
    files, table = {}, {}
    for name, array in record.arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(array, order="C"), allow_pickle=False)
        files[name] = buffer.getvalue()
        table[name] = {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "sha256": hashlib.sha256(files[name]).hexdigest(),
        }
    body = record.model_dump(mode="json", exclude={"arrays"})
    body["arrays"] = table
    body["digest"] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    return body, files


def decode(body: dict[str, Any], key: str, read: Callable[[str], bytes]) -> Record:
    """Check and build a record.

    Parameters
    ----------
    body : dict
        Content of ``record.json``.
    read : callable
        Bytes of an array's .npy file, by the array's name.

    Raises
    ------
    IntegrityError
        If a digest or the key does not match, or a name would lead out of the record's folder.
    """
    body = dict(body)
    _check_names(key, body["arrays"])
    expected = body.pop("digest")
    if hashlib.sha256(canonical_json(body).encode()).hexdigest() != expected:
        raise IntegrityError("record.json does not match its digest")
    if body["key"] != key:
        raise IntegrityError(f"record is of key {body['key'][:16]}")
    arrays = {}
    for name, facts in body.pop("arrays").items():
        data = read(name)
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise IntegrityError(f"array '{name}' does not match its digest")
        arrays[name] = np.load(io.BytesIO(data), allow_pickle=False)
    return Record(**body, arrays=arrays)


def _check_names(key: str, arrays: Iterable[str]) -> None:
    for name in (key, *arrays):
        if not re.fullmatch(_PLAIN, name):
            raise IntegrityError(
                f"record holds the name {name[:40]!r}; expected letters, digits, '_' and '-'"
            )


def numbers_digest(body: dict[str, Any]) -> str:
    """Digest of the arrays that a ``record.json`` names."""
    table = {name: str(facts["sha256"]) for name, facts in body["arrays"].items()}
    return hashlib.sha256(canonical_json(table).encode()).hexdigest()


def verify_objects(
    keys: Iterable[str], read: Callable[[str], object], progress: Progress | None
) -> tuple[int, list[str]]:
    """Read objects one after the other; return their number and the damaged ones."""
    names, damaged = list(keys), []
    for done, key in enumerate(names, start=1):
        try:
            read(key)
        except IntegrityError:
            damaged.append(key)
        if progress is not None:
            progress(done, len(names))
    return len(names), damaged


# --------------------------------------------------------------------------- small files


def check_format(text: str, expected: int, where: str) -> dict[str, Any]:
    """Check and return the content of ``store.json``.

    Raises
    ------
    StoreError
        If it is of another format version, or no marker of a store.
    """
    try:
        marker = json.loads(text)
        found = marker["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"store.json of {where} is damaged, expected a format version in it; "
            "the objects are not: restore this file"
        ) from error
    if found != expected:
        raise StoreError(
            f"store has format {found}, expected {expected}: {where}; "
            "use another home folder or the version of medrec that wrote it"
        )
    return dict(marker)


def read_failure(text: str) -> Failure | None:
    """Read a failure record; a damaged one is none, so that the request is tried again."""
    try:
        return Failure.model_validate_json(text)
    except ValueError:
        return None


def add_up(failure: Failure, old: Failure | None) -> Failure:
    """Add the attempts of an older record, and set the time."""
    attempts = failure.attempts + (old.attempts if old else 0)
    return failure.model_copy(update={"attempts": attempts, "last_seen": now_utc()})
