"""Faults done for real: full and read-only file systems, unmounted ones, damage, lost servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from quantum.base import DiskFullError, IntegrityError, StoreError, TransientError
from quantum.store import Failure, Record, Store, StoreLike, open_store

KEY = "ab" + "0" * 62
OTHER = "cd" + "0" * 62


def record(key: str = KEY, size: int = 6) -> Record:
    return Record(key=key, stage="test", request={}, arrays={"a": np.arange(float(size))})


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An empty folder to mount something on."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    folder = tmp_path / "mounted"
    folder.mkdir()
    yield folder
    unmount(folder)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that comes to pass however busy the machine is."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


class Later:
    """Runs a function in a thread; `result` gives its value or raises its error."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.value: object = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self.thread.start()

    def _run(self, function: Callable[[], object]) -> None:
        try:
            self.value = function()
        except Exception as error:  # noqa: BLE001 - raised again in `result`
            self.error = error

    @property
    def is_waiting(self) -> bool:
        return self.thread.is_alive()

    def result(self) -> object:
        self.thread.join(200)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.value


# --------------------------------------------------------------------------- file systems


def test_a_full_file_system_keeps_what_it_has_and_nothing_half(mounted: Path):
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mounted))
    store = Store(mounted)
    assert store.put(record(OTHER))
    with pytest.raises(DiskFullError, match="no space left"):
        store.put(record(size=1_000_000))  # 8 MB
    assert not store.has(KEY)
    assert list((mounted / "tmp").iterdir()) == []
    assert store.verify() == (1, [])
    assert store.put(record())  # a small one still fits
    np.testing.assert_array_equal(store.get(KEY).arrays["a"], np.arange(6.0))


def test_a_read_only_folder_can_be_read_and_says_no_to_writing(mounted: Path, tmp_path: Path):
    place = tmp_path / "there"
    Store(place).put(record())
    mount("--bind", str(place), str(mounted))
    mount("-o", "remount,bind,ro", str(mounted))
    store = Store(mounted)
    assert store.get(KEY).key == KEY
    assert store.verify() == (1, [])
    assert not store.put(record())
    for write in (
        lambda: store.put(record(OTHER)),
        lambda: store.put_failure(Failure(key=OTHER, stage="t", kind="k", message="m")),
        lambda: store.claim(OTHER, "me"),
    ):
        with pytest.raises(StoreError, match="refuses access"):
            write()
    with pytest.raises(StoreError, match="refuses access"):
        Store(mounted / "new")


def test_an_unmounted_store_is_away_and_not_empty(mounted: Path, tmp_path: Path):
    place = tmp_path / "there"
    Store(place).put(record())
    mount("--bind", str(place), str(mounted))
    hasty, patient = Store(mounted, retry_s=0.3), Store(mounted, retry_s=200)
    unmount(mounted)
    for question in (
        lambda: hasty.has(KEY),
        lambda: hasty.get(KEY),
        lambda: hasty.present([KEY]),
        lambda: hasty.present([f"{i:064x}" for i in range(1000)]),
        lambda: hasty.put(record(OTHER)),
        lambda: hasty.put_failure(Failure(key=OTHER, stage="t", kind="k", message="m")),
        lambda: hasty.claim(OTHER, "me"),
    ):
        with pytest.raises(TransientError, match="could not be reached"):
            question()
    assert list(mounted.iterdir()) == []  # nothing was written beside the real store
    waiting = [Later(lambda: patient.has(KEY)), Later(lambda: patient.put(record(OTHER)))]
    time.sleep(1)
    assert all(later.is_waiting for later in waiting)
    mount("--bind", str(place), str(mounted))
    assert [later.result() for later in waiting] == [True, True]
    assert sorted(Store(place).keys()) == [KEY, OTHER]


def test_a_file_in_the_folder_s_place_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("text")
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match="is a file"):
            Store(place)


# --------------------------------------------------------------------------- damage


