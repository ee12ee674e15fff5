"""The study's journal after an accident: torn lines, left locks."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantum.base import IntegrityError, write_bytes_atomic

JOURNAL = "study.journal"
_RECORD = re.compile(rb'\{"op_code":\d+,')


def repair_journal(folder: Path, warn: Callable[[str], None] = warnings.warn) -> int:
    """Make the journal of a search readable again; call while no other session writes it.

    Records stand on one line each and are appended. A last line that a kill or a full disk cut off
    is dropped. A line in the middle that begins with such a torn record, and ends with the next
    whole one, loses the torn part, which no session ever read. The damaged file is kept beside.

    Parameters
    ----------
    warn : callable
        Told how much was dropped, and where the file as it was is kept.

    Returns
    -------
    int
        Bytes dropped.

    Raises
    ------
    IntegrityError
        If a line in the middle is unreadable, with its number.
    """
    # the lock of a session that was killed while writing would be waited for
    (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
    path = folder / JOURNAL
    if not path.exists():
        return 0
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    kept = [_sound_part(line, number, len(lines), path) for number, line in enumerate(lines, 1)]
    whole = b"".join(kept)
    dropped = len(data) - len(whole)
    if whole == data:
        return 0
    copy = _free_name(folder)
    shutil.copy2(path, copy)
    write_bytes_atomic(path, whole)
    if dropped > 0:
        warn(
            f"{path.name}: {dropped} bytes of a record that was never finished were dropped; "
            f"the file as it was is kept as {copy.name}"
        )
    return max(dropped, 0)


def _sound_part(line: bytes, number: int, n_lines: int, path: Path) -> bytes:
    """The line, its readable end, or nothing."""
    ended = line.endswith(b"\n")
    if _is_record(line):
        # without its end the writer did not finish, though nothing is missing
        return line if ended else line + b"\n"
    for match in reversed(list(_RECORD.finditer(line))):
        if ended and match.start() > 0 and _is_record(line[match.start() :]):
            # only what looks like a torn record may go
            if _RECORD.match(line):
                return line[match.start() :]
            break
    if number == n_lines:
        return b""
    raise IntegrityError(
        f"line {number} of {n_lines} is not readable, so what follows it cannot be trusted: "
        f"{path}. Put a copy of the file back, or keep its first {number - 1} lines "
        f"(head -n {number - 1}) and run the same command again: trials after them are repeated"
    )


def _is_record(line: bytes) -> bool:
    try:
        found: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and "op_code" in found


def _free_name(folder: Path) -> Path:
    number = 1
    while (folder / f"{JOURNAL}.damaged-{number}").exists():
        number += 1
    return folder / f"{JOURNAL}.damaged-{number}"
