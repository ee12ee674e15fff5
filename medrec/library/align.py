"""Put the positions of a 3D view onto the atoms of a 2D graph.

Sources give coordinates in an order of their own, mostly that of the SMILES. Hydrogens are not
matched but handed out: each belongs to its nearest other atom, and how many an atom has tells it
from others of its element. So an acid's two oxygens are not exchanged, and a search, where one is
needed, runs over few atoms.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from scipy.spatial.distance import cdist

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BOND_FACTOR = 1.3
"""A bond is at most this many times the sum of its atoms' covalent radii."""

_FACTORS = (1.15, BOND_FACTOR)  # strained rings have contacts within 1.3 that are no bonds
_MAX_MATCHES = 1000
_TABLE = Chem.GetPeriodicTable()
_RADII = np.array([_TABLE.GetRcovalent(z) for z in range(119)])


class Graph2D(NamedTuple):
    """Atoms and bonds that positions are wanted for.

    Attributes
    ----------
    mol : Chem.Mol
        The same atoms; read for its stereo only.
    element : uint8 array (n,)
        Atomic numbers.
    hydrogens : int array (n,)
        Hydrogens of each atom that are not atoms of the graph.
    bonds : int array (E, 2)
    stereo : bool
        Whether a chiral atom or a double bond has a specified configuration.
    """

    mol: Chem.Mol
    element: npt.NDArray[np.uint8]
    hydrogens: Ints
    bonds: Ints
    stereo: bool


class Alignment(NamedTuple):
    """Which position belongs to which atom.

    Attributes
    ----------
    order : int array (n,)
        Row of the 3D view for every atom of the graph.
    in_order : bool
        The atoms other than hydrogen have the same order in both views.
    stereo_agrees : bool
        The positions have the specified configuration.
    """

    order: Ints
    in_order: bool
    stereo_agrees: bool


def align(
    graph: Graph2D, element: npt.NDArray[np.uint8], position: npt.NDArray[np.float32]
) -> Alignment | None:
    """Find the atoms of a 2D graph among atoms with positions.

    The given order is kept if elements and hydrogens agree and all bonds are short enough.
    Otherwise the graph without bond orders is searched among the contacts of the 3D view; of
    several solutions, symmetric ones, the first with the specified configuration is taken.

    Parameters
    ----------
    element : uint8 array (n3,)
        Atomic numbers, with all hydrogens or without any.
    position : float32 array (n3, 3)
        Angstrom.

    Returns
    -------
    Alignment or None
        None if the two views are not the same molecule.
    """
    views = _Views.make(graph, element, position.astype(np.float64))
    if views is None:
        return None
    order = np.arange(len(views.core))
    in_order = views.fits(order)
    best = _judge(views, order, True) if in_order else None
    if best is not None and best.stereo_agrees:
        return best
    for match in views.matches():
        other = _judge(views, match, np.array_equal(match, order))
        if best is None or other.stereo_agrees:
            best = other
        if best.stereo_agrees:
            break
    return best


def _judge(views: _Views, match: Ints, in_order: bool) -> Alignment:
    index = views.complete(match)
    agrees = not views.graph.stereo or stereo_agrees(views.graph.mol, views.position[index])
    return Alignment(index, in_order, agrees)


