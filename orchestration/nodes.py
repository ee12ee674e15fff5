"""What runs on the nodes of a cluster, and whether their results would agree.

Every alive node is looked at by one light task before it gets work: versions, programs, disk, and
whether it sees the store. Nodes that compute with another code or another PySCF are refused, as the
same request would give different numbers depending on where it ran.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestration.cluster import SharedProbe
from quantum.base import ConfigError, ProgramMissingError, StoreError, TransientError

MIXED_VARIABLE = "MEDREC_MIXED_NODES"
# what changes numbers; other versions are only shown
_DECISIVE = ("numpy", "rdkit", "pyscf")
_SHOWN = (*_DECISIVE, "scipy", "torch", "tblite", "ray")
_AT_A_TIME = 64
_ANSWER_S = 60.0
_NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True)
class NodeFacts:
    """One node as a task found it.

    Parameters
    ----------
    problem : str, optional
        Why nothing else is known: the task failed, or did not answer in time.
    version, commit, dirty, source : optional
        Of medrec there; ``source`` is the digest of the code that computes molecules.
    psi4 : str, optional
        Version, "present" if it was not asked for its version, None if absent.
    free_gib : float, optional
        Free disk of the folder for temporary files, GiB.
    sees_store : bool, optional
        None if no store was named.
    """

    node_id: str
    host: str
    cpus: float = 0.0
    problem: str | None = None
    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    source: str | None = None
    packages: dict[str, str | None] = field(default_factory=dict)
    python: str | None = None
    psi4: str | None = None
    cores: int | None = None
    memory_gib: float | None = None
    free_gib: float | None = None
    sees_store: bool | None = None

    @property
    def name(self) -> str:
        """How messages call the node."""
        return f"{self.host} ({self.node_id[:12]})" if self.node_id else "this process"


def _looker() -> Callable[..., dict[str, Any]]:
    """Make the task's body; nested, so that it travels by value and old nodes run it as well."""

    def look(packages: Sequence[str], with_psi4: bool, probe: tuple[str, str] | None) -> dict:
        import hashlib
        import os
        import shutil
        import subprocess
        import tempfile
        from pathlib import Path

        import quantum
        from quantum.base import code_version, machine, package_versions

        folder = Path(quantum.__file__).parent
        source = hashlib.sha256()
        for path in sorted(folder.rglob("*.py")):
            source.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
        program = os.environ.get("MEDREC_PSI4") or shutil.which("psi4")
        psi4 = "present" if program else None
        if program and with_psi4:
            try:
                command = [program, "--version"]
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=40, check=True
                )
                psi4 = done.stdout.split()[-1]
            except (OSError, subprocess.SubprocessError, IndexError):
                psi4 = None  # there, but does not start
        sees = None
        if probe is not None:
            name, token = probe
            sees = Path(name).exists() and Path(name).read_text() == token
        facts = machine()
        return {
            **code_version(),
            "source": source.hexdigest(),
            "packages": package_versions(*packages),
            "python": facts["python"],
            "psi4": psi4,
            "cores": facts["cores"],
            "memory_gib": facts["memory_gib"],
            "free_gib": round(shutil.disk_usage(tempfile.gettempdir()).free / 2**30, 1),
            "sees_store": sees,
        }

    return look


def this_process() -> NodeFacts:
    """Facts of the driver, to compare with."""
    return NodeFacts(node_id="", host="", **_looker()(_SHOWN, False, None))


