"""Psi4 as a subprocess: energies and orbitals, never fields.

Works with Debian's 1.3.2 and newer releases: the program gets an input file that holds the basis
set itself (PySCF's, so that both programs use the same functions) and writes orbitals as arrays.
Rows are brought into PySCF's order, and the overlap matrix must then equal PySCF's. Densities come
from our own evaluator, because the ELF cube of Psi4 1.3.2 is not the Becke-Edgecombe function.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from quantum.backends import Array, Problem, SCFResult
from quantum.backends.properties import finish
from quantum.base import (
    ConvergenceError,
    InputError,
    IntegrityError,
    MedrecError,
    ProgramMissingError,
    ResourceError,
    die_with_parent,
    read_json,
)
from quantum.schema import CalculationSpec, Resources

# spherical and radial points for PySCF's quality levels
_QUADRATURE = {0: (110, 35), 1: (194, 50), 2: (302, 60), 3: (302, 75), 4: (434, 75)}
_FINEST = (590, 99)
_OVERLAP_TOLERANCE = 1e-7

_INPUT = """\
import json
import numpy as np
memory {memory_mb} mb
molecule medrec {{
{charge} {multiplicity}
{atoms}
units bohr
symmetry c1
no_com
no_reorient
}}
basis {{
assign medrec_orbital
[ medrec_orbital ]
spherical
{basis}
}}
{auxiliary}
set {{
{options}
}}
for name, value in {extra!r}.items():
    try:
        psi4.core.set_global_option(name, value)
    except Exception:
        pass
status = {{'version': psi4.__version__, 'error': None}}
try:
    total, wfn = energy('{method}', return_wfn=True)
    np.savez('orbitals.npz', energy=total, overlap=wfn.S().to_array(),
             ca=wfn.Ca().to_array(), cb=wfn.Cb().to_array(), na=wfn.nalpha(), nb=wfn.nbeta(),
             ea=wfn.epsilon_a().to_array(), eb=wfn.epsilon_b().to_array())
{after}
except Exception as error:
    status['error'] = type(error).__name__ + ': ' + str(error)
with open('status.json', 'w') as handle:
    json.dump(status, handle)
"""


class Psi4Backend:
    """Restricted or unrestricted Hartree-Fock and Kohn-Sham with Psi4."""

    def available(self) -> bool:
        """Tell whether the program is on this machine (``MEDREC_PSI4`` or on the path)."""
        return executable() is not None

    def version(self) -> str:
        """Psi4's version."""
        path = executable()
        return _version(path) if path else "missing"

    def run_scf(
        self,
        problem: Problem,
        spec: CalculationSpec,
        resources: Resources,
        remedies: Sequence[str] = (),
    ) -> SCFResult:
        """Solve the SCF.

        Raises
        ------
        ProgramMissingError
            If Psi4 is not found.
        InputError
            Settings that Psi4 does not take here (solvent, core potentials, our screened route).
        ConvergenceError, ResourceError, IntegrityError
            As `quantum.backends.pyscf_backend.PySCFBackend.run_scf`; a calculation that is over
            its time limit is stopped.
        """
        from quantum.backends.pyscf_backend import build_mol, dispersion_hartree

        _check(spec)
        mol = build_mol(problem, spec)
        if mol.has_ecp():
            raise InputError(
                f"elements {sorted(set(problem.atomic_numbers))} need core potentials, which the "
                "Psi4 backend does not pass on; expected calculation.backend: pyscf"
            )
        with tempfile.TemporaryDirectory(prefix="medrec-psi4-") as folder:
            status = run_program(mol, spec, resources, Path(folder), remedies)
            with np.load(Path(folder) / "orbitals.npz") as loaded:
                found = {name: loaded[name] for name in loaded.files}
        rows = row_order(mol)
        error = float(np.abs(found["overlap"][np.ix_(rows, rows)] - mol.intor("int1e_ovlp")).max())
        if error > _OVERLAP_TOLERANCE:
            raise IntegrityError(
                f"Psi4's overlap matrix differs from PySCF's by {error:.1e}; "
                f"expected below {_OVERLAP_TOLERANCE:g}: the basis functions are not the same"
            )
        dispersion = dispersion_hartree(mol, spec)
        facts = {
            "program": "psi4",
            "program_version": status["version"],
            "cycles": None,
            "remedies": list(remedies),
            "dispersion_hartree": dispersion,
        }
        coeff, occ, energies = _channels(found, rows, problem.multiplicity == 1)
        return finish(mol, float(found["energy"]) + dispersion, coeff, occ, energies, facts)


