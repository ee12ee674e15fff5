"""`medrec doctor`: what is on this machine, and what to do about what is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medrec.runs import Home
from quantum.base import available_cores, machine, package_versions

if TYPE_CHECKING:
    from orchestration.nodes import NodeFacts

Level = Literal["ok", "optional", "problem"]

_PACKAGES = {
    "torch": "learn",
    "torch-geometric": "learn",
    "polars": "learn",
    "scikit-learn": "learn",
    "pyscf": "pyscf",
    "ray": "cluster",
    "optuna": "cluster",
    "plotly": "report",
    "scikit-image": "report",
}
# what single settings need: package, how to get it
_OPTIONAL = {
    "pyscf-dispersion": "D3 and D4 dispersion: pip install 'medrec[pyscf]'",
    "geometric": "geometry optimisation: pip install 'medrec[optimise]'",
    "tblite": "GFN2-xTB: pip install 'medrec[optimise]'",
    "timm": "2D image encoders of ELF slices: pip install 'medrec[vision]'",
    "gpu4pyscf-cuda12x": "DFT on a GPU: pip install gpu4pyscf-cuda12x (or another CUDA version)",
}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table."""

    what: str
    level: Level
    found: str
    advice: str = ""


def examine(home: Home) -> list[Check]:
    """Look at Python, packages, processor, memory, GPU, Psi4, home folder and disk."""
    return [
        _python(),
        *_packages(),
        *_hardware(),
        _gpu(),
        psi4_check(),
        _home(home),
        _disk(home),
        _threads(),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        return Check("Python", "ok", version)
    return Check("Python", "optional", version, "the exact pins are for 3.11; others are untested")


def _packages() -> list[Check]:
    checks = []
    core = package_versions("rdkit", "numpy", "pandas", "pydantic")
    for name, version in core.items():
        checks.append(
            Check(name, "ok", version)
            if version
            else Check(name, "problem", "missing", "run: make setup")
        )
    for name, version in package_versions(*_PACKAGES).items():
        extra = _PACKAGES[name]
        checks.append(
            Check(name, "ok", version)
            if version
            else Check(name, "problem", "missing", f"pip install 'medrec[{extra}]'")
        )
    for name, version in package_versions(*_OPTIONAL).items():
        checks.append(
            Check(name, "ok", version)
            if version
            else Check(name, "optional", "missing", _OPTIONAL[name])
        )
    return checks


def _hardware() -> list[Check]:
    facts = machine()
    cores, memory = available_cores(), facts["memory_gib"]
    checks = [Check("processor", "ok", f"{facts['processor']}, {cores} cores")]
    if memory is None:
        checks.append(Check("memory", "optional", "unknown"))
    elif memory < 8:
        checks.append(
            Check("memory", "problem", f"{memory} GiB", "the demo wants 8 GiB: lower max_in_flight")
        )
    else:
        checks.append(Check("memory", "ok", f"{memory} GiB"))
    return checks


def _gpu() -> Check:
    if package_versions("torch")["torch"] is None:
        return Check("GPU", "optional", "unknown", "PyTorch is missing")
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("GPU", "ok", ", ".join(names))
    return Check("GPU", "optional", "none", "everything runs on the CPU; GPUs by configuration")


def psi4_check() -> Check:
    """Find Psi4 on the PATH and ask it for its version."""
    program = os.environ.get("MEDREC_PSI4") or shutil.which("psi4")
    advice = (
        "second quantum-chemistry program, not needed for the demo: "
        "apt-get install psi4 (Debian, Ubuntu) or conda install -c conda-forge psi4"
    )
    if program is None:
        return Check("Psi4", "optional", "not on the PATH", advice)
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("Psi4", "problem", f"does not start ({type(error).__name__})", advice)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return Check("Psi4", "problem", f"exit code {done.returncode}", "reinstall Psi4")
    return Check("Psi4", "ok", lines[-1])


def _home(home: Home) -> Check:
    try:
        home.root.mkdir(parents=True, exist_ok=True)
        probe = home.root / f".probe-{os.getpid()}"
        probe.write_text("probe")
        probe.rename(probe.with_suffix(".renamed"))
        probe.with_suffix(".renamed").unlink()
    except OSError as error:
        return Check(
            "home folder", "problem", f"{home.root}: {error.strerror}", "set MEDREC_HOME or --home"
        )
    objects = home.store / "objects"
    count = sum(1 for _ in objects.glob("*/*")) if objects.is_dir() else 0
    return Check("home folder", "ok", f"{home.root} ({count} objects in the store)")


def _disk(home: Home) -> Check:
    folder = home.root if home.root.exists() else Path.cwd()
    free_gib = shutil.disk_usage(folder).free / 2**30
    if free_gib < 2:
        return Check("disk", "problem", f"{free_gib:.1f} GiB free", "free some space: 2 GiB needed")
    return Check("disk", "ok", f"{free_gib:.0f} GiB free")


def _threads() -> Check:
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None:
        return Check("OMP_NUM_THREADS", "ok", "not set; each task sets its own threads")
    return Check("OMP_NUM_THREADS", "ok", f"{value}; tasks set their own threads regardless")


def examine_cluster(home: Home) -> list[Check]:
    """Join the cluster that ``MEDREC_RAY_ADDRESS`` names, or start one, and look at its nodes.

    Raises
    ------
    TransientError
        If the cluster does not answer.
    """
    from orchestration.cluster import ensure_ray
    from orchestration.nodes import inspect_nodes, this_process

    found = inspect_nodes(ensure_ray(), with_psi4=True, store=home.store)
    return node_checks(this_process(), found)


def node_checks(here: NodeFacts, nodes: Sequence[NodeFacts]) -> list[Check]:
    """One line for each node; what differs from ``here`` is a problem."""
    return [_node(here, facts) for facts in nodes]


def _node(here: NodeFacts, facts: NodeFacts) -> Check:
    from orchestration.nodes import differences

    what = f"node {facts.name}"
    if facts.problem:
        return Check(what, "problem", facts.problem, "look at Ray's logs on that machine")
    found = (
        f"{facts.cpus:g} CPU for tasks, {facts.cores} cores, {facts.memory_gib or '?'} GiB, "
        f"{facts.free_gib:g} GiB free for temporary files, Psi4 {facts.psi4 or 'missing'}, "
        f"medrec {facts.version}"
    )
    wrong = differences(here, facts)
    if facts.sees_store is False:
        wrong.append("does not see the home folder")
    if facts.free_gib is not None and facts.free_gib < 2:
        wrong.append(f"{facts.free_gib:.1f} GiB free for temporary files: 2 GiB needed")
    return Check(what, "problem" if wrong else "ok", found, "; ".join(wrong))


def as_rows(checks: list[Check]) -> list[dict[str, Any]]:
    """Checks as plain rows for JSON."""
    return [vars(check) for check in checks]
