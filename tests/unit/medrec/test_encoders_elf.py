"""ELF encoders: padding, hidden cubes, planes as images, and weights that do not fit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medrec.molecules.encoders_elf import (
    MaskedVolumeLoss,
    VolumeEncoder,
    VolumePretrainConfig,
    hide_cubes,
    pretrain_volume_encoder,
    slice_planes,
    stack_volumes,
    volume_channels,
)
from medrec.molecules.encoders_slices import SliceEncoder, load_backbone, load_weights
from quantum import elf as quantum_elf
from quantum.base import InputError, ProgramMissingError

SMALL = VolumePretrainConfig(
    dim=32, widths=(8, 16, 16), cube=4, hidden_share=0.5, epochs=60, batch_size=2, lr=3e-3
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, *shape), dtype=np.float32)


def blobs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in rng.integers(17, 25, 3)], indexing="ij"))
    centres = rng.uniform(5, 12, (3, 3))
    rho = sum(np.exp(-((grid - c[:, None, None, None]) ** 2).sum(axis=0) / 12) for c in centres)
    return volume_channels(np.sqrt(np.minimum(rho, 1.0)), rho, 0.3 * rho)


def small_encoder() -> VolumeEncoder:
    torch.manual_seed(0)
    encoder = VolumeEncoder(32, widths=(8, 16, 24))
    with torch.no_grad():  # as after training: fresh norms have no shift
        for name, parameter in encoder.named_parameters():
            if "norm" in name:
                parameter += torch.rand_like(parameter)
    return encoder


# --------------------------------------------------------------------------- maps to tensors


def test_channels_have_the_stated_scales():
    rho = np.array([0.0, 0.001, 0.125, 1.0, 50.0]).reshape(5, 1, 1)
    gradient = np.array([0.0, 0.0001, 0.0625, 1.0, 1e4]).reshape(5, 1, 1)
    elf = np.linspace(0, 1, 5).reshape(5, 1, 1)
    channels = volume_channels(elf, rho, gradient)
    assert channels.shape == (3, 5, 1, 1)
    assert channels.dtype == np.float32
    np.testing.assert_allclose(channels[0, :, 0, 0], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(channels[1, :, 0, 0], [0, 0.1, 0.5, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(channels[2, :, 0, 0], [0, 0.1, 0.5, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("rho", "message"),
    [
        (np.full((2, 2, 2), -1e-3), "density"),
        (np.full((2, 2, 2), np.nan), "density"),
        (np.zeros((2, 2, 3)), "shapes"),
    ],
)
def test_bad_maps_are_refused(rho: np.ndarray, message: str):
    fine = np.zeros((2, 2, 2))
    with pytest.raises(InputError, match=message):
        volume_channels(fine, rho, fine)


def test_stacking_pads_at_the_far_end():
    a, b = noise(4, 6, 5), noise(5, 3, 7, seed=1)
    batch, mask = stack_volumes([a, b])
    assert batch.shape == (2, 3, 5, 6, 7)
    assert mask.sum(dim=(1, 2, 3)).tolist() == [4 * 6 * 5, 5 * 3 * 7]
    np.testing.assert_array_equal(batch[1, :, :5, :3, :7].numpy(), b)
    assert (batch * ~mask.unsqueeze(1)).abs().sum() == 0
    for wrong in ([], [a, b[:2]], [a[0]]):
        with pytest.raises(InputError, match="expected"):
            stack_volumes(wrong)


def test_planes_are_those_of_the_quantum_half():
    volume = noise(9, 12, 17)
    ours = slice_planes(volume, 5)
    assert [tuple(p.shape) for p in ours] == [(5, 3, 12, 17), (5, 3, 9, 17), (5, 3, 9, 12)]
    for channel in range(3):
        theirs = quantum_elf.slices(volume[channel].astype(np.float64), 5)
        for mine, reference in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine[:, channel].numpy(), reference)


# --------------------------------------------------------------------------- whole volumes


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 24, 31)])
def test_default_encoder_has_its_size_and_trains_throughout(shape: tuple[int, int, int]):
    torch.manual_seed(0)
    encoder = VolumeEncoder()
    assert sum(p.numel() for p in encoder.parameters()) < 2_000_000
    result = encoder(torch.tensor(np.stack([noise(*shape), noise(*shape, seed=1)])))
    assert result.shape == (2, 256)
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


def test_padding_does_not_change_the_result():
    encoder = small_encoder()
    volumes = [noise(17, 22, 33), noise(30, 16, 19, seed=1)]
    batch, mask = stack_volumes(volumes)
    with torch.no_grad():
        together = encoder(batch, mask)
        alone = torch.cat([encoder(torch.tensor(v)[None]) for v in volumes])
        unmasked = encoder(batch)
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(unmasked, alone, atol=1e-2)


def test_what_lies_outside_the_mask_is_not_seen():
    encoder = small_encoder()
    batch, mask = stack_volumes([noise(17, 19, 21), noise(24, 24, 24, seed=1)])
    spoiled = torch.where(mask.unsqueeze(1), batch, 7.0)
    with torch.no_grad():
        assert torch.equal(encoder(batch, mask), encoder(spoiled, mask))


def test_pooling_takes_cells_inside_only():
    encoder = small_encoder()
    encoder.head = nn.Identity()  # type: ignore[assignment]
    inside = torch.zeros(1, 1, 2, 2, 2)
    inside[..., 0, :, :] = 1
    features = torch.randn(1, 24, 2, 2, 2, generator=torch.Generator().manual_seed(0)) - 9 * inside
    pooled = encoder.pool(features, inside)
    cells = features[:, :, 0].flatten(2)
    assert torch.allclose(pooled, torch.cat([cells.mean(dim=2), cells.amax(dim=2)], dim=1))


def test_volumes_are_told_apart():
    encoder = small_encoder()
    batch, mask = stack_volumes([blobs(0), blobs(1)])
    with torch.no_grad():
        first, second = encoder(batch, mask)
    assert (first - second).abs().max() > 1e-3


def test_wrong_volumes_and_masks_are_refused():
    encoder, volumes = small_encoder(), torch.zeros(1, 3, 16, 16, 16)
    with pytest.raises(InputError, match="at least 16"):
        encoder(torch.zeros(1, 3, 16, 15, 16))
    with pytest.raises(InputError, match="expected"):
        encoder(torch.zeros(1, 2, 16, 16, 16))
    with pytest.raises(InputError, match="mask has shape"):
        encoder(volumes, torch.ones(1, 16, 16, 8, dtype=torch.bool))
    with pytest.raises(InputError, match="far end"):
        encoder(volumes, torch.zeros(1, 16, 16, 16, dtype=torch.bool))


# --------------------------------------------------------------------------- pre-training


def test_hidden_cubes_are_whole_and_inside_and_as_many_as_asked():
    _, mask = stack_volumes([noise(16, 16, 16), noise(20, 12, 8, seed=1)])
    hidden = hide_cubes(mask, 4, 0.5, torch.Generator().manual_seed(0))
    assert not (hidden & ~mask).any()
    for row, n_cubes in ((0, 4 * 4 * 4), (1, 5 * 3 * 2)):
        blocks = hidden[row, :20, :16, :16].unfold(0, 4, 4).unfold(1, 4, 4).unfold(2, 4, 4)
        filled = blocks.flatten(3).sum(dim=3)
        assert set(filled.unique().tolist()) == {0, 64}
        assert (filled == 64).sum() == n_cubes // 2


def test_hidden_cubes_are_cut_at_the_box():
    _, mask = stack_volumes([noise(18, 17, 5), noise(23, 16, 22, seed=1)])
    hidden = hide_cubes(mask, 4, 0.99, torch.Generator().manual_seed(0))
    assert not (hidden & ~mask).any()
    assert (hidden.sum(dim=(1, 2, 3)) > 0.9 * mask.sum(dim=(1, 2, 3))).all()


def test_hidden_points_differ_from_draw_to_draw():
    mask = torch.ones(1, 16, 16, 16, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    first, second = (hide_cubes(mask, 4, 0.5, generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_loss_does_not_see_what_it_asks_for():
    torch.manual_seed(0)
    objective = MaskedVolumeLoss(small_encoder(), cube=4, share=0.5)
    batch, mask = stack_volumes([blobs(0)])
    hidden = hide_cubes(mask, 4, 0.5, torch.Generator().manual_seed(3)).unsqueeze(1)
    seen = []
    reconstruct = objective.reconstruct
    objective.reconstruct = lambda v, m: seen.append(v) or reconstruct(v, m)  # type: ignore[method-assign]
    other = torch.where(hidden, 1.0 - batch, batch)
    losses = [objective(b, mask, torch.Generator().manual_seed(3)) for b in (batch, other)]
    assert torch.equal(*seen)
    assert losses[0] != losses[1]


def test_reconstruction_puts_cells_back_in_place():
    objective = MaskedVolumeLoss(small_encoder())
    batch, mask = stack_volumes([noise(17, 20, 24)])
    with torch.no_grad():
        objective.decoder.weight.zero_()
        objective.decoder.bias.copy_(torch.arange(512.0))
        whole = objective.reconstruct(batch, mask)
    assert whole.shape == (1, 17, 20, 24)
    x, y, z = np.meshgrid(*[np.arange(n) % 8 for n in (17, 20, 24)], indexing="ij")
    np.testing.assert_array_equal(whole[0].numpy(), 64 * x + 8 * y + z)


def test_pretraining_reaches_every_parameter():
    objective = MaskedVolumeLoss(small_encoder(), cube=4, share=0.5)
    batch, mask = stack_volumes([blobs(0), blobs(1)])
    objective(batch, mask, torch.Generator().manual_seed(0)).backward()
    dead = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_pretraining_beats_the_mean():
    volumes = [blobs(seed) for seed in range(8)]
    encoder, history = pretrain_volume_encoder(volumes, SMALL, 0)
    assert len(history) == SMALL.epochs
    assert not encoder.training
    variance = np.concatenate([v[0].ravel() for v in volumes]).var()
    assert history[-1] < 0.5 * variance < history[0]


def test_pretraining_is_reproducible_and_leaves_the_global_generator_alone():
    volumes, config = [blobs(seed) for seed in range(3)], SMALL.model_copy(update={"epochs": 3})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, history = pretrain_volume_encoder(volumes, config, 5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second, again = pretrain_volume_encoder(volumes, config, 5)
    assert history == again
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert pretrain_volume_encoder(volumes, config, 6)[1] != history
    with pytest.raises(InputError, match="no volumes"):
        pretrain_volume_encoder([], config, 5)


# --------------------------------------------------------------------------- planes as images


class Backbone(nn.Module):
    """Stands in for an image network; batch norm would give a training-mode encoder away."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(images.shape))
        return torch.tanh(self.norm(self.conv(images))).mean(dim=(2, 3))


