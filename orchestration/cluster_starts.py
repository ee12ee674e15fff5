"""How Ray is started, as text: the call of ``ray start`` and the shell or environment before it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from orchestration.cluster_workloads import Pool


@dataclass(frozen=True)
class Start:
    """How Ray starts on a machine: the shell or environment before ``ray start``, and the call."""

    environment: str
    command: str

    def setting(self, name: str) -> str | None:
        """Value that an environment variable is given; None if it is not set."""
        found = re.findall(rf"(?<![\w$]){name}=(\"[^\"]*\"|'[^']*'|[^\s;\"']*)", self.environment)
        return self._resolve(found[-1].strip("\"'")) if found else None

    def flag(self, name: str) -> str | None:
        """Value of an option of ``ray start``; None if it is not given."""
        found = re.search(rf"(?<!\S){name}[= ]('[^']*'|\"[^\"]*\"|\S+)", self.command)
        return self._resolve(found[1].strip("\"'")) if found else None

    def has(self, name: str) -> bool:
        """Tell whether an option without value is given."""
        return re.search(rf"(?<!\S){name}(?!\S)", self.command) is not None

    def _resolve(self, value: str) -> str:
        """Put in a variable that the environment sets, as NAME, braced, or with a default."""
        variable = re.fullmatch(r"\$\{?(\w+)(?::-([^}]*))?\}?", value)
        if variable is None:
            return value
        set_before = re.search(rf"(?<![\w$]){variable[1]}=([^\s;\"'$]+)", self.environment)
        return set_before[1] if set_before else variable[2] or value


def pool_of_start(
    side: str, start: Start, max_nodes: int | None, notice_s: float | None = None
) -> Pool:
    """Pool of machines whose resources stand in the call of ``ray start``."""
    resources: dict[str, float] = json.loads(
        (start.flag("--resources") or "{}").replace('\\"', '"')
    )
    for name, option in (("CPU", "--num-cpus"), ("GPU", "--num-gpus"), ("memory", "--memory")):
        value = start.flag(option)
        # what a shell computes is known on the machine alone
        if value is not None and not value.startswith("$"):
            resources[name] = float(value)
    pairs = (start.flag("--labels") or "").split(",")
    labels = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return Pool(side, side == "head", resources, labels, max_nodes, notice_s)


def without_comments(text: str) -> str:
    """Shell or unit text with continued lines joined and comment lines left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("#", ";")))


def ray_starts(shell: str) -> list[str]:
    """Calls of ``ray start``, from there to the end of their lines."""
    return [line[line.index("ray start") :] for line in shell.splitlines() if "ray start" in line]


def slurm_bytes(size: str) -> float:
    """Slurm's sizes: megabytes, or with K, M, G or T."""
    number, unit = re.fullmatch(r"(\d+)([KMGT]?)", size).groups()  # type: ignore[union-attr]
    return float(number) * 1024.0 ** ({"K": 1, "": 2, "M": 2, "G": 3, "T": 4}[unit])
