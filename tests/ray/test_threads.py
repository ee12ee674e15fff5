"""Native libraries use as many threads as their task has CPUs, whatever ran in the worker before.

The benchmark's own trial runs in clusters of its own. Threads that compute are counted, which other
load does not change, unlike CPU seconds per wall second; of those only the upper limit is asserted.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantum.base import available_cores
from quantum.threads import THREAD_VARIABLES, limit_threads

pytestmark = [pytest.mark.ray]


@pytest.fixture(scope="module")
def bench(root: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        return importlib.import_module("threads")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
@pytest.mark.parametrize("inherited", ["1", None], ids=["launcher", "plain"])
def test_threads_that_compute_are_those_of_the_task(bench, inherited):
    libraries = bench.available(list(bench.WORK))
    rows = bench.in_cluster(inherited, libraries, 0.8, with_bare=False)
    assert {(row["library"], *row["order"], row["k"]) for row in rows} == {
        (library, *order, k) for library in libraries for order in bench.ORDERS for k in order
    }
    wrong = [row for row in rows if not bench.as_wanted(row)]
    assert not wrong
    greedy = [row for row in rows if row["cpu_s"] > bench.HIGHEST * row["wanted"] * row["wall_s"]]
    assert not greedy
    for library in libraries:
        for order in bench.ORDERS:
            pids = {r["pid"] for r in rows if (r["library"], tuple(r["order"])) == (library, order)}
            assert len(pids) == 1  # the second task was in a used worker


MEASURE = """
import hashlib, sys, threading
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, sys.argv[1])
import threads
idle = threading.Event()
threading.Thread(target=idle.wait, daemon=True).start()
data = bytes(30_000_000)
for n in (1, 2):
    with ThreadPoolExecutor(n) as pool:
        usage = threads.Usage()
        usage.start()
        usage.ready.wait()
        list(pool.map(hashlib.sha256, [data] * 40))
        seconds = usage.end()
    print(sum(item > threads.SHARE * max(seconds) for item in seconds))
"""


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_the_measurement_sees_threads_that_compute(root):
    """Threads that hash count; one that sleeps and the one that waits do not.

    In a process of its own: Ray's threads in this one compute as well.
    """
    command = [sys.executable, "-c", MEASURE, str(root / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]


def test_the_environment_and_pytorch_come_back(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("POLARS_MAX_THREADS", raising=False)
    before = torch.get_num_threads()
    with limit_threads(2):
        assert {os.environ[name] for name in THREAD_VARIABLES} == {"2"}
        assert torch.get_num_threads() == 2
        with limit_threads(0):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "POLARS_MAX_THREADS" not in os.environ