def molecules() -> list[Sequence[torch.Tensor]]:
    return [slice_planes(noise(18, 21, 33), 7), slice_planes(noise(40, 16, 20, seed=1), 7)]


def test_slices_go_through_in_chunks_of_square_images():
    backbone = Backbone()
    result = SliceEncoder(backbone, image_size=24, chunk_size=3)(molecules())
    assert result.shape == (2, 6)
    assert [size[0] for size in backbone.sizes] == [3, 3, 1] * 6
    assert {size[1:] for size in backbone.sizes} == {(3, 24, 24)}
    assert not result.requires_grad


def test_chunks_do_not_change_the_result():
    parts = [SliceEncoder(Backbone(), image_size=24, chunk_size=c)(molecules()) for c in (1, 3, 99)]
    assert torch.allclose(parts[0], parts[1], atol=1e-6)
    assert torch.allclose(parts[0], parts[2], atol=1e-6)


def test_order_of_slices_and_axes_does_not_matter_but_each_slice_does():
    encoder = SliceEncoder(Backbone(), image_size=24)
    stacks = molecules()[0]
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    shuffled = [stack[order] for stack in reversed(stacks)]
    reference, other = encoder([stacks, shuffled])
    assert torch.allclose(reference, other, atol=1e-6)
    each = torch.cat([encoder.backbone(encoder.images(stack)) for stack in stacks])
    assert torch.allclose(reference, each.max(dim=0).values, atol=1e-6)
    winners = each.argmax(dim=0).unique()
    assert len(winners) > 1


