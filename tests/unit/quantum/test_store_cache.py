"""The cache of a remote store: size, order of removal, many processes, and folders that fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantum.base import ConfigError
from quantum.store_cache import ObjectCache, open_cache


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.npz"))


def test_what_was_used_least_recently_goes_first(tmp_path: Path):
    cache = ObjectCache(tmp_path, "one", 1000)
    for number in range(9):
        cache.write(f"{number:02d}", bytes(100))
        os.utime(cache._file(f"{number:02d}"), (number, number))  # no waiting for clocks
    assert cache.read("00") == bytes(100)  # used now
    cache.write("aa", bytes(100))
    cache.write("bb", bytes(100))  # one too many
    assert size_of(tmp_path) <= 1000
    assert cache.read("01") is None
    assert cache.read("00") is not None
    assert cache.read("bb") is not None


def test_all_stores_of_the_folder_share_its_size(tmp_path: Path):
    old, new = ObjectCache(tmp_path, "old", 1000), ObjectCache(tmp_path, "new", 1000)
    old.write("aa", bytes(600))
    os.utime(old._file("aa"), (1, 1))
    new.write("aa", bytes(601))
    assert old.read("aa") is None
    assert new.read("aa") == bytes(601)


def test_an_object_larger_than_the_cache_is_not_kept(tmp_path: Path):
    cache = ObjectCache(tmp_path, "one", 1000)
    cache.write("aa", bytes(900))
    cache.write("bb", bytes(1001))
    assert cache.read("aa") is not None
    assert cache.read("bb") is None


def test_files_of_killed_writers_are_removed(tmp_path: Path):
    cache = ObjectCache(tmp_path, "one", 1000)
    cache.write("aa", bytes(10))
    left = cache._file("aa").with_name(".ab.npz.1234.tmp")
    left.write_bytes(bytes(10))
    os.utime(left, (1, 1))
    cache.write("bb", bytes(100))
    assert not left.exists()
    assert cache.read("aa") is not None


@pytest.mark.parametrize("kind", ["a file", "no folder can be made"])
def test_a_cache_that_cannot_be_used_is_an_empty_one(tmp_path: Path, kind: str):
    (tmp_path / "file").write_text("text")
    folder = tmp_path / "file" if kind == "a file" else Path("/proc/no-such/cache")
    cache = ObjectCache(folder, "one", 1000)
    cache.write("aa", bytes(10))
    assert cache.read("aa") is None
    cache.drop("aa")


WRITER = """
import sys
from pathlib import Path
from quantum.store_cache import ObjectCache
cache = ObjectCache(Path(sys.argv[1]), "one", 50_000)
first = int(sys.argv[2])
for number in range(400):
    key = f"{(first + number) % 256:02x}{number % 7}"
    found = cache.read(key)
    assert found is None or found == key.encode() * 300, (key, len(found))
    cache.write(key, key.encode() * 300)
"""


def test_many_processes_share_it(tmp_path: Path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(70 * number)])
        for number in range(3)
    ]
    assert [writer.wait(250) for writer in writers] == [0, 0, 0]
    # each process may write a twentieth more before it looks
    assert 0 < size_of(tmp_path) <= 50_000 * (1 + 4 * 0.05)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_environment_names_folder_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDREC_STORE_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDREC_STORE_CACHE_GB", "0.5")
    cache = open_cache("one")
    assert (cache.folder, cache.limit_bytes) == (tmp_path, 500_000_000)
    monkeypatch.setenv("MEDREC_STORE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert open_cache("one").folder == tmp_path / "user" / "medrec" / "store"
    monkeypatch.setenv("MEDREC_STORE_CACHE", "off")
    assert open_cache("one") is None


@pytest.mark.parametrize("size", ["many", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, size: str):
    monkeypatch.setenv("MEDREC_STORE_CACHE_GB", size)
    monkeypatch.delenv("MEDREC_STORE_CACHE", raising=False)
    with pytest.raises(ConfigError, match="MEDREC_STORE_CACHE_GB"):
        open_cache("one")
