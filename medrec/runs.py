"""Run folders: named by what they run, resumable, traceable.

A run's name ends in the digest of its configuration and of its inputs, so the same request finds
the same folder again: finished work is not repeated, and an interrupted run goes on.

::

    <home>/runs/<name>-<digest8>/
        config.yaml     the resolved configuration
        run.json        status, inputs, provenance, seeds
        metrics.jsonl   one line per epoch
        checkpoints/    last.pt, best.pt
        visits.parquet  per-visit rows of the evaluation
        vocabulary.json codes of the model's columns, and the interactions between its drugs
        report.json     summary numbers
"""

from __future__ import annotations

import difflib
import fcntl
import io
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from medrec.loading import suggest
from quantum.base import (
    Frozen,
    InputError,
    MedrecError,
    TransientError,
    digest,
    now_utc,
    provenance,
    read_json,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)

if TYPE_CHECKING:
    import pandas as pd

    from quantum.store import StoreLike

STORE_VARIABLE = "MEDREC_STORE"
RunKind = Literal["train", "pretrain", "tune", "property"]
_LISTED = 20
_PACKAGES = ("torch", "torch-geometric", "scikit-learn", "pandas", "rdkit", "ray", "optuna")


@dataclass(frozen=True)
class Home:
    """Folder that holds everything the project computes on this machine.

    Parameters
    ----------
    root : Path
        Created on first use. The command line takes it from ``--home`` or ``MEDREC_HOME``.
    """

    root: Path

    @property
    def store(self) -> Path:
        """Content-addressed feature store."""
        return self.root / "store"

    def open_store(self) -> StoreLike:
        """Store of this home, or the one that ``MEDREC_STORE`` names (a folder or ``s3://...``)."""
        from quantum.store import open_store

        return open_store(os.environ.get(STORE_VARIABLE) or self.store)

    @property
    def cohorts(self) -> Path:
        """Prepared cohorts, one folder each."""
        return self.root / "cohorts"

    @property
    def features(self) -> Path:
        """Exported feature tables, one folder each."""
        return self.root / "features"

    @property
    def concepts(self) -> Path:
        """Concept tables, one folder each."""
        return self.root / "concepts"

    @property
    def molecules(self) -> Path:
        """Molecule libraries, one folder each."""
        return self.root / "molecules"

    @property
    def runs(self) -> Path:
        """Training, pre-training and tuning runs."""
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        """HTML reports."""
        return self.root / "reports"

    def by_digest(self, folder: Path, digest: str) -> Path:
        """Return the folder whose name ends in the first eight digits of a digest.

        Raises
        ------
        InputError
            If it is not there any more.
        """
        plain = digest[:8].isalnum()  # a digest of a changed record is no pattern and no path
        for path in sorted(folder.glob(f"*-{digest[:8]}")) if plain else ():
            if path.is_dir():
                return path
        raise InputError(f"nothing with digest {digest[:8]} in {folder}; it was moved or deleted")

    def find(self, folder: Path, name: str) -> Path:
        """Resolve a full name, or a unique beginning of one, inside one of the folders above.

        Raises
        ------
        InputError
            If nothing matches, or more than one thing does; the message lists what there is.
        """
        if Path(name).is_dir() and "/" in name:
            return Path(name)
        present = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        present = [item for item in present if not item.startswith(".")]
        if name in present:
            return folder / name
        # "molerec" means molerec-1234abcd and not molerec_demo-5678cdef
        matches = [item for item in present if item.rpartition("-")[0] == name]
        matches = matches or [item for item in present if item.startswith(name)]
        if len(matches) == 1:
            return folder / matches[0]
        if matches:
            raise InputError(f"'{name}' is ambiguous in {folder}: {', '.join(matches)}")
        raise InputError(
            f"no '{name}' in {folder}{_nearest(name, present)}; there is: {_listed(present)}"
        )


def _nearest(name: str, present: list[str]) -> str:
    """Suggestion of a present name: by the name without its digest, or by its beginning."""
    stems = {item.rpartition("-")[0] or item: item for item in present}
    beginnings = {stem[: len(name) + 1]: item for stem, item in stems.items()}
    if found := suggest(name, stems):
        return found
    close = difflib.get_close_matches(name, beginnings, n=1, cutoff=0.75)
    return f" (did you mean '{beginnings[close[0]]}'?)" if close else suggest(name, present)


