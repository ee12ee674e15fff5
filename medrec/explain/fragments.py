"""Effects of a drug's fragments on its score, by taking one fragment from the class.

A model that knows which class has which fragment keeps this in a mask. For one class and one
fragment the entry is emptied in every mask of the model and the drugs are encoded again: the
prediction is the model's own for a class without that fragment. Nothing else of the molecule
changes, in particular not the vector of the whole molecule, so an effect is that of the fragment
as the model sees it, and not of a change in chemistry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from medrec.data.dataset import PatientVisits
from medrec.explain.occlusion import last_scores, settle
from medrec.models.base import Predictor, Recommender
from medrec.models.layers import MaskedAggregation
from medrec.models.mmm import Bipartite
from medrec.models.safedrug import SafeDrug
from medrec.molecules.encoders_2d import GINEncoder


class FragmentMask(ABC):
    """Where a model keeps which class has which fragment.

    Parameters
    ----------
    tensor : Tensor
        Mask or weights that are 0 (False) where a class does not have a fragment.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @abstractmethod
    def place(self, drug: int, fragment: int) -> Any:
        """Index of an entry in the tensor; None without one."""

    @abstractmethod
    def fragments(self, drug: int) -> list[int]:
        """Fragments of a class, ascending."""

    @contextmanager
    def without(self, drug: int, fragment: int) -> Iterator[None]:
        """Empty one entry inside the block."""
        index = self.place(drug, fragment)
        before = self.tensor[index].detach().clone()
        try:
            with torch.no_grad():
                self.tensor[index] = 0
            yield
        finally:
            with torch.no_grad():
                self.tensor[index] = before


class ColumnMask(FragmentMask):
    """Mask (D, K) beside the fragments' numbers (D, K), as in `MaskedAggregation`."""

    def __init__(self, module: MaskedAggregation) -> None:
        super().__init__(module.present)
        self.numbers = module.fragment

    def place(self, drug: int, fragment: int) -> Any:
        """Row and column of an entry."""
        return drug, self.numbers[drug] == fragment

    def fragments(self, drug: int) -> list[int]:
        """Fragments that are present in the row."""
        return sorted(self.numbers[drug][self.tensor[drug]].tolist())


class EntryMask(FragmentMask):
    """Weights of a list of entries, as in MMM's local branch."""

    def __init__(self, module: Bipartite, n_fragments: int) -> None:
        super().__init__(module.weight)
        self.drug, self.fragment, self.n_fragments = module.drug, module.fragment, n_fragments

    def place(self, drug: int, fragment: int) -> Any:
        """Number of an entry in the list."""
        return (self.drug == drug) & (self.fragment == fragment)

    def fragments(self, drug: int) -> list[int]:
        """Real fragments; the stand-in of a class without one is left out."""
        found = self.fragment[self.drug == drug]
        return sorted(found[found < self.n_fragments].tolist())


class DenseMask(FragmentMask):
    """Weights (S, D) under a mask (D, S), as in SafeDrug's local branch."""

    def __init__(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        super().__init__(weight)
        self.mask = mask

    def place(self, drug: int, fragment: int) -> Any:
        """Row and column of an entry."""
        return fragment, drug

    def fragments(self, drug: int) -> list[int]:
        """Fragments under the mask."""
        return torch.nonzero(self.mask[drug]).flatten().tolist()


def fragment_masks(model: Predictor) -> list[FragmentMask]:
    """All masks of a model; empty for one that does not tell fragments apart."""
    if not isinstance(model, Recommender) or not has_own_molecules(model):
        return []
    tables = model.context.molecules
    assert tables is not None
    found: list[FragmentMask] = []
    for module in model.modules():
        if isinstance(module, MaskedAggregation):
            found.append(ColumnMask(module))
        elif isinstance(module, Bipartite):
            found.append(EntryMask(module, tables.fragments.n_graphs))
    if isinstance(model, SafeDrug):
        representation = getattr(model, "representation", tables)
        found.append(DenseMask(model.bipartite, representation.fragment_mask))
    return found


def has_own_molecules(model: Recommender) -> bool:
    """Tell whether each class has its own molecules: not none, and not another class's."""
    if model.context.molecules is None:
        return False
    representation = getattr(model.config.model, "representation", None)
    if representation is None:
        return True
    return bool(representation.kind != "none" and representation.shuffle_seed is None)


def fragment_effects(model: Predictor, patient: PatientVisits, drug: int) -> dict[int, float]:
    """Effect of each fragment of a class on its score at the patient's last visit.

    Returns
    -------
    dict of int to float
        Fragment (column of the molecule tables) to score with it minus score without it; empty
        where the model has no masks or the class no fragment.
    """
    masks = fragment_masks(model)
    if not masks:
        return {}
    assert isinstance(model, Recommender)
    n_drugs = model.context.n_drugs
    full = last_scores(model, [patient], n_drugs)[0, drug]
    effects = {}
    with encoders_once(model):
        for fragment in sorted({item for mask in masks for item in mask.fragments(drug)}):
            with without_fragment(model, masks, drug, fragment):
                score = last_scores(model, [patient], n_drugs)[0, drug]
            effects[fragment] = float(settle(np.array(full - score), np.array(full)))
    return effects


@contextmanager
def without_fragment(
    model: Recommender, masks: list[FragmentMask], drug: int, fragment: int
) -> Iterator[None]:
    """Take a fragment from a class in all masks; cached encodings are dropped on both ends."""
    try:
        with ExitStack() as stack:
            for mask in masks:
                if fragment in mask.fragments(drug):
                    stack.enter_context(mask.without(drug, fragment))
            model.eval()
            yield
    finally:
        model.eval()


@contextmanager
def encoders_once(model: Recommender) -> Iterator[None]:
    """Let graph networks answer from memory: their vectors do not depend on the masks."""
    modules = [part for part in model.modules() if isinstance(part, GINEncoder)]

    def remember(part: GINEncoder) -> Any:
        known: dict[int, torch.Tensor] = {}

        def forward(graphs: Any) -> torch.Tensor:
            if id(graphs) not in known:
                known[id(graphs)] = GINEncoder.forward(part, graphs)
            return known[id(graphs)]

        return forward

    for part in modules:
        part.__dict__["forward"] = remember(part)
    try:
        yield
    finally:
        for part in modules:
            del part.__dict__["forward"]
