"""One vector per drug class from any model that has such vectors; the rule stands here alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medrec.models.base import Predictor, Recommender
from medrec.models.linear import LogisticRegression
from medrec.models.representations import Representation


@dataclass(frozen=True)
class DrugVectors:
    """Vectors of the D drug classes of a vocabulary.

    Attributes
    ----------
    values : ndarray (D, d)
    source : str
        Where in the model they come from, in words.
    """

    values: npt.NDArray[np.float64]
    source: str


@torch.no_grad()
def drug_vectors(model: Predictor) -> DrugVectors | None:
    """Vectors of the drug classes, from the first of these places that a model has.

    1. Its method ``drug_vectors()``.
    2. What `Recommender.encode_drugs` returns, if that is one vector per class or has one in
       ``drugs``: encoded molecules.
    3. Its ``representation``: means of the vectors of a class's molecules.
    4. The rows of the last linear layer with one output per class (an END token is left out): what
       a visit's state is compared with.
    5. The weights of a logistic regression, one row per class.

    Returns
    -------
    DrugVectors or None
        None for a model without any, such as a counting one.
    """
    if isinstance(model, LogisticRegression):
        return _found(model.weight.T, "weights of the regressions")
    if not isinstance(model, Recommender):
        return None
    model.eval()
    own = getattr(model, "drug_vectors", None)
    if callable(own):
        return _found(own(), "vectors the model names as its drugs'")
    return _encoded(model) or _output_rows(model)


def _found(values: torch.Tensor, source: str) -> DrugVectors:
    return DrugVectors(values.detach().double().cpu().numpy(), source)


def _encoded(model: Recommender) -> DrugVectors | None:
    """Vectors that come from encoding the drugs."""
    encoded = model.encode_drugs()
    for candidate in (encoded, getattr(encoded, "drugs", None)):
        if _is_table(candidate, model.context.n_drugs):
            return _found(candidate, "encoded drug classes")
    representation = getattr(model, "representation", None)
    # a model that reads only the fragments' owners keeps no encoder of molecules
    if isinstance(representation, Representation) and not isinstance(
        representation.molecule_encoder, nn.Identity
    ):
        return _found(representation.drugs(), "encoded molecules, mean of a class")
    return None


def _is_table(value: Any, n_drugs: int) -> TypeGuard[torch.Tensor]:
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == 2
        and value.shape[0] == n_drugs
        and value.shape[1] > 1
    )


def _output_rows(model: Recommender) -> DrugVectors | None:
    n_drugs = model.context.n_drugs
    layers = [
        part
        for part in model.modules()
        if isinstance(part, nn.Linear)
        and part.out_features in (n_drugs, n_drugs + 1)  # drugs come first, END last
        and part.in_features not in (n_drugs, n_drugs + 1)
    ]
    if not layers:
        return None
    return _found(layers[-1].weight[:n_drugs], "rows of the output layer")
