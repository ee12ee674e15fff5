"""Leases of a search, between real processes; no clock of another machine is believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestration.search_lease import Lease
from quantum.base import TransientError

HOLDER = """
import sys, time
from pathlib import Path
from orchestration.search_lease import Lease
with Lease(Path(sys.argv[1]), beat_s=0.1):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline().strip() == "held"
        yield process
        process.kill()


def the_file(folder: Path) -> Path:
    (path,) = (folder / "lease").glob("*.json")
    return path


def as_another_machine(folder: Path) -> None:
    """What a holder elsewhere looks like: its process cannot be looked up."""
    record = json.loads(the_file(folder).read_text())
    the_file(folder).write_text(json.dumps(record | {"machine": "another"}))


def test_a_living_session_keeps_its_search(holder, tmp_path):
    with pytest.raises(TransientError, match=f"process {holder.pid} on this machine"):
        Lease(tmp_path).__enter__()
    holder.communicate("\n")
    with Lease(tmp_path) as lease:  # given back
        assert lease.number == 2
        assert not lease.lost()


def test_a_killed_session_is_seen_at_once(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Lease(tmp_path, patience_s=10_000) as lease:  # no waiting for a dead process
        assert not lease.lost()


def test_a_session_elsewhere_lives_while_its_count_moves(holder, tmp_path):
    """The holder writes its own machine again with every beat; ours is pretended to be another."""
    lease = Lease(tmp_path, beat_s=0.2, patience_s=60)
    assert not lease._stands_still(1)
    holder.send_signal(signal.SIGSTOP)
    try:
        assert Lease(tmp_path, beat_s=0.2, patience_s=1)._stands_still(1)
    finally:
        holder.send_signal(signal.SIGCONT)


def test_a_silent_session_elsewhere_is_displaced_whatever_its_files_times_say(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    as_another_machine(tmp_path)
    # far in the future: a clock that runs ahead must not keep a search for ever
    os.utime(the_file(tmp_path), (4e9, 4e9))
    with Lease(tmp_path, beat_s=0.2, patience_s=1) as lease:
        holder.send_signal(signal.SIGCONT)
        # the one that was displaced writes no more and stays displaced
        holder.communicate("\n")
        assert not lease.lost()


def test_a_displaced_session_knows(tmp_path):
    with Lease(tmp_path, beat_s=1000) as first:
        as_another_machine(tmp_path)
        with Lease(tmp_path, beat_s=0.2, patience_s=0.5) as second:
            assert first.lost()
            assert not second.lost()
        assert not second.lost()
    with Lease(tmp_path) as third:
        assert third.number == second.number + 1


def test_one_of_many_gets_it(tmp_path):
    """All see the same dead session at the same time."""
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "000001.json").write_text(json.dumps({"released": True}))
    barrier, held, refused = threading.Barrier(8), [], []

    def try_it() -> None:
        lease = Lease(tmp_path)
        barrier.wait()
        try:
            held.append(lease.__enter__())
        except TransientError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in held:
        lease.__exit__()
    assert len(held) == 1
    assert len(refused) == 7
