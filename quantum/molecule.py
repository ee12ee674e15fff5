"""From a SMILES to a species: what exactly is calculated.

The policy, in order: parse; disconnect metals from salts and keep the largest organic fragment
(most heavy atoms, then most carbon, then the canonical text); keep its charge, stereo and
isotopes; no tautomer is changed. A substance without carbon (an ion such as K+ or Mg2+, a salt
such as sodium chloride) keeps its largest fragment too, so it becomes one ion.
"""

from __future__ import annotations

from functools import lru_cache

from pydantic import Field
from rdkit import Chem, RDLogger
from rdkit.Chem import rdMolDescriptors
from rdkit.Chem.MolStandardize import rdMolStandardize

from quantum.base import Frozen, InputError, digest

RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]


class Species(Frozen):
    """One molecule or ion with its charge and spin.

    Attributes
    ----------
    smiles : str
        Canonical isomeric SMILES after standardisation.
    charge : int
        Total charge, elementary charges.
    multiplicity : int
        2S + 1; 1 for an even number of electrons, 2 for an odd one.
    inchikey : str
        Identity across programs; empty where InChI has no name for it.
    """

    smiles: str
    charge: int
    multiplicity: int = Field(ge=1)
    inchikey: str

    @property
    def key(self) -> str:
        """Digest of what identifies the species: SMILES, charge, multiplicity."""
        return digest([self.smiles, self.charge, self.multiplicity])

    @property
    def atomic_numbers(self) -> tuple[int, ...]:
        """Atomic numbers in the order of `explicit_mol`."""
        return _atomic_numbers(self.smiles)

    @property
    def n_atoms(self) -> int:
        """Number of atoms, hydrogens included."""
        return len(self.atomic_numbers)

    @property
    def n_heavy_atoms(self) -> int:
        """Number of atoms other than hydrogen."""
        return sum(number > 1 for number in self.atomic_numbers)

    @property
    def formula(self) -> str:
        """Molecular formula in Hill order, with charge."""
        return str(rdMolDescriptors.CalcMolFormula(explicit_mol(self)))


def parse_smiles(smiles: str) -> Chem.Mol:
    """Parse a SMILES.

    Raises
    ------
    InputError
        If the text is empty or RDKit cannot make a molecule of it.
    """
    if not isinstance(smiles, str) or not smiles.strip():
        raise InputError("SMILES is empty; expected a molecule, for example CCO")
    mol = Chem.MolFromSmiles(smiles.strip())
    if mol is None or mol.GetNumAtoms() == 0:
        raise InputError(f"SMILES does not parse: '{smiles}'; expected a valid molecule")
    return mol


@lru_cache(maxsize=20000)
def species_from_smiles(smiles: str) -> Species:
    """Standardise a SMILES to the species that is calculated.

    Raises
    ------
    InputError
        If the SMILES does not parse or holds dummy atoms.
    """
    mol = _active_fragment(parse_smiles(smiles))
    if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
        raise InputError(f"SMILES holds a dummy atom: '{smiles}'; expected a complete molecule")
    canonical = Chem.MolToSmiles(mol)
    mol = Chem.MolFromSmiles(canonical)
    if mol is None:
        raise InputError(f"SMILES has no canonical form that parses: '{smiles}'")
    charge = Chem.GetFormalCharge(mol)
    with_h = Chem.AddHs(mol)
    electrons = sum(atom.GetAtomicNum() for atom in with_h.GetAtoms()) - charge
    if electrons < 1:
        raise InputError(f"species without electrons: '{smiles}'")
    return Species(
        smiles=canonical,
        charge=charge,
        multiplicity=1 if electrons % 2 == 0 else 2,
        inchikey=Chem.MolToInchiKey(mol) or "",
    )


def _active_fragment(mol: Chem.Mol) -> Chem.Mol:
    mol = rdMolStandardize.MetalDisconnector().Disconnect(mol)
    fragments = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=True)

    def rank(fragment: Chem.Mol) -> tuple[bool, int, int, int, str]:
        carbons = sum(atom.GetAtomicNum() == 6 for atom in fragment.GetAtoms())
        # among bare ions the cation is the active one: K+ of KCl, Mg2+ of MgSO4
        cation = int(carbons == 0 and Chem.GetFormalCharge(fragment) > 0)
        return (
            carbons > 0,
            cation,
            fragment.GetNumHeavyAtoms(),
            carbons,
            Chem.MolToSmiles(fragment),
        )

    return max(fragments, key=rank)


def explicit_mol(species: Species) -> Chem.Mol:
    """RDKit molecule with all hydrogens; its atom order is the order of every array."""
    return Chem.AddHs(parse_smiles(species.smiles))


@lru_cache(maxsize=20000)
def _atomic_numbers(smiles: str) -> tuple[int, ...]:
    mol = Chem.AddHs(parse_smiles(smiles))
    return tuple(atom.GetAtomicNum() for atom in mol.GetAtoms())
