"""Cores that a task of k CPUs uses, per native library, in workers that Ray reuses.

Every library works about a second in a Ray task of 1 and of 2 CPUs, in both orders on one worker,
in a cluster that was started with ``OMP_NUM_THREADS=1`` (as Ray's cluster launcher does) and in one
that was not. A task runs within `quantum.threads.limit_threads`; "child" is `quantum.child`, and
the peer is a task without either, as Ray runs it.

Two things are measured over the process and its children, from ``/proc``: CPU seconds per wall
second, which other load lowers, and how many threads computed (more than a tenth of the CPU time of
the busiest), which it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARE = 0.1
LOWEST, HIGHEST = 0.85, 1.1  # CPU seconds per wall second and core
ORDERS = ((1, 2), (2, 1))
BARE = ("numpy", "scipy", "torch", "pyscf", "tblite", "scikit-learn")
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
LARGER = "CC(C)Cc1ccc(cc1)C(C)C(=O)OCCc1ccc(cc1)C(=O)NCCN(C)C"
Work = Callable[[], object]


def numpy_work(_: int) -> Work:
    import numpy as np

    a = np.random.default_rng(0).random((900, 900))
    return lambda: a @ a


def scipy_work(_: int) -> Work:
    import numpy as np
    from scipy.linalg.blas import dgemm

    a = np.asfortranarray(np.random.default_rng(0).random((900, 900)))
    return lambda: dgemm(1.0, a, a)


def torch_work(_: int) -> Work:
    import torch

    a = torch.rand(900, 900)
    return lambda: a @ a


def torch_fork_work(_: int) -> Work:
    """PyTorch's own tasks, beside its matrix product."""
    import torch

    a = torch.rand(900, 900)

    def work() -> None:
        for part in [torch.jit.fork(torch.mm, a, a) for _ in range(4)]:
            torch.jit.wait(part)

    return work


def pyscf_work(_: int) -> Work:
    from pyscf import gto, scf

    molecule = gto.M(atom=benzene(), basis="def2-svp", verbose=0)
    field = scf.RHF(molecule)
    density = field.get_init_guess()
    return lambda: scf.hf.get_jk(molecule, density)


def pyscf_xc_work(_: int) -> Work:
    from pyscf import dft, gto

    molecule = gto.M(atom=benzene(), basis="def2-svp", verbose=0)
    field = dft.RKS(molecule, xc="pbe")
    field.grids.level = 1
    field.grids.build()
    density = field.get_init_guess()
    return lambda: field._numint.nr_rks(molecule, field.grids, "pbe", density)


def rdkit_work(_: int) -> Work:
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    molecule = Chem.AddHs(Chem.MolFromSmiles(ASPIRIN))
    return lambda: rdDistGeom.EmbedMultipleConfs(molecule, 20, randomSeed=1)


def sklearn_work(_: int) -> Work:
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor

    x = np.random.default_rng(0).random((40_000, 30))
    return lambda: HistGradientBoostingRegressor(max_iter=8, early_stopping=False).fit(x, x[:, 0])


def polars_work(_: int) -> Work:
    import numpy as np
    import polars as pl

    frame = pl.DataFrame({"x": np.random.default_rng(0).random(4_000_000)})
    return lambda: frame.sort("x")


def tblite_work(_: int) -> Work:
    import numpy as np
    from rdkit import Chem
    from rdkit.Chem import AllChem
    from tblite.interface import Calculator

    from quantum.units import ANGSTROM_IN_BOHR

    molecule = Chem.AddHs(Chem.MolFromSmiles(LARGER))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    positions = molecule.GetConformer().GetPositions() * ANGSTROM_IN_BOHR
    return lambda: Calculator("GFN2-xTB", numbers, positions).singlepoint()


def calculation(threads: int, backend: str, smiles: str, store: str) -> None:
    """One molecule through conformer and SCF in a child process."""
    from quantum.child import run_in_child
    from quantum.molecule import species_from_smiles
    from quantum.pipeline import Task
    from quantum.schema import CalculationSpec, PipelineSpec, Resources

    spec = PipelineSpec(
        calculation=CalculationSpec(backend=backend, method="pbe", basis="def2-svp", grid_level=1)
    )
    task = Task(species=species_from_smiles(smiles), spec=spec, stages=("conformer", "scf"))
    # PySCF maps 3.2 GB for each thread
    resources = Resources(threads=threads, memory_mb=4000 * threads)
    outcome = run_in_child(task, Path(store), resources)
    if outcome.status != "done":
        raise RuntimeError(outcome.message)


