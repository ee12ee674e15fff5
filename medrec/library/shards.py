"""Records of a source as arrays: one shard of a library."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from scipy.spatial import KDTree
from torch_geometric.utils.smiles import e_map, x_map

from medrec.config_molecules import LibraryConfig
from medrec.library.align import Alignment, Graph2D, align
from medrec.library.arrays import ARRAYS
from medrec.library.records import Record
from medrec.library.topology import (
    FlatGraphs,
    bond_angles,
    eigenvector_centrality,
    path_categories,
    proper_torsions,
    rotatable_bonds,
    shortest_paths,
)
from medrec.molecules.structure import ATOM_CARDINALITIES, BOND_CARDINALITIES
from quantum.base import StoreError, write_bytes_atomic

UNREADABLE = "RDKit cannot read the SMILES"
NO_ATOMS = "no atoms"
TOO_LARGE = "more than {} atoms"
UNKNOWN_ELEMENT = "unknown element"
UNKNOWN_CATEGORY = "an atom or bond outside the known categories"
NO_POSITIONS = "no 3D coordinates"
NOT_FINITE = "NaN or infinite coordinates"
SAME_PLACE = "two atoms at the same place"
MISMATCH = "2D and 3D atoms do not match"
INFINITE_TARGETS = "infinite targets"
WRONG_TARGETS = "not as many targets as the source declares"

SAME_PLACE_ANGSTROM = 0.1
LAST_ELEMENT = len(x_map["atomic_num"]) - 1
FACTS = ("mixtures", "reordered", "other_configuration")
"""Counts of molecules in several parts; whose two views have their heavy atoms in another order;
whose positions have another configuration at a chiral atom or double bond than the SMILES."""

_PAIRS_AT_ONCE = 2**15
"""Pairs of atoms in one piece of `topology`, so that the pieces fit into a processor's cache."""


class Rejected(Exception):
    """A record that cannot be used; the message is one of the reasons above."""


# --------------------------------------------------------------------------- categories


def _positions(values: Any, known: Sequence[str]) -> npt.NDArray[np.int64]:
    """Category of every value of an enumeration of RDKit; -1 for those without one."""
    table = np.full(max(values) + 1, -1)
    for number, value in values.items():
        table[number] = known.index(str(value)) if str(value) in known else -1
    return table


_CHIRALITY = _positions(Chem.ChiralType.values, x_map["chirality"])
_HYBRIDISATION = _positions(Chem.HybridizationType.values, x_map["hybridization"])
_BOND_TYPE = _positions(Chem.BondType.values, e_map["bond_type"])
_STEREO = _positions(Chem.BondStereo.values, e_map["stereo"])
_LOWEST_CHARGE = x_map["formal_charge"][0]


def atom_categories(mol: Chem.Mol) -> npt.NDArray[np.uint8]:
    """Categories of all atoms (n, 9), as `torch_geometric.utils.smiles.from_rdmol` gives them.

    Raises
    ------
    Rejected
        If an atom has a property without a category, where ``from_rdmol`` raises ValueError.
    """
    rows = [
        (
            atom.GetAtomicNum(),
            int(atom.GetChiralTag()),
            atom.GetTotalDegree(),
            atom.GetFormalCharge() - _LOWEST_CHARGE,
            atom.GetTotalNumHs(),
            atom.GetNumRadicalElectrons(),
            int(atom.GetHybridization()),
            atom.GetIsAromatic(),
            atom.IsInRing(),
        )
        for atom in mol.GetAtoms()
    ]
    x = np.array(rows, dtype=np.int64).reshape(-1, len(ATOM_CARDINALITIES))
    x[:, 1], x[:, 6] = _CHIRALITY[x[:, 1]], _HYBRIDISATION[x[:, 6]]
    return _as_bytes(x, ATOM_CARDINALITIES)


