"""Local copies of a remote store's objects: fetched once, kept until space is needed.

Many processes share the folder. A copy is renamed into place, is never changed, and is checked
against its digest by whoever reads it. A cache that cannot be read or written is as good as an
empty one: no error of it reaches the caller.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from quantum.base import ConfigError

CACHE_VARIABLE, SIZE_VARIABLE = "MEDREC_STORE_CACHE", "MEDREC_STORE_CACHE_GB"
DEFAULT_SIZE_GB = 10.0
_SLACK = 0.05  # of the size: what one process writes before it looks at the whole folder
_KEPT = 0.9  # of the size, after making room
_HOUR_S = 3600.0


class ObjectCache:
    """Copies of one store's objects.

    Parameters
    ----------
    folder : Path
        Shared by all stores and processes of a machine.
    name : str
        Of the store; each has its own part of the folder.
    limit_bytes : int
        Of the whole folder; the copies that were used least recently go first. Each process may
        write a twentieth more before it looks.
    """

    def __init__(self, folder: Path, name: str, limit_bytes: int) -> None:
        self.folder, self.part, self.limit_bytes = folder, folder / name, limit_bytes
        self._unchecked_bytes = limit_bytes  # the first write looks

    def _file(self, key: str) -> Path:
        return self.part / key[:2] / f"{key}.npz"

    def read(self, key: str) -> bytes | None:
        """Bytes of a copy; None if there is none. The copy counts as used just now."""
        path = self._file(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # gone meanwhile, or a folder of another user
            os.utime(path)
        return data

    def write(self, key: str, data: bytes) -> None:
        """Keep a copy; an object larger than the whole cache is not kept."""
        if len(data) > self.limit_bytes:
            return
        path = self._file(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)  # no sync: a torn copy does not match its digest
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        self._unchecked_bytes += len(data)
        if self._unchecked_bytes > _SLACK * self.limit_bytes:
            self._make_room()

    def drop(self, key: str) -> None:
        """Remove a copy."""
        with contextlib.suppress(OSError):
            self._file(key).unlink(missing_ok=True)

    def _make_room(self) -> None:
        with contextlib.suppress(OSError), (self.folder / ".lock").open("w") as lock:
            # another process makes room already: BlockingIOError, and we look after the next write
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._unchecked_bytes = 0
            found = sorted(self._copies())
            total = sum(size for _, size, _ in found)
            if total <= self.limit_bytes:
                return
            for _, size, path in found:
                if total <= _KEPT * self.limit_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, size and path of all copies; files of killed writers are removed."""
        for path in self.folder.glob("*/??/*"):
            try:
                facts = path.stat()
            except OSError:
                continue
            if path.suffix == ".tmp" and facts.st_mtime < time.time() - _HOUR_S:
                path.unlink(missing_ok=True)
            else:
                yield facts.st_mtime, facts.st_size, path


def open_cache(name: str) -> ObjectCache | None:
    """The cache that the environment names; None if it is switched off.

    ``MEDREC_STORE_CACHE`` is a folder or ``off``, by default in the user's cache folder;
    ``MEDREC_STORE_CACHE_GB`` is its size in 10^9 bytes.

    Raises
    ------
    ConfigError
        If the size is not a number.
    """
    place, size = os.environ.get(CACHE_VARIABLE, ""), os.environ.get(SIZE_VARIABLE, "")
    if place == "off":
        return None
    try:
        limit = float(size) if size else DEFAULT_SIZE_GB
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise ConfigError(f"{SIZE_VARIABLE} is '{size}', expected 10^9 bytes, such as 10")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(place) if place else Path(base) / "medrec" / "store"
    return ObjectCache(folder, name, int(limit * 1e9))
