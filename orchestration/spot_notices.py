"""The clouds' notices of preemption, read from the machine's metadata service."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Protocol

from quantum.base import InputError, TransientError

_MAX_ANSWER = 2**16


@dataclass(frozen=True)
class Notice:
    """What a cloud says about this machine.

    Parameters
    ----------
    key : str
        The same for the same notice, however often it is read.
    reason : str
        For the log and for Ray.
    deadline : float or None
        Unix seconds at which the machine goes; None for advice.
    """

    key: str
    reason: str
    deadline: float | None


class Metadata:
    """HTTP to the machine's metadata service: no proxy, no redirect, short time limits.

    Parameters
    ----------
    override : str, optional
        Another address than the cloud's, for tests; only loopback is taken, as clouds' services
        hand out credentials.
    """

    def __init__(self, override: str | None = None, timeout_s: float = 2.0) -> None:
        if override is not None:
            parts = urllib.parse.urlsplit(override)
            if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
                raise InputError(f"metadata address {override}: expected http:// and loopback")
        self.base = (override or "http://169.254.169.254").rstrip("/")
        self.timeout_s = timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def ask(
        self, path: str, headers: dict[str, str], method: str = "GET"
    ) -> tuple[int, str, Message]:
        """Return status, text and headers of any answer; no answer is a `TransientError`."""
        request = urllib.request.Request(self.base + path, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=self.timeout_s) as answer:
                return answer.status, answer.read(_MAX_ANSWER).decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, "", error.headers
        except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
            why = getattr(error, "reason", None) or error
            raise TransientError(f"no answer from {self.base}{path}: {why}") from error

    def text(self, path: str, headers: dict[str, str]) -> str | None:
        """Return the body, or None for 404; other answers are a `TransientError`."""
        status, text, _ = self.ask(path, headers)
        if status == 404:
            return None
        if status != 200:
            raise TransientError(f"{self.base}{path} answered {status}")
        return text.strip()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Source(Protocol):
    """One cloud; ``notice_s`` is the shortest warning it promises, 0 if not known."""

    @property
    def name(self) -> str:
        """What the log calls it."""

    @property
    def notice_s(self) -> float:
        """Seconds."""

    def poll(self, now: float, since: float) -> list[Notice]:
        """Notices that stand now; ``since`` is when there was last none (both Unix seconds)."""


class Aws:
    """EC2, metadata service version 2: ``spot/instance-action`` and the rebalance advice."""

    name, notice_s = "aws", 120.0
    _root = "/latest/meta-data/"

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.token = ""

    def poll(self, now: float, since: float) -> list[Notice]:
        """Two questions; either is answered with 404 while there is nothing to say."""
        notices = []
        text = self._get("spot/instance-action")
        if text is not None:
            facts = _parse(text, "action", "time")
            reason = f"AWS will {facts['action']} this spot instance"
            notices.append(Notice(f"aws {text}", reason, _iso(facts["time"])))
        text = self._get("events/recommendations/rebalance")
        if text is not None:
            facts = _parse(text, "noticeTime")
            reason = f"AWS recommends to rebalance since {facts['noticeTime']}"
            notices.append(Notice("aws rebalance", reason, None))
        return notices

    def _get(self, path: str) -> str | None:
        if not self.token:
            self.token = self.new_token()
        headers = {"X-aws-ec2-metadata-token": self.token}
        status, _, _ = answer = self.metadata.ask(self._root + path, headers)
        if status == 401:  # it has expired
            self.token = self.new_token()
            headers = {"X-aws-ec2-metadata-token": self.token}
            return self.metadata.text(self._root + path, headers)
        if status in (200, 404):
            return answer[1].strip() if status == 200 else None
        raise TransientError(f"{self.metadata.base}{self._root}{path} answered {status}")

    def new_token(self) -> str:
        """Session token for six hours."""
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        status, text, _ = self.metadata.ask("/latest/api/token", headers, "PUT")
        if status != 200 or not text.strip():
            raise TransientError(f"no session token: {self.metadata.base} answered {status}")
        return text.strip()


class Gcp:
    """Compute Engine: ``preempted`` (30 s) and ``maintenance-event`` (60 s).

    Neither carries a time, so the end is counted from when the value was last seen clear.
    """

    name, notice_s = "gcp", 30.0
    headers: ClassVar = {"Metadata-Flavor": "Google"}

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata

    def poll(self, now: float, since: float) -> list[Notice]:
        """Live migration is no reason to leave."""
        notices = []
        if (value := self._get("preempted").upper()) == "TRUE":
            notices.append(Notice("gcp preempted", "Google preempts this instance", since + 30))
        elif value != "FALSE":
            raise TransientError(f"`preempted` is {value[:40]!r}, expected TRUE or FALSE")
        if self._get("maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE":
            reason = "Google ends this instance for maintenance"
            notices.append(Notice("gcp maintenance", reason, since + 60))
        return notices

    def _get(self, name: str) -> str:
        text = self.metadata.text(f"/computeMetadata/v1/instance/{name}", self.headers)
        return "FALSE" if text is None else text


class Azure:
    """Scheduled events of this machine that end its processes; a freeze does not.

    The first question switches the service on and may take it two minutes to answer.
    """

    name, notice_s = "azure", 30.0
    headers: ClassVar = {"Metadata": "true"}
    _kinds = ("Preempt", "Terminate", "Reboot", "Redeploy")

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.machine = ""

    def poll(self, now: float, since: float) -> list[Notice]:
        """Events name the machines they are for: a whole set of machines sees all of them."""
        if not self.machine:
            path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
            self.machine = (self.metadata.text(path, self.headers) or "").lower()
        path = "/metadata/scheduledevents?api-version=2020-07-01"
        text = self.metadata.text(path, self.headers)
        if text is None:
            return []
        events = _parse(text, "Events")["Events"]
        if not isinstance(events, list):
            raise TransientError(f"unreadable scheduled events: {text[:80]!r}")
        return [self._notice(event, now) for event in events if self._is_ours(event)]

    def _is_ours(self, event: Any) -> bool:
        if not isinstance(event, dict) or not isinstance(event.get("Resources"), list):
            raise TransientError(f"unreadable scheduled event: {str(event)[:80]!r}")
        mine = self.machine in [str(name).lower() for name in event["Resources"]]
        return mine and event.get("EventType") in self._kinds

    def _notice(self, event: dict[str, Any], now: float) -> Notice:
        not_before = event.get("NotBefore")  # empty once the event has started
        try:
            end = parsedate_to_datetime(not_before).timestamp() if not_before else now
        except (TypeError, ValueError) as error:
            raise TransientError(f"unreadable time of an event: {not_before!r}") from error
        key = f"azure {event.get('EventId')} {not_before}"
        return Notice(key, f"Azure event {event['EventType']}", end)


class Auto:
    """Finds out which cloud answers, and is that cloud from then on."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.cloud: Source | None = None

    @property
    def name(self) -> str:
        """Name of the cloud, ``auto`` while unknown."""
        return self.cloud.name if self.cloud else "auto"

    @property
    def notice_s(self) -> float:
        """The cloud's warning, 0 while unknown."""
        return self.cloud.notice_s if self.cloud else 0.0

    def poll(self, now: float, since: float) -> list[Notice]:
        """As the cloud; a `TransientError` while none answers."""
        if self.cloud is None:
            self.cloud = self._detect()
        return self.cloud.poll(now, since)

    def _detect(self) -> Source:
        ask = self.metadata.ask
        status, _, headers = ask("/computeMetadata/v1/instance/id", Gcp.headers)
        if status == 200 and headers.get("Metadata-Flavor") == "Google":
            return Gcp(self.metadata)
        path = "/metadata/instance/compute/azEnvironment?api-version=2021-02-01&format=text"
        if ask(path, Azure.headers)[0] == 200:
            return Azure(self.metadata)
        aws = Aws(self.metadata)
        try:
            aws.token = aws.new_token()
        except TransientError as error:
            raise TransientError(f"{self.metadata.base} is none of AWS, GCP, Azure") from error
        return aws


CLOUDS: dict[str, Callable[[Metadata], Source]] = {
    "aws": Aws,
    "gcp": Gcp,
    "azure": Azure,
    "auto": Auto,
}


def _parse(text: str, *keys: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise TransientError(f"unreadable notice: {text[:80]!r}") from error
    if not isinstance(facts, dict) or not all(key in facts for key in keys):
        raise TransientError(f"unreadable notice: {text[:80]!r}, expected {', '.join(keys)}")
    return facts


def _iso(text: Any) -> float:
    try:
        time_ = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise TransientError(f"unreadable time of a notice: {text!r}") from error
    return time_.replace(tzinfo=time_.tzinfo or UTC).timestamp()
