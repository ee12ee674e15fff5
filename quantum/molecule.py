"""From a SMILES to a species: what exactly is calculated.

The policy, in order:

1. *Reading.* Empty text, query atoms (``[#6]``), query bonds (``~``) and dummy atoms (``*``: an
   attachment point or the ends of a polymer's repeat unit) are refused: they are no molecule.
2. *Metal salts drawn with bonds.* Metals of groups 1 and 2, Al, Zn and Ag are ions: their bonds to
   anything but carbon are cut (``CC(=O)O[Na]``, ``O[Al](O)O``). No other metal's bonds are cut.
3. *Metal complexes stay whole.* If another metal has a bond, or stands as a bare ion beside a
   ligand that is no common counter-ion (or is one of Nb-Pd, Ta-Au, whose "salts" are complexes),
   the species is everything but water, meglumine and the ions of rule 2. Cisplatin does not become
   ammonia and a gadolinium chelate not its ligand. Such a species can have several parts (``.``).
4. *Else one fragment is chosen.* In this order: an organic fragment that is no common counter-ion
   or solvent (most heavy atoms, then most carbon, then the canonical text); a listed amine or acid
   that is a drug too (choline, piperazine); a bare metal ion other than Na+ and K+; an inorganic
   fragment that is not listed (nitrite, every labelled ion); then the list, first to last, iodide
   first and water last. So lithium citrate is Li+, sodium citrate citrate, metformin embonate
   metformin, KCl K+, KI I-. Counter-ions are recognised in every protonation state and without
   stereo, never with an isotope label.
5. *Mixtures.* Of several organic fragments that are not listed rule 4 takes the largest one.
   `competing_fragments` tells whether that was a choice; `quantum.coverage` calls it a mixture.
   Stereoisomers, isotopologues and protonation states of one constitution are one substance: the
   canonical text decides.
6. *What is kept.* Charge as written (a sodium salt gives the anion, a hydrochloride the neutral
   base: no proton moves), stereo as written (none is guessed), isotopes. No tautomer is changed.
7. *Spin.* Multiplicity is the number of radical electrons that the SMILES states plus 1, all spins
   parallel: ``C[N]C`` and ``[N]=O`` are doublets, ``[O][O]`` a triplet. Exceptions: ``O=O`` is the
   triplet too, as that is oxygen's ground state; a bare atom or ion follows Hund's rule, the d or f
   shell of a cation first (Fe2+ a quintet). A complex with an open d or f shell takes the lowest
   multiplicity of the right parity, which need not be its ground state: SMILES does not say.
"""

from __future__ import annotations

from functools import cache, lru_cache

from pydantic import Field
from rdkit import Chem, RDLogger
from rdkit.Chem import rdMolDescriptors
from rdkit.Chem.MolStandardize import rdMolStandardize

from quantum.base import Frozen, InputError, digest

RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]

# metals that are ions in whatever they are drawn bonded to: groups 1 and 2, Al, Zn, Ag
_SALT_METALS = frozenset({3, 11, 19, 37, 55, 87, 12, 20, 38, 56, 88, 13, 30, 47})
_BARE_SALT_METALS = _SALT_METALS | {83}  # Bi too, but not where it is drawn bonded
_COVALENT_METALS = frozenset({*range(41, 47), *range(73, 80)})  # Nb to Pd, Ta to Au
_NON_METALS = frozenset({0, 1, 2, *range(5, 11), *range(14, 19), *range(32, 37), *range(51, 55)})
_NON_METALS |= {85, 86}
_NOBLE_CORES = (0, 2, 10, 18, 36, 54, 86)
_MULTIPLICITY_OF = {"O=O": 3}  # ground states that the valence formula misstates

# Counter-ions that are drugs on their own: salicylate, procaine, amines, glycerol.
_COUNTER_DRUGS = """
O=C(O)c1ccccc1O CCN(CC)CCOC(=O)c1ccc(N)cc1 C1CNCCN1 C[N+](C)(C)CCO NCCCCC(N)C(=O)O
N=C(N)NCCCC(N)C(=O)O NC(CO)(CO)CO CNCC(O)C(O)C(O)C(O)CO c1ccc(CNCCNCc2ccccc2)cc1 OCCN1CCCC1
OCCNCCO OCCN(CCO)CCO NCCO NCCN CC(C)(C)N CCNCC CCN(CC)CC C1CCC(NC2CCCCC2)CC1 NC1CCCCC1 CN
Cn1c(=O)c2[nH]c(Cl)nc2n(C)c1=O OCC(O)CO
"""