class _Views(NamedTuple):
    """Both views, reduced to their cores: all atoms but hydrogens with one ordinary bond.

    ``partner``: core atom of every hydrogen; ``label``: elements and hydrogens as one number.
    """

    graph: Graph2D
    position: Floats
    core: Ints
    core3: Ints
    hydrogen: Ints
    hydrogen3: Ints
    partner: Ints
    partner3: Ints
    label: Ints
    label3: Ints
    bonds: Ints

    @classmethod
    def make(
        cls, graph: Graph2D, element: npt.NDArray[np.uint8], position: Floats
    ) -> _Views | None:
        """Split both views; None if elements or numbers of hydrogens already differ."""
        outside, partner, bonds = _split(graph)
        outside3 = (element == 1) & bool(outside.any() or (graph.element != 1).all())
        core, core3 = np.flatnonzero(~outside), np.flatnonzero(~outside3)
        hydrogen, hydrogen3 = np.flatnonzero(outside), np.flatnonzero(outside3)
        if len(core) != len(core3) or (len(hydrogen) and not len(hydrogen3)):
            return None
        partner3 = _nearest(position, element, hydrogen3, core3)
        if partner3 is None:
            return None
        label = graph.element[core].astype(np.int64) << 16
        label3 = element[core3].astype(np.int64) << 16
        if len(hydrogen3):
            label += graph.hydrogens[core] + np.bincount(partner, minlength=len(core))
            label3 += np.bincount(partner3, minlength=len(core))
        if not np.array_equal(np.sort(label), np.sort(label3)):
            return None
        return cls(
            graph, position, core, core3, hydrogen, hydrogen3, partner, partner3, label, label3,
            bonds,
        )  # fmt: skip

    def fits(self, match: Ints) -> bool:
        """Whether core atoms and bonds can lie where a match puts them."""
        if not np.array_equal(self.label, self.label3[match]):
            return False
        ends = self.position[self.core3[match]][self.bonds]
        length = np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).sum(axis=1))
        reach = _RADII[self.graph.element[self.core]][self.bonds].sum(axis=1)
        return bool((length < BOND_FACTOR * reach).all())

    def matches(self) -> tuple[Ints, ...]:
        """All ways to place the core's bonds on contacts, core3 atom of every core atom."""
        position = self.position[self.core3]
        radii = _RADII[self.label3 >> 16]
        ratio = cdist(position, position) / (radii[:, None] + radii[None, :])
        parameters = Chem.SubstructMatchParameters()
        parameters.uniquify = False  # type: ignore[assignment]
        parameters.maxMatches = _MAX_MATCHES if self.graph.stereo else 1  # type: ignore[assignment]
        for factor in _FACTORS:
            contacts = np.argwhere(np.triu(ratio < factor, 1))
            query, target = _refined(self.label, self.bonds, self.label3, contacts)
            found = _skeleton(target, contacts).GetSubstructMatches(
                _skeleton(query, self.bonds), parameters
            )
            if found:
                return tuple(np.array(match, dtype=np.int64) for match in found)
        return ()

    def complete(self, match: Ints) -> Ints:
        """Hand out the hydrogens: 3D atom of every atom of the graph."""
        index = np.zeros(len(self.graph.element), dtype=np.int64)
        index[self.core] = self.core3[match]
        if len(self.hydrogen):
            of_core3 = np.empty(len(match), dtype=np.int64)
            of_core3[match] = np.arange(len(match))
            owner = of_core3[self.partner3]
            ranked = self.hydrogen3[np.argsort(owner, kind="stable")]
            first = np.searchsorted(np.sort(owner), self.partner)
            order = np.argsort(self.partner, kind="stable")
            sizes = np.bincount(self.partner, minlength=len(match))
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            index[self.hydrogen] = ranked[first + rank]
        return index


def _split(graph: Graph2D) -> tuple[npt.NDArray[np.bool_], Ints, Ints]:
    """Which atoms are hydrogens outside the core, their core atom, and the bonds of the core.

    If one hydrogen is not bonded to just one other element (H2, a proton, a bridge), all belong to
    the core.
    """
    n, bonds = len(graph.element), graph.bonds
    is_hydrogen = graph.element == 1
    everything = np.zeros(n, dtype=bool), np.zeros(0, dtype=np.int64), bonds
    if not is_hydrogen.any():
        return everything
    ends = is_hydrogen[bonds]
    single = np.bincount(bonds.ravel(), minlength=n)[is_hydrogen] == 1
    if ends.all(axis=1).any() or not single.all():
        return everything
    number = np.cumsum(~is_hydrogen) - 1
    outer = bonds[ends.any(axis=1)]
    partner = np.zeros(n, dtype=np.int64)
    flip = is_hydrogen[outer[:, 0]]
    partner[np.where(flip, outer[:, 0], outer[:, 1])] = np.where(flip, outer[:, 1], outer[:, 0])
    return is_hydrogen, number[partner[is_hydrogen]], number[bonds[~ends.any(axis=1)]]


