"""Every attempt at every key, in a file beside the store: what was tried, where, and what it took.

The store alone says what is done. The ledger says what has been tried, so that a driver that was
killed does not give a molecule all its attempts again, and people see what failures cost. It may
be deleted at any time: only this history is lost.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import pandas as pd

from quantum.base import now_utc
from quantum.pipeline import Outcome

LEDGER = "attempts.sqlite"
_COLUMNS = {
    "key": "TEXT",
    "species": "TEXT",
    "stage": "TEXT",
    "status": "TEXT",
    "kind": "TEXT",
    "message": "TEXT",
    "seconds": "REAL",
    "cpu_s": "REAL",
    "peak_mb": "REAL",
    "node": "TEXT",
    "driver": "TEXT",
    "time": "TEXT",
}
_WRITE_EVERY_S = 1.0


class Ledger:
    """Attempts in an SQLite file.

    Parameters
    ----------
    path : Path
        Created when missing. A damaged file is set aside and a new one begun; without room or
        access the history of this run is kept in memory.
    driver : str
        Name of this driver.
    """

    def __init__(self, path: Path, driver: str = "") -> None:
        self.path, self.driver = path, driver
        self._rows: list[tuple[object, ...]] = []
        self._last = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open(path)
        except sqlite3.OperationalError:  # locked, or the disk is full: nothing is wrong with it
            self._connection = self._open(":memory:")
        except sqlite3.DatabaseError:
            path.rename(path.with_suffix(f".damaged-{int(time.time())}"))
            self._connection = self._open(path)

    def _open(self, place: Path | str) -> sqlite3.Connection:
        connection = sqlite3.connect(place, timeout=60)
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"CREATE TABLE IF NOT EXISTS attempts ({columns})")
        connection.execute("CREATE INDEX IF NOT EXISTS by_key ON attempts (key)")
        connection.commit()
        return connection

    def add(self, key: str, outcome: Outcome) -> None:
        """Note how an attempt ended; written to the file at most a second later."""
        facts = {"key": key, "species": outcome.species_key, "driver": self.driver}
        facts |= {"time": now_utc()}
        named = outcome.model_dump()
        self._rows.append(tuple(facts.get(name, named.get(name)) for name in _COLUMNS))
        if time.monotonic() - self._last > _WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what is pending; a ledger that cannot be written stops nothing."""
        self._last = time.monotonic()
        marks = ", ".join("?" * len(_COLUMNS))
        with contextlib.suppress(sqlite3.Error), self._connection:
            self._connection.executemany(f"INSERT INTO attempts VALUES ({marks})", self._rows)
            self._rows.clear()

    def failures(self) -> dict[str, dict[str, int]]:
        """Failed attempts of each key that has any, counted by kind."""
        found = dict[str, dict[str, int]]()
        query = (
            "SELECT key, kind, COUNT(*) FROM attempts WHERE status = 'failed' GROUP BY key, kind"
        )
        with contextlib.suppress(sqlite3.Error):  # without history attempts count from here on
            for key, kind, count in self._connection.execute(query):
                found.setdefault(key, {})[kind] = count
        return found

    def table(self) -> pd.DataFrame:
        """All attempts, oldest first."""
        self.write()
        return pd.read_sql_query("SELECT * FROM attempts ORDER BY rowid", self._connection)

    def summary(self) -> pd.DataFrame:
        """Attempts and core-hours by status, stage and kind.

        Returns
        -------
        pandas.DataFrame
            Columns ``status``, ``stage``, ``kind``, ``attempts``, ``core_hours``, ``peak_mb``.
        """
        grouped = self.table().groupby(["status", "stage", "kind"], dropna=False)
        return (
            grouped.agg(
                attempts=("key", "size"), core_s=("cpu_s", "sum"), peak_mb=("peak_mb", "max")
            )
            .reset_index()
            .assign(core_hours=lambda frame: (frame.pop("core_s") / 3600).round(3))
        )

    def close(self) -> None:
        """Write what is pending and close the file."""
        self.write()
        self._connection.close()
