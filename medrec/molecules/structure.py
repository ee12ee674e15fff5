"""Molecules as tensors: 2D graphs, BRICS fragments, the class-fragment mask.

Letters: K unique molecules, S fragments, D drug classes, N nodes, E directed edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rdkit import Chem
from rdkit.Chem import BRICS, rdFingerprintGenerator
from torch_geometric.utils.smiles import e_map, from_rdmol, x_map

from medrec.molecules.drugs import DrugMolecules
from medrec.molecules.features import FeatureTable
from medrec.molecules.geometries import Geometries, build_geometries
from medrec.molecules.repetitions import Repetitions, find_repetitions

ATOM_CARDINALITIES: tuple[int, ...] = tuple(len(values) for values in x_map.values())
BOND_CARDINALITIES: tuple[int, ...] = tuple(len(values) for values in e_map.values())
FINGERPRINT_BITS = 2048
CUTOFF_ANGSTROM = 4.5


@dataclass(frozen=True)
class MoleculeGraphs:
    """A set of 2D graphs as one disconnected graph.

    Attributes
    ----------
    x : LongTensor (N, 9)
        Categories of each heavy atom: atomic number (0 is the dummy atom of a fragment), chirality,
        degree, charge, hydrogens, radical electrons, hybridisation, aromatic, in ring.
    edge_index : LongTensor (2, E)
        Source and target of every bond, both directions.
    edge_attr : LongTensor (E, 3)
        Bond type, stereo, conjugated.
    batch : LongTensor (N,)
        Graph of each node.
    repetitions : Repetitions
        Equal atoms, bonds and surroundings.
    """

    x: torch.Tensor
    edge_index: torch.Tensor
    edge_attr: torch.Tensor
    batch: torch.Tensor
    n_graphs: int
    repetitions: Repetitions

    def to(self, device: torch.device | str) -> MoleculeGraphs:
        """Copy to a device."""
        return MoleculeGraphs(
            self.x.to(device),
            self.edge_index.to(device),
            self.edge_attr.to(device),
            self.batch.to(device),
            self.n_graphs,
            self.repetitions.to(device),
        )


def build_graphs(smiles: Sequence[str]) -> MoleculeGraphs:
    """2D graphs of parsable SMILES, in order."""
    xs, edges, attributes, batch = [], [], [], []
    offset = 0
    for number, text in enumerate(smiles):
        data = from_rdmol(Chem.MolFromSmiles(text))
        xs.append(data.x)
        edges.append(data.edge_index + offset)
        attributes.append(data.edge_attr.reshape(-1, len(BOND_CARDINALITIES)))
        batch.append(torch.full((data.x.shape[0],), number))
        offset += data.x.shape[0]
    empty = torch.zeros(0, dtype=torch.long)
    x = torch.cat([empty.reshape(0, len(ATOM_CARDINALITIES)), *xs])
    edge_index = torch.cat([empty.reshape(2, 0), *edges], dim=1)
    edge_attr = torch.cat([empty.reshape(0, len(BOND_CARDINALITIES)), *attributes])
    graph = torch.cat([empty, *batch])
    repetitions = find_repetitions(x, edge_index, edge_attr, graph, len(xs))
    return MoleculeGraphs(x, edge_index, edge_attr, graph, len(xs), repetitions)


def brics_fragments(smiles: str) -> list[str]:
    """BRICS fragments of a molecule in alphabetical order; the molecule itself if none.

    Attachment points stay as dummy atoms, so that a fragment says where it was cut.
    """
    mol = Chem.MolFromSmiles(smiles)
    found = BRICS.BRICSDecompose(mol) if mol.GetNumBonds() else set()
    return sorted(found) or [smiles]


@dataclass(frozen=True)
class MoleculeTables:
    """Everything a recommender may know about the molecules of its drug classes.

    Attributes
    ----------
    molecules : MoleculeGraphs
        K unique molecules.
    fragments : MoleculeGraphs
        S unique BRICS fragments in alphabetical order.
    projection : FloatTensor (D, K)
        Mean over the molecules of a class; a row sums to 1, or to 0 without molecules.
    fragment_mask : BoolTensor (D, S)
        Which class contains which fragment.
    elf : FloatTensor (K, F), elf_mask : BoolTensor (K,)
        Standardised ELF features and where they exist; F may be 0.
    fingerprints : FloatTensor (K, 2048)
        ECFP4 bits (Morgan, radius 2).
    geometries : Geometries or None
        Conformers of those molecules that have one, in order.
    with_geometry : BoolTensor (K,)
        Which molecules these are.
    """

    molecules: MoleculeGraphs
    fragments: MoleculeGraphs
    projection: torch.Tensor
    fragment_mask: torch.Tensor
    elf: torch.Tensor
    elf_mask: torch.Tensor
    fragment_smiles: tuple[str, ...]
    fingerprints: torch.Tensor
    geometries: Geometries | None
    with_geometry: torch.Tensor

    def to(self, device: torch.device | str) -> MoleculeTables:
        """Copy to a device."""
        return MoleculeTables(
            self.molecules.to(device),
            self.fragments.to(device),
            self.projection.to(device),
            self.fragment_mask.to(device),
            self.elf.to(device),
            self.elf_mask.to(device),
            self.fragment_smiles,
            self.fingerprints.to(device),
            self.geometries.to(device) if self.geometries is not None else None,
            self.with_geometry.to(device),
        )


def fingerprint_bits(smiles: Sequence[str]) -> torch.Tensor:
    """ECFP4 bits of parsable SMILES, shape (n, 2048)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=FINGERPRINT_BITS)
    rows = [generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in smiles]
    return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(-1, FINGERPRINT_BITS))


