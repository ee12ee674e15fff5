"""What is pre-trained on: unique molecules and unique fragments, each with a graph and a geometry.

A repeated molecule would be a negative of itself, so each occurs once; fragments that differ only
in the labels of their attachment points are one, as no encoder sees the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rdkit import Chem

from medrec.molecules.features import FeatureTable
from medrec.molecules.fragment_conformers import build_fragment_conformers, checked
from medrec.molecules.geometries import (
    Conformer,
    Geometries,
    atom_categories,
    build_geometries,
)
from medrec.molecules.structure import MoleculeGraphs, brics_fragments, build_graphs
from quantum.base import InputError
from quantum.molecule import Species, explicit_mol

CONFORMER_SEED = 1203


@dataclass
class Structures:
    """Distinct structures, each as SMILES and as conformer."""

    smiles: tuple[str, ...]
    conformers: tuple[Conformer, ...]
    cutoff_angstrom: float
    _cache: dict[tuple[int, ...], tuple[MoleculeGraphs, Geometries]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.smiles)

    def batch(self, index: Sequence[int]) -> tuple[MoleculeGraphs, Geometries]:
        """Both views of some structures; the last few combinations are kept."""
        key = tuple(index)
        if key not in self._cache:
            if len(self._cache) >= 4:
                self._cache.clear()
            self._cache[key] = (
                build_graphs([self.smiles[i] for i in index]),
                build_geometries([self.conformers[i] for i in index], self.cutoff_angstrom),
            )
        return self._cache[key]


@dataclass
class PretrainData:
    """Molecules and fragments, and counts of what they are and of what was left out."""

    molecules: Structures
    fragments: Structures
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.molecules)


def build_data(
    species: Sequence[Species], features: FeatureTable, cutoff_angstrom: float
) -> PretrainData:
    """Molecules of a list that have a conformer of two or more atoms, and fragments of all.

    Conformers of molecules are those of the feature table, conformers of fragments are made here; a
    fragment that has none takes no part and is counted.

    Raises
    ------
    InputError
        If fewer than two molecules or fragments are left: there is nothing to contrast then. If a
        conformer of the table is a drawing or has other atoms than its species.
    """
    ordered = sorted({item.smiles: item for item in species}.values(), key=lambda x: x.smiles)
    kept, conformers = [], []
    for item, row in zip(ordered, features.rows(ordered), strict=True):
        found = features.conformer(int(row)) if row >= 0 else None
        if found is not None and len(found[0]) > 1:
            kept.append(item.smiles)
            conformers.append(_of_molecule(item, *found))
    fragments = build_fragment_conformers(
        (text for item in ordered for text in brics_fragments(item.smiles)), CONFORMER_SEED
    )
    for what, n in (("molecules", len(kept)), ("fragments", len(fragments.smiles))):
        if n < 2:
            raise InputError(
                f"{n} {what} with a conformer in {features.folder.name}; expected at least 2"
            )
    return PretrainData(
        Structures(tuple(kept), tuple(conformers), cutoff_angstrom),
        Structures(tuple(fragments.smiles), tuple(fragments.conformers), cutoff_angstrom),
        {
            "n_molecules": len(kept),
            "molecules_without_conformer": len(ordered) - len(kept),
            "n_fragments": len(fragments.smiles),
            "fragments_without_conformer": len(fragments.missing),
            "missing_fragments": dict(fragments.missing),
            "fragment_conformers": dict(fragments.sources),
        },
    )


def _of_molecule(species: Species, numbers: Any, coords: Any) -> Conformer:
    mol, source = explicit_mol(species), f"the stored conformer of {species.smiles}"
    expected = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if list(numbers) != expected:
        raise InputError(
            f"{source} has {len(numbers)} atoms of other elements than its species, expected the "
            f"{len(expected)} atoms of {species.smiles} with all hydrogens, in order"
        )
    checked(mol, np.asarray(coords, dtype=float), source)
    own = atom_categories(Chem.MolFromSmiles(species.smiles))
    rest = np.zeros((len(expected) - len(own), own.shape[1]), dtype=np.int64)
    return Conformer(numbers, coords, np.concatenate([own, rest]))
