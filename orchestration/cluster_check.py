"""Check that this project's tasks will run on a described cluster, and run well.

First come Ray's own schema and preparation (`orchestration.cluster_files`), then the rules below,
each of which stands for something that goes wrong silently, then what our tasks ask for
(`orchestration.cluster_workloads`). Nothing is started and no cloud is asked.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from orchestration.cluster_files import ClusterFile, Start, read_cluster_file
from orchestration.cluster_workloads import (
    MARKETS,
    POOLS,
    WORKLOADS,
    amount,
    idle_cores,
    serving,
    slots,
    unmet,
)
from quantum.base import ConfigError, ProgramMissingError

Rule = Callable[[ClusterFile], Iterator[str]]
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_VERSIONS = (
    r"\bray(?:\[[\w,]+\])?==(\d+\.\d+\.\d+)",
    r"ray\.__version__ == '(\d+\.\d+\.\d+)'",
    r"IMAGE=\S*\bray[:-]?(\d+\.\d+\.\d+)",
)
# what a credential looks like; only its name is ever printed
_SECRETS = {
    "a Ray token (RAY_AUTH_TOKEN)": r"RAY_AUTH_TOKEN[\"']?\s*[=:]\s*[\"']?(?![\"'\s$])\S",
    "a Ray token (a container's RAY_AUTH_TOKEN)": (
        r"name:\s*[\"']?RAY_AUTH_TOKEN[\"']?\s*(?:,|\n)\s*value:\s*\S"
    ),
    "a key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|aws_secret_access_key\s*[=:]\s*\S",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "credentials of Google": r"\"?private_key\"?\s*:\s*\"|gcp_credentials\s*:",
    "a token of a code or model server": r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_)\w{16,}",
    "a password": r"(?i)\bpassword\s*[=:]\s*[\"']?[^\s\"'$]+|://[^\s/@:]+:[^\s/@]+@",
}


@dataclass
class Report:
    """What a check found.

    Parameters
    ----------
    problems : list of str
        One line each; a file is fine without any.
    placeholders : int
        Places that still have to be filled in.
    pools, workloads : list of dict
        Rows of the two tables.
    """

    path: Path
    kind: str = ""
    problems: list[str] = field(default_factory=list)
    placeholders: int = 0
    pools: list[dict[str, Any]] = field(default_factory=list)
    workloads: list[dict[str, Any]] = field(default_factory=list)


def check_cluster_file(path: Path) -> Report:
    """Check one file; what cannot even be read is a problem like any other."""
    report = Report(path)
    try:
        described = read_cluster_file(path)
    except ConfigError as error:
        report.problems.append(str(error).removeprefix(f"{path}: "))
        return report
    report.kind = described.kind
    report.placeholders = _without_comments(described.text).count("REPLACE")
    report.problems += [line for rule in RULES for line in rule(described)]
    report.pools = [_pool_row(described, pool.name) for pool in described.pools]
    report.workloads = _workload_rows(described)
    return report


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _pool_row(described: ClusterFile, name: str) -> dict[str, Any]:
    pool = next(item for item in described.pools if item.name == name)
    others = {k: v for k, v in pool.resources.items() if k not in ("CPU", "GPU", "memory")}
    memory = pool.resources.get("memory")
    return {
        "pool": pool.name,
        "market": pool.labels.get("market"),
        "max machines": pool.max_nodes,
        "CPU": pool.resources.get("CPU"),
        "GPU": pool.resources.get("GPU"),
        "memory GiB": memory / 2**30 if memory is not None else None,
        "other": ", ".join(f"{key} {value:g}" for key, value in others.items()),
    }


def _workload_rows(described: ClusterFile) -> list[dict[str, Any]]:
    rows = []
    for name in described.workloads:
        workload = WORKLOADS[name]
        asked = ", ".join(amount(key, value) for key, value in workload.resources.items())
        able = serving(workload, described.pools)
        rows.append(
            {
                "workload": name,
                "what": workload.what,
                "asks Ray for": asked + (f" x {workload.count}" if workload.count > 1 else ""),
                "first in": workload.pool or "",
                "pools (tasks per machine)": ", ".join(
                    f"{pool.name} ({slots(workload, pool)})" for pool in able
                ),
            }
        )
    return rows


# --------------------------------------------------------------------------- rules


@cache
def _installed_ray() -> str:
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError as error:
        raise ProgramMissingError("Ray is missing: pip install 'medrec[cluster]'") from error


def _sides(described: ClusterFile, side: str) -> list[tuple[str, Start]]:
    return [item for item in described.starts.items() if item[0].startswith(side)]


def ray_version(described: ClusterFile) -> Iterator[str]:
    """The file names the Ray that it is for, and that is the installed one."""
    found = list(described.ray_versions)
    for pattern in _VERSIONS:
        found += re.findall(pattern, described.shell)
    if not found:
        yield (
            f"no version of Ray: nodes may get another one than {_installed_ray()}; state it as "
            "ray==X, rayVersion, or a check of ray.__version__"
        )
    for version in sorted(set(found) - {_installed_ray()}):
        yield f"Ray {version} in the file, {_installed_ray()} is installed here: they must agree"


def head_runs_no_tasks(described: ClusterFile) -> Iterator[str]:
    """The head has no CPUs, so that tasks stay away, and the resource that drivers ask for."""
    if described.kind != "systemd" and not _sides(described, "head"):
        yield "nothing starts Ray on the head"
    for side in ("worker",) if described.kind in ("ray up", "Slurm", "KubeRay") else ():
        if not _sides(described, side):
            yield "nothing starts Ray on the workers"
    head = described.head
    if head is None:
        return
    if head.resources.get("CPU") != 0:
        yield (
            f"head has {head.resources.get('CPU', 'unstated')} CPUs, expected 0: tasks would take "
            "the control plane down with them, and Ray Train would count them"
        )
    if head.resources.get("driver", 0) < 1:
        yield "head has no 'driver' resource: submitted commands could land on a spot machine"


def cores_are_stated(described: ClusterFile) -> Iterator[str]:
    """Workers say how many cores they have; Ray would count hardware threads."""
    for pool in described.pools:
        if not pool.is_head and "CPU" not in pool.resources:
            yield f"pool {pool.name} does not state its CPUs: Ray would count hardware threads"


def memory_is_stated(described: ClusterFile) -> Iterator[str]:
    """Pools that grow say how much memory a machine has: the autoscaler takes none as 0."""
    if described.kind not in ("ray up", "KubeRay") or described.cloud == "local":
        return
    for pool in described.pools:
        if not pool.is_head and "memory" not in pool.resources:
            yield (
                f"pool {pool.name} does not state its memory: no machine of it would be started "
                "for a task that asks for memory"
            )


def local_head_starts_workers(described: ClusterFile) -> Iterator[str]:
    """Own machines are launched by the autoscaler that can do it, under the head's own address."""
    if described.cloud != "local":
        return
    for side, start in _sides(described, "head"):
        if start.setting("RAY_enable_autoscaler_v2") != "0":
            yield (
                f"{side} start does not set RAY_enable_autoscaler_v2=0: with provider 'local' "
                "Ray's autoscaler v2 loses the head and starts one worker at most"
            )
        address = start.flag("--node-ip-address")
        if described.head_ip is not None and address != described.head_ip:
            yield (
                f"{side} start: --node-ip-address is {address or 'missing'}, provider.head_ip is "
                f"{described.head_ip}: Ray may choose another network, which workers do not find"
            )