def conformer_geometries(
    drugs: DrugMolecules, features: FeatureTable | None
) -> tuple[Geometries | None, torch.Tensor]:
    """Geometries of the molecules that have a conformer, and which these are (K,).

    A conformer counts if its heavy atoms are those of the SMILES, in the same order, so that 2D and
    3D encoders speak of the same atoms. Standardised species are written so; a SMILES with hydrogen
    as an atom of its own (an isotope, molecular hydrogen) is not.
    """
    if features is None or not len(drugs):
        return None, torch.zeros(len(drugs), dtype=torch.bool)
    found = [
        conformer if conformer is not None and _same_atoms(smiles, conformer[0]) else None
        for smiles, row in zip(drugs.smiles, features.rows(drugs.species), strict=True)
        for conformer in [features.conformer(int(row))]
    ]
    present = [item for item in found if item is not None]
    mask = torch.tensor([item is not None for item in found], dtype=torch.bool)
    return (build_geometries(present, CUTOFF_ANGSTROM) if present else None), mask


def _same_atoms(smiles: str, atomic_numbers: npt.ArrayLike) -> bool:
    numbers = np.asarray(atomic_numbers)
    flat = [atom.GetAtomicNum() for atom in Chem.MolFromSmiles(smiles).GetAtoms()]
    return np.array_equal(flat, numbers[numbers > 1])


def build_molecule_tables(
    drugs: DrugMolecules, features: FeatureTable | None, sets: Sequence[str] | None = None
) -> MoleculeTables:
    """Build graphs, fragments and masks of a drug vocabulary.

    Parameters
    ----------
    features : FeatureTable or None
        Where ELF features come from; None leaves them empty and masked.
    sets : sequence of str, optional
        Feature sets of the table to use; all if not given.
    """
    of_molecule = [brics_fragments(smiles) for smiles in drugs.smiles]
    fragments = sorted({item for items in of_molecule for item in items})
    column = {item: i for i, item in enumerate(fragments)}
    contains = np.zeros((len(drugs), len(fragments)), dtype=bool)
    for row, items in enumerate(of_molecule):
        contains[row, [column[item] for item in items]] = True
    mask = (drugs.projection > 0).astype(np.int64) @ contains.astype(np.int64) > 0
    if features is None:
        elf, elf_mask = np.zeros((len(drugs), 0), np.float32), np.zeros(len(drugs), bool)
    else:
        elf, elf_mask = features.align(drugs.species, sets)
    return MoleculeTables(
        build_graphs(drugs.smiles),
        build_graphs(fragments),
        torch.from_numpy(drugs.projection),
        torch.from_numpy(mask),
        torch.from_numpy(elf),
        torch.from_numpy(elf_mask),
        tuple(fragments),
        fingerprint_bits(drugs.smiles),
        *conformer_geometries(drugs, features),
    )
