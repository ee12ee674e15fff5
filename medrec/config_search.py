"""Configuration classes of hyper-parameter searches."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from medrec.config_models import TrainConfig
from medrec.config_molecules import PropertyConfig
from medrec.loading import suggest
from quantum.base import Frozen

Base = TypeVar("Base", bound=Frozen)


class FloatRange(Frozen):
    """A continuous parameter."""

    type: Literal["uniform", "loguniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.type == "loguniform" and self.low <= 0:
            raise ValueError(f"loguniform needs low > 0, got {self.low:g}")
        return self


class IntRange(Frozen):
    """A whole-number parameter, both ends included."""

    type: Literal["int"]
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Choice(Frozen):
    """One of a list of values."""

    type: Literal["choice"]
    values: tuple[int | float | str | bool, ...] = Field(min_length=1)


SearchDimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


class Objective(Frozen):
    """A validation metric and its direction."""

    metric: str = "jaccard"
    mode: Literal["max", "min"] = "max"


class AshaConfig(Frozen):
    """Asynchronous successive halving, in epochs."""

    grace_epochs: PositiveInt = 3
    reduction_factor: PositiveInt = Field(3, ge=2)


class SearchConfig(Frozen, Generic[Base]):
    """A search with Optuna; the first objective also drives ASHA."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    base: Base
    space: dict[str, SearchDimension]
    objectives: tuple[Objective, ...] = ()
    n_trials: PositiveInt = 20
    sampler: Literal["tpe", "random"] = "tpe"
    seed: NonNegativeInt = 0
    asha: AshaConfig | None = AshaConfig()
    max_concurrent: PositiveInt = Field(2, description="trials at a time; not part of the name")
    cpus_per_trial: PositiveInt = 1

    @model_validator(mode="after")
    def _paths_exist(self) -> SearchConfig[Base]:
        tree = self.base.model_dump(mode="json")
        for path in self.space:
            node: Any = tree
            for part in path.split("."):
                if not isinstance(node, dict) or part not in node:
                    raise ValueError(
                        f"space path '{path}' names no field of base"
                        + suggest(part, node if isinstance(node, dict) else ())
                    )
                node = node[part]
        return self

    def with_params(self, params: dict[str, Any]) -> Base:
        """Configuration of a trial: dotted paths set in a copy of the base."""
        tree = self.base.model_dump(mode="json")
        for path, value in params.items():
            node = tree
            *parents, last = path.split(".")
            for part in parents:
                node = node[part]
            node[last] = value
        return type(self.base).model_validate(tree)

    def limits(self, path: str) -> tuple[Any, ...]:
        """Ends of a dimension, or all values of a choice."""
        dimension = self.space[path]
        if isinstance(dimension, Choice):
            return dimension.values
        return (dimension.low, dimension.high)


class TuneConfig(SearchConfig[TrainConfig]):
    """A search over the settings of a recommender."""

    objectives: tuple[Objective, ...] = (Objective(),)


class PropertyTuneConfig(SearchConfig[PropertyConfig]):
    """A search over the settings of a property prediction."""

    objectives: tuple[Objective, ...] = Field(
        (),
        description="empty is the validation score; parameters (of the encoder, min) may follow it",
    )

    @model_validator(mode="after")
    def _values_possible(self) -> PropertyTuneConfig:
        for path in self.space:
            if path.split(".")[0] in ("name", "split", "targets"):
                raise ValueError(
                    f"space path '{path}' names what is measured, so trials could not be compared"
                )
            for value in self.limits(path):
                try:
                    self.with_params({path: value})
                except ValidationError as error:
                    reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"space path '{path}', value {value!r}: {reason}") from error
        return self
