"""What becomes a job: a command, its name, its environment and the files that travel with it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestration.cluster import ADDRESS_VARIABLE
from quantum.base import InputError, digest, file_digest

PROGRAM = "python -m orchestration"
STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_S = 30  # Ray's own 3 s are too short for a driver that is writing a checkpoint
LIMIT_BYTES = 100 * 2**20
"""Ray's job server refuses larger requests, whatever its limit for packages says."""
_INSIDE_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_INSTALL_TIMEOUT_S = 3600
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_LEFT_OUT_ANYWHERE = {"__pycache__", "medrec-work", "node_modules"}
_LEFT_OUT_ON_TOP = ("tests", "docs", "site", "build", "dist", "benchmarks/results")
_LEFT_OUT_SUFFIXES = {".pyc", ".pt", ".tmp", ".pem", ".key"}
_DATA = "data"


def use_job_environment() -> None:
    """Inside a Ray job: join the job's cluster, and keep results out of the job's folder.

    Without this a command would start a second cluster beside the one it runs on, and its default
    home would be the unpacked upload, which Ray deletes. What is set already stays.
    """
    if _INSIDE_A_JOB in os.environ:
        os.environ.setdefault(ADDRESS_VARIABLE, "auto")
        os.environ.setdefault("MEDREC_HOME", str(Path.home() / "medrec-work"))


@dataclass(frozen=True)
class Request:
    """One command for the cluster.

    Parameters
    ----------
    name : str
        Without the attempt's number.
    arguments : tuple of str
        Of ``medrec``, such as ``("features", "run", "configs/quantum/demo.yaml")``.
    env : mapping of str to str
        Variables of the job and its tasks. Never printed; Ray keeps them in clear.
    cpus : float
        Cores kept free for the command itself, beside those of its tasks.
    resources : mapping of str to float, optional
        Custom resources of the command; None takes one ``driver`` where the cluster has it.
    pip : tuple of str
        Pins to install for this job; empty if the nodes have the packages.
    """

    name: str
    arguments: tuple[str, ...]
    env: Mapping[str, str]
    cpus: float = 0
    resources: Mapping[str, float] | None = None
    pip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"job name {self.name!r}; expected letters, digits, '-', '_' and '.', at most 100"
            )

    @property
    def entrypoint(self) -> str:
        """Shell command that the cluster runs."""
        return f"{PROGRAM} {shlex.join(self.arguments)}"

    def runtime_env(self, upload: Path | None) -> dict[str, Any]:
        """Ray's description of the job's environment."""
        env = {ADDRESS_VARIABLE: "auto", STOP_WAIT_VARIABLE: str(STOP_WAIT_S), **self.env}
        described: dict[str, Any] = {"env_vars": env}
        if upload is not None:
            described["working_dir"] = str(upload)
        if self.pip:
            described["pip"] = {"packages": list(self.pip), "pip_check": False}
            described["config"] = {"setup_timeout_seconds": _INSTALL_TIMEOUT_S}
        return described


def command_name(arguments: Sequence[str], folder: Path) -> str:
    """Name of a command: its words, and 8 digits of its arguments and the files they name."""
    words = []
    for word in arguments:
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            break
        words.append(word)
    files = {name: file_digest(folder / name) for name in arguments if (folder / name).is_file()}
    return "-".join([*words[:3], digest([list(arguments), files])[:8]])


def check_arguments(arguments: Sequence[str], upload: Upload) -> None:
    """Stop if a configuration that the command names would not be there on the cluster.

    Raises
    ------
    InputError
        Naming the file.
    """
    there = {str(path) for path in upload.files}
    for word in arguments:
        is_file = word.endswith((".yaml", ".yml")) and "=" not in word
        if is_file and not Path(word).is_absolute() and os.path.normpath(word) not in there:
            state = "is left out of" if (upload.folder / word).exists() else "is not in"
            raise InputError(f"{word} {state} what is uploaded from {upload.folder}")


def read_pins(lock: Path) -> tuple[str, ...]:
    """Lines of a lock file without comments.

    Raises
    ------
    InputError
        If the file is missing, or a line is not an exact pin.
    """
    if not lock.is_file():
        raise InputError(f"--install needs {lock}; there is no such file")
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    pins = tuple(line for line in lines if line)
    for pin in pins:
        if "==" not in pin:
            raise InputError(f"{lock}: {pin!r} is not an exact pin (package==version)")
    return pins


