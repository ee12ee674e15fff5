"""What every store must do; and what only the one on disk can get wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantum.base import DiskFullError, IntegrityError, StoreError, write_json_atomic
from quantum.store import Failure, MemoryStore, Record, Store, StoreLike, open_store


def record(key: str = "ab" + "0" * 62, value: float = 1.0) -> Record:
    return Record(
        key=key,
        stage="test",
        request={"x": 1},
        scalars={"energy_hartree": -1.5},
        arrays={"a": np.full((2, 3), value), "b": np.arange(4, dtype=np.int16)},
    )


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLike:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "disk":
        return open_store(tmp_path / "store")
    return open_store(request.getfixturevalue("s3_url"))


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Location of a store that many processes can open."""
    if request.param == "disk":
        return str(tmp_path / "store")
    return request.getfixturevalue("s3_url")


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


def test_arrays_of_any_shape_come_back(store):
    arrays = {
        "scalar": np.array(2.5),
        "empty": np.empty((0, 3)),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "flags": np.array([True, False]),
    }
    assert store.put(record().model_copy(update={"arrays": arrays}))
    found = store.get(record().key).arrays
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_digests_of_numbers_leave_out_times_and_machines(store):
    store.put(record("a" * 64))
    store.put(record("b" * 64).model_copy(update={"provenance": {"time": "later"}}))
    store.put(record("c" * 64, value=2.0))
    same, also, other = (store.numbers_of(letter * 64) for letter in "abc")
    assert same == also != other
    assert len({store.digest_of(letter * 64) for letter in "abc"}) == 3
    for question in (store.digest_of, store.numbers_of):
        with pytest.raises(StoreError, match="no object"):
            question("f" * 64)


def test_many_keys_at_once(store):
    there = [f"{i:02x}" + "0" * 62 for i in range(0, 200, 40)]
    failed = [f"{i:02x}" + "1" * 62 for i in range(0, 200, 50)]
    for key in there:
        store.put(record(key))
    for key in failed:
        store.put_failure(Failure(key=key, stage="test", kind="resource", message=key[:2]))
    asked = [f"{i % 256:02x}{i // 256}" + "0" * 61 for i in range(700)]
    for keys in (there + failed, there + failed + asked):  # few are looked up, many listed
        assert store.present(iter(keys)) == set(there)
        found = store.failures(iter(keys))
        assert {key: item.message for key, item in found.items()} == {k: k[:2] for k in failed}
    assert store.present([]) == set()
    assert store.failures([]) == {}
    assert list(store.failed_keys()) == failed
    store.clear_failure(failed[0])
    store.clear_failure(failed[0])
    assert store.failure(failed[0]) is None
    assert list(store.failed_keys()) == failed[1:]


def test_verify_counts_and_tells_progress(store):
    for letter in "abc":
        store.put(record(letter * 64))
    seen = []
    assert store.verify(lambda done, total: seen.append((done, total))) == (3, [])
    assert seen[-1] == (3, 3)


def test_a_claim_has_one_holder_until_it_is_released_or_broken(store):
    assert store.claim("k", "ann") is None
    assert store.claim("k", "ann") is None
    assert store.claim("k", "bob") == "ann 0"
    store.renew("k", "ann", 7)
    store.renew("k", "bob", 9)
    assert store.claim("k", "bob") == "ann 7"
    assert not store.break_claim("k", "ann 0")
    store.release("k", "bob")
    assert store.claim("k", "bob") == "ann 7"
    assert store.break_claim("k", "ann 7")
    assert not store.break_claim("k", "ann 7")
    assert store.claim("k", "bob") is None
    assert store.claim("k", "ann") == "bob 0"
    store.release("k", "bob")
    assert store.claim("k", "ann") is None
    # the same text once more: an owner that was thought dead came back and died again
    store.release("k", "ann")
    for _ in range(2):
        assert store.claim("k", "ann") is None
        assert store.break_claim("k", "ann 0")
        assert not store.break_claim("k", "ann 0")
    store.release("k", "nobody")
    assert not store.break_claim("never", "ann 0")


RACER = """
import json, sys
import numpy as np
from quantum.store import Record, open_store
place, me = sys.argv[1:]
store = open_store(place)
print("ready", flush=True)
sys.stdin.readline()
won = {"put": [], "claim": [], "break": []}
for i in range(5):
    key = f"{i:02d}" + "0" * 62
    if store.claim("new" + key, me) is None:
        won["claim"].append(i)
    if store.break_claim("old" + key, "dead 3"):
        won["break"].append(i)
    record = Record(key=key, stage="t", request={"by": me}, arrays={"a": np.full(2000, float(i))})
    if store.put(record):
        won["put"].append(i)
print(json.dumps(won))
"""


def test_of_racing_processes_one_wins(place):
    store = open_store(place)
    for i in range(5):
        key = f"old{i:02d}" + "0" * 62
        store.claim(key, "dead")
        store.renew(key, "dead", 3)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, place, f"racer{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 3
    for racer in racers:  # all are loaded: now at once
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [json.loads(racer.communicate(timeout=250)[0]) for racer in racers]
    for what in ("put", "claim", "break"):
        assert sorted(i for racer in won for i in racer[what]) == list(range(5)), what
    assert store.verify() == (5, [])
    for number, racer in enumerate(won):
        for i in racer["put"]:
            assert store.get(f"{i:02d}" + "0" * 62).request == {"by": f"racer{number}"}
        for i in racer["claim"]:
            assert store.claim(f"new{i:02d}" + "0" * 62, "other") == f"racer{number} 0"
        for i in racer["break"]:
            assert store.claim(f"old{i:02d}" + "0" * 62, "other") is None


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
import quantum.disk_store as module
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
    with pytest.raises(DiskFullError, match="no space left"):
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
    assert (outcome.status, outcome.kind) == ("failed", "disk_full")
