"""PySCF: SCF with orbitals kept, and density quantities at points from stored orbitals."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantum.backends import Array, Problem, SCFResult
from quantum.base import (
    ConvergenceError,
    InputError,
    IntegrityError,
    ProgramMissingError,
    ResourceError,
    package_versions,
)
from quantum.schema import CalculationSpec, Resources

_ELECTRON_TOLERANCE = 5e-3  # share of the electrons that the quadrature may miss


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
            Unknown method or basis, or an element that the basis lacks.
        ConvergenceError
            With the energies of the last cycles.
        IntegrityError
            If the density does not hold the right number of electrons.
        """
        if not self.available():
            raise ProgramMissingError("PySCF is not installed; pip install 'medrec[pyscf]'")
        from pyscf import lib

        lib.num_threads(resources.threads)
        mol = build_mol(problem, spec, resources.memory_mb)
        energies: list[float] = []
        mf = _mean_field(mol, spec, remedies)
        mf.callback = lambda env: energies.append(float(env["e_tot"]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                guess = mf.get_init_guess(key="huckel") if "huckel_guess" in remedies else None
                mf.kernel(dm0=guess)
        except MemoryError as error:
            raise ResourceError(f"out of memory at {mol.nao} basis functions") from error
        if not mf.converged:
            raise ConvergenceError(
                f"SCF not converged in {spec.max_cycles} cycles "
                f"({spec.method}/{spec.basis}, {mol.natm} atoms, remedies: {list(remedies)})",
                energies[-5:],
            )
        return _collect(mol, mf, len(energies), remedies, self.version())


def build_mol(problem: Problem, spec: CalculationSpec, memory_mb: int = 4000) -> Any:
    """PySCF molecule in Bohr, with effective core potentials where the basis set wants them."""
    from pyscf import gto

    symbols = [gto.mole._symbol(number) for number in problem.atomic_numbers]
    uses_ecp = spec.basis.lower().startswith("def2") and max(problem.atomic_numbers) > 36
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gto.M(
                atom=list(zip(symbols, problem.coords_bohr.tolist(), strict=True)),
                unit="Bohr",
                basis=spec.basis,
                ecp=spec.basis if uses_ecp else {},
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


def _mean_field(mol: Any, spec: CalculationSpec, remedies: Sequence[str]) -> Any:
    from pyscf import dft, scf

    closed = mol.spin == 0
    if spec.method.lower() == "hf":
        mf = scf.RHF(mol) if closed else scf.UHF(mol)
    else:
        mf = dft.RKS(mol) if closed else dft.UKS(mol)
        try:
            dft.libxc.parse_xc(spec.method)
        except (KeyError, ValueError) as error:
            raise InputError(f"unknown functional '{spec.method}' for PySCF") from error
        mf.xc = spec.method
        mf.grids.level = spec.grid_level
    if spec.density_fitting:
        mf = mf.density_fit()
    mf.conv_tol = spec.convergence_hartree
    mf.max_cycle = spec.max_cycles
    if "level_shift" in remedies:
        mf.level_shift = 0.3
    if "damping" in remedies:
        mf.damp = 0.4
        mf.diis_start_cycle = 4
    if "second_order" in remedies:
        mf = mf.newton()
    return mf


def _collect(mol: Any, mf: Any, cycles: int, remedies: Sequence[str], version: str) -> SCFResult:
    coeff, occ, energy = (np.asarray(item) for item in (mf.mo_coeff, mf.mo_occ, mf.mo_energy))
    if coeff.ndim == 2:
        coeff, occ, energy = coeff[None], occ[None], energy[None]
    electrons = _integrate_density(mol, coeff, occ)
    if abs(electrons - mol.nelectron) > _ELECTRON_TOLERANCE * max(mol.nelectron, 1):
        raise IntegrityError(
            f"density integrates to {electrons:.4f} electrons, expected {mol.nelectron}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        charges = np.asarray(mf.mulliken_pop(verbose=0)[1])
        nuclear = mol.atom_charges()
        origin = (nuclear[:, None] * mol.atom_coords()).sum(0) / nuclear.sum()
        shifted = mol.copy().set_geom_(mol.atom_coords() - origin, unit="Bohr")
        dipole = np.asarray(mf.dip_moment(shifted, mf.make_rdm1(), unit="AU", verbose=0))
    return SCFResult(
        energy_hartree=float(mf.e_tot),
        mo_coeff=coeff,
        mo_occ=occ,
        mo_energy_hartree=energy,
        dipole_au=dipole,
        charges_mulliken=charges,
        facts={
            "program": "pyscf",
            "program_version": version,
            "cycles": cycles,
            "remedies": list(remedies),
            "n_electrons": int(mol.nelectron),
            "electrons_integrated": round(float(electrons), 6),
            "n_basis_functions": int(mol.nao),
        },
    )


def _integrate_density(mol: Any, coeff: Array, occ: Array) -> float:
    """Electrons on an atom-centred quadrature (a uniform grid does not resolve the cores)."""
    from pyscf.dft import gen_grid

    grids = gen_grid.Grids(mol)
    grids.level = 1
    grids.build()
    total = 0.0
    for start in range(0, len(grids.coords), 20_000):
        block = slice(start, start + 20_000)
        ao = mol.eval_gto("GTOval_sph", grids.coords[block])
        for c, n in zip(coeff, occ, strict=True):
            phi = ao @ c[:, n > 0]
            total += float(grids.weights[block] @ ((phi * phi) @ n[n > 0]))
    return total
