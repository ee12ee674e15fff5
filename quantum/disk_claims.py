"""Claims of a store in a folder: one small file per key that somebody computes right now."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from pathlib import Path

from quantum.base import write_bytes_atomic
from quantum.store_retry import Retry, is_there, read_if_there

_UNREADABLE = "unknown 0"


class DiskClaims:
    """Claims below ``<root>/claims``; the contract is in `quantum.store_base.StoreLike`."""

    root: Path
    _retry: Retry

    def _check_mounted(self) -> None:
        """A store whose marker is gone is away; nothing may be written in its place."""
        if not is_there(self.root / "store.json"):
            raise OSError(errno.ESTALE, "store.json is gone; is the file system mounted?")

    def _claim_file(self, key: str) -> Path:
        return self.root / "claims" / f"{key}.txt"

    def claim(self, key: str, owner: str) -> str | None:
        """Say that a key is being computed; None if nobody else says so."""
        for _ in range(10):
            if self._retry(lambda: self._create_claim(key, owner)):
                return None
            seen = self._read_claim(key)
            if seen is not None:
                return None if seen.split()[0] == owner else seen
            time.sleep(0.02)  # gone again
        return _UNREADABLE

    def _create_claim(self, key: str, owner: str) -> bool:
        # a link appears with its content: a holder that is killed leaves no empty claim
        path, draft = self._claim_file(key), self.root / "tmp" / uuid.uuid4().hex
        self._check_mounted()
        path.parent.mkdir(exist_ok=True)
        draft.parent.mkdir(exist_ok=True)
        try:
            draft.write_text(f"{owner} 0", encoding="ascii")
            return _link(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def _read_claim(self, key: str) -> str | None:
        text = self._retry(lambda: read_if_there(self._claim_file(key)))
        return None if text is None else text.strip() or _UNREADABLE

    def _is_mine(self, key: str, owner: str) -> bool:
        seen = self._read_claim(key)
        return seen is not None and seen.split()[0] == owner

    def renew(self, key: str, owner: str, beat: int) -> None:
        """Write a claim of ours again, so that others see that we live."""
        if self._is_mine(key, owner):
            text = f"{owner} {beat}".encode("ascii")
            self._retry(lambda: write_bytes_atomic(self._claim_file(key), text))

    def release(self, key: str, owner: str) -> None:
        """Give up a claim, if it is ours."""
        if self._is_mine(key, owner):
            self._retry(lambda: self._claim_file(key).unlink(missing_ok=True))

    def break_claim(self, key: str, seen: str) -> bool:
        """Remove a dead holder's claim if it still reads ``seen``; True for one caller only."""
        if self._read_claim(key) != seen:
            return False
        aside = self.root / "tmp" / uuid.uuid4().hex
        try:
            self._retry(lambda: self._claim_file(key).rename(aside))
        except FileNotFoundError:
            return False
        taken = (self._retry(lambda: read_if_there(aside)) or "").strip() or _UNREADABLE
        if taken != seen:  # somebody broke it and claimed anew in between: give it back
            with contextlib.suppress(OSError):
                _link(aside, self._claim_file(key))
        aside.unlink(missing_ok=True)
        return taken == seen


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name; False if that name is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        try:  # a file system without links
            with target.open("xb") as handle:
                handle.write(source.read_bytes())
        except FileExistsError:
            return False
    return True
