"""Read what describes a cluster: Ray's launcher files, KubeRay resources, Slurm scripts, units.

All become a `ClusterFile`: pools of machines and the commands that start Ray on them. Ray's own
private functions are called here and nowhere else; they are of Ray 2.60.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestration.cluster_starts import (
    Start,
    pool_of_start,
    ray_starts,
    slurm_bytes,
    without_comments,
)
from orchestration.cluster_workloads import MARKETS, WORKLOADS, Pool
from quantum.base import ConfigError, ProgramMissingError

# seconds between the notice and the end of a spot machine
NOTICE_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
_LOCAL_TYPE = "local.cluster.node"
_NOT_AS_DESCRIBED = (KeyError, TypeError, AttributeError, ValueError, IndexError)


@dataclass(frozen=True)
class ClusterFile:
    """A description of a cluster.

    Parameters
    ----------
    kind : str
        "ray up", "KubeRay", "Slurm" or "systemd".
    cloud : str
        Provider of a launcher file; empty otherwise.
    starts : dict of str to Start
        For "head" and "worker"; a unit file has one of them.
    shell : str
        Everything that is executed or set, for searches.
    uncapped : tuple of str
        Where a cap on machines or time is missing.
    stop_grace_s : float, optional
        Seconds that a service manager waits after SIGTERM.
    head_ip : str, optional
        Address of the head, where a launcher file states it.
    """

    path: Path
    kind: str
    cloud: str
    text: str
    shell: str
    pools: tuple[Pool, ...]
    starts: dict[str, Start]
    workloads: tuple[str, ...]
    uncapped: tuple[str, ...] = ()
    ray_versions: tuple[str, ...] = ()
    stop_grace_s: float | None = None
    head_ip: str | None = None

    @property
    def head(self) -> Pool | None:
        """The head's pool."""
        return next((pool for pool in self.pools if pool.is_head), None)


def read_cluster_file(path: Path) -> ClusterFile:
    """Read a file by its ending and content.

    Raises
    ------
    ConfigError
        If it is unreadable, of no known kind, or refused by Ray.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigError(f"cluster file is not readable: {path}: {reason}") from error
    reader = _reader_of(path, text)
    try:
        return reader(path, text)
    except _NOT_AS_DESCRIBED as error:
        raise ConfigError(
            f"{path}: not built as its kind of file is: {type(error).__name__}: {error}"
        ) from error


def _reader_of(path: Path, text: str) -> Callable[[Path, str], ClusterFile]:
    if path.suffix in (".sbatch", ".slurm") or "\n#SBATCH " in text:
        return _read_slurm
    if path.suffix == ".service":
        return _read_unit
    if path.suffix in (".yaml", ".yml"):
        return _read_yaml
    raise ConfigError(
        f"{path}: no known kind of cluster file; expected .yaml (ray up, KubeRay), "
        ".sbatch (Slurm) or .service (systemd)"
    )


def _read_yaml(path: Path, text: str) -> ClusterFile:
    try:
        documents = [item for item in yaml.safe_load_all(text) if item is not None]
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not documents or not all(isinstance(item, dict) for item in documents):
        raise ConfigError(f"{path}: holds no mapping at top level")
    for tree in documents:
        if tree.get("kind") == "RayCluster":
            return _read_kuberay(path, text, tree)
    if "apiVersion" in documents[0]:
        raise ConfigError(f"{path}: no document of kind RayCluster")
    return _read_launcher(path, text, documents[0])


# --------------------------------------------------------------------------- Ray's own checks


@contextlib.contextmanager
def _ray_complaints(path: Path) -> Iterator[None]:
    """Turn what Ray raises on a bad file into one line; what Ray prints is kept out of sight."""
    try:
        import click
        import jsonschema
        import ray  # noqa: F401
    except ImportError as error:
        raise ProgramMissingError("Ray is missing: pip install 'medrec[cluster]'") from error
    log = logging.getLogger("ray.autoscaler")
    level, printed = log.level, io.StringIO()
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "(top level)"
        raise ConfigError(f"{path}: Ray's schema: {where}: {error.message}") from error
    except click.ClickException as error:
        said = " ".join(printed.getvalue().split()) or str(error)
        raise ConfigError(f"{path}: Ray refuses it: {said}") from error
    except (*_NOT_AS_DESCRIBED, RuntimeError, AssertionError, ImportError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: Ray refuses it: {said}") from error
    finally:
        log.setLevel(level)


def prepare_launcher(path: Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A launcher file as ``ray up`` sees it: defaults filled in, schema checked."""
    with _ray_complaints(path):
        from ray.autoscaler._private.util import prepare_config, validate_config

        prepared: dict[str, Any] = prepare_config(copy.deepcopy(dict(tree)))
        validate_config(prepared)
    return prepared


