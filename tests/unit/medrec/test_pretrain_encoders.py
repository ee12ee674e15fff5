"""Encoders over padded batches: the same network as on edge lists, invariances, single views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch_geometric.nn import GINEConv
from torch_geometric.nn.models.schnet import InteractionBlock

from medrec.config_molecules import MoleculeEncoderConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.batches import MoleculeBatch
from medrec.library.loader import collate
from medrec.pretrain.encoder import MoleculeEncoder
from medrec.pretrain.encoders import build_encoder
from quantum.base import InputError

CASES = [
    ("molinteract", "both"),
    ("molinteract", "2d"),
    ("molinteract", "3d"),
    ("two_towers", "both"),
    ("two_towers", "2d"),
    ("gine", "2d"),
    ("schnet", "3d"),
    ("visnet", "3d"),
]
SMILES = ("CC(=O)Nc1ccc(O)cc1", "[K+]", "C[C@H](N)C(=O)O", "[Na+].OC(=O)c1ccccc1", "C", "F/C=C/F")


@pytest.fixture(scope="module")
def batch(
    write_library: Callable[..., MoleculeLibrary], tmp_path_factory: pytest.TempPathFactory
) -> MoleculeBatch:
    """A ring, single atoms, a mixture; the acid has no positions."""
    library = write_library(tmp_path_factory.mktemp("library") / "few", SMILES)
    found = collate(library, np.arange(len(SMILES)))
    placed = found.placed.clone()
    placed[2] = False
    # the parts of the mixture lie upon each other in the library
    moved = found.position.clone()
    moved[3, 0] += 2.5
    return replace(found, position=moved * placed[:, None, None], placed=placed)


def encoder(kind: str, modality: Any, d: int = 16, layers: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    config = MoleculeEncoderConfig(kind=kind, d_model=d, layers=layers, **options)
    return build_encoder(config, modality).eval()


def run(model: MoleculeEncoder, batch: MoleculeBatch) -> Tensor:
    return model.pooled(model(batch), batch)


def spread(batch: MoleculeBatch, slots: int, order: Tensor) -> MoleculeBatch:
    """Put atom i of every molecule into slot ``order[i]`` of ``slots``."""
    n_old = batch.n_slots

    def wide(values: Tensor) -> Tensor:
        out = values.new_zeros(len(values), slots, *values.shape[2:])
        out[:, order] = values
        return out

    flat = batch.edge_index
    return replace(
        batch,
        x=wide(batch.x),
        mask=wide(batch.mask),
        position=wide(batch.position),
        edge_index=flat // n_old * slots + order[flat % n_old],
    )


# --------------------------------------------------------------------------- references


def gine_reference(model: Any, batch: MoleculeBatch) -> Tensor:
    """The 2D tower with PyTorch Geometric's layer, over all slots (N, d)."""
    z = model.atoms(batch.x.flatten(0, 1))
    for layer in model.layers:
        conv = GINEConv(nn.Identity(), train_eps=True)
        conv.nn, conv.eps = layer.flat.mlp, layer.flat.eps
        z = z + conv(z, batch.edge_index, layer.flat.bonds(batch.edge_attr))
    return z


def schnet_reference(model: Any, batch: MoleculeBatch) -> Tensor:
    """The 3D tower with PyTorch Geometric's layer; without a cut-off it has no envelope."""
    z = model.elements(batch.x[..., :1].flatten(0, 1))
    placed = (batch.placed[:, None] & batch.mask).flatten().unsqueeze(1)
    index, distance = edges(batch)
    gaussians = torch.exp(-0.5 * ((distance[:, None] - torch.linspace(0, 10, 51)) / 0.2) ** 2)
    for layer in model.layers:
        block, ours = InteractionBlock(16, 51, 128, torch.inf), layer.spatial
        block.conv.lin1, block.conv.lin2, block.lin = ours.enter, ours.leave[0], ours.leave[2]
        block.conv.nn = block.mlp = ours.filters
        z = torch.where(placed, z + block(z, index, distance, gaussians), z)
    return z


