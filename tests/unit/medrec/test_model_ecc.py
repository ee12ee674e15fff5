"""Classifier chains against scikit-learn's, and logistic regressions against their optimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medrec.config import TrainConfig
from medrec.data.dataset import CodeRows, VisitDataset
from medrec.fitting import LearningData, build_learning_data, tune_threshold
from medrec.models.ecc import ECC
from medrec.models.linear import LogisticRegression
from medrec.models.regression import fit_drug, visit_matrix


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    return build_learning_data(cohort, 0, None, molecules=False)


def settings(name: str = "ecc", **model: object) -> TrainConfig:
    return TrainConfig.model_validate({"name": "t", "model": {"name": name, **model}})


def fitted(data: LearningData, **model: object) -> ECC:
    ecc = ECC(settings(**model), data.context)
    ecc.fit(data.dataset, data.split.train)
    return ecc


def changed(data: LearningData, never: int, always: int) -> LearningData:
    """The same patients, one drug taken from all visits and one given at all visits."""
    old = data.dataset
    rows = [
        np.union1d(old.drugs[v][old.drugs[v] != never], [always])
        for v in range(len(old.drugs.starts) - 1)
    ]
    dataset = VisitDataset(
        old.vocabularies,
        old.positions,
        old._first,
        old.diagnoses,
        old.procedures,
        CodeRows.of(rows),
        old.n_unseen,
    )
    return replace(data, dataset=dataset)


def test_chains_are_scikit_learns(data):
    """Same orders, same regressions: the mean of scikit-learn's chains, found from other starts."""
    from sklearn.linear_model import LogisticRegression as OneDrug
    from sklearn.multioutput import ClassifierChain

    ecc = fitted(data, n_chains=3, tolerance=1e-7)
    inputs, targets = visit_matrix(data.dataset, data.split.train)
    assert (targets.min(0) < targets.max(0)).all()
    batch = data.dataset.collate(data.split.validation)
    rows, _ = visit_matrix(data.dataset, data.split.validation)
    probs, votes = [], []
    for order in ecc.order.tolist():
        one = OneDrug(solver="newton-cg", tol=1e-7, max_iter=1000)
        chain = ClassifierChain(one, order=order).fit(inputs.toarray(), targets)
        probs.append(chain.predict_proba(rows.toarray()))
        votes.append(chain.predict(rows.toarray()))
    prediction = ecc.predict(batch)
    found = prediction.probs[batch.mask].numpy()
    assert np.allclose(found, np.mean(probs, axis=0), atol=1e-4)
    assert ecc.n_not_converged == 0
    ecc.model = ecc.model.model_copy(update={"sets": "votes"})
    selected = ecc.predict(batch).selected[batch.mask].numpy()
    assert np.array_equal(selected, np.mean(votes, axis=0) >= 0.5)


def test_constant_drugs_take_no_part(data):
    few = changed(data, never=2, always=5)
    ecc = fitted(few, n_chains=2)
    batch = few.dataset.collate(few.split.validation)
    prediction = ecc.predict(batch)
    assert (prediction.probs[batch.mask][:, 2] == 0.0).all()
    assert not prediction.selected[..., 2].any()
    assert (prediction.probs[batch.mask][:, 5] == 1.0).all()
    assert prediction.selected[batch.mask][:, 5].all()
    assert prediction.logits.isfinite().all()
    for order in ecc.order.tolist():
        assert sorted(order) == [d for d in range(few.dataset.n_drugs) if d not in (2, 5)]
    assert not ecc.links[:, :, [2, 5]].any()


def test_chains_differ_and_read_only_what_is_before(data):
    ecc = fitted(data, n_chains=3)
    assert len({tuple(order) for order in ecc.order.tolist()}) == 3
    for chain, order in enumerate(ecc.order.tolist()):
        for place, drug in enumerate(order):
            assert not ecc.links[chain, drug, order[place:]].any()
            assert (ecc.links[chain, drug, order[:place]] != 0).all()


def test_votes_are_not_tuned(data):
    assert tune_threshold(fitted(data, n_chains=2, sets="votes"), data) is None
    tuned = fitted(data, n_chains=2)
    assert tune_threshold(tuned, data) == pytest.approx(float(tuned.threshold))


def test_state_is_plain_tensors(data, tmp_path):
    ecc = fitted(data, n_chains=2)
    assert all(isinstance(value, torch.Tensor) for value in ecc.state_dict().values())


def test_regressions_that_stop_early_are_counted(data):
    assert fitted(data, n_chains=2, max_iterations=1).n_not_converged > 0
    model = LogisticRegression(settings("logistic_regression", max_iterations=1), data.context)
    model.fit(data.dataset, data.split.train)
    assert model.n_not_converged > 0


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs"])
def test_regressions_reach_the_optimum(data, solver):
    """At the optimum the gradient of the penalised loss vanishes, whatever the start."""
    config = settings("logistic_regression", solver=solver, tolerance=1e-7)
    inputs, targets = visit_matrix(data.dataset, data.split.train)
    y = targets[:, 0]
    starts = (None, np.random.default_rng(0).normal(size=inputs.shape[1]))
    for start in starts:
        found = fit_drug(inputs, y, config.model, start)
        assert found.converged
        residual = 1.0 / (1.0 + np.exp(-(inputs @ found.weight + found.bias))) - y
        assert np.abs(inputs.T @ residual + found.weight).max() < 1e-3
        assert abs(residual.sum()) < 1e-3