def _listed(present: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(present) - _LISTED
    return (", ".join(present[:_LISTED]) or "nothing yet") + (
        f" and {more} more" if more > 0 else ""
    )


@dataclass
class Run:
    """One run folder.

    Use `Run.open` to create or find it, and ``with run.recording():`` around the work, so that
    its status is right however the work ends.
    """

    folder: Path
    kind: RunKind
    digest: str
    inputs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls, home: Home, kind: RunKind, name: str, config: Frozen, inputs: dict[str, str]
    ) -> Run:
        """Create the run's folder, or find it if the same request was made before.

        Parameters
        ----------
        inputs : dict of str to str
            Digests of what the run reads: cohort, features, pretrained weights.
        """
        settings = config.model_dump(mode="json")
        key = digest({"kind": kind, "config": settings, "inputs": inputs})
        run = cls(home.runs / f"{name}-{key[:8]}", kind, key, dict(inputs))
        run.folder.mkdir(parents=True, exist_ok=True)
        if not run.record_file.exists():
            write_text_atomic(run.folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
            run._write_record(status="created", started=now_utc())
        return run

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Open an existing run folder for reading."""
        record = read_json(folder / "run.json")
        return cls(folder, record["kind"], record["digest"], record["inputs"])

    def _repr_html_(self) -> str:
        from medrec.notebook import run_html

        return run_html(self)

    # ------------------------------------------------------------------ record

    @property
    def name(self) -> str:
        """Folder name, the run's public name."""
        return self.folder.name

    @property
    def record_file(self) -> Path:
        """The status file."""
        return self.folder / "run.json"

    def record(self) -> dict[str, Any]:
        """Content of ``run.json``."""
        return dict(read_json(self.record_file))

    def config(self) -> dict[str, Any]:
        """Resolved configuration as it was written at the start."""
        path = self.folder / "config.yaml"
        try:
            return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise InputError(
                f"configuration of a run is not readable: {path} ({type(error).__name__})"
            ) from error

    @property
    def is_finished(self) -> bool:
        """True once `finish` was called."""
        return self.record_file.exists() and self.record()["status"] == "finished"

    def _write_record(self, **changes: Any) -> None:
        old = self.record() if self.record_file.exists() else {}
        record = {
            "name": self.name,
            "kind": self.kind,
            "digest": self.digest,
            "inputs": self.inputs,
            **old,
            **changes,
            "heartbeat": now_utc(),
        }
        write_json_atomic(self.record_file, record)

    @contextmanager
    def recording(self, **facts: Any) -> Iterator[None]:
        """Mark the run as running; on an exception mark it interrupted or failed, and re-raise.

        Parameters
        ----------
        **facts
            Written into ``run.json``, for example ``seeds={"torch": 1203}``.

        Raises
        ------
        TransientError
            If another process is working on the same run.
        """
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise TransientError(f"another process is working on run {self.name}") from error
            self._write_record(
                status="running", error=None, provenance=provenance(*_PACKAGES), **facts
            )
            try:
                yield
            except KeyboardInterrupt:
                self._write_record(status="interrupted")
                raise
            except MedrecError as error:
                self._write_record(
                    status="failed", error={"kind": error.kind, "message": str(error)}
                )
                raise
            except BaseException as error:
                self._write_record(
                    status="failed", error={"kind": "unknown", "message": type(error).__name__}
                )
                raise

    def finish(self, report: dict[str, Any]) -> None:
        """Write the summary numbers and mark the run finished."""
        write_json_atomic(self.folder / "report.json", report)
        self._write_record(status="finished", finished=now_utc())

    def report(self) -> dict[str, Any]:
        """Summary numbers of a finished run."""
        return dict(read_json(self.folder / "report.json"))

    # ------------------------------------------------------------------ metrics

    @property
    def _metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line (an epoch) and refresh the heartbeat."""
        with self._metrics_file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, sort_keys=True) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        self._write_record()

    def metrics(self) -> pd.DataFrame:
        """All complete lines as a table; a line cut off by a kill is left out."""
        import pandas as pd

        rows = []
        if self._metrics_file.exists():
            for line in self._metrics_file.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue
        return pd.DataFrame(rows)

    def keep_metrics_until(self, epoch: int) -> None:
        """Drop lines after an epoch: called on resume, so that no epoch stands there twice."""
        table = self.metrics()
        if table.empty:
            return
        kept = [
            json.dumps(row, sort_keys=True)
            for row in table.to_dict("records")
            if row["epoch"] <= epoch
        ]
        write_text_atomic(self._metrics_file, "".join(line + "\n" for line in kept))

    # ------------------------------------------------------------------ checkpoints

    def checkpoint_file(self, which: str) -> Path:
        """Path of a checkpoint, for example ``last`` or ``best``."""
        return self.folder / "checkpoints" / f"{which}.pt"

    def save_checkpoint(self, which: str, state: dict[str, Any]) -> None:
        """Save a dictionary of tensors and plain values, atomically, bound to this run's digest."""
        import torch

        buffer = io.BytesIO()
        torch.save({**state, "run_digest": self.digest}, buffer)
        write_bytes_atomic(self.checkpoint_file(which), buffer.getvalue())

    def load_checkpoint(self, which: str) -> dict[str, Any] | None:
        """Load a checkpoint with the restricted unpickler; None if there is none.

        Raises
        ------
        InputError
            If the file is unreadable or belongs to another configuration.
        """
        import torch

        path = self.checkpoint_file(which)
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise InputError(
                f"checkpoint is unreadable: {path} ({type(error).__name__})"
            ) from error
        if not isinstance(state, dict) or state.get("run_digest") != self.digest:
            raise InputError(f"checkpoint belongs to another configuration: {path}")
        return state
