"""Commands as jobs of a Ray cluster: what is uploaded, under which name, with which environment.

A job is a `medrec` command that runs on the cluster instead of here. Names follow from the command
and its configuration, so that submitting twice runs once; the attempt is the number at the end.
Ray forgets its jobs with the cluster. What they computed is in the home folder, and recovery is to
submit the same command again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestration.job_request import PROGRAM, Request
from quantum.base import InputError, MedrecError, TransientError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
API_VARIABLE = "RAY_API_SERVER_ADDRESS"
DRIVER_RESOURCE = "driver"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_TIMEOUT_S = (10, 300)  # to connect; between two bytes of an answer
_POLL_S = 0.5
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_TOKEN_HELP = (
    "set RAY_AUTH_MODE=token and put the cluster's token into ~/.ray/auth_token "
    "(or name the file in RAY_AUTH_TOKEN_PATH)"
)


# --------------------------------------------------------------------------- what ran


@dataclass(frozen=True)
class Job:
    """What the cluster knows of one job. Times are UTC."""

    id: str
    status: str
    entrypoint: str
    start: datetime | None = None
    end: datetime | None = None
    message: str = ""
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in _ENDED

    @property
    def seconds(self) -> float | None:
        """Time since the start, up to the end if there is one."""
        if self.start is None:
            return None
        return ((self.end or datetime.now(UTC)) - self.start).total_seconds()

    @property
    def command(self) -> str:
        """What was submitted, as it is typed here."""
        return re.sub(rf"^{PROGRAM}\b", "medrec", self.entrypoint)

    @property
    def name_and_attempt(self) -> tuple[str, int]:
        """``features-run-1a2b3c4d-2`` is attempt 2; an id without a number is attempt 0."""
        name, _, attempt = self.id.rpartition("-")
        return (name, int(attempt)) if name and attempt.isdigit() else (self.id, 0)

    @property
    def command_exit_code(self) -> int:
        """Exit code for a command that waited: the job's own, 5 if Ray lost or stopped it."""
        if self.status == "SUCCEEDED":
            return 0
        code = self.exit_code
        return code if code is not None and 0 < code < 256 else TransientError.exit_code

    @classmethod
    def from_ray(cls, details: Any) -> Job:
        """Take over Ray's ``JobDetails``, without the environment, which may hold secrets."""
        lines = (details.message or "").strip().splitlines()
        return cls(
            id=details.submission_id or details.job_id,
            status=str(getattr(details.status, "value", details.status)),
            entrypoint=details.entrypoint,
            start=_from_ms(details.start_time),
            end=_from_ms(details.end_time),
            message=lines[0] if lines else "",
            exit_code=details.driver_exit_code,
        )


def _from_ms(time_ms: int | None) -> datetime | None:
    return None if not time_ms else datetime.fromtimestamp(time_ms / 1000, UTC)


# --------------------------------------------------------------------------- the job server


class JobServer:
    """Ray's job server, with errors of one line.

    Parameters
    ----------
    address : str
        For messages.
    client : ray.job_submission.JobSubmissionClient
        Connected.
    list_resources : callable
        Names and amounts of what the living nodes have.
    """

    def __init__(
        self, address: str, client: Any, list_resources: Callable[[], Mapping[str, float]]
    ) -> None:
        self.address, self.client, self._list_resources = address, client, list_resources

    def jobs(self) -> list[Job]:
        """All submitted jobs, the newest first; drivers that joined by themselves are no jobs."""
        with self._one_line():
            found = [Job.from_ray(item) for item in self.client.list_jobs() if item.submission_id]
        return sorted(found, key=lambda job: job.start or _LONG_AGO, reverse=True)

    def find(self, name: str) -> Job:
        """One job, by its id or by its name without the number (its last attempt).

        Raises
        ------
        InputError
            If there is none.
        """
        known = self.jobs()
        exact = [job for job in known if job.id == name]
        if found := exact or self.attempts(name, known):
            return found[-1]
        close = ", ".join(job.id for job in known[:5]) or "none yet"
        raise InputError(f"no job {name!r} at {self.address}; the latest are: {close}")

    def attempts(self, name: str, known: Sequence[Job] | None = None) -> list[Job]:
        """Attempts under a name, the last one last."""
        jobs = self.jobs() if known is None else known
        mine = [job for job in jobs if job.name_and_attempt[0] == name and job.name_and_attempt[1]]
        return sorted(mine, key=lambda job: job.name_and_attempt[1])

    def submit(
        self, request: Request, upload: Path | None, *, again: bool = False
    ) -> tuple[Job, bool]:
        """Submit, unless the same command runs or has succeeded under this name.

        A failed or stopped command gets the next number, and so does one that succeeded if
        ``again``.

        Parameters
        ----------
        upload : Path, optional
            Packed working folder; without one the nodes' own project runs.

        Returns
        -------
        Job
            The one submitted now, or the one that was there.
        bool
            Whether it was submitted now.

        Raises
        ------
        InputError
            If the name belongs to another command.
        """
        there = self.attempts(request.name)
        last = there[-1] if there else None
        if last is not None:
            if last.entrypoint != request.entrypoint:
                raise InputError(
                    f"the name {request.name!r} belongs to another command, "
                    f"{last.command!r}; choose another --name"
                )
            if not last.has_ended or (last.status == "SUCCEEDED" and not again):
                return last, False
        number = last.name_and_attempt[1] + 1 if last else 1
        return self._submit(request, upload, f"{request.name}-{number}")

    def _submit(self, request: Request, upload: Path | None, job_id: str) -> tuple[Job, bool]:
        resources = request.resources
        with self._one_line():
            if resources is None:
                has_it = self._list_resources().get(DRIVER_RESOURCE, 0) >= 1
                resources = {DRIVER_RESOURCE: 1} if has_it else {}
            try:
                self.client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=job_id,
                    runtime_env=request.runtime_env(upload),
                    entrypoint_num_cpus=request.cpus or None,
                    entrypoint_resources=dict(resources) or None,
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return self.find(job_id), False  # another submit was faster
        return self.find(job_id), True

    def logs(self, job_id: str) -> str:
        """Everything that the job printed so far."""
        with self._one_line():
            return str(self.client.get_job_logs(job_id))

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """Hand over what the job prints until it ends, then return it."""

        async def copy() -> None:
            async for text in self.client.tail_job_logs(job_id):
                write(text)

        with self._one_line():
            asyncio.run(copy())
        return self.wait(job_id)

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Wait for a final status.

        Raises
        ------
        TransientError
            If the job goes on after ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (job := self.find(job_id)).has_ended:
            if deadline is not None and time.monotonic() > deadline:
                raise TransientError(
                    f"{job_id} is still {job.status} after {timeout_s:.0f} s at {self.address}"
                )
            time.sleep(_POLL_S)
        return job

    def stop(self, job_id: str, timeout_s: float) -> Job:
        """Ask a job to stop (SIGTERM, and SIGKILL after the job's stop time), return its end."""
        with self._one_line():
            self.client.stop_job(job_id)
        return self.wait(job_id, timeout_s)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        with one_line_errors(self.address):
            yield


