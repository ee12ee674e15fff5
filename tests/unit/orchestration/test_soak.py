"""What the soak test looks for is found when it is there: lost, doubled and divergent results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from quantum.store import Failure, Record, Store


@pytest.fixture(scope="module")
def soak() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend("benchmarks")
        return importlib.import_module("soak")


@pytest.fixture(scope="module")
def jobs(soak: Any) -> Any:
    return importlib.import_module("soak_jobs")


def put(store: Store, key: str, value: float) -> str:
    store.put(Record(key=key, stage="conformer", request={}, arrays={"x": np.array([value])}))
    return store.numbers_of(key)


def test_every_fate_of_a_molecule_is_told_apart(soak: Any, jobs: Any, tmp_path: Path) -> None:
    store, tasks = Store(tmp_path / "store"), jobs.toy_tasks(0, 6)
    keys = [task.keys["conformer"] for task in tasks]
    assert len(set(keys)) == 6
    fine, again, other, wrong, failed, _lost = keys
    digests = {key: put(store, key, float(i)) for i, key in enumerate((fine, again, other, wrong))}
    store.put_failure(Failure(key=failed, stage="conformer", kind="resource", message=""))
    store.put_failure(Failure(key=other, stage="conformer", kind="crash", message=""))
    lines = [f"start {key}\nend {key} {digests[key]}" for key in (fine, again, other)]
    lines += [f"start {again}", f"end {again} {digests[again]}", f"start {wrong}"]
    lines += [f"end {wrong} {digests[wrong]}", f"start {wrong}", f"end {wrong} {'0' * 64}", "sta"]
    (tmp_path / "trace").write_text("\n".join(lines))
    trace = soak.Trace.read(tmp_path / "trace")
    assert trace.extra(set(keys)) == 2
    verdict = soak.judge(tasks, tmp_path / "store", trace)
    assert verdict == soak.Verdict(done=4, failed=1, lost=1, twice=1, divergent=1)


def export(folder: Path, number: float = 1.0, created: str = "now") -> Path:
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", np.array([number]))
    np.savez_compressed(folder / "b.npz", x=np.array([number]))
    pd.DataFrame({"n": [number]}).to_parquet(folder / "c.parquet")
    (folder / "manifest.json").write_text(json.dumps({"created": created, "digest": "d"}))
    return folder


def test_exports_are_compared_to_the_last_bit(soak: Any, tmp_path: Path) -> None:
    one, same = export(tmp_path / "1" / "t-ab"), export(tmp_path / "2" / "t-ab", created="later")
    assert soak.differences(one, same) == []
    other = export(tmp_path / "3" / "t-ac", np.nextafter(1.0, 2.0))
    (other / "more.txt").touch()
    found = soak.differences(one, other)
    assert found[0].startswith("names")
    assert found[1:] == ["a.npy", "b.npz", "c.parquet", "more.txt is not in both"]


def test_stores_are_compared_by_their_numbers(soak: Any, jobs: Any, tmp_path: Path) -> None:
    one, other, tasks = Store(tmp_path / "1"), Store(tmp_path / "2"), jobs.toy_tasks(0, 3)
    for i, task in enumerate(tasks):
        put(one, task.keys["conformer"], 1.0)
        if i:
            put(other, task.keys["conformer"], float(i))
    assert soak.same_objects(tasks, one, one) == 0
    assert soak.same_objects(tasks, one, other) == 2


def test_fragments_are_molecules_of_their_own(jobs: Any) -> None:
    parts = jobs.fragments("CC(=O)Nc1ccc(O)cc1")
    assert "CC(N)=O" in parts
    assert "Oc1ccccc1" in parts
    assert jobs.fragments("no molecule") == []
