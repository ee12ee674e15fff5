"""MolInteract with PyTorch Geometric, as one would write it from the paper: a peer for speed.

One `Data` object per molecule with its labels, `DataLoader`, `GINEConv`, SchNet's interaction block
over edge lists, six linear heads, Adam, float32. The network is that of
`medrec.molecules.encoders_interact` (`copy_weights` shows it), the tasks are those of
`medrec.pretrain`: the same terms over the same numbers of pairs, angles and torsions. Molecules
need 3D coordinates.

The paper's near pairs come from `radius_graph`; PyTorch Geometric has it only with pyg-lib, so they
are found with SciPy, molecule by molecule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data, Dataset
from torch_geometric.nn import GINEConv
from torch_geometric.nn.models.schnet import CFConv, GaussianSmearing, InteractionBlock

from medrec.library.arrays import MoleculeLibrary
from medrec.molecules.structure import ATOM_CARDINALITIES, BOND_CARDINALITIES

CUTOFF_ANGSTROM, N_GAUSSIANS, N_FILTERS = 10.0, 51, 128
PAIRS_PER_ATOM, MAX_PAIRS = 2, 256
N_BINS, N_PATH_CLASSES = 20, 20
SINGLE_BOND, TRIPLE_BOND = 1, 3
TIE, MIN_SINE = 1e-5, 0.02
"""Centralities this near count as equal; sines of bond angles this small leave no dihedral."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# --------------------------------------------------------------------------- molecules and labels


def graphs_of(library: MoleculeLibrary, rows: Ints) -> list[Data]:
    """Molecules of a library as PyTorch Geometric stores them: categories, bonds, positions."""
    arrays = library.arrays
    graphs = []
    for row in rows:
        atoms = slice(*library.starts[row : row + 2, 0])
        bonds = slice(*library.starts[row : row + 2, 1])
        one_way = arrays["bond"][bonds].astype(np.int64).T
        types = arrays["bond_attr"][bonds].astype(np.int64)
        graphs.append(
            Data(
                x=torch.from_numpy(arrays["x"][atoms].astype(np.int64)),
                edge_index=torch.from_numpy(np.concatenate([one_way, one_way[::-1]], axis=1)),
                edge_attr=torch.from_numpy(np.concatenate([types, types])),
                pos=torch.from_numpy(np.array(arrays["position"][atoms])),
            )
        )
    return graphs


