"""Problems of pre-training tasks: seeds, molecules that are used, validation, real encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medrec.config_molecules import ALL_TERMS, MoleculePretrainConfig, PredictTaskConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.loader import collate
from medrec.pretrain import tasks
from medrec.pretrain.problem import LossModel
from medrec.pretrain.tasks import build_task, pretrain_problem
from quantum.base import InputError

TASKS = {
    "predict": {"kind": "molinteract"},
    "contrastive": {"kind": "two_towers"},
    "masking": {"kind": "schnet"},
}


@pytest.fixture(scope="module")
def library(task_library) -> MoleculeLibrary:
    return task_library


def batch_of(library, *rows: int):
    return collate(library, np.array(rows, dtype=np.int64))


def config_of(task: str = "predict", encoder: dict | None = None, **options):
    sizes = {"d_model": 8, "layers": 1}
    return MoleculePretrainConfig.model_validate(
        {
            "name": "small",
            "encoder": {**TASKS[task], **(encoder or {}), **sizes},
            "task": {"kind": task},
            **options,
        }
    )


@pytest.mark.parametrize("task", list(TASKS))
def test_a_task_is_drawn_with_its_own_seed(task):
    before = torch.random.get_rng_state()
    one, same = build_task(config_of(task)), build_task(config_of(task))
    assert torch.equal(torch.random.get_rng_state(), before)
    other = build_task(config_of(task, fit={"seed": 7}))
    assert isinstance(one, LossModel)
    weights = one.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in same.state_dict().items())
    assert not all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())


def test_only_training_molecules_with_positions_are_used(
    library, write_library, task_smiles, tmp_path
):
    copy = write_library(tmp_path / "partly", task_smiles)
    placed = np.ones(len(task_smiles), dtype=bool)
    placed[[2, 5]] = False
    np.save(copy.folder / "placed.npy", placed)
    partly = MoleculeLibrary.load(copy.folder)
    assert pretrain_problem(config_of(), library).rows.tolist() == list(range(10))
    for task in TASKS:
        rows = pretrain_problem(config_of(task), partly).rows
        assert rows.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    gine = config_of("masking", encoder={"kind": "gine"})
    assert pretrain_problem(gine, partly).rows.tolist() == list(range(10))


def test_a_limit_takes_a_random_part_that_grows(library):
    four, six = (pretrain_problem(config_of(limit=n), library).rows.tolist() for n in (4, 6))
    assert len(four) == 4
    assert set(four) < set(six)
    assert four == sorted(four) != list(range(4))
    other = pretrain_problem(config_of(limit=4, fit={"seed": 1}), library).rows.tolist()
    assert other != four


def test_a_library_without_positions_is_refused(write_library, task_smiles, tmp_path):
    flat = write_library(tmp_path / "flat", task_smiles, conformers=False)
    for task in TASKS:
        with pytest.raises(InputError, match=rf"library flat has no 3D coord.*task {task} of"):
            pretrain_problem(config_of(task), flat)
    gine = pretrain_problem(config_of("masking", encoder={"kind": "gine"}), flat)
    assert len(gine.rows) == 10


def test_one_molecule_is_too_few(library):
    with pytest.raises(InputError, match=r"library tasks leaves 1 molecules with 3D .*at least 2"):
        pretrain_problem(config_of(limit=1), library)


@pytest.mark.parametrize("task", list(TASKS))
def test_validation_is_the_loss_of_held_out_molecules(library, task):
    split = {"kind": "random", "train": 0.5, "valid": 0.5, "seed": 3}
    config = config_of(task, split=split, fit={"batch_size": 64})
    problem = pretrain_problem(config, library)
    held_out = sorted(set(range(10)) - set(problem.rows.tolist()))
    assert len(problem.rows) == len(held_out) == 5
    assert problem.score_name == "valid_loss"
    assert problem.score_mode == "min"
    problem.model.train()
    found = problem.validate(problem.model, "cpu")
    assert problem.model.training
    assert problem.validate(problem.model, "cpu") == found
    batch = batch_of(library, *held_out)
    with torch.no_grad():
        model = problem.model.eval()
        means = model(batch, 0) / model.counts(batch, 0)
    assert found["valid_loss"] == pytest.approx(float(means.sum()), rel=1e-4)
    for term, mean in zip(model.terms, means.tolist(), strict=True):
        assert found[f"valid_loss_{term}"] == pytest.approx(mean, rel=1e-4)
    for name, (total, n) in model.facts(batch, 0).items():
        assert found[f"valid_{name}"] == pytest.approx(total / n, rel=1e-4)


def test_without_a_validation_part_nothing_is_validated(library):
    problem = pretrain_problem(config_of(), library)
    assert problem.validate is None
    assert problem.score_name is None


def test_validation_without_items_is_no_perfect_score(write_library, tmp_path):
    atoms = write_library(tmp_path / "atoms", ("C", "O", "N", "[Na+]", "S", "CCO"))
    split = {"kind": "random", "train": 4, "valid": 2, "seed": 0}
    problem = pretrain_problem(config_of(split=split), atoms)
    assert 5 in problem.rows
    with pytest.raises(InputError, match=r"none of 2 validation molecules of library atoms"):
        problem.validate(problem.model, "cpu")
    split = {"kind": "random", "train": 5, "valid": 0.17}
    assert pretrain_problem(config_of(split=split), atoms).validate is None


@pytest.mark.parametrize(("task", "parts"), [("predict", (2, 9)), ("contrastive", (1, 1))])
def test_validation_is_cut_to_what_fits(library, monkeypatch, task, parts):
    """Unless molecules are compared; never in training mode, in which workers wait for others."""
    split = {"kind": "random", "train": 0.3, "valid": 0.7}
    problem = pretrain_problem(config_of(task, split=split), library)
    whole = problem.validate(problem.model, "cpu")
    modes, forward = [], problem.model.forward
    monkeypatch.setattr(tasks, "pairs_that_fit", lambda device: 200)
    monkeypatch.setattr(
        problem.model, "forward", lambda *x: modes.append(problem.model.training) or forward(*x)
    )
    assert problem.validate(problem.model.train(), "cpu") == pytest.approx(whole, rel=1e-4)
    assert parts[0] <= len(modes) <= parts[1]
    assert not any(modes)


@pytest.mark.parametrize("terms", [ALL_TERMS, ("distance", "spd")])
def test_the_real_encoder_learns_all_terms(library, terms):
    config = config_of(encoder={"d_model": 16, "layers": 2}).model_copy(
        update={"task": PredictTaskConfig(terms=terms)}
    )
    task, batch = build_task(config), batch_of(library, *range(10))
    optimiser = torch.optim.Adam(task.parameters(), lr=0.01)
    rows = []
    for _ in range(60):
        optimiser.zero_grad()
        means = task(batch, 0) / task.counts(batch, 0)
        means.sum().backward()
        optimiser.step()
        rows.append(means.detach())
    assert task.terms == terms
    assert (rows[-1] < 0.8 * rows[0]).all(), (rows[0], rows[-1])
    assert set(task.export()) == {"interact"}


def test_the_real_encoder_gives_the_same_in_any_batch(library):
    task = build_task(config_of()).eval()
    rows = [0, 5, 8, 2, 7]
    with torch.no_grad():
        together = task(batch_of(library, *rows), 1)
        alone = sum(task(batch_of(library, row), 1) for row in rows)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