def threads_not_inherited(described: ClusterFile) -> Iterator[str]:
    """No OMP_NUM_THREADS reaches the workers: Ray would never set it for a task again."""
    launcher = described.kind in ("ray up", "Slurm")
    for side, start in described.starts.items():
        value = start.setting("OMP_NUM_THREADS")
        if value is not None:
            yield f"{side} start sets OMP_NUM_THREADS={value}: all tasks would inherit it"
        elif launcher and "unset OMP_NUM_THREADS" not in start.environment:
            origin = "Ray's launcher exports it" if described.kind == "ray up" else "sbatch does"
            yield f"{side} start inherits OMP_NUM_THREADS ({origin}): unset it before 'ray start'"


def drains_before_it_goes(described: ClusterFile) -> Iterator[str]:
    """Machines that are taken away, or stopped, drain within the time that there is."""
    workers = _sides(described, "worker")
    for pool in described.pools:
        if pool.notice_s is None:
            continue
        own = [item for item in workers if item[0] == f"worker {pool.name}"] or workers
        for _, start in own:
            drain = _seconds(start)
            if drain is None or drain <= 0:
                yield (
                    f"spot pool {pool.name}: no RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S above 0 in "
                    "the start command: preemption would cost tasks their retries"
                )
            elif drain >= pool.notice_s:
                yield (
                    f"spot pool {pool.name}: drain time {drain:g} s is not shorter than the "
                    f"notice of {pool.notice_s:g} s"
                )
            if not start.has("--block"):
                yield f"spot pool {pool.name}: 'ray start' without --block does not drain"
            if described.kind == "KubeRay" and start.setting("PRESTOP") != "SIGTERM":
                yield f"spot pool {pool.name}: no preStop hook sends SIGTERM to 'ray start'"
    spot = [pool for pool in described.pools if pool.notice_s is not None]
    watch = rf"medrec spot-watch\b.*--cloud[= ](?:{re.escape(described.cloud)}|auto)\b"
    if described.kind == "ray up" and spot and not re.search(watch, described.shell):
        yield (
            f"spot pools, but no 'medrec spot-watch --cloud {described.cloud}' in the start "
            "commands: Ray does not read the cloud's notices"
        )


