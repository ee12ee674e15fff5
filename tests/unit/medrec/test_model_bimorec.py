"""BiMoRec: one batched pass equals the formulas visit by visit; who may change what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from medrec.config import BiMoRecModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.data.schema import Vocabulary
from medrec.fitting import LearningData, build_learning_data
from medrec.models import bimorec
from medrec.models.base import DrugContext
from medrec.models.bimorec import BiMoRec, History, padded
from medrec.models.layers import SetAttention
from medrec.molecules.drugs import pool_molecules
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.structure import build_molecule_tables
from quantum.base import InputError


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=True)


def shared_molecules(data: LearningData) -> DrugContext:
    """Context in which classes have several molecules, and molecules several classes."""
    assert data.drugs is not None
    vocabulary = data.dataset.vocabularies.drugs
    smiles = data.drugs.smiles
    pairs = []
    for i, code in enumerate(vocabulary.codes[:-1]):
        pairs += [(code, smiles[i % len(smiles)]), (code, smiles[(i + 1) % len(smiles)])]
        pairs += [(code, smiles[0])] if i % 3 == 0 else []
    drugs = pool_molecules(pairs, vocabulary)  # the last class has no molecule at all
    return replace(data.context, molecules=build_molecule_tables(drugs, None))


def make(context: DrugContext, train: bool = False, **model: Any) -> BiMoRec:
    sizes = {
        "d_model": 8,
        "dropout": 0.0,
        "representation": {"layers": 2, "dropout": 0.0},
        **model,
    }
    config = TrainConfig.model_validate({"name": "t", "model": {"name": "bimorec", **sizes}})
    torch.manual_seed(0)
    model_ = BiMoRec(config, context)
    with torch.no_grad():  # weights of a size at which every step matters
        for name, value in model_.named_parameters():
            if "representation" not in name and value.dim() > 1:
                value.mul_(3.0)
    return model_.train(train)


def long_batch(data: LearningData, n: int = 6) -> VisitBatch:
    lengths = {p: len(v) for p, v in data.dataset.patients.items()}
    patients = sorted(lengths, key=lambda p: (-lengths[p], p))[: n - 1]
    return data.dataset.collate([*patients, min(lengths, key=lambda p: lengths[p])])


# --------------------------------------------------------------------------- the formulas


def set_attention(layer: SetAttention, rows: torch.Tensor) -> torch.Tensor:
    """One set, one head after the other."""
    size = rows.shape[1] // layer.n_heads
    query, key, value = layer.query(rows), layer.key(rows), layer.value(rows)
    found = []
    for head in range(layer.n_heads):
        part = slice(head * size, (head + 1) * size)
        weights = torch.softmax(query[:, part] @ key[:, part].T / size**0.5, dim=1)
        found.append(weights @ value[:, part])
    attended = torch.cat(found, dim=1)
    if layer.form == "reference":
        return layer.norm_2(layer.dense(layer.norm_1(query + attended)))
    hidden = layer.norm_1(rows + attended)
    return layer.norm_2(hidden + torch.relu(layer.dense(hidden)))


def plain_logits(model: BiMoRec, dataset: Any, patient: int, t: int) -> torch.Tensor:
    """Logits (D,) of visit t of a patient, by the formulas and nothing else."""
    visits, config = dataset.patients[patient], model.config.model
    assert isinstance(config, BiMoRecModelConfig)

    def total(bag: nn.Module, codes: Any) -> torch.Tensor:
        return bag.table.weight[torch.as_tensor(codes)].sum(dim=0)

    def codes_of(k: int) -> list[torch.Tensor]:
        return [
            total(model.diagnoses, visits.diagnoses[k]),
            total(model.procedures, visits.procedures[k]),
        ]

    latest = model.latest(torch.cat(codes_of(t)))
    if t == 0:
        return latest
    source = model.representation
    mask, projection = source.fragment_mask, source.projection
    fragments = set_attention(model.fragment_attention, source.fragments())
    rated = []
    for k in range(t):
        drugs = torch.as_tensor(visits.drugs[k])
        query = model.visit(torch.cat([*codes_of(k), total(model.drugs, drugs)]))
        weights = torch.sigmoid(model.relation(query))
        molecules = source.molecules().clone()
        if config.intra_visit:
            rows = (projection[drugs] > 0).any(dim=0).nonzero().flatten()
            molecules[rows] = set_attention(model.molecule_attention, molecules[rows])
        scores = model.aggregate.query(projection @ molecules) @ model.aggregate.key(fragments).T
        scores = (scores / config.d_model**0.5).masked_fill(~mask, -1e30)
        attention = torch.softmax(scores, dim=1) * mask
        vectors = attention @ torch.diag(weights) @ fragments
        if config.latest_visit:
            vectors = torch.diag(torch.sigmoid(latest)) @ vectors
        rated.append(model.score(model.score_in(vectors)).squeeze(1))
    states, last = model.gru(torch.stack(rated).unsqueeze(0))
    assert torch.equal(states[0, -1], last[0, 0])  # one layer: last output and state are one
    return model.leave(last[0, 0]) + latest


@pytest.mark.parametrize("several", [False, True], ids=["one molecule", "shared molecules"])
@pytest.mark.parametrize(
    "options",
    [{}, {"sab": "paper"}, {"intra_visit": False}, {"latest_visit": False}],
    ids=["default", "paper", "no intra", "no latest"],
)
def test_one_pass_equals_the_formulas(data, options, several, monkeypatch):
    monkeypatch.setattr(bimorec, "PAIRS_AT_ONCE", 7)
    model = make(shared_molecules(data) if several else data.context, **options)
    batch = long_batch(data)
    assert batch.shape[1] >= 3
    logits = model.predict(batch).logits
    places = batch.mask.nonzero().tolist()
    with torch.no_grad():
        plain = torch.stack(
            [plain_logits(model, data.dataset, int(batch.patient[b]), t) for b, t in places]
        )
    assert torch.allclose(logits[batch.mask], plain, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"kind": "none"}, {"kind": "fingerprint"}, {"fragments": "table"}], ids=str
)
def test_other_representations_follow_the_same_formulas(data, options):
    model = make(data.context, representation={"layers": 2, "dropout": 0.0, **options})
    batch = long_batch(data, 3)
    model.loss(batch, model(batch, model.encode_drugs())).total.backward()
    # one fragment per class leaves nothing to attend to
    moved = any(p.grad.any() for p in model.molecule_attention.parameters())
    assert moved == (options.get("kind") != "none")
    logits = model.predict(batch).logits[0, 1]
    with torch.no_grad():
        plain = plain_logits(model, data.dataset, int(batch.patient[0]), 1)
    assert torch.allclose(logits, plain, atol=1e-5)


def test_gradients_equal_those_of_the_formulas(data, monkeypatch):
    """Also where pairs are scored in parts and computed again on the way back."""
    monkeypatch.setattr(bimorec, "PAIRS_AT_ONCE", 5)
    batch = long_batch(data, 3)
    gradients = []
    for plain in (False, True):
        model = make(shared_molecules(data))  # evaluation mode: the same running statistics
        prediction = model(batch, model.encode_drugs())
        if plain:
            places = batch.mask.nonzero().tolist()
            rows = [plain_logits(model, data.dataset, int(batch.patient[b]), t) for b, t in places]
            prediction.logits = torch.zeros_like(prediction.logits)
            prediction.logits[batch.mask] = torch.stack(rows)
        model.loss(batch, prediction).total.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][name], atol=1e-5), name


def test_pairs_of_visits_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    history = History.of(mask)
    assert history.past.tolist() == [0, 1, 6]
    assert history.target.tolist() == [1, 2, 7]
    assert history.length.tolist() == [1, 2, 1]
    assert history.pair_target.tolist() == [0, 1, 1, 2]
    assert history.past[history.pair_past].tolist() == [0, 0, 1, 6]
    assert history.step.tolist() == [0, 0, 1, 0]


def test_padded_sets_by_hand():
    index, inside = padded(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]) > 0)
    assert index[inside].tolist() == [1, 3, 2]
    assert inside.tolist() == [[True, True], [False, False], [True, False]]


# --------------------------------------------------------------------------- who changes what


def test_the_drugs_of_the_visit_are_never_read(data):
    model, batch = make(data.context), long_batch(data)
    reference = model.predict(batch).logits
    turned = model.predict(replace(batch, target=1.0 - batch.target)).logits
    assert torch.equal(turned, reference)
    earlier = batch.drugs_before.clone()
    earlier[:, 1] = 1.0 - earlier[:, 1]
    changed = model.predict(replace(batch, drugs_before=earlier)).logits
    assert torch.equal(changed[:, 0], reference[:, 0])
    assert not torch.allclose(changed[0, 1], reference[0, 1], atol=1e-4)


def test_intra_visit_enhancement_changes_only_classes_of_the_visits_molecules(data):
    model = make(shared_molecules(data))
    projection = model.representation.projection
    given = torch.zeros(2, len(projection))
    given[0, 4] = 1.0
    drugs = model.encode_drugs()
    with torch.no_grad():
        attention = model.attention(given, drugs)
    plain = torch.softmax(
        drugs.scores.masked_fill(~model.aggregate.present, torch.finfo().min), dim=1
    )
    plain = plain * model.aggregate.present
    touched = (projection[:, projection[4] > 0] > 0).any(dim=1)
    assert 1 < int(touched.sum()) < len(touched)
    assert torch.equal(attention[0][~touched], plain[~touched])
    several = model.aggregate.present.sum(dim=1) > 1
    assert (attention[0] - plain).abs().amax(dim=1)[touched & several].min() > 1e-6
    assert torch.equal(attention[1], plain)  # a visit without drugs enhances nothing


@pytest.mark.parametrize("flag", ["intra_visit", "latest_visit"])
def test_each_enhancement_changes_later_visits_and_no_first_one(data, flag):
    batch = long_batch(data)
    whole, without = make(data.context), make(data.context, **{flag: False})
    without.load_state_dict(whole.state_dict(), strict=False)
    one, other = whole.predict(batch).logits, without.predict(batch).logits
    assert torch.equal(one[:, 0], other[:, 0])
    assert not torch.allclose(one[0, 1], other[0, 1], atol=1e-4)


def test_molecule_modules_get_no_gradient_from_first_visits(data):
    model = make(data.context, train=True)
    batch = long_batch(data)
    prediction = model(batch, model.encode_drugs())
    prediction.logits[:, 0].sum().backward()
    assert all(p.grad is not None for p in model.latest.parameters())
    past = ("representation", "aggregate", "score", "gru", "molecule_att", "fragment_att", "visit")
    for name, value in model.named_parameters():
        if name.startswith(past):
            assert value.grad is None or not value.grad.any(), name


def test_a_batch_of_first_visits_only_needs_no_molecule(data):
    model = make(data.context, train=True)
    batch = long_batch(data)
    first = replace(
        batch,
        **{
            name: getattr(batch, name)[:, :1]
            for name in ("drugs_before", "target", "n_unseen", "mask")
        },
        diagnoses=bag_of_first(batch.diagnoses, batch.shape[1]),
        procedures=bag_of_first(batch.procedures, batch.shape[1]),
    )
    found = model(first, model.encode_drugs()).logits[:, 0]
    assert torch.allclose(found, model(batch, model.encode_drugs()).logits[:, 0], atol=1e-6)


def bag_of_first(bag: Any, n_visits: int) -> Any:
    keep = bag.visit % n_visits == 0
    return replace(bag, index=bag.index[keep], visit=bag.visit[keep] // n_visits)


def test_a_visit_without_drugs_keeps_gradients_finite(data):
    model = make(data.context, train=True)
    batch = long_batch(data)
    before = batch.drugs_before.clone()
    before[0] = 0.0
    batch = replace(batch, drugs_before=before)
    model.loss(batch, model(batch, model.encode_drugs())).total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --------------------------------------------------------------------------- sizes and starts


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_at_the_papers_sizes():
    """N_D 1,958, N_P 1,430, M 131, S 491, d 128: about 1.5 million."""
    n_d, n_p, m, s, d = 1958, 1430, 131, 491, 128

    def linear(n: int, k: int) -> int:
        return n * k + k

    attention = 4 * linear(d, d) + 2 * 2 * d
    parts = [
        (n_d + n_p + m) * d,
        linear(3 * d, d) + linear(d, s),
        linear(2 * d, d) + linear(d, m),
        2 * linear(d, d),
        linear(d, 64) + linear(64, 32) + linear(32, 1),
        2 * 3 * m * (m + 1),
        linear(m, m),
        2 * attention,
    ]
    tables = stand_in(m, s)
    config = TrainConfig.model_validate({"name": "t", "model": {"name": "bimorec"}})
    model = BiMoRec(config, DrugContext(n_d, n_p, m, torch.zeros(m, m), tables))
    gin = n_parameters(GINEncoder(d, 4, 0.5))
    assert n_parameters(model) == sum(parts) + 2 * gin
    assert n_parameters(model) == pytest.approx(1.5e6, rel=0.02)


def stand_in(n_drugs: int, n_fragments: int) -> Any:
    """Tables of which only the sizes matter."""
    molecules = build_molecule_tables(pool_molecules([("A", "CCO")], Vocabulary(("A",))), None)
    mask = torch.zeros(n_drugs, n_fragments, dtype=torch.bool)
    mask[torch.arange(n_fragments) % n_drugs, torch.arange(n_fragments)] = True
    return replace(molecules, projection=torch.eye(n_drugs), fragment_mask=mask)


def test_molecules_are_unique_although_classes_share_them(data):
    context = shared_molecules(data)
    assert context.molecules is not None
    projection = context.molecules.projection
    n_rows = int((projection > 0).sum())
    assert context.molecules.molecules.n_graphs < n_rows
    model = make(context)
    assert len(model.encode_drugs().molecules) == context.molecules.molecules.n_graphs
    # every class of a molecule is named once, with its share
    dense = torch.zeros_like(projection.T).scatter_add(1, model.owners, model.shares)
    assert torch.allclose(dense, projection.T)


def test_stage_one_reaches_both_networks_with_its_buffers(data):
    torch.manual_seed(7)
    trained = {name: GINEncoder(8, 2, 0.3) for name in ("gin_molecule", "gin_fragment")}
    tables = data.context.molecules
    for name, encoder in trained.items():  # moves the running statistics
        encoder(tables.molecules if name == "gin_molecule" else tables.fragments)
        encoder.eval()
    model = make(data.context)
    before = model.predict(long_batch(data)).logits
    state = {name: encoder.state_dict() for name, encoder in trained.items()}
    model.load_pretrained({**state, "encoder": {"d_model": 8, "gin_layers": 2}})
    model.eval()
    with torch.no_grad():
        for found, name, graphs in (
            (model.representation.molecules(), "gin_molecule", tables.molecules),
            (model.representation.fragments(), "gin_fragment", tables.fragments),
        ):
            assert torch.equal(found, trained[name](graphs)), name
    assert not torch.allclose(model.predict(long_batch(data)).logits, before, atol=1e-4)
    with pytest.raises(InputError, match="sizes"):
        model.load_pretrained({**state, "encoder": {"d_model": 9, "gin_layers": 2}})


def test_refusals(data):
    with pytest.raises(InputError, match="needs the molecules"):
        make(replace(data.context, molecules=None))
    with pytest.raises(ValueError, match="not divisible"):
        BiMoRecModelConfig(d_model=9)
