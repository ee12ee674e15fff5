"""YAML files and ``--set a.b=c`` to validated configurations, with complaints one can act on."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from quantum.base import ConfigError

C = TypeVar("C", bound=BaseModel)


def load_config(path: Path | str, kind: type[C], overrides: list[str] | tuple[str, ...] = ()) -> C:
    """Read one YAML file, apply ``a.b=c`` overrides, validate.

    Raises
    ------
    ConfigError
        With the file, the key path, the value and what was expected.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"configuration file not found: {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"configuration file is not readable YAML: {path}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file holds no mapping at top level: {path}")
    for text in overrides:
        apply_override(tree, text)
    return validate_config(tree, kind, str(path))


def apply_override(tree: dict[str, Any], text: str) -> None:
    """Set one ``a.b=c`` in a tree; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{text}' is not of the form key.path=value")
    *parents, last = key.strip().split(".")
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override '{text}': '{part}' is a value, not a section")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{text}': value is not YAML: {error}") from error


def validate_config(tree: Any, kind: type[C], where: str) -> C:
    """Validate a tree; every complaint becomes one readable line."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_complaint(kind, item) for item in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def _complaint(kind: type[BaseModel], item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"]) or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"unknown key '{location}'" + suggest(str(item["loc"][-1]), _known_keys(kind))
    if item["type"] == "missing":
        return f"missing key '{location}'"
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (got {value!r})"
    return f"{location}: {message}{shown}"


def _known_keys(kind: type[BaseModel], seen: set[type] | None = None) -> set[str]:
    """Field names of a class and of everything nested in it."""
    seen = set() if seen is None else seen
    if kind in seen:
        return set()
    seen.add(kind)
    keys = set(kind.model_fields)
    pending: list[Any] = [field.annotation for field in kind.model_fields.values()]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys |= _known_keys(annotation, seen)
        else:
            pending.extend(get_args(annotation))
    return keys


def suggest(word: str, known: Any) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, [str(item) for item in known], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
