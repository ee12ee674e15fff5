"""MolInteract over padded batches is MolInteract on edge lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medrec.config_molecules import MoleculeEncoderConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.batches import MoleculeBatch
from medrec.library.loader import collate
from medrec.molecules.encoders_interact import InteractEncoder, PairedMolecules, pair_molecules
from medrec.molecules.geometries import build_geometries
from medrec.molecules.structure import MoleculeGraphs, build_graphs
from medrec.pretrain import dense
from medrec.pretrain.encoders import build_encoder
from medrec.pretrain.molinteract import InteractBlock
from quantum.base import InputError

D, LAYERS = 24, 3
WEIGHTS = {"flat": "mlp.0.weight", "spatial": "enter.weight"}


@pytest.fixture(scope="module")
def batch(small_library: MoleculeLibrary) -> MoleculeBatch:
    """Molecules of 1 to 11 atoms; two have no positions."""
    found = collate(small_library, np.arange(len(small_library)))
    placed = found.placed.clone()
    placed[[1, 5]] = False
    return replace(found, placed=placed, position=found.position * placed[:, None, None])


def encoder(modality: Any = "both", **options: Any) -> Any:
    torch.manual_seed(1)
    config = MoleculeEncoderConfig(kind="molinteract", d_model=D, layers=LAYERS, **options)
    return build_encoder(config, modality).eval()


def edge_lists(batch: MoleculeBatch) -> PairedMolecules:
    """The same molecules as `InteractEncoder` reads them."""
    molecule = torch.nonzero(batch.mask)[:, 0]
    number = (batch.mask.flatten().cumsum(0) - 1)[batch.edge_index]
    x = batch.x[batch.mask]
    graphs = MoleculeGraphs(
        x, number, batch.edge_attr, molecule, batch.n_molecules, build_graphs(["C"]).repetitions
    )
    conformers = [
        (batch.x[b, batch.mask[b], 0].numpy(), batch.position[b, batch.mask[b]].numpy())
        for b in torch.nonzero(batch.placed).flatten().tolist()
    ]
    return pair_molecules(
        graphs, build_geometries(conformers, 4.5) if conformers else None, batch.placed
    )


def plain(weights: dict[str, Tensor]) -> InteractEncoder:
    model = InteractEncoder(D, LAYERS).eval()
    model.load_state_dict(weights)
    return model


def assert_same_network(model: Any, batch: MoleculeBatch) -> None:
    """States and gradients of a dense encoder and of `InteractEncoder` with its weights."""
    reference = plain(model.state_dict())
    states = model(batch)
    pairs = edge_lists(batch)
    expected = dict(zip(("flat", "spatial"), reference(pairs), strict=True))
    loss, wanted = torch.zeros(()), torch.zeros(())
    for name, ours in states._asdict().items():
        theirs = expected[name]
        if ours is None:
            continue
        torch.testing.assert_close(ours[batch.mask], theirs, atol=1e-5, rtol=1e-5)
        weight = torch.randn_like(theirs)
        if name == "spatial":  # states of unplaced atoms are not trained
            weight = weight * pairs.placed.unsqueeze(1)
        loss, wanted = loss + (ours[batch.mask] * weight).sum(), wanted + (theirs * weight).sum()
    loss.backward()
    wanted.backward()
    theirs_by_name = dict(reference.named_parameters())
    for name, p in model.named_parameters():
        other = theirs_by_name[name].grad
        if p.requires_grad:
            torch.testing.assert_close(p.grad, other, atol=2e-5, rtol=1e-4, msg=name)


def test_states_and_gradients_are_those_on_edge_lists(batch: MoleculeBatch) -> None:
    assert_same_network(encoder(), batch)


def test_joined_weights_change_nothing(batch: MoleculeBatch, monkeypatch) -> None:
    everywhere = replace(batch, placed=torch.ones_like(batch.placed))
    joined = []
    plain_join = InteractBlock._joined

    def spy(self: InteractBlock, *args: Any) -> Any:
        joined.append(self)
        return plain_join(self, *args)

    monkeypatch.setattr(InteractBlock, "_joined", spy)
    assert_same_network(encoder(), everywhere)
    assert len(joined) == LAYERS
    assert_same_network(encoder(), batch)
    assert len(joined) == LAYERS
    model = encoder()
    exact = model.pooled(model(everywhere), everywhere)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.pooled(model(everywhere), everywhere)
    assert (rough - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("placed", [True, False])
def test_all_or_no_molecules_have_positions(batch: MoleculeBatch, placed: bool) -> None:
    here = torch.nonzero(batch.placed == placed).flatten()
    everywhere = replace(batch, placed=torch.full_like(batch.placed, placed))
    states = encoder()(everywhere)
    model = plain(encoder().state_dict())
    for ours, theirs in zip(states, model(edge_lists(everywhere)), strict=True):
        torch.testing.assert_close(ours[batch.mask], theirs, atol=1e-5, rtol=1e-5)
    mixed = encoder()(batch)
    for ours, other in zip(states, mixed, strict=True):
        real = batch.mask[here]
        torch.testing.assert_close(ours[here][real], other[here][real], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pairs", [1, 7, 10**6])
def test_blocks_change_nothing(
    batch: MoleculeBatch, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "BLOCK_PAIRS", pairs)
    monkeypatch.setattr(dense, "BLOCK_ELEMENTS", {"cpu": 3 * 11 * 11 * 128})
    assert_same_network(encoder(), batch)


def test_sums_over_pairs_are_sums_over_pairs(batch: MoleculeBatch) -> None:
    pairs = dense.near_pairs(batch)
    gap = torch.cdist(batch.position.double(), batch.position.double())
    centre = torch.linspace(0, 10, 51).double()
    n, b = batch.n_slots, 11
    expected = torch.exp(-0.5 * ((gap[b, 2, 5].round(decimals=3) - centre) / 0.2) ** 2)
    found = pairs.gaussians[pairs.row[b, 2, 5] - 1]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    table = torch.randn(len(pairs.gaussians), 5, requires_grad=True)
    x = torch.randn(batch.n_molecules, n, 5, requires_grad=True)
    result = dense.pair_sum(table, x, pairs)
    real = batch.mask & batch.placed[:, None]
    total = torch.zeros_like(result)
    for m, i, j in torch.nonzero(real.unsqueeze(2) & real.unsqueeze(1)).tolist():
        if i != j:
            total[m, i] = total[m, i] + table[pairs.row[m, i, j] - 1] * x[m, j]
    torch.testing.assert_close(result, total)
    weight = torch.randn_like(total)
    for ours, theirs in zip(
        torch.autograd.grad(result, (table, x), weight),
        torch.autograd.grad(total, (table, x), weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_2d_alone_is_the_network_of_molecules_without_positions(batch: MoleculeBatch) -> None:
    model = encoder("2d")
    states = model(batch)
    assert states.spatial is None
    nowhere = replace(batch, placed=torch.zeros_like(batch.placed))
    assert_same_network(model, nowhere)
    torch.testing.assert_close(states.flat, model(nowhere).flat)


def test_3d_alone_tells_the_frozen_atoms_in_every_layer(batch: MoleculeBatch) -> None:
    model = encoder("3d")
    states = model(batch)
    assert states.flat is None
    reference = plain(model.state_dict())
    pairs = edge_lists(batch)
    z2, z3 = reference.atoms(pairs.graphs.x), reference.elements(pairs.graphs.x[:, :1])
    gaussians = torch.exp(-0.5 * ((pairs.distance[:, None] - reference.centres) / 0.2) ** 2)
    placed = pairs.placed.unsqueeze(1)
    for layer in reference.layers:
        h3 = torch.where(placed, layer.spatial(z3, gaussians, pairs), z3)
        told = layer.mix(torch.cat([z2, h3], dim=1))[:, D:]
        z3 = torch.where(placed, z3 + told, z3)
    torch.testing.assert_close(states.spatial[batch.mask], z3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("modality", "off"), [("2d", "spatial"), ("3d", "flat")])
def test_what_is_off_is_frozen_and_exported(modality: str, off: str, batch: MoleculeBatch) -> None:
    model = encoder(modality)
    table = "elements" if modality == "2d" else "atoms"
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(table) or f".{off}." in n
    }
    InteractEncoder(D, LAYERS).load_pretrained(model.export())
    whole = encoder()
    torch.nn.init.ones_(whole.layers[0].get_submodule(off).get_parameter(WEIGHTS[off]))
    model.load_pretrained(whole.export())
    theirs = whole.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_the_export_is_read_by_recommenders(batch: MoleculeBatch, tmp_path) -> None:
    model = encoder()
    state = model.export()
    assert list(state) == ["interact"]
    assert state["interact"]["sizes"] == {"d_model": D, "layers": LAYERS}
    torch.save(state, tmp_path / "state.pt")
    reader = InteractEncoder(D, LAYERS).eval()
    reader.load_pretrained(torch.load(tmp_path / "state.pt", weights_only=True))
    z2, _ = reader(edge_lists(batch))
    torch.testing.assert_close(model(batch).flat[batch.mask], z2, atol=1e-5, rtol=1e-5)
    # and the other way round
    again = encoder()
    again.load_pretrained(InteractEncoder(D, LAYERS).export())


def test_interactors_are_what_they_are_called(batch: MoleculeBatch) -> None:
    torch.manual_seed(0)
    h2, h3 = torch.randn(2, 4, 3, D)
    mean = encoder(interactor="mean").layers[0].mix
    for told in mean(h2, h3, "both"):
        torch.testing.assert_close(told, (h2 + h3) / 2)
    model = encoder(interactor="attention")
    mix = model.layers[0].mix
    multi = torch.nn.MultiheadAttention(D, 1, batch_first=True)
    with torch.no_grad():
        multi.in_proj_weight.copy_(mix.project.weight)
        multi.in_proj_bias.copy_(mix.project.bias)
        multi.out_proj.load_state_dict(mix.leave.state_dict())
        tokens = torch.stack([h2, h3], dim=2).flatten(0, 1)
        expected, _ = multi(tokens, tokens, tokens)
        told = torch.stack(mix(h2, h3, "both"), dim=2).flatten(0, 1)
    torch.testing.assert_close(told, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", ["both", "2d", "3d"])
@pytest.mark.parametrize("interactor", ["mean", "attention"])
def test_other_interactors_train_and_are_exported(
    batch: MoleculeBatch, interactor: str, modality: str
) -> None:
    model = encoder(modality, interactor=interactor)
    model.pooled(model(batch), batch).square().sum().backward()
    asking = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, p in asking if p.grad is None or not p.grad.any()] == []
    again = encoder(modality, interactor=interactor)
    again.load_pretrained(model.export())
    other = "mean" if interactor == "attention" else "attention"
    with pytest.raises(InputError, match="interactor"):
        encoder(modality, interactor=other).load_pretrained(model.export())
    with pytest.raises(InputError, match="interact"):
        encoder(modality).load_pretrained(model.export())


def test_one_view_computes_its_half_of_the_mlp() -> None:
    mix = encoder().layers[0].mix
    h2, h3 = torch.randn(2, 4, 3, D)
    whole = F.linear(
        F.silu(F.linear(torch.cat([h2, h3], -1), mix[0].weight, mix[0].bias)),
        mix[2].weight,
        mix[2].bias,
    )
    torch.testing.assert_close(mix(h2, h3, "2d")[0], whole[..., :D])
    torch.testing.assert_close(mix(h2, h3, "3d")[1], whole[..., D:])


def test_the_published_sizes_have_nine_million_parameters() -> None:
    config = MoleculeEncoderConfig()
    n = sum(p.numel() for p in build_encoder(config, "both").parameters())
    assert n == sum(p.numel() for p in InteractEncoder(300, 8).parameters())
    assert n == pytest.approx(9e6, rel=0.02)


def test_the_order_of_molecules_does_not_matter(small_library: MoleculeLibrary) -> None:
    model = encoder()
    rows = np.arange(len(small_library))[::-1].copy()
    everything = collate(small_library, np.arange(len(small_library)))
    turned = collate(small_library, rows)
    one = model.pooled(model(everything), everything)
    two = model.pooled(model(turned), turned)
    torch.testing.assert_close(one.flip(0), two, atol=1e-6, rtol=1e-5)
