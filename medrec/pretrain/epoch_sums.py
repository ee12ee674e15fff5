"""Sums of one epoch that its metrics are made of; they go into checkpoints and over workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass
class EpochSums:
    """What a worker has added up since the epoch began.

    Attributes
    ----------
    terms : Tensor (2, K)
        Sums and counts of the loss terms, float64, on the device, so that adding never waits for
        it.
    facts : dict of str to (float, float)
        Sums and counts of further numbers.
    molecules : int
    seconds, waited_s : float
        Time of training, and the part of it spent waiting for data.
    """

    terms: Tensor
    facts: dict[str, tuple[float, float]] = field(default_factory=dict)
    molecules: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0

    @classmethod
    def zeros(cls, n_terms: int, device: torch.device | str) -> EpochSums:
        """An epoch that has not begun."""
        return cls(torch.zeros(2, n_terms, dtype=torch.float64, device=device))

    @classmethod
    def restore(cls, state: dict[str, Any], device: torch.device | str) -> EpochSums:
        """Inverse of `state`."""
        facts = {name: (pair[0], pair[1]) for name, pair in state["facts"].items()}
        return cls(**{**state, "terms": state["terms"].to(device, copy=True), "facts": facts})

    def state(self) -> dict[str, Any]:
        """Plain values and a CPU tensor."""
        return {**vars(self), "terms": self.terms.cpu().clone(), "facts": dict(self.facts)}

    def add_facts(self, facts: dict[str, tuple[float, float]]) -> None:
        """Add the numbers of one batch."""
        for name, (total, count) in facts.items():
            before = self.facts.get(name, (0.0, 0.0))
            self.facts[name] = (before[0] + total, before[1] + count)

    def over_workers(self, world_size: int) -> EpochSums:
        """Sums of all workers and the longest times; every worker has to call this."""
        if world_size == 1:
            return self
        parts: list[Any] = [None] * world_size
        distributed.all_gather_object(parts, self.state())
        total = EpochSums.zeros(self.terms.shape[1], self.terms.device)
        for part in (EpochSums.restore(part, self.terms.device) for part in parts):
            total.terms += part.terms
            total.add_facts(part.facts)
            total.molecules += part.molecules
            total.seconds = max(total.seconds, part.seconds)
            total.waited_s = max(total.waited_s, part.waited_s)
        return total

    def times_alone(self) -> EpochSums:
        """Times without sums: what remains for a worker whose sums another one holds."""
        return EpochSums(torch.zeros_like(self.terms), seconds=self.seconds, waited_s=self.waited_s)

    def numbers(self, terms: Sequence[str]) -> dict[str, float]:
        """Loss, its terms, facts and speed; terms and facts without an item are left out."""
        sums, counts = self.terms.tolist()
        losses = {
            f"loss_{name}": total / count
            for name, total, count in zip(terms, sums, counts, strict=True)
            if count
        }
        facts = {name: total / count for name, (total, count) in self.facts.items() if count}
        return {
            "loss": sum(losses.values()),
            **losses,
            **facts,
            "seconds": self.seconds,
            "molecules_per_s": self.molecules / max(self.seconds, 1e-9),
            "waited_s": self.waited_s,
        }
