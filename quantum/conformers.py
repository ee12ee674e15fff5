"""One 3D geometry of a species: embed, minimise, choose the lowest.

The ladder: ETKDGv3 with a fixed seed; the same from random coordinates; a single atom needs
neither. MMFF94s minimises where it has parameters, UFF elsewhere. The record says which rung
worked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from quantum.base import ConvergenceError, InputError, ResourceError
from quantum.molecule import Species, explicit_mol
from quantum.schema import ConformerSpec
from quantum.units import ANGSTROM_IN_BOHR

_SHORTEST_ANGSTROM, _LONGEST_ANGSTROM = 0.7, 3.2


def embed(species: Species, spec: ConformerSpec) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """Make the lowest-energy conformer of the ensemble.

    Returns
    -------
    coords_bohr : ndarray (A, 3)
        In the atom order of `explicit_mol`, centred on the mean of the nuclei.
    facts : dict
        ``method`` (for example ``etkdgv3+mmff94s``), ``n_embedded``, ``energy_kcal_mol``.

    Raises
    ------
    ResourceError
        If the species has more heavy atoms than the spec allows.
    ConvergenceError
        If no rung of the ladder gives a geometry.
    InputError
        If a geometry is planar in z by accident of input or has impossible bond lengths.
    """
    if species.n_heavy_atoms > spec.max_heavy_atoms:
        raise ResourceError(
            f"{species.n_heavy_atoms} heavy atoms, limit {spec.max_heavy_atoms}: {species.smiles}"
        )
    mol = explicit_mol(species)
    if mol.GetNumAtoms() == 1:
        return np.zeros((1, 3)), {"method": "atom", "n_embedded": 1, "energy_kcal_mol": 0.0}
    identifiers, rung = _embed_ladder(mol, spec)
    energies, field = _minimise(mol, spec)
    best = min(range(len(identifiers)), key=lambda i: (energies[i], i))
    coords = np.array(mol.GetConformer(identifiers[best]).GetPositions()) * ANGSTROM_IN_BOHR
    _check_bonds(mol, coords / ANGSTROM_IN_BOHR, species)
    facts = {
        "method": f"{rung}+{field}",
        "n_embedded": len(identifiers),
        "energy_kcal_mol": float(energies[best]),
    }
    return coords - coords.mean(axis=0), facts


def _embed_ladder(mol: Chem.Mol, spec: ConformerSpec) -> tuple[list[int], str]:
    for rung, random_coords in (("etkdgv3", False), ("etkdgv3-random", True)):
        settings: Any = rdDistGeom.ETKDGv3()
        settings.randomSeed = spec.seed
        settings.pruneRmsThresh = spec.prune_rmsd_angstrom
        settings.useRandomCoords = random_coords
        settings.maxIterations = 200
        settings.numThreads = 1
        identifiers = list(rdDistGeom.EmbedMultipleConfs(mol, spec.n_conformers, settings))
        if identifiers:
            return identifiers, rung
    raise ConvergenceError(f"no embedding found in two rungs: {Chem.MolToSmiles(mol)}")


def _minimise(mol: Chem.Mol, spec: ConformerSpec) -> tuple[list[float], str]:
    """Minimise all conformers in place; energies in kcal/mol, infinity where it failed."""
    if spec.force_field != "uff" and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        variant = {"mmff94s": "MMFF94s", "mmff94": "MMFF94"}[spec.force_field]
        results = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(
            mol, numThreads=1, maxIters=spec.max_iterations, mmffVariant=variant
        )
        return [energy if code >= 0 else np.inf for code, energy in results], spec.force_field
    if rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        results = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(
            mol, numThreads=1, maxIters=spec.max_iterations
        )
        return [energy if code >= 0 else np.inf for code, energy in results], "uff"
    return [0.0] * mol.GetNumConformers(), "none"


def _check_bonds(mol: Chem.Mol, coords_angstrom: npt.NDArray[np.float64], species: Species) -> None:
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        length = float(np.linalg.norm(coords_angstrom[i] - coords_angstrom[j]))
        if not _SHORTEST_ANGSTROM <= length <= _LONGEST_ANGSTROM:
            raise InputError(
                f"bond of {length:.2f} Angstrom in the conformer of {species.smiles}; "
                f"expected {_SHORTEST_ANGSTROM} to {_LONGEST_ANGSTROM}"
            )
