"""The screened route through the SCF: PySCF's solver with our own Fock matrix.

Same functional, basis set, auxiliary basis and final quadrature as PySCF's own route, and several
times less work: atoms are sorted by place, integrals and basis functions are made only where they
matter, products are in single precision, and the cycles far from convergence use a coarse
quadrature. Energies agree with the plain route within about 1e-4 Hartree in single precision and
1e-6 in double (`benchmarks/scf.py`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from quantum.backends import Array
from quantum.backends.blocks import bisect
from quantum.backends.fitting import FittedIntegrals
from quantum.backends.quadrature import Quadrature
from quantum.base import InputError
from quantum.schema import CalculationSpec, Resources

_FUNCTION_CUT = {"single": 1e-5, "double": 1e-8}
_PAIR_CUT = {"single": 1e-5, "double": 1e-9}
_DTYPE = {"single": np.float32, "double": np.float64}
_COARSE_LEVEL = 1
_START_FUNCTIONAL = "pbe"
_START_GRADIENT = 0.1  # a hybrid starts from a density of the functional above, this converged
_LARGEST_SHARE_STARTED = 0.5  # of exact exchange; above, that density is not a good start
_ENERGY_NOISE = 1e-8  # of the total energy, in single precision
_GRADIENT_NOISE = 1e-5  # Hartree, per element of the orbital gradient
_SWITCH_GRADIENT = 0.03  # orbital gradient below which the fine quadrature takes over


def spatial_order(coords_bohr: Array) -> npt.NDArray[np.int64]:
    """Order of atoms in which neighbours in the list are neighbours in space."""
    return np.concatenate(bisect(coords_bohr, 1))


def unsort_functions(mol_sorted: Any, order: npt.NDArray[np.int64], coeff: Array) -> Array:
    """Orbitals (S, N, M) over the functions of the sorted molecule, in the order before sorting.

    Parameters
    ----------
    mol_sorted : pyscf.gto.Mole
        Its atom ``i`` is atom ``order[i]`` of the original.
    """
    by_atom = mol_sorted.aoslice_by_atom()[:, 2:]
    original = np.concatenate([np.arange(*by_atom[at]) for at in np.argsort(order)])
    return coeff[:, original]


class FockBuilder:
    """Coulomb, exchange and functional parts of the Fock matrix.

    Parameters
    ----------
    mol : pyscf.gto.Mole
        With atoms in `spatial_order`.
    spec : CalculationSpec
        Functional, quadrature level, precision.
    resources : Resources
        The memory limit decides how much is kept between cycles.
    """

    def __init__(self, mol: Any, spec: CalculationSpec, resources: Resources) -> None:
        from pyscf.df import addons
        from pyscf.dft import numint

        self._mol, self._spec = mol, spec
        functional = "HF" if spec.method.lower() == "hf" else spec.method
        integrator = numint.NumInt()
        kind = integrator._xc_type(functional)
        omega, _, self._share = integrator.rsh_and_hybrid_coeff(functional, spin=mol.spin)
        if kind not in ("HF", "LDA", "GGA") or omega != 0 or integrator.libxc.is_nlc(functional):
            raise InputError(
                f"the screened route does not know the functional '{spec.method}' ({kind}); "
                "expected an LDA, a GGA or a global hybrid of them; set calculation.route: program"
            )
        self._functional, self._local = functional, kind != "HF"
        fitting = spec.auxiliary_basis or addons.make_auxbasis(mol, xc=functional)
        auxiliary = addons.make_auxmol(mol, fitting)
        self.integrals = FittedIntegrals(
            mol,
            auxiliary,
            _PAIR_CUT[spec.precision],
            _DTYPE[spec.precision],
            0.6 * resources.memory_mb,
            for_exchange=self._share != 0,
        )
        self._memory_mb = 0.3 * resources.memory_mb
        self.electrons_integrated = float(mol.nelectron)
        self._last: tuple[Array, Array] | None = None
        self.wants_start = 0 < self._share <= _LARGEST_SHARE_STARTED
        self._quadrature: Quadrature | None = None
        self.begin_coarse()

    def begin_start(self) -> None:
        """Use the functional that a hybrid starts from."""
        self._hybrid, self.is_fine = 0.0, False
        self._quadrature = self._make_quadrature(_START_FUNCTIONAL, _COARSE_LEVEL)

    def begin_coarse(self) -> None:
        """Use the requested functional with the coarse quadrature, if it has any."""
        self._hybrid = self._share
        self.is_fine = not self._local or self._spec.grid_level <= _COARSE_LEVEL
        level = min(self._spec.grid_level, _COARSE_LEVEL)
        self._quadrature = self._make_quadrature(self._functional, level) if self._local else None

    def _make_quadrature(self, functional: str, level: int) -> Quadrature:
        precision = self._spec.precision
        return Quadrature(
            self._mol,
            level,
            functional,
            _FUNCTION_CUT[precision],
            _DTYPE[precision],
            self._memory_mb,
        )

    def refine(self) -> None:
        """Go from the coarse quadrature to the requested one."""
        self.is_fine = True
        self._quadrature = self._make_quadrature(self._functional, self._spec.grid_level)

    def build(self, densities: Array, orbitals: list[Array]) -> dict[str, Any]:
        """Two-electron part of the Fock matrices.

        Parameters
        ----------
        densities : ndarray (S, N, N)
            S = 1: total density matrix; S = 2: alpha and beta.
        orbitals : list of ndarray (N, O)
            Factors of the densities, ``D = C C^T``.

        Returns
        -------
        dict
            ``potential`` (S, N, N), ``coulomb_hartree``, ``functional_hartree``.
        """
        total = densities.sum(axis=0)
        coulomb = self._coulomb(total)
        potential = np.repeat(coulomb[None], len(densities), axis=0)
        energy = 0.0
        if self._quadrature is not None:
            self.electrons_integrated, energy, local = self._quadrature.integrate(densities)
            potential += local
        if self._hybrid:
            share = 0.5 if len(densities) == 1 else 1.0
            for spin, factor in enumerate(orbitals):
                exchange = share * self._hybrid * self.integrals.exchange(factor)
                potential[spin] -= exchange
                energy -= 0.5 * float(np.vdot(exchange, densities[spin]))
        return {
            "potential": potential,
            "coulomb_hartree": 0.5 * float(np.vdot(coulomb, total)),
            "functional_hartree": energy,
        }

    def _coulomb(self, density: Array) -> Array:
        """Coulomb matrix by its change since the last call, so that rounding dies out."""
        if self._last is None:
            coulomb = self.integrals.coulomb(density)
        else:
            before, known = self._last
            coulomb = known + self.integrals.coulomb(density - before)
        self._last = (density.copy(), coulomb)
        return coulomb


def screened_mean_field(mol: Any, spec: CalculationSpec, resources: Resources) -> Any:
    """PySCF mean-field object whose Fock matrix comes from a `FockBuilder`."""
    from pyscf import dft, lib

    builder = FockBuilder(mol, spec, resources)
    base: Any = dft.rks.RKS if mol.spin == 0 else dft.uks.UKS

    class Screened(base):
        """Kohn-Sham (or Hartree-Fock) with the screened Fock matrix."""

        is_start = False

        def get_init_guess(self, mol: Any = None, key: str = "minao", **kwargs: Any) -> Any:
            guess = super().get_init_guess(mol, key, **kwargs)
            if self.is_start or not builder.wants_start:
                return guess
            builder.begin_start()
            start = Screened(self.mol)
            start.is_start, start.xc, start.conv_check = True, _START_FUNCTIONAL, False
            start.max_cycle = self.max_cycle
            start.kernel(dm0=guess)
            builder.begin_coarse()
            return start.make_rdm1() if start.converged else guess

        def get_veff(
            self,
            mol: Any = None,
            dm: Any = None,
            dm_last: Any = None,
            vhf_last: Any = None,
            hermi: int = 1,
        ) -> Any:
            dm = self.make_rdm1() if dm is None else dm
            stacked = np.asarray(dm) if np.ndim(dm) == 3 else np.asarray(dm)[None]
            parts = builder.build(stacked, _factors(dm, stacked))
            potential = parts["potential"] if np.ndim(dm) == 3 else parts["potential"][0]
            return lib.tag_array(
                potential,
                ecoul=parts["coulomb_hartree"],
                exc=parts["functional_hartree"],
                vj=None,
                vk=None,
            )

        def check_convergence(self, state: dict[str, Any]) -> bool:
            gradient = float(state["norm_gorb"])
            if self.is_start:
                return gradient < _START_GRADIENT
            if not builder.is_fine:
                if gradient < _SWITCH_GRADIENT:
                    builder.refine()
                return False
            change = abs(float(state["e_tot"]) - float(state["last_hf_e"]))
            energy_goal = spec.convergence_hartree
            gradient_goal = math.sqrt(spec.convergence_hartree)
            if spec.precision == "single":  # no goal below the rounding noise
                energy_goal = max(energy_goal, _ENERGY_NOISE * abs(float(state["e_tot"])))
                gradient_goal = max(gradient_goal, _GRADIENT_NOISE * _n_rotations(state["mo_occ"]))
            return change < energy_goal and gradient < gradient_goal

    mf = Screened(mol)
    mf.xc = "HF" if spec.method.lower() == "hf" else spec.method
    mf.conv_check = False
    mf.builder = builder
    return mf


def _n_rotations(occupations: Any) -> float:
    """Square root of the number of occupied-virtual pairs, the length of an orbital gradient."""
    occupied = np.atleast_2d(np.asarray(occupations)) > 0
    return float(np.sqrt((occupied.sum(axis=1) * (~occupied).sum(axis=1)).sum()))


def _factors(dm: Any, stacked: Array) -> list[Array]:
    """Factors ``C`` with ``C C^T = D`` per spin; from the orbitals if the matrix carries them."""
    if getattr(dm, "mo_coeff", None) is not None:
        coeff, occ = np.asarray(dm.mo_coeff), np.asarray(dm.mo_occ)
        if coeff.ndim == 2:
            coeff, occ = coeff[None], occ[None]
        if len(coeff) == len(stacked):
            return [c[:, n > 0] * np.sqrt(n[n > 0]) for c, n in zip(coeff, occ, strict=True)]
    factors = []
    for density in stacked:
        values, vectors = np.linalg.eigh(density)
        kept = values > 1e-8
        factors.append(vectors[:, kept] * np.sqrt(values[kept]))
    return factors