def edges(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
    """Pairs within 10 Angstrom by a loop over molecules, distances rounded to 0.001."""
    index, distance = [], []
    for b in range(batch.n_molecules):
        for i in range(batch.n_slots):
            for j in range(batch.n_slots):
                if i == j or not (batch.placed[b] and batch.mask[b, i] and batch.mask[b, j]):
                    continue
                gap = np.linalg.norm((batch.position[b, i] - batch.position[b, j]).double().numpy())
                if gap < 10.0:
                    index.append((b * batch.n_slots + j, b * batch.n_slots + i))
                    distance.append(round(gap, 3))
    return torch.tensor(index).T, torch.tensor(distance, dtype=torch.float32)


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("kind", "modality", "reference"),
    [("gine", "2d", gine_reference), ("schnet", "3d", schnet_reference)],
)
def test_a_tower_is_that_of_pytorch_geometric(
    batch: MoleculeBatch, kind: str, modality: str, reference: Callable[..., Tensor]
) -> None:
    model = encoder(kind, modality)
    states = model(batch)
    ours = (states.flat if kind == "gine" else states.spatial)[batch.mask]
    theirs = reference(model, batch)[batch.mask.flatten()]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(ours)
    if kind == "schnet":  # without positions nothing is trained
        weight = weight * batch.placed.repeat_interleave(batch.mask.sum(1)).unsqueeze(1)
    expected = gradients(model, (theirs * weight).sum())
    for name, found in gradients(model, (ours * weight).sum()).items():
        torch.testing.assert_close(found, expected[name], atol=2e-5, rtol=1e-4, msg=name)


def test_far_atoms_do_not_see_each_other(batch: MoleculeBatch) -> None:
    model = encoder("schnet", "3d", layers=1)
    near, far = batch.position.clone(), batch.position.clone()
    near[3, 0], far[3, 0] = batch.position[3, 1] + 2.0, batch.position[3, 1] + 200.0
    farther = far.clone()
    farther[3, 0] += 50.0
    states = [model(replace(batch, position=p)).spatial[3, 0] for p in (near, far, farther)]
    assert torch.equal(states[1], states[2])
    assert not torch.allclose(states[0], states[1], atol=1e-3)


def test_two_towers_are_one_and_the_other(batch: MoleculeBatch) -> None:
    both = encoder("two_towers", "both")
    states = both(batch)
    for kind, modality, expected in (
        ("gine", "2d", states.flat),
        ("schnet", "3d", states.spatial),
        ("two_towers", "2d", states.flat),
        ("two_towers", "3d", states.spatial),
    ):
        alone = encoder(kind, modality)
        torch.nn.init.zeros_(next(alone.parameters()))
        alone.load_pretrained(both.export())
        found = next(view for view in alone(batch) if view is not None)
        torch.testing.assert_close(found[batch.mask], expected[batch.mask])
    pooled = both.pooled(states, batch)
    assert pooled.shape == (len(SMILES), both.d_pooled)
    atoms = states.flat[0, batch.mask[0]].mean(dim=0)
    torch.testing.assert_close(pooled[0, :16], atoms)


# --------------------------------------------------------------------------- all encoders


@pytest.mark.parametrize(("kind", "modality"), CASES)
def test_empty_slots_and_the_order_of_atoms_change_nothing(
    batch: MoleculeBatch, kind: str, modality: str
) -> None:
    model = encoder(kind, modality)
    order = torch.randperm(batch.n_slots + 5, generator=torch.manual_seed(3))[: batch.n_slots]
    other = spread(batch, batch.n_slots + 5, order)
    for ours, theirs in zip(model(batch), model(other), strict=True):
        if ours is not None:
            real = ours[batch.mask]
            torch.testing.assert_close(real, theirs[:, order][batch.mask], atol=1e-5, rtol=1e-5)
    one, two = gradients(model, run(model, batch).square().sum()), None
    two = gradients(model, run(model, other).square().sum())
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("kind", "modality"), CASES)
def test_rotation_translation_and_reflection_change_nothing(
    batch: MoleculeBatch, kind: str, modality: str
) -> None:
    model = encoder(kind, modality)
    turn = torch.tensor(-Rotation.random(random_state=1).as_matrix(), dtype=torch.float32)
    moved = replace(batch, position=batch.position @ turn.T + torch.tensor([3.0, -7.0, 11.0]))
    stretched = replace(batch, position=batch.position * 1.1)
    with torch.no_grad():
        here = run(model, batch)
        # a distance may fall into the next 0.001 Angstrom
        torch.testing.assert_close(run(model, moved), here, atol=1e-4, rtol=1e-3)
        same = torch.allclose(run(model, stretched), here, atol=1e-3)
    assert same == (modality == "2d")