def check_address(address: str) -> str:
    """Address of a job server, with a scheme and without a password.

    Raises
    ------
    InputError
        For anything that is not http or https.
    """
    full = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
    parts = urlsplit(full)
    if parts.username or parts.password:
        raise InputError("the address holds a user name or password; use a token instead")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"address {address!r} of a job server; expected the dashboard's, such as "
            f"{DEFAULT_ADDRESS}"
        )
    return full


def is_exposed(address: str) -> bool:
    """Whether token and files would cross a network in clear."""
    parts = urlsplit(address)
    if parts.scheme == "https" or parts.hostname in (None, "localhost"):
        return False
    try:
        return not ipaddress.ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        return True


def connect(address: str) -> JobServer:
    """Connect to the job server of a cluster.

    Raises
    ------
    TransientError
        If nothing answers.
    InputError
        If something else than Ray answers, or the token is missing or wrong.
    """
    address = check_address(address)
    # Ray lets this variable and RAY_ADDRESS overrule what is passed to it
    os.environ[API_VARIABLE] = address
    with one_line_errors(address):
        from ray.job_submission import JobSubmissionClient
        from ray.util.state import list_nodes

        logging.getLogger("ray.dashboard").setLevel(logging.ERROR)
        for module in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)

        class Client(JobSubmissionClient):  # type: ignore[misc, unused-ignore]
            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(method, endpoint, timeout=_TIMEOUT_S, **options)

        client = Client(address)

    def resources() -> dict[str, float]:
        total: dict[str, float] = {}
        nodes = list_nodes(address=address, filters=[("state", "=", "ALIVE")], limit=10_000)
        for node in nodes:
            for name, amount in (node.resources_total or {}).items():
                total[name] = total.get(name, 0) + amount
        return total

    return JobServer(address, client, resources)


@contextmanager
def one_line_errors(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into our errors."""
    try:
        yield
    except MedrecError:
        raise
    except _client_errors() as error:
        raise explain(error, address) from error


def _client_errors() -> tuple[type[Exception], ...]:
    import aiohttp
    from ray.exceptions import AuthenticationError
    from ray.util.state.exception import RayStateApiException

    ours = (RuntimeError, OSError, ValueError, KeyError)
    return (*ours, AuthenticationError, RayStateApiException, aiohttp.ClientError)


def explain(error: Exception, address: str) -> MedrecError:
    """One line for an error of Ray's client: what happened, where, what to do."""
    text, kind = str(error).strip(), type(error).__name__
    if kind == "AuthenticationError":
        if "required" in text:
            return InputError(f"the cluster at {address} wants a token: {_TOKEN_HELP}")
        return InputError(f"the cluster at {address} refuses this token: {_TOKEN_HELP}")
    if answer := re.match(r"Request failed with status code (\d+): (.*)", text, re.DOTALL):
        return _explain_status(int(answer[1]), answer[2], address)
    if kind in ("JSONDecodeError", "KeyError", "HTTPError") or "Version check" in text:
        return InputError(f"what answers at {address} is no Ray job server; expected a dashboard")
    if "Timeout" in kind:
        return TransientError(f"no answer from the job server at {address} in time; try again")
    if isinstance(error, ConnectionError) or "Connect" in kind or "WebSocket" in text:
        return TransientError(
            f"no Ray job server at {address}: is the cluster up, and the tunnel to it "
            "(ray dashboard cluster.yaml)? jobs go on without it"
        )
    line = text.splitlines()[-1] if text else ""
    return TransientError(f"the job server at {address} failed: {kind}: {line[:300]}")


def _explain_status(status: int, text: str, address: str) -> MedrecError:
    lines = text.strip().rstrip(".").splitlines()
    last = lines[-1][:300] if lines else ""
    if status == 404:
        return InputError(f"not found at {address}: {last}")
    if status == 413:
        return InputError(f"the job server at {address} refuses an upload of this size")
    if 400 <= status < 500:
        return InputError(f"the job server at {address} refuses the request: {last}")
    return TransientError(f"the job server at {address} failed with status {status}: {last}")