# Counter-ions and solvents, as neutral acids; a later one is chosen only if no earlier one is left.
# RDKit's SaltRemover and FragmentRemover lists are part of it.
_HALIDES_AND_POTASSIUM = "I F Br [K+]"
_ORGANIC_ACIDS = """
O=C(O)CC(O)(CC(=O)O)C(=O)O O=C(O)C(O)C(O)C(=O)O O=C(O)C(O)C(O)C(O)C(O)CO O=C(O)C=CC(=O)O
O=C(O)C(O)C(O)C(O)C(O)C(O)CO O=C(O)C(O)C(O)C(O)C(O)C(=O)O O=C(O)C1OC(O)C(O)C(O)C1O
O=C(O)C(O)C(O)C(OC1OC(CO)C(O)C(O)C1O)C(O)CO O=C(O)CCC(=O)O O=C(O)CC(O)C(=O)O O=C(O)CC(=O)O
O=C(O)CCCCC(=O)O O=C(O)CCCC(=O)O O=C(O)C(=O)O CC(O)C(=O)O O=C(O)CO NCC(=O)O NC(CC(=O)O)C(=O)O
NC(CCC(=O)O)C(=O)O O=C1CCC(C(=O)O)N1 O=c1cc(C(=O)O)[nH]c(=O)[nH]1 O=P(O)(O)OCC(O)CO
O=P(O)(O)OC(CO)CO O=C(O)c1ccccc1 O=C(O)C(O)c1ccccc1 O=C(O)CNC(=O)c1ccccc1
O=C(O)c1ccc(C(=O)O)cc1 O=C(O)c1cc2ccccc2cc1O O=C(O)c1ccc2ccccc2c1O
O=C(O)c1cc2ccccc2c(Cc2c(O)c(C(=O)O)cc3ccccc23)c1O O=C(O)C(c1ccccc1)(c1ccccc1)c1ccccc1
O=C(O)c1cc(S(=O)(=O)O)ccc1O O=C(O)CCCCCCCCCCCCCCCCC O=C(O)CCCCCCCCCCCCCCC CCC(=O)O CC(=O)O
O=C(O)C(F)(F)F O=CO CS(=O)(=O)O CCS(=O)(=O)O O=S(=O)(O)CCO O=S(=O)(O)CCS(=O)(=O)O
O=S(=O)(O)c1ccccc1 Cc1ccc(S(=O)(=O)O)cc1 O=S(=O)(O)c1ccc2ccccc2c1 O=S(=O)(O)c1cccc2ccccc12
O=S(=O)(O)c1cccc2c(S(=O)(=O)O)cccc12 CC1(C)C2CCC1(CS(=O)(=O)O)C(=O)C2 O=S(=O)(O)NC1CCCCC1
COS(=O)(=O)O CCOS(=O)(=O)O CCCCCCCCCCCCOS(=O)(=O)O O=S(=O)(O)C(F)(F)F O=C(O)O N#CS
"""
_INORGANIC = """
O=P(O)(O)O O=S(=O)(O)O O=[N+]([O-])O F[P-](F)(F)(F)(F)F F[B-](F)(F)F S N [Na+] Cl
"""
_SOLVENTS = """
CCO CC(O)CO CC(C)O CCCO CCCCO CCC(C)O CC(C)CO CO OCCO CS(C)=O C[S+](C)[O-] CC(C)=O
CCC(C)=O CC#N CCOC(C)=O CN(C)C=O CC(=O)N(C)C CN1CCCC1=O C1CCOC1 C1COCCO1 COCCOC CCOCC
CC(C)OC(C)C COC(C)(C)C ClCCl ClC(Cl)Cl ClCCCl c1ccccc1 Cc1ccccc1 Cc1ccccc1C Cc1cccc(C)c1
Cc1ccc(C)cc1 c1ccncc1 CCCCC CCCCCC CCCCCCC C1CCCCC1 C1CCCCCC1 O [O-2] [H+]
"""
_COUNTER_FRAGMENTS = _HALIDES_AND_POTASSIUM + _ORGANIC_ACIDS + _INORGANIC + _SOLVENTS
_LARGEST_COUNTER = 30  # heavy atoms; pamoic acid has 29
_SPECTATORS = ("O", "CNCC(O)C(O)C(O)C(O)CO")  # beside a metal complex: water, meglumine


