"""The store's contract without files, for tests and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from quantum.base import StoreError
from quantum.store_base import Failure, Progress, Record, encode, numbers_digest, verify_objects


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
        """Digest of an object's record, which holds the digests of its arrays."""
        return str(encode(self.get(key))[0]["digest"])

    def numbers_of(self, key: str) -> str:
        """Digest of an object's arrays alone."""
        return numbers_digest(encode(self.get(key))[0])

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

    def failed_keys(self) -> Iterator[str]:
        """Iterate over the names of all recorded failures."""
        yield from sorted(self._failures)

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

    def verify(self, progress: Progress | None = None) -> tuple[int, list[str]]:
        """Memory has no digests to check; every object is counted."""
        return verify_objects(self.keys(), self.get, progress)