class LabelledMolecules(Dataset):
    """Molecules with near pairs and the labels of the six tasks, made when one is asked for.

    Parameters
    ----------
    keep : bool
        Make all of them once and keep them in memory; the random pairs are then always the same.
    """

    def __init__(self, graphs: Sequence[Data], seed: int = 0, keep: bool = False) -> None:
        super().__init__()
        self.graphs, self.rng = graphs, np.random.default_rng(seed)
        self.kept = [self.label(graph) for graph in graphs] if keep else None

    def len(self) -> int:
        """Number of molecules."""
        return len(self.graphs)

    def get(self, idx: int) -> Data:
        """One molecule with its labels."""
        return self.kept[idx] if self.kept is not None else self.label(self.graphs[idx])

    def label(self, graph: Data) -> Data:
        """Add what the tasks need; keys with ``index`` are shifted when molecules are joined."""
        n, both_ways = len(graph.x), graph.edge_index.numpy()
        bonds = both_ways[:, : both_ways.shape[1] // 2]
        bond_type = graph.edge_attr[: bonds.shape[1], 0]
        position = graph.pos.numpy().astype(np.float64)
        gap = cdist(position, position)
        network = nx.Graph()
        network.add_nodes_from(range(n))
        network.add_edges_from(bonds.T.tolist())
        random = random_pairs(n, self.rng)
        adjacency = np.zeros((n, n))
        adjacency[tuple(both_ways)] = 1.0
        steps = shortest_path(adjacency, unweighted=True)[tuple(random)]
        reached = np.isfinite(steps)
        importance = eigenvector_centrality(network)
        ahead = importance[random[0]] - importance[random[1]]
        decided = np.abs(ahead) > TIE
        near = np.stack(np.nonzero((gap < CUTOFF_ANGSTROM) & ~np.eye(n, dtype=bool)))
        pairs = np.concatenate([random, bonds], axis=1)
        triples = neighbour_pairs(network, self.rng)
        chains = torsions(network, bonds, bond_type, graph.x[:, 0].tolist())
        quadruples, dihedral = defined_torsions(position, chains)
        return Data(
            **graph.to_dict(),
            near_index=torch.from_numpy(near),
            pair_index=torch.from_numpy(pairs),
            pair_distance=as_float(gap[tuple(pairs)]),
            angle_index=torch.from_numpy(triples),
            angle=as_float(angles(position, triples)),
            torsion_index=torch.from_numpy(quadruples),
            torsion_bin=torch.from_numpy(bins(dihedral)),
            bond_index=torch.from_numpy(bonds),
            bond_type=bond_type,
            path_index=torch.from_numpy(random[:, reached]),
            path_class=torch.from_numpy(
                np.minimum(steps[reached], N_PATH_CLASSES).astype(np.int64) - 1
            ),
            rank_index=torch.from_numpy(random[:, decided]),
            rank=as_float(ahead[decided] > 0),
        )


def as_float(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def random_pairs(n: int, rng: np.random.Generator) -> Ints:
    """Pairs (2, P) of different atoms; an atom alone has none."""
    if n < 2:
        return np.zeros((2, 0), dtype=np.int64)
    n_pairs = min(PAIRS_PER_ATOM * n, MAX_PAIRS)
    first = rng.integers(n, size=n_pairs)
    return np.stack([first, (first + rng.integers(1, n, size=n_pairs)) % n])


def neighbour_pairs(network: nx.Graph, rng: np.random.Generator) -> Ints:
    """Anchor and two of its neighbours in random order, (3, A)."""
    found = [
        (anchor, *pair) for anchor in network for pair in combinations(sorted(network[anchor]), 2)
    ]
    triples = np.array(found, dtype=np.int64).reshape(-1, 3).T
    swap = rng.random(triples.shape[1]) < 0.5
    triples[1:, swap] = triples[:0:-1, swap]
    return triples


def torsions(network: nx.Graph, bonds: Ints, bond_type: Tensor, element: list[int]) -> Ints:
    """Four atoms in a row about a bond in a ring or a rotatable one, (4, R).

    Rotatable: single, outside rings, between atoms with another heavy neighbour and no triple bond.
    """
    kinds = dict(zip(map(tuple, bonds.T.tolist()), bond_type.tolist(), strict=True))
    outside_rings = {frozenset(bond) for bond in nx.bridges(network)}
    heavy = [sum(element[other] > 1 for other in network[atom]) for atom in network]
    linear = {atom for bond, kind in kinds.items() if kind == TRIPLE_BOND for atom in bond}
    found = []
    for (j, k), kind in kinds.items():
        rotatable = kind == SINGLE_BOND and min(heavy[j], heavy[k]) > 1 and not linear & {j, k}
        if rotatable or frozenset((j, k)) not in outside_rings:
            found += [
                (i, j, k, m) for i in network[j] for m in network[k] if len({i, j, k, m}) == 4
            ]
    return np.array(found, dtype=np.int64).reshape(-1, 4).T


def angles(position: Floats, triples: Ints) -> Floats:
    """Angle at the first of three atoms, radians."""
    anchor, source, destination = position[triples]
    one, other = source - anchor, destination - anchor
    return np.arctan2(
        np.linalg.norm(np.cross(one, other), axis=1), np.einsum("ij,ij->i", one, other)
    )


def defined_torsions(position: Floats, quadruples: Ints) -> tuple[Ints, Floats]:
    """Torsions without three atoms in line, and their signed angles in radians."""
    i, j, k, m = position[quadruples]
    before, axis, after = j - i, k - j, m - k
    left, right = np.cross(before, axis), np.cross(axis, after)
    a, b, c, p, q = (np.linalg.norm(v, axis=1) for v in (before, axis, after, left, right))
    defined = (p > MIN_SINE * a * b) & (q > MIN_SINE * b * c)
    y, x = b * np.einsum("ij,ij->i", before, right), np.einsum("ij,ij->i", left, right)
    return quadruples[:, defined], np.arctan2(y, x)[defined]


def bins(angle: Floats) -> Ints:
    """Equal bins of (-pi, pi]."""
    number = np.ceil((angle + math.pi) / (2 * math.pi / N_BINS)).astype(np.int64) - 1
    return number % N_BINS


def eigenvector_centrality(network: nx.Graph) -> Floats:
    """In the largest connected part; 0 elsewhere."""
    result = np.zeros(len(network))
    part = network.subgraph(max(nx.connected_components(network), key=len))
    found = nx.eigenvector_centrality(part, max_iter=10_000, tol=1e-8)
    result[list(found)] = list(found.values())
    return result


# --------------------------------------------------------------------------- network


def glorot_embedding(n: int, d: int) -> nn.Embedding:
    table = nn.Embedding(n, d)
    nn.init.xavier_uniform_(table.weight)
    return table


class Categories(nn.Module):
    """Sum of one embedding per categorical column."""

    def __init__(self, cardinalities: Sequence[int], d: int) -> None:
        super().__init__()
        self.columns = nn.ModuleList(glorot_embedding(n, d) for n in cardinalities)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (n, d) of categories (n, columns)."""
        return sum(column(x[:, i]) for i, column in enumerate(self.columns))


class Convolution(CFConv):
    """SchNet's continuous-filter convolution without the cosine envelope."""

    def forward(self, x: Tensor, edge_index: Tensor, _: Tensor, edge_attr: Tensor) -> Tensor:
        """Messages to all atoms (N, d) from smeared distances (P, 51)."""
        return self.lin2(self.propagate(edge_index, x=self.lin1(x), W=self.nn(edge_attr)))


class Layer(nn.Module):
    """GINE on bonds, SchNet on near pairs, and the MLP that joins them."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.bonds = Categories(BOND_CARDINALITIES, d)
        update = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))
        self.gine = GINEConv(update, train_eps=True)
        self.schnet = InteractionBlock(d, N_GAUSSIANS, N_FILTERS, CUTOFF_ANGSTROM)
        self.schnet.conv = Convolution(d, d, N_FILTERS, self.schnet.mlp, CUTOFF_ANGSTROM)
        self.mix = nn.Sequential(nn.Linear(2 * d, 2 * d), nn.SiLU(), nn.Linear(2 * d, 2 * d))

    def forward(
        self, z2: Tensor, z3: Tensor, data: Data, length: Tensor, gaussians: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New states of both towers, with the residual round the whole layer."""
        h2 = self.gine(z2, data.edge_index, self.bonds(data.edge_attr))
        h3 = self.schnet(z3, data.near_index, length, gaussians)
        told2, told3 = self.mix(torch.cat([h2, h3], dim=1)).chunk(2, dim=1)
        return z2 + told2, z3 + told3


class MolInteract(nn.Module):
    """States of all atoms from both towers, (N, d) each."""

    def __init__(self, d: int = 300, n_layers: int = 8) -> None:
        super().__init__()
        self.atoms = Categories(ATOM_CARDINALITIES, d)
        self.elements = glorot_embedding(ATOM_CARDINALITIES[0], d)
        self.smear = GaussianSmearing(0.0, CUTOFF_ANGSTROM, N_GAUSSIANS)
        self.layers = nn.ModuleList(Layer(d) for _ in range(n_layers))

    def forward(self, data: Data) -> tuple[Tensor, Tensor]:
        """2D and 3D states of a batch's atoms."""
        source, target = data.near_index
        length = (data.pos[source] - data.pos[target]).norm(dim=1)
        gaussians = self.smear(length)
        z2, z3 = self.atoms(data.x), self.elements(data.x[:, 0])
        for layer in self.layers:
            z2, z3 = layer(z2, z3, data, length, gaussians)
        return z2, z3


class PreTraining(nn.Module):
    """Encoder and six linear heads; the loss is L_All, the sum of six means."""

    def __init__(self, d: int = 300, n_layers: int = 8) -> None:
        super().__init__()
        self.encoder = MolInteract(d, n_layers)
        self.distance = nn.Linear(d, 1, bias=False)
        self.angle = nn.Linear(3 * d, 1, bias=False)
        self.dihedral = nn.Linear(4 * d, N_BINS, bias=False)
        self.edge = nn.Linear(d, BOND_CARDINALITIES[0], bias=False)
        self.path = nn.Linear(d, N_PATH_CLASSES, bias=False)
        self.centrality = nn.Linear(d, 1, bias=False)

    def forward(self, data: Data) -> Tensor:
        """Loss of a batch."""
        return torch.stack(list(self.losses(data, *self.encoder(data)))).sum()

    def losses(self, data: Data, z2: Tensor, z3: Tensor) -> Iterator[Tensor]:
        """Distance, angle, dihedral, bond type, path, centrality; 0 without a label."""

        def total(z: Tensor, index: Tensor) -> Tensor:
            return z[index[0]] + z[index[1]]

        def joined(z: Tensor, index: Tensor) -> Tensor:
            return torch.cat([z[atom] for atom in index], dim=1)

        distance = self.distance(total(z2, data.pair_index)).squeeze(1)
        yield F.mse_loss(distance, data.pair_distance, reduction="sum") / at_least_one(distance)
        angle = self.angle(joined(z2, data.angle_index)).squeeze(1)
        yield F.mse_loss(angle, data.angle, reduction="sum") / at_least_one(angle)
        for logits, label in (
            (self.dihedral(joined(z2, data.torsion_index)), data.torsion_bin),
            (self.edge(total(z3, data.bond_index)), data.bond_type),
            (self.path(total(z3, data.path_index)), data.path_class),
        ):
            yield F.cross_entropy(logits, label, reduction="sum") / at_least_one(logits)
        first, second = data.rank_index
        ahead = self.centrality(z3[first] - z3[second]).squeeze(1)
        yield (
            F.binary_cross_entropy_with_logits(ahead, data.rank, reduction="sum")
            / at_least_one(ahead)
        )


def at_least_one(items: Tensor) -> int:
    return max(len(items), 1)


def copy_weights(ours: dict[str, Tensor], peer: MolInteract) -> None:
    """Give the peer the weights of an `InteractEncoder`; every one is used, and strictly."""
    taken = {
        **split_table("atoms", ours["atoms.table.weight"], ATOM_CARDINALITIES),
        "elements.weight": ours["elements.table.weight"],
        "smear.offset": peer.smear.offset,
    }
    for number in range(len(peer.layers)):
        source = f"layers.{number}."
        taken |= split_table(
            f"{source}bonds", ours[f"{source}flat.bonds.table.weight"], BOND_CARDINALITIES
        )
        taken |= {
            f"{source}{theirs}{rest}": value
            for name, theirs in NAMES.items()
            for key, value in ours.items()
            if key.startswith(source + name)
            for rest in [key.removeprefix(source + name)]
        }
        taken |= {  # the block and its convolution share the filter network
            key.replace("schnet.mlp", "schnet.conv.nn"): value
            for key, value in taken.items()
            if key.startswith(f"{source}schnet.mlp")
        }
    peer.load_state_dict(taken)


NAMES = {
    "flat.eps": "gine.eps",
    "flat.mlp": "gine.nn",
    "spatial.enter": "schnet.conv.lin1",
    "spatial.filters": "schnet.mlp",
    "spatial.leave.0": "schnet.conv.lin2",
    "spatial.leave.2": "schnet.lin",
    "mix": "mix",
}


def split_table(name: str, table: Tensor, cardinalities: Sequence[int]) -> dict[str, Tensor]:
    parts = table.split(list(cardinalities))
    return {f"{name}.columns.{i}.weight": part for i, part in enumerate(parts)}


# --------------------------------------------------------------------------- training


def train_pass(
    model: nn.Module,
    loader: Iterable[Data],
    optimiser: torch.optim.Optimizer,
    device: str = "cpu",
    bfloat16: bool = False,
) -> float:
    """Train on every batch once; returns the mean loss."""
    losses = []
    for data in loader:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = model(data.to(device, non_blocking=True))
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())
