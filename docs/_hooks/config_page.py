"""Configuration reference, made from the pydantic classes: key, type, default, description."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cli_page import cell
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_TOP = """# Configuration

Made from the classes that read the files. One YAML file is one complete run: what is not in it has
the default below. Unknown keys are refused. `--set key.path=value` overrides one value.
`medrec check-configs FOLDER` loads all files of a folder.

A type with limits is written with them: `float, > 0, <= 1`. `null` means that the key may be left
without a value. "one of" lists classes that stand for each other; the key that they all have
(`name`, `kind` or `format`) says which is meant.

| folder of `configs/` | class |
|---|---|
"""


def type_text(annotation: Any) -> str:
    """Name of a type as a reader of YAML wants it; classes link to their section.

    Parameters
    ----------
    annotation : type
        Of a field, without its limits.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin in (Union, types.UnionType):
        names = [type_text(item) for item in arguments if item is not type(None)]
        several = "one of " if len(names) > 1 and any("](#" in name for name in names) else ""
        text = several + (", " if several else " or ").join(names)
        return text + (" or `null`" if type(None) in arguments else "")
    if origin is Literal:
        return " ".join(f"`{json.dumps(item)}`" for item in arguments).replace('"', "")
    if origin in (tuple, list, set, frozenset):
        inner = [type_text(item) for item in arguments if item is not Ellipsis]
        fixed = origin is tuple and Ellipsis not in arguments
        return "list of " + inner[0] if not fixed else "list: " + ", ".join(inner)
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return getattr(annotation, "__name__", str(annotation))


def limits(field: FieldInfo) -> str:
    """Limits of a field, such as ``> 0, <= 1``."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "length >="}
    signs |= {"max_length": "length <=", "pattern": "pattern"}
    found = []
    for item in field.metadata:
        # pydantic keeps a pattern in an object with a dictionary of its own
        values = getattr(item, "__dict__", {}) or {
            name: getattr(item, name) for name in signs if hasattr(item, name)
        }
        found += [
            f"{sign} `{values[name]}`"
            for name, sign in signs.items()
            if values.get(name) is not None
        ]
    return ", ".join(found)


def default_text(field: FieldInfo) -> str:
    """Default of a field as YAML would have it; of a class, that its own defaults hold."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(changed)}`" if changed else "its defaults"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple) and all(isinstance(item, BaseModel) for item in value):
        value = [item.model_dump(mode="json", exclude_defaults=True) for item in value]
    return f"`{json.dumps(value, default=str)}`"


def classes_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Configuration classes that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for item in get_args(annotation):
        yield from classes_of(item)


def reachable(start: type[BaseModel]) -> list[type[BaseModel]]:
    """A class and all classes of its fields, in the order in which a reader meets them."""
    found: list[type[BaseModel]] = []
    waiting = [start]
    while waiting:
        item = waiting.pop(0)
        if item in found:
            continue
        found.append(item)
        hints = get_type_hints(item)
        waiting += [c for name in item.model_fields for c in classes_of(hints[name])]
    return found


def section(model: type[BaseModel]) -> str:
    """Markdown of one class: its docstring, and a row per key."""
    text = inspect.getdoc(model) or ""
    lines = [f"### {model.__name__} {{ #{model.__name__.lower()} }}", ""]
    lines += [text.replace("<", "&lt;"), ""]
    if model.model_fields:
        lines += ["| key | type | default | description |", "|---|---|---|---|"]
    hints = get_type_hints(model)
    for name, field in model.model_fields.items():
        kind = ", ".join(part for part in (type_text(hints[name]), limits(field)) if part)
        kind = kind.replace("|", "\\|")
        words = cell(field.description or "")
        lines.append(
            f"| `{field.alias or name}` | {kind} | {cell(default_text(field))} | {words} |"
        )
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Markdown of all configuration classes."""
    from medrec.config import DemoConfig
    from orchestration.configs import KIND_OF_FOLDER

    folders: dict[type[BaseModel], list[str]] = {}
    for folder, kind in KIND_OF_FOLDER.items():
        folders.setdefault(kind, []).append(f"`{folder}/`")
    folders[DemoConfig] = ["`demo.yaml`"]
    top = [f"| {', '.join(names)} | {type_text(kind)} |" for kind, names in folders.items()]
    body, seen = [], set()
    for kind, names in folders.items():
        new = [item for item in reachable(kind) if item not in seen]
        seen |= set(new)
        body += [f"## Files in {', '.join(names)}", "", *(section(item) for item in new)]
    return _TOP + "\n".join(top) + "\n\n" + "\n".join(body)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the build."""
    files.append(File.generated(config, "reference/configuration.md", content=reference()))
    return files
