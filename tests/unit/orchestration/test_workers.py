"""What surrounds Ray Train workers: errors, checkpoints on disk, preemption, following. No Ray."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from medrec.config import ScalingConfig
from medrec.runs import Home, Run
from orchestration import workers
from quantum.base import ConvergenceError, InputError, TransientError


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.open(Home(tmp_path), "pretrain", "w", ScalingConfig(), {})


def test_a_workers_own_error_keeps_its_class_and_anything_else_is_passing():
    own = SimpleNamespace(cause=InputError("no such column"))
    error = RuntimeError("outer")
    error.worker_failures = {0: RuntimeError("lost"), 1: own}
    assert workers._explain(error, 3) is own.cause
    found = workers._explain(RuntimeError("first line\nactor died"), 3)
    assert isinstance(found, TransientError)
    assert "more than 3 times; last: actor died" in str(found)


@pytest.mark.parametrize("error", [InputError("bad"), ConvergenceError("loss is nan")])
def test_a_final_error_is_found_again_by_the_next_worker(run, error):
    assert workers.stop_reason(run) is None
    workers.stop_for(run, error)
    found = workers.stop_reason(run)
    assert type(found) is type(error)
    assert str(found) == str(error)


def test_newest_whole_state_on_disk(run):
    assert list(workers.states_on_disk(run)) == []
    folder = workers.ray_folder(run) / run.digest[:16]
    for number, name in enumerate(("checkpoint_b", "checkpoint_a", "checkpoint_c")):
        path = folder / name / "state.pt"
        path.parent.mkdir(parents=True)
        torch.save({"epoch": number}, path)
        os.utime(path, (1000 + number, 1000 + number))
    (folder / "checkpoint_c" / "state.pt").write_bytes(b"PK\x03\x04cut off")
    os.utime(folder / "checkpoint_c" / "state.pt", (2000, 2000))
    assert [state["epoch"] for state in workers.states_on_disk(run)] == [1, 0]


@pytest.fixture
def notice(monkeypatch):
    """What Ray says about preemption, and how often it was asked."""
    state = SimpleNamespace(info=None, asked=0)

    def ask():
        state.asked += 1
        return state.info

    ray, train = ModuleType("ray"), ModuleType("ray.train")
    train.get_preemption_info = ask
    ray.train = train
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.train", train)
    return state


def test_two_checkpoints_for_a_notice_and_few_questions(notice, monkeypatch):
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(workers.time, "time", lambda: now.s)
    preemption, wanted = workers.Preemption(), []
    for step in range(160):
        now.s = 1000.0 + step
        if step == 40:
            notice.info = SimpleNamespace(deadline_ms=(1000 + 130) * 1000)
        if preemption.wants_checkpoint():
            wanted.append(step)
    # seen at the next question, and again once the end is near
    assert wanted == [64, 111]
    assert notice.asked == 5


def test_a_second_notice_counts_again(notice):
    preemption = workers.Preemption()
    notice.info = SimpleNamespace(deadline_ms=None)
    assert preemption.wants_checkpoint()
    assert not any(preemption.wants_checkpoint() for _ in range(31))
    notice.info = SimpleNamespace(deadline_ms=int(time.time() * 1000) + 10**6)
    assert preemption.wants_checkpoint()
    assert not preemption.wants_checkpoint()


def test_signal_handlers_come_back_and_exit_becomes_an_interruption():
    before = signal.getsignal(signal.SIGTERM)

    def end():
        with workers._own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise SystemExit(1)

    with pytest.raises(KeyboardInterrupt):
        end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_epochs_and_progress_reach_the_listeners(run):
    epochs, steps = [], []
    with workers._follow(run, lambda row: epochs.append(row["epoch"]), steps.append):
        workers.tell_progress(run, {"epoch": 0, "step": 3})
        run.append_metrics({"epoch": 0, "loss": 1.0})
        deadline = time.monotonic() + 10
        while not (epochs and steps) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert epochs == [0]
    assert steps == [{"epoch": 0, "step": 3}]
    assert not (run.folder / "progress.json").exists()
