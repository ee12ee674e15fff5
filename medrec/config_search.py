"""Configuration classes of hyper-parameter searches."""

from __future__ import annotations

import itertools
from typing import Any, Generic, Literal, TypeVar

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from medrec.config_models import TrainConfig
from medrec.config_molecules import PropertyConfig
from medrec.config_search_space import (
    MOST_GRID_POINTS,
    Choice,
    FloatRange,
    IntRange,
    SearchDimension,
    combinations_to_check,
    grid_points,
    is_conditional,
    limits_of,
    parents_first,
)
from medrec.loading import suggest
from quantum.base import Frozen

__all__ = [
    "AshaConfig",
    "Choice",
    "FloatRange",
    "IntRange",
    "MedianConfig",
    "Objective",
    "PbtConfig",
    "PropertyTuneConfig",
    "SearchConfig",
    "SearchDimension",
    "TuneConfig",
]

Base = TypeVar("Base", bound=Frozen)
Sampler = Literal["tpe", "random", "nsga2", "gp", "grid"]
Stopper = Literal["asha", "median", "pbt", "none"]

# left out of a dump where they have their default, so that names of older searches stay
_LATER_FIELDS = (
    "stopper", "median", "pbt", "repeats", "warm_start", "max_failed_trials", "trial_timeout_s",
    "gpus_per_trial",
)  # fmt: skip


class Objective(Frozen):
    """A validation metric and its direction."""

    metric: str = "jaccard"
    mode: Literal["max", "min"] = "max"


class AshaConfig(Frozen):
    """Asynchronous successive halving, in epochs."""

    grace_epochs: PositiveInt = 3
    reduction_factor: PositiveInt = Field(3, ge=2)


class MedianConfig(Frozen):
    """Median stopping rule (Golovin et al., KDD 2017), in epochs."""

    grace_epochs: PositiveInt = 3
    min_trials: PositiveInt = Field(3, description="trials before a median is taken")


class PbtConfig(Frozen):
    """Population based training (Jaderberg et al., 2017), in epochs."""

    perturb_epochs: PositiveInt = Field(3, description="epochs between two exchanges")
    quantile: float = Field(0.25, gt=0.0, le=0.5, description="share that copies the best")
    resample: float = Field(0.25, ge=0.0, le=1.0, description="probability of a fresh value")


