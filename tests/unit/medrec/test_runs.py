"""Run folders: found by name, honest status, resumable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medrec.config import TopKModelConfig, TrainConfig
from medrec.runs import Home, Run
from quantum.base import DataError, InputError, TransientError


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def open_run(home: Home, seed: int = 0, **inputs: str) -> Run:
    config = TrainConfig(name="x", model=TopKModelConfig(), seed=seed)
    return Run.open(home, "train", "x", config, inputs or {"cohort": "c"})


def test_the_same_request_finds_the_same_folder(home: Home):
    assert open_run(home).folder == open_run(home).folder
    assert open_run(home).folder != open_run(home, seed=1).folder
    assert open_run(home).folder != open_run(home, cohort="other").folder


def test_status_follows_how_the_work_ended(home: Home):
    run = open_run(home)
    assert run.record()["status"] == "created"
    with run.recording(seeds={"torch": 1}):
        assert run.record()["status"] == "running"
        run.finish({"jaccard": 0.5})
    assert run.is_finished
    assert run.report() == {"jaccard": 0.5}
    assert run.record()["provenance"]["machine"]["cores"] >= 1

    other = open_run(home, seed=2)
    with pytest.raises(DataError), other.recording():
        raise DataError("a column is missing")
    assert other.record()["error"] == {"kind": "data", "message": "a column is missing"}
    with pytest.raises(KeyboardInterrupt), other.recording():
        raise KeyboardInterrupt
    assert other.record()["status"] == "interrupted"


def test_an_unexpected_error_keeps_its_text_out_of_the_record(home: Home):
    run = open_run(home)
    with pytest.raises(ValueError, match="patient"), run.recording():
        raise ValueError("patient 12 has code 99")
    assert "99" not in json.dumps(run.record()["error"])


def test_metrics_survive_a_cut_line_and_a_resume(home: Home):
    run = open_run(home)
    for epoch in range(4):
        run.append_metrics({"epoch": epoch, "loss": 1.0 / (epoch + 1)})
    with (run.folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"epoch": 4, "lo')
    assert run.metrics()["epoch"].tolist() == [0, 1, 2, 3]
    run.keep_metrics_until(1)
    run.append_metrics({"epoch": 2, "loss": 9.0})
    assert run.metrics()["epoch"].tolist() == [0, 1, 2]
    assert run.metrics()["loss"].iloc[-1] == 9.0


def test_checkpoints_belong_to_their_run(home: Home):
    run, other = open_run(home), open_run(home, seed=3)
    assert run.load_checkpoint("last") is None
    weights = {"w": torch.arange(3.0)}
    run.save_checkpoint("last", {"model": weights, "epoch": 7})
    state = run.load_checkpoint("last")
    assert state is not None
    assert torch.equal(state["model"]["w"], weights["w"])
    target = other.checkpoint_file("last")
    target.parent.mkdir()
    target.write_bytes(run.checkpoint_file("last").read_bytes())
    with pytest.raises(InputError, match="another configuration"):
        other.load_checkpoint("last")
    target.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="unreadable"):
        other.load_checkpoint("last")


HOLDER = """
import sys
from pathlib import Path
from medrec.config import TopKModelConfig, TrainConfig
from medrec.runs import Home, Run
config = TrainConfig(name="x", model=TopKModelConfig(), seed=0)
run = Run.open(Home(Path(sys.argv[1])), "train", "x", config, {"cohort": "c"})
with run.recording():
    print("holding", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_cannot_work_on_one_run(home: Home):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(TransientError, match="another process"), open_run(home).recording():
            pass
        holder.communicate("leave\n", timeout=30)
    with open_run(home).recording():
        pass


def test_find_accepts_a_unique_beginning(home: Home):
    for name in ("abc-1", "abd-2"):
        (home.runs / name).mkdir(parents=True)
    assert home.find(home.runs, "abd").name == "abd-2"
    (home.runs / "ab-3").mkdir()
    assert home.find(home.runs, "ab").name == "ab-3"
    (home.runs / "ab-4").mkdir()
    with pytest.raises(InputError, match="ambiguous"):
        home.find(home.runs, "ab")
    with pytest.raises(InputError, match="there is: ab-3, ab-4, abc-1, abd-2"):
        home.find(home.runs, "zzz")
