"""What the page's requests get back: plain JSON values, and errors with a message."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.responses import JSONResponse

from quantum.base import InputError, MedrecError, ProgramMissingError

_STATUS = {"input": 400, "config": 400, "data": 400, "program_missing": 501}


class NotThereError(InputError):
    """Nothing of that name is in the home folder."""


def plain(value: Any) -> Any:
    """Values that JSON has: NaN and infinity become null, arrays lists, paths their names."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def reply(value: Any, status: int = 200) -> JSONResponse:
    """JSON answer."""
    return JSONResponse(plain(value), status)


def complaint(message: str, status: int, kind: str = "input") -> JSONResponse:
    """JSON answer about what went wrong; never a traceback."""
    return reply({"error": {"kind": kind, "message": message}}, status)


def of_error(error: MedrecError) -> JSONResponse:
    """Answer for an error of this project."""
    if isinstance(error, NotThereError):
        return complaint(str(error), 404, "not_found")
    if isinstance(error, ProgramMissingError):
        return complaint(str(error), 501, error.kind)
    return complaint(str(error), _STATUS.get(error.kind, 500), error.kind)


def folder_of(parent: Path, name: str, what: str) -> Path:
    """Folder of a name, looked up among those that there are: a name is never made a path.

    Raises
    ------
    NotThereError
        If there is none of that name.
    """
    found = {item.name: item for item in folders(parent)}
    if name not in found:
        raise NotThereError(f"no {what} of that name; it was moved, deleted or never made")
    return found[name]


def folders(parent: Path) -> list[Path]:
    """Folders inside a folder, hidden ones left out, by name; none if it is not there."""
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