class Species(Frozen):
    """One molecule or ion with its charge and spin.

    Attributes
    ----------
    smiles : str
        Canonical isomeric SMILES after standardisation.
    charge : int
        Total charge, elementary charges.
    multiplicity : int
        2S + 1, from the radical electrons that the SMILES states (rule 7 of the module).
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

    def _repr_html_(self) -> str:
        from quantum.show import species_html

        return species_html(self)


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
    """Standardise a SMILES to the species that is calculated; see the module for the policy.

    Raises
    ------
    InputError
        If the SMILES does not parse, holds dummy or query atoms, or leaves no electron.
    """
    canonical = Chem.MolToSmiles(_active_part(_parse_complete(smiles)))
    mol = Chem.MolFromSmiles(canonical)
    if mol is None:
        raise InputError(f"SMILES has no canonical form that parses: '{smiles}'")
    charge = Chem.GetFormalCharge(mol)
    electrons = sum(atom.GetAtomicNum() for atom in Chem.AddHs(mol).GetAtoms()) - charge
    if electrons < 1:
        raise InputError(
            f"species without electrons: '{canonical}' of '{smiles}'; expected at least one"
        )
    unpaired = _unpaired_electrons(mol)
    if (electrons - unpaired) % 2:
        unpaired = electrons % 2
    return Species(
        smiles=canonical,
        charge=charge,
        multiplicity=_MULTIPLICITY_OF.get(canonical, unpaired + 1),
        inchikey=Chem.MolToInchiKey(mol) or "",
    )


def competing_fragments(smiles: str) -> tuple[str, ...]:
    """Organic fragments of different constitution that are no common counter-ion or solvent.

    Returns
    -------
    tuple of str
        Canonical SMILES, largest first; more than one is a mixture. Empty for a metal complex.
    """
    fragments = _fragments(_parse_complete(smiles))
    if _complex_parts(fragments) is not None:
        return ()
    found: dict[str, str] = {}
    for fragment in sorted(fragments, key=_rank, reverse=True):
        if _has_carbon(fragment) and _listed_as(fragment) is None:
            found.setdefault(_constitution(fragment), Chem.MolToSmiles(fragment))
    return tuple(found.values())


def explicit_mol(species: Species) -> Chem.Mol:
    """RDKit molecule with all hydrogens; its atom order is the order of every array."""
    return Chem.AddHs(parse_smiles(species.smiles))


@lru_cache(maxsize=20000)
def _atomic_numbers(smiles: str) -> tuple[int, ...]:
    mol = Chem.AddHs(parse_smiles(smiles))
    return tuple(atom.GetAtomicNum() for atom in mol.GetAtoms())


# --------------------------------------------------------------------------- reading


def _parse_complete(smiles: str) -> Chem.Mol:
    mol = parse_smiles(smiles)
    if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
        raise InputError(f"SMILES holds a dummy atom: '{smiles}'; expected a complete molecule")
    query_bonds = any(bond.HasQuery() for bond in mol.GetBonds())
    if "[#" in smiles or query_bonds or any(atom.HasQuery() for atom in mol.GetAtoms()):
        raise InputError(f"SMILES holds a query atom or bond: '{smiles}'; expected a molecule")
    return mol


def _fragments(mol: Chem.Mol) -> tuple[Chem.Mol, ...]:
    if any(_is_salt_metal(atom) and atom.GetDegree() for atom in mol.GetAtoms()):
        mol = _salt_disconnector().Disconnect(mol)
    return tuple(Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=True))


@cache
def _salt_disconnector() -> rdMolStandardize.MetalDisconnector:
    metals = "[" + ",".join(f"#{number}" for number in sorted(_SALT_METALS)) + "]"
    disconnector = rdMolStandardize.MetalDisconnector()
    disconnector.SetMetalNof(Chem.MolFromSmarts(metals + "~[#7,#8,#9]"))
    disconnector.SetMetalNon(Chem.MolFromSmarts(metals + "~[#15,#16,#17,#34,#35,#53]"))
    return disconnector


# --------------------------------------------------------------------------- which part


def _active_part(mol: Chem.Mol) -> Chem.Mol:
    fragments = _fragments(mol)
    whole = _complex_parts(fragments)
    if whole is None:
        return max(fragments, key=_rank)
    joined = whole[0]
    for part in whole[1:]:
        joined = Chem.CombineMols(joined, part)
    return joined


def _complex_parts(fragments: tuple[Chem.Mol, ...]) -> list[Chem.Mol] | None:
    """All that belongs to a metal complex, or None where there is none (rule 3)."""
    rest = [item for item in fragments if not _is_spectator(item)]
    metals = [atom for item in rest for atom in item.GetAtoms() if _is_complex_metal(atom)]
    if not metals:
        return None
    bare = all(atom.GetDegree() == 0 for atom in metals)
    covalent = any(atom.GetAtomicNum() in _COVALENT_METALS for atom in metals)
    partners_listed = all(_is_bare_metal(item) or _listed_as(item) is not None for item in rest)
    return None if bare and not covalent and partners_listed else rest


def _rank(fragment: Chem.Mol) -> tuple[int, int, int, str]:
    """Order of rule 4; the largest is chosen."""
    text = Chem.MolToSmiles(fragment)
    listed = _listed_as(fragment)
    if listed is not None:
        return (3 if listed < 0 else 0, -listed, 0, text)
    if _is_bare_metal(fragment):
        return (2, 0, 0, text)
    carbons = sum(atom.GetAtomicNum() == 6 for atom in fragment.GetAtoms())
    return (4 if carbons else 1, fragment.GetNumHeavyAtoms(), carbons, text)


def _has_carbon(fragment: Chem.Mol) -> bool:
    return any(atom.GetAtomicNum() == 6 for atom in fragment.GetAtoms())


def _is_salt_metal(atom: Chem.Atom) -> bool:
    return atom.GetAtomicNum() in _SALT_METALS


def _is_complex_metal(atom: Chem.Atom) -> bool:
    ions = _BARE_SALT_METALS if atom.GetDegree() == 0 else _SALT_METALS
    return atom.GetAtomicNum() not in _NON_METALS | ions


def _is_bare_metal(fragment: Chem.Mol) -> bool:
    number = fragment.GetAtomWithIdx(0).GetAtomicNum()
    return fragment.GetNumAtoms() == 1 and number not in _NON_METALS


def _is_spectator(fragment: Chem.Mol) -> bool:
    if fragment.GetNumAtoms() == 1 and _is_salt_metal(fragment.GetAtomWithIdx(0)):
        return True
    return _neutral_text(Chem.MolToSmiles(fragment)) in _SPECTATORS


# --------------------------------------------------------------------------- counter-ions


def _listed_as(fragment: Chem.Mol) -> int | None:
    """Place of a fragment in the lists of counter-ions and solvents, or None; drugs below 0."""
    if fragment.GetNumHeavyAtoms() > _LARGEST_COUNTER:
        return None
    return _counter_places().get(_neutral_text(Chem.MolToSmiles(fragment)))


@cache
def _counter_places() -> dict[str, int]:
    drugs, others = _COUNTER_DRUGS.split(), _COUNTER_FRAGMENTS.split()
    every = enumerate(drugs + others, start=-len(drugs))
    return {_neutral_text(smiles): place for place, smiles in every}


@lru_cache(maxsize=20000)
def _neutral_text(smiles: str) -> str:
    """Canonical SMILES without stereo and, where a proton can do that, without charge."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return smiles
    Chem.RemoveStereochemistry(mol)
    return str(Chem.MolToSmiles(rdMolStandardize.Uncharger().uncharge(mol)))


