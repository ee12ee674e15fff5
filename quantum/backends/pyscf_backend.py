"""PySCF: Hartree-Fock and Kohn-Sham, by its own route or by our screened one."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantum.backends import Problem, SCFResult
from quantum.backends.properties import finish
from quantum.base import (
    ConvergenceError,
    InputError,
    ProgramMissingError,
    ResourceError,
    package_versions,
)
from quantum.schema import CalculationSpec, Resources

_SMEARING_HARTREE = 0.01


class PySCFBackend:
    """Restricted or unrestricted Hartree-Fock and Kohn-Sham with PySCF."""

    def available(self) -> bool:
        """Tell whether PySCF is installed."""
        return importlib.util.find_spec("pyscf") is not None

    def version(self) -> str:
        """PySCF's version."""
        return package_versions("pyscf")["pyscf"] or "missing"

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
        InputError
            Unknown method or basis, an element that the basis lacks, or settings that exclude
            each other.
        ConvergenceError
            With the energies of the last cycles.
        ResourceError
            If the memory does not suffice.
        IntegrityError
            If the density does not hold the right number of electrons.
        """
        if not self.available():
            raise ProgramMissingError("PySCF is not installed; pip install 'medrec[pyscf]'")
        from pyscf import lib

        lib.num_threads(resources.threads)
        order = _order(problem, spec)
        mol = build_mol(_sorted(problem, order), spec, resources.memory_mb)
        energies: list[float] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                mf = _mean_field(mol, spec, resources, remedies)
                mf.callback = lambda state: energies.append(float(state["e_tot"]))
                mf.kernel(dm0=_guess(mf, spec, resources, remedies))
        except MemoryError as error:
            raise ResourceError(f"out of memory at {mol.nao} basis functions") from error
        if not mf.converged:
            raise ConvergenceError(
                f"SCF not converged in {spec.max_cycles} cycles "
                f"({spec.method}/{spec.basis}, {mol.natm} atoms, remedies: {list(remedies)})",
                energies[-5:],
            )
        return self._collect(problem, spec, mf, order, len(energies), remedies)

    def _collect(
        self,
        problem: Problem,
        spec: CalculationSpec,
        mf: Any,
        order: np.ndarray,
        cycles: int,
        remedies: Sequence[str],
    ) -> SCFResult:
        from quantum.backends.screened import unsort_functions

        if spec.device == "gpu":
            mf = mf.to_cpu()
        coeff, occ, energies = (np.asarray(x) for x in (mf.mo_coeff, mf.mo_occ, mf.mo_energy))
        if occ.ndim == 1:
            coeff, occ, energies = coeff[None], occ[None], energies[None]
        if spec.route == "screened":
            coeff = unsort_functions(mf.mol, order, coeff)
        mol = build_mol(problem, spec)
        dispersion = dispersion_hartree(mol, spec)
        facts = {
            "program": "pyscf",
            "program_version": self.version(),
            "cycles": cycles,
            "remedies": list(remedies),
            "dispersion_hartree": dispersion,
        }
        return finish(mol, float(mf.e_tot) + dispersion, coeff, occ, energies, facts)


def _order(problem: Problem, spec: CalculationSpec) -> np.ndarray:
    """Order of atoms for the calculation; the screened route wants neighbours together."""
    if spec.route == "program":
        return np.arange(len(problem.atomic_numbers))
    from quantum.backends.screened import spatial_order

    return spatial_order(problem.coords_bohr)


def _sorted(problem: Problem, order: np.ndarray) -> Problem:
    return Problem(
        tuple(problem.atomic_numbers[i] for i in order),
        problem.coords_bohr[order],
        problem.charge,
        problem.multiplicity,
    )


def build_mol(problem: Problem, spec: CalculationSpec, memory_mb: int = 4000) -> Any:
    """PySCF molecule in Bohr, with effective core potentials where the basis set wants them."""
    from pyscf import gto

    symbols = [gto.mole._symbol(number) for number in problem.atomic_numbers]
    heavy = {s for s, z in zip(symbols, problem.atomic_numbers, strict=True) if z > 36}
    core = dict.fromkeys(heavy, spec.basis) if spec.basis.lower().startswith("def2") else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gto.M(
                atom=list(zip(symbols, problem.coords_bohr.tolist(), strict=True)),
                unit="Bohr",
                basis=spec.basis,
                ecp=core,
                charge=problem.charge,
                spin=problem.multiplicity - 1,
                max_memory=memory_mb,
                verbose=0,
            )
    except (RuntimeError, KeyError, ValueError) as error:
        text = str(error).strip().splitlines()
        raise InputError(
            f"PySCF refuses the molecule: {text[-1] if text else type(error).__name__}; "
            f"basis {spec.basis}, elements {sorted(set(symbols))}, charge {problem.charge}, "
            f"multiplicity {problem.multiplicity}"
        ) from error


def _mean_field(mol: Any, spec: CalculationSpec, resources: Resources, remedies: Any) -> Any:
    """PySCF object with all settings and remedies applied."""
    _check_functional(spec)
    second_order = "second_order" in remedies
    if spec.route == "screened" and not second_order:
        if spec.device == "gpu" or spec.solvent_dielectric is not None:
            raise InputError(
                "the screened route has neither a GPU nor a solvent; "
                "expected calculation.route: program"
            )
        from quantum.backends.screened import screened_mean_field

        if not spec.density_fitting:
            raise InputError("the screened route rests on density_fitting: true")
        mf = screened_mean_field(mol, spec, resources)
    else:
        mf = program_mean_field(mol, spec)
    mf.conv_tol = spec.convergence_hartree
    mf.max_cycle = spec.max_cycles
    if "level_shift" in remedies:
        mf.level_shift, mf.conv_check = 0.3, True
    if "damping" in remedies:
        mf.damp, mf.diis_start_cycle = 0.4, 4
    if second_order:
        mf = mf.newton()
    return mf


def _check_functional(spec: CalculationSpec) -> None:
    from pyscf import dft

    if spec.method.lower() == "hf":
        return
    try:
        dft.libxc.parse_xc(spec.method)
    except (KeyError, ValueError) as error:
        raise InputError(f"unknown functional '{spec.method}' for PySCF") from error


def program_mean_field(mol: Any, spec: CalculationSpec) -> Any:
    """PySCF object of the program's own route, before convergence settings."""
    from pyscf import dft, scf

    closed = mol.spin == 0
    if spec.method.lower() == "hf":
        mf: Any = scf.RHF(mol) if closed else scf.UHF(mol)
    else:
        mf = dft.RKS(mol) if closed else dft.UKS(mol)
        mf.xc = spec.method
        mf.grids.level = spec.grid_level
    if spec.density_fitting:
        mf = mf.density_fit(auxbasis=spec.auxiliary_basis or None)
    if spec.solvent_dielectric is not None:
        mf = mf.PCM()
        mf.with_solvent.method = "IEF-PCM"
        mf.with_solvent.eps = spec.solvent_dielectric
    if spec.device == "gpu":
        mf = _to_gpu(mf)
    return mf


