"""Contrastive pre-training: formulas, molecules left out, one worker against two."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from medrec.config_molecules import ContrastiveTaskConfig, MoleculeEncoderConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.loader import collate
from medrec.pretrain.bimodal import contrastive_loss, retrieval_accuracy
from medrec.pretrain.encoder import AtomStates, MoleculeEncoder
from medrec.pretrain.tasks_contrast import ContrastiveTask, found_first, nt_xent_rows

WIDTH, N_ATOMS = 6, 12


class FreeStates(MoleculeEncoder):
    """States that are parameters of their own for every atom of the library."""

    def __init__(self, n_molecules: int = 16) -> None:
        super().__init__()
        self.config, self.modality = MoleculeEncoderConfig(d_model=WIDTH), "both"
        self.d_pooled = 2 * WIDTH
        generator = torch.Generator().manual_seed(3)
        shape = (n_molecules, N_ATOMS, WIDTH)
        self.flat = nn.Parameter(torch.randn(shape, generator=generator))
        self.spatial = nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, batch):
        return AtomStates(*(x[batch.rows][:, : batch.n_slots] for x in (self.flat, self.spatial)))

    def pooled(self, states, batch):
        mask = batch.mask.unsqueeze(2).float()
        n_atoms = mask.sum(dim=1)
        return torch.cat([(side * mask).sum(dim=1) / n_atoms for side in states], dim=1)

    def export(self):
        return {"free": {}}

    def load_pretrained(self, state):
        raise NotImplementedError


def batch_of(library, rows, unplaced=()):
    batch = collate(library, np.array(rows, dtype=np.int64))
    return replace(batch, placed=torch.tensor([row not in unplaced for row in rows]).bool())


def task_of(**options) -> ContrastiveTask:
    torch.manual_seed(0)
    return ContrastiveTask(FreeStates(), ContrastiveTaskConfig(d_projection=5, **options))


def projected(task, batch) -> tuple[torch.Tensor, torch.Tensor]:
    flat, spatial = task.encoder.pooled(task.encoder(batch), batch).split(WIDTH, dim=1)
    return task.project_flat(flat).detach(), task.project_spatial(spatial).detach()


ROWS = (4, 0, 11, 7, 5)


@pytest.fixture(scope="module")
def library(small_library) -> MoleculeLibrary:
    return small_library


def test_nt_xent_is_the_form_without_the_positive(library):
    batch, task = batch_of(library, ROWS), task_of(loss="nt_xent", temperature=0.3)
    flat, spatial = projected(task, batch)
    expected = 5 * contrastive_loss(flat, spatial, 0.3, symmetric=False)
    assert task(batch, 0).tolist() == [pytest.approx(float(expected), rel=1e-5)]
    other_way = 5 * contrastive_loss(spatial, flat, 0.3, symmetric=False)
    assert float(expected) != pytest.approx(float(other_way), rel=1e-2)


def test_infonce_is_a_cross_entropy_over_all_candidates(library):
    batch, task = batch_of(library, ROWS), task_of(loss="infonce", temperature=0.3)
    flat, spatial = projected(task, batch)
    logits = F.normalize(flat, dim=1) @ F.normalize(spatial, dim=1).T / 0.3
    expected = F.cross_entropy(logits, torch.arange(5), reduction="sum")
    assert task(batch, 0).tolist() == [pytest.approx(float(expected), rel=1e-5)]


def test_the_loss_of_one_row_by_hand():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.5, -1.0, 3.0]])
    own, present = torch.tensor([1, 0]), torch.tensor([True, True, False])
    without = nt_xent_rows(logits, own, present, keep_positive=False)
    torch.testing.assert_close(without, torch.tensor([1.0 - 2.0, -1.0 - 0.5]))
    with_own = nt_xent_rows(logits, own, present, keep_positive=True)
    expected = torch.tensor([1.0, 2.0]).logsumexp(0) - 2.0
    torch.testing.assert_close(with_own[0], expected)


@pytest.mark.parametrize("loss", ["infonce", "nt_xent"])
def test_molecules_without_positions_neither_look_nor_are_found(library, loss):
    task = task_of(loss=loss)
    partly = batch_of(library, ROWS, unplaced=(0, 5))
    rest = batch_of(library, (4, 11, 7))
    assert task.counts(partly, 0).tolist() == [3.0]
    torch.testing.assert_close(task(partly, 0), task(rest, 0))
    assert task.facts(partly, 0)["retrieval_accuracy"][1] == 3.0
    task(partly, 0).sum().backward()
    for states in (task.encoder.flat, task.encoder.spatial):
        assert not states.grad[[0, 5]].any()
        assert states.grad[4].any()


@pytest.mark.parametrize("loss", ["infonce", "nt_xent"])
@pytest.mark.parametrize(
    ("rows", "unplaced"), [((4,), ()), ((4, 0), (0,)), ((4, 0), (0, 4)), ((), ())]
)
def test_a_lone_molecule_has_no_loss(library, loss, rows, unplaced):
    task = task_of(loss=loss)
    batch = batch_of(library, rows, unplaced)
    sums = task(batch, 0)
    assert sums.tolist() == [0.0]
    sums.sum().backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name  # and so no NaN
    assert task.facts(batch, 0)["retrieval_accuracy"] == (0.0, 0.0)


def test_identical_views_are_found_and_the_facts_count_them(library):
    task = task_of()
    batch = batch_of(library, ROWS)
    task(batch, 0)
    share = retrieval_accuracy(*projected(task, batch))
    assert task.facts(batch, 0)["retrieval_accuracy"] == (pytest.approx(5 * share), 5.0)
    assert share < 0.7
    task.project_spatial.load_state_dict(task.project_flat.state_dict())
    task.encoder.spatial.data.copy_(task.encoder.flat.data)
    task(batch, 0)
    assert task.facts(batch, 0)["retrieval_accuracy"] == (5.0, 5.0)


def test_a_sharper_temperature_changes_the_loss(library):
    batch = batch_of(library, ROWS)
    sharp, mild = (float(task_of(temperature=t)(batch, 0).detach()) for t in (0.05, 1.0))
    assert abs(sharp - mild) > 0.5


def test_training_brings_the_views_together(library):
    task, batch = task_of(), batch_of(library, ROWS)
    optimiser = torch.optim.Adam(task.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        task(batch, 0).sum().backward()
        optimiser.step()
    task(batch, 0)
    assert task.facts(batch, 0)["retrieval_accuracy"] == (5.0, 5.0)


def test_the_loss_is_float32_under_autocast(library):
    batch, task = batch_of(library, ROWS), task_of()
    plain = task(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = task(batch, 0)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(plain, mixed, rtol=5e-2, atol=0.1)


def test_the_engine_may_not_cut_a_batch():
    assert not task_of().separable


def test_equal_vectors_find_nothing():
    own, present = torch.arange(3), torch.ones(3, dtype=torch.bool)
    assert found_first(torch.ones(3, 3), own, present).tolist() == [False] * 3
    similarity = torch.tensor([[0.9, 0.1, 1.0], [0.2, 0.5, 0.6], [0.3, 0.3, 0.8]])
    assert found_first(similarity, own, present).tolist() == [False, False, True]
    present[2] = False
    assert found_first(similarity, own, present).tolist() == [True, True, True]


# two workers' molecules: 3 and 2, one of them without positions; 1 and none; 2 and none
SHARES = ((ROWS[0::2], ROWS[1::2]), ((4,), ()), ((4, 0), ()))


def numbers_of(library, shares, rank: int, world: int) -> list[list[float]]:
    """Sums, facts and norms of gradients as the engine makes them, of all workers."""
    lines = []
    for loss, parts in product(("infonce", "nt_xent"), shares):
        task = task_of(loss=loss)
        wrapped = DistributedDataParallel(task) if world > 1 else task
        batch = batch_of(library, parts[rank], unplaced=(11,))
        total = task.counts(batch, 0)
        value = wrapped(batch, 0)
        if world > 1:
            distributed.all_reduce(total)
        (value.sum() * world / total.clamp(min=1)).sum().backward()
        seen = torch.stack(
            [value[0].detach(), *torch.tensor(task.facts(batch, 0)["retrieval_accuracy"])]
        )
        if world > 1:
            distributed.all_reduce(seen)
        sizes = [float(p.grad.double().norm()) for p in task.parameters()]
        lines.append([*total.tolist(), *seen.tolist(), *sizes])
        if rank == 0:  # on its own: it would wait for ever if it gathered
            with torch.no_grad():
                lines.append([float(task.eval()(batch_of(library, ROWS), 0))])
    return lines


WORKER = """
import json, sys
from pathlib import Path
from torch import distributed
sys.path.insert(0, {folder!r})
from test_tasks_contrast import SHARES, numbers_of
from medrec.library.arrays import MoleculeLibrary
rank, place = int(sys.argv[1]), "file://" + sys.argv[2]
distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
print(json.dumps(numbers_of(MoleculeLibrary.load(Path(sys.argv[3])), SHARES, rank, 2)))
distributed.destroy_process_group()
"""


def test_two_workers_have_the_sums_and_gradients_of_one(library, tmp_path, root):
    code = WORKER.format(folder=str(root / "tests" / "unit" / "medrec"))
    place = [str(tmp_path / "rendezvous"), str(library.folder)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), *place], stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    one = numbers_of(library, [[(*mine, *others)] for mine, others in SHARES], 0, 1)
    first, second = (json.loads(worker.communicate(timeout=100)[0]) for worker in workers)
    assert first == [pytest.approx(line, rel=1e-4, abs=1e-6) for line in one]
    assert second == [pytest.approx(line, rel=1e-4, abs=1e-6) for line in one[::2]]
    assert one[0][0] == 4
    assert one[0][1] != 0
    assert min(one[0][4:]) > 0
