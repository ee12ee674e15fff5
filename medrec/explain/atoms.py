"""Which atoms of a molecule belong to a BRICS fragment, and the fragments' effects on atoms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import BRICS

from medrec.molecules.structure import brics_fragments


def fragment_places(smiles: str, fragment: str) -> list[tuple[int, ...]]:
    """Atoms of every occurrence of a fragment in a molecule.

    Parameters
    ----------
    smiles : str
        Of the molecule; atoms are numbered as RDKit reads it.
    fragment : str
        As `medrec.molecules.structure.brics_fragments` gives it, dummy atoms included.

    Returns
    -------
    list of tuple of int
        Empty if the molecule does not have the fragment. Else the pieces of the cut molecule that
        are the fragment; where no piece is (a decomposition may cut in another order), matches of
        the fragment with any atom at its dummies.
    """
    # a small fragment of another molecule would match almost anywhere
    if fragment not in _fragments(smiles):
        return []
    mol = Chem.MolFromSmiles(smiles)
    if Chem.MolToSmiles(mol) == fragment:
        return [tuple(range(mol.GetNumAtoms()))]
    found = [atoms for text, atoms in _pieces(mol) if text == fragment]
    return found or _matches(mol, fragment)


@lru_cache(maxsize=4096)
def _fragments(smiles: str) -> frozenset[str]:
    return frozenset(brics_fragments(smiles))


def _pieces(mol: Chem.Mol) -> list[tuple[str, tuple[int, ...]]]:
    """SMILES and atoms of the pieces between all BRICS bonds."""
    members: list[tuple[int, ...]] = []
    cut = BRICS.BreakBRICSBonds(mol)
    parts = Chem.GetMolFrags(cut, asMols=True, fragsMolAtomMapping=members)
    n_atoms = mol.GetNumAtoms()  # dummies come after the atoms of the molecule
    return [
        (Chem.MolToSmiles(part), tuple(sorted(atom for atom in atoms if atom < n_atoms)))
        for part, atoms in zip(parts, members, strict=True)
    ]


def _matches(mol: Chem.Mol, fragment: str) -> list[tuple[int, ...]]:
    query = Chem.MolFromSmiles(fragment)
    if query is None:
        return []
    for atom in query.GetAtoms():
        atom.SetIsotope(0)  # BRICS labels its dummies; as queries they would ask for isotopes
    real = [atom.GetIdx() for atom in query.GetAtoms() if atom.GetAtomicNum() > 0]
    settings: Any = Chem.AdjustQueryParameters.NoAdjustments()
    settings.makeDummiesQueries = True
    pattern = Chem.AdjustQueryProperties(query, settings)
    matches = mol.GetSubstructMatches(pattern)
    return sorted({tuple(sorted(match[i] for i in real)) for match in matches})


def atom_effects(smiles: str, effects: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Spread the effects of fragments over the atoms they cover.

    An atom gets the effect of its fragment; of several (only where occurrences overlap) the
    strongest.

    Parameters
    ----------
    effects : mapping of str to float
        Effect of each fragment, by SMILES.

    Returns
    -------
    ndarray (n_atoms,)
    """
    values = np.zeros(Chem.MolFromSmiles(smiles).GetNumAtoms())
    for fragment, effect in sorted(effects.items()):
        for atoms in fragment_places(smiles, fragment):
            for atom in atoms:
                if abs(effect) > abs(values[atom]):
                    values[atom] = effect
    return values
