"""DEPOT: motif trees, repetition and exploration, no noise at test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rdkit import Chem

from medrec.config import TrainConfig
from medrec.fitting import LearningData, build_learning_data, fit_context
from medrec.models.depot import Depot, motif_attention
from medrec.molecules.motifs import build_motif_tables, motif_tree
from quantum.base import InputError


def config(**model: object) -> TrainConfig:
    sizes = {"name": "depot", "d_model": 16, "dropout": 0.0, **model}
    return TrainConfig.model_validate({"name": "t", "model": sizes})


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    return fit_context(config(), build_learning_data(cohort, 0, None, molecules=True))


def build(data: LearningData, **model: object) -> Depot:
    torch.manual_seed(0)
    return Depot(config(**model), data.context)


def heavy_atoms(smiles: str) -> int:
    return sum(atom.GetAtomicNum() > 1 for atom in Chem.MolFromSmiles(smiles).GetAtoms())


def test_motif_tree_of_a_chain():
    tree = {motif.smiles: motif for motif in motif_tree("CC(=O)Nc1ccc(OCCN)cc1")}
    assert len(tree) == 5
    ring = tree["[16*]c1ccc([16*])cc1"]
    assert (ring.degree, ring.depth) == (2, 0)
    assert (tree["[1*]C(C)=O"].degree, tree["[1*]C(C)=O"].depth) == (1, 2)
    assert (tree["[3*]O[3*]"].degree, tree["[3*]O[3*]"].depth) == (2, 1)


@pytest.mark.parametrize("smiles", ["C", "CCO.CCOC(C)=O", "CCOC(=O)CC(=O)OCC", "c1ccccc1"])
def test_motifs_hold_every_atom_once_and_form_trees(smiles):
    tree = motif_tree(smiles)
    assert sum(heavy_atoms(motif.smiles) for motif in tree) == heavy_atoms(smiles)
    n_components = len(smiles.split("."))
    assert sum(motif.degree for motif in tree) == 2 * (len(tree) - n_components)
    assert sum(motif.depth == 0 for motif in tree) == n_components


def test_a_motif_that_occurs_twice_stands_twice_in_the_tables():
    tables = build_motif_tables(["CCOC(=O)CC(=O)OCC", "C"])
    row = [tables.smiles[number - 1] for number in tables.motif[0] if number]
    assert len(row) > len(set(row))
    assert tables.motif[1].tolist()[1:] == [0] * (len(row) - 1)


def test_attention_is_over_the_allowed_motifs_only():
    scores = torch.randn(3, 5)
    allowed = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]) > 0
    weights = motif_attention(scores, allowed)
    assert torch.allclose(weights.sum(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    assert (weights[~allowed] == 0).all()


def test_size_of_the_padding_changes_no_drug(data):
    """Trees are padded in groups; one group for all gives the same vectors."""
    model = build(data).eval()
    encoder = model.encoder
    grouped = encoder()
    assert len(encoder.parts) > 1
    encoder.parts = [(0, len(encoder.motif), encoder.motif.shape[1])]
    whole = encoder()
    assert torch.allclose(grouped.drugs, whole.drugs, atol=1e-5)
    assert torch.allclose(grouped.motifs, whole.motifs, atol=1e-5)


def test_class_contains_the_motifs_of_its_molecules(data):
    model = build(data)
    tables, motif = data.context.molecules, data.context.fitted["motif"]
    for drug in range(data.context.n_drugs):
        molecules = tables.projection[drug].nonzero().squeeze(1)
        expected = set((motif[molecules][motif[molecules] > 0] - 1).tolist())
        assert set(model.contains[drug].nonzero().squeeze(1).tolist()) == expected


def test_noise_in_training_and_only_on_request_at_test(data):
    batch = data.dataset.collate(sorted(data.dataset, key=lambda p: -len(data.dataset[p]))[:4])
    model = build(data)
    assert torch.equal(model.predict(batch).logits, model.predict(batch).logits)
    sampled = build(data, sample_at_test=True)
    first, second = sampled.predict(batch).logits, sampled.predict(batch).logits
    assert not torch.equal(first[:, 1:], second[:, 1:])
    assert torch.equal(first[:, 0], second[:, 0])  # a first visit has no turnover
    model.train()
    encoded = model.encode_drugs()
    assert not torch.equal(model(batch, encoded).logits, model(batch, encoded).logits)


def test_previous_drugs_matter_from_the_second_visit_on(data):
    batch = data.dataset.collate(sorted(data.dataset, key=lambda p: -len(data.dataset[p]))[:4])
    model = build(data)
    other = replace(batch, drugs_before=1.0 - batch.drugs_before)
    first, second = model.predict(batch), model.predict(other)
    assert torch.equal(first.logits[:, 0], second.logits[:, 0])
    assert not torch.allclose(first.logits[:, 1], second.logits[:, 1])
    assert torch.allclose(first.extras["mix"].sum(dim=-1), torch.ones(batch.shape))


def test_sizes_that_do_not_fit_are_refused(data):
    with pytest.raises(InputError, match="not divisible by n_heads 3"):
        build(data, n_heads=3)
