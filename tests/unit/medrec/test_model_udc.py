"""UDC: views of diagnoses, residual codebooks, codes in place of rare diagnoses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from medrec.config import TrainConfig
from medrec.data.codes import CodeMaps
from medrec.data.schema import data_root
from medrec.fitting import LearningData, build_learning_data, fit_context
from medrec.models.codebooks import ResidualCodebooks, code_matching
from medrec.models.diagnosis_views import (
    code_tokens,
    diagnosis_views,
    positive_pmi,
    rare_diagnoses,
    reference_diagnoses,
    text_view,
)
from medrec.models.udc import UDC, CodeTrainer, joint_collisions, positions
from quantum.base import InputError

CONFIG = TrainConfig.model_validate(
    {
        "name": "t",
        "model": {"name": "udc", "d_model": 16, "dropout": 0.0, "n_codes": 8, "code_steps": 12},
    }
)


@pytest.fixture(scope="module")
def plain(synthetic) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=False)


@pytest.fixture(scope="module")
def data(plain: LearningData) -> LearningData:
    return fit_context(CONFIG, plain)


def test_codes_and_the_last_residual_add_up_to_the_input():
    torch.manual_seed(0)
    books = ResidualCodebooks(4, 8, 5)
    z = torch.randn(20, 5, requires_grad=True)
    found = books(z)
    last = found.residuals[-1] - books.table[3, found.codes[:, 3]]
    assert torch.allclose(found.vectors + last, z, atol=1e-6)
    assert torch.equal(
        found.codes[:, 0], (z[:, None] - books.table[0][None]).norm(dim=2).argmin(dim=1)
    )
    found.vectors.sum().backward()
    assert torch.allclose(z.grad, torch.ones_like(z))  # straight through


def test_codes_move_to_the_mean_of_their_vectors():
    torch.manual_seed(0)
    books = ResidualCodebooks(1, 2, 2, decay=0.5)
    generator = torch.Generator().manual_seed(0)
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-5.0, 0.0], [-7.0, 0.0]])
    books.start_from(z, 0)
    for _ in range(60):
        books.follow(books(z), generator)
    centres = books.table[0][:, 0].sort().values
    assert torch.allclose(centres, torch.tensor([-6.0, 2.0]), atol=1e-3)


def test_matching_views_match_better_than_shuffled_ones():
    torch.manual_seed(0)
    books = ResidualCodebooks(2, 16, 4)
    z = torch.randn(12, 4)
    books.start_from(z, 0)
    same = code_matching(books(z), books(z), books)
    assert same < code_matching(books(z), books(z.roll(1, dims=0)), books)


def test_pre_training_lowers_its_loss_and_uses_several_codes(plain):
    torch.manual_seed(0)
    views = diagnosis_views(plain.fitting(), 16, 0.5, 0)
    trainer = CodeTrainer(CONFIG.model, views)
    losses = trainer.fit(60, 3e-3)
    assert len(losses) == 40  # the first third is without codes
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    for found in trainer.quantise():
        assert len(found.codes[:, 0].unique()) > 2


def test_positive_pmi_of_a_hand_calculated_table():
    found = positive_pmi(sparse.csr_matrix([[4.0, 0.0], [2.0, 2.0]])).toarray()
    assert found[0, 0] == pytest.approx(np.log(4 * 8 / (4 * 6)))
    assert found[1, 1] == pytest.approx(np.log(2 * 8 / (4 * 2)))
    assert found[0, 1] == 0.0
    assert found[1, 0] == 0.0  # less often together than by chance


def test_titles_reach_the_text_view_and_unknown_codes_have_their_beginnings():
    maps = CodeMaps(data_root() / "codes")
    assert "hypertension" in code_tokens("icd9:4019", maps)
    assert code_tokens("4019", maps) == code_tokens("icd9:4019", maps)
    assert "hypertension" in code_tokens("icd10:I10", maps)
    assert code_tokens("zz12", maps) == ["^zz1", "^zz12"]
    view = text_view(("4010", "4011", "4019", "25000", "25002", "5849"), 5, 0)
    likeness = view @ view.T
    assert likeness[0, 1] > likeness[0, 3]
    assert likeness[3, 4] > likeness[3, 5]


def test_rare_and_reference_diagnoses():
    counts = np.array([50, 2, 40, 30])
    rare = rare_diagnoses(counts, 0.25)
    assert rare.tolist() == [False, True, False, False]
    drugs = np.array([[45.0, 1.0, 2.0], [2.0, 0.0, 0.0], [36.0, 1.0, 1.0], [1.0, 28.0, 20.0]])
    near, far = reference_diagnoses(drugs, counts, rare)
    assert near[0] == 2
    assert far[0] == 3
    assert near[1] in (0, 2)  # never itself, never a rare one


def test_only_training_patients_count(plain, data):
    assert len(plain.split.validation) > 0
    patients = np.concatenate([plain.split.train, plain.split.validation])
    seen = diagnosis_views(plain.fitting(), 16, 0.5, 0)
    fitting = plain.fitting()
    other = diagnosis_views(type(fitting)(plain.dataset, patients, plain.context), 16, 0.5, 0)
    assert not np.array_equal(seen.co_occurrence, other.co_occurrence)
    kept = {p: plain.dataset[p] for p in plain.split.train.tolist()}
    alone = type(plain.dataset).of(plain.dataset.vocabularies, kept)
    again = diagnosis_views(type(fitting)(alone, plain.split.train, plain.context), 16, 0.5, 0)
    for name in ("co_occurrence", "condition", "near", "far", "rare", "text"):
        assert np.array_equal(getattr(seen, name), getattr(again, name)), name


def test_rare_diagnoses_share_the_parameters_of_their_codes(data):
    torch.manual_seed(0)
    model = UDC(CONFIG, data.context)
    rare = model.rare.squeeze(1)
    assert rare.sum() == round(0.5 * len(rare))
    assert torch.equal(model.codebooks, data.context.fitted["codebooks"])
    vectors = model.diagnosis_vectors()
    assert torch.equal(vectors[~rare], model.diagnoses.weight[: len(rare)][~rare])
    vectors[rare].sum().backward()
    assert not model.diagnoses.weight.grad.any()
    assert model.codebooks.grad.any()
    one = int(rare.nonzero()[0])
    model.codes[:] = model.codes[one]
    assert torch.allclose(model.diagnosis_vectors()[rare].std(dim=0), torch.zeros(16), atol=1e-6)


def test_pre_training_neither_uses_nor_moves_the_global_generator(plain):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = UDC.fit_context(CONFIG, plain.fitting())
    assert torch.equal(torch.rand(3), expected)
    second = UDC.fit_context(CONFIG, plain.fitting())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_embeddings_from_outside_take_the_place_of_the_text(plain):
    n = plain.context.n_diagnoses
    given = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    found = UDC.fit_context(CONFIG, plain.fitting(), text=given)
    assert not torch.equal(found["codes"], UDC.fit_context(CONFIG, plain.fitting())["codes"])
    with pytest.raises(InputError, match=f"expected {n} finite rows"):
        UDC.fit_context(CONFIG, plain.fitting(), text=given[1:])


def test_collisions_and_positions():
    codes = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [2, 3]], [[0, 1], [2, 2]], [[1, 1], [2, 3]]])
    assert joint_collisions(codes) == 0.5
    table = positions(40, 8, torch.device("cpu"))
    assert table.shape == (40, 8)
    assert torch.cdist(table, table).add(10 * torch.eye(40)).min() > 0.1