class SearchConfig(Frozen, Generic[Base]):
    """A search with Optuna; the first objective also drives the stopping rule."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    base: Base
    space: dict[str, SearchDimension]
    objectives: tuple[Objective, ...] = ()
    n_trials: PositiveInt = Field(20, description="complete trials wanted; a grid's is its size")
    sampler: Sampler = "tpe"
    seed: NonNegativeInt = 0
    stopper: Stopper | None = Field(None, description="null: asha, or none where asha is null")
    asha: AshaConfig | None = AshaConfig()
    median: MedianConfig = MedianConfig()
    pbt: PbtConfig = PbtConfig()
    repeats: PositiveInt = Field(1, description="seeds per trial; objectives are their means")
    warm_start: tuple[str, ...] = Field((), description="runs whose trials this search starts from")
    max_failed_trials: NonNegativeInt | None = Field(
        None, description="failed trials of a session that are made up for; null: n_trials/4, >= 3"
    )
    trial_timeout_s: PositiveFloat | None = Field(
        None, description="silence after which a trial is ended; its start has 120 s more"
    )
    max_concurrent: PositiveInt | None = Field(
        2, description="trials at a time; null: what the cluster holds; not part of the name"
    )
    cpus_per_trial: PositiveInt | PositiveFloat = 1
    gpus_per_trial: NonNegativeInt | NonNegativeFloat = Field(0, description="0.25: four on a GPU")

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        for name in _LATER_FIELDS:
            if getattr(self, name) == type(self).model_fields[name].default:
                tree.pop(name, None)
        return tree

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
        parents_first(self.space)
        return self

    @model_validator(mode="after")
    def _combinations_possible(self) -> SearchConfig[Base]:
        for params in combinations_to_check(self.space):
            reason = self._complaint(params)
            if reason is None:
                continue
            for path, value in params.items():
                alone = self._complaint({path: value})
                if alone is not None:
                    raise ValueError(f"space path '{path}', value {value!r}: {alone}")
            named = ", ".join(f"{path}={value!r}" for path, value in params.items())
            raise ValueError(f"space, at {named}: {reason}")
        return self

    def _complaint(self, params: dict[str, Any]) -> str | None:
        try:
            self.with_params(params)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            reason = str(first["msg"]).removeprefix("Value error, ")
            return f"{where}: {reason}" if where and where not in params else reason
        return None

    @model_validator(mode="after")
    def _grid_is_whole(self) -> SearchConfig[Base]:
        if self.sampler != "grid":
            return self
        size = sum(1 for _ in itertools.islice(grid_points(self.space), MOST_GRID_POINTS + 1))
        if size > MOST_GRID_POINTS:
            raise ValueError(f"the grid has more than {MOST_GRID_POINTS} points")
        if "n_trials" in self.model_fields_set and self.n_trials != size:
            raise ValueError(
                f"sampler grid tries all {size} points, n_trials is {self.n_trials}; leave it out"
            )
        object.__setattr__(self, "n_trials", size)  # the one value of a frozen grid that follows
        return self

    @model_validator(mode="after")
    def _stopper_fits(self) -> SearchConfig[Base]:
        if self.stopper == "asha" and self.asha is None:
            raise ValueError("stopper asha needs its section `asha`, which is null")
        if self.stopper != "pbt":
            return self
        if self.sampler != "random":
            raise ValueError(
                f"stopper pbt draws and changes values itself, sampler is {self.sampler}; "
                "expected sampler: random"
            )
        if is_conditional(self.space) or self.repeats > 1:
            what = f"repeats {self.repeats}" if self.repeats > 1 else "conditions (`when`)"
            raise ValueError(f"stopper pbt cannot be combined with {what}")
        if self.warm_start or self.n_trials < 2:
            what = "warm_start" if self.warm_start else "a population (n_trials) of 1"
            raise ValueError(f"stopper pbt cannot be combined with {what}")
        return self

    @property
    def rule(self) -> Stopper:
        """The stopping rule that applies."""
        return self.stopper or ("none" if self.asha is None else "asha")

    @property
    def failures_allowed(self) -> int:
        """Failed trials that one session makes up for."""
        if self.max_failed_trials is not None:
            return self.max_failed_trials
        return max(3, self.n_trials // 4)

    def key(self) -> SearchConfig[Base]:
        """The part that names a run: how it is computed does not change what it finds.

        Runs of a warm start stand among a run's inputs, by digest.
        """
        machine: dict[str, Any] = {
            "max_concurrent": 1,
            "cpus_per_trial": 1,
            "gpus_per_trial": 0,
            "max_failed_trials": None,
            "trial_timeout_s": None,
            "warm_start": (),
        }
        return self.model_copy(update=machine)

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
        return limits_of(self.space[path])


class TuneConfig(SearchConfig[TrainConfig]):
    """A search over the settings of a recommender."""

    objectives: tuple[Objective, ...] = (Objective(),)

    @model_validator(mode="after")
    def _weights_can_be_copied(self) -> TuneConfig:
        """A network cannot take over the weights of one with another shape."""
        if self.rule != "pbt":
            return self
        for path in self.space:
            section, _, name = path.partition(".")
            fixed = section == "optim" and name in ("epochs", "patience", "tune_threshold")
            if fixed or not (section in ("optim", "loss") or path.endswith("dropout")):
                raise ValueError(
                    f"stopper pbt changes values while a network trains, space path '{path}' "
                    "cannot change then; expected paths of optim (not epochs, patience), of loss, "
                    "or a dropout"
                )
        return self


class PropertyTuneConfig(SearchConfig[PropertyConfig]):
    """A search over the settings of a property prediction."""

    objectives: tuple[Objective, ...] = Field(
        (),
        description="empty is the validation score; parameters (of the encoder, min) may follow it",
    )

    @model_validator(mode="after")
    def _values_possible(self) -> PropertyTuneConfig:
        if self.rule == "pbt":
            raise ValueError(
                "stopper pbt needs trials that go on from another trial's weights; a property "
                "search keeps none and its learning rate follows a fixed schedule; "
                "expected asha, median or none"
            )
        for path in self.space:
            if path.split(".")[0] in ("name", "split", "targets"):
                raise ValueError(
                    f"space path '{path}' names what is measured, so trials could not be compared"
                )
        return self