def prepare_kuberay(path: Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A RayCluster as Ray's autoscaler on Kubernetes sees it, schema checked."""
    with _ray_complaints(path):
        from ray.autoscaler._private.kuberay.autoscaling_config import (
            _derive_autoscaling_config_from_ray_cr,
        )
        from ray.autoscaler._private.util import validate_config

        derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(copy.deepcopy(dict(tree)))
        validate_config(derived)
    return derived


# --------------------------------------------------------------------------- ray up


def _read_launcher(path: Path, text: str, tree: dict[str, Any]) -> ClusterFile:
    if "provider" not in tree:
        raise ConfigError(f"{path}: neither a launcher file (no 'provider') nor a RayCluster")
    prepared = prepare_launcher(path, tree)
    cloud = str(prepared["provider"]["type"])
    starts = {
        side: start
        for side in ("head", "worker")
        if (start := _start_in(prepared[f"{side}_start_ray_commands"])) is not None
    }
    commands = [line for key in prepared if key.endswith("commands") for line in prepared[key]]
    return ClusterFile(
        path=path,
        kind="ray up",
        cloud=cloud,
        text=text,
        shell="\n".join(commands),
        pools=_local_pools(prepared, starts) if cloud == "local" else _cloud_pools(prepared),
        starts=starts,
        workloads=_workloads(path, text),
        uncapped=() if cloud == "local" else _uncapped_types(tree),
        head_ip=prepared["provider"].get("head_ip"),
    )


def _start_in(commands: list[str]) -> Start | None:
    for line in commands:
        before, found, after = line.partition("ray start")
        if found:
            return Start(before, f"ray start{after.split(';')[0]}")
    return None


def _uncapped_types(tree: Mapping[str, Any]) -> tuple[str, ...]:
    types = tree.get("available_node_types", {})
    missing = [
        f"available_node_types.{name}.max_workers"
        for name, item in types.items()
        if name != tree.get("head_node_type") and "max_workers" not in item
    ]
    return tuple(([] if "max_workers" in tree else ["max_workers"]) + missing)


def _cloud_pools(prepared: Mapping[str, Any]) -> tuple[Pool, ...]:
    notice = NOTICE_S.get(prepared["provider"]["type"], 0.0)
    return tuple(
        Pool(
            name=name,
            is_head=name == prepared["head_node_type"],
            resources=dict(item["resources"]),
            labels=dict(item.get("labels", {})),
            max_nodes=1
            if name == prepared["head_node_type"]
            else min(item["max_workers"], prepared["max_workers"]),
            notice_s=notice if _is_spot(item["node_config"]) else None,
        )
        for name, item in prepared["available_node_types"].items()
    )


def _is_spot(node: Mapping[str, Any]) -> bool:
    """Tell a spot machine by what AWS, Google or Azure is asked for."""
    scheduling = node.get("scheduling", [])
    google: dict[str, Any] = {}
    for item in [scheduling] if isinstance(scheduling, dict) else scheduling:
        google |= item
    return (
        node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or google.get("provisioningModel") == "SPOT"
        or bool(google.get("preemptible"))
        or str(node.get("azure_arm_parameters", {}).get("priority", "")).lower() == "spot"
    )


def _local_pools(prepared: Mapping[str, Any], starts: Mapping[str, Start]) -> tuple[Pool, ...]:
    workers = prepared["available_node_types"][_LOCAL_TYPE]["max_workers"]
    return tuple(
        pool_of_start(side, start, 1 if side == "head" else workers)
        for side, start in starts.items()
    )


# --------------------------------------------------------------------------- KubeRay


def _read_kuberay(path: Path, text: str, tree: dict[str, Any]) -> ClusterFile:
    prepared = prepare_kuberay(path, tree)
    spec = tree["spec"]
    groups = {group["groupName"]: group for group in spec.get("workerGroupSpecs", [])}
    pools = []
    for name, item in prepared["available_node_types"].items():
        labels = dict(item["labels"])
        pod = groups[name]["template"]["spec"] if name in groups else {}
        pools.append(
            Pool(
                name=name,
                is_head=name == prepared["head_node_type"],
                resources=dict(item["resources"]),
                labels=labels,
                max_nodes=item["max_workers"] if name in groups else 1,
                notice_s=float(pod.get("terminationGracePeriodSeconds", 30))
                if labels.get("market") == MARKETS[0]
                else None,
            )
        )
    head = _start_of_pod(spec, spec["headGroupSpec"], "--head")
    starts = {"head": head} | {
        f"worker {name}": _start_of_pod(spec, group, "--block") for name, group in groups.items()
    }
    return ClusterFile(
        path=path,
        kind="KubeRay",
        cloud="",
        text=text,
        shell="\n".join(f"{item.environment}\n{item.command}" for item in starts.values()),
        pools=tuple(pools),
        starts=starts,
        workloads=_workloads(path, text),
        ray_versions=(str(spec["rayVersion"]),) if "rayVersion" in spec else (),
    )


def _start_of_pod(spec: Mapping[str, Any], group: Mapping[str, Any], mode: str) -> Start:
    """What the operator makes of a group: the container's environment and ``ray start``."""
    container = group["template"]["spec"]["containers"][0]
    settings = [f"{item['name']}={item.get('value', '')}" for item in container.get("env", [])]
    settings.append(f"IMAGE={container['image']}")
    if "authOptions" in spec:
        settings.append(f"RAY_AUTH_MODE={spec['authOptions'].get('mode', 'token')}")
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    settings.append(f"PRESTOP={'SIGTERM' if 'TERM' in ' '.join(hook) else ''}")
    options = [f"--{key}={value}" for key, value in group.get("rayStartParams", {}).items()]
    return Start("\n".join(settings), " ".join(["ray start", mode, "--block", *options]))


# --------------------------------------------------------------------------- Slurm, systemd


def _read_slurm(path: Path, text: str) -> ClusterFile:
    asked = dict(re.findall(r"^#SBATCH\s+--([\w-]+)[= ](\S+)", text, flags=re.MULTILINE))
    shell = without_comments(text)
    environment = shell.partition("ray start")[0]
    cores = asked.get("cpus-per-task")
    known = f"\nSLURM_CPUS_PER_TASK={cores}" if cores else ""
    starts = {
        "head" if "--head" in call else "worker": Start(environment + known, call)
        for call in ray_starts(shell)
    }
    notice = re.search(r"TERM@(\d+)", asked.get("signal", ""))
    nodes = asked.get("nodes", "").split("-")[-1]
    pools = []
    for side, start in starts.items():
        pool = pool_of_start(
            side,
            start,
            1 if side == "head" else int(nodes or 1),
            None if side == "head" else float(notice[1]) if notice else 0.0,
        )
        if side == "worker" and "mem" in asked:
            pool.resources.setdefault("memory", slurm_bytes(asked["mem"]))
        pools.append(pool)
    return ClusterFile(
        path=path,
        kind="Slurm",
        cloud="",
        text=text,
        shell=shell,
        pools=tuple(pools),
        starts=starts,
        workloads=_workloads(path, text),
        uncapped=tuple(f"#SBATCH --{key}" for key in ("nodes", "time") if key not in asked),
    )


def _read_unit(path: Path, text: str) -> ClusterFile:
    shell = without_comments(text)
    calls = ray_starts(shell)
    if not calls:
        raise ConfigError(f"{path}: no 'ray start' in ExecStart")
    environment = "\n".join(line for line in shell.splitlines() if "ray start" not in line)
    side = "head" if "--head" in calls[0] else "worker"
    start = Start(environment, calls[0])
    seconds = start.setting("TimeoutStopSec")
    return ClusterFile(
        path=path,
        kind="systemd",
        cloud="",
        text=text,
        shell=shell,
        pools=(pool_of_start(side, start, 1),),
        starts={side: start},
        workloads=_workloads(path, text),
        # systemd's default is 90 s
        stop_grace_s=float(seconds.removesuffix("s")) if seconds else 90.0,
    )


def _workloads(path: Path, text: str) -> tuple[str, ...]:
    """Names after ``# medrec-workloads:``; all of them without such a line."""
    found = re.search(r"^#\s*medrec-workloads:(.*)$", text, flags=re.MULTILINE)
    if found is None:
        return tuple(WORKLOADS)
    names = tuple(name.strip() for name in found[1].split(",") if name.strip())
    for name in names:
        if name not in WORKLOADS:
            raise ConfigError(
                f"{path}: unknown workload '{name}'; expected some of: {', '.join(WORKLOADS)}"
            )
    return names
