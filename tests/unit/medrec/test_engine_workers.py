"""The fitting engine on two real processes against one.

All scenarios run in one pair of processes; each process writes what it saw to a file.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from medrec.config_molecules import FitConfig
from medrec.pretrain.engine import fit

WORKER = """
import sys
from pathlib import Path
import numpy as np, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {folder!r})
from toy_problem import Notes, toy_problem
from medrec.config_molecules import FitConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.pretrain.engine import fit
from quantum.base import MedrecError
rank, place = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{{place}}/meet", rank=rank, world_size=2)
library = MoleculeLibrary.load(place / "large")
scenarios = torch.load(place / "scenarios.pt", weights_only=True)
found = {{}}
for name, item in scenarios.items():
    notes = Notes(save_at=item.get("save_at", ((), ()))[rank])
    validate = None
    if "scores" in item:
        left = iter(item["scores"])
        assert_first = rank == 0
        def validate(model, device):
            assert assert_first
            return {{"mae": next(left)}}
    problem = toy_problem(
        library, item["rows"], poison=item.get("poison"), validate=validate,
        score_name="mae" if validate else None,
    )
    state, error = None, None
    try:
        state = fit(
            problem, FitConfig.model_validate(item["config"]), reporter=notes,
            wrap_model=DistributedDataParallel, resume=item.get("resume"), rank=rank, world_size=2,
            max_pairs=item.get("max_pairs"),
        )
    except MedrecError as problem_found:
        error = str(problem_found)
    found[name] = {{
        "rows": notes.rows, "saved": notes.saved, "state": state, "error": error,
        "seen": problem.model.seen,
        "gradients": {{n: p.grad for n, p in problem.model.named_parameters()}},
    }}
