"""Runs in MLflow, if ``MEDREC_MLFLOW`` names a place for them.

A folder holds an SQLite file, because MLflow takes plain files no more; a server gets the same
through its address. What is logged are settings, numbers per epoch, the numbers of the report and
two small files. Rows of patients stay where they are.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from medrec.runs import Run
from orchestration.tracking_tensorboard import Row, flatten, report_numbers, scalars, step_of
from quantum.base import InputError, MedrecError, ProgramMissingError, TransientError

VARIABLE = "MEDREC_MLFLOW"
EXPERIMENT = "medrec"
DIGEST_TAG = "medrec.digest"
ARTIFACTS = ("config.yaml", "report.json")
_DATABASE = "mlflow.db"
_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 6000
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


def place() -> str | None:
    """What ``MEDREC_MLFLOW`` says: a folder, or an address that MLflow knows; None if unset."""
    return os.environ.get(VARIABLE) or None


def tracking_uri(where: str) -> tuple[str, str | None]:
    """Address for MLflow, and where files go; None leaves that to the server.

    Raises
    ------
    InputError
        If a folder cannot be made.
    """
    if "://" in where and not where.startswith("file://"):
        return where, None
    folder = Path(where.removeprefix("file://")).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{VARIABLE} is {where}: {error.strerror}; expected a folder or an address"
        ) from error
    return f"sqlite:///{folder / _DATABASE}", (folder / "artifacts").as_uri()


def _require(uri: str) -> None:
    needed = ["mlflow"] + (["sqlalchemy", "alembic"] if uri.startswith("sqlite:") else [])
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ProgramMissingError(
            f"{VARIABLE} is set and {' and '.join(missing)} is not installed: "
            "pip install 'medrec[mlflow]', or unset the variable"
        )


@contextmanager
def _quiet(what: str, kind: type[MedrecError]) -> Iterator[None]:
    """Turn MLflow's errors into ours, and keep its messages off the terminal."""
    from mlflow.exceptions import MlflowException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (MlflowException, OSError) as error:
            text = str(error).strip().splitlines()
            raise kind(f"MLflow, {what}: {text[0] if text else type(error).__name__}") from error


class MlflowSink:
    """One MLflow run per run of ours, found again by its digest.

    Parameters
    ----------
    where : str
        Folder or address.

    Raises
    ------
    ProgramMissingError
        If MLflow is not installed.
    InputError
        If the place does not answer.
    """

    def __init__(self, run: Run, where: str) -> None:
        uri, artifacts = tracking_uri(where)
        _require(uri)
        # nothing about a run may leave the machine unasked
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow import MlflowClient
        self.run = run
        with _quiet(f"{VARIABLE}={where}", InputError):
            self.client = MlflowClient(tracking_uri=uri)
            experiment = self._experiment(artifacts)
            self.id = self._find(experiment) or self._create(experiment)
            self.client.update_run(self.id, status="RUNNING")
            self.seen = self._steps()

    def _experiment(self, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                return str(self.client.create_experiment(EXPERIMENT, artifact_location=artifacts))
            except MlflowException:  # another run of ours may have made it meanwhile
                found = self.client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _find(self, experiment: str) -> str | None:
        wanted = f"tags.`{DIGEST_TAG}` = '{self.run.digest}'"
        found = self.client.search_runs([experiment], wanted, max_results=1)
        return found[0].info.run_id if found else None

    def _create(self, experiment: str) -> str:
        made = self.client.create_run(experiment, tags=self._tags(), run_name=self.run.name)
        identity = str(made.info.run_id)
        from mlflow.entities import Param

        params = [
            Param(name, str(value)[:_LONGEST_PARAM])
            for name, value in flatten(self.run.config()).items()
        ]
        for first in range(0, len(params), _MOST_PARAMS):
            self.client.log_batch(identity, params=params[first : first + _MOST_PARAMS])
        self.client.log_artifact(identity, str(self.run.folder / "config.yaml"))
        return identity

    def _tags(self) -> dict[str, str]:
        code = self.run.record().get("provenance", {}).get("code", {})
        facts = {"run": self.run.name, "digest": self.run.digest, "kind": self.run.kind}
        facts |= {f"code.{name}": value for name, value in code.items()}
        facts |= {f"{name}_digest": value for name, value in self.run.inputs.items()}
        return {f"medrec.{name}": str(value) for name, value in facts.items()}

    def _steps(self) -> dict[str, set[int]]:
        """Steps that MLflow has, per number: it cannot take back and would keep both."""
        names = self.client.get_run(self.id).data.metrics
        return {
            name: {item.step for item in self.client.get_metric_history(self.id, name)}
            for name in names
        }

    def _log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            Metric(name, value, now, step)
            for step, values in rows
            for name, value in values.items()
            if step not in self.seen.setdefault(name, set())
        ]
        for first in range(0, len(new), _MOST_METRICS):
            self.client.log_batch(self.id, metrics=new[first : first + _MOST_METRICS])
        for item in new:
            self.seen[item.key].add(item.step)

    def rows(self, rows: Sequence[Row]) -> None:
        """Log the epochs that MLflow lacks."""
        with _quiet("numbers of an epoch", TransientError):
            self._log([(step_of(row, n), scalars(row)) for n, row in enumerate(rows)])

    def close(self, status: str) -> None:
        """Log the report of a finished run, and how it ended."""
        with _quiet("end of a run", TransientError):
            if status == "finished" and self.run.is_finished:
                self._log([(0, {f"report.{k}": v for k, v in report_numbers(self.run).items()})])
                self.client.log_artifact(self.id, str(self.run.folder / "report.json"))
            self.client.set_terminated(self.id, _STATUS[status])
