"""Planes of ELF maps as images for pre-trained 2D networks (see `encoders_elf` for whole volumes).

Weights come from files that the user names; nothing is downloaded.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from medrec.molecules.encoders_elf import N_CHANNELS
from quantum.base import InputError, ProgramMissingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HEADS = ("classifier.", "head.", "fc.")  # names of classifiers in timm weights; not needed here
_WRAPPERS = ("state_dict_ema", "state_dict", "model")  # where training scripts put the weights


class SliceEncoder(nn.Module):
    """Planes of a volume through a frozen image network; the maximum over all planes.

    The recipe of MMM, on three physical channels in place of a colour map. A plane is stretched to
    a square, so nothing is cropped. The network never trains.

    Parameters
    ----------
    backbone : nn.Module
        Images (N, 3, S, S) to features (N, K), pooled over the image; see `load_backbone`.
    image_size : int
        S.
    chunk_size : int
        Images that go through the network at a time; bounds memory, does not change the result.
    mean, std : three float
        Normalisation of the channels; ImageNet's unless the weights were trained with another.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        image_size: int = 480,
        chunk_size: int = 8,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if chunk_size < 1 or image_size < 1:
            raise InputError(
                f"image size {image_size} and chunk size {chunk_size}; expected 1 or more"
            )
        self.backbone = backbone.requires_grad_(False)
        self.image_size, self.chunk_size = image_size, chunk_size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.train(False)

    def train(self, mode: bool = True) -> SliceEncoder:
        """Stay in evaluation mode: a batch must not change the features."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, molecules: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """Encode molecules.

        Parameters
        ----------
        molecules : sequence of sequences of Tensor (n, 3, H, W)
            Per molecule, stacks of planes in [0, 1], one stack per axis; sizes and counts may
            differ from stack to stack. See `slice_planes`.

        Returns
        -------
        Tensor (B, K)
        """
        if not molecules:
            raise InputError("no molecules to encode; expected at least one")
        return torch.stack([self._encode(stacks) for stacks in molecules])

    def images(self, planes: torch.Tensor) -> torch.Tensor:
        """Resize planes (n, 3, H, W) bilinearly and normalise them: (n, 3, S, S)."""
        size = (self.image_size, self.image_size)
        resized = functional.interpolate(
            planes.to(self.mean), size=size, mode="bilinear", antialias=True
        )
        return (resized - self.mean) / self.std

    def _encode(self, stacks: Sequence[torch.Tensor]) -> torch.Tensor:
        shapes = [tuple(stack.shape) for stack in stacks]
        if not shapes or any(len(s) != 4 or s[1] != N_CHANNELS or 0 in s for s in shapes):
            raise InputError(f"planes have shapes {shapes}; expected (n, 3, H, W), none empty")
        features = [
            self.backbone(self.images(chunk))
            for stack in stacks
            for chunk in stack.split(self.chunk_size)
        ]
        if features[0].ndim != 2:
            raise InputError(
                f"the image network returns shape {tuple(features[0].shape)}; expected (N, K)"
            )
        return torch.cat(features).amax(dim=0)


def load_backbone(
    weights: Path | None,
    architecture: str = "tf_efficientnetv2_l",
    *,
    allow_random: bool = False,
) -> nn.Module:
    """Image network of timm without its classifier, with weights from a file; never downloads.

    Parameters
    ----------
    weights : Path, optional
        State dict in timm's naming, ``.safetensors`` or a torch file of tensors only.
    architecture : str
        timm's name; the default gives 1280 features.
    allow_random : bool
        Go on without a file. The features mean nothing then; for tests of the plumbing.

    Returns
    -------
    nn.Module
        Images (N, 3, S, S) to globally average-pooled features (N, K).

    Raises
    ------
    InputError
        If the file is not given, missing, unreadable or of another architecture.
    ProgramMissingError
        If timm cannot be imported.
    """
    if weights is None and not allow_random:
        raise InputError(
            f"no weights file for {architecture}; random weights give features without meaning; "
            "give the path of a timm state dict (.safetensors or .pth)"
        )
    if weights is not None and not weights.is_file():
        raise InputError(f"weights file of {architecture} not found: {weights}")
    timm = _import_timm()
    if not timm.is_model(architecture):
        raise InputError(f"timm {timm.__version__} has no architecture {architecture!r}")
    model: nn.Module = timm.create_model(
        architecture, pretrained=False, num_classes=0, global_pool="avg"
    )
    if weights is not None:
        load_weights(model, weights, architecture)
    return model.eval()


def load_weights(model: nn.Module, path: Path, architecture: str) -> None:
    """Fill a model from a file, all or nothing; classifier weights in the file are left out.

    Raises
    ------
    InputError
        With the counts of missing, unexpected and misshapen entries.
    """
    expected = model.state_dict()
    state = {
        name: value
        for name, value in _read_state(path, architecture).items()
        if name in expected or not name.startswith(_HEADS)
    }
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = expected.keys() - state.keys() - counters
    unexpected = state.keys() - expected.keys()
    misshapen = [n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape]
    if missing or unexpected or misshapen:
        raise InputError(
            f"weights do not fit {architecture}: {len(missing)} missing, {len(unexpected)} "
            f"unexpected and {len(misshapen)} misshapen of {len(expected)} expected keys: {path}"
        )
    model.load_state_dict(state, strict=False)


def _read_state(path: Path, architecture: str) -> dict[str, torch.Tensor]:
    """Tensors of a weights file by name; nothing in the file is executed."""
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"weights file of {architecture} not readable ({type(error).__name__}): {path}; "
            "expected a .safetensors file or a torch file that holds tensors only"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"weights file of {architecture} holds no state dict: {path}")
    return state


def _read_torch(path: Path) -> Any:
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            return state[name]
    return state


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ProgramMissingError(
            "safetensors is not installed; pip install 'medrec[vision]'"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _import_timm() -> Any:
    """Import timm, or say what is in the way; it imports torchvision, which must match torch."""
    try:
        import timm
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise ProgramMissingError(
                "timm is not installed; pip install 'medrec[vision]'"
            ) from error
        raise ProgramMissingError(
            f"timm cannot be imported ({type(error).__name__}: {error}); its torchvision must be "
            f"built for torch {torch.__version__}; pip install 'medrec[vision]' with both from "
            "the same index"
        ) from error
    return timm