def child_work(threads: int, backend: str, smiles: str) -> Work:
    """Molecules in a child process; a small one first, so that programs are loaded."""
    with tempfile.TemporaryDirectory() as folder:
        calculation(threads, backend, "O", folder)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            calculation(threads, backend, smiles, folder)

    return work


def pyscf_child_work(threads: int) -> Work:
    return child_work(threads, "pyscf", "CC(=O)O")


def psi4_child_work(threads: int) -> Work:
    return child_work(threads, "psi4", "CCO")


WORK: dict[str, Callable[[int], Work]] = {
    "numpy": numpy_work,
    "scipy": scipy_work,
    "torch": torch_work,
    "torch.jit.fork": torch_fork_work,
    "pyscf": pyscf_work,
    "pyscf XC": pyscf_xc_work,
    "rdkit": rdkit_work,
    "tblite": tblite_work,
    "scikit-learn": sklearn_work,
    "polars": polars_work,
    "pyscf, child": pyscf_child_work,
    "psi4, child": psi4_child_work,
}


def threads_wanted(library: str, order: tuple[int, ...], k: int) -> int:
    """Threads that a task of ``k`` CPUs should use."""
    if library == "rdkit":
        return 1
    return order[0] if library == "polars" else k  # polars: one pool for the life of a process


def as_wanted(row: dict[str, Any]) -> bool:
    """Tell whether as many threads computed as should.

    A child has several pools (OpenMP, OpenBLAS) that take turns, so with two CPUs more than two of
    its threads get time; their sum is held by CPU seconds per wall second alone.
    """
    if row["library"].endswith(", child") and row["wanted"] > 1:
        return bool(row["threads"] >= row["wanted"])
    return bool(row["threads"] == row["wanted"])


def benzene() -> str:
    import math

    angles = [math.pi / 3 * i for i in range(6)]
    rings = (("C", 1.39), ("H", 2.48))
    return "; ".join(
        f"{name} {r * math.cos(a):.5f} {r * math.sin(a):.5f} 0" for name, r in rings for a in angles
    )


# --------------------------------------------------------------------------- measuring


class Usage(threading.Thread):
    """CPU seconds of all threads of this process and its children, but for its own."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self.over = threading.Event()
        self.ready = threading.Event()

    def run(self) -> None:
        """Read ten times a second; a thread that ends keeps what it had."""
        self.first = self.read()
        self.last = dict(self.first)
        self.ready.set()
        while not self.over.wait(0.1):
            self.last.update(self.read())
        self.last.update(self.read())

    def read(self) -> dict[int, float]:
        """CPU seconds per thread id."""
        tick = os.sysconf("SC_CLK_TCK")
        found = {}
        for process in family():
            for entry in Path(f"/proc/{process}/task").glob("*/stat"):
                try:
                    fields = entry.read_text().rpartition(")")[2].split()
                except OSError:  # gone meanwhile
                    continue
                found[int(entry.parent.name)] = (int(fields[11]) + int(fields[12])) / tick
        found.pop(threading.get_native_id(), None)
        return found

    def end(self) -> list[float]:
        """Stop, and return the seconds per thread."""
        self.over.set()
        self.join()
        return self.seconds()

    def seconds(self) -> list[float]:
        """Seconds per thread so far."""
        return [value - self.first.get(key, 0.0) for key, value in list(self.last.items())]


def family() -> list[int]:
    """Process ids of ourselves and our descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, to_do = [], [os.getpid()]
    while to_do:
        found.append(to_do.pop())
        to_do += children.get(found[-1], [])
    return found


def measure(library: str, k: int, seconds: float) -> dict[str, Any]:
    """Let a library work; the set-up and a first call are not counted."""
    work = WORK[library](k)
    work()
    usage = Usage()
    usage.start()
    usage.ready.wait()
    start = time.perf_counter()
    # on a busy machine longer, until there is enough to compare
    while time.perf_counter() - start < seconds or sum(usage.seconds()) < seconds / 2:
        work()
    wall = time.perf_counter() - start
    cpu = usage.end()
    busy = sum(item > SHARE * max(cpu) for item in cpu)
    return {"pid": os.getpid(), "wall_s": wall, "cpu_s": sum(cpu), "threads": busy}


