"""Start or join a Ray cluster, with the settings that this project relies on.

Without an address a cluster of this machine is started and nothing else is ever joined: a plain
``ray.init()`` would attach to whatever cluster it finds.
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantum.base import ResourceError, StoreError, available_cores

ADDRESS_VARIABLE = "MEDREC_RAY_ADDRESS"
_OBJECT_STORE_BYTES = 256 * 2**20
# a molecule that needs more memory than there is would otherwise be retried for ever
_SYSTEM_CONFIG = {"task_oom_retries": 1}


def ensure_ray(n_cpus: int | None = None, address: str | None = None) -> Any:
    """Start a local cluster, or join the one named by ``address`` or ``MEDREC_RAY_ADDRESS``.

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
            ray.init(address=address, **quiet)
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
    return ray


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


def check_shared(ray: Any, folder: Path) -> None:
    """Make sure that workers see what the driver writes, and that a rename is a rename there.

    Raises
    ------
    StoreError
        If a worker does not find the probe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    probe = folder / f".probe-{token}"
    probe.with_suffix(".tmp").write_text(token)
    probe.with_suffix(".tmp").rename(probe)

    def read(path: str) -> str:
        return Path(path).read_text() if Path(path).exists() else ""

    try:
        found = ray.get(ray.remote(num_cpus=0)(read).remote(str(probe.resolve())))
    finally:
        probe.unlink(missing_ok=True)
    if found != token:
        raise StoreError(
            f"a worker does not see {folder}; "
            "the home folder must be on storage that all nodes share"
        )


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
