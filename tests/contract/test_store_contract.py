"""What every store must do; and what only the one on disk can get wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantum.base import IntegrityError, ResourceError, StoreError, write_json_atomic
from quantum.merge import merge_stores
from quantum.store import Failure, MemoryStore, Record, Store


def record(key: str = "ab" + "0" * 62, value: float = 1.0) -> Record:
    return Record(
        key=key,
        stage="test",
        request={"x": 1},
        scalars={"energy_hartree": -1.5},
        arrays={"a": np.full((2, 3), value), "b": np.arange(4, dtype=np.int16)},
    )


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    return Store(tmp_path / "store") if request.param == "disk" else MemoryStore()


def test_put_get_round_trip(store):
    assert not store.has(record().key)
    assert store.put(record())
    found = store.get(record().key)
    np.testing.assert_array_equal(found.arrays["a"], record().arrays["a"])
    assert found.arrays["b"].dtype == np.int16
    assert found.scalars == {"energy_hartree": -1.5}
    assert list(store.keys()) == [record().key]


def test_the_first_writer_wins(store):
    assert store.put(record(value=1.0))
    assert not store.put(record(value=2.0))
    assert store.get(record().key).arrays["a"][0, 0] == 1.0


def test_a_missing_object_is_an_error_and_not_a_default(store):
    with pytest.raises(StoreError, match="no object"):
        store.get("ff" * 32)


def test_failures_add_up_and_are_cleared_by_success(store):
    key = record().key
    for _ in range(2):
        store.put_failure(Failure(key=key, stage="test", kind="resource", message="m"))
    assert store.failure(key).attempts == 2
    store.put(record())
    assert store.failure(key) is None


def test_digest_follows_the_content(store):
    store.put(record())
    other = record(key="cd" + "0" * 62, value=5.0)
    store.put(other)
    assert store.digest_of(record().key) != store.digest_of(other.key)


@pytest.mark.parametrize("damage", ["truncate", "flip", "record", "wrong_key"])
def test_damage_is_found_set_aside_and_can_be_recomputed(tmp_path: Path, damage: str):
    store = Store(tmp_path)
    store.put(record())
    folder = tmp_path / "objects" / "ab" / record().key
    array = folder / "a.npy"
    if damage == "truncate":
        array.write_bytes(b"")
    elif damage == "flip":
        data = bytearray(array.read_bytes())
        data[-1] ^= 1
        array.write_bytes(bytes(data))
    elif damage == "record":
        (folder / "record.json").write_text('{"digest": "x", "key": "y"')
    else:
        folder.rename(folder.with_name("ab" + "1" * 62))
        folder = folder.with_name("ab" + "1" * 62)
    checked, damaged = store.verify()
    assert (checked, damaged) == (1, [folder.name])
    assert not store.has(folder.name)
    assert any((tmp_path / "damaged").iterdir())
    assert store.put(record())
    assert store.verify() == (1, [])


def test_reading_damage_raises(tmp_path: Path):
    store = Store(tmp_path)
    store.put(record())
    (tmp_path / "objects" / "ab" / record().key / "b.npy").unlink()
    with pytest.raises(IntegrityError, match="set aside"):
        store.get(record().key)


def test_another_format_is_refused(tmp_path: Path):
    write_json_atomic(tmp_path / "store.json", {"format": 99})
    with pytest.raises(StoreError, match="format 99"):
        Store(tmp_path)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from quantum.store import Record, Store
store = Store(Path(sys.argv[1]))
won = 0
for i in range(30):
    key = f"{i % 5:02d}" + "0" * 62
    array = np.full(2000, i % 5, dtype=float)
    won += store.put(Record(key=key, stage="t", request={}, arrays={"a": array}))
print(won)
"""


def test_many_processes_write_each_object_once(tmp_path: Path):
    Store(tmp_path)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    won = sum(int(writer.communicate(timeout=60)[0]) for writer in writers)
    assert won == 5
    assert Store(tmp_path).verify() == (5, [])
    assert not any((tmp_path / "tmp").iterdir())


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
import quantum.store as module
from quantum.store import Record, Store
module.publish_folder = lambda *a: os.kill(os.getpid(), 9)
Store(Path(sys.argv[1])).put(Record(key="ab" * 32, stage="t", request={}, arrays={"a": np.ones(3)}))
"""


def test_a_killed_writer_leaves_nothing_visible(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -9
    store = Store(tmp_path)
    assert list(store.keys()) == []
    assert any((tmp_path / "tmp").iterdir())


def test_a_full_disk_is_a_resource_error_and_leaves_nothing(tmp_path: Path, monkeypatch):
    store = Store(tmp_path)
    real = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:  # the first array still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    one = record("b" * 64)
    with pytest.raises(ResourceError, match="no space left"):
        store.put(one)
    monkeypatch.setattr(os, "fsync", real)
    assert not store.has("b" * 64)
    assert not any((tmp_path / "tmp").iterdir())
    assert store.put(one)


def test_a_molecule_on_a_full_disk_ends_as_an_outcome(tmp_path: Path, monkeypatch):
    from quantum.molecule import species_from_smiles
    from quantum.pipeline import Task, compute_features
    from quantum.schema import PipelineSpec

    store = Store(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    task = Task(species=species_from_smiles("O"), spec=PipelineSpec(), stages=("conformer",))
    outcome = compute_features(task, store)
    assert (outcome.status, outcome.kind) == ("failed", "resource")


def test_stores_merge_unless_their_numbers_differ(tmp_path: Path):
    mine, theirs = Store(tmp_path / "mine"), Store(tmp_path / "theirs")
    for store, keys in ((mine, "ab"), (theirs, "bc")):
        for letter in keys:
            store.put(record(letter * 64))
    report = merge_stores(theirs, mine)
    assert (report.copied, report.present, report.conflicts) == (1, 1, 0)
    assert sorted(key[0] for key in mine.keys()) == ["a", "b", "c"]  # noqa: SIM118
    assert merge_stores(theirs, mine).copied == 0
    other = record("d" * 64)
    mine.put(other)
    theirs.put(other.model_copy(update={"arrays": {"a": np.zeros(7)}}))
    theirs.put(record("e" * 64))
    with pytest.raises(IntegrityError, match=r"1 objects have other numbers.*dddddddd"):
        merge_stores(theirs, mine)
    assert not mine.has("e" * 64)
    before = mine.digest_of("d" * 64)
    assert merge_stores(theirs, mine, keep_mine=True).conflicts == 1
    assert mine.has("e" * 64)
    assert mine.digest_of("d" * 64) == before
