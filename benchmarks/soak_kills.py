"""Kills at random: which processes of a cluster there are, and which one goes next."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ray_nodes import Machine, arguments

# how often each is hit, relative to the others
WEIGHTS = {"worker": 4.0, "child": 4.0, "server": 1.0, "driver": 1.0, "raylet": 1.0}
_SERVER = b"quantum.fork_server"


def parents() -> dict[int, int]:
    """Parent of every process of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                text = (entry / "stat").read_text()
                found[int(entry.name)] = int(text.rsplit(")", 1)[1].split()[1])
    return found


@dataclass
class Processes:
    """Processes of a cluster's nodes that could be killed, by kind."""

    raylets: dict[int, int] = field(default_factory=dict)  # number of the node: process
    workers: list[int] = field(default_factory=list)
    servers: list[int] = field(default_factory=list)  # that start children
    children: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, machine: Machine) -> Processes:
        """Look at all nodes but the head."""
        by_parent: dict[int, list[int]] = {}
        for pid, parent in parents().items():
            by_parent.setdefault(parent, []).append(pid)

        def below(pids: list[int], word: bytes) -> list[int]:
            return [c for p in pids for c in by_parent.get(p, []) if word in arguments(c)]

        found = cls()
        for number, start in enumerate(machine.rays):
            if number and start.poll() is None:
                for pid in below([start.pid], b"raylet/raylet"):
                    found.raylets[number] = pid
        found.workers = below(list(found.raylets.values()), b"ray::_call")
        found.servers = below(found.workers, _SERVER)
        found.children = below(found.servers, _SERVER)
        return found


class Killer:
    """Draws a victim and kills it, if there is one of its kind.

    Parameters
    ----------
    seed : int
        Of the draws. When processes start is not seeded.
    """

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine, self.rng = machine, np.random.default_rng(seed)
        self.kills: Counter[str] = Counter()

    def draw(self) -> Iterator[str]:
        """Kinds of victims, without end."""
        kinds = list(WEIGHTS)
        weights = np.array([WEIGHTS[kind] for kind in kinds])
        while True:
            yield str(self.rng.choice(kinds, p=weights / weights.sum()))

    def kill(self, kind: str, driver: int) -> bool:
        """Kill one process of a kind while something is being computed; False if nothing is."""
        found = Processes.of(self.machine)
        if not found.children:
            return False
        if kind == "raylet":
            number = int(self.rng.choice(list(found.raylets)))
            victim = found.raylets[number]
        elif kind == "driver":
            victim = driver
        else:
            lists = {"worker": found.workers, "server": found.servers, "child": found.children}
            victim = int(self.rng.choice(lists[kind]))
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.kills[kind] += 1
        if kind == "raylet":
            self._replace(number)
        return True

    def _replace(self, number: int) -> None:
        """A lost node's successor, as an autoscaler would start it."""
        self.machine.rays[number].wait(timeout=120)
        self.machine.start_node(f"node{len(self.machine.rays)}")

    def pause(self, most_s: float) -> None:
        """Wait for a random time, so that kills meet all moments of a task."""
        time.sleep(float(self.rng.uniform(0.0, most_s)))
