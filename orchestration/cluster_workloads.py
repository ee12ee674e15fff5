"""What this project's tasks ask of a cluster, and which pool of machines can give it.

The numbers are those of the shipped configurations under ``configs/``; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medrec.config import ScalingConfig
from quantum.schema import Resources

MIB = 2**20
# what `quantum.child` lets a calculation map on top of its memory limit
CHILD_EXTRA_MB = 2000
DFT = Resources(threads=1, memory_mb=9000)  # the standard level
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
        What Ray is asked for, per task.
    memory_mb : float
        What a task may take. Ray is not told: its schedulers count cores only.
    count : int
        Tasks that must run at the same time.
    """

    name: str
    what: str
    resources: dict[str, float]
    memory_mb: float = 0.0
    count: int = 1


def _fit(name: str, what: str, scaling: ScalingConfig) -> Workload:
    resources: dict[str, float] = {"CPU": scaling.cpus_per_worker}
    if scaling.use_gpu:
        resources["GPU"] = 1
    return Workload(name, what, resources, count=scaling.num_workers)


WORKLOADS: dict[str, Workload] = {
    item.name: item
    for item in (
        Workload("driver", "a submitted command, with its Train and Tune", {"driver": 1}),
        Workload("conformers", "conformers of one molecule", {"CPU": 1}, Resources().memory_mb),
        Workload(
            "dft",
            "SCF and ELF of one molecule",
            {"CPU": DFT.threads},
            DFT.memory_mb + CHILD_EXTRA_MB,
        ),
        Workload("libraries", "encoding a slice of a molecule library", {"CPU": 1}),
        Workload("recommenders", "training one recommender", {"CPU": 1}),
        _fit("pretrain-cpu", "pre-training workers without GPU", CPU_FIT),
        _fit("pretrain-gpu", "pre-training and property models on GPUs", GPU_FIT),
        Workload("tune", "one trial of a search", {"CPU": 1}),
    )
}


def obstacle(workload: Workload, pool: Pool) -> str | None:
    """Why a pool's machine can never run a task; None if it can."""
    for name, wanted in workload.resources.items():
        there = pool.resources.get(name, 0)
        if there < wanted:
            return f"needs {wanted:g} {name}, has {there:g}"
    memory = pool.resources.get("memory")
    if memory is not None and memory < workload.memory_mb * MIB:
        return f"needs {workload.memory_mb:,.0f} MiB, has {memory / MIB:,.0f}"
    return None


def slots(workload: Workload, pool: Pool) -> int:
    """Tasks that Ray starts on one machine of a pool; memory does not count, as Ray is not told."""
    if obstacle(workload, pool):
        return 0
    shares = (pool.resources[name] // wanted for name, wanted in workload.resources.items())
    return int(min(shares))


def serving(workload: Workload, pools: Sequence[Pool]) -> list[Pool]:
    """Pools that can run a workload."""
    return [pool for pool in pools if obstacle(workload, pool) is None]


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
        most = max((pool.resources.get(name, 0) for pool in pools), default=0)
        if most == 0:
            return f"needs {wanted:g} {name}; no pool has one"
        if most < wanted:
            return f"needs {wanted:g} {name} on one machine; the largest pool has {most:g}"
    reasons = [f"{pool.name} {obstacle(workload, pool)}" for pool in pools if not pool.is_head]
    return "no pool can run it: " + "; ".join(reasons)


def overcommitted(workload: Workload, pool: Pool) -> str | None:
    """Tell if a machine's cores start more tasks than its memory holds.

    Machines with GPUs are left out: Ray puts tasks without GPUs there last.
    """
    memory = pool.resources.get("memory")
    if memory is None or pool.resources.get("GPU") or not workload.memory_mb:
        return None
    started, held = slots(workload, pool), int(memory // (workload.memory_mb * MIB))
    if started <= held:
        return None
    return (
        f"{started} '{workload.name}' tasks start on one machine, its memory holds {held} "
        f"({workload.memory_mb:,.0f} MiB each); give fewer CPUs or more memory"
    )


def _names(pools: Sequence[Pool]) -> str:
    return ", ".join(pool.name for pool in pools)
