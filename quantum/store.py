"""Content-addressed store: a key names a request, an object holds its answer.

The contract is `StoreLike`. Three stores fulfil it: `Store` in a folder (`quantum.disk_store`),
`MemoryStore` for tests (`quantum.memory_store`) and the one on S3 (`quantum.remote_store`), which
loads its client only when it is opened. In all of them the first writer of a key wins, readers see
all of an object or nothing, and every byte read is checked against a digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quantum.base import StoreError
from quantum.disk_store import FORMAT_VERSION, Store
from quantum.memory_store import MemoryStore
from quantum.remote_store import SCHEME, RemoteStore
from quantum.store_base import Array, Failure, Progress, Record, StoreLike

__all__ = [
    "FORMAT_VERSION",
    "Array",
    "Failure",
    "MemoryStore",
    "Progress",
    "Record",
    "RemoteStore",
    "Store",
    "StoreLike",
    "is_url",
    "missing",
    "open_store",
]


def is_url(location: str | Path) -> bool:
    """Tell whether a location is a URL and not a folder."""
    return isinstance(location, str) and "://" in location


def open_store(location: str | Path, *, make: bool = True) -> StoreLike:
    """Open a store by its location.

    Parameters
    ----------
    location : str or Path
        A folder, or ``s3://BUCKET/PREFIX``.
    make : bool
        Make it if there is none yet. Without, nothing is written and the right to read is enough.

    Raises
    ------
    StoreError
        If it cannot be used.
    ProgramMissingError
        If it is on S3 and the package for that is not installed.
    """
    if not is_url(location):
        return Store(Path(location), make=make)
    if not str(location).startswith(SCHEME):
        raise StoreError(f"no store at '{location}'; expected a folder or {SCHEME}BUCKET/PREFIX")
    return RemoteStore(str(location), make=make)


def missing(store: StoreLike, keys: Mapping[str, str]) -> list[str]:
    """Names of the stages in ``{stage: key}`` that the store does not hold."""
    return [stage for stage, key in keys.items() if not store.has(key)]