# --------------------------------------------------------------------------- what travels


@dataclass(frozen=True)
class Upload:
    """Files of a working folder that a job gets.

    Parameters
    ----------
    folder : Path
        Working folder.
    files : tuple of PurePosixPath
        Sorted, relative to ``folder``.
    sizes : tuple of int
        In bytes.
    """

    folder: Path
    files: tuple[PurePosixPath, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, folder: Path, leave_out: Iterable[Path] = ()) -> Upload:
        """Choose what travels: code, configurations and shipped tables.

        In a git checkout these are the files that git knows or would add, and below ``data/`` only
        those it knows, so that tables of patients put there stay here. Hidden files, keys, caches,
        tests, documents, results and links are left out everywhere.

        Parameters
        ----------
        leave_out : iterable of Path
            More folders to leave out, such as the home folder.

        Raises
        ------
        InputError
            If the folder is missing, or holds more than `LIMIT_BYTES`.
        """
        if not folder.is_dir():
            raise InputError(f"working folder not found: {folder}")
        banned = [path.resolve() for path in leave_out]
        names = _git_files(folder)
        chosen = sorted(
            name
            for name in (_walk(folder) if names is None else names)
            if not _is_left_out(name)
            and not any((folder / name).resolve().is_relative_to(path) for path in banned)
            and (folder / name).is_file()
            and not (folder / name).is_symlink()
        )
        sizes = tuple((folder / name).stat().st_size for name in chosen)
        upload = cls(folder, tuple(chosen), sizes)
        if upload.n_bytes > LIMIT_BYTES:
            raise InputError(
                f"{folder} holds {mib(upload.n_bytes)} to upload; Ray's job server takes "
                f"{mib(LIMIT_BYTES)}. The largest are: {upload.largest()}"
            )
        return upload

    @property
    def n_bytes(self) -> int:
        """Size unpacked; what travels is smaller."""
        return sum(self.sizes)

    def largest(self, count: int = 4) -> str:
        """The largest files and, for their folders, how much they hold in all."""
        totals: dict[str, int] = {}
        for name, size in zip(self.files, self.sizes, strict=True):
            place = "/".join(name.parts[:2]) + ("/" if len(name.parts) > 2 else "")
            totals[place] = totals.get(place, 0) + size
        first = sorted(totals.items(), key=lambda item: -item[1])[:count]
        return ", ".join(f"{place} ({mib(size)})" for place, size in first)

    def pack(self, target: Path) -> Path:
        """Write a zip file; the same files give the same bytes, which Ray uploads once."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in self.files:
                path = self.folder / name
                info = zipfile.ZipInfo(str(name))  # its date is 1980, whatever the file's
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = (path.stat().st_mode & 0o777) << 16
                archive.writestr(info, path.read_bytes())
        return target


def mib(n_bytes: float) -> str:
    """A size for people."""
    return f"{n_bytes / 2**20:.1f} MiB"


def _is_left_out(name: PurePosixPath) -> bool:
    if any(part.startswith(".") or part in _LEFT_OUT_ANYWHERE for part in name.parts):
        return True
    if any(part.endswith(".egg-info") for part in name.parts):
        return True
    on_top = any(name.is_relative_to(place) for place in _LEFT_OUT_ON_TOP)
    return on_top or name.suffix in _LEFT_OUT_SUFFIXES


def _git_files(folder: Path) -> list[PurePosixPath] | None:
    """What git knows, and what it would add outside ``data/``; None outside a checkout."""
    known, new = _git(folder, "--cached"), _git(folder, "--others", "--exclude-standard")
    if known is None or new is None:
        return None
    return known + [name for name in new if name.parts[0] != _DATA]


def _git(folder: Path, *which: str) -> list[PurePosixPath] | None:
    command = ["git", "-C", str(folder), "ls-files", "-z", *which]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return [PurePosixPath(name) for name in done.stdout.split("\0") if name]


def _walk(folder: Path) -> Iterator[PurePosixPath]:
    for place, folders, files in os.walk(folder):
        here = PurePosixPath(Path(place).relative_to(folder).as_posix())
        folders[:] = [name for name in folders if not _is_left_out(here / name)]
        yield from (here / name for name in files)