def _seconds(start: Start) -> float | None:
    value = start.setting("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def unit_lets_ray_drain(described: ClusterFile) -> Iterator[str]:
    """A unit's SIGTERM goes to ``ray start`` alone, which gets the time to drain."""
    if described.stop_grace_s is None:
        return
    for side, start in described.starts.items():
        if start.setting("KillMode") != "mixed":
            yield f"{side} unit: KillMode is not 'mixed': systemd would kill the raylet at once"
        if not start.has("--block"):
            yield f"{side} unit: 'ray start' without --block leaves systemd nothing to watch"
        drain = _seconds(start)
        if side == "worker" and drain is None:
            yield "worker unit: no RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        if drain is not None and drain >= described.stop_grace_s:
            yield (
                f"{side} unit: drain time {drain:g} s is not shorter than TimeoutStopSec "
                f"{described.stop_grace_s:g} s"
            )


def token_mode(described: ClusterFile) -> Iterator[str]:
    """Every node asks for the token, and no secret stands in the file."""
    for side, start in described.starts.items():
        if start.setting("RAY_AUTH_MODE") != "token":
            yield f"{side} start does not set RAY_AUTH_MODE=token: anyone near may run code"
    for what, pattern in _SECRETS.items():
        if re.search(pattern, described.text):
            yield f"the file holds {what}: hand it over in a file or secret of its own"


def dashboard_on_loopback(described: ClusterFile) -> Iterator[str]:
    """The dashboard runs submitted code; it is reached through a tunnel."""
    for side, start in _sides(described, "head"):
        host = start.flag("--dashboard-host")
        if host is None and described.kind == "KubeRay":
            yield f"{side}: no dashboard-host: the operator's default is 0.0.0.0; set 127.0.0.1"
        elif host is not None and host not in _LOOPBACK:
            yield f"{side}: dashboard listens on {host}, expected 127.0.0.1"


def budget_cap(described: ClusterFile) -> Iterator[str]:
    """The number of machines is bounded, and idle ones go."""
    for where in described.uncapped:
        yield f"no budget cap: {where} is missing"
    if described.kind == "ray up" and not re.search(
        r"^idle_timeout_minutes:", described.text, re.M
    ):
        yield "no idle_timeout_minutes: state when idle machines are given back"


def known_labels(described: ClusterFile) -> Iterator[str]:
    """Pools carry labels that the project knows, and the truth about their market."""
    known = {"pool": POOLS, "market": MARKETS}
    for pool in described.pools:
        for label, values in known.items():
            value = pool.labels.get(label)
            if value not in values:
                yield (
                    f"pool {pool.name}: label {label} is {value or 'missing'}, "
                    f"expected one of: {', '.join(values)}"
                )
        if described.kind == "ray up" and described.cloud != "local":
            market = MARKETS[0] if pool.notice_s is not None else MARKETS[1]
            if pool.labels.get("market") in MARKETS and pool.labels["market"] != market:
                yield f"pool {pool.name}: label market is not {market}, as its machines are"


def memory_errors_end(described: ClusterFile) -> Iterator[str]:
    """A task that runs out of memory is not retried for ever, which is Ray's default."""
    for side, start in described.starts.items():
        if start.setting("RAY_task_oom_retries") is None:
            yield f"{side} start does not set RAY_task_oom_retries: Ray would retry for ever"


def shared_home(described: ClusterFile) -> Iterator[str]:
    """Results go to one folder that all machines see, and drivers join this cluster."""
    homes = {side: start.setting("MEDREC_HOME") for side, start in described.starts.items()}
    for side, home in homes.items():
        if home is None:
            yield f"{side} start does not set MEDREC_HOME to the shared folder"
        elif "://" in home:
            yield (
                f"{side} start: MEDREC_HOME is {home}: the store needs a file system that renames "
                "atomically (NFS, EFS, FSx, Filestore), not an object store"
            )
        elif not home.startswith("/"):
            yield f"{side} start: MEDREC_HOME is {home}, expected an absolute path"
    if len({home for home in homes.values() if home}) > 1:
        yield f"MEDREC_HOME differs between machines: {', '.join(sorted(map(str, homes.values())))}"
    for side, start in _sides(described, "head"):
        exported = "MEDREC_RAY_ADDRESS=" in described.shell and described.kind == "Slurm"
        if start.setting("MEDREC_RAY_ADDRESS") is None and not exported:
            yield (
                f"{side} start does not set MEDREC_RAY_ADDRESS: a submitted command would start a "
                "local cluster of its own"
            )


def workloads_fit(described: ClusterFile) -> Iterator[str]:
    """Each workload has a pool that can run it, and the cores of its own pool find work."""
    for name in described.workloads:
        reason = unmet(WORKLOADS[name], described.pools)
        if reason:
            yield f"workload '{name}' {reason}"
        for pool in described.pools:
            waste = idle_cores(WORKLOADS[name], pool)
            if waste:
                yield f"pool {pool.name}: {waste}"


RULES: tuple[Rule, ...] = (
    ray_version,
    head_runs_no_tasks,
    cores_are_stated,
    memory_is_stated,
    local_head_starts_workers,
    threads_not_inherited,
    drains_before_it_goes,
    unit_lets_ray_drain,
    token_mode,
    dashboard_on_loopback,
    budget_cap,
    known_labels,
    memory_errors_end,
    shared_home,
    workloads_fit,
)
