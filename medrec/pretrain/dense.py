"""Both towers of `medrec.molecules.encoders_interact` over padded batches.

SchNet's sum over near atoms (Schuett et al., 2017, Eq. 2) has one filter per pair of atoms. Here

* filters are computed once per distinct distance: distances are multiples of 0.001 Angstrom, so a
  batch of any size has 10,000 of them at most;
* the sums over pairs are dense, ``sum_j filter[row_ij] * x_j``, in blocks of molecules that fit
  into a CPU's cache. Rows are symmetric, so the gradient of x is the same sum over the gradient;
* the gradient of the filters adds up pairs in the order of their row, not by scattering.

The matrix products follow autocast. Distances, Gaussians and, on a CPU, sums are float32.

Letters: B molecules, n atoms of the largest, N = B n, E directed bonds, U distinct distances,
F filters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from medrec.config_molecules import Modality, MoleculeEncoderConfig
from medrec.library.batches import MoleculeBatch
from medrec.molecules.encoders_2d import CategoryEmbedding, sum_rows
from medrec.molecules.encoders_interact import (
    CUTOFF_ANGSTROM,
    N_GAUSSIANS,
    RESOLUTION_ANGSTROM,
    GINEBlock,
    SchNetBlock,
)
from medrec.molecules.repetitions import RowSums
from medrec.molecules.structure import BOND_CARDINALITIES
from medrec.pretrain.encoder import AtomStates, MoleculeEncoder
from quantum.base import InputError

N_BONDS = math.prod(BOND_CARDINALITIES)
N_DISTANCES = round(CUTOFF_ANGSTROM / RESOLUTION_ANGSTROM) + 1
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**28}
"""Numbers in one block of a pair sum: of second-level cache on a CPU, of memory on a GPU."""
BLOCK_PAIRS = 2**11


def grouped(groups: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Items in the order of their group, and where each of n groups begins; a GPU need not wait."""
    found, order = torch.sort(groups.int(), stable=True)
    return order, torch.searchsorted(found, torch.arange(n, dtype=torch.int32, device=found.device))


# --------------------------------------------------------------------------- pairs


class PairBlock(NamedTuple):
    """Pairs of successive rows of the filter table.

    Attributes
    ----------
    row : int
        The first of R rows.
    target, source : LongTensor (P,)
        Flat atoms, in the order of their row.
    start : LongTensor (R,)
        Where each row begins.
    """

    row: int
    target: Tensor
    source: Tensor
    start: Tensor


