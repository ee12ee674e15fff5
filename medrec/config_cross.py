"""Configuration of a cross table: recommenders by representations; see `medrec.config`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, model_validator

from medrec.config_models import TrainConfig
from medrec.config_papers import RepresentationConfig
from quantum.base import Frozen

STARTED_BY_A_RUN = ("gin", "gin_elf", "molinteract")
"""Kinds whose encoder can start from a pre-training run."""
READ_FEATURES = ("elf", "gin_elf", "molinteract")
"""Kinds that read a feature table: ELF features or conformers."""


class CrossRepresentation(Frozen):
    """One row of a recommender's table."""

    label: str = Field(pattern=r"^[a-z0-9_]+$")
    representation: RepresentationConfig = Field(
        description="`kind` and what differs from the recommender's own representation"
    )
    pretrained: bool = Field(False, description="start from the run of --pretrained")

    @model_validator(mode="after")
    def _consistent(self) -> CrossRepresentation:
        given = self.representation
        if "kind" not in given.model_fields_set:
            raise ValueError(f"representation of '{self.label}' has no kind; expected one")
        if given.shuffle_seed is not None:
            raise ValueError(
                f"representation of '{self.label}' has a shuffle_seed; the null test sets it, see "
                "shuffled_null"
            )
        if self.pretrained and given.kind not in STARTED_BY_A_RUN:
            raise ValueError(
                f"'{self.label}' is pretrained and of kind '{given.kind}'; expected one of: "
                + ", ".join(STARTED_BY_A_RUN)
            )
        return self

    def changes(self) -> dict[str, Any]:
        """Fields of the representation that were written out."""
        return self.representation.model_dump(exclude_unset=True)


class CrossConfig(Frozen):
    """Any recommender with any representation of molecules, and the null test of each.

    Every recommender is trained with every representation, on every split with every seed. With
    ``shuffled_null`` each of these runs but those of kind ``none`` has a twin whose drug classes
    have each other's molecules, drawn anew for every seed.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    recommenders: tuple[str | TrainConfig, ...] = Field(
        min_length=1, description="training configurations: paths relative to this file, or inline"
    )
    representations: tuple[CrossRepresentation, ...] = Field(min_length=2)
    reference: str = Field("none", description="label that differences refer to")
    shuffled_null: bool = True
    seeds: tuple[NonNegativeInt, ...] = Field((1203,), min_length=1)
    splits: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> CrossConfig:
        labels = [item.label for item in self.representations]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two representations have the label '{twice[0]}'; expected one")
        if self.reference not in labels:
            raise ValueError(
                f"reference '{self.reference}' is none of the labels: {', '.join(labels)}"
            )
        for name in ("seeds", "splits"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} holds a number twice")
        return self
