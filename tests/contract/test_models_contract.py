"""What every recommender must do, learned or not; a new model gets one row and no exception."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medrec.config import TrainConfig
from medrec.data.dataset import CodeBag, VisitBatch, collate
from medrec.fitting import (
    LearningData,
    build_learning_data,
    fit,
    fit_context,
    tune_threshold,
    validate,
)
from medrec.models import COUNTING_MODELS, LEARNED_MODELS, build_model
from medrec.models.base import Recommender
from medrec.models.encoding import SharedEncoding, tensors_of

SMALL = {
    "topk": {},
    "copy_last": {},
    "copy_frequency": {},
    "logistic_regression": {},
    "ecc": {"n_chains": 3},
    "bimorec": {
        "d_model": 16,
        "dropout": 0.0,
        "representation": {"layers": 2, "dropout": 0.0},
    },
    "causalmed": {"d_model": 16, "dropout": 0.0, "n_discovery_codes": 12},
    "cognet": {
        "d_model": 16,
        "d_feedforward": 32,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
        "beam_while_training": True,
    },
    "depot": {"d_model": 16, "dropout": 0.0},
    "leap": {"d_model": 16, "dropout": 0.0},
    "molerec": {
        "d_model": 16,
        "dropout": 0.0,
        "representation": {"layers": 2, "dropout": 0.0},
    },
    "safedrug": {"d_model": 16, "dropout": 0.0},
    "gamenet": {"d_model": 16, "dropout": 0.0, "graph_dropout": 0.0},
    "micron": {"d_model": 16, "dropout": 0.0},
    "mmm": {"d_model": 16, "dropout": 0.0, "representation": {"kind": "fingerprint"}},
    "retain": {"d_model": 16, "dropout": 0.0},
    "scqmed": {"d_model": 16, "dropout": 0.0},
    "udc": {"d_model": 16, "dropout": 0.0, "n_codes": 8, "code_steps": 20},
}


def test_every_registered_model_is_under_contract():
    assert set(SMALL) == set(COUNTING_MODELS) | set(LEARNED_MODELS)


@pytest.fixture(scope="module")
def data(synthetic, concept_table) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=True, concepts=concept_table)


def build(config: TrainConfig, data: LearningData):
    """Fit the context and build the model, as a training run does."""
    return build_model(config, fit_context(config, data).context)


def make_config(name: str, model: dict[str, object] | None = None, **optim: float) -> TrainConfig:
    sizes = {**SMALL[name], **(model or {})}
    return TrainConfig.model_validate(
        {"name": "t", "model": {"name": name, **sizes}, "optim": optim}
    )


@pytest.fixture(params=sorted(SMALL))
def model(request: pytest.FixtureRequest, data: LearningData):
    torch.manual_seed(0)
    built = build(make_config(request.param), data)
    if not isinstance(built, Recommender):
        built.fit(data.dataset, data.split.train)
    return built


def long_patients(data: LearningData, n: int = 4) -> list[int]:
    lengths = {p: len(v) for p, v in data.dataset.patients.items()}
    return sorted(lengths, key=lambda p: (-lengths[p], p))[:n]


def test_shapes_and_ranges(model, data):
    batch = data.dataset.collate(long_patients(data))
    prediction = model.predict(batch)
    assert prediction.logits.shape == batch.target.shape
    assert prediction.selected.dtype == torch.bool
    assert ((prediction.probs >= 0) & (prediction.probs <= 1)).all()


def test_padding_and_batch_order_change_nothing(model, data):
    shortest = min(data.dataset.patients, key=lambda p: len(data.dataset.patients[p]))
    patients = [*long_patients(data, 3), shortest]
    together = model.predict(data.dataset.collate(patients)).probs
    shuffled = model.predict(data.dataset.collate(patients[::-1])).probs.flip(0)
    assert torch.allclose(together, shuffled, atol=1e-5)
    for row, patient in enumerate(patients):
        alone = model.predict(data.dataset.collate([patient])).probs[0]
        assert torch.allclose(together[row, : len(alone)], alone, atol=1e-5)


def altered(batch: VisitBatch, t: int) -> VisitBatch:
    """Change the drugs of visit t and everything of later visits."""
    n_visits = batch.shape[1]
    target, before = 1.0 - batch.target, batch.drugs_before.clone()
    target[:, :t] = batch.target[:, :t]
    before[:, t + 1 :] = 1.0 - before[:, t + 1 :]

    def keep(bag: CodeBag) -> CodeBag:
        past = bag.visit % n_visits <= t
        return CodeBag(torch.where(past, bag.index, 0), bag.visit)

    return replace(
        batch,
        target=target,
        drugs_before=before,
        diagnoses=keep(batch.diagnoses),
        procedures=keep(batch.procedures),
    )


def test_the_future_and_the_current_drugs_change_no_prediction(model, data):
    batch = data.dataset.collate(long_patients(data))
    reference = model.predict(batch).probs
    for t in range(batch.shape[1]):
        probs = model.predict(altered(batch, t)).probs
        assert torch.allclose(probs[:, : t + 1], reference[:, : t + 1], atol=1e-6), t


def test_the_leak_test_can_fail(data):
    """A model that reads its target is caught by the test above."""
    batch = data.dataset.collate(long_patients(data))
    assert not torch.equal(altered(batch, 0).target[:, 0], batch.target[:, 0])
    assert not torch.equal(altered(batch, 0).drugs_before[:, 1], batch.drugs_before[:, 1])


def test_history_is_the_previous_visit_and_nothing_else(data):
    batch = data.dataset.collate(long_patients(data))
    assert not batch.drugs_before[:, 0].any()
    inside = batch.mask[:, 1:]
    assert torch.equal(batch.drugs_before[:, 1:][inside], batch.target[:, :-1][inside])


def test_one_pass_equals_separate_prefixes(model, data):
    patient = long_patients(data, 1)[0]
    visits = data.dataset.patients[patient]
    whole = model.predict(data.dataset.collate([patient])).probs[0]
    for t in range(1, len(visits) + 1):
        prefix = type(visits)(
            visits.diagnoses[:t], visits.procedures[:t], visits.drugs[:t], visits.n_unseen[:t]
        )
        probs = model.predict(collate([prefix], [0], data.dataset.n_drugs)).probs[0]
        assert torch.allclose(probs[-1], whole[t - 1], atol=1e-5)


def test_saved_and_loaded_predicts_the_same_bits(model, data, tmp_path):
    batch = data.dataset.collate(long_patients(data))
    name = model.config.model.name
    reference = model.predict(batch)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    other = build(make_config(name), data)
    # a prediction before loading must not survive the loading
    other.predict(batch)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.predict(batch).probs, reference.probs)
    assert torch.equal(other.predict(batch).selected, reference.selected)


# --------------------------------------------------------------------------- learned models


@pytest.fixture(params=sorted(LEARNED_MODELS))
def learned(request: pytest.FixtureRequest) -> str:
    return request.param


def test_gradients_reach_every_parameter(learned, data):
    torch.manual_seed(0)
    model = build(make_config(learned), data)
    batch = data.dataset.collate(list(data.dataset.patients)[:16])
    model.train()
    model.loss(batch, model(batch, model.encode_drugs())).total.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # rows of codes that the batch does not hold are zero, whole tables must not be
    assert silent == []


class Enough(Exception):
    """Raised to end training as soon as the score is reached."""


def test_memorises_eight_visits(learned, data):
    config = make_config(learned, {"d_model": 32}, lr=2e-3, epochs=1500, patience=1500)
    plain = {"gate": "none", "margin_weight": 0.0}
    config = config.model_copy(update={"loss": config.loss.model_copy(update=plain)})
    few, visits = [], 0
    for patient in long_patients(data, 20):
        if visits >= 8:
            break
        few.append(patient)
        visits += len(data.dataset.patients[patient])
    split = replace(data.split, train=np.array(few), validation=np.array(few))
    few_data = replace(data, split=split)
    best = -1.0

    def report(row, state):
        nonlocal best
        if row["epoch"] % 20 == 19:  # with the threshold that a run would take
            tune_threshold(model, few_data)
            best = max(best, validate(model, few_data)["val_jaccard"])
        # classes that share fragments are not freely separable in MoleRec, hence not 1.0
        if best > 0.9:
            raise Enough

    torch.manual_seed(0)
    model = build(config, few_data)
    with pytest.raises(Enough):
        fit(config, few_data, model, report=report)


def test_the_same_seed_gives_the_same_weights(learned, data):
    def train() -> dict[str, torch.Tensor]:
        config = make_config(learned, epochs=2)
        torch.manual_seed(config.seed)
        model = build(config, data)
        fit(config, data, model, report=lambda row, state: None)
        return model.state_dict()

    first, second = train(), train()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_three_and_three_epochs_equal_six(learned, data):
    config = make_config(learned, epochs=6, patience=6)

    def start():
        torch.manual_seed(config.seed)
        return build(config, data)

    states = []
    whole = fit(config, data, start(), report=lambda row, make: states.append(make()))
    resumed = fit(config, data, start(), report=lambda row, make: None, resume=states[2])
    assert [row["epoch"] for row in resumed.history] == [3, 4, 5]
    assert resumed.best_epoch == whole.best_epoch
    assert [r["train_loss"] for r in resumed.history] == [
        r["train_loss"] for r in whole.history[3:]
    ]
    for name, value in whole.best_state.items():
        assert torch.equal(value, resumed.best_state[name]), name


def test_one_encoding_for_several_steps_gives_the_mean_gradient(learned, data):
    """With no step between them, k batches of one encoding give what one pass would."""
    config = make_config(learned)
    torch.manual_seed(0)
    model = build(config, data)
    model.eval()  # no dropout, running statistics: both ways see the same encoding
    patients = list(data.dataset.patients)
    batches = [data.dataset.collate(patients[:8]), data.dataset.collate(patients[8:16])]

    def total(encoded, batch):
        return model.loss(batch, model(batch, encoded)).total

    shared = SharedEncoding(model, 2)
    for batch in batches:
        total(shared.current(), batch).backward()
        shared.backward(last=False)
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    encoded = model.encode_drugs()
    first, second = (total(encoded, batch) for batch in batches)
    encoder = set()
    if tensors_of(encoded):
        ((first + second) / 2).backward(retain_graph=True)
        mean = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        sum(t.sum() for t in tensors_of(encoded)).backward(retain_graph=True)
        encoder = {n for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        for name in encoder:
            assert torch.allclose(found[name], mean[name], atol=1e-6), name
    assert encoder or not model.needs_molecules or not tensors_of(encoded)