@dataclass(frozen=True)
class NearPairs:
    """Distances of a batch.

    Attributes
    ----------
    row : LongTensor (B, n, n)
        Row of the filter table of each ordered pair, symmetric; 0 for no pair.
    gaussians : FloatTensor (U, 51)
        Distances of rows 1 to U, expanded.
    """

    row: Tensor
    gaussians: Tensor

    @cached_property
    def blocks(self) -> list[PairBlock]:
        """All pairs in the order of their row, in blocks of whole rows."""
        n_rows, n = len(self.gaussians), self.row.shape[1]
        order, start = grouped(self.row.flatten(), n_rows + 1)
        if self.row.device.type != "cpu":
            return [PairBlock(0, order // n, order // (n * n) * n + order % n, start)]
        first_of = start.numpy()
        found, row = [], 1
        while row <= n_rows:
            first = int(first_of[row])
            stop = max(int(np.searchsorted(first_of, first + BLOCK_PAIRS)), row + 1)
            last = int(first_of[stop]) if stop <= n_rows else len(order)
            part = order[first:last]
            target, source = part // n, part // (n * n) * n + part % n
            found.append(PairBlock(row, target, source, start[row:stop] - first))
            row = stop
        return found


def pair_distances(batch: MoleculeBatch) -> Tensor:
    """Distances in Angstrom, float64 (B, n, n); infinite where an atom has no position, or i = j.

    Differences of positions are squared one by one: the form with products of positions loses
    digits far from the origin.
    """
    position = batch.position.double()
    gap = torch.cdist(position, position, compute_mode="donot_use_mm_for_euclid_dist")
    real = batch.mask & batch.placed.unsqueeze(1)
    itself = torch.eye(batch.n_slots, dtype=torch.bool, device=gap.device)
    near = real.unsqueeze(2) & real.unsqueeze(1) & ~itself
    return torch.where(near, gap, math.inf)


def near_pairs(batch: MoleculeBatch) -> NearPairs:
    """Pairs within the cut-off; distances rounded as in `encoders_interact`."""
    gap = pair_distances(batch)
    code = torch.where(gap < CUTOFF_ANGSTROM, (gap / RESOLUTION_ANGSTROM).round() + 1, 0).long()
    if gap.device.type == "cpu":
        used = torch.zeros(N_DISTANCES + 1, dtype=torch.bool)
        used[code.flatten()] = True
        used[0] = False
        step = torch.nonzero(used).flatten() - 1
        row = used.cumsum(0)[code]
    else:  # all distances, so that the CPU need not wait for the GPU's count
        step, row = torch.arange(N_DISTANCES, device=gap.device), code
    distance = (step * RESOLUTION_ANGSTROM).float().unsqueeze(1)
    centres = torch.linspace(0.0, CUTOFF_ANGSTROM, N_GAUSSIANS, device=gap.device)
    width = CUTOFF_ANGSTROM / (N_GAUSSIANS - 1)
    return NearPairs(row, torch.exp(-0.5 * ((distance - centres) / width) ** 2))


def _pair_sum(table: Tensor, x: Tensor, row: Tensor) -> Tensor:
    n, f = x.shape[1:]
    out = torch.empty_like(x)
    size = max(BLOCK_ELEMENTS.get(x.device.type, 2**18) // (n * n * f), 1)
    for first in range(0, len(x), size):
        part = slice(first, first + size)
        products = table.index_select(0, row[part].flatten()).view(-1, n, n, f)
        torch.sum(products.mul_(x[part].unsqueeze(1)), dim=2, out=out[part])
    return out


def _table_gradient(table: Tensor, x: Tensor, g: Tensor, pairs: NearPairs) -> Tensor:
    """Sum of g_i * x_j over the pairs of every row."""
    out = torch.zeros_like(table)
    x, g = x.flatten(0, 1), g.flatten(0, 1)
    for row, target, source, start in pairs.blocks:
        products = g.index_select(0, target).mul_(x.index_select(0, source))
        number = torch.arange(len(products), device=x.device)
        out[row : row + len(start)] = F.embedding_bag(number, products, start, mode="sum")
    return out


class _PairSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, x: Tensor, pairs: NearPairs) -> Tensor:
        ctx.save_for_backward(table, x)
        ctx.pairs = pairs
        return _pair_sum(table, x, pairs.row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        table, x = ctx.saved_tensors
        g = gradients[0].contiguous()
        for_table = for_x = None
        if ctx.needs_input_grad[0]:
            for_table = _table_gradient(table, x, g, ctx.pairs)
        if ctx.needs_input_grad[1]:
            for_x = _pair_sum(table, g, ctx.pairs.row)
        return for_table, for_x, None


def pair_sum(filters: Tensor, x: Tensor, pairs: NearPairs) -> Tensor:
    """Sum over near atoms j of filter_ij * x_j.

    Parameters
    ----------
    filters : Tensor (U, F)
    x : Tensor (B, n, F)

    Returns
    -------
    Tensor (B, n, F)
        float32 on a CPU, whose bfloat16 sums are slower.
    """
    if x.device.type == "cpu":
        filters, x = filters.float(), x.float()
    result: Tensor = _PairSum.apply(F.pad(filters, (0, 0, 1, 0)), x.contiguous(), pairs)
    return result


# --------------------------------------------------------------------------- bonds


@dataclass(frozen=True)
class BondSums:
    """Bonds of a batch.

    Attributes
    ----------
    messages : RowSums
        From the N atoms and, below them, the kinds of bonds, to E sums of one of either.
    arriving : RowSums
        From E messages to N atoms.
    """

    messages: RowSums
    arriving: RowSums


def bond_sums(batch: MoleculeBatch) -> BondSums:
    """Read the bonds of a batch."""
    source, target = batch.edge_index
    n, n_edges = batch.mask.numel(), len(source)
    kind = torch.zeros_like(source)
    for column, cardinality in enumerate(BOND_CARDINALITIES):
        kind = kind * cardinality + batch.edge_attr[:, column]
    rows = torch.stack([source, n + kind], dim=1)
    number = torch.arange(n_edges, device=source.device)
    order, start = grouped(rows.flatten(), n + N_BONDS)
    messages = RowSums(rows.flatten(), 2 * number, order // 2, start)
    return BondSums(messages, RowSums(*grouped(target, n), target, number))


def bond_kinds(bonds: CategoryEmbedding) -> Tensor:
    """Embeddings of all combinations of type, stereo and conjugation (N_BONDS, d)."""
    first, second, third = bonds.table.weight.split(BOND_CARDINALITIES)
    return (first[:, None, None] + second[:, None] + third).flatten(0, 2)


# --------------------------------------------------------------------------- layers


def embed(categories: CategoryEmbedding, x: Tensor) -> Tensor:
    """Embedding of every atom; (B, n, columns) to (B, n, d)."""
    rows = (x + categories.starts).flatten(0, 1)
    weight = categories.table.weight
    return F.embedding_bag(rows, weight, mode="sum").view(*x.shape[:2], weight.shape[1])


def shifted_softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) - ln 2 in float32: of bfloat16 numbers near ln 2 the difference is all error."""
    return F.softplus(x.float()).sub_(math.log(2.0))


def placed_mask(batch: MoleculeBatch) -> Tensor | None:
    """Molecules with positions (B, 1, 1); None if all are known to have them.

    A CPU looks, which saves passes over all states; a GPU would have to be waited for.
    """
    if batch.placed.device.type == "cpu" and bool(batch.placed.all()):
        return None
    return batch.placed[:, None, None]


def where_placed(placed: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """New states for molecules with positions, the old ones for the others."""
    return new if placed is None else torch.where(placed, new, old)


def gine_hidden(block: GINEBlock, z: Tensor, bonds: BondSums) -> Tensor:
    """Messages along bonds and the first half of the MLP, (B, n, d) to (B, n, d)."""
    flat = z.flatten(0, 1)
    messages = torch.relu(sum_rows(torch.cat([flat, bond_kinds(block.bonds)]), bonds.messages))
    gathered = sum_rows(messages, bonds.arriving)
    enter, relu, _ = block.mlp
    hidden: Tensor = relu(enter(torch.addcmul(gathered, flat, 1.0 + block.eps).view_as(z)))
    return hidden


def schnet_hidden(block: SchNetBlock, z: Tensor, pairs: NearPairs) -> Tensor:
    """Continuous-filter convolution and the first dense layer, (B, n, d) to (B, n, d)."""
    enter, _, leave = block.filters
    filters = leave(shifted_softplus(enter(pairs.gaussians)))
    return shifted_softplus(block.leave[0](pair_sum(filters, block.enter(z), pairs)))


def run_gine(block: GINEBlock, z: Tensor, bonds: BondSums) -> Tensor:
    """New 2D states, (B, n, d) to (B, n, d)."""
    result: Tensor = block.mlp[2](gine_hidden(block, z, bonds))
    return result


def run_schnet(block: SchNetBlock, z: Tensor, pairs: NearPairs) -> Tensor:
    """New 3D states, (B, n, d) to (B, n, d); of no use without a position."""
    result: Tensor = block.leave[2](schnet_hidden(block, z, pairs))
    return result


def pool(states: Tensor, batch: MoleculeBatch) -> Tensor:
    """Mean over the real atoms (B, n, d) to (B, d), in float32."""
    weight = batch.mask.float()
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.where(batch.mask.unsqueeze(2), states.float(), 0.0).mul(weight.unsqueeze(2)).sum(1)


def jump(states: list[Tensor], kind: str) -> Tensor:
    """Jumping knowledge (Xu et al., 2018): the last, mean or sum of the layers' states."""
    if kind == "last":
        return states[-1]
    total = torch.stack(states).sum(dim=0)
    return total / len(states) if kind == "mean" else total


class PaddedEncoder(MoleculeEncoder):
    """What encoders over padded batches have in common.

    Attributes
    ----------
    key : str
        Name of the encoder in an export.
    sources : tuple of str
        Names under which `load_pretrained` looks, the first found wins.
    """

    def __init__(self, config: MoleculeEncoderConfig, modality: Modality) -> None:
        super().__init__()
        self.config, self.modality = config, modality
        self.d_pooled = config.d_model * (2 if modality == "both" else 1)

    @property
    def key(self) -> str:
        """Name in an export."""
        return self.config.kind

    @property
    def sources(self) -> tuple[str, ...]:
        """Names under which `load_pretrained` looks; the first one found is taken."""
        return (self.key,)

    def sizes(self) -> dict[str, Any]:
        """What must agree with a pre-trained encoder."""
        return {"d_model": self.config.d_model, "layers": self.config.layers}

    def pooled(self, states: AtomStates, batch: MoleculeBatch) -> Tensor:
        """Mean over the real atoms of a molecule, views joined, (B, d_pooled), float32."""
        return torch.cat([pool(view, batch) for view in states if view is not None], dim=1)

    def export(self) -> dict[str, Any]:
        """Sizes and weights, on the CPU."""
        weights = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        return {self.key: {"sizes": self.sizes(), "weights": weights}}

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Take the weights of an export.

        Raises
        ------
        InputError
            If it holds no encoder of this kind and size.
        """
        found = next((name for name in self.sources if name in state), None)
        if found is None:
            raise InputError(
                f"pre-trained state holds {sorted(state)}; an encoder {self.config.kind} needs "
                f"{' or '.join(self.sources)}"
            )
        sizes, weights = state[found]["sizes"], state[found]["weights"]
        if sizes != self.sizes():
            raise InputError(
                f"pre-trained encoder {found} has sizes {sizes}, the model has {self.sizes()}"
            )
        missing = [name for name in self.state_dict() if name not in weights]
        if missing:
            raise InputError(
                f"pre-trained encoder {found} lacks {len(missing)} weights of an encoder "
                f"{self.config.kind} with modality {self.modality}: {missing[0]}, ..."
            )
        self.load_state_dict({name: weights[name] for name in self.state_dict()})