def executable() -> str | None:
    """Path of the program."""
    return shutil.which(os.environ.get("MEDREC_PSI4") or "psi4")


@cache
def _version(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _check(spec: CalculationSpec) -> None:
    """Refuse what this backend cannot do."""
    wrong = {
        "solvent_dielectric": spec.solvent_dielectric is not None,
        "route": spec.route != "program",
        "device": spec.device != "cpu",
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            value = getattr(spec, name)
            raise InputError(
                f"the Psi4 backend does not take calculation.{name}: {value}; "
                "expected its default, or calculation.backend: pyscf"
            )


def run_program(
    mol: Any,
    spec: CalculationSpec,
    resources: Resources,
    folder: Path,
    remedies: Sequence[str] = (),
    after: str = "",
) -> dict[str, Any]:
    """Run Psi4 in a folder; leaves ``orbitals.npz`` there and returns its status.

    Parameters
    ----------
    after : str
        Lines of Python that Psi4 runs after the SCF, with the wavefunction as ``wfn``.
    """
    path = executable()
    if path is None:
        raise ProgramMissingError(
            "Psi4 is not installed; apt-get install psi4, or conda install -c conda-forge psi4, "
            "or set MEDREC_PSI4 to its path"
        )
    text = _input_text(mol, spec, resources, remedies, after)
    (folder / "input.dat").write_text(text, encoding="utf-8")
    command = [path, "-n", str(resources.threads), "-i", "input.dat", "-o", "output.dat"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PSI_SCRATCH": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,  # a wrapper script goes with its program
        preexec_fn=die_with_parent,
    ) as child:
        try:
            out, _ = child.communicate(timeout=resources.time_limit_s)
        except subprocess.TimeoutExpired as error:
            _kill(child)
            raise ResourceError(f"Psi4 stopped after {resources.time_limit_s:.0f} s") from error
        except BaseException:
            _kill(child)
            raise
    if not (folder / "status.json").exists():
        tail = out.decode(errors="replace").strip()[-500:]
        kind: type[MedrecError] = ResourceError if child.returncode < 0 else InputError
        raise kind(f"Psi4 ended with {child.returncode} before the SCF: {tail}")
    status: dict[str, Any] = read_json(folder / "status.json")
    if status["error"]:
        kind = ConvergenceError if "onvergence" in status["error"] else InputError
        raise kind(f"Psi4 ({spec.method}/{spec.basis}, {mol.natm} atoms): {status['error'][:500]}")
    return status


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _input_text(
    mol: Any, spec: CalculationSpec, resources: Resources, remedies: Sequence[str], after: str
) -> str:
    is_hf, closed = spec.method.lower() == "hf", mol.spin == 0
    spherical, radial = _QUADRATURE.get(spec.grid_level, _FINEST)
    options = {
        "puream": "true",
        "scf_type": "df" if spec.density_fitting else "pk",
        "reference": ("r" if closed else "u") + ("hf" if is_hf else "ks"),
        "e_convergence": f"{spec.convergence_hartree:.3e}",
        "d_convergence": f"{max(1e-8, spec.convergence_hartree**0.5 * 1e-2):.3e}",
        "maxiter": str(spec.max_cycles),
        "dft_spherical_points": str(spherical),
        "dft_radial_points": str(radial),
    }
    auxiliary = ""
    if spec.density_fitting:
        from pyscf.df import addons

        fitting = spec.auxiliary_basis or addons.make_auxbasis(mol, xc=spec.method)
        extra = addons.make_auxmol(mol, fitting)
        block = basis_text(extra)
        auxiliary = f"df_basis_scf {{\nassign medrec_fit\n[ medrec_fit ]\nspherical\n{block}\n}}\n"
    else:
        options["df_scf_guess"] = "false"
    return _INPUT.format(
        memory_mb=max(500, resources.memory_mb),
        charge=mol.charge,
        multiplicity=mol.spin + 1,
        atoms="\n".join(
            f"{mol.atom_pure_symbol(i)} {x:.12f} {y:.12f} {z:.12f}"
            for i, (x, y, z) in enumerate(mol.atom_coords())
        ),
        basis=basis_text(mol),
        auxiliary=auxiliary,
        options="\n".join(f"{name} {value}" for name, value in options.items()),
        extra=_remedy_options(remedies),
        method="scf" if is_hf else spec.method,
        after="\n".join("    " + line for line in after.splitlines()) or "    pass",
    )


def _remedy_options(remedies: Sequence[str]) -> dict[str, Any]:
    """Psi4's names of the remedies; a release that lacks one goes on without."""
    table: dict[str, dict[str, Any]] = {
        "damping": {"DAMPING_PERCENTAGE": 40.0},
        "level_shift": {"LEVEL_SHIFT": 0.3},
        "huckel_guess": {"GUESS": "GWH"},
        "second_order": {"SOSCF": True},
        "smearing": {"DAMPING_PERCENTAGE": 70.0, "GUESS": "CORE"},
    }
    return {name: value for remedy in remedies for name, value in table[remedy].items()}


def basis_text(mol: Any) -> str:
    """Basis functions of a PySCF molecule in the Gaussian format, an element each once."""
    lines = ["****"]
    seen = set()
    for atom in range(mol.natm):
        symbol = mol.atom_pure_symbol(atom)
        if symbol in seen:
            continue
        seen.add(symbol)
        lines.append(f"{symbol} 0")
        for momentum, *rows in sorted(mol._basis[mol.atom_symbol(atom)], key=lambda b: b[0]):
            table = np.array([row for row in rows if isinstance(row, (list, tuple))], dtype=float)
            for column in table[:, 1:].T:
                kept = np.abs(column) > 0
                lines.append(f"{'SPDFGHI'[momentum]} {kept.sum()} 1.0")
                pairs = zip(table[kept, 0], column[kept], strict=True)
                lines += [f"  {exponent:.12e} {weight:.12e}" for exponent, weight in pairs]
        lines.append("****")
    return "\n".join(lines)


def row_order(mol: Any) -> np.ndarray:
    """Psi4's row of each of PySCF's basis functions.

    Psi4 orders a shell by m = 0, +1, -1, +2, -2, ...; PySCF by m = -l ... l, but p as x, y, z.
    """
    rows: list[int] = []
    for shell in range(mol.nbas):
        momentum = mol.bas_angular(shell)
        wanted = [1, -1, 0] if momentum == 1 else list(range(-momentum, momentum + 1))
        place = {0: 0} | {m: 2 * abs(m) - (m > 0) for m in wanted if m}
        for _ in range(mol.bas_nctr(shell)):
            start = len(rows)
            rows += [start + place[m] for m in wanted]
    return np.array(rows)


def _channels(
    found: dict[str, Any], rows: np.ndarray, restricted: bool
) -> tuple[Array, Array, Array]:
    """Orbitals, occupations and orbital energies per spin channel."""
    coeffs, occs, energies = [], [], []
    for spin in ("a",) if restricted else ("a", "b"):
        coeff = found[f"c{spin}"][rows]
        occupied = np.arange(coeff.shape[1]) < int(found[f"n{spin}"])
        coeffs.append(coeff)
        occs.append(occupied * (2.0 if restricted else 1.0))
        energies.append(found[f"e{spin}"])
    return np.stack(coeffs), np.stack(occs), np.stack(energies)