def test_images_are_normalised_as_imagenet_and_resized_bilinearly():
    encoder = SliceEncoder(nn.Identity(), image_size=8)
    plain = encoder.images(torch.full((1, 3, 5, 9), 0.5))
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (0.5 - mean) / std
        assert torch.allclose(plain[0, channel], torch.tensor(expected), atol=1e-5)
    encoder = SliceEncoder(nn.Identity(), image_size=4, mean=(0, 0, 0), std=(1, 1, 1))
    ramp = encoder.images(torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2))
    assert torch.allclose(ramp[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_the_image_network_never_trains():
    encoder = SliceEncoder(Backbone(), image_size=24)
    reference = encoder(molecules())
    nn.Sequential(encoder).train()
    assert not encoder.backbone.training
    assert torch.equal(encoder(molecules()), reference)
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    "wrong", [[], [[]], [[torch.zeros(0, 3, 4, 4)]], [[torch.zeros(2, 4, 4)]]], ids=str
)
def test_wrong_planes_are_refused(wrong: list[list[torch.Tensor]]):
    with pytest.raises(InputError, match="expected"):
        SliceEncoder(Backbone(), image_size=8)(wrong)


def test_a_network_without_pooling_is_refused():
    with pytest.raises(InputError, match=r"expected \(N, K\)"):
        SliceEncoder(nn.Identity(), image_size=8)([[torch.zeros(1, 3, 4, 4)]])


# --------------------------------------------------------------------------- weights


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value + 1 for name, value in model.state_dict().items()}


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_are_loaded_without_the_classifier(tmp_path: Path, wrapped: bool):
    model, path = Backbone(), tmp_path / "w.pth"
    weights = state(model)
    content = {**weights, "classifier.weight": torch.zeros(5, 6)}
    del content["norm.num_batches_tracked"]  # old files lack it, and it does nothing here
    torch.save({"state_dict": content, "epoch": 3} if wrapped else content, path)
    load_weights(model, path, "net")
    assert torch.equal(model.conv.weight, weights["conv.weight"])
    assert torch.equal(model.norm.running_var, weights["norm.running_var"])


