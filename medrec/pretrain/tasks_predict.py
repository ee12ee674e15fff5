"""MolInteract's pre-training tasks: each view's atom states predict quantities of the other view.

=========== ====== ==================== ================================== ==========
term        states of the atoms         label                              loss
=========== ====== ==================== ================================== ==========
distance    2D     sum of 2             Angstrom                           squared
angle       2D     3 joined             radians at the anchor              squared
dihedral    2D     4 joined             one of 20 bins of the signed angle cross-entropy
edge        3D     sum of 2, bonded     bond type                          cross-entropy
spd         3D     sum of 2             bonds on the shortest path         cross-entropy
centrality  3D     difference of 2      is the first one more central?     cross-entropy
=========== ====== ==================== ================================== ==========

Eqs. 4 to 9 of the paper; heads are linear without a bias. Cross-entropies are minimised (the paper
prints them with a minus sign). Eq. 9 prints a sum also for the centrality, which is the same for
(i, j) and (j, i) while the label is opposite: it cannot get below ln 2. The default is the
difference, whose logit changes its sign with the order of the atoms.

Where the paper is silent:

- Distance, path and centrality share random pairs i != j, drawn with replacement; the distance also
  takes every bond, once.
- The label of an angle is the same for both orders of its ends, and that of a dihedral for both
  directions, but a head over joined states is not: the order is drawn in every epoch.
- A molecule without positions gives no items. Its 3D states are a frozen embedding of the elements,
  so its 2D labels would train the heads alone, on something that is not a 3D view.
- Left out: paths between parts of a mixture, ties of the centrality, dihedrals over flat angles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medrec.config_molecules import InteractTerm, PredictTaskConfig
from medrec.library.arrays import UNREACHABLE
from medrec.library.batches import MoleculeBatch
from medrec.molecules.structure import BOND_CARDINALITIES
from medrec.pretrain.angles import angle_bins, bond_angles, dihedrals, distances
from medrec.pretrain.draws import uniforms
from medrec.pretrain.encoder import MoleculeEncoder
from medrec.pretrain.problem import LossModel, State

FROM_FLAT: tuple[InteractTerm, ...] = ("distance", "angle", "dihedral")
"""Terms read from 2D states; the others are read from 3D states."""

PAIR_STREAM, ORDER_STREAM = 0, 1
TIE_ABSOLUTE, TIE_RELATIVE = 1e-6, 1e-5
"""Centralities that differ by less are equal but for rounding."""


class Items(NamedTuple):
    """What one term predicts in a batch.

    Items not in use keep their place: no shape depends on values, so a GPU is never waited for.

    Attributes
    ----------
    atoms : LongTensor (P, m)
        Flat numbers of the atoms whose states are read.
    label : Tensor (P,)
        float32 for quantities and for the ranking (0 or 1), int64 for classes.
    use : BoolTensor (P,)
    """

    atoms: Tensor
    label: Tensor
    use: Tensor


class AtomHead(nn.Module):
    """A linear map, without bias, of the sum or the concatenation of some atoms' states.

    The map of a sum is the sum of maps, and that of a concatenation the sum of its blocks' maps:
    each block is applied to every atom once, and items gather the few outputs instead of states.

    Parameters
    ----------
    d_model : int
        d.
    n_blocks : int
        Joined states; 1 for a sum or a difference.
    n_out : int
        k.
    """

    def __init__(self, d_model: int, n_blocks: int, n_out: int) -> None:
        super().__init__()
        self.n_blocks, self.n_out = n_blocks, n_out
        self.weight = nn.Parameter(torch.empty(n_out, n_blocks * d_model))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, states: Tensor, atoms: Tensor) -> Tensor:
        """Outputs of each atom of each item.

        Parameters
        ----------
        states : FloatTensor (N, d)
        atoms : LongTensor (P, m)
            m is ``n_blocks``, or anything if that is 1.

        Returns
        -------
        FloatTensor (P, m, k)
            Their sum over m is the map of the joined or added states.
        """
        blocks = self.weight.view(self.n_out, self.n_blocks, -1).transpose(0, 1)
        of_atoms = F.linear(states, blocks.reshape(self.n_blocks * self.n_out, -1))
        block = torch.arange(self.n_blocks, device=atoms.device)
        rows = (atoms * self.n_blocks + block).flatten()
        return of_atoms.view(-1, self.n_out).index_select(0, rows).view(*atoms.shape, self.n_out)


class PredictTask(LossModel):
    """An encoder of both views with the heads of some terms.

    Parameters
    ----------
    encoder : MoleculeEncoder
        With states of both views.
    config : PredictTaskConfig
    seed : int
        Of the random pairs and orders.
    """

    terms: tuple[InteractTerm, ...]

    def __init__(self, encoder: MoleculeEncoder, config: PredictTaskConfig, seed: int) -> None:
        super().__init__()
        self.encoder, self.config, self.seed = encoder, config, seed
        self.terms = tuple(dict.fromkeys(config.terms))
        shapes = {
            "distance": (1, 1),
            "angle": (3, 1),
            "dihedral": (4, config.dihedral_bins),
            "edge": (1, BOND_CARDINALITIES[0]),
            "spd": (1, config.spd_classes),
            "centrality": (1, 1),
        }
        d = encoder.config.d_model
        self.heads = nn.ModuleDict({term: AtomHead(d, *shapes[term]) for term in self.terms})
        self._facts: dict[str, tuple[Tensor, Tensor]] = {}

    def counts(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Items of every term, float32 (K,)."""
        items = draw_items(batch, epoch, self.config, self.seed)
        return torch.stack([items[term].use.sum() for term in self.terms]).float()

    def forward(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Sum of every term over its items, float32 (K,): see the table above."""
        states = self.encoder(batch)
        items = draw_items(batch, epoch, self.config, self.seed)
        sums = []
        # ten Angstrom in bfloat16 are rounded to 0.06, and the heads cost next to nothing
        with torch.autocast(batch.x.device.type, enabled=False):
            for term in self.terms:
                side = states.flat if term in FROM_FLAT else states.spatial
                assert side is not None
                sums.append(self._sum(term, side.float().flatten(0, 1), items[term]))
        return torch.stack(sums)

    def facts(self, batch: MoleculeBatch, epoch: int) -> dict[str, tuple[float, float]]:
        """Accuracies, and the mean absolute error of distances, of the last `forward`."""
        if not self._facts:
            return {}
        values = torch.stack([torch.stack(pair).float() for pair in self._facts.values()]).tolist()
        return {name: (total, n) for name, (total, n) in zip(self._facts, values, strict=True)}

    def export(self) -> State:
        """Encoder without the heads."""
        return self.encoder.export()

    def _sum(self, term: InteractTerm, states: Tensor, items: Items) -> Tensor:
        parts = self.heads[term](states, items.atoms)
        if term == "centrality" and self.config.centrality_form == "difference":
            output = parts[:, 0] - parts[:, 1]
        else:
            output = parts.sum(dim=1)
        if term in ("distance", "angle"):
            return self._squared(term, output.squeeze(1), items)
        if term == "centrality":
            return self._ranked(output.squeeze(1), items)
        return self._classified(term, output, items)

    def _squared(self, term: str, output: Tensor, items: Items) -> Tensor:
        gap = torch.where(items.use, output - items.label, 0.0)
        if term == "distance":
            self._facts["distance_mae"] = (gap.detach().abs().sum(), items.use.sum())
        return gap.square().sum()

    def _ranked(self, logit: Tensor, items: Items) -> Tensor:
        right = ((logit.detach() > 0) == (items.label > 0)) & items.use
        self._facts["centrality_accuracy"] = (right.sum(), items.use.sum())
        each = F.binary_cross_entropy_with_logits(logit, items.label, reduction="none")
        return torch.where(items.use, each, 0.0).sum()

    def _classified(self, term: str, logits: Tensor, items: Items) -> Tensor:
        right = (logits.detach().argmax(dim=1) == items.label) & items.use
        self._facts[f"{term}_accuracy"] = (right.sum(), items.use.sum())
        label = torch.where(items.use, items.label, -1)
        return F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")


@torch.no_grad()
def draw_items(
    batch: MoleculeBatch, epoch: int, config: PredictTaskConfig, seed: int
) -> dict[InteractTerm, Items]:
    """Atoms and labels of the configured terms; those of a molecule do not depend on its batch."""
    terms = set(config.terms)
    position = batch.position.flatten(0, 1)
    pairs, drawn = random_pairs(batch, epoch, config, seed)
    bonds = batch.edge_index[:, ::2].T  # one direction of each
    bonded = _placed(batch, bonds)
    key = uniforms(seed, epoch, batch.rows, batch.n_slots, ORDER_STREAM).flatten()
    items: dict[InteractTerm, Items] = {}
    if "distance" in terms:
        both = torch.cat([pairs, bonds])
        items["distance"] = Items(both, distances(position, both), torch.cat([drawn, bonded]))
    if "angle" in terms:
        items["angle"] = _angles(batch, position, key)
    if "dihedral" in terms:
        items["dihedral"] = _torsions(batch, position, key, config.dihedral_bins)
    if "edge" in terms:
        items["edge"] = Items(bonds, batch.edge_attr[::2, 0].long(), bonded)
    if "spd" in terms:
        items["spd"] = _paths(batch, pairs, drawn, config.spd_classes)
    if "centrality" in terms:
        items["centrality"] = _ranks(batch, pairs, drawn, config.centrality)
    return items


def random_pairs(
    batch: MoleculeBatch, epoch: int, config: PredictTaskConfig, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw ordered pairs of different atoms, uniformly and with replacement.

    Returns
    -------
    pairs : LongTensor (B * P, 2)
        Flat numbers; P is the number of the largest molecule that fits the slots.
    use : BoolTensor (B * P,)
        The first ``pairs_per_atom`` times n, at most ``max_pairs``, of a molecule with positions.
    """
    n_atoms = batch.mask.sum(dim=1, keepdim=True)
    n_pairs = min(config.pairs_per_atom * batch.n_slots, config.max_pairs)
    drawn = uniforms(seed, epoch, batch.rows, 2 * n_pairs, PAIR_STREAM)
    first, step = drawn.view(len(drawn), n_pairs, 2).unbind(dim=2)
    i = (first * n_atoms).long()
    j = (i + 1 + (step * (n_atoms - 1)).long()) % n_atoms.clamp(min=1)
    number = torch.arange(n_pairs, device=drawn.device)
    use = (number < config.pairs_per_atom * n_atoms) & (n_atoms > 1) & batch.placed.unsqueeze(1)
    start = torch.arange(len(drawn), device=drawn.device).view(-1, 1, 1) * batch.n_slots
    return (torch.stack([i, j], dim=2) + start).flatten(0, 1), use.flatten()


def _paths(batch: MoleculeBatch, pairs: Tensor, use: Tensor, n_classes: int) -> Items:
    length = batch.spd.flatten()[pairs[:, 0] * batch.n_slots + pairs[:, 1] % batch.n_slots].long()
    return Items(pairs, length.clamp(1, n_classes) - 1, use & (length != UNREACHABLE))


def _ranks(batch: MoleculeBatch, pairs: Tensor, use: Tensor, kind: str) -> Items:
    column = ("eigenvector", "betweenness").index(kind)
    first, second = batch.centrality.flatten(0, 1)[:, column][pairs].unbind(dim=1)
    tie = TIE_ABSOLUTE + TIE_RELATIVE * torch.maximum(first, second)
    return Items(pairs, (first > second).float(), use & ((first - second).abs() > tie))


def _angles(batch: MoleculeBatch, position: Tensor, key: Tensor) -> Items:
    swapped = batch.angle[:, [0, 2, 1]]
    atoms = _ordered(batch.angle, swapped, key[batch.angle[:, 1]] > key[batch.angle[:, 2]])
    return Items(atoms, bond_angles(position, atoms), _placed(batch, atoms))


def _torsions(batch: MoleculeBatch, position: Tensor, key: Tensor, n_bins: int) -> Items:
    reverse = key[batch.torsion[:, 0]] > key[batch.torsion[:, 3]]
    atoms = _ordered(batch.torsion, batch.torsion.flip(1), reverse)
    angle, defined = dihedrals(position, atoms)
    return Items(atoms, angle_bins(angle, n_bins), defined & _placed(batch, atoms))


def _ordered(atoms: Tensor, other: Tensor, change: Tensor) -> Tensor:
    return torch.where(change.unsqueeze(1), other, atoms)


def _placed(batch: MoleculeBatch, atoms: Tensor) -> Tensor:
    """Whether the molecules of flat atoms (P, m) have positions, (P,)."""
    return batch.placed[atoms[:, 0] // batch.n_slots]