def _to_gpu(mf: Any) -> Any:
    try:
        return mf.to_gpu()
    except ImportError as error:
        raise ProgramMissingError(
            "calculation.device: gpu needs gpu4pyscf and a CUDA device; "
            "pip install gpu4pyscf-cuda12x (or the wheel of your CUDA version)"
        ) from error


def _guess(mf: Any, spec: CalculationSpec, resources: Resources, remedies: Any) -> Any:
    """Density matrix to begin with; none means PySCF's default."""
    if "huckel_guess" in remedies:
        return mf.get_init_guess(key="huckel")
    if "smearing" not in remedies:
        return None
    from pyscf import scf

    # converge with fractional occupations, then go on without them from that density
    smeared = scf.addons.smearing(
        _mean_field(mf.mol, spec, resources, ("damping",)), sigma=_SMEARING_HARTREE, method="fermi"
    )
    smeared.kernel()
    return smeared.make_rdm1()


def dispersion_hartree(mol: Any, spec: CalculationSpec) -> float:
    """Energy of the D3(BJ) or D4 correction; it does not act on the density.

    Raises
    ------
    ProgramMissingError
        Without the package pyscf-dispersion.
    InputError
        If the correction has no parameters for the functional.
    """
    if spec.dispersion == "none":
        return 0.0
    try:
        from pyscf.dispersion import dftd3, dftd4
    except ImportError as error:
        raise ProgramMissingError(
            "calculation.dispersion needs pyscf-dispersion; pip install 'medrec[pyscf]'"
        ) from error
    try:
        if spec.dispersion == "d3bj":
            model = dftd3.DFTD3Dispersion(mol, xc=spec.method, version="d3bj")
        else:
            model = dftd4.DFTD4Dispersion(mol, xc=spec.method)
        return float(model.get_dispersion()["energy"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            f"no {spec.dispersion} parameters for the functional '{spec.method}': {error}"
        ) from error
