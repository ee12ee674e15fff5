"""Torch modules that turn maps of the electron localisation function (ELF) into vectors.

Two ways. `VolumeEncoder`, in this file, is a small residual 3D network on whole boxes, pre-trained
without labels by hiding cubes and reconstructing them (He et al., CVPR 2016; Wu and He, ECCV 2018;
the objective after Xie et al., SimMIM, CVPR 2022). `SliceEncoder` in `encoders_slices` is the
recipe of MMM: planes as images through an ImageNet network (Tan and Le, EfficientNetV2, ICML 2021),
then the maximum over planes; it needs a weights file from the user. Both see the box as it stands:
a turned molecule is another input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from quantum.base import Frozen, InputError

N_CHANNELS = 3
SMALLEST_BOX = 16
_STRIDE = 8  # of the whole volume network: one cell of its last layer per 8 x 8 x 8 points


# --------------------------------------------------------------------------- maps to tensors


def volume_channels(
    elf: npt.ArrayLike, rho: npt.ArrayLike, gradient_norm: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Stack an ELF map, its density and the density's gradient as three channels in [0, 1].

    The scales are the same for all molecules: ELF as it is; min(1, rho^(1/3)); min(1, g^(1/4))
    with g the length of the gradient, in atomic units. By the roots both go as one over a length,
    and bonds and tails stay visible beside the cores, which are cut off at 1.

    Parameters
    ----------
    elf, rho, gradient_norm : array (nx, ny, nz)
        ELF in [0, 1]; density in e/Bohr^3; length of its gradient in e/Bohr^4.

    Returns
    -------
    ndarray (3, nx, ny, nz) of float32

    Raises
    ------
    InputError
        If shapes differ, or values are not finite or negative.
    """
    maps = [np.asarray(item, dtype=np.float64) for item in (elf, rho, gradient_norm)]
    shapes = [item.shape for item in maps]
    if len(set(shapes)) != 1 or len(shapes[0]) != 3:
        raise InputError(f"maps have shapes {shapes}; expected three equal shapes (nx, ny, nz)")
    for name, item in zip(("ELF", "density", "gradient norm"), maps, strict=True):
        if not np.isfinite(item).all() or item.min(initial=0.0) < 0.0:
            raise InputError(f"{name} holds values that are negative or not finite")
    roots = [maps[0], np.cbrt(maps[1]), maps[2] ** 0.25]
    return np.minimum(np.stack(roots), 1.0).astype(np.float32)