def bond_categories(
    mol: Chem.Mol,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Atoms (E, 2), categories (E, 3) as `from_rdmol` gives them, and ring membership (E,).

    Raises
    ------
    Rejected
        If a bond has a property without a category.
    """
    rows = [
        (
            bond.GetBeginAtomIdx(),
            bond.GetEndAtomIdx(),
            int(bond.GetBondType()),
            int(bond.GetStereo()),
            bond.GetIsConjugated(),
            bond.IsInRing(),
        )
        for bond in mol.GetBonds()
    ]
    raw = np.array(rows, dtype=np.int64).reshape(-1, 6)
    raw[:, 2], raw[:, 3] = _BOND_TYPE[raw[:, 2]], _STEREO[raw[:, 3]]
    return raw[:, :2], _as_bytes(raw[:, 2:5], BOND_CARDINALITIES), raw[:, 5].astype(bool)


def _as_bytes(
    categories: npt.NDArray[np.int64], cardinalities: Sequence[int]
) -> npt.NDArray[np.uint8]:
    if ((categories < 0) | (categories >= np.array(cardinalities))).any():
        raise Rejected(UNKNOWN_CATEGORY)
    return categories.astype(np.uint8)


# --------------------------------------------------------------------------- one record


class Encoded(NamedTuple):
    """A molecule that is taken, before the quantities of `topology`."""

    identifier: str
    smiles: str
    scaffold: str
    x: npt.NDArray[np.uint8]
    bond: npt.NDArray[np.int64]
    bond_attr: npt.NDArray[np.uint8]
    in_ring: npt.NDArray[np.bool_]
    position: npt.NDArray[np.float32]
    placed: bool
    targets: npt.NDArray[np.float64]
    facts: tuple[bool, ...]


def encode_record(record: Record, config: LibraryConfig, n_targets: int) -> Encoded:
    """Encode one record.

    Raises
    ------
    Rejected
        With the reason.
    """
    try:
        return _encode(record, config, n_targets)
    except (ValueError, RuntimeError) as error:  # what RDKit raises on odd molecules
        raise Rejected(f"RDKit fails ({type(error).__name__})") from error


def _encode(record: Record, config: LibraryConfig, n_targets: int) -> Encoded:
    plain = _usable(record, config, n_targets)
    mol = Chem.AddHs(plain) if config.hydrogens else plain
    if mol.GetNumAtoms() > config.max_atoms:
        raise Rejected(TOO_LARGE.format(config.max_atoms))
    x = atom_categories(mol)
    if (x[:, 0] == 0).any():
        raise Rejected(UNKNOWN_ELEMENT)
    bond, bond_attr, in_ring = bond_categories(mol)
    position, found = np.zeros((len(x), 3), dtype=np.float32), None
    if record.position is not None:
        stereo = bool(x[:, 1].any() or (bond_attr[:, 1] > 1).any())
        graph = Graph2D(mol, x[:, 0], x[:, 4].astype(np.int64), bond, stereo)
        found = _place(record, graph)
        position = record.position[found.order].astype(np.float32)
    smiles = Chem.MolToSmiles(plain)
    in_order, agrees = (found.in_order, found.stereo_agrees) if found else (True, True)
    return Encoded(
        identifier=record.identifier,
        smiles=smiles,
        scaffold=_scaffold(plain) if x[:, 8].any() else "",
        x=x,
        bond=bond,
        bond_attr=bond_attr,
        in_ring=in_ring,
        position=position,
        placed=found is not None,
        targets=np.asarray(record.targets, dtype=np.float64),
        facts=("." in smiles, not in_order, not agrees),
    )


def _usable(record: Record, config: LibraryConfig, n_targets: int) -> Chem.Mol:
    """The molecule with hydrogens only where they cannot be implicit."""
    if record.reason:
        raise Rejected(record.reason)
    if record.mol is None:
        raise Rejected(UNREADABLE)
    if not record.mol.GetNumAtoms():
        raise Rejected(NO_ATOMS)
    if np.shape(record.targets) != (n_targets,):
        raise Rejected(WRONG_TARGETS)
    if np.isinf(record.targets).any():
        raise Rejected(INFINITE_TARGETS)
    if config.need_positions and record.position is None:
        raise Rejected(NO_POSITIONS)
    if record.mol.GetNumHeavyAtoms() == record.mol.GetNumAtoms():
        return record.mol
    with rdBase.BlockLogs():
        return Chem.RemoveHs(record.mol)


def _place(record: Record, graph: Graph2D) -> Alignment:
    element, position = record.element, record.position
    if element is None or position is None or position.shape != (len(element), 3):
        raise Rejected(MISMATCH)
    if not np.isfinite(position).all():
        raise Rejected(NOT_FINITE)
    if ((element == 0) | (element > LAST_ELEMENT)).any():
        raise Rejected(UNKNOWN_ELEMENT)
    if len(KDTree(position).query_pairs(SAME_PLACE_ANGSTROM, output_type="ndarray")):
        raise Rejected(SAME_PLACE)
    found = align(graph, element, position)
    if found is None:
        raise Rejected(MISMATCH)
    return found


def _scaffold(mol: Chem.Mol) -> str:
    """Bemis-Murcko scaffold; the SMILES of rings and the chains between them."""
    text: str = MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False)
    return text


# --------------------------------------------------------------------------- many records


@dataclass(frozen=True)
class Shard:
    """Arrays and texts of successive records.

    Attributes
    ----------
    arrays : dict
        Those of `medrec.library.arrays.ARRAYS`, and ``targets`` (M, T).
    counts : int array (M, 5)
        Atoms, bonds, angles, torsions and pairs of every molecule.
    texts : dict
        ``identifier``, ``smiles``, ``scaffold`` of every molecule; ``rejected``, a list of
        identifier, SMILES and reason; ``facts``, counts by name.
    """

    arrays: dict[str, npt.NDArray[Any]]
    counts: npt.NDArray[np.int64]
    texts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write one file atomically."""
        texts = np.frombuffer(json.dumps(self.texts).encode("ascii"), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, counts=self.counts, texts=texts, **self.arrays)  # type: ignore[arg-type]
        write_bytes_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Shard:
        """Read a file of `save`.

        Raises
        ------
        StoreError
            If it is damaged or missing.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in (*ARRAYS, "targets")}
                return cls(arrays, data["counts"], json.loads(data["texts"].tobytes()))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise StoreError(
                f"part {path} of an unfinished molecule library cannot be read ({error}); "
                "delete it and import again"
            ) from error


def encode_records(records: Iterable[Record], config: LibraryConfig, n_targets: int) -> Shard:
    """Encode records; those that cannot be used are listed with the reason."""
    taken: list[Encoded] = []
    rejected: list[tuple[str, str, str]] = []
    for record in records:
        try:
            taken.append(encode_record(record, config, n_targets))
        except Rejected as error:
            rejected.append((record.identifier, record.smiles, str(error)))
    facts = np.array([item.facts for item in taken], dtype=bool).reshape(-1, len(FACTS))
    texts = {
        "identifier": [item.identifier for item in taken],
        "smiles": [item.smiles for item in taken],
        "scaffold": [item.scaffold for item in taken],
        "rejected": rejected,
        "facts": dict(zip(FACTS, facts.sum(axis=0).tolist(), strict=True)),
    }
    pieces = [_with_topology(piece) for piece in _pieces(taken)]
    arrays = {
        name: np.concatenate([np.zeros((0, *shape), dtype), *(p[0][name] for p in pieces)])
        for name, (_, dtype, shape) in ARRAYS.items()
    }
    targets = [item.targets for item in taken]
    arrays["targets"] = np.array(targets, dtype=np.float64).reshape(len(taken), n_targets)
    empty = np.zeros((0, 5), dtype=np.int64)
    return Shard(arrays, np.concatenate([empty, *(p[1] for p in pieces)]), texts)


def _pieces(items: list[Encoded]) -> list[list[Encoded]]:
    """Successive molecules with a bounded number of pairs, at least one each."""
    pieces: list[list[Encoded]] = []
    n_pairs = 0
    for item in items:
        size = len(item.x) ** 2
        if not pieces or n_pairs + size > _PAIRS_AT_ONCE:
            pieces.append([])
            n_pairs = 0
        pieces[-1].append(item)
        n_pairs += size
    return pieces


def _with_topology(
    items: list[Encoded],
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int64]]:
    """Arrays of some molecules, and their counts (m, 5)."""
    n_atoms = np.array([len(item.x) for item in items])
    n_bonds = np.array([len(item.bond) for item in items])
    x = np.concatenate([item.x for item in items])
    bond = np.concatenate([item.bond for item in items])
    bond_attr = np.concatenate([item.bond_attr for item in items])
    in_ring = np.concatenate([item.in_ring for item in items])
    first = np.cumsum(n_atoms) - n_atoms
    graphs = FlatGraphs(n_atoms, bond + np.repeat(first, n_bonds)[:, None])
    paths = shortest_paths(graphs)
    centrality = np.stack([eigenvector_centrality(graphs, paths.length), paths.betweenness], axis=1)
    angle = bond_angles(graphs)
    turning = in_ring | rotatable_bonds(graphs, x[:, 0], bond_attr[:, 0], in_ring)
    torsion = proper_torsions(graphs, turning)
    arrays = {
        "x": x,
        "position": np.concatenate([item.position for item in items]),
        "centrality": centrality.astype(np.float32),
        "bond": bond.astype(np.uint16),
        "bond_attr": bond_attr,
        "angle": graphs.local(angle).astype(np.uint16),
        "torsion": graphs.local(torsion).astype(np.uint16),
        "spd": path_categories(paths.length),
        "placed": np.array([item.placed for item in items]),
    }
    n_angles, n_torsions = (
        np.bincount(graphs.molecule[chains[:, 0]], minlength=len(items))
        for chains in (angle, torsion)
    )
    return arrays, np.stack([n_atoms, n_bonds, n_angles, n_torsions, n_atoms**2], axis=1)
