"""Counter-based random numbers."""

from __future__ import annotations

import torch

from medrec.pretrain.draws import uniforms


def test_numbers_of_a_molecule_do_not_depend_on_its_batch() -> None:
    rows = torch.tensor([7, 123456, 3])
    together = uniforms(42, 3, rows, 50)
    alone = torch.cat([uniforms(42, 3, row.reshape(1), 50) for row in rows])
    assert torch.equal(together, alone)
    assert torch.equal(uniforms(42, 3, rows, 20), together[:, :20])


def test_seed_epoch_and_stream_change_them() -> None:
    rows = torch.arange(20)
    base = uniforms(1, 1, rows, 30)
    for other in (uniforms(2, 1, rows, 30), uniforms(1, 2, rows, 30), uniforms(1, 1, rows, 30, 5)):
        assert not torch.isclose(base, other).all(dim=1).any()
        assert (
            abs(float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])) < 0.1
        )


def test_they_are_uniform() -> None:
    values = uniforms(0, 0, torch.arange(2000), 100)
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values.flatten().float(), bins=20, min=0, max=1)
    expected = values.numel() / 20
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 45  # 99.9th percentile of 19 degrees of freedom is 43.8
    assert abs(float(torch.corrcoef(values.T[:2])[0, 1])) < 0.1
