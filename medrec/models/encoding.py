"""One encoding of the molecules for several optimiser steps, with exact gradients.

Molecules do not depend on the patient, but their encoder changes with every step.
`SharedEncoding` keeps an encoding for ``every`` steps: the visits of these steps see it as a leaf
whose gradient adds up, and the encoder gets the mean of that gradient in one backward pass at the
last of them. With ``every = 1`` this is ordinary back-propagation.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from medrec.models.base import Recommender


def tensors_of(encoded: Any) -> list[torch.Tensor]:
    """Tensors in an encoding that carry gradients: the tensor itself, or a dataclass's fields."""
    if isinstance(encoded, torch.Tensor):
        return [encoded] if encoded.requires_grad else []
    if is_dataclass(encoded):
        return [t for f in fields(encoded) for t in tensors_of(getattr(encoded, f.name))]
    return []


def detached(encoded: Any) -> Any:
    """Copy of an encoding whose tensors are leaves that collect gradients."""
    if isinstance(encoded, torch.Tensor):
        return encoded.detach().requires_grad_() if encoded.requires_grad else encoded
    if is_dataclass(encoded) and not isinstance(encoded, type):
        parts = {f.name: detached(getattr(encoded, f.name)) for f in fields(encoded)}
        return replace(encoded, **parts)
    return encoded


class SharedEncoding:
    """Encoding of the drugs that is made anew every few steps.

    Parameters
    ----------
    every : int
        Steps that share an encoding.
    """

    def __init__(self, model: Recommender, every: int) -> None:
        self.model, self.every = model, every
        self._live: Any = None
        self._leaves: Any = None
        self._used = 0

    def current(self) -> Any:
        """Encoding for the next batch."""
        if self.every == 1:
            return self.model.encode_drugs()
        if self._used == 0:
            self._live = self.model.encode_drugs()
            self._leaves = detached(self._live)
        self._used += 1
        return self._leaves

    def backward(self, *, last: bool) -> None:
        """Pass the collected gradient on to the encoder, if its steps are over.

        Parameters
        ----------
        last : bool
            True after the last batch of an epoch, so that nothing is carried over.
        """
        if self.every == 1 or (self._used < self.every and not last):
            return
        pairs = [
            (live, leaf.grad / self._used)
            for live, leaf in zip(tensors_of(self._live), tensors_of(self._leaves), strict=True)
            if leaf.grad is not None
        ]
        if pairs:
            live, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(live, gradients)
        self._live = self._leaves = None
        self._used = 0
