"""Geometries that a person brings, and the checks that every geometry passes.

A structure file gives the species as well as the coordinates. It is refused with a reason if it is
a drawing and not a geometry, if hydrogens are missing, or if lengths are impossible.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import model_validator
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds
from rdkit.Geometry import Point3D

from quantum.base import Frozen, InputError
from quantum.molecule import Species, explicit_mol, species_from_smiles

SHORTEST_ANGSTROM, LONGEST_ANGSTROM = 0.9, 2.4
_LONGEST_HEAVY_ANGSTROM = 3.0  # bonds of elements beyond krypton
_SHORTEST_H2_ANGSTROM = 0.6
_CLOSEST_ANGSTROM = 0.5
_FLAT_ANGSTROM = 1e-3


class Geometry(Frozen):
    """Coordinates of a species from outside, in the atom order of `explicit_mol`, Angstrom."""

    coords_angstrom: tuple[tuple[float, float, float], ...]
    source: str

    @model_validator(mode="after")
    def _finite(self) -> Geometry:
        if not np.isfinite(np.array(self.coords_angstrom)).all():
            raise ValueError(f"coordinates of {self.source} are not all finite numbers")
        return self

    def array(self) -> npt.NDArray[np.float64]:
        """Coordinates (A, 3) in Angstrom."""
        return np.array(self.coords_angstrom, dtype=float)


def read_structure(path: Path, charge: int = 0) -> tuple[Species, Geometry]:
    """Read one molecule from an SDF, MOL or XYZ file.

    Parameters
    ----------
    charge : int
        Total charge; only an XYZ file needs it, the others state their own.

    Raises
    ------
    InputError
        If the file does not hold exactly one usable 3D molecule; the message says why.
    """
    if not path.exists():
        raise InputError(f"file not found: {path}")
    suffix = path.suffix.lower()
    if suffix in (".sdf", ".mol"):
        mol = _read_sdf(path)
    elif suffix == ".xyz":
        mol = _read_xyz(path, charge)
    else:
        raise InputError(f"unknown structure format '{path.suffix}' of {path}; expected sdf or xyz")
    return match_species(mol, path.name)


def _read_sdf(path: Path) -> Chem.Mol:
    try:
        found = list(Chem.SDMolSupplier(str(path), removeHs=False))
    except OSError as error:
        raise InputError(f"not readable as SDF: {path}") from error
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} molecules, expected 1")
    if found[0] is None:
        raise InputError(f"the molecule in {path} does not parse; expected a valid MOL block")
    return found[0]


def _read_xyz(path: Path, charge: int) -> Chem.Mol:
    raw = Chem.MolFromXYZFile(str(path))
    if raw is None or raw.GetNumAtoms() == 0:
        raise InputError(
            f"not readable as XYZ: {path}; expected a count, a comment and one atom a line"
        )
    mol = Chem.Mol(raw)
    try:
        rdDetermineBonds.DetermineBonds(mol, charge=charge)
        Chem.SanitizeMol(mol)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"no bonds fit the coordinates in {path} with total charge {charge}: {error}; "
            "give the right --charge, or an SDF file"
        ) from error
    return mol


def match_species(mol: Chem.Mol, source: str) -> tuple[Species, Geometry]:
    """Species of a molecule with coordinates, and the coordinates in the species' atom order.

    Raises
    ------
    InputError
        If the geometry is a drawing, lacks hydrogens, or is not one molecule.
    """
    if mol.GetNumConformers() == 0:
        raise InputError(f"{source} has no coordinates")
    coords = np.array(mol.GetConformer().GetPositions())
    check_not_flat(mol, coords, source)
    with_stereo = Chem.Mol(mol)
    Chem.AssignStereochemistryFrom3D(with_stereo)
    species = species_from_smiles(Chem.MolToSmiles(Chem.RemoveHs(with_stereo)))
    wanted = explicit_mol(species)
    if wanted.GetNumAtoms() != mol.GetNumAtoms():
        raise InputError(
            f"{source} has {mol.GetNumAtoms()} atoms, the species {species.smiles} has "
            f"{wanted.GetNumAtoms()}; expected one molecule with all its hydrogens"
        )
    order = with_stereo.GetSubstructMatch(wanted, useChirality=True)
    if len(order) != wanted.GetNumAtoms():
        order = with_stereo.GetSubstructMatch(wanted)
    if len(order) != wanted.GetNumAtoms():
        raise InputError(f"the atoms of {source} do not match its species {species.smiles}")
    coords = coords[list(order)]
    check_geometry(species, coords, source)
    points = tuple((float(x), float(y), float(z)) for x, y, z in coords)
    return species, Geometry(coords_angstrom=points, source=source)


def check_not_flat(mol: Chem.Mol, coords: npt.NDArray[np.float64], source: str) -> None:
    """Refuse a drawing: all z are zero although an atom cannot be flat.

    Raises
    ------
    InputError
        With the reason.
    """
    if len(coords) < 4 or np.ptp(coords[:, 2]) > _FLAT_ANGSTROM:
        return
    cannot = [
        atom.GetIdx()
        for atom in mol.GetAtoms()
        if atom.GetHybridization() == Chem.HybridizationType.SP3 and atom.GetTotalDegree() >= 3
    ]
    missing_h = any(atom.GetTotalNumHs() for atom in mol.GetAtoms())
    if cannot or missing_h:
        raise InputError(
            f"{source} is a drawing, not a geometry: all {len(coords)} atoms have the same z "
            "(PubChem's default record is 2D); expected 3D coordinates with all hydrogens, "
            "for example PubChem's 3D record"
        )


def check_geometry(
    species: Species, coords_angstrom: npt.NDArray[np.float64], source: str = "the conformer"
) -> None:
    """Check that coordinates can be this species: numbers, distances, bonds, stereo centres.

    Parameters
    ----------
    coords_angstrom : ndarray (A, 3)
        In the atom order of `explicit_mol`.

    Raises
    ------
    InputError
        With the first thing that is wrong.
    """
    if coords_angstrom.shape != (species.n_atoms, 3):
        raise InputError(
            f"{source} has coordinates of shape {coords_angstrom.shape}, expected "
            f"({species.n_atoms}, 3) for {species.smiles}"
        )
    if not np.isfinite(coords_angstrom).all():
        raise InputError(f"{source} of {species.smiles} has coordinates that are not numbers")
    mol = explicit_mol(species)
    _check_distances(mol, coords_angstrom, species, source)
    _check_stereo(mol, coords_angstrom, species, source)


def _check_distances(
    mol: Chem.Mol, coords: npt.NDArray[np.float64], species: Species, source: str
) -> None:
    hint = _unit_hint(mol, coords)
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        numbers = sorted(mol.GetAtomWithIdx(k).GetAtomicNum() for k in (i, j))
        length = float(np.linalg.norm(coords[i] - coords[j]))
        low = _SHORTEST_H2_ANGSTROM if numbers == [1, 1] else SHORTEST_ANGSTROM
        high = _LONGEST_HEAVY_ANGSTROM if numbers[1] > 36 else LONGEST_ANGSTROM
        if not low <= length <= high:
            raise InputError(
                f"bond {i}-{j} of {length:.2f} Angstrom in {source} of {species.smiles}; "
                f"expected {low} to {high}{hint}"
            )
    if len(coords) > 1:
        distance = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        if distance.min() < _CLOSEST_ANGSTROM:
            first, second = np.unravel_index(int(distance.argmin()), distance.shape)
            raise InputError(
                f"atoms {first} and {second} overlap in {source} of {species.smiles}: "
                f"{distance.min():.2f} Angstrom apart, expected at least {_CLOSEST_ANGSTROM}"
            )


def _unit_hint(mol: Chem.Mol, coords: npt.NDArray[np.float64]) -> str:
    """Say so if all lengths look like those of another unit."""
    radius = Chem.GetPeriodicTable().GetRcovalent
    ratios = [
        np.linalg.norm(coords[bond.GetBeginAtomIdx()] - coords[bond.GetEndAtomIdx()])
        / (radius(bond.GetBeginAtom().GetAtomicNum()) + radius(bond.GetEndAtom().GetAtomicNum()))
        for bond in mol.GetBonds()
    ]
    ratio = float(np.median(ratios)) if ratios else 1.0
    if 1.6 < ratio < 2.2:
        return "; all lengths are about 1.9 times too long: coordinates in Bohr?"
    if 0.07 < ratio < 0.13:
        return "; all lengths are about 10 times too short: coordinates in nanometre?"
    return ""


def _check_stereo(
    mol: Chem.Mol, coords: npt.NDArray[np.float64], species: Species, source: str
) -> None:
    """Every stereo centre and double bond that the SMILES states must be so in space."""
    wanted = _stereo(mol)
    if not wanted:
        return
    placed = Chem.Mol(mol)
    placed.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    for i, (x, y, z) in enumerate(coords):
        conformer.SetAtomPosition(i, Point3D(float(x), float(y), float(z)))
    placed.AddConformer(conformer)
    Chem.AssignStereochemistryFrom3D(placed, replaceExistingTags=True)
    found = _stereo(placed)
    wrong = {
        key: (label, found.get(key)) for key, label in wanted.items() if found.get(key) != label
    }
    if wrong:
        key, (label, other) = next(iter(wrong.items()))
        raise InputError(
            f"{len(wrong)} stereo elements of {source} differ from {species.smiles}; "
            f"first: {key[0]} {key[1]} is {other}, expected {label}"
        )


def _stereo(mol: Chem.Mol) -> dict[tuple[str, str], str]:
    """Labels of stated stereo centres (R, S) and double bonds (E, Z)."""
    Chem.AssignStereochemistry(mol, cleanIt=False, force=True)
    labels = {
        ("centre", str(atom.GetIdx())): atom.GetProp("_CIPCode")
        for atom in mol.GetAtoms()
        if atom.HasProp("_CIPCode")
    }
    plain = (Chem.BondStereo.STEREONONE, Chem.BondStereo.STEREOANY)
    for bond in mol.GetBonds():
        if bond.GetStereo() not in plain:
            ends = f"{bond.GetBeginAtomIdx()}={bond.GetEndAtomIdx()}"
            labels["bond", ends] = bond.GetStereo().name.removeprefix("STEREO")
    return labels
