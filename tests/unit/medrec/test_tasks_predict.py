"""MolInteract's tasks: labels against RDKit, heads against plain linear maps, what is left out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdMolTransforms
from torch import nn
from torch.nn import functional as F
from torch_geometric.utils.smiles import e_map

from medrec.config_molecules import ALL_TERMS, MoleculeEncoderConfig, PredictTaskConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.loader import collate
from medrec.pretrain import tasks_predict
from medrec.pretrain.angles import angle_bins, bond_angles, dihedrals
from medrec.pretrain.encoder import AtomStates, MoleculeEncoder
from medrec.pretrain.tasks_predict import PredictTask, draw_items, random_pairs

WIDTH = 6


@pytest.fixture(scope="module")
def library(task_library) -> MoleculeLibrary:
    return task_library


@pytest.fixture(scope="module")
def mols(library, task_smiles) -> list[Chem.Mol]:
    """RDKit's molecules with the library's positions."""
    return [molecule(library, row, smiles) for row, smiles in enumerate(task_smiles)]


def molecule(library: MoleculeLibrary, row: int, smiles: str) -> Chem.Mol:
    mol = Chem.MolFromSmiles(smiles)
    atoms, _ = library.rows_of("atom", np.array([row]))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(library.arrays["position"][atoms].astype(np.float64))
    mol.AddConformer(conformer)
    return mol


class FreeStates(MoleculeEncoder):
    """States that are parameters of their own for every atom of the library."""

    def __init__(self, n_molecules: int = 10, n_atoms: int = 12) -> None:
        super().__init__()
        self.config, self.modality, self.d_pooled = MoleculeEncoderConfig(d_model=WIDTH), "both", 0
        generator = torch.Generator().manual_seed(3)
        shape = (n_molecules, n_atoms, WIDTH)
        self.flat = nn.Parameter(torch.randn(shape, generator=generator))
        self.spatial = nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, batch):
        return AtomStates(*(x[batch.rows][:, : batch.n_slots] for x in (self.flat, self.spatial)))

    def pooled(self, states, batch):
        raise NotImplementedError

    def export(self):
        return {"free": {}}

    def load_pretrained(self, state):
        raise NotImplementedError


def batch_of(library, *rows: int):
    return collate(library, np.array(rows, dtype=np.int64))


def task_of(seed: int = 5, **options) -> PredictTask:
    torch.manual_seed(0)
    return PredictTask(FreeStates(), PredictTaskConfig(**options), seed)


def used(items, batch) -> list[tuple[int, tuple[int, ...], float]]:
    """Row, local atoms and label of the items in use."""
    n = batch.n_slots
    atoms, label = items.atoms[items.use], items.label[items.use]
    return [
        (int(batch.rows[int(a[0]) // n]), tuple((a % n).tolist()), float(x))
        for a, x in zip(atoms, label, strict=True)
    ]


ROWS = (5, 0, 7, 1, 2, 3, 8, 4, 6, 9)


def all_items(library, epoch: int = 1, **options):
    batch = batch_of(library, *ROWS)
    return batch, draw_items(batch, epoch, PredictTaskConfig(**options), 5)


# --------------------------------------------------------------------------- labels


def test_distances_are_those_of_random_pairs_and_of_every_bond_once(library, mols):
    batch, items = all_items(library)
    seen = used(items["distance"], batch)
    for row, (i, j), label in seen:
        assert rdMolTransforms.GetBondLength(mols[row].GetConformer(), i, j) == pytest.approx(
            label, abs=1e-4
        )
    n_pairs = {row: min(2 * n, 256) * (n > 1) for row, n in enumerate(library.n_atoms)}
    bonds = sum(mols[row].GetNumBonds() for row in ROWS)
    assert len(seen) == sum(n_pairs.values()) + bonds
    last = [(row, tuple(sorted(pair))) for row, pair, _ in seen[-bonds:]]
    assert sorted(last) == sorted(
        (row, tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))))
        for row in ROWS
        for b in mols[row].GetBonds()
    )


def test_angles_are_at_the_anchor(library, mols):
    batch, items = all_items(library)
    seen = used(items["angle"], batch)
    for row, (anchor, source, destination), label in seen:
        conformer = mols[row].GetConformer()
        expected = rdMolTransforms.GetAngleRad(conformer, source, anchor, destination)
        assert label == pytest.approx(expected, abs=1e-4)
    pattern = Chem.MolFromSmarts("*~*~*")
    assert len(seen) == sum(len(mols[row].GetSubstructMatches(pattern)) for row in ROWS)


def test_dihedrals_fall_into_bins_of_the_signed_angle(library, mols):
    batch, items = all_items(library, dihedral_bins=7)
    seen = used(items["dihedral"], batch)
    assert len(seen) > 30
    signs = set()
    for row, atoms, label in seen:
        angle = rdMolTransforms.GetDihedralRad(mols[row].GetConformer(), *atoms)
        edges = -math.pi + np.arange(8) * 2 * math.pi / 7
        if np.abs(angle - edges).min() > 1e-4:
            assert edges[int(label)] < angle <= edges[int(label) + 1]
            signs.add(np.sign(angle) if 0.3 < abs(angle) < 2.8 else 0.0)
    assert signs == {-1.0, 0.0, 1.0}


def test_a_mirror_image_has_the_opposite_dihedral():
    position = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0.3, 0.8, 1.4]])
    angle, defined = dihedrals(position, torch.tensor([[0, 1, 2, 3]]))
    mirrored, _ = dihedrals(position * torch.tensor([-1.0, 1, 1]), torch.tensor([[0, 1, 2, 3]]))
    backward, _ = dihedrals(position, torch.tensor([[3, 2, 1, 0]]))
    assert defined.all()
    assert float(angle) == pytest.approx(math.atan2(0.8, 0.3))
    assert float(mirrored) == pytest.approx(-float(angle))
    assert float(backward) == pytest.approx(float(angle))


def test_dihedrals_over_flat_angles_are_undefined():
    bent, flat = [0.0, 0.05, 2.0], [0.0, 0.0, 2.0]
    quadruple = torch.tensor([[0, 1, 2, 3]])
    for third, fourth, expected in (
        (bent, [0.0, 1.0, 3.0], True),
        (flat, [0.0, 1.0, 3.0], False),
        ([1.0, 0.0, 1.0], [2.0, 0.0, 1.05], True),
        ([1.0, 0.0, 1.0], [2.0, 0.0, 1.0], False),
        ([0.0, 0.0, 1.0], [2.0, 0.0, 2.0], False),  # two atoms at one place
    ):
        position = torch.tensor([[0.0, 0, 0], [0, 0, 1], third, fourth])
        assert bool(dihedrals(position, quadruple)[1]) is expected, (third, fourth)
    # seen from the other end the same holds
    position = torch.tensor([[0.0, 1, 3], flat, [0, 0, 1], [0.0, 0, 0]])
    assert not dihedrals(position, quadruple)[1]


def test_a_flat_dihedral_gives_no_item(library):
    line = replace(
        batch_of(library, 4),
        torsion=torch.tensor([[0, 1, 3, 4], [0, 1, 3, 2]]),
        position=torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 1, 2], [0, 0, 1], [0, 0, 2]]]),
    )
    items = draw_items(line, 0, PredictTaskConfig(terms=("dihedral",)), 5)["dihedral"]
    assert items.use.tolist() == [False, True]


def test_bins_close_at_their_upper_edge_and_join_at_pi():
    below, above = math.nextafter(math.pi, 0), math.nextafter(-math.pi, 0)
    angle = torch.tensor([math.pi, -math.pi, below, above, 0.0, 1e-9, -1e-9], dtype=torch.float64)
    assert angle_bins(angle, 20).tolist() == [19, 19, 19, 0, 9, 10, 9]
    # pi in float32 is a little more than pi
    assert angle_bins(torch.tensor([math.pi, -math.pi]), 20).tolist() == [19, 19]
    middles = -math.pi + (torch.arange(20) + 0.5) * math.pi / 10
    assert angle_bins(middles, 20).tolist() == list(range(20))


def test_small_and_flat_angles_keep_their_digits():
    angle = torch.tensor([1e-3, math.pi / 2, math.pi - 1e-3])
    position = torch.stack([torch.zeros(3), *(
        torch.tensor([math.cos(x), math.sin(x), 0.0]) for x in [0.0, *angle.tolist()]
    )])  # fmt: skip
    triples = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 4, 1]])
    torch.testing.assert_close(bond_angles(position, triples), angle, rtol=0, atol=1e-6)


def test_bond_types_are_those_of_the_graph(library, mols):
    batch, items = all_items(library)
    seen = used(items["edge"], batch)
    for row, (i, j), label in seen:
        bond = mols[row].GetBondBetweenAtoms(i, j)
        assert e_map["bond_type"][int(label)] == str(bond.GetBondType())
    assert len(seen) == sum(mols[row].GetNumBonds() for row in ROWS)
    assert len({label for _, _, label in seen}) == 4


@pytest.mark.parametrize("n_classes", [20, 3])
def test_paths_are_clipped_and_those_between_parts_left_out(library, mols, n_classes):
    batch, items = all_items(library, spd_classes=n_classes)
    path, apart = items["spd"], 0
    for row, (i, j), label in used(path, batch):
        length = int(Chem.GetDistanceMatrix(mols[row])[i, j])
        assert label == min(length, n_classes) - 1
    labels = path.label[path.use]
    assert int(labels.max()) == 2 if n_classes == 3 else int(labels.max()) > 5
    pairs, drawn = random_pairs(batch, 1, PredictTaskConfig(), 5)
    for pair in pairs[drawn].tolist():
        row = int(batch.rows[pair[0] // batch.n_slots])
        i, j = (x % batch.n_slots for x in pair)
        apart += Chem.GetDistanceMatrix(mols[row])[i, j] > 100
    assert apart > 3
    assert int(drawn.sum()) - int(path.use.sum()) == apart


@pytest.mark.parametrize(("kind", "column"), [("eigenvector", 0), ("betweenness", 1)])
def test_ranks_follow_the_centrality_and_leave_ties_out(library, mols, kind, column):
    batch, items = all_items(library, centrality=kind)
    values = library.arrays["centrality"]
    for row, (i, j), label in used(items["centrality"], batch):
        start = library.starts[row, 0]
        assert label == float(values[start + i, column] > values[start + j, column])
    # atoms that a symmetry exchanges are ties, whatever rounding left between their values
    path = items["centrality"]
    for number in range(len(path.atoms)):
        row = int(batch.rows[int(path.atoms[number, 0]) // batch.n_slots])
        if row in (6, 8):  # benzene; F/C=C/F
            i, j = (path.atoms[number] % batch.n_slots).tolist()
            ranks = list(Chem.CanonicalRankAtoms(mols[row], breakTies=False))
            assert not (bool(path.use[number]) and ranks[i] == ranks[j])
    rows = {row for row, _, _ in used(path, batch)}
    assert 6 not in rows
    assert {0, 2, 5, 7, 8} <= rows


def test_rounding_noise_is_a_tie_and_a_small_difference_is_not(library):
    batch = batch_of(library, 6)
    noisy = batch.centrality.clone()
    noisy[0, :, 0] = 0.4 + 1e-7 * torch.randn(6, generator=torch.Generator().manual_seed(0))
    config = PredictTaskConfig(terms=("centrality",))
    kept = replace(batch, centrality=noisy)
    assert not draw_items(kept, 0, config, 5)["centrality"].use.any()
    noisy[0, :, 0] = 0.4 + 1e-4 * torch.arange(6)
    items = draw_items(kept, 0, config, 5)["centrality"]
    assert items.use.sum() == 12
    assert items.label.tolist() == (items.atoms[:, 0] > items.atoms[:, 1]).float().tolist()


# --------------------------------------------------------------------------- random pairs


def test_pairs_are_uniform_over_different_atoms(library):
    batch = batch_of(library, 2)  # six atoms
    config = PredictTaskConfig(pairs_per_atom=20)
    table = torch.zeros(6, 6)
    for epoch in range(50):
        pairs, use = random_pairs(batch, epoch, config, 5)
        assert use.sum() == 120
        table.view(-1).index_add_(0, pairs[:, 0] * 6 + pairs[:, 1], torch.ones(120))
    assert table.diagonal().sum() == 0
    off = table[~torch.eye(6, dtype=torch.bool)]
    chi_square = float(((off - 200) ** 2 / 200).sum())
    assert chi_square < 58.3  # 99.9th percentile of 29 degrees of freedom


def test_no_molecule_has_more_pairs_than_allowed(library):
    batch, items = all_items(library, max_pairs=7, terms=("spd",))
    rows = [row for row, _, _ in used(items["spd"], batch)]
    assert rows.count(7) == 7
    assert rows.count(1) == 0


def test_epoch_and_seed_change_pairs_and_orders(library):
    batch = batch_of(library, 0)
    config = PredictTaskConfig()
    first = draw_items(batch, 0, config, 5)
    for other in (draw_items(batch, 1, config, 5), draw_items(batch, 0, config, 6)):
        assert not torch.equal(first["spd"].atoms, other["spd"].atoms)
        assert not torch.equal(first["angle"].atoms, other["angle"].atoms)
        assert not torch.equal(first["dihedral"].atoms, other["dihedral"].atoms)
    again = draw_items(batch, 0, config, 5)
    assert all(torch.equal(first[term].atoms, again[term].atoms) for term in ALL_TERMS)


def test_both_orders_of_angles_and_dihedrals_are_drawn(library):
    batch = batch_of(library, 7, 0)
    swapped, turned = [], []
    for epoch in range(200):
        items = draw_items(batch, epoch, PredictTaskConfig(terms=("angle", "dihedral")), 5)
        swapped.append((items["angle"].atoms[:, 1] > items["angle"].atoms[:, 2]).float())
        turned.append((items["dihedral"].atoms != batch.torsion).any(dim=1).float())
        for atoms, listed, other in (
            (items["angle"].atoms, batch.angle, batch.angle[:, [0, 2, 1]]),
            (items["dihedral"].atoms, batch.torsion, batch.torsion.flip(1)),
        ):
            assert ((atoms == listed).all(dim=1) | (atoms == other).all(dim=1)).all()
    for shares in (torch.stack(swapped).mean(dim=0), torch.stack(turned).mean(dim=0)):
        assert shares.min() > 0.35
        assert shares.max() < 0.65


# --------------------------------------------------------------------------- heads and losses


def plain_sums(task: PredictTask, batch, epoch: int) -> dict[str, float]:
    """Losses with one linear map of added or joined states per item, item by item."""
    states = task.encoder(batch)
    flat, spatial = (x.flatten(0, 1) for x in states)
    weight = {term: task.heads[term].weight for term in task.terms}
    sums = dict.fromkeys(task.terms, 0.0)
    for term, items in draw_items(batch, epoch, task.config, task.seed).items():
        for atoms, label in zip(items.atoms[items.use], items.label[items.use], strict=True):
            if term == "distance":
                out = F.linear(flat[atoms[0]] + flat[atoms[1]], weight[term])
                loss = (out - label) ** 2
            elif term == "angle":
                out = F.linear(torch.cat([flat[a] for a in atoms]), weight[term])
                loss = (out - label) ** 2
            elif term == "dihedral":
                out = F.linear(torch.cat([flat[a] for a in atoms]), weight[term])
                loss = -out.log_softmax(dim=0)[label]
            elif term in ("edge", "spd"):
                out = F.linear(spatial[atoms[0]] + spatial[atoms[1]], weight[term])
                loss = -out.log_softmax(dim=0)[label]
            else:
                sign = -1 if task.config.centrality_form == "difference" else 1
                out = F.linear(spatial[atoms[0]] + sign * spatial[atoms[1]], weight[term])
                loss = -F.logsigmoid(out if label else -out)
            sums[term] += float(loss.detach())
    return sums


@pytest.mark.parametrize("form", ["difference", "sum"])
def test_losses_are_those_of_plain_heads(library, form):
    batch = batch_of(library, *ROWS)
    task = task_of(centrality_form=form)
    sums = task(batch, 2)
    expected = plain_sums(task, batch, 2)
    assert task.terms == ALL_TERMS
    for term, value in zip(task.terms, sums.tolist(), strict=True):
        assert value == pytest.approx(expected[term], rel=1e-5), term
        assert value > 0


def test_counts_are_those_of_the_items(library):
    batch = batch_of(library, *ROWS)
    task = task_of()
    items = draw_items(batch, 2, task.config, task.seed)
    counts = task.counts(batch, 2)
    assert counts.dtype == torch.float32
    assert counts.tolist() == [len(used(items[term], batch)) for term in task.terms]
    assert len(set(counts.tolist())) >= 4


@pytest.mark.parametrize("epoch", [0, 3])
def test_neither_batch_nor_padding_changes_counts_and_sums(library, epoch):
    task = task_of()
    together = batch_of(library, *ROWS)
    alone = [batch_of(library, row) for row in ROWS]
    counts = sum(task.counts(batch, epoch) for batch in alone)
    sums = sum(task(batch, epoch) for batch in alone)
    assert torch.equal(task.counts(together, epoch), counts)
    torch.testing.assert_close(task(together, epoch), sums, rtol=1e-5, atol=1e-5)


def test_gradients_do_not_depend_on_the_batch(library):
    task = task_of()
    task(batch_of(library, *ROWS), 0).sum().backward()
    together = [p.grad.clone() for p in task.parameters()]
    task.zero_grad()
    for row in ROWS:
        task(batch_of(library, row), 0).sum().backward()
    for one, other in zip(together, task.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("term", ALL_TERMS)
def test_a_term_learns_from_the_states_of_the_other_view(library, term):
    task = task_of(terms=(term,))
    assert list(task.heads) == [term]
    task(batch_of(library, 0, 5), 0).sum().backward()
    read, other = task.encoder.flat, task.encoder.spatial
    if term in ("edge", "spd", "centrality"):
        read, other = other, read
    assert other.grad is None or not other.grad.any()
    assert read.grad[0].any()
    assert read.grad[5].any()
    assert not read.grad[[1, 2, 3, 4, 6, 7, 8, 9]].any()
    assert task.heads[term].weight.grad.any()


def test_a_batch_without_items_is_zero_and_still_has_gradients(library):
    task = task_of()
    methane = batch_of(library, 1)
    sums = task(methane, 0)
    assert task.counts(methane, 0).tolist() == [0.0] * 6
    assert sums.tolist() == [0.0] * 6
    sums.sum().backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert all(n == 0 for _, n in task.facts(methane, 0).values())


def test_no_molecules_at_all_are_zero(library):
    task = task_of()
    empty = batch_of(library)
    assert task(empty, 0).tolist() == [0.0] * 6
    assert task.counts(empty, 0).tolist() == [0.0] * 6


def test_molecules_without_positions_give_nothing(library):
    task = task_of()
    batch = batch_of(library, 0, 5)
    partly = replace(batch, placed=torch.tensor([False, True]))
    alone = batch_of(library, 5)
    assert torch.equal(task.counts(partly, 0), task.counts(alone, 0))
    torch.testing.assert_close(task(partly, 0), task(alone, 0), rtol=1e-5, atol=1e-5)


def test_the_ranking_of_a_turned_pair_is_the_opposite(library, monkeypatch):
    """So that its loss is the same; the printed form says the same of both orders instead."""
    batch = batch_of(library, 0, 5)
    pairs, use = random_pairs(batch, 0, PredictTaskConfig(), 5)
    losses = {}
    for form in ("difference", "sum"):
        for name, drawn in (("as drawn", pairs), ("turned", pairs.flip(1))):
            monkeypatch.setattr(tasks_predict, "random_pairs", lambda *_, d=drawn: (d, use))
            task = task_of(terms=("centrality",), centrality_form=form)
            losses[form, name] = float(task(batch, 0).detach())
            right, n = task.facts(batch, 0)["centrality_accuracy"]
            losses[form, name, "accuracy"] = right / n
    assert losses["difference", "turned"] == pytest.approx(losses["difference", "as drawn"])
    assert losses["sum", "turned"] != pytest.approx(losses["sum", "as drawn"], rel=1e-3)
    printed = losses["sum", "turned", "accuracy"] + losses["sum", "as drawn", "accuracy"]
    assert printed == pytest.approx(1.0)


def final_ranking_loss(library, form: str) -> tuple[float, float]:
    """Loss and accuracy on fresh pairs after training on others."""
    task = task_of(terms=("centrality",), centrality_form=form)
    batch = batch_of(library, 0, 2, 5, 7)
    optimiser = torch.optim.Adam(task.parameters(), lr=0.05)
    for epoch in range(60):
        optimiser.zero_grad()
        (task(batch, epoch) / task.counts(batch, epoch)).sum().backward()
        optimiser.step()
    loss, n, right = 0.0, 0.0, 0.0
    with torch.no_grad():
        for epoch in range(1000, 1030):
            loss += float(task(batch, epoch))
            n += float(task.counts(batch, epoch))
            right += task.facts(batch, epoch)["centrality_accuracy"][0]
    return loss / n, right / n


def test_the_printed_ranking_cannot_learn_what_the_difference_learns(library):
    loss, accuracy = final_ranking_loss(library, "difference")
    assert loss < 0.2
    assert accuracy > 0.95
    loss, accuracy = final_ranking_loss(library, "sum")
    assert loss > math.log(2) - 0.01
    assert accuracy < 0.6


def test_facts_are_those_of_the_last_forward(library):
    batch = batch_of(library, *ROWS)
    task = task_of()
    assert task.facts(batch, 1) == {}
    task(batch, 1)
    found = task.facts(batch, 1)
    assert set(found) == {
        "distance_mae", "dihedral_accuracy", "edge_accuracy", "spd_accuracy", "centrality_accuracy"
    }  # fmt: skip
    flat, spatial = (x.detach().flatten(0, 1) for x in task.encoder(batch))
    items = draw_items(batch, 1, task.config, 5)
    weight = {term: head.weight.detach() for term, head in task.heads.items()}
    error, right = 0.0, 0
    distance, path = items["distance"], items["spd"]
    for atoms, label in zip(
        distance.atoms[distance.use], distance.label[distance.use], strict=True
    ):
        out = flat[atoms].sum(dim=0) @ weight["distance"].T
        error += float((out - label).abs())
    for atoms, label in zip(path.atoms[path.use], path.label[path.use], strict=True):
        out = spatial[atoms].sum(dim=0) @ weight["spd"].T
        right += int(out.argmax() == label)
    assert found["distance_mae"] == (pytest.approx(error, rel=1e-4), int(distance.use.sum()))
    assert found["spd_accuracy"] == (right, int(path.use.sum()))
    assert 0 < right < int(path.use.sum())
    counts = dict(zip(task.terms, task.counts(batch, 1).tolist(), strict=True))
    assert all(n == counts[name.split("_")[0]] for name, (_, n) in found.items())


def test_heads_stay_exact_under_autocast(library):
    batch, task = batch_of(library, *ROWS), task_of()
    plain = task(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = task(batch, 0)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


def test_a_term_that_is_named_twice_counts_once():
    assert task_of(terms=("spd", "distance", "spd")).terms == ("spd", "distance")
