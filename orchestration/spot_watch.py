"""Watch the cloud's notices of preemption and let this node's Ray leave in time.

Ray does not charge a task's retries for a preempted node if two things hold: the drain was
announced with a deadline, and the raylet is *terminated* (SIGTERM) after that deadline. A machine
that simply disappears costs every task on it one retry. Open-source Ray does not read the clouds'
notices, so this does:

1. notice: announce the drain, so that nothing new is placed here and running work may end;
2. ``lead`` seconds before the machine goes: SIGTERM to ``ray start --block``, which waits for its
   own drain time (``RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S``) and then ends the raylet.

A raylet of Ray 2.60 judges its own end by the *first* drain it was told of and ignores later ones
(the control plane takes the last). So no drain goes out without a deadline, not even on advice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from orchestration.spot_node import DRAIN_VARIABLE, RayNode, announce_drain, find_ray_node
from orchestration.spot_notices import Notice, Source
from quantum.base import ResourceError, TransientError

MARGIN_S = 10.0  # to end the raylet and its workers after the drain time
_AFTER_S = 1.0  # SIGTERM must come after the announced deadline
_ADVICE_S = 5.0  # deadline of a drain on advice: from then on losing the machine is free
_ANNOUNCE_S = 10.0  # Ray's client alone would wait 40 s for a control plane that is away
_SHORTEST_ANNOUNCE_S = 3.0  # starting that client takes a second or two
_LONGEST_PAUSE_S = 60.0


class Clock(Protocol):
    """Time, so that tests need not wait."""

    def now(self) -> float:
        """Unix seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class SpotWatch:
    """Polls a cloud's notices and acts once.

    Parameters
    ----------
    source : Source
        Where notices come from.
    find : callable
        Finds this machine's `RayNode`.
    announce : callable
        Announces a drain, see `announce_drain`.
    say : callable
        Takes one line per step.
    lead : float, optional
        Seconds before the machine goes at which Ray gets SIGTERM; by default its drain time and
        10 s.
    interval : float
        Seconds between polls; after errors it doubles up to a quarter of the cloud's notice.
    drain_on_advice : bool
        Drain on advice such as AWS's rebalance recommendation: running work may end, nothing new
        comes, and SIGTERM waits for a notice.
    """

    def __init__(
        self,
        source: Source,
        find: Callable[[], RayNode] = find_ray_node,
        announce: Callable[[RayNode, float, str, float], None] = announce_drain,
        clock: Clock | None = None,
        say: Callable[[str], None] = print,
        *,
        lead: float | None = None,
        interval: float = 5.0,
        drain_on_advice: bool = False,
    ) -> None:
        self.source, self.find, self.announce, self.say = source, find, announce, say
        self.clock: Clock = clock or SystemClock()
        self.lead, self.interval, self.drain_on_advice = lead, interval, drain_on_advice
        self.node: RayNode | None = None
        self.seen: set[str] = set()
        self.notice: Notice | None = None  # the one with the earliest end
        self.to_announce: Notice | None = None
        self.advised_until = 0.0
        self.failures = 0
        self.last_clear: float | None = None
        self.said: set[str] = set()

    def run(self, once: bool = False) -> bool:
        """Watch until a notice has been acted on.

        Parameters
        ----------
        once : bool
            Poll once; go on only if there is a notice.

        Returns
        -------
        bool
            True if Ray was stopped here, False if ``once`` found nothing to stop for.

        Raises
        ------
        TransientError
            If ``once`` could not read the metadata; without ``once`` such errors are waited out.
        """
        self.say(f"watching {self.source.name} every {self.interval:g} s")
        while True:
            self._look()
            pause = self._poll(once)
            self._announce()
            if self.notice is None:
                if once:
                    return False
            else:
                left = self._stop_at() - self.clock.now()
                if left <= 0:
                    self._stop()
                    return True
                pause = min(pause, left)
            self.clock.sleep(pause)

    def _look(self) -> None:
        """Find this machine's Ray, and say in advance if its drain time is too long."""
        if self.node is None:
            try:
                self.node = self.find()
            except TransientError as error:
                self._say_once(f"{error} so far")
                return
        room = self.source.notice_s if self.lead is None else self.lead
        if room and self.node.drain_s + MARGIN_S > room:
            self._say_once(
                f"warning: Ray drains for {self.node.drain_s:g} s after SIGTERM, which leaves less "
                f"than {MARGIN_S:g} s of {room:g} s: set {DRAIN_VARIABLE} to "
                f"{max(0.0, room - MARGIN_S):g} or less where `ray start` is called"
            )

    def _current(self) -> RayNode:
        """The node found before; another one if Ray was started anew."""
        if self.node is None or not self.node.is_alive():
            self.node = self.find()
        return self.node

    def _poll(self, once: bool) -> float:
        """Ask the cloud; returns the seconds until the next question."""
        now = self.clock.now()
        if self.notice is not None and self._stop_at() - now < _ANNOUNCE_S:
            return self.interval  # a metadata service that hangs must not delay SIGTERM
        try:
            notices = self.source.poll(now, now if self.last_clear is None else self.last_clear)
        except TransientError as error:
            if once and self.notice is None:
                raise
            self.failures += 1
            self._say_once(f"metadata: {error}; trying again")
            longest = self.source.notice_s / 4 or _LONGEST_PAUSE_S
            return max(self.interval, min(self.interval * 2**self.failures, longest))
        if self.failures:
            self.say(f"metadata answers again after {self.failures} errors")
            self.failures = 0
            self.said = {line for line in self.said if not line.startswith("metadata: ")}
        for notice in notices:
            self._take(notice)
        if not notices:
            self.last_clear = now
        return self.interval

    def _take(self, notice: Notice) -> None:
        """Keep a notice that is new, and sooner than what is known."""
        if notice.key in self.seen:
            return
        self.seen.add(notice.key)
        if notice.deadline is None:
            self.say(f"advice: {notice.reason}")
            if self.drain_on_advice and self.notice is None:
                self.to_announce = notice
            return
        self.say(f"notice: {notice.reason}; this machine goes at {_utc(notice.deadline)}")
        known = self.notice.deadline if self.notice else None
        if known is None or notice.deadline < known:
            self.notice = self.to_announce = notice

    def _stop_at(self) -> float:
        """Time of the SIGTERM, Unix seconds."""
        if self.notice is None or self.notice.deadline is None:
            return float("inf")
        lead = self.lead
        if lead is None:
            lead = (self.node.drain_s if self.node else 0.0) + MARGIN_S
        return max(self.notice.deadline - lead, self.advised_until)

    def _announce(self) -> None:
        notice = self.to_announce
        if notice is None:
            return
        try:
            node = self._current()
            left = self._stop_at() - self.clock.now()
            if left < _SHORTEST_ANNOUNCE_S:
                self.say("too late for a drain before SIGTERM; Ray's own drain follows it")
                self.to_announce = None
                return
            deadline = self._stop_at() - _AFTER_S
            if notice.deadline is None:
                deadline = self.clock.now() + _ADVICE_S
                self.advised_until = deadline + _AFTER_S
            self.announce(node, deadline, notice.reason, min(left, _ANNOUNCE_S))
        except TransientError as error:
            self._say_once(f"drain not announced: {error}; trying again")
            return
        self.to_announce = None
        self.say(f"drain of Ray node {node.node_id[:12]} announced until {_utc(deadline)}")

    def _stop(self) -> None:
        """SIGTERM, then watch Ray leave."""
        try:
            node = self._current()
        except TransientError as error:
            self.say(f"{error}: nothing to stop")
            return
        terminate(node)
        self.say(f"SIGTERM to process {node.target}; Ray drains for up to {node.drain_s:g} s")
        start = self.clock.now()
        while node.is_alive():
            if self.clock.now() - start > node.drain_s + 2 * MARGIN_S:
                raise ResourceError(
                    f"process {node.target} is still there {node.drain_s + 2 * MARGIN_S:g} s after "
                    "SIGTERM; tasks on this node lose a retry if the machine goes now"
                )
            self.clock.sleep(0.5)
        self.say(f"Ray has left after {self.clock.now() - start:.1f} s")

    def _say_once(self, text: str) -> None:
        """Say what would be said again and again: an outage is one line, not a flood."""
        if text not in self.said:
            self.said.add(text)
            self.say(text)


def terminate(node: RayNode) -> None:
    """Send SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(node.target, signal.SIGTERM)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
