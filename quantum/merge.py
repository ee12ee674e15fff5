"""Bring the objects of another store into this one."""

from __future__ import annotations

from dataclasses import dataclass

from quantum.base import IntegrityError, read_json
from quantum.store import Store


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: counts of copied, already present and kept conflicting objects."""

    copied: int
    present: int
    conflicts: int


def merge_stores(source: Store, target: Store, *, keep_mine: bool = False) -> MergeReport:
    """Copy what the target lacks; nothing is copied if an object differs.

    Parameters
    ----------
    keep_mine : bool
        Leave objects that differ as they are in the target, in place of refusing.

    Raises
    ------
    IntegrityError
        If both stores hold a key with different numbers; the message names the first. Also if an
        object of the source is damaged.
    """
    keys = list(source.keys())
    present = [key for key in keys if target.has(key)]
    conflicts = [key for key in present if _arrays(source, key) != _arrays(target, key)]
    if conflicts and not keep_mine:
        raise IntegrityError(
            f"{len(conflicts)} objects have other numbers in {source.root} than in {target.root}, "
            f"first {conflicts[0][:16]}; nothing was merged. Keep this store's with --keep-mine"
        )
    copied = sum(target.put(source.get(key)) for key in keys if not target.has(key))
    return MergeReport(copied, len(present) - len(conflicts), len(conflicts))


def _arrays(store: Store, key: str) -> dict[str, str]:
    """Digest of every array of an object; scalars hold times and machine names too."""
    folder = store.root / "objects" / key[:2] / key
    table = read_json(folder / "record.json")["arrays"]
    return {name: str(facts["sha256"]) for name, facts in table.items()}
