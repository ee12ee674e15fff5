"""Start or join a Ray cluster, with the settings that this project relies on.

Without an address a cluster of this machine is started and nothing else is ever joined: a plain
``ray.init()`` would attach to whatever cluster it finds.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestration.head import head_watch
from quantum.base import ResourceError, StoreError, TransientError, available_cores

ADDRESS_VARIABLE = "MEDREC_RAY_ADDRESS"
_OBJECT_STORE_BYTES = 256 * 2**20
# a molecule that needs more memory than there is would otherwise be retried for ever
_SYSTEM_CONFIG = {"task_oom_retries": 1}
_REACH_S = 20.0


def ensure_ray(n_cpus: int | None = None, address: str | None = None) -> Any:
    """Start a local cluster, or join the one named by ``address`` or ``MEDREC_RAY_ADDRESS``.

    The head is watched from then on, see `orchestration.head`.

    Parameters
    ----------
    n_cpus : int, optional
        Cores of a local cluster; all that this process may use by default.

    Returns
    -------
    module
        ``ray``, initialised.

    Raises
    ------
    ResourceError
        If more cores are asked for than there are.
    TransientError
        If the cluster to join does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    import ray

    if ray.is_initialized():
        return ray
    address = address or os.environ.get(ADDRESS_VARIABLE, "local")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address != "local":
            _join(ray, address, quiet)
            head_watch(ray)
            _say_dashboard(ray)
            return ray
        cores = available_cores()
        if n_cpus is not None and n_cpus > cores:
            raise ResourceError(f"{n_cpus} cores were asked for; this machine has {cores}")
        ray.init(
            address="local",
            num_cpus=n_cpus or cores,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _system_config=_SYSTEM_CONFIG,
            **quiet,
        )
    head_watch(ray)
    return ray


def _join(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    """Join a cluster; Ray alone tries one that is not there for minutes, and writes all the while.

    From here on Ray's native code stays quiet in this process: what a loss of the head means is
    said by `orchestration.head`.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    place = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+?)\]?:(\d+)", address)
    if place is not None:
        _reach(place[1], int(place[2]))
    try:
        with _no_native_output():
            ray.init(address=address, **quiet)
    except (ConnectionError, TimeoutError) as error:
        raise TransientError(f"no Ray cluster answers at {address}") from error


@contextmanager
def _no_native_output() -> Iterator[None]:
    """Drop what native code writes to standard error: Ray announces even that it will be quiet."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reach(host: str, port: int) -> None:
    end = time.monotonic() + _REACH_S
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > end:
                raise TransientError(
                    f"no Ray cluster answers at {host}:{port} within {_REACH_S:g} s "
                    f"({error.strerror or type(error).__name__}); is its head running?"
                ) from error
            time.sleep(0.5)
        else:
            return


def _say_dashboard(ray: Any) -> None:
    from orchestration.console import Terminal
    from orchestration.tracking import dashboard_line

    line = dashboard_line(ray)
    if line is not None:
        Terminal().say(line)


@contextmanager
def local_ray(n_cpus: int | None = None) -> Iterator[Any]:
    """Ray for the length of a block; a cluster that was there before stays."""
    import ray

    was_running = ray.is_initialized()
    try:
        yield ensure_ray(n_cpus)
    finally:
        if not was_running:
            ray.shutdown()


class SharedProbe:
    """A small file with a random text that other nodes should see; renamed into place.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.token = uuid.uuid4().hex
        self.path = folder.resolve() / f".probe-{self.token}"
        self.path.with_suffix(".tmp").write_text(self.token)
        self.path.with_suffix(".tmp").rename(self.path)

    def close(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)


def check_shared(ray: Any, folder: Path) -> None:
    """Make sure that workers see what the driver writes, and that a rename is a rename there.

    Raises
    ------
    StoreError
        If a worker does not find the probe.
    """
    probe = SharedProbe(folder)

    def read(path: str) -> str:
        return Path(path).read_text() if Path(path).exists() else ""

    try:
        found = ray.get(ray.remote(num_cpus=0)(read).remote(str(probe.path)))
    finally:
        probe.close()
    if found != probe.token:
        raise StoreError(
            f"a worker does not see {folder}; "
            "the home folder must be on storage that all nodes share"
        )


def cluster_slots(
    ray: Any, cpus: float, memory_bytes: float = 0, cluster_file: Path | None = None
) -> int:
    """Count tasks of one size that the cluster can hold, busy or not.

    Parameters
    ----------
    cpus, memory_bytes : float
        What one task asks Ray for; 0 does not count.
    cluster_file : Path, optional
        Description of the cluster, see `medrec cluster-check`; then it is what its pools may grow
        to. Pools without a cap count as they are now.

    Returns
    -------
    int
        0 if no node can ever hold one.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    wanted = {"CPU": cpus, "memory": memory_bytes}
    now = sum(_fits(node["Resources"], wanted) for node in ray.nodes() if node["Alive"])
    if cluster_file is None:
        return now
    from orchestration.cluster_files import read_cluster_file

    pools = read_cluster_file(cluster_file).pools
    return max(now, sum(_fits(pool.resources, wanted) * (pool.max_nodes or 0) for pool in pools))


def _fits(resources: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """Tasks on one machine; a pool's file need not say its memory, Ray's nodes always do."""
    shares = [
        resources.get(name, 0.0) / amount
        for name, amount in wanted.items()
        if amount > 0 and (name == "CPU" or name in resources)
    ]
    return int(min(shares)) if shares else 0


def require(ray: Any, *, cpus: float = 0, gpus: float = 0) -> None:
    """Stop if the cluster can never satisfy a request; there is no silent downgrade.

    Raises
    ------
    ResourceError
        Naming what was asked for and what there is.
    """
    there = ray.cluster_resources()
    for name, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > there.get(name, 0):
            raise ResourceError(
                f"{wanted:g} {name} were asked for; the cluster has {there.get(name, 0):g}"
            )
