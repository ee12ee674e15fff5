"""The whole chain by its command: killed, resumed, found by name the second time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.ray

CODE = "from orchestration.cli import main; main()"
FILES = {
    "demo.yaml": {
        "cohort": "data/c.yaml",
        "features": "quantum/f.yaml",
        "pretrain": "pretrain/p.yaml",
        "tune": "tune/t.yaml",
        "train": ["train/topk.yaml", "train/molerec.yaml"],
    },
    "data/c.yaml": {
        "name": "tiny",
        "source": {
            "format": "synthetic",
            "n_patients": 40,
            "n_diagnoses": 20,
            "n_procedures": 10,
            "n_drugs": 8,
        },
    },
    "quantum/f.yaml": {
        "name": "tiny",
        "pipeline": {
            "calculation": {"method": "hf", "basis": "sto-3g", "grid_level": 0},
            "grid": {"spacing_bohr": 0.9},
        },
        "scf_budget_cpu_s": 14,
    },
    "pretrain/p.yaml": {
        "task": {
            "name": "pre",
            "encoder": {"d_model": 8, "gin_layers": 1, "gvp_layers": 1},
            "epochs": 2,
        }
    },
    "tune/t.yaml": {
        "name": "search",
        "base": {
            "name": "m",
            "model": {"name": "molerec", "d_model": 8, "representation": {"layers": 1}},
            "optim": {"epochs": 2},
        },
        "space": {"loss.ddi_target": {"type": "uniform", "low": 0.05, "high": 0.3}},
        "n_trials": 2,
        "asha": None,
    },
    "train/topk.yaml": {"name": "topk", "model": {"name": "topk"}},
    "train/molerec.yaml": {
        "name": "molerec",
        "model": {
            "name": "molerec",
            "d_model": 8,
            "representation": {"kind": "gin_elf", "layers": 1},
        },
        "optim": {"epochs": 3},
    },
}


def start(*arguments: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments, "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )


def names(home: Path) -> set[str]:
    return {p.name for p in (home / "runs").iterdir()}


@pytest.mark.timeout(900)
def test_demo_survives_a_kill_and_is_found_the_second_time(tmp_path: Path):
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    demo, home = str(tmp_path / "demo.yaml"), tmp_path / "home"

    first = start("demo", demo, home=home)
    for line in first.stdout:
        if "3/6" in line:
            break
    time.sleep(1.0)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    objects = sorted(p.name for p in (home / "store" / "objects").glob("*/*"))
    assert objects
    written = {
        p: p.stat().st_mtime_ns for p in (home / "store" / "objects").glob("*/*/record.json")
    }

    second = start("demo", demo, home=home)
    text, _ = second.communicate(timeout=280)
    assert second.returncode == 0, text[-3000:]
    assert "support no claim about accuracy" in text.replace("\n", " ")
    (page,) = (home / "reports").iterdir()
    assert page.stat().st_size > 1e6
    for path, stamp in written.items():
        assert path.stat().st_mtime_ns == stamp
    known = names(home)
    assert len(known) == 4

    begin = time.monotonic()
    third = start("demo", demo, home=home)
    text, _ = third.communicate(timeout=120)
    assert third.returncode == 0, text[-3000:]
    assert names(home) == known
    # no cluster is started when there is nothing to do; a generous bound, not a benchmark
    assert time.monotonic() - begin < 60

    trained = next(name for name in known if name.startswith("molerec-"))
    document = {"visits": [{"diagnoses": ["nonsense"], "procedures": []}]}
    (tmp_path / "patient.json").write_text(json.dumps(document))
    done = start("recommend", trained, str(tmp_path / "patient.json"), "--json", home=home)
    text, _ = done.communicate(timeout=60)
    assert done.returncode == 0
    assert "'nonsense' is unknown" in text


def test_ctrl_c_ends_with_one_line_and_exit_code_130(tmp_path: Path):
    for name in ("data/c.yaml", "quantum/f.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(yaml.safe_dump(FILES[name]))
    home = tmp_path / "home"
    prepared = start("prepare", str(tmp_path / "data/c.yaml"), home=home)
    assert prepared.wait(60) == 0
    running = start(
        "features", "run", str(tmp_path / "quantum/f.yaml"), "--cohort", "tiny", home=home
    )
    for line in running.stdout:
        if "conformers" in line:
            break
    time.sleep(4.0)
    running.send_signal(signal.SIGINT)
    text, _ = running.communicate(timeout=60)
    if running.returncode == 0:  # it was done before the signal came
        assert "features" in text
        return
    assert running.returncode == 130, text
    assert "finished work is kept" in text
    assert "Traceback" not in text
