"""ViSNet on padded batches: neighbours, PyTorch Geometric's own forward, impossible sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.nn.models.visnet import ViSNetBlock

from medrec.config_molecules import MoleculeEncoderConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.batches import MoleculeBatch
from medrec.library.loader import collate
from medrec.pretrain.encoders import build_encoder
from medrec.pretrain.visnet import neighbours
from quantum.base import InputError


@pytest.fixture(scope="module")
def batch(small_library: MoleculeLibrary) -> MoleculeBatch:
    found = collate(small_library, np.arange(len(small_library)))
    placed = found.placed.clone()
    placed[1] = False
    return replace(found, placed=placed)


def encoder(**options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"kind": "visnet", "d_model": 16, "layers": 2, **options}
    return build_encoder(MoleculeEncoderConfig(**settings), "3d").eval()


def plain_neighbours(batch: MoleculeBatch) -> set[tuple[int, int]]:
    found, offset = set(), 0
    for b in range(batch.n_molecules):
        n = int(batch.mask[b].sum())
        xyz = batch.position[b, :n].double().numpy()
        for i in range(n):
            for j in range(n):
                gap = float(np.linalg.norm(xyz[i] - xyz[j]))
                if i == j or (batch.placed[b] and 0 < gap < 5.0):
                    found.add((offset + j, offset + i))
        offset += n
    return found


def test_neighbours_are_all_atoms_within_five_angstrom(batch: MoleculeBatch) -> None:
    pairs = neighbours(batch).T.tolist()
    assert {tuple(pair) for pair in pairs} == plain_neighbours(batch)
    assert len(pairs) == len(plain_neighbours(batch))


def test_one_molecule_after_another_gives_the_same_states(batch: MoleculeBatch) -> None:
    model = encoder()
    with torch.no_grad():
        states = model(batch).spatial
        assert states.isfinite().all()
        assert not states[~batch.mask].any()
        for b in (0, 2, 11):
            n = int(batch.mask[b].sum())
            block = ViSNetBlock(
                num_heads=8, num_layers=2, hidden_channels=16, max_z=119, cutoff=5.0
            )
            block.distance = _Loop()
            block.load_state_dict(model.block.state_dict())
            alone, _ = block(
                batch.x[b, :n, 0], batch.position[b, :n], torch.zeros(n, dtype=torch.long)
            )
            torch.testing.assert_close(states[b, :n], alone, atol=1e-5, rtol=1e-4)


class _Loop(torch.nn.Module):
    """Neighbours of one molecule by a loop, as PyTorch Geometric's module returns them."""

    def forward(self, position: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gap = torch.cdist(position, position)
        pairs = [(j, i) for i in range(len(gap)) for j in range(len(gap)) if gap[i, j] < 5.0]
        index = torch.tensor(pairs).T
        vectors = position[index[0]] - position[index[1]]
        return index, vectors.norm(dim=1), vectors


def test_atoms_at_one_place_are_survived(batch: MoleculeBatch) -> None:
    model = encoder()
    same = replace(batch, position=torch.zeros_like(batch.position))
    with torch.no_grad():
        assert model(same).spatial.isfinite().all()
    model.pooled(model(same), same).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"d_model": 300}, "multiple of 8"),
        ({"dropout": 0.1}, "dropout 0.1"),
        ({"jk": "mean"}, "jk mean"),
    ],
)
def test_what_visnet_has_not_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        encoder(**options)
