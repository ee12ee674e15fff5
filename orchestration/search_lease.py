"""Who works on a search: a lease in its folder, judged without wall clocks.

Every session that works on a search holds the file with the highest number in ``lease/`` and
writes it again every few seconds with another count. Another session takes over if the holder gave
the lease back, if its process is gone (seen at once on the same machine), or if the count stands
still for some time on the *observer's* own monotonic clock. Clocks of two machines are never
compared. A new number can be created by one session only, and a holder that was displaced, a
machine that slept for instance, finds the higher number and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from quantum.base import TransientError, write_text_atomic

BEAT_S, PATIENCE_S = 2.0, 20.0


class Lease:
    """Hold it with ``with``; ask `lost` before anything is written.

    Parameters
    ----------
    folder : Path
        The search's folder, on storage that all its sessions share.
    beat_s : float
        Seconds between two signs of life.
    patience_s : float
        Seconds without one after which a holder on another machine counts as dead.

    Raises
    ------
    TransientError
        On entering, if another session lives.
    """

    def __init__(
        self, folder: Path, beat_s: float = BEAT_S, patience_s: float = PATIENCE_S
    ) -> None:
        self.folder = folder / "lease"
        self.beat_s, self.patience_s = beat_s, patience_s
        self.number, self.count = 0, 0
        self.identity = {"token": uuid.uuid4().hex, **_process(os.getpid())}
        self._stop, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self.lost():
            self._write(released=True)

    def lost(self) -> bool:
        """Whether another session took over."""
        self._lost = self._lost or self._highest() != self.number
        return self._lost

    # ------------------------------------------------------------------ taking

    def _take(self) -> None:
        number = self._highest()
        if number and not self._is_free(number):
            raise TransientError(
                f"another session is working on this search ({self._holder(number)}); "
                "wait for it, or end it"
            )
        self.number = number + 1
        try:
            handle = os.open(self._file(self.number), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError as error:
            raise TransientError(
                "another session began to work on this search at the same moment"
            ) from error
        os.close(handle)
        self._write()
        for path in self.folder.glob("*.json"):
            if int(path.stem) < self.number:
                path.unlink(missing_ok=True)

    def _is_free(self, number: int) -> bool:
        record = self._read(number)
        if record.get("released"):
            return True
        here = _process(os.getpid())
        if here["machine"] is not None and record.get("machine") == here["machine"]:
            return _process(record["pid"])["started"] != record["started"]
        return self._stands_still(number)

    def _stands_still(self, number: int) -> bool:
        seen = self._text(number)
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:
            time.sleep(min(self.beat_s, self.patience_s) / 4)
            if self._highest() != number or self._text(number) != seen:
                return bool(self._read(self._highest()).get("released"))
        return True

    def _holder(self, number: int) -> str:
        record = self._read(number)
        here = _process(os.getpid())["machine"] == record.get("machine")
        return f"process {record.get('pid', '?')} on {'this' if here else 'another'} machine"

    # ------------------------------------------------------------------ holding

    def _beat(self) -> None:
        while not self._stop.wait(self.beat_s):
            if self.lost():
                return
            self.count += 1
            with contextlib.suppress(OSError):  # a full disk is found by the study, not here
                self._write()

    def _write(self, **more: Any) -> None:
        record = {**self.identity, "count": self.count, **more}
        write_text_atomic(self._file(self.number), json.dumps(record, sort_keys=True) + "\n")

    # ------------------------------------------------------------------ files

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _highest(self) -> int:
        return max((int(path.stem) for path in self.folder.glob("[0-9]*.json")), default=0)

    def _text(self, number: int) -> str:
        try:
            return self._file(number).read_text(encoding="utf-8")
        except OSError:
            return ""

    def _read(self, number: int) -> dict[str, Any]:
        """Content of a file; empty while its holder is still writing it for the first time."""
        try:
            return dict(json.loads(self._text(number)))
        except ValueError:
            return {}


def _process(pid: int) -> dict[str, Any]:
    """Machine (boot and process namespace) and process with its start, in ticks since boot.

    A start of None is a process that does not exist; a machine of None cannot be told from others.
    """
    started = machine = None
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started = None if fields[0] in "ZX" else int(fields[19])
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return {"machine": machine, "pid": pid, "started": started}