def _constitution(fragment: Chem.Mol) -> str:
    """`_neutral_text` without isotopes: one text for stereoisomers and protonation states."""
    plain = Chem.Mol(fragment)
    for atom in plain.GetAtoms():
        atom.SetIsotope(0)
    return _neutral_text(Chem.MolToSmiles(Chem.RemoveHs(plain)))


# --------------------------------------------------------------------------- spin


def _unpaired_electrons(mol: Chem.Mol) -> int:
    if mol.GetNumAtoms() == 1 and not mol.GetAtomWithIdx(0).GetTotalNumHs():
        return _unpaired_in_atom(mol.GetAtomWithIdx(0))
    return sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())


def _unpaired_in_atom(atom: Chem.Atom) -> int:
    """Hund's rule; a cation has given its outer s electrons before those of d and f."""
    number, charge = atom.GetAtomicNum(), atom.GetFormalCharge()
    core = max(size for size in _NOBLE_CORES if size < number)
    left = max(number - charge - core, 0)
    s, f, d, p = 2, 14 if core >= 54 else 0, 10 if core >= 18 else 0, 6
    unpaired = 0
    for capacity in (f, d, s, p) if charge > 0 else (s, f, d, p):
        filled = min(left, capacity)
        unpaired += min(filled, capacity - filled)
        left -= filled
    return unpaired