def _nearest(
    position: Floats, element: npt.NDArray[np.uint8], hydrogens: Ints, core: Ints
) -> Ints | None:
    """Core atom of every hydrogen; None if one is bonded to nothing."""
    if not len(hydrogens):
        return hydrogens
    distance = cdist(position[hydrogens], position[core])
    partner = distance.argmin(axis=1)
    reach = _RADII[1] + _RADII[element[core]][partner]
    bonded = distance[np.arange(len(hydrogens)), partner] < BOND_FACTOR * reach
    return partner if bonded.all() else None


def _refined(label: Ints, bonds: Ints, label3: Ints, contacts: Ints) -> tuple[Ints, Ints]:
    """Small labels for a search; by surroundings too (Weisfeiler and Leman) if none is in excess.

    With as many contacts as bonds, equal atoms have equal surroundings of any radius, and nearly
    unique labels leave nothing to search. Otherwise only the atoms' own labels are safe.
    """
    n = len(label)
    labels = np.unique(np.concatenate([label, label3]), return_inverse=True)[1]
    if len(bonds) == len(contacts):
        both = np.concatenate([bonds, contacts + n])
        ends = np.concatenate([both, both[:, ::-1]]).T
        n_kinds = 0
        while n_kinds < labels.max() + 1:
            n_kinds = int(labels.max()) + 1
            around = np.zeros((2 * n, n_kinds), dtype=np.int64)
            np.add.at(around, (ends[0], labels[ends[1]]), 1)
            rows = np.column_stack([labels, around])
            labels = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
    return labels[:n], labels[n:]


def _skeleton(label: Ints, bonds: Ints) -> Chem.Mol:
    """A graph as a molecule of single bonds; labels are isotopes, which a search respects."""
    mol = Chem.RWMol()
    for number in label.tolist():
        atom = Chem.Atom(6)
        atom.SetIsotope(number + 1)
        mol.AddAtom(atom)
    for i, j in bonds.tolist():
        mol.AddBond(i, j, Chem.BondType.SINGLE)
    return mol.GetMol()


# --------------------------------------------------------------------------- configuration


def stereo_agrees(mol: Chem.Mol, position: Floats) -> bool:
    """Whether positions have the configuration of a molecule's chiral atoms and double bonds.

    Parameters
    ----------
    position : float array (n, 3)
        Of the molecule's atoms, in any unit.
    """
    return all(
        _handedness(atom, position) == atom.GetChiralTag()
        for atom in mol.GetAtoms()
        if atom.GetChiralTag() in _HANDS and atom.GetDegree() > 2
    ) and all(
        _same_side(bond, position) == (bond.GetStereo() in _TOGETHER)
        for bond in mol.GetBonds()
        if bond.GetStereo() in _TOGETHER + _OPPOSITE
    )


_HANDS = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
_TOGETHER = (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS)
_OPPOSITE = (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)


def _handedness(atom: Chem.Atom, position: Floats) -> Chem.ChiralType:
    """Sense of an atom's first three neighbours, in RDKit's order."""
    centre = position[atom.GetIdx()]
    around = [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()][:3]
    return _HANDS[int(np.linalg.det(position[around] - centre) > 0)]


def _same_side(bond: Chem.Bond, position: Floats) -> bool:
    """Whether the reference atoms of a double bond lie on the same side of it."""
    begin, end = position[bond.GetBeginAtomIdx()], position[bond.GetEndAtomIdx()]
    first, second = (position[number] for number in bond.GetStereoAtoms())
    axis = end - begin
    return bool(np.cross(first - begin, axis) @ np.cross(second - end, axis) > 0)
