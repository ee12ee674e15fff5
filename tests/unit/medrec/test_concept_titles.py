"""Titles of concepts and the semantic view."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from medrec.concepts.knowledge import KnowledgeTables
from medrec.concepts.text import embed_titles, ngram_vectors, pool, transformer_vectors
from medrec.concepts.titles import Concept, Describer
from medrec.config_papers import TextConfig
from medrec.data.codes import CodeMaps
from medrec.data.schema import data_root
from quantum.base import InputError, ResourceError


@pytest.fixture(scope="module")
def describer():
    return Describer(CodeMaps(data_root() / "codes"), KnowledgeTables(data_root() / "knowledge"))


# ------------------------------------------------------------------ titles


@pytest.mark.parametrize(
    ("kind", "label", "expected"),
    [
        ("diagnoses", "icd9:4019", Concept("dx9", "4019")),
        ("diagnoses", "icd10:I10", Concept("dx10", "I10")),
        ("procedures", "icd9:3893", Concept("px9", "3893")),
        ("procedures", "icd10:0016070", Concept("px10", "0016070")),
        ("procedures", "path:renal|dialysis", Concept("path", "renal|dialysis")),
        ("procedures", "renal|dialysis", Concept("path", "renal|dialysis")),
        # without a version: the table that has the code, then its form
        ("diagnoses", "4019", Concept("dx9", "4019")),
        ("diagnoses", "I10", Concept("dx10", "I10")),
        ("diagnoses", "T814XXA", Concept("dx10", "T814XXA")),
        ("diagnoses", "585", Concept("dx9", "585")),
        ("procedures", "5A1D60Z", Concept("px10", "5A1D60Z")),
        ("drugs", "C09A", Concept("atc", "C09A")),
    ],
)
def test_spellings_of_a_cohort_are_understood(describer, kind, label, expected):
    assert describer.concept(kind, label) == expected


def test_the_same_digits_are_another_thing_among_procedures(describer):
    titles = [
        describer.titles(kind, ["icd9:3893"]).texts[0] for kind in ("diagnoses", "procedures")
    ]
    assert titles[0] != titles[1]
    assert "catheterization" in titles[1]


def test_unknown_kind_is_refused(describer):
    with pytest.raises(InputError, match="expected diagnoses, procedures or drugs"):
        describer.concept("labs", "1")


def test_titles_say_where_they_are_from(describer):
    found = describer.titles("diagnoses", ["icd9:4019", "icd9:585", "icd10:T814XXA", "icd9:QQQ"])
    assert found.sources == ("own", "relative", "category", "none")
    assert found.texts[0] == "Unspecified essential hypertension"
    assert found.texts[2] == "Infection following a procedure"
    assert found.texts[3] == "QQQ"
    assert not any("[of" in text for text in found.texts)
    assert found.shares == {"category": 0.25, "none": 0.25, "own": 0.25, "relative": 0.25}


def test_a_drug_class_is_named_with_its_members(describer):
    text, source = describer.describe(Concept("atc", "C09A"))
    assert source == "own"
    assert "ace inhibitors" in text
    assert "lisinopril" in text
    assert describer.members("C09AA03") == ["C09AA03"]
    assert set(describer.members("A02B")) > set(describer.members("A02BA")) > {"A02BA02"}
    assert describer.describe(Concept("atc", "C09AA03")) == ("lisinopril", "own")
    assert describer.describe(Concept("atc", "ZZ9Z"))[1] == "none"


# ------------------------------------------------------------------ n-grams


def test_titles_of_like_words_are_near():
    texts = ["acute kidney failure", "chronic kidney failure", "fracture of femur"]
    vectors = ngram_vectors(texts, 2, 0)
    near, far = (float(vectors[0] @ vectors[i]) for i in (1, 2))
    assert near > far + 0.2


def test_ngram_vectors_are_deterministic_and_bounded():
    texts = [f"disease number {i} of the organ {i % 7}" for i in range(120)]
    first, second = (embed_titles(texts, TextConfig(dims=16), 3) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.shape == (120, 16)
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-5)


def test_few_or_empty_titles_still_have_finite_vectors():
    assert ngram_vectors(["hypertension"], 8, 0).shape == (1, 1)
    assert ngram_vectors(["", ""], 8, 0).shape == (2, 1)
    assert np.isfinite(ngram_vectors(["", "asthma", "asthma"], 8, 0)).all()


# ------------------------------------------------------------------ transformers


def test_mean_pooling_leaves_padding_out():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[2.0, 3.0]]
    assert pool(hidden, mask, "cls").tolist() == [[1.0, 2.0]]


class _Tokeniser:
    @classmethod
    def from_pretrained(cls, folder, local_files_only, trust_remote_code):
        assert local_files_only
        assert trust_remote_code is False
        if folder.endswith("empty"):
            raise OSError("no file named config.json")
        return cls()

    def __call__(self, texts, *, padding, truncation, max_length, return_tensors):
        assert padding
        assert truncation
        length = max(len(text) for text in texts)
        mask = torch.tensor([[i < len(text) for i in range(length)] for text in texts]).long()
        ids = torch.tensor([[ord(c) for c in text.ljust(length, "~")] for text in texts])
        return {"input_ids": ids, "attention_mask": mask}


class _Model(torch.nn.Module):
    scale = 1.0

    @classmethod
    def from_pretrained(cls, folder, local_files_only, trust_remote_code):
        assert local_files_only
        assert trust_remote_code is False
        return cls()

    def forward(self, input_ids, attention_mask):
        assert not torch.is_grad_enabled()
        assert not self.training
        hidden = input_ids.float().unsqueeze(-1).repeat(1, 1, 3) * self.scale
        return types.SimpleNamespace(last_hidden_state=hidden)


@pytest.fixture
def fake_transformers(monkeypatch):
    module = types.ModuleType("transformers")
    module.AutoTokenizer, module.AutoModel = _Tokeniser, _Model
    monkeypatch.setitem(sys.modules, "transformers", module)


def test_batches_do_not_change_the_vectors(fake_transformers, tmp_path):
    texts = ["aa", "bbbb", "c"]
    steps: list[tuple[int, int]] = []
    found = transformer_vectors(texts, tmp_path, "mean", 2, lambda *step: steps.append(step))
    assert steps == [(2, 3), (3, 3)]
    assert found[:, 0].tolist() == [ord("a"), ord("b"), ord("c")]
    assert transformer_vectors([], tmp_path, "mean", 2).shape[0] == 0


def test_a_broken_encoder_is_refused(fake_transformers, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    config = TextConfig(encoder="transformer", path=str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"no text encoder in .*config\.json"):
        embed_titles(["a"], config, 0)
    monkeypatch.setattr(_Model, "scale", float("nan"))
    with pytest.raises(InputError, match="not finite"):
        transformer_vectors(["a"], tmp_path, "mean", 2)


def test_transformers_that_is_not_installed_is_said_plainly(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = TextConfig(encoder="transformer", path=str(tmp_path))
    with pytest.raises(ResourceError, match=r"medrec\[text\]"):
        embed_titles(["a"], config, 0)


def test_transformer_without_a_folder_does_not_validate():
    with pytest.raises(ValueError, match="needs path"):
        TextConfig(encoder="transformer")


def test_a_real_small_bert(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kidney", "failure", "heart"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    alone = transformer_vectors(["kidney"], tmp_path, "mean", 4)
    padded = transformer_vectors(["kidney", "heart failure kidney"], tmp_path, "mean", 4)
    np.testing.assert_allclose(alone[0], padded[0], atol=1e-5)