def stack_volumes(
    volumes: Sequence[npt.NDArray[np.float32]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Volumes of unequal boxes as one batch, filled up with zeros at the far end of each axis.

    Parameters
    ----------
    volumes : sequence of ndarray (C, nx, ny, nz)

    Returns
    -------
    batch : FloatTensor (B, C, D, H, W)
    mask : BoolTensor (B, D, H, W)
        True on points of the molecule's own box.

    Raises
    ------
    InputError
        If there is nothing to stack or a volume has another form.
    """
    if not volumes or any(v.ndim != 4 or len(v) != len(volumes[0]) for v in volumes):
        found = [v.shape for v in volumes]
        raise InputError(f"volumes have shapes {found}; expected (C, nx, ny, nz) with equal C")
    size = np.max([v.shape[1:] for v in volumes], axis=0)
    batch = torch.zeros(len(volumes), len(volumes[0]), *size.tolist())
    mask = torch.zeros(len(volumes), *size.tolist(), dtype=torch.bool)
    for number, volume in enumerate(volumes):
        nx, ny, nz = volume.shape[1:]
        batch[number, :, :nx, :ny, :nz] = torch.tensor(volume, dtype=torch.float32)
        mask[number, :nx, :ny, :nz] = True
    return batch, mask


def slice_planes(
    volume: npt.NDArray[np.float32], n_slices: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut equally spaced planes, first and last included, out of a volume along each axis.

    Parameters
    ----------
    volume : ndarray (C, nx, ny, nz)

    Returns
    -------
    three FloatTensor
        Shapes (n, C, ny, nz), (n, C, nx, nz), (n, C, nx, ny).
    """
    planes = []
    for axis in (1, 2, 3):
        index = np.linspace(0, volume.shape[axis] - 1, n_slices).round().astype(int)
        cut = np.moveaxis(np.take(volume, index, axis=axis), axis, 0)
        planes.append(torch.tensor(cut, dtype=torch.float32))
    return planes[0], planes[1], planes[2]


# --------------------------------------------------------------------------- whole volumes


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm over the points inside a mask; the result is zero outside.

    With it, and convolutions that see zeros outside, a padded volume is encoded as it is alone.
    """

    def forward(self, x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Normalise (B, C, D, H, W); ``inside`` is 0 or 1, (B, 1, D, H, W)."""
        grouped = x.unflatten(1, (self.num_groups, -1))
        weight = inside.unsqueeze(1)
        count = weight.sum(dim=(2, 3, 4, 5), keepdim=True) * grouped.shape[2]
        mean = (grouped * weight).sum(dim=(2, 3, 4, 5), keepdim=True) / count
        centred = (grouped - mean) * weight
        variance = centred.square().sum(dim=(2, 3, 4, 5), keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        shape = (1, -1, 1, 1, 1)
        return (normed * self.weight.view(shape) + self.bias.view(shape)) * inside


class ResidualBlock3D(nn.Module):
    """Two 3x3x3 convolutions with group norm and a skip (He et al., CVPR 2016)."""

    def __init__(self, n_in: int, n_out: int, stride: int, n_groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv_1 = nn.Conv3d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.conv_2 = nn.Conv3d(n_out, n_out, 3, padding=1, bias=False)
        self.norm_1 = MaskedGroupNorm(n_groups, n_out)
        self.norm_2 = MaskedGroupNorm(n_groups, n_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.skip = nn.Conv3d(n_in, n_out, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (B, C, D, H, W) and their mask; strides keep every second point."""
        inside = _thin(inside, self.stride)
        y = functional.relu(self.norm_1(self.conv_1(x), inside))
        y = self.norm_2(self.conv_2(y), inside)
        return functional.relu(y + self.skip(x)), inside


def _thin(inside: torch.Tensor, stride: int) -> torch.Tensor:
    return inside[..., ::stride, ::stride, ::stride]


class VolumeEncoder(nn.Module):
    """Volumes to vectors: strided residual 3D network, mean and maximum over the box, dense layer.

    About 1.2 million parameters as it stands. Zero padding at the far ends of a box, marked by a
    mask, does not change the result (up to rounding).

    Parameters
    ----------
    dim : int
        Size of the result.
    widths : three int
        Channels at a half, a quarter and an eighth of the resolution; multiples of ``n_groups``.
    """

    def __init__(
        self,
        dim: int = 256,
        *,
        n_channels: int = N_CHANNELS,
        widths: tuple[int, int, int] = (24, 48, 96),
        n_groups: int = 8,
    ) -> None:
        super().__init__()
        self.dim, self.n_channels, self.n_cell_features = dim, n_channels, widths[2]
        self.stem = nn.Conv3d(n_channels, widths[0], 3, stride=2, padding=1, bias=False)
        self.norm = MaskedGroupNorm(n_groups, widths[0])
        blocks, n_in = [], widths[0]
        for stride, n_out in zip((1, 2, 2), widths, strict=True):
            blocks.append(ResidualBlock3D(n_in, n_out, stride, n_groups))
            blocks.append(ResidualBlock3D(n_out, n_out, 1, n_groups))
            n_in = n_out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(2 * widths[2], dim)

    def forward(self, volumes: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encode volumes.

        Parameters
        ----------
        volumes : Tensor (B, C, D, H, W)
            At least 16 points along each axis; see `volume_channels`.
        mask : BoolTensor (B, D, H, W), optional
            True on a molecule's own points, which start at index 0 of every axis.

        Returns
        -------
        Tensor (B, dim)
        """
        return self.pool(*self.cells(volumes, mask))

    def cells(
        self, volumes: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of cells of 8 x 8 x 8 points.

        Returns
        -------
        features : Tensor (B, n_cell_features, ceil(D / 8), ceil(H / 8), ceil(W / 8))
        inside : Tensor (B, 1, ...)
            1 on cells that belong to the molecule's box, else 0.
        """
        self._check(volumes, mask)
        inside = torch.ones_like(volumes[:, :1])
        if mask is not None:
            inside = mask.unsqueeze(1).to(volumes.dtype)
        x = self.stem(volumes * inside)
        inside = _thin(inside, 2)
        x = functional.relu(self.norm(x, inside))
        for block in self.blocks:
            x, inside = block(x, inside)
        return x, inside

    def pool(self, features: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Mean and maximum over cells inside, then the dense layer: (B, dim)."""
        mean = (features * inside).sum(dim=(2, 3, 4)) / inside.sum(dim=(2, 3, 4))
        top = features.masked_fill(inside == 0, -torch.inf).amax(dim=(2, 3, 4))
        return self.head(torch.cat([mean, top], dim=1))

    def _check(self, volumes: torch.Tensor, mask: torch.Tensor | None) -> None:
        shape = tuple(volumes.shape)
        fits = len(shape) == 5 and shape[1] == self.n_channels and min(shape[2:]) >= SMALLEST_BOX
        if not fits:
            raise InputError(
                f"volumes have shape {shape}; expected (B, {self.n_channels}, D, H, W) with at "
                f"least {SMALLEST_BOX} points per axis"
            )
        if mask is None:
            return
        if tuple(mask.shape) != (shape[0], *shape[2:]):
            raise InputError(
                f"mask has shape {tuple(mask.shape)}; expected {shape[:1] + shape[2:]}"
            )
        if not mask[:, 0, 0, 0].all():
            raise InputError("mask leaves out the first point of a box; pad at the far end only")


# --------------------------------------------------------------------------- pre-training


class VolumePretrainConfig(Frozen):
    """Settings of masked-volume pre-training."""

    dim: int = Field(256, ge=1)
    widths: tuple[int, int, int] = (24, 48, 96)
    cube: int = Field(8, ge=1)
    hidden_share: float = Field(0.6, gt=0.0, lt=1.0)
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(4, ge=1)
    lr: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.05, ge=0.0)


def hide_cubes(
    mask: torch.Tensor, cube: int, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Choose cubes of a regular partition at random.

    Parameters
    ----------
    mask : BoolTensor (B, D, H, W)
        Only cubes that hold a point of the box are counted and chosen.
    share : float
        Of the cubes of each volume; at least one is chosen.
    generator : torch.Generator
        On the CPU, so that the choice is the same on every device.

    Returns
    -------
    BoolTensor (B, D, H, W)
        True on hidden points of the box.
    """
    held = functional.max_pool3d(mask.unsqueeze(1).float(), cube, cube, ceil_mode=True)[:, 0] > 0
    scores = torch.rand(held.shape, generator=generator).to(mask.device)
    rank = scores.masked_fill(~held, 2.0).flatten(1).argsort(dim=1).argsort(dim=1)
    n_hidden = (share * held.flatten(1).sum(dim=1)).round().clamp(min=1)
    hidden = (rank < n_hidden.unsqueeze(1)).view(held.shape)
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(cube, dim=axis).narrow(axis, 0, mask.shape[axis])
    return hidden & mask


class MaskedVolumeLoss(nn.Module):
    """Mean squared error of the ELF (channel 0) in hidden cubes, after Xie et al. (SimMIM).

    All channels of a hidden point are replaced by a trained token. The decoder is one layer: it
    sees a cell's features and the volume's vector, so that the vector itself is trained too.

    Parameters
    ----------
    encoder : VolumeEncoder
        What is trained; the rest of this module is thrown away.
    cube : int
        Edge of the hidden cubes, points.
    share : float
        Hidden share of the cubes.
    """

    def __init__(self, encoder: VolumeEncoder, cube: int = 8, share: float = 0.6) -> None:
        super().__init__()
        self.encoder, self.cube, self.share = encoder, cube, share
        self.token = nn.Parameter(torch.zeros(1, encoder.n_channels, 1, 1, 1))
        self.context = nn.Linear(encoder.dim, encoder.n_cell_features)
        self.decoder = nn.Conv3d(encoder.n_cell_features, _STRIDE**3, 1)

    def forward(
        self, volumes: torch.Tensor, mask: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Loss of volumes (B, C, D, H, W) with mask (B, D, H, W): a scalar."""
        hidden = hide_cubes(mask, self.cube, self.share, generator)
        seen = torch.where(hidden.unsqueeze(1), self.token, volumes)
        return functional.mse_loss(self.reconstruct(seen, mask)[hidden], volumes[:, 0][hidden])

    def reconstruct(self, volumes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ELF (B, D, H, W) from volumes as the encoder sees them."""
        cells, inside = self.encoder.cells(volumes, mask)
        context = self.context(self.encoder.pool(cells, inside))
        points = self.decoder(functional.relu(cells + context[..., None, None, None]))
        points = points.unflatten(1, (_STRIDE, _STRIDE, _STRIDE))  # (B, 8, 8, 8, d, h, w)
        points = points.permute(0, 4, 1, 5, 2, 6, 3)
        whole = points.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        depth, height, width = mask.shape[1:]
        return whole[:, :depth, :height, :width]


def pretrain_volume_encoder(
    volumes: Sequence[npt.NDArray[np.float32]],
    config: VolumePretrainConfig,
    seed: int,
    *,
    device: str = "cpu",
) -> tuple[VolumeEncoder, list[float]]:
    """Train a volume encoder to reconstruct hidden cubes.

    The same seed gives the same encoder on the CPU with the same number of threads, whatever was
    drawn before; on a GPU the last digits may differ.

    Parameters
    ----------
    volumes : sequence of ndarray (3, nx, ny, nz)
        See `volume_channels`; boxes may differ.

    Returns
    -------
    encoder : VolumeEncoder
        In evaluation mode, on ``device``.
    history : list of float
        Mean loss of each epoch.
    """
    if not volumes:
        raise InputError("no volumes to pre-train on; expected at least one")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = VolumeEncoder(config.dim, widths=config.widths)
        objective = MaskedVolumeLoss(encoder, config.cube, config.hidden_share).to(device)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        objective.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    history = []
    for _ in range(config.epochs):
        order = torch.randperm(len(volumes), generator=generator)
        total = 0.0
        for rows in order.split(config.batch_size):
            batch, mask = stack_volumes([volumes[row] for row in rows.tolist()])
            loss = objective(batch.to(device), mask.to(device), generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        history.append(total / len(volumes))
    return encoder.eval(), history