@pytest.mark.parametrize(("kind", "modality"), CASES)
def test_molecules_do_not_see_each_other(batch: MoleculeBatch, kind: str, modality: str) -> None:
    model = encoder(kind, modality)
    x, position = batch.x.clone(), batch.position.clone()
    x[0, :, 0], position[0] = 7, position[0] * 1.3
    changed = replace(batch, x=torch.where(batch.mask.unsqueeze(2), x, 0), position=position)
    with torch.no_grad():
        one, two = run(model, batch), run(model, changed)
    torch.testing.assert_close(one[1:], two[1:], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(one[0], two[0], atol=1e-3)


@pytest.mark.parametrize(("kind", "modality"), CASES)
def test_every_weight_that_asks_for_gradients_gets_them(
    batch: MoleculeBatch, kind: str, modality: str
) -> None:
    model = encoder(kind, modality)
    run(model, batch).square().sum().backward()
    asking = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # ViSNet's first layer has no vectors yet
    first = {n for n, _ in asking if "vis_mp_layers.0" in n and ("vec_p" in n or "w_" in n)}
    first |= {n for n, _ in asking if "vis_mp_layers.0.f_proj" in n}
    assert [n for n, p in asking if n not in first and (p.grad is None or not p.grad.any())] == []
    # distributed training needs them to take part even where there is nothing to learn from
    nowhere = replace(batch, placed=torch.zeros_like(batch.placed))
    for poor in (nowhere, none_of(batch)):
        model.zero_grad()
        run(model, poor).square().sum().backward()
        assert [name for name, p in asking if p.grad is None] == []


def none_of(batch: MoleculeBatch) -> MoleculeBatch:
    """No molecules, one slot."""
    return MoleculeBatch(
        batch.x[:0, :1],
        batch.mask[:0, :1],
        batch.position[:0, :1],
        batch.placed[:0],
        batch.edge_index[:, :0],
        batch.edge_attr[:0],
        batch.angle[:0],
        batch.torsion[:0],
        batch.spd[:0, :1, :1],
        batch.centrality[:0, :1],
        batch.targets[:0],
        batch.rows[:0],
    )


@pytest.mark.parametrize(("kind", "modality"), CASES)
def test_bfloat16_products_are_near(batch: MoleculeBatch, kind: str, modality: str) -> None:
    model = encoder(kind, modality, d=32, layers=4)
    exact = run(model, batch)
    wanted = gradients(model, exact.square().sum())
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(model, batch)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.02 * exact.norm()
    found = gradients(model, rough.square().sum())
    gap = torch.cat([(found[name] - value).flatten() for name, value in wanted.items()])
    assert gap.norm() < 0.05 * torch.cat([v.flatten() for v in wanted.values()]).norm()


@pytest.mark.parametrize(("kind", "modality"), CASES)
def test_an_export_is_taken_whole(batch: MoleculeBatch, kind: str, modality: str, tmp_path) -> None:
    source = encoder(kind, modality)
    torch.save(source.export(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.manual_seed(9)
    model = build_encoder(source.config, modality).eval()
    assert not torch.allclose(run(model, batch), run(source, batch), atol=1e-3)
    model.load_pretrained(state)
    assert torch.equal(run(model, batch), run(source, batch))
    with pytest.raises(InputError, match=r"'d_model': 16.*'d_model': 8"):
        encoder(kind, modality, d=8).load_pretrained(state)
    with pytest.raises(InputError, match="holds"):
        model.load_pretrained({"other": {}})


def test_a_lacking_tower_is_named() -> None:
    state = encoder("two_towers", "2d").export()
    with pytest.raises(InputError, match="lacks"):
        encoder("schnet", "3d").load_pretrained(state)


@pytest.mark.parametrize(("kind", "modality"), [("two_towers", "both"), ("molinteract", "both")])
def test_jumping_knowledge_reads_all_layers(batch: MoleculeBatch, kind: str, modality: str) -> None:
    deep = {jk: encoder(kind, modality, layers=3, jk=jk) for jk in ("last", "mean", "sum")}
    weights = deep["last"].state_dict()
    found = {}
    for jk, model in deep.items():
        model.load_state_dict(weights)
        found[jk] = run(model, batch)
    # a shallower network has the first layers' states
    ends = [found["last"]]
    for layers in (1, 2):
        shallow = encoder(kind, modality, layers=layers)
        shallow.load_state_dict({k: v for k, v in weights.items() if k in shallow.state_dict()})
        ends.append(run(shallow, batch))
    total = torch.stack(ends).sum(dim=0)
    torch.testing.assert_close(found["sum"], total, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["mean"], total / 3, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "modality"), [("molinteract", "both"), ("gine", "2d"), ("schnet", "3d")]
)
def test_dropout_acts_in_training_alone(batch: MoleculeBatch, kind: str, modality: str) -> None:
    model, plain = encoder(kind, modality, dropout=0.5), encoder(kind, modality)
    assert torch.equal(run(model, batch), run(plain, batch))
    model.train()
    assert not torch.allclose(run(model, batch), run(plain, batch), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "modality"),
    [("gine", "both"), ("gine", "3d"), ("schnet", "2d"), ("visnet", "both"), ("visnet", "2d")],
)
def test_views_that_an_encoder_cannot_read_are_refused(kind: str, modality: str) -> None:
    with pytest.raises(InputError, match=f"{kind} cannot read modality {modality}"):
        encoder(kind, modality)
