"""YAML files and ``--set a.b=c`` to validated configurations, with complaints one can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from quantum.base import ConfigError

C = TypeVar("C", bound=BaseModel)
_QUOTED = re.compile(r"'([^']+)'")


def load_config(path: Path | str, kind: type[C], overrides: list[str] | tuple[str, ...] = ()) -> C:
    """Read one YAML file, apply ``a.b=c`` overrides, validate.

    Raises
    ------
    ConfigError
        With the file (and the override, if it is at fault), the key path, the value and what was
        expected.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        near = suggest_file(path)
        raise ConfigError(f"configuration file not found: {path}{near}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"configuration file is not readable YAML: {path}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file holds no mapping at top level: {path}")
    for text in overrides:
        apply_override(tree, text)
    return _validate(tree, kind, str(path), overrides)


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
    return _validate(tree, kind, where, ())


def _validate(tree: Any, kind: type[C], where: str, overrides: Sequence[str]) -> C:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_blame(item, overrides) + _complaint(kind, item) for item in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def _blame(item: Any, overrides: Sequence[str]) -> str:
    """``--set key=value: `` if that override is what the complaint is about."""
    parts = [str(part) for part in item["loc"]]
    for text in overrides:
        wanted = text.partition("=")[0].strip().split(".")
        left = iter(parts)  # tags of unions stand between the keys
        if wanted[-1:] == parts[-1:] and all(key in left for key in wanted):
            return f"--set {text}: "
    return ""


def _complaint(kind: type[BaseModel], item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"]) or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"unknown key '{location}'" + _key_advice(kind, item["loc"])
    if item["type"] == "missing":
        return f"missing key '{location}'"
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (got {value!r})"
    return f"{location}: {message}{shown}{_value_advice(item)}"


def _value_advice(item: Any) -> str:
    """Nearest of the allowed words, where the value is one of a few."""
    facts = item.get("ctx") or {}
    allowed = _QUOTED.findall(str(facts.get("expected_tags") or facts.get("expected") or ""))
    value = facts.get("tag", item.get("input"))
    return suggest(value, allowed) if isinstance(value, str) else ""


def _key_advice(kind: type[BaseModel], location: Sequence[int | str]) -> str:
    """Nearest key: of the same section, else of another; then all of the section."""
    word, section = str(location[-1]), _section(kind, location[:-1])
    if section is None:
        return suggest(word, _known_keys(kind))
    own = suggest(word, section.model_fields)
    keys = ", ".join(sorted(section.model_fields))
    first = str(location[0]) if len(location) > 1 else None
    return f"{own or _elsewhere(word, kind, first)}, valid keys here: {keys}"


def _section(kind: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """Class of the section at a location; None where it is not a single one."""
    found = [kind]
    for part in location:
        fields = [item.model_fields[str(part)] for item in found if part in item.model_fields]
        if fields:
            found = [item for each in fields for item in _models(each.annotation)]
        elif not isinstance(part, int):  # the tag of a union
            tagged = [item for item in found if part in _tags(item)]
            found = tagged or found
    return found[0] if len(found) == 1 else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Configuration classes inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [item for part in get_args(annotation) for item in _models(part)]


def _tags(kind: type[BaseModel]) -> set[str]:
    """Values of a class's fixed fields, by which a union tells its members apart."""
    return {
        value
        for item in kind.model_fields.values()
        for value in get_args(item.annotation)
        if isinstance(value, str)
    }


def _elsewhere(word: str, kind: type[BaseModel], own: str | None) -> str:
    """Path of the nearest key in the other sections below the top."""
    paths = {
        f"{name}.{key}": key
        for name, item in kind.model_fields.items()
        if name != own
        for model in _models(item.annotation)
        for key in model.model_fields
    }
    close = difflib.get_close_matches(word, set(paths.values()), n=1)
    found = sorted(path for path, key in paths.items() if close and key == close[0])
    return f" (did you mean '{found[0]}'?)" if found else ""


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


def suggest_file(path: Path) -> str:
    """Return `` (did you mean 'x'?)`` for a file with a close name beside a missing one."""
    try:
        beside = [item.name for item in path.parent.iterdir() if item.is_file()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.7)
    return f" (did you mean '{path.parent / close[0]}'?)" if close else ""


def suggest(word: str, known: Any) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, [str(item) for item in known], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
