"""Waiting for a store: which faults may pass, and when to give up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from quantum.base import ConfigError, StoreError, TransientError
from quantum.store import Record, Store
from quantum.store_retry import Retry, retry_budget


class Fails:
    """Raises an error some times, then answers."""

    def __init__(self, error: OSError, times: int) -> None:
        self.error, self.left = error, times

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return "answer"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
def test_a_fault_that_passes_is_waited_for(code: int):
    action = Fails(OSError(code, os.strerror(code)), 2)
    assert Retry("place", 60)(action) == "answer"
    assert action.left == -1


def test_a_fault_that_stays_is_a_transient_error():
    action = Fails(OSError(errno.EIO, "Input/output error"), 10**6)
    with pytest.raises(TransientError, match=r"place could not be reached for .* s: .*EIO"):
        Retry("place", 0.3)(action)
    assert 10**6 - action.left > 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR])
def test_what_does_not_pass_is_said_at_once(code: int):
    action = Fails(OSError(code, os.strerror(code), "file"), 10)
    with pytest.raises(StoreError, match="place"):
        Retry("place", 60)(action)
    assert action.left == 9


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOSPC, errno.EISDIR])
def test_other_errors_are_left_to_the_caller(code: int):
    with pytest.raises(OSError, match="x") as caught:
        Retry("place", 60)(Fails(OSError(code, "x"), 1))
    assert caught.value.errno == code


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_folder_with_faults_is_never_read_as_empty_or_damaged(tmp_path: Path, monkeypatch, code):
    key = "ab" * 32
    store = Store(tmp_path, retry_s=0.2)
    store.put(Record(key=key, stage="t", request={}))

    def broken(*_, **__):
        raise OSError(code, os.strerror(code))

    questions = (
        lambda: store.has(key),
        lambda: store.get(key),
        lambda: store.failure(key),
        lambda: store.present([key]),
        lambda: store.failures([key]),
        lambda: store.put(Record(key="cd" * 32, stage="t", request={})),
    )
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", broken)
        patch.setattr(Path, "read_bytes", broken)
        for question in questions:
            with pytest.raises(TransientError, match="could not be reached"):
                question()
    assert store.get(key).key == key
    assert not (tmp_path / "damaged").exists()


def test_the_budget_is_given_or_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MEDREC_STORE_RETRY_S", raising=False)
    assert retry_budget() == 300
    monkeypatch.setenv("MEDREC_STORE_RETRY_S", "7.5")
    assert (retry_budget(), retry_budget(2)) == (7.5, 2)
    for text in ("soon", "-1", "nan"):
        monkeypatch.setenv("MEDREC_STORE_RETRY_S", text)
        with pytest.raises(ConfigError, match="MEDREC_STORE_RETRY_S"):
            retry_budget()
