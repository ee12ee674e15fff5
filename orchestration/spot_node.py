"""Find the Ray node of this machine and announce its drain.

Linux only: Ray's processes are found in ``/proc``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from quantum.base import InputError, TransientError

DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_RAY_DRAIN_S = 30.0  # Ray's own default of that variable


@dataclass(frozen=True)
class RayNode:
    """A raylet of this machine and the process to terminate.

    ``target`` is ``ray start --block`` where there is one, else the raylet itself; ``started`` is
    its start time in clock ticks since boot, which tells it from a later process of the same id.
    """

    node_id: str
    address: str
    target: int
    started: str
    drain_s: float

    def is_alive(self) -> bool:
        """Whether the process to terminate is still there."""
        state = _stat(self.target)
        return state is not None and state.started == self.started and state.status != "Z"


@dataclass(frozen=True)
class _Stat:
    status: str
    parent: int
    started: str


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces
    return _Stat(status=fields[0], parent=int(fields[1]), started=fields[19])


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _ray_node(pid: int) -> RayNode | None:
    arguments = _arguments(pid)
    if Path(arguments[0] if arguments else "").name != "raylet":
        return None
    flags = dict(item[2:].split("=", 1) for item in arguments if item[:2] == "--" and "=" in item)
    state = _stat(pid)
    if state is None or "node_id" not in flags or "gcs-address" not in flags:
        return None
    target, drain_s = pid, 0.0
    starter = _arguments(state.parent)
    if "start" in starter and "--block" in starter:
        target, drain_s = state.parent, _drain_time(state.parent)
    of_target = _stat(target)
    if of_target is None:
        return None
    return RayNode(flags["node_id"], flags["gcs-address"], target, of_target.started, drain_s)


def _drain_time(pid: int) -> float:
    """Seconds that ``ray start --block`` waits after SIGTERM, from its environment."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return _RAY_DRAIN_S
    value = dict(entry.split("=", 1) for entry in entries if "=" in entry).get(DRAIN_VARIABLE)
    try:
        return max(0.0, float(value)) if value else _RAY_DRAIN_S
    except ValueError:
        return _RAY_DRAIN_S


def find_ray_node(node_id: str | None = None) -> RayNode:
    """Find the raylet of this machine.

    Parameters
    ----------
    node_id : str, optional
        Ray's hexadecimal node id; needed where several raylets run on one machine.

    Raises
    ------
    TransientError
        If there is none (yet, or any more).
    InputError
        If there are several and none was named, or if this user may not stop it.
    """
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    nodes = [node for node in map(_ray_node, pids) if node is not None]
    if node_id is not None:
        nodes = [node for node in nodes if node.node_id == node_id]
    if not nodes:
        named = f" with node id {node_id}" if node_id else ""
        raise TransientError(f"no Ray node{named} runs on this machine")
    if len(nodes) > 1:
        ids = ", ".join(node.node_id for node in nodes)
        raise InputError(f"{len(nodes)} Ray nodes run on this machine; name one of them: {ids}")
    try:
        os.kill(nodes[0].target, 0)
    except ProcessLookupError as error:
        raise TransientError("the Ray node of this machine has just left") from error
    except PermissionError as error:
        raise InputError(
            f"no permission to signal process {nodes[0].target}; "
            "the watcher must run as the user that runs Ray"
        ) from error
    return nodes[0]


def announce_drain(node: RayNode, deadline: float, message: str, timeout_s: float) -> None:
    """Tell Ray's control plane that a node will be preempted.

    Runs in a process of its own: Ray's client neither keeps to a time limit nor always returns
    when the control plane is away.

    Parameters
    ----------
    deadline : float
        Unix seconds; the end of the node counts as preemption only after it.

    Raises
    ------
    TransientError
        If the control plane did not answer or did not accept.
    """
    command = [sys.executable, "-m", "orchestration.spot_node"]
    command += [node.address, node.node_id, str(int(deadline * 1000)), message]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TransientError(
            f"Ray's control plane at {node.address} did not answer in {timeout_s:.0f} s"
        ) from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        raise TransientError(f"Ray's control plane at {node.address}: {lines[-1][:300]}")


def _drain_in_this_process(address: str, node_id: str, milliseconds: str, message: str) -> str:
    """The only use of Ray's client: what the hidden ``ray drain-node`` does, in Ray 2.60.

    The command itself takes whole seconds from its own start, which is too coarse here.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = GcsClient(address=address)
    accepted, why_not = client.drain_node(node_id, reason, message, int(milliseconds))
    return "" if accepted else f"drain not accepted: {why_not}"


if __name__ == "__main__":
    sys.exit(_drain_in_this_process(*sys.argv[1:5]) or 0)