def differences(here: NodeFacts, there: NodeFacts) -> list[str]:
    """What makes numbers of two nodes differ, as "numpy 2.0.0 instead of 2.1.0".

    Of the code only what computes counts: an edited page of the documentation is no difference.
    """
    pairs = [("medrec", here.version, there.version)]
    pairs += [(name, here.packages.get(name), there.packages.get(name)) for name in _DECISIVE]
    if here.source != there.source:
        pairs.append(("source code of quantum/", _short(here), _short(there)))
    return [
        f"{name} {theirs or 'missing'} instead of {ours or 'missing'}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]


def _short(facts: NodeFacts) -> str:
    commit = f", commit {facts.commit[:12]}" if facts.commit else ""
    return f"{str(facts.source)[:12]}{commit}{' with changes' if facts.dirty else ''}"


# --------------------------------------------------------------------------- asking


class NodeRoster:
    """Nodes that were looked at; those that join later are looked at when first seen.

    Parameters
    ----------
    ray : module
        Initialised.
    need_psi4 : bool
        Leave out nodes without Psi4, and ask for its version.
    store : Path, optional
        Folder that nodes must see.
    answer_s : float
        Seconds after which a node counts as silent; it is left out and asked again.
    """

    def __init__(
        self,
        ray: Any,
        *,
        need_psi4: bool = False,
        store: Path | None = None,
        answer_s: float = _ANSWER_S,
    ) -> None:
        self.ray, self.need_psi4, self.store, self.answer_s = ray, need_psi4, store, answer_s
        self.here = this_process()
        self.facts: dict[str, NodeFacts] = {}
        self._asked: dict[Any, tuple[NodeFacts, float]] = {}
        self._probe: SharedProbe | None = None

    def update(self, wait_s: float = 0.0) -> list[str]:
        """Ask new nodes, and take answers that are there; meant for every turn of a loop.

        Parameters
        ----------
        wait_s : float
            Wait for answers up to this long.

        Returns
        -------
        list of str
            Why nodes that are new here get no work, a line for each.
        """
        end = time.monotonic() + wait_s
        alive = {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}
        self.facts = {key: facts for key, facts in self.facts.items() if key in alive}
        asked = {facts.node_id for facts, _ in self._asked.values()}
        silent = {key for key, facts in self.facts.items() if facts.problem == _silent(self)}
        new = [alive[key] for key in alive if key in silent or key not in self.facts]
        to_ask = [node for node in new if node["NodeID"] not in asked][::-1]
        lines: list[str] = []
        while True:
            while to_ask and len(self._asked) < _AT_A_TIME:
                self._ask(to_ask.pop())
            if not self._asked:
                break
            pause = max(0.0, min(end - time.monotonic(), 1.0))
            lines += self._take(pause)
            if time.monotonic() >= end:
                break
        if not self._asked and self._probe is not None:
            self._probe.close()
            self._probe = None
        return lines

    def _ask(self, node: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self.store is not None and self._probe is None:
            self._probe = SharedProbe(self.store)
        probe = (str(self._probe.path), self._probe.token) if self._probe else None
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = self.ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(_looker())
        facts = NodeFacts(
            node_id=node["NodeID"],
            host=node["NodeManagerHostname"],
            cpus=node["Resources"].get("CPU", 0.0),
        )
        self._asked[task.remote(_SHOWN, self.need_psi4, probe)] = facts, time.monotonic()

    def _take(self, wait_s: float) -> list[str]:
        waiting = list(self._asked)
        done, open_ = self.ray.wait(waiting, num_returns=len(waiting), timeout=wait_s)
        lines = []
        for reference in done:
            facts, _ = self._asked.pop(reference)
            lines += self._keep(facts, self._answer(reference))
        for reference in open_:
            facts, since = self._asked[reference]
            if time.monotonic() - since > self.answer_s:
                self.ray.cancel(reference, force=True)
                del self._asked[reference]
                lines += self._keep(facts, {"problem": _silent(self)})
        return lines

    def _answer(self, reference: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause or error
            return {"problem": f"{type(cause).__name__}: {_first_line(cause)}"}
        except self.ray.exceptions.RayError as error:
            return {"problem": type(error).__name__}
        return found

    def _keep(self, facts: NodeFacts, answer: dict[str, Any]) -> list[str]:
        seen = NodeFacts(**{**asdict(facts), **answer})
        was_said = self.facts.get(seen.node_id) == seen
        self.facts[seen.node_id] = seen
        reason = self.complaint(seen)
        return [] if reason is None or was_said else [f"no work for node {seen.name}: {reason}"]

    def complaint(self, facts: NodeFacts) -> str | None:
        """Why a node gets no work; None if it may have some."""
        if facts.problem:
            return facts.problem
        if facts.sees_store is False:
            return f"it does not see {self.store}"
        different = differences(self.here, facts)
        if different and not os.environ.get(MIXED_VARIABLE):
            return "; ".join(different)
        if self.need_psi4 and facts.psi4 is None:
            return "Psi4 is missing there, or does not start"
        return None

    @property
    def excluded(self) -> tuple[str, ...]:
        """Ids of nodes that get no work."""
        return tuple(key for key, facts in self.facts.items() if self.complaint(facts) is not None)

    def label_selector(self) -> dict[str, str]:
        """For ``.options(label_selector=...)``: keeps a task off nodes that get no work."""
        return {_NODE_LABEL: f"!in({','.join(self.excluded)})"} if self.excluded else {}


def _silent(roster: NodeRoster) -> str:
    return f"no answer within {roster.answer_s:g} s"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def inspect_nodes(
    ray: Any, *, with_psi4: bool = False, store: Path | None = None, answer_s: float = _ANSWER_S
) -> list[NodeFacts]:
    """Look at every alive node, all at a time.

    Parameters
    ----------
    with_psi4 : bool
        Start Psi4 there to ask for its version, which takes seconds.
    store : Path, optional
        Folder to look for.
    answer_s : float
        Seconds that a node may take.

    Returns
    -------
    list of NodeFacts
        A node that fails or is silent is there with its ``problem``.
    """
    roster = NodeRoster(ray, need_psi4=with_psi4, store=store, answer_s=answer_s)
    roster.update(wait_s=_patience(ray, answer_s))
    return list(roster.facts.values())


def _patience(ray: Any, answer_s: float) -> float:
    rounds = 1 + len(ray.nodes()) // _AT_A_TIME
    return rounds * answer_s + 5.0


def check_nodes(
    ray: Any, need_psi4: bool = False, store: Path | None = None, answer_s: float = _ANSWER_S
) -> NodeRoster:
    """Look at every alive node before work is handed out.

    Returns
    -------
    NodeRoster
        Its ``excluded`` nodes get no work; call ``update`` while work is handed out.

    Raises
    ------
    ConfigError
        If a node has another medrec, NumPy, RDKit or PySCF than this process;
        ``MEDREC_MIXED_NODES=1`` allows it.
    StoreError
        If a node does not see the store.
    ProgramMissingError
        If Psi4 is needed and no node with cores has it.
    TransientError
        If no node answers.
    """
    roster = NodeRoster(ray, need_psi4=need_psi4, store=store, answer_s=answer_s)
    roster.update(wait_s=_patience(ray, answer_s))
    answered = [facts for facts in roster.facts.values() if facts.problem is None]
    if not answered:
        reasons = sorted({str(facts.problem) for facts in roster.facts.values()})
        raise TransientError(
            f"none of {len(roster.facts)} nodes can be looked at: {'; '.join(reasons) or 'no node'}"
        )
    blind = [facts for facts in answered if facts.sees_store is False]
    if blind:
        raise StoreError(
            f"node {_names(blind)} does not see {store}; the home folder must be on storage that "
            "all nodes share"
        )
    _refuse_mixture(roster, answered)
    able = [facts for facts in answered if facts.psi4 is not None and facts.cpus > 0]
    if need_psi4 and not able:
        raise ProgramMissingError(
            f"none of {len(answered)} nodes has a Psi4 that starts; install it there, "
            "or set MEDREC_PSI4 to its path where Ray is started"
        )
    return roster


def _refuse_mixture(roster: NodeRoster, answered: Sequence[NodeFacts]) -> None:
    if os.environ.get(MIXED_VARIABLE):
        return
    for facts in answered:
        different = differences(roster.here, facts)
        if different:
            raise ConfigError(
                f"node {facts.name} has {'; '.join(different)}: results would depend on the node. "
                f"Start the same versions there, or set {MIXED_VARIABLE}=1"
            )


def _names(nodes: Iterable[NodeFacts]) -> str:
    return ", ".join(facts.name for facts in nodes)
