"""What this project's tasks ask of a cluster, and which pool of machines can give it.

The numbers are those of the shipped configurations under ``configs/``; a test holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medrec.config import ScalingConfig
from quantum.schema import Resources

MIB = 2**20
DFT = Resources(threads=1, memory_mb=9000)  # the standard level
SEARCH_GPU_SHARE = 0.25  # four trials of a search on one GPU
GPU_FIT = ScalingConfig(num_workers=1, use_gpu=True, cpus_per_worker=4)
CPU_FIT = ScalingConfig(num_workers=2, use_gpu=False, cpus_per_worker=1)

POOLS = ("head", "dft", "conformers", "train")
MARKETS = ("spot", "on-demand")


@dataclass(frozen=True)
class Pool:
    """Machines of one kind.

    Parameters
    ----------
    resources : dict of str to float
        As Ray counts them: CPU, GPU, memory (bytes, absent if the file does not say), and others.
    max_nodes : int, optional
        Cap; None if there is none.
    notice_s : float, optional
        Seconds between the notice and the end of a machine that is taken away; None if it stays.
    """

    name: str
    is_head: bool
    resources: dict[str, float]
    labels: dict[str, str]
    max_nodes: int | None = None
    notice_s: float | None = None


@dataclass(frozen=True)
class Workload:
    """A kind of task.

    Parameters
    ----------
    resources : dict of str to float
        What Ray is asked for, per task; memory in bytes.
    pool : str, optional
        Label of the pool that Ray takes while there is room in it; then any other will do.
    count : int
        Tasks that must run at the same time.
    """

    name: str
    what: str
    resources: dict[str, float]
    pool: str | None = None
    count: int = 1


def _fit(name: str, what: str, scaling: ScalingConfig) -> Workload:
    resources: dict[str, float] = {"CPU": scaling.cpus_per_worker}
    if scaling.use_gpu:
        resources["GPU"] = 1
    return Workload(name, what, resources, count=scaling.num_workers)


def _stage(name: str, what: str, resources: Resources) -> Workload:
    """The most that a stage asks for: small molecules ask for the memory they are to need."""
    memory = resources.memory_mb * MIB
    return Workload(name, what, {"CPU": resources.threads, "memory": memory}, pool=name)


WORKLOADS: dict[str, Workload] = {
    item.name: item
    for item in (
        Workload("driver", "a submitted command, with its Train and Tune", {"driver": 1}),
        _stage("conformers", "conformers of one molecule", Resources()),
        _stage("dft", "SCF and ELF of one molecule", DFT),
        Workload("libraries", "encoding a slice of a molecule library", {"CPU": 1}),
        Workload("recommenders", "training one recommender", {"CPU": 1}),
        _fit("pretrain-cpu", "pre-training workers without GPU", CPU_FIT),
        _fit("pretrain-gpu", "pre-training and property models on GPUs", GPU_FIT),
        Workload("tune", "one trial of a search", {"CPU": 1}),
        Workload(
            "tune-gpu",
            "one trial of a search on a share of a GPU",
            {"CPU": 1, "GPU": SEARCH_GPU_SHARE},
        ),
    )
}


def amount(name: str, value: float) -> str:
    """A resource as it is read: memory in MiB, the rest by its name."""
    return f"{value / MIB:,.0f} MiB" if name == "memory" else f"{value:g} {name}"


def obstacle(workload: Workload, pool: Pool) -> str | None:
    """Why a pool's machine can never run a task; None if it can."""
    for name, wanted in workload.resources.items():
        there = _there(pool, name)
        if there < wanted:
            return (
                f"needs {amount(name, wanted)}, has {amount(name, there).removesuffix(' ' + name)}"
            )
    return None


def _there(pool: Pool, name: str) -> float:
    """What a machine has; memory that the file leaves to Ray to find is taken to be enough."""
    return pool.resources.get(name, math.inf if name == "memory" else 0)


def slots(workload: Workload, pool: Pool) -> int:
    """Tasks that Ray starts on one machine of a pool."""
    if obstacle(workload, pool):
        return 0
    shares = (_there(pool, name) / wanted for name, wanted in workload.resources.items())
    return math.floor(min(shares) + 1e-9)


def serving(workload: Workload, pools: Sequence[Pool]) -> list[Pool]:
    """Pools that can run a workload, those of its own label first."""
    able = [pool for pool in pools if obstacle(workload, pool) is None]
    return sorted(able, key=lambda pool: not is_own(workload, pool))


def is_own(workload: Workload, pool: Pool) -> bool:
    """Tell whether a workload asks for this pool first."""
    return workload.pool is not None and pool.labels.get("pool") == workload.pool


def unmet(workload: Workload, pools: Sequence[Pool]) -> str | None:
    """Why no pool can ever satisfy a workload, in one line; None if one can."""
    able = serving(workload, pools)
    if able:
        # a group starts when all of it fits; a pool without a cap may grow to any size
        room = sum(slots(workload, pool) * (pool.max_nodes or 10**9) for pool in able)
        if room >= workload.count:
            return None
        return f"needs {workload.count} at a time; at most {room} fit into {_names(able)}"
    for name, wanted in workload.resources.items():
        most = max((_there(pool, name) for pool in pools), default=0)
        if most == 0:
            return f"needs {amount(name, wanted)}; no pool has one"
        if most < wanted:
            largest = amount(name, most).removesuffix(f" {name}")
            return f"needs {amount(name, wanted)} on one machine; the largest pool has {largest}"
    reasons = [f"{pool.name} {obstacle(workload, pool)}" for pool in pools if not pool.is_head]
    return "no pool can run it: " + "; ".join(reasons)


def idle_cores(workload: Workload, pool: Pool) -> str | None:
    """Tell if a pool meant for a workload has cores that its memory leaves without a task."""
    if not is_own(workload, pool) or not slots(workload, pool):
        return None
    cores, per_task = pool.resources["CPU"], workload.resources["CPU"]
    idle = cores - slots(workload, pool) * per_task
    if idle < per_task:
        return None
    wanted = amount("memory", workload.resources["memory"])
    return (
        f"memory holds {slots(workload, pool)} '{workload.name}' tasks ({wanted} each), so "
        f"{idle:g} of {cores:g} cores would idle; give fewer CPUs or more memory"
    )


def _names(pools: Sequence[Pool]) -> str:
    return ", ".join(pool.name for pool in pools)
