"""A small valid molecule library, written plainly: RDKit, networkx and one loop per molecule.

Independent of `medrec.library.build`, so that it can serve as a reference. Tests reach it through
the fixture ``write_library`` of ``conftest.py``; a child process puts this folder on its path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from rdkit import Chem
from rdkit.Chem import AllChem, Descriptors, rdmolops
from rdkit.Chem.Scaffolds import MurckoScaffold
from torch_geometric.utils.smiles import from_rdmol

from medrec.library.arrays import ARRAYS, FORMAT, RAGGED, UNREACHABLE, MoleculeLibrary

SMILES = (
    "CCO", "CC(=O)O", "c1ccccc1", "NC(N)=O", "CCN", "OCC(O)CO", "C", "CC(C)C#N", "C1CC1CO",
    "O=C1CCCN1", "c1ccoc1C=O", "CC(=O)Nc1ccc(O)cc1", "[Na+].[Cl-]", "F/C=C/F", "C[C@H](N)C(=O)O",
    "CCCCCCCC",
)  # fmt: skip


def write_library(
    folder: Path,
    smiles: Sequence[str] = SMILES,
    *,
    hydrogens: bool = False,
    conformers: bool = True,
    targets: Any = None,
    target_info: Sequence[tuple[str, str, str]] = (("mass", "Da", "regression"),),
) -> MoleculeLibrary:
    """Write and open a library.

    Parameters
    ----------
    conformers : bool
        One ETKDG conformer each (seed 42); False leaves all molecules without positions.
    targets : array-like (M, T), optional
        By default the molar mass; ``target_info`` names columns, units and kinds.
    """
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    parts = [_one(mol, hydrogens, conformers) for mol in mols]
    values = [[Descriptors.MolWt(mol)] for mol in mols] if targets is None else targets
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, dtype, shape) in ARRAYS.items():
        rows = [np.asarray(part[name], dtype=dtype).reshape(-1, *shape) for part in parts]
        np.save(folder / f"{name}.npy", np.concatenate([np.zeros((0, *shape), dtype), *rows]))
    sizes = [[part["sizes"][what] for what in RAGGED] for part in parts]
    starts = np.zeros((len(parts) + 1, len(RAGGED)), dtype=np.int64)
    starts[1:] = np.cumsum(np.array(sizes).reshape(-1, len(RAGGED)), axis=0)
    np.save(folder / "starts.npy", starts)
    np.save(
        folder / "targets.npy",
        np.asarray(values, dtype=np.float64).reshape(len(parts), len(target_info)),
    )
    table = {
        "identifier": [f"m{i}" for i in range(len(parts))],
        "smiles": [Chem.MolToSmiles(mol) for mol in mols],
        "scaffold": [MurckoScaffold.MurckoScaffoldSmiles(mol=mol) for mol in mols],
        "n_atoms": np.diff(starts[:, 0]),
        "n_bonds": np.diff(starts[:, 1]),
    }
    pd.DataFrame(table).to_parquet(folder / "molecules.parquet")
    rejected = {"identifier": [], "smiles": [], "reason": []}
    pd.DataFrame(rejected, dtype=str).to_parquet(folder / "rejected.parquet")
    manifest = {
        "name": folder.name,
        "format": FORMAT,
        "hydrogens": hydrogens,
        "digest": "0" * 64,
        "targets": [dict(zip(("name", "unit", "kind"), item, strict=True)) for item in target_info],
        "counts": {"molecules": len(parts), "atoms": int(starts[-1, 0])},
        "rejected": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return MoleculeLibrary.load(folder)


def _one(mol: Chem.Mol, hydrogens: bool, conformers: bool) -> dict[str, Any]:
    """Arrays of one molecule and how many rows of each kind it has."""
    full = Chem.AddHs(mol)
    placed = conformers and AllChem.EmbedMolecule(full, randomSeed=42) == 0
    if hydrogens:
        mol = full
    n = mol.GetNumAtoms()
    # AddHs appends hydrogens, so heavy atoms are the first ones in both
    position = full.GetConformer().GetPositions()[:n] if placed else np.zeros((n, 3))
    bonds = np.array([[b.GetBeginAtomIdx(), b.GetEndAtomIdx()] for b in mol.GetBonds()])
    bonds = bonds.reshape(-1, 2)
    data = from_rdmol(mol)
    features = {
        (int(a), int(b)): row
        for (a, b), row in zip(data.edge_index.T.tolist(), data.edge_attr.tolist(), strict=True)
    }
    distance = rdmolops.GetDistanceMatrix(mol)
    spd = np.where(distance >= UNREACHABLE, UNREACHABLE, distance)
    angles = _angles(mol)
    torsions = _torsions(mol)
    return {
        "x": data.x.numpy(),
        "position": position,
        "centrality": _centrality(n, bonds),
        "bond": bonds,
        "bond_attr": [features[a, b] for a, b in bonds.tolist()],
        "angle": angles,
        "torsion": torsions,
        "spd": spd,
        "placed": [placed],
        "sizes": {
            "atom": n,
            "bond": len(bonds),
            "angle": len(angles),
            "torsion": len(torsions),
            "pair": n * n,
            "molecule": 1,
        },
    }


def _centrality(n: int, bonds: Any) -> Any:
    """Eigenvector centrality of the largest part, and betweenness, (n, 2)."""
    graph = nx.empty_graph(n)
    graph.add_edges_from(bonds.tolist())
    largest = max(nx.connected_components(graph), key=len)
    part = sorted(largest)
    _, vectors = np.linalg.eigh(nx.to_numpy_array(graph, nodelist=part))
    eigenvector = np.zeros(n)
    eigenvector[part] = np.abs(vectors[:, -1])
    between = nx.betweenness_centrality(graph)
    return np.stack([eigenvector, [between[i] for i in range(n)]], axis=1)


def _angles(mol: Chem.Mol) -> list[tuple[int, int, int]]:
    found = []
    for atom in mol.GetAtoms():
        near = sorted(other.GetIdx() for other in atom.GetNeighbors())
        found += [(atom.GetIdx(), a, b) for a, b in combinations(near, 2)]
    return found


def _torsions(mol: Chem.Mol) -> list[tuple[int, int, int, int]]:
    """Around single acyclic bonds and ring bonds, each once."""
    found = []
    for bond in mol.GetBonds():
        if not bond.IsInRing() and bond.GetBondTypeAsDouble() != 1.0:
            continue
        j, k = bond.GetBeginAtom(), bond.GetEndAtom()
        found += [
            (i.GetIdx(), j.GetIdx(), k.GetIdx(), l.GetIdx())
            for i in j.GetNeighbors()
            for l in k.GetNeighbors()  # noqa: E741
            if len({i.GetIdx(), j.GetIdx(), k.GetIdx(), l.GetIdx()}) == 4
        ]
    return found
