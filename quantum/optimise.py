"""Optimisation of one geometry with geomeTRIC, on energies of GFN2-xTB or DFT.

geomeTRIC: Wang and Song, J. Chem. Phys. 144, 214108 (2016). GFN2-xTB: Bannwarth et al., J. Chem.
Theory Comput. 15, 1652 (2019), through tblite.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantum.base import ConvergenceError, ProgramMissingError
from quantum.molecule import Species
from quantum.schema import CalculationSpec, ConformerSpec
from quantum.units import BOHR_IN_ANGSTROM

Array = npt.NDArray[np.float64]
Surface = Callable[[Array], tuple[float, Array]]
_MOST_STEPS = 200


def optimise(
    species: Species, coords_bohr: Array, spec: ConformerSpec
) -> tuple[Array, dict[str, Any]]:
    """Minimise the energy of a geometry.

    Returns
    -------
    coords_bohr : ndarray (A, 3)
    facts : dict
        ``optimised_with``, ``optimised_energy_hartree``, ``optimisation_steps``.

    Raises
    ------
    ProgramMissingError
        Without geomeTRIC, tblite or PySCF.
    ConvergenceError
        If the geometry does not converge.
    """
    if spec.optimise == "gfn2-xtb":
        surface, label = _xtb_surface(species), "gfn2-xtb"
    else:
        surface = _dft_surface(species, spec)
        label = f"{spec.optimise_method}/{spec.optimise_basis}"
    if species.n_atoms == 1:
        return coords_bohr, {"optimised_with": label, "optimisation_steps": 0}
    coords, energy, steps = _minimise(species, coords_bohr, surface)
    facts = {
        "optimised_with": label,
        "optimised_energy_hartree": energy,
        "optimisation_steps": steps,
    }
    return coords, facts


def _xtb_surface(species: Species) -> Surface:
    try:
        from tblite.interface import Calculator
    except ImportError as error:
        raise ProgramMissingError(
            "GFN2-xTB needs tblite; pip install 'medrec[optimise]'"
        ) from error
    numbers = np.array(species.atomic_numbers)
    start = Calculator(
        "GFN2-xTB",
        numbers,
        np.zeros((len(numbers), 3)) + np.arange(len(numbers))[:, None] * 3.0,
        charge=float(species.charge),
        uhf=species.multiplicity - 1,
    )
    start.set("verbosity", 0)

    def surface(coords: Array) -> tuple[float, Array]:
        start.update(positions=coords)
        found = start.singlepoint()
        return float(found.get("energy")), np.array(found.get("gradient"))

    return surface


def _dft_surface(species: Species, spec: ConformerSpec) -> Surface:
    from quantum.backends import Problem
    from quantum.backends.pyscf_backend import build_mol, program_mean_field

    settings = CalculationSpec(method=spec.optimise_method, basis=spec.optimise_basis, grid_level=2)

    def surface(coords: Array) -> tuple[float, Array]:
        problem = Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mf = program_mean_field(build_mol(problem, settings), settings)
            energy = float(mf.kernel())
            if not mf.converged:
                raise ConvergenceError(
                    f"SCF of an optimisation step not converged: {species.smiles}"
                )
            return energy, np.array(mf.nuc_grad_method().kernel())

    return surface


def _minimise(species: Species, coords_bohr: Array, surface: Surface) -> tuple[Array, float, int]:
    try:
        from geometric.engine import Engine
        from geometric.errors import GeomOptNotConvergedError
        from geometric.molecule import Elements, Molecule
        from geometric.optimize import run_optimizer
    except ImportError as error:
        raise ProgramMissingError(
            "geometry optimisation needs geomeTRIC; pip install 'medrec[optimise]'"
        ) from error

    class Ours(Engine):
        """geomeTRIC's view of an energy surface."""

        def calc_new(self, coords: Array, dirname: str) -> dict[str, Any]:
            energy, gradient = surface(np.asarray(coords).reshape(-1, 3))
            return {"energy": energy, "gradient": gradient.ravel()}

    molecule = Molecule()
    molecule.elem = [Elements[number] for number in species.atomic_numbers]
    molecule.xyzs = [coords_bohr * BOHR_IN_ANGSTROM]
    logging.getLogger("geometric").setLevel(logging.ERROR)
    with (
        tempfile.TemporaryDirectory(prefix="medrec-opt-") as folder,
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            progress = run_optimizer(
                customengine=Ours(molecule),
                input=str(Path(folder) / "medrec.in"),
                maxiter=_MOST_STEPS,
                check=0,
                verbose=0,
            )
        except GeomOptNotConvergedError as error:
            raise ConvergenceError(
                f"geometry not converged in {_MOST_STEPS} steps: {species.smiles}"
            ) from error
    final = np.array(progress.xyzs[-1]) / BOHR_IN_ANGSTROM
    return final, float(progress.qm_energies[-1]), len(progress.xyzs) - 1
