"""What all three packages share: typed settings, errors, canonical JSON, atomic files.

This is the lowest file of the project. It knows no chemistry and no patients. What does not
fit here in a few lines is not shared.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every request and configuration: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    def digest(self) -> str:
        """SHA-256 of the validated settings as canonical JSON (64 hexadecimal digits)."""
        return digest(self.model_dump(mode="json"))


# --------------------------------------------------------------------------- errors


class MedrecError(Exception):
    """Base of all errors that a user can act on.

    The message has the form *what happened; with which value; what was expected; where*.
    ``kind`` is stable and stands in records; ``exit_code`` is what the command line returns.
    """

    kind: ClassVar[str] = "unknown"
    exit_code: ClassVar[int] = 1


class InputError(MedrecError):
    """The request is wrong. Never retried."""

    kind = "input"
    exit_code = 2


class ConfigError(MedrecError):
    """A configuration does not validate. Carries file and key path in the message."""

    kind = "config"
    exit_code = 2


class DataError(MedrecError):
    """A table breaks its schema. Names file, table, column and count, never patient values."""

    kind = "data"
    exit_code = 2


class ProgramMissingError(MedrecError, ImportError):
    """A program or package is not installed. The message names what to install."""

    kind = "program_missing"
    exit_code = 3


class ResourceError(MedrecError):
    """Memory, disk or time limit. Retried once with the larger profile."""

    kind = "resource"
    exit_code = 4


class DiskFullError(ResourceError):
    """No space left where results go. Nothing is wrong with the request: wait, and try again."""

    kind = "disk_full"


class ConvergenceError(MedrecError):
    """SCF or optimisation did not converge.

    Parameters
    ----------
    message : str
        What happened.
    energies_hartree : list of float, optional
        The last total energies, so that a person can see oscillation or drift.
    """

    kind = "convergence"
    exit_code = 4

    def __init__(self, message: str, energies_hartree: list[float] | None = None) -> None:
        super().__init__(message)
        self.energies_hartree = energies_hartree or []


class TransientError(MedrecError):
    """A lost worker or an I/O fault. Retried as it is."""

    kind = "transient"
    exit_code = 5


class StoreError(MedrecError):
    """The store cannot be used: wrong format version, unreadable folder."""

    kind = "store"
    exit_code = 6


class IntegrityError(MedrecError):
    """Bytes do not match their digest, or a result breaks a physical law. Look, don't retry."""

    kind = "integrity"
    exit_code = 6


# --------------------------------------------------------------------------- processes

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends (Linux; elsewhere nothing).

    For ``preexec_fn`` of a program and for forked children: no calculation outlives its owner.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


# --------------------------------------------------------------------------- digests


def canonical_json(value: Any) -> str:
    """Serialise to the one JSON text that digests are taken of.

    Sorted keys, no spaces, ASCII, no NaN. Pass *validated* values: ``1`` and ``1.0`` differ.

    Raises
    ------
    InputError
        If the value holds NaN, infinity or a type that JSON lacks.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"value has no canonical JSON form: {error}") from error


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value (64 hexadecimal digits)."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes (64 hexadecimal digits)."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --------------------------------------------------------------------------- atomic files


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write text (UTF-8) atomically."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write readable JSON atomically (sorted keys, two spaces, trailing newline)."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is an `InputError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"file not found: {path}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"not readable as JSON: {path} ({error})") from error


def publish_folder(temporary: Path, final: Path) -> bool:
    """Rename a finished folder into place; the first writer wins.

    Parameters
    ----------
    temporary : Path
        Complete folder on the same file system as ``final``.
    final : Path
        Where readers look.

    Returns
    -------
    bool
        True if this call published, False if another writer had been first (the temporary
        folder is removed then).
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        return False
    _sync_folder(final.parent)
    return True


# --------------------------------------------------------------------------- provenance


@cache
def code_version() -> dict[str, Any]:
    """Version of the installed distribution and, in a checkout, its commit and dirty flag."""
    try:
        version = importlib.metadata.version("medrec")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    root = Path(__file__).resolve().parent.parent
    commit, dirty = None, None
    if (root / ".git").exists() and shutil.which("git"):
        commit = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain", "--untracked-files=no")
        dirty = None if status is None else bool(status)
    return {"version": version, "commit": commit, "dirty": dirty}


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def machine() -> dict[str, Any]:
    """Processor, cores, memory and platform; no host name, no user name, no path."""
    model = platform.processor() or platform.machine()
    memory_gib = None
    with_cpuinfo = Path("/proc/cpuinfo")
    if with_cpuinfo.exists():
        for line in with_cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        memory_gib = round(pages * size / 2**30, 1)
    return {
        "processor": model,
        "cores": available_cores(),
        "memory_gib": memory_gib,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def available_cores() -> int:
    """Cores that this process may use (its affinity mask, not the machine's total)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def now_utc() -> str:
    """Current time, UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions(*names: str) -> dict[str, str | None]:
    """Installed versions by distribution name; None where a package is absent."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def provenance(*packages: str) -> dict[str, Any]:
    """Stamp for records: code version, machine, package versions, time."""
    return {
        "code": code_version(),
        "machine": machine(),
        "packages": package_versions("numpy", *packages),
        "time": now_utc(),
    }