def test_weights_of_another_network_are_refused_with_counts(tmp_path: Path):
    model, path = Backbone(), tmp_path / "w.pth"
    content = state(model)
    del content["conv.bias"], content["norm.running_mean"]
    content |= {"stem.weight": torch.zeros(1), "conv.weight": torch.zeros(6, 3, 5, 5)}
    torch.save(content, path)
    before = model.norm.weight.clone()
    with pytest.raises(InputError, match="net: 2 missing, 1 unexpected and 1 misshapen of 7"):
        load_weights(model, path, "net")
    assert torch.equal(model.norm.weight, before)
    torch.save(state(model) | {"stem.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="net: 0 missing, 1 unexpected and 0 misshapen of 7"):
        load_weights(model, path, "net")


class Spring:
    """Something that a weights file must not run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("the weights file was executed",))


@pytest.mark.parametrize("content", [b"", b"not a weights file", "pickle", "list"], ids=str)
def test_unreadable_weights_are_refused(tmp_path: Path, content: bytes | str):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"a": Spring()} if content == "pickle" else [torch.zeros(1)], path)
    with pytest.raises(InputError, match=r"weights file of net .*w\.pth"):
        load_weights(Backbone(), path, "net")


def test_safetensors_are_read_or_named_as_missing(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"garbage")
    try:
        from safetensors.torch import save_file
    except ImportError:
        with pytest.raises(ProgramMissingError, match=r"medrec\[vision\]"):
            load_weights(Backbone(), path, "net")
        return
    with pytest.raises(InputError, match="not readable"):
        load_weights(Backbone(), path, "net")
    model = Backbone()
    weights = state(model)
    save_file(weights, path)
    load_weights(model, path, "net")
    assert torch.equal(model.conv.weight, weights["conv.weight"])


def test_no_weights_are_refused_before_timm_is_imported(tmp_path: Path):
    with pytest.raises(InputError, match="no weights file for tf_efficientnetv2_l"):
        load_backbone(None)
    with pytest.raises(InputError, match=r"tf_efficientnetv2_l not found: .*nowhere\.pth"):
        load_backbone(tmp_path / "nowhere.pth")


def test_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ProgramMissingError, match=r"pip install 'medrec\[vision\]'"):
        load_backbone(None, allow_random=True)


@pytest.mark.parametrize(
    "line",
    ["raise RuntimeError('operator torchvision::nms does not exist')", "import torchvision_absent"],
)
def test_broken_torchvision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str):
    for name in [n for n in sys.modules if n.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "timm.py").write_text(line + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProgramMissingError, match=r"torchvision.*must be built for torch"):
        load_backbone(None, allow_random=True)


def test_a_real_timm_network_loads_its_own_file(tmp_path: Path):
    try:
        import timm
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"timm cannot be imported: {type(error).__name__}")
    name, path = "tf_efficientnetv2_b0", tmp_path / "w.pth"
    donor = timm.create_model(name, pretrained=False)
    torch.save(donor.state_dict(), path)
    backbone = load_backbone(path, name)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = donor.eval().forward_features(images).mean(dim=(2, 3))
        assert torch.allclose(backbone(images), expected, atol=1e-5)
    assert SliceEncoder(backbone, image_size=64)(molecules()).shape == (2, 1280)
    with pytest.raises(InputError, match="missing"):
        load_backbone(path, "tf_efficientnetv2_s")
    with pytest.raises(InputError, match="no architecture 'nothing'"):
        load_backbone(path, "nothing")
