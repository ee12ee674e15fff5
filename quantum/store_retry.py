"""Wait for a store that cannot be reached for a while, and give up with a clear error.

An I/O fault must never read as "not there": the result would be computed again. So each
operation is tried again with growing pauses until a budget of time is used up.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from quantum.base import ConfigError, StoreError, TransientError

RETRY_VARIABLE = "MEDREC_STORE_RETRY_S"
DEFAULT_RETRY_S = 300.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 15.0
_SAY_AFTER_S = 5.0
_log = logging.getLogger(__name__)
T = TypeVar("T")

# what a shared file system says when its server or the network is away
# fmt: off
_NAMES = (
    "EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR", "EREMOTEIO", "ENOTCONN", "ENODEV",
    "ENXIO", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET",
    "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ENOLINK",
)
# fmt: on
_AWAY = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def retry_budget(given: float | None = None) -> float:
    """Seconds to wait for a store: as given, or ``MEDREC_STORE_RETRY_S``, or five minutes.

    Raises
    ------
    ConfigError
        If the variable is not a number of seconds.
    """
    if given is not None:
        return given
    text = os.environ.get(RETRY_VARIABLE, "")
    try:
        budget = float(text) if text else DEFAULT_RETRY_S
    except ValueError:
        budget = -1.0
    if not 0 <= budget < float("inf"):
        raise ConfigError(f"{RETRY_VARIABLE} is '{text}', expected seconds, such as 300")
    return budget


def explain_os_error(error: BaseException, where: str) -> str:
    """Say what an `OSError` of a folder means.

    Returns
    -------
    str
        Text of a fault that may pass.

    Raises
    ------
    StoreError
        If reading or writing is not permitted, or a file is where a folder belongs.
    BaseException
        The error itself if it is of another kind, such as a missing file or a full disk.
    """
    if isinstance(error, OSError) and error.errno in _DENIED:
        raise StoreError(
            f"the store {where} refuses access ({error.strerror}: {error.filename}); "
            "expected the right to read and write there"
        ) from error
    if isinstance(error, NotADirectoryError):
        raise StoreError(
            f"the store {where} cannot be used: a part of {error.filename} is a file, "
            "expected a folder"
        ) from error
    if isinstance(error, OSError) and error.errno in _AWAY:
        return f"{error.strerror or type(error).__name__} ({errno.errorcode[error.errno or 0]})"
    raise error


@dataclass(frozen=True)
class Retry:
    """Calls an action until it succeeds, fails for good, or the budget is used up.

    Parameters
    ----------
    where : str
        Location of the store, for messages.
    budget_s : float
        Seconds from the first fault to the error; 0 tries once.
    catch : tuple of exception types
        What may be a fault that passes.
    explain : callable
        Takes the error and the location; returns a text if the fault may pass, raises otherwise.
    """

    where: str
    budget_s: float
    catch: tuple[type[BaseException], ...] = (OSError,)
    explain: Callable[[BaseException, str], str] = explain_os_error

    def __call__(self, action: Callable[[], T]) -> T:
        """Run an action.

        Raises
        ------
        TransientError
            If the store could not be reached for the whole budget.
        """
        start, pause, said = time.monotonic(), _FIRST_PAUSE_S, False
        while True:
            try:
                return action()
            except self.catch as error:
                text, cause = self.explain(error, self.where), error
            waited = time.monotonic() - start
            if waited + pause > self.budget_s:
                raise TransientError(
                    f"the store {self.where} could not be reached for {waited:.0f} s: {text}"
                ) from cause
            if waited > _SAY_AFTER_S and not said:
                said = True
                _log.warning(
                    "the store %s cannot be reached (%s); trying for up to %.0f s",
                    self.where,
                    text,
                    self.budget_s,
                )
            # drawn, so that a thousand workers do not come back in the same instant
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)


# --------------------------------------------------------------------------- files


def is_there(path: Path) -> bool:
    """As ``Path.exists``, which takes some I/O faults for a missing file."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def read_if_there(path: Path) -> str | None:
    """Text of a file, None if there is no such file."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None


def list_names(folder: Path) -> list[str]:
    """Names in a folder, none if there is no such folder."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