torch.save(found, place / f"found{{rank}}.pt")
dist.destroy_process_group()
"""

ONE_STEP = {"epochs": 1, "batch_size": 64, "lr": 0.01}
UNEVEN = {"epochs": 2, "batch_size": 4, "lr": 0.01}  # 9 molecules: the last share is empty
LONG = {"epochs": 4, "batch_size": 10, "lr": 0.01, "ema": 0.5, "warmup_steps": 2}


@pytest.fixture(scope="module")
def library(write_library, tmp_path_factory):
    smiles = [f"{head}{'C' * n}{tail}" for n in range(4) for head in "CNOF" for tail in "CNOF"]
    return write_library(tmp_path_factory.mktemp("workers") / "large", smiles)


@pytest.fixture(scope="module")
def alone(toy, library):
    """Run a scenario in this process."""

    def run(item: dict[str, Any]) -> Any:
        notes = toy.Notes(save_at=range(100))
        problem = toy.toy_problem(library, item["rows"])
        state = fit(problem, FitConfig.model_validate(item["config"]), reporter=notes)
        return notes, state, problem.model

    return run


@pytest.fixture(scope="module")
def scenarios(alone):
    everyone = list(range(64))
    long, _, _ = alone({"config": LONG, "rows": everyone})
    return {
        "one step": {"config": ONE_STEP, "rows": everyone},
        "cut": {
            "config": {**ONE_STEP, "accumulate": 2}, "rows": everyone, "max_pairs": 120
        },
        "uneven": {"config": UNEVEN, "rows": everyone[:9]},
        "resumed": {"config": LONG, "rows": everyone, "resume": long.saved[9]},
        "wanted": {"config": LONG, "rows": everyone, "save_at": ((), (9,))},
        "broken": {"config": UNEVEN, "rows": everyone[:9], "poison": (1, 5, "loss")},
        "patience": {
            "config": {**UNEVEN, "epochs": 6, "patience": 2},
            "rows": everyone[:9],
            "scores": [3.0, 1.0, 2.0, 2.0, 2.0, 2.0],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(scenarios, library, root):
    """What both processes saw of every scenario."""
    place = library.folder.parent
    torch.save(scenarios, place / "scenarios.pt")
    code = WORKER.format(folder=str(root / "tests" / "unit" / "medrec"))
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(place)]) for rank in (0, 1)
    ]
    try:
        assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(place / f"found{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_close(one, other, tolerance):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance, msg=name)


def numbers(rows):
    times = ("seconds", "molecules_per_s", "waited_s")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def assert_same_numbers(rows, others):
    assert len(rows) == len(others)
    for one, other in zip(numbers(rows), numbers(others), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("name", ["one step", "cut"])
def test_two_workers_with_32_have_the_gradients_of_one_with_64(found, scenarios, alone, name):
    notes, _, model = alone(scenarios["one step"])
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert max(float(g.abs().max()) for g in gradients.values()) > 0.1
    for worker in found:
        assert_close(gradients, worker[name]["gradients"], 1e-6)
        assert_same_numbers(worker[name]["rows"], notes.rows)
        assert sum(map(len, worker[name]["seen"])) == 32
    if name == "cut":
        # the two workers need not have equally many parts
        assert min(len(worker[name]["seen"]) for worker in found) > 2


def test_each_molecule_is_seen_by_one_worker_in_an_epoch(found):
    both = [row for worker in found for part in worker["one step"]["seen"] for row in part]
    assert sorted(both) == list(range(64))


def test_an_empty_share_takes_part(found, scenarios, alone):
    """Nine molecules in batches of four: some step has one molecule for two workers."""
    notes, state, _ = alone(scenarios["uneven"])
    for epoch in range(2):
        seen = [found[rank]["uneven"]["seen"][3 * epoch : 3 * epoch + 3] for rank in (0, 1)]
        alone_in_step = [one for one, other in zip(*seen, strict=True) if one == other]
        assert [len(rows) for rows in alone_in_step] == [1]  # the second worker's stand-in
    for worker in found:
        assert_same_numbers(worker["uneven"]["rows"], notes.rows)
        assert_close(state["model"], worker["uneven"]["state"]["model"], 1e-5)


def test_a_run_goes_on_with_another_number_of_workers(found, scenarios, alone):
    """One worker, then two from the middle of its second epoch: the curve of one."""
    notes, state, _ = alone({"config": LONG, "rows": scenarios["resumed"]["rows"]})
    resume = scenarios["resumed"]["resume"]
    assert (resume["epoch"], resume["step"]) == (1, 2)
    for worker in found:
        assert_same_numbers(worker["resumed"]["rows"], notes.rows[1:])
        assert_close(state["model"], worker["resumed"]["state"]["model"], 1e-5)
        assert_close(state["best"], worker["resumed"]["state"]["best"], 1e-5)


def test_and_back_to_one(found, scenarios, alone, toy, library):
    """A checkpoint of two workers, wanted by the second alone, holds the sums of both."""
    notes, _, _ = alone({"config": LONG, "rows": scenarios["wanted"]["rows"]})
    for worker in found:
        places = [(state["epoch"], state["step"]) for state in worker["wanted"]["saved"]]
        assert places == [(1, 1)]  # seven steps and one more question at the end of an epoch
        assert_same_numbers(worker["wanted"]["rows"], notes.rows)
    state = found[0]["wanted"]["saved"][0]
    assert state["sums"]["molecules"] == 10
    rest = toy.Notes()
    problem = toy.toy_problem(library, np.arange(64))
    fit(problem, FitConfig.model_validate(LONG), reporter=rest, resume=state)
    assert_same_numbers(rest.rows, notes.rows[1:])


def test_a_number_that_is_not_finite_on_one_worker_stops_both(found):
    messages = {worker["broken"]["error"] for worker in found}
    assert len(messages) == 1
    assert "loss term pair is not finite in epoch 1" in messages.pop()


def test_validation_of_the_first_worker_decides_for_both(found):
    for worker in found:
        assert [row["mae"] for row in worker["patience"]["rows"]] == [3.0, 1.0, 2.0, 2.0]
        assert worker["patience"]["state"]["best_epoch"] == 1
    assert_close(found[0]["patience"]["state"]["best"], found[1]["patience"]["state"]["best"], 0.0)
