"""Attribute masking: which atoms are hidden, what the encoder sees, what is asked."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medrec.config_molecules import MaskingTaskConfig, MoleculeEncoderConfig, MoleculePretrainConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.loader import collate
from medrec.pretrain.encoder import AtomStates, MoleculeEncoder
from medrec.pretrain.tasks import build_task
from medrec.pretrain.tasks_mask import MaskingTask, hidden_atoms

WIDTH = 6
ROWS = (11, 6, 0, 12, 15, 7)  # methane is 6, sodium chloride 12


class Seen(MoleculeEncoder):
    """Embeds all categories of an atom and remembers its batches."""

    def __init__(self, modality) -> None:
        super().__init__()
        self.config, self.modality, self.d_pooled = (
            MoleculeEncoderConfig(d_model=WIDTH),
            modality,
            0,
        )
        self.table = nn.Linear(9, WIDTH)
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch)
        states = self.table(batch.x.float())
        return AtomStates(*((states, None) if self.modality == "2d" else (None, states)))

    def pooled(self, states, batch):
        raise NotImplementedError

    def export(self):
        return {"seen": {}}

    def load_pretrained(self, state):
        raise NotImplementedError


@pytest.fixture(scope="module")
def library(small_library) -> MoleculeLibrary:
    return small_library


def batch_of(library, *rows: int):
    return collate(library, np.array(rows, dtype=np.int64))


def task_of(modality: str = "2d", share: float = 0.3) -> MaskingTask:
    torch.manual_seed(0)
    return MaskingTask(Seen(modality), MaskingTaskConfig(share=share), 5)


def test_only_real_atoms_are_hidden_and_at_least_one_of_each_molecule(library):
    batch = batch_of(library, *ROWS)
    for epoch in range(50):
        hidden = hidden_atoms(batch, epoch, 0.05, 5)
        assert not (hidden & ~batch.mask).any()
        assert (hidden.sum(dim=1) >= 1).all()
        assert hidden[1].sum() == 1
    assert hidden_atoms(batch_of(library), 0, 0.3, 5).shape == (0, 1)


def test_the_share_and_every_atom_are_met(library):
    batch = batch_of(library, 11)  # eleven atoms
    hidden = torch.stack([hidden_atoms(batch, epoch, 0.4, 5)[0] for epoch in range(1000)]).float()
    assert float(hidden.mean()) == pytest.approx(0.4, abs=0.02)
    each = hidden.mean(dim=0)
    assert each.min() > 0.34
    assert each.max() < 0.46
    few = torch.stack([hidden_atoms(batch, epoch, 1e-6, 5)[0] for epoch in range(1000)]).float()
    assert few.sum() == 1000
    assert few.sum(dim=0).min() > 50


def test_neither_batch_nor_padding_changes_what_is_hidden(library):
    together = hidden_atoms(batch_of(library, *ROWS), 3, 0.3, 5)
    for number, row in enumerate(ROWS):
        alone = hidden_atoms(batch_of(library, row), 3, 0.3, 5)[0]
        assert torch.equal(together[number, : len(alone)], alone)
        assert not together[number, len(alone) :].any()
    for epoch, seed in ((4, 5), (3, 6)):
        assert not torch.equal(hidden_atoms(batch_of(library, *ROWS), epoch, 0.3, seed), together)


def test_the_encoder_sees_nothing_of_hidden_atoms_and_all_else(library):
    batch, task = batch_of(library, *ROWS), task_of()
    before = batch.x.clone()
    task(batch, 1)
    (seen,) = task.encoder.batches
    hidden = hidden_atoms(batch, 1, 0.3, 5)
    assert torch.equal(batch.x, before)
    assert not seen.x[hidden].any()
    assert torch.equal(seen.x[~hidden], before[~hidden])
    assert (before[..., 0][batch.mask] > 0).all()  # so 0 says "hidden" and nothing else
    for field in fields(batch):
        if field.name != "x":
            assert getattr(seen, field.name) is getattr(batch, field.name)


@pytest.mark.parametrize("modality", ["2d", "3d"])
def test_the_loss_is_the_cross_entropy_of_hidden_elements(library, modality):
    batch, task = batch_of(library, *ROWS), task_of(modality)
    hidden = hidden_atoms(batch, 1, 0.3, 5)
    seen = batch.x.clone()
    seen[hidden] = 0
    logits = task.head(task.encoder.table(seen.float()))[hidden]
    element = batch.x[..., 0][hidden]
    expected = F.cross_entropy(logits, element, reduction="sum")
    torch.testing.assert_close(task(batch, 1), expected.reshape(1))
    assert task.counts(batch, 1).tolist() == [float(hidden.sum())]
    right = int((logits.argmax(dim=1) == element).sum())
    assert task.facts(batch, 1)["element_accuracy"] == (right, float(hidden.sum()))


def test_facts_count_hits(library):
    batch, task = batch_of(library, *ROWS), task_of(share=0.5)
    nn.init.zeros_(task.head.weight)
    with torch.no_grad():
        task.head.bias.copy_(torch.arange(119) == 6)
    task(batch, 0)
    hidden = hidden_atoms(batch, 0, 0.5, 5)
    carbons = int((batch.x[..., 0][hidden] == 6).sum())
    assert 0 < carbons < int(hidden.sum())
    assert task.facts(batch, 0)["element_accuracy"] == (carbons, float(hidden.sum()))


def test_sums_and_counts_add_up_over_batches(library):
    task = task_of()
    together = batch_of(library, *ROWS)
    alone = [batch_of(library, row) for row in ROWS]
    assert torch.equal(task.counts(together, 2), sum(task.counts(batch, 2) for batch in alone))
    torch.testing.assert_close(task(together, 2), sum(task(batch, 2) for batch in alone))


def test_a_3d_encoder_is_not_asked_about_molecules_without_positions(library):
    batch = batch_of(library, *ROWS)
    batch = replace(batch, placed=torch.tensor([True, True, False, True, True, False]))
    rest = batch_of(library, *(ROWS[i] for i in (0, 1, 3, 4)))
    task = task_of("3d")
    assert torch.equal(task.counts(batch, 0), task.counts(rest, 0))
    torch.testing.assert_close(task(batch, 0), task(rest, 0))
    assert task_of("2d").counts(batch, 0) > task.counts(batch, 0)


def test_no_molecules_have_no_loss_but_gradients(library):
    task = task_of()
    sums = task(batch_of(library), 0)
    assert sums.tolist() == [0.0]
    sums.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in task.parameters())


@pytest.mark.parametrize("kind", ["gine", "schnet"])
def test_real_encoders_learn_the_hidden_elements(library, kind):
    config = MoleculePretrainConfig.model_validate(
        {
            "name": "small",
            "encoder": {"kind": kind, "d_model": 16, "layers": 2},
            "task": {"kind": "masking", "share": 0.3},
        }
    )
    task = build_task(config)
    batch = batch_of(library, *range(16))
    optimiser = torch.optim.Adam(task.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = (task(batch, 0) / task.counts(batch, 0)).sum()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 3
    assert losses[-1] < 0.3
    assert set(task.export()) == {kind}
    # hidden atoms train the row of category 0, which no real atom reads
    table = task.encoder.atoms.table if kind == "gine" else task.encoder.elements.table
    assert table.weight.grad[0].any()