def task(library: str, k: int, seconds: float, limited: bool) -> dict[str, Any]:
    """Body of a Ray task."""
    from quantum.threads import limit_threads

    if not limited:
        return measure(library, k, seconds)
    with limit_threads(k):
        return measure(library, k, seconds)


def run_tasks(libraries: list[str], seconds: float, with_bare: bool) -> list[dict[str, Any]]:
    """All libraries in both orders on a cluster of this machine."""
    from orchestration.cluster import local_ray

    rows: list[dict[str, Any]] = []
    inherited = os.environ.get("OMP_NUM_THREADS")
    with local_ray(2) as ray:
        for library in libraries:
            for limited in (True, False) if with_bare and library in BARE else (True,):
                for order in ORDERS:
                    # an environment of its own is a worker of its own
                    mark = {"MEDREC_TRIAL": f"{library}-{limited}-{order}"}
                    for k in order:
                        remote = ray.remote(num_cpus=k, runtime_env={"env_vars": mark})(task)
                        found = ray.get(remote.remote(library, k, seconds, limited))
                        way = {"library": library, "limited": limited, "inherited": inherited}
                        wanted = threads_wanted(library, order, k)
                        rows.append(way | {"order": list(order), "k": k, "wanted": wanted} | found)
    return rows


def in_cluster(
    inherited: str | None, libraries: list[str], seconds: float, with_bare: bool
) -> list[dict[str, Any]]:
    """Rows of a cluster whose processes inherit ``OMP_NUM_THREADS``, or do not (None)."""
    environment = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    if inherited is not None:
        environment["OMP_NUM_THREADS"] = inherited
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        words = ["--rows", str(target), "--seconds", str(seconds), "--libraries", *libraries]
        command = [sys.executable, __file__, *words, *(["--bare"] if with_bare else [])]
        subprocess.run(command, env=environment, check=True)
        rows: list[dict[str, Any]] = json.loads(target.read_text())
    return rows


def available(libraries: list[str]) -> list[str]:
    """Those that are installed."""
    import importlib.util

    from quantum.backends.psi4_backend import Psi4Backend

    absent = {
        "tblite": importlib.util.find_spec("tblite") is None,
        "psi4, child": not Psi4Backend().available(),
    }
    return [name for name in libraries if not absent.get(name, False)]


# --------------------------------------------------------------------------- result


def figures(rows: list[dict[str, Any]]) -> list[Any]:
    """Lowest and highest use per library and k over all orders and clusters; the peer's range."""
    from record import Figure

    found = []
    for library in dict.fromkeys(row["library"] for row in rows):
        for k in (1, 2):
            ours = [r for r in rows if (r["library"], r["k"], r["limited"]) == (library, k, True)]
            bare = [r for r in rows if (r["library"], r["k"], r["limited"]) == (library, k, False)]
            for name, choose, limit in (("lowest", min, LOWEST), ("highest", max, HIGHEST)):
                value, peer = (
                    choose((r["cpu_s"] / r["wall_s"] / r["wanted"] for r in some), default=None)
                    for some in (ours, bare)
                )
                met = value >= limit if name == "lowest" else value <= limit
                title = f"{library}, {k} CPU: {name}"
                found.append(Figure(title, value, "CPU s/s/thread", peer, None, limit, met))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--seconds", type=float, default=1.5, help="per task")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help="only measure in this environment, write here")
    given = parser.parse_args()
    if given.rows:
        rows = run_tasks(given.libraries, given.seconds, given.bare)
        given.rows.write_text(json.dumps(rows))
        return
    from record import publish

    libraries = available(given.libraries)
    rows = []
    for inherited in ("1", None):
        rows += in_cluster(inherited, libraries, given.seconds, with_bare=True)
    wrong = [row for row in rows if row["limited"] and not as_wanted(row)]
    publish("threads", figures(rows), rows=rows, wrong_thread_counts=len(wrong))


if __name__ == "__main__":
    main()
