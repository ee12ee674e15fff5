"""Geometries of BRICS fragments, made here: no table of features knows fragments.

A fragment is completed with hydrogens where it was cut, embedded with ETKDGv3 from a fixed seed and
relaxed with MMFF94s, or UFF where that has no parameters. Only the heavy atoms are used later; that
an atom was cut off from another shows in its degree and hydrogens, which are those before
completion. A fragment that cannot be embedded has no conformer, and the reason is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from medrec.molecules.geometries import Conformer, atom_categories
from quantum.base import InputError
from quantum.geometry import check_not_flat

MAX_STEPS = 2000  # of the force field


@dataclass
class FragmentConformers:
    """Unique fragments with a conformer, and those without.

    Attributes
    ----------
    smiles : list of str
        In alphabetical order, attachment points without labels.
    conformers : list of Conformer
        In the same order.
    sources : Counter
        How many were made how: ``mmff94s``, ``uff`` or ``etkdg`` (no force field has parameters).
    missing : dict of str to str
        Fragments without a conformer, and the reason.
    """

    smiles: list[str] = field(default_factory=list)
    conformers: list[Conformer] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)


def unlabelled(smiles: str) -> str:
    """Canonical SMILES of a fragment without the labels of its attachment points.

    The encoders do not see labels, so fragments that differ in nothing else are one to them.
    """
    mol = Chem.MolFromSmiles(smiles)
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            atom.SetIsotope(0)
    return Chem.MolToSmiles(mol)


def completed(fragment: Chem.Mol) -> Chem.Mol:
    """Fragment with hydrogens in place of its attachment points, and all other hydrogens.

    The first atoms are those of the fragment, in order.
    """
    mol = Chem.RWMol(fragment)
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            atom.SetAtomicNum(1)
            atom.SetIsotope(0)
            for bond in atom.GetBonds():
                missing = int(bond.GetBondTypeAsDouble()) - 1
                other = bond.GetOtherAtom(atom)
                bond.SetBondType(Chem.BondType.SINGLE)
                bond.SetStereo(Chem.BondStereo.STEREONONE)
                other.SetNumExplicitHs(other.GetNumExplicitHs() + missing)
    whole = mol.GetMol()
    Chem.SanitizeMol(whole)
    return Chem.AddHs(whole)


def fragment_conformer(smiles: str, seed: int) -> tuple[Conformer, str]:
    """Conformer of a fragment and how it was made.

    Raises
    ------
    InputError
        If it cannot be embedded, or what results is flat where it cannot be.
    """
    fragment = Chem.MolFromSmiles(smiles)
    mol = completed(fragment)
    _embed(mol, smiles, seed)
    source = _relax(mol)
    coords = np.array(mol.GetConformer().GetPositions())
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    checked(mol, coords, f"the conformer of fragment {smiles}")
    own = atom_categories(fragment)
    rest = np.zeros((len(numbers) - len(own), own.shape[1]), dtype=np.int64)
    return Conformer(numbers, coords, np.concatenate([own, rest])), source


def checked(mol: Chem.Mol, coords: np.ndarray, source: str) -> None:
    """Refuse coordinates that are not numbers or a drawing.

    Raises
    ------
    InputError
        With the reason.
    """
    if not np.isfinite(coords).all():
        raise InputError(f"{source} has coordinates that are not numbers")
    check_not_flat(mol, coords, source)


def _embed(mol: Chem.Mol, smiles: str, seed: int) -> None:
    for random_start in (False, True):
        parameters: Any = rdDistGeom.ETKDGv3()
        parameters.randomSeed = seed
        parameters.useRandomCoords = random_start
        parameters.maxIterations = 50
        if rdDistGeom.EmbedMolecule(mol, parameters) >= 0:
            return
    raise InputError(f"fragment {smiles} cannot be embedded in space")


def _relax(mol: Chem.Mol) -> str:
    """Minimise in the first force field that has parameters; a single atom stays as it is."""
    if mol.GetNumAtoms() == 1:
        return "etkdg"
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.MMFFOptimizeMolecule(mol, "MMFF94s", MAX_STEPS)
        return "mmff94s"
    if rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.UFFOptimizeMolecule(mol, MAX_STEPS)
        return "uff"
    return "etkdg"


def build_fragment_conformers(fragments: Iterable[str], seed: int) -> FragmentConformers:
    """Conformers of fragments, each kind once; about 15 ms per fragment.

    The same on every machine with the same RDKit, so that each worker can make its own.
    """
    found = FragmentConformers()
    for smiles in sorted({unlabelled(text) for text in fragments}):
        try:
            conformer, source = fragment_conformer(smiles, seed)
        except InputError as error:
            found.missing[smiles] = str(error)
            continue
        found.smiles.append(smiles)
        found.conformers.append(conformer)
        found.sources[source] += 1
    return found
