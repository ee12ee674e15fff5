"""SCQMed's recommender: shared codes, start, history, ablations, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medrec.concepts.memory import PAPER_CODEBOOKS, PAPER_SIZES
from medrec.concepts.table import KINDS, ConceptTensors
from medrec.config import TrainConfig
from medrec.data.dataset import CodeBag
from medrec.fitting import LearningData, build_learning_data
from medrec.models.base import DrugContext
from medrec.models.scqmed import CodeEmbedding, SCQMed
from medrec.training import run_training, uses_concepts
from quantum.base import ConfigError, InputError


def config(**model: object) -> TrainConfig:
    sizes = {"name": "scqmed", "d_model": 16, "dropout": 0.0, **model}
    return TrainConfig.model_validate({"name": "t", "model": sizes})


@pytest.fixture(scope="module")
def data(synthetic, concept_table) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=False, concepts=concept_table)


def build(data: LearningData, **model: object) -> SCQMed:
    torch.manual_seed(0)
    return SCQMed(config(**model), data.context).eval()


def batch_of(data: LearningData):
    long = sorted(data.dataset.patients, key=lambda p: -len(data.dataset.patients[p]))[:6]
    return data.dataset.collate(long)


def test_vectors_start_as_the_sums_of_stage_one(data, concept_table):
    """The released constructor draws its tables anew after loading them."""
    model = build(data)
    for kind in KINDS:
        vocabulary = getattr(data.dataset.vocabularies, kind).codes
        place = {code: i for i, code in enumerate(concept_table.views[kind].codes)}
        codes = concept_table.codes[kind]
        for row, code in enumerate(vocabulary):
            expected = torch.cat(
                [
                    sum(
                        torch.from_numpy(codes.books[v, level, codes.index[place[code], v, level]])
                        for level in range(3)
                    )
                    for v in range(2)
                ]
            )
            found = model.embed[kind].vectors(torch.tensor([row]))[0]
            assert torch.allclose(found, expected, atol=1e-6)


def test_concepts_with_equal_codes_share_gradients():
    index = torch.tensor([[[0, 1]], [[0, 1]], [[0, 2]]])  # N=3, V=1, L=2
    embedding = CodeEmbedding(index, torch.randn(1, 2, 3, 4), 0.0)
    embedding.vectors(torch.tensor([0])).sum().backward()
    first = embedding.tables.grad.clone()
    embedding.zero_grad()
    embedding.vectors(torch.tensor([1])).sum().backward()
    assert torch.equal(embedding.tables.grad, first)
    assert first[0, 0, 0].tolist() == [1.0] * 4
    assert first[0, 1, 1].tolist() == [1.0] * 4
    assert first.sum() == 8.0  # and nothing else
    # a step on one concept moves the other, and in part the third, which shares its first code
    with torch.no_grad():
        before = embedding.vectors(torch.tensor([1, 2]))
        embedding.tables -= 0.1 * first
        moved = embedding.vectors(torch.tensor([1, 2])) - before
    assert torch.allclose(moved, torch.tensor([[-0.2] * 4, [-0.1] * 4]), atol=1e-6)


def test_a_visit_is_the_sum_of_its_concepts_and_an_empty_one_is_zero():
    torch.manual_seed(0)
    embedding = CodeEmbedding(torch.randint(0, 4, (5, 2, 3)), torch.randn(2, 3, 4, 6), 0.0)
    bag = CodeBag(torch.tensor([4, 0, 0]), torch.tensor([1, 1, 2]))
    found = embedding(bag, 3)
    vectors = embedding.vectors(torch.arange(5))
    assert not found[0].any()
    assert torch.allclose(found[1], vectors[4] + vectors[0], atol=1e-6)
    assert torch.allclose(found[2], vectors[0], atol=1e-6)


def paper_context(cohort: str) -> DrugContext:
    n = dict(zip(KINDS, PAPER_SIZES[cohort], strict=True))
    concepts = {
        kind: ConceptTensors(
            torch.zeros(n[kind], 2, 4, dtype=torch.long),
            torch.zeros(2, 4, PAPER_CODEBOOKS[kind], 64),
        )
        for kind in KINDS
    }
    sizes = (n["diagnoses"], n["procedures"], n["drugs"])
    return DrugContext(*sizes, torch.zeros(131, 131), concepts=concepts)


@pytest.mark.parametrize(
    ("cohort", "continuous"), [("MIMIC-III", 440_704), ("MIMIC-IV", 1_687_936)]
)
def test_sizes_of_the_state_at_the_sizes_of_the_paper(cohort, continuous):
    context = paper_context(cohort)
    state = SCQMed(config(d_model=128), context).state_dict()
    tables = [t for name, t in state.items() if name.endswith(".tables")]
    indices = [t for name, t in state.items() if name.endswith(".index")]
    assert sum(t.numel() for t in tables) == 278_528
    assert {t.dtype for t in indices} == {torch.uint8}
    assert sum(t.numel() for t in indices) == 8 * sum(PAPER_SIZES[cohort])
    free = SCQMed(config(d_model=128, concepts="table"), replace(context, concepts={}))
    embeddings = [p for name, p in free.named_parameters() if name.startswith("embed.")]
    assert sum(p.numel() for p in embeddings) == continuous
    # everything else is equal: three GRUs of 128 and the head
    rest = [p.numel() for n, p in free.named_parameters() if not n.startswith("embed.")]
    assert sum(rest) == 3 * (2 * 3 * 128 * 128 + 2 * 3 * 128) + 384 * 128 + 128 + 129 * 131


def test_indices_above_256_codes_are_kept_whole():
    index = torch.tensor([[[299]], [[3]]])
    embedding = CodeEmbedding(index, torch.randn(1, 1, 300, 2), 0.0)
    assert embedding.index.dtype == torch.int16
    assert torch.equal(embedding.vectors(torch.tensor([0]))[0], embedding.tables[0, 0, 299])


def test_history_is_the_previous_visit_or_the_sum_of_all_earlier_ones(data):
    batch = batch_of(data)
    previous, cumulative = build(data), build(data, history="cumulative")
    cumulative.load_state_dict(previous.state_dict())
    seen: dict[str, torch.Tensor] = {}
    for name, model in (("previous", previous), ("cumulative", cumulative)):
        model.grus["drugs"].register_forward_pre_hook(
            lambda module, args, name=name: seen.__setitem__(name, args[0])
        )
        model(batch, None)
    vectors = previous.embed["drugs"].vectors(torch.arange(data.context.n_drugs))
    given = batch.drugs_before @ vectors
    assert torch.allclose(seen["previous"], given, atol=1e-5)
    assert torch.allclose(seen["cumulative"], given.cumsum(dim=1), atol=1e-5)
    assert not seen["previous"][:, 0].any()  # nothing before the first visit
    assert not torch.allclose(seen["previous"][:, 2], seen["cumulative"][:, 2])


def test_the_drugs_of_the_visit_change_nothing(data):
    batch = batch_of(data)
    for history in ("previous", "cumulative"):
        model = build(data, history=history)
        other = replace(batch, target=1.0 - batch.target)
        assert torch.equal(model(batch, None).logits, model(other, None).logits)


def test_head_and_sizes(data):
    mlp, linear = build(data), build(data, head="linear")
    assert [type(layer).__name__ for layer in mlp.head] == ["Linear", "ReLU", "Linear"]
    assert mlp.head[0].in_features == 48
    assert linear.head.weight.shape == (data.context.n_drugs, 48)
    assert mlp.grus["drugs"].input_size == 16  # two views of 8
    batch = batch_of(data)
    assert mlp(batch, None).logits.shape == batch.target.shape


def test_dropout_acts_on_elements_of_concept_vectors_before_the_sum():
    torch.manual_seed(0)
    embedding = CodeEmbedding(torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, 8), 0.5)
    bag = CodeBag(torch.zeros(100, dtype=torch.long), torch.zeros(100, dtype=torch.long))
    visit = embedding.train()(bag, 1)[0]
    # on the sum, an element would be 0 or 200
    assert ((visit > 40) & (visit < 160)).all()
    assert embedding.eval()(bag, 1)[0].tolist() == [100.0] * 8


# --------------------------------------------------------------------------- ablations


def test_semantic_alone_reads_the_semantic_codes(data):
    model = build(data, views=["semantic"])
    whole = build(data)
    for kind in KINDS:
        concepts = torch.arange(getattr(data.context, f"n_{kind}"))
        semantic = whole.embed[kind].vectors(concepts)[:, :8]
        assert torch.equal(model.embed[kind].vectors(concepts), semantic)
    assert model.grus["drugs"].input_size == 8


def test_the_order_of_views_is_the_order_of_their_columns(data):
    swapped, plain = build(data, views=["structural", "semantic"]), build(data)
    drugs = torch.arange(data.context.n_drugs)
    found = swapped.embed["drugs"].vectors(drugs)
    assert torch.equal(found, plain.embed["drugs"].vectors(drugs).roll(8, dims=1))


def test_a_free_table_needs_no_codes_and_shares_nothing(data):
    assert uses_concepts(config())
    assert not uses_concepts(config(concepts="table"))
    model = SCQMed(config(concepts="table"), replace(data.context, concepts={}))
    table = model.embed["drugs"].table.weight
    assert table.shape == (data.context.n_drugs, 16)
    model(batch_of(data), None).logits.sum().backward()
    assert len(torch.unique(table.grad[table.grad.any(dim=1)], dim=0)) > 1


def test_a_run_of_the_free_table_ignores_a_concept_table(synthetic, concept_table):
    home, cohort = synthetic
    short = config(concepts="table").model_copy(
        update={"optim": config().optim.model_copy(update={"epochs": 1})}
    )
    run = run_training(short, cohort, home, concepts=concept_table)
    assert run.is_finished
    assert "concepts" not in run.inputs
    assert run_training(short, cohort, home).name == run.name


def test_without_codes_the_message_names_the_command(data):
    with pytest.raises(InputError, match=r"medrec concepts .*--concepts"):
        SCQMed(config(), replace(data.context, concepts={}))


def test_a_view_that_the_table_lacks_is_refused(data):
    semantic = {
        kind: ConceptTensors(item.index[:, :1], item.books[:1], ("semantic",))
        for kind, item in data.context.concepts.items()
    }
    context = replace(data.context, concepts=semantic)
    with pytest.raises(InputError, match="no structural codes of diagnoses, only semantic"):
        SCQMed(config(), context)
    assert SCQMed(config(views=["semantic"]), context).embed["drugs"].size == 8


@pytest.mark.parametrize("views", [[], ["semantic", "semantic"]])
def test_views_have_to_differ(views):
    with pytest.raises((ValueError, ConfigError), match="views"):
        config(views=views)


def test_a_vocabulary_without_codes_gives_zeros(data):
    empty = ConceptTensors(torch.zeros(0, 2, 3, dtype=torch.long), torch.zeros(2, 3, 1, 8))
    concepts = data.context.concepts | {"procedures": empty}
    model = SCQMed(config(), replace(data.context, n_procedures=0, concepts=concepts))
    batch = batch_of(data)
    none = CodeBag(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert model(replace(batch, procedures=none), None).logits.isfinite().all()
