"""3D geometries of a species: embed, minimise, prune, weigh, choose one.

The ladder: ETKDGv3 with a fixed seed; the same from random coordinates; a single atom needs
neither. MMFF94s minimises where it has parameters, UFF elsewhere. Conformers closer than an RMSD
are one, and those far above the lowest are dropped. The record says which rung worked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolAlign

from quantum.base import ConvergenceError, InputError, ResourceError
from quantum.geometry import check_geometry
from quantum.molecule import Species, explicit_mol
from quantum.schema import ConformerSpec
from quantum.units import ANGSTROM_IN_BOHR

_GAS_CONSTANT_KCAL = 1.987204259e-3  # kcal / mol / K


@dataclass(frozen=True)
class Ensemble:
    """Kept conformers of a species, lowest energy first.

    Attributes
    ----------
    coords_bohr : ndarray (C, A, 3)
        In the atom order of `explicit_mol`, each centred on the mean of its nuclei.
    energies_kcal_mol : ndarray (C,)
        Force-field energies above the lowest.
    weights : ndarray (C,)
        Boltzmann weights; they sum to 1.
    facts : dict
        ``method`` (for example ``etkdgv3+mmff94s``), ``n_embedded``, ``energy_kcal_mol``.
    """

    coords_bohr: npt.NDArray[np.float64]
    energies_kcal_mol: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    facts: dict[str, Any]


def embed(species: Species, spec: ConformerSpec) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """Make the conformer that ``spec.rank`` chooses: coordinates (A, 3) in Bohr, and its facts."""
    ensemble = embed_ensemble(species, spec)
    return choose(ensemble, spec, species), ensemble.facts


def choose(ensemble: Ensemble, spec: ConformerSpec, species: Species) -> npt.NDArray[np.float64]:
    """Coordinates (A, 3) of the conformer of rank ``spec.rank``, Bohr.

    Raises
    ------
    InputError
        If the ensemble has fewer conformers.
    """
    if spec.rank >= len(ensemble.weights):
        raise InputError(
            f"conformer rank {spec.rank} of {species.smiles} does not exist; "
            f"expected 0 to {len(ensemble.weights) - 1}"
        )
    return ensemble.coords_bohr[spec.rank]


def embed_ensemble(species: Species, spec: ConformerSpec) -> Ensemble:
    """Make the ensemble of conformers.

    Raises
    ------
    ResourceError
        If the species has more heavy atoms than the spec allows.
    ConvergenceError
        If no rung of the ladder gives a geometry.
    InputError
        If bond lengths or stereo centres of a geometry do not fit the species.
    """
    if species.n_heavy_atoms > spec.max_heavy_atoms:
        raise ResourceError(
            f"{species.n_heavy_atoms} heavy atoms, limit {spec.max_heavy_atoms}: {species.smiles}"
        )
    mol = explicit_mol(species)
    if mol.GetNumAtoms() == 1:
        facts = {"method": "atom", "n_embedded": 1, "energy_kcal_mol": 0.0}
        return Ensemble(np.zeros((1, 1, 3)), np.zeros(1), np.ones(1), facts)
    identifiers, rung = _embed_ladder(mol, spec)
    energies, field = _minimise(mol, spec)
    kept = _prune(mol, identifiers, energies, spec)
    coords = np.stack([np.array(mol.GetConformer(identifiers[i]).GetPositions()) for i in kept])
    for geometry in coords:
        check_geometry(species, geometry)
    above = np.array([energies[i] - energies[kept[0]] for i in kept])
    if not np.isfinite(above).all():
        above = np.zeros(len(kept))
    weights = np.exp(-above / (_GAS_CONSTANT_KCAL * spec.temperature_k))
    coords = (coords - coords.mean(axis=1, keepdims=True)) * ANGSTROM_IN_BOHR
    facts = {
        "method": f"{rung}+{field}",
        "n_embedded": len(identifiers),
        "n_kept": len(kept),
        "energy_kcal_mol": float(energies[kept[0]]) if np.isfinite(energies[kept[0]]) else None,
    }
    return Ensemble(coords, above, weights / weights.sum(), facts)


def _prune(
    mol: Chem.Mol, identifiers: list[int], energies: list[float], spec: ConformerSpec
) -> list[int]:
    """Positions of the kept conformers, lowest energy first, no two within the RMSD."""
    heavy = Chem.RemoveHs(mol)
    order = sorted(range(len(identifiers)), key=lambda i: (energies[i], i))
    kept: list[int] = []
    for i in order:
        if kept and energies[i] - energies[kept[0]] > spec.energy_window_kcal_mol:
            break
        near = any(
            rdMolAlign.GetBestRMS(heavy, heavy, identifiers[i], identifiers[j], maxMatches=1000)
            < spec.prune_rmsd_angstrom
            for j in kept
        )
        if not near:
            kept.append(i)
    return kept


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
