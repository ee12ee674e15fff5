"""Bring the objects of another store into this one; either may be a folder or on S3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from quantum.base import IntegrityError
from quantum.store_base import Progress, StoreLike

_THREADS = 8  # requests to a server at a time; also the objects held in memory
T = TypeVar("T")


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: objects copied, already present and kept in conflict; failures copied."""

    copied: int
    present: int
    conflicts: int
    failures: int = 0


def merge_stores(
    source: StoreLike,
    target: StoreLike,
    *,
    keep_mine: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Copy what the target lacks, object by object; nothing is copied if an object differs.

    A merge that was interrupted goes on when it is called again. Failures are copied where the
    target has neither an object nor a failure; claims are not copied.

    Parameters
    ----------
    keep_mine : bool
        Leave objects that differ as they are in the target, in place of refusing.
    progress : callable, optional
        Told the number of objects compared or copied, and of all.

    Raises
    ------
    IntegrityError
        If both stores hold a key with different numbers; the message names the first. Also if an
        object of the source is damaged.
    """
    keys = list(source.keys())
    there = target.present(keys)
    present = [key for key in keys if key in there]
    lacking = [key for key in keys if key not in there]

    def told(done: int) -> None:
        if progress is not None:
            progress(done, len(keys))

    def differs(key: str) -> bool:
        return source.numbers_of(key) != target.numbers_of(key)

    conflicts = []
    for done, (key, other) in enumerate(_side_by_side(differs, present), start=1):
        conflicts += [key] if other else []
        told(done)
    if conflicts and not keep_mine:
        raise IntegrityError(
            f"{len(conflicts)} objects have other numbers in {source.location} than in "
            f"{target.location}, first {conflicts[0][:16]}; nothing was merged. "
            "Keep this store's with --keep-mine"
        )
    copied = 0
    copies = _side_by_side(lambda key: target.put(source.get(key)), lacking)
    for done, (_, won) in enumerate(copies, start=len(present) + 1):
        copied += won
        told(done)
    failures = _copy_failures(source, target)
    return MergeReport(copied, len(present) - len(conflicts), len(conflicts), failures)


def _copy_failures(source: StoreLike, target: StoreLike) -> int:
    failed = set(source.failed_keys())
    failed -= target.present(failed)
    failed -= set(target.failures(failed))
    found = source.failures(failed)
    for failure in found.values():
        target.put_failure(failure)
    return len(found)


def _side_by_side(function: Callable[[str], T], keys: Sequence[str]) -> Iterator[tuple[str, T]]:
    """Apply a function to keys in threads, a few at a time, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for begin in range(0, len(keys), _THREADS):
            part = keys[begin : begin + _THREADS]
            yield from zip(part, pool.map(function, part), strict=True)