@pytest.fixture(params=["disk", "s3"])
def damaged(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A store with one object, and what changes the bytes of its parts from outside."""
    if request.param == "disk":
        store: StoreLike = Store(tmp_path / "store")
        folder = tmp_path / "store" / "objects"

        def change(key: str, how: Callable[[bytes], bytes], part: str) -> None:
            file = folder / key[:2] / key / part
            file.write_bytes(how(file.read_bytes()))
    else:
        url = request.getfixturevalue("s3_url")
        raw = request.getfixturevalue("s3").raw()
        monkeypatch.setenv("MEDREC_STORE_CACHE", "off")
        store = open_store(url)
        bucket, _, prefix = url.removeprefix("s3://").partition("/")

        def change(key: str, how: Callable[[bytes], bytes], part: str) -> None:
            place = {"Bucket": bucket, "Key": f"{prefix}/objects/{key}.npz"}
            raw.put_object(**place, Body=how(raw.get_object(**place)["Body"].read()))

    store.put(record())
    return store, change


def flip(data: bytes) -> bytes:
    return data[:-70] + bytes([data[-70] ^ 1]) + data[-69:]


DAMAGE = {
    "array cut": (lambda data: data[:-10], "a.npy"),
    "array empty": (lambda data: b"", "a.npy"),
    "array flipped": (flip, "a.npy"),
    "record cut": (lambda data: data[: len(data) // 2], "record.json"),
    "record empty": (lambda data: b"", "record.json"),
    "record flipped": (flip, "record.json"),
    "other json": (lambda data: b"[1, 2]", "record.json"),
    "not text": (lambda data: b"\xff\xfe\x00", "record.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_set_aside(damaged, kind: str):
    store, change = damaged
    store.put(record(OTHER))
    change(KEY, *DAMAGE[kind])
    with pytest.raises(IntegrityError, match="set aside"):
        store.get(KEY)
    assert not store.has(KEY)
    with pytest.raises(StoreError, match="no object"):
        store.get(KEY)
    assert store.put(record())
    assert store.verify() == (2, [])


def test_the_object_of_another_key_is_damage(damaged):
    store, change = damaged
    store.put(record(OTHER))
    taken: list[bytes] = []
    change(OTHER, lambda data: taken.append(data) or data, "record.json")
    change(KEY, lambda data: taken[0], "record.json")
    assert store.verify() == (2, [KEY])
    assert list(store.keys()) == [OTHER]


def test_a_damaged_failure_record_is_none(tmp_path: Path):
    store = Store(tmp_path)
    store.put_failure(Failure(key=KEY, stage="t", kind="k", message="m"))
    (tmp_path / "failures" / KEY[:2] / f"{KEY}.json").write_text('{"key": "x"')
    assert store.failure(KEY) is None
    assert store.failures([KEY]) == {}


def test_an_empty_claim_can_be_broken(tmp_path: Path):
    store = Store(tmp_path)
    store.claim(KEY, "dead")
    (tmp_path / "claims" / f"{KEY}.txt").write_text("")
    seen = store.claim(KEY, "me")
    assert seen
    assert store.break_claim(KEY, seen)
    assert store.claim(KEY, "me") is None


# --------------------------------------------------------------------------- lost servers


@pytest.fixture
def server(s3, start_s3, monkeypatch: pytest.MonkeyPatch):
    """A server of this test's own, which may go down."""
    own = start_s3()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", own.endpoint)
    own.raw().create_bucket(Bucket="bucket")
    return own


def test_a_server_that_is_away_for_a_while_loses_nothing(server, monkeypatch):
    monkeypatch.setenv("MEDREC_STORE_CACHE", "off")
    store = open_store("s3://bucket/x")
    store.put(record())
    store.put(record(OTHER))
    server.tell("down")
    waiting = {
        "put": Later(lambda: store.put(record("ef" * 32, size=2_500_000))),
        "get": Later(lambda: store.get(KEY).key),
        "has": Later(lambda: store.has(KEY)),
        "lacks": Later(lambda: store.has("ff" * 32)),
        "claim": Later(lambda: store.claim("k", "me")),
        "keys": Later(lambda: list(store.keys())[:2]),
    }
    time.sleep(1)
    assert all(later.is_waiting for later in waiting.values())
    server.tell("up")
    assert {name: later.result() for name, later in waiting.items()} == {
        "put": True,
        "get": KEY,
        "has": True,
        "lacks": False,
        "claim": None,
        "keys": [KEY, OTHER],
    }
    assert store.verify() == (3, [])


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_loses_nothing(server, monkeypatch):
    monkeypatch.setenv("MEDREC_STORE_CACHE", "off")
    store = open_store("s3://bucket/x")
    keys = [f"{i:064x}" for i in range(40)]
    done: list[str] = []

    def work() -> None:
        for key in keys:
            assert store.put(record(key, size=5000))  # the first and only writer: always true
            assert store.get(key).key == key
            done.append(key)

    working = Later(work)
    for stop in (5, 15, 25):
        eventually(lambda stop=stop: len(done) > stop or not working.thread.is_alive())
        server.tell("down")
        time.sleep(0.3)
        server.tell("up")
    working.result()
    assert list(store.keys()) == keys
    assert store.verify() == (40, [])


def test_a_server_that_stays_away_is_an_error_and_not_an_answer(server, monkeypatch):
    monkeypatch.setenv("MEDREC_STORE_RETRY_S", "0.4")
    monkeypatch.setenv("MEDREC_STORE_CACHE", "off")
    store = open_store("s3://bucket/x")
    store.put(record())
    server.tell("down")
    many = [f"{i:064x}" for i in range(100)]
    for question in (
        lambda: store.has(KEY),
        lambda: store.get(KEY),
        lambda: store.put(record(OTHER)),
        lambda: store.digest_of(KEY),
        lambda: store.failure(KEY),
        lambda: store.present([KEY]),
        lambda: store.present(many),
        lambda: store.failures(many),
        lambda: list(store.keys()),
        lambda: store.verify(),
        lambda: store.claim(KEY, "me"),
        lambda: store.break_claim(KEY, "me 0"),
    ):
        with pytest.raises(TransientError, match="could not be reached"):
            question()
    server.tell("up")
    assert store.verify() == (1, [])


def test_a_lost_answer_is_not_taken_for_a_lost_race(server, monkeypatch):
    monkeypatch.setenv("MEDREC_STORE_CACHE", "off")
    store, other = open_store("s3://bucket/x"), open_store("s3://bucket/x")
    server.tell("lose")
    assert store.put(record())
    assert not other.put(record())
    server.tell("lose")
    assert store.claim("k", "me") is None
    assert other.claim("k", "you") == "me 0"
    server.tell("lose")
    assert other.break_claim("k", "me 0")
    assert not store.break_claim("k", "me 0")
    assert other.claim("k", "you") is None
