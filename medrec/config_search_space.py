"""Search spaces: dimensions, which of them depend on others, and combinations to check."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from quantum.base import Frozen

Value = int | float | str | bool

# checked before the first trial: all corners of a space up to this number, or a sample of them
_CORNERS = 512
_DRAWS = 64
MOST_GRID_POINTS = 100_000


class _Dimension(Frozen):
    """What all dimensions share."""

    when: dict[str, tuple[Value, ...]] | None = Field(
        None,
        description="searched only where these choices of the space have one of these values",
    )

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `when` out where there is none: names of older searches stay."""
        tree: dict[str, Any] = handler(self)
        if self.when is None:
            del tree["when"]
        return tree


class FloatRange(_Dimension):
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


class IntRange(_Dimension):
    """A whole-number parameter, both ends included."""

    type: Literal["int"]
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Choice(_Dimension):
    """One of a list of values."""

    type: Literal["choice"]
    values: tuple[Value, ...] = Field(min_length=1)


SearchDimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]
Space = Mapping[str, FloatRange | IntRange | Choice]
Choose = Callable[[str], Any]


def limits_of(dimension: FloatRange | IntRange | Choice) -> tuple[Any, ...]:
    """Ends of a dimension, or all values of a choice."""
    if isinstance(dimension, Choice):
        return dimension.values
    return (dimension.low, dimension.high)


def contains(dimension: FloatRange | IntRange | Choice, value: Any) -> bool:
    """Whether a value lies in a dimension."""
    if isinstance(dimension, Choice):
        return value in dimension.values
    if isinstance(value, str | bool):
        return False
    whole = not isinstance(dimension, IntRange) or float(value).is_integer()
    return whole and dimension.low <= value <= dimension.high


def is_active(dimension: FloatRange | IntRange | Choice, chosen: Mapping[str, Any]) -> bool:
    """Whether a dimension is searched, its parents being chosen."""
    wanted = dimension.when or {}
    return all(path in chosen and chosen[path] in values for path, values in wanted.items())


def is_conditional(space: Space) -> bool:
    """Whether a dimension depends on another one."""
    return any(item.when for item in space.values())


def parents_first(space: Space) -> list[str]:
    """Paths in an order in which no dimension comes before one that it depends on.

    Raises
    ------
    ValueError
        If a condition names no choice of the space, an impossible value, or goes in a circle.
    """
    for path, dimension in space.items():
        _check_condition(path, dimension, space)
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        free = [path for path in waiting if set(space[path].when or {}) <= set(ordered)]
        if not free:
            raise ValueError(f"conditions of {', '.join(sorted(waiting))} depend on each other")
        ordered += free
        waiting = [path for path in waiting if path not in free]
    return ordered


def _check_condition(path: str, dimension: FloatRange | IntRange | Choice, space: Space) -> None:
    if dimension.when is not None and not dimension.when:
        raise ValueError(f"space path '{path}': `when` is empty; expected a path and its values")
    for parent, values in (dimension.when or {}).items():
        found = space.get(parent)
        if not isinstance(found, Choice):
            kind = "is not in the space" if found is None else f"is of type {found.type}"
            raise ValueError(
                f"space path '{path}' depends on '{parent}', which {kind}; expected a choice"
            )
        unknown = [value for value in values if value not in found.values]
        if unknown or not values:
            known = ", ".join(map(repr, found.values))
            value = repr(unknown[0]) if unknown else "no value"
            raise ValueError(
                f"space path '{path}' depends on '{parent}' having {value}; its values are {known}"
            )


def combine(space: Space, choose: Choose) -> dict[str, Any]:
    """One combination: ``choose(path)`` for every dimension that is active."""
    chosen: dict[str, Any] = {}
    for path in parents_first(space):
        if is_active(space[path], chosen):
            chosen[path] = choose(path)
    return chosen


def draw(dimension: FloatRange | IntRange | Choice, rng: random.Random) -> Any:
    """One random value of a dimension."""
    if isinstance(dimension, Choice):
        return rng.choice(dimension.values)
    if isinstance(dimension, IntRange):
        return rng.randint(dimension.low, dimension.high)
    if dimension.type == "loguniform":
        value = math.exp(rng.uniform(math.log(dimension.low), math.log(dimension.high)))
        return min(max(value, dimension.low), dimension.high)
    return rng.uniform(dimension.low, dimension.high)


def corners(space: Space) -> Iterator[dict[str, Any]]:
    """All combinations of the limits of the dimensions, in the order of the space."""
    return _products(space, {path: limits_of(item) for path, item in space.items()})


def grid_points(space: Space) -> Iterator[dict[str, Any]]:
    """All combinations of the values of choices and whole numbers."""
    values: dict[str, tuple[Any, ...]] = {}
    for path, item in space.items():
        if isinstance(item, FloatRange):
            raise ValueError(
                f"sampler grid needs choices and whole numbers; space path '{path}' is of type "
                f"{item.type}"
            )
        if isinstance(item, IntRange):
            values[path] = tuple(range(item.low, item.high + 1))
        else:
            values[path] = item.values
    return _products(space, values)


def _products(space: Space, values: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Depth first, so that inactive dimensions multiply nothing."""
    ordered = parents_first(space)

    def extend(position: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if position == len(ordered):
            yield chosen
            return
        path = ordered[position]
        if not is_active(space[path], chosen):
            yield from extend(position + 1, chosen)
            return
        for value in values[path]:
            yield from extend(position + 1, {**chosen, path: value})

    return extend(0, {})


def combinations_to_check(space: Space) -> Iterator[dict[str, Any]]:
    """Corners (all, or each limit and a sample) and random draws; the same ones every time."""
    rng = random.Random(0)
    found = list(itertools.islice(corners(space), _CORNERS + 1))
    if len(found) > _CORNERS:
        found = [_towards(space, path, value, rng) for path, value in _all_limits(space)]
        found += [
            combine(space, lambda path: rng.choice(limits_of(space[path])))
            for _ in range(_CORNERS // 2)
        ]
    yield from found
    for _ in range(_DRAWS):
        yield combine(space, lambda path: draw(space[path], rng))


def _all_limits(space: Space) -> Iterator[tuple[str, Any]]:
    for path, item in space.items():
        for value in limits_of(item):
            yield path, value


def _towards(space: Space, path: str, value: Any, rng: random.Random) -> dict[str, Any]:
    """A corner in which one dimension is active and has this value."""
    fixed: dict[str, tuple[Any, ...]] = {path: (value,)}
    pending = [path]
    while pending:
        for parent, values in (space[pending.pop()].when or {}).items():
            fixed[parent] = tuple(v for v in fixed.get(parent, values) if v in values)
            pending.append(parent)
    return combine(space, lambda item: rng.choice(fixed.get(item) or limits_of(space[item])))
