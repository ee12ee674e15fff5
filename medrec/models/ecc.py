"""Ensemble of classifier chains (Read et al., Machine Learning 2011) over drugs.

A chain visits the drugs in an order of its own. The logistic regression of each drug reads the
codes of the current visit and the drugs before it in the chain: the true ones in fitting, the
chain's own 0/1 decisions in prediction. The chains' probabilities are averaged; drugs that no
training visit has get 0, drugs that all have get 1, and neither takes part in the chains.

The released baseline runs its regressions from zero. Here all chains fit one drug after the other,
each from the weights of the one before, which changes the time and not the optimum, since the
problems are convex and differ only in which other drugs they read. Prediction takes one step per
drug for all chains and visits together.

The recommended set is ``mean probability >= threshold`` with a tuned threshold, as in the other
models. ``sets: votes`` is the released rule: what at least half of the chains decide for, ranked by
the mean probability; no threshold is tuned then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from medrec.config import ECCModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch, VisitDataset
from medrec.models.base import DrugContext, Prediction
from medrec.models.regression import fit_drug, visit_matrix

_STATE = ("weight", "bias", "links", "order", "constant", "threshold")


class ECC:
    """See the module's text.

    Attributes
    ----------
    weight : Tensor (N_diagnoses + N_procedures, C, D)
        Weights of the codes in C chains.
    bias : Tensor (C, D)
    links : Tensor (C, D, D)
        Weight of the decision on drug j in the regression of drug i: ``links[c, i, j]``, zero if j
        comes after i.
    order : LongTensor (C, K)
        Drugs of each chain in its order.
    constant : Tensor (D,)
        Probability 0 or 1 of drugs that no or every training visit has; -1 for the others.
    n_not_converged : int
        Regressions that stopped before they reached the tolerance.
    """

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        model = config.model
        assert isinstance(model, ECCModelConfig)
        self.config, self.model = config, model
        self.thresholded = model.sets == "probabilities"
        self.n_diagnoses = context.n_diagnoses
        n_chains, n_drugs = model.n_chains, context.n_drugs
        n_inputs = context.n_diagnoses + context.n_procedures
        self.weight = torch.zeros(n_inputs, n_chains, n_drugs)
        self.bias = torch.zeros(n_chains, n_drugs)
        self.links = torch.zeros(n_chains, n_drugs, n_drugs)
        self.order = torch.zeros(n_chains, 0, dtype=torch.long)
        self.constant = torch.zeros(n_drugs)
        self.threshold = torch.tensor(config.optim.threshold)
        self.n_not_converged = 0

    def fit(self, dataset: VisitDataset, patients: npt.NDArray[np.int64]) -> None:
        """Fit one regression per chain and drug with scikit-learn."""
        inputs, targets = visit_matrix(dataset, patients)
        low, high = targets.min(axis=0), targets.max(axis=0)
        self.constant = torch.from_numpy(np.where(low == high, high, -1)).float()
        varying = np.flatnonzero(low != high)
        orders = [
            np.random.default_rng((self.config.seed, chain)).permutation(varying)
            for chain in range(self.model.n_chains)
        ]
        self.order = torch.from_numpy(np.stack(orders))
        given = sparse.csc_matrix(targets, dtype=np.float64)
        for drug in varying:
            self._fit_drug(int(drug), inputs, given, targets[:, drug], orders)

    def _fit_drug(
        self,
        drug: int,
        inputs: sparse.csr_matrix,
        given: sparse.csc_matrix,
        target: npt.NDArray[np.int64],
        orders: list[npt.NDArray[np.int64]],
    ) -> None:
        """Fit a drug in every chain, each from the weights found in the chain before."""
        n_inputs = inputs.shape[1]
        weight, bias, link = np.zeros(n_inputs), None, np.zeros(given.shape[1])
        for chain, order in enumerate(orders):
            before = np.sort(order[: int(np.flatnonzero(order == drug)[0])])
            extended = sparse.hstack([inputs, given[:, before]], format="csr")
            start = np.concatenate([weight, link[before]])
            fitted = fit_drug(extended, target, self.model, start, bias)
            self.n_not_converged += int(not fitted.converged)
            weight, bias = fitted.weight[:n_inputs], fitted.bias
            link[before] = fitted.weight[n_inputs:]  # the rest waits for a chain that reads it
            self.weight[:, chain, drug] = torch.from_numpy(weight).float()
            self.bias[chain, drug] = bias
            self.links[chain, drug, torch.from_numpy(before)] = torch.from_numpy(
                fitted.weight[n_inputs:]
            ).float()

    def predict(self, batch: VisitBatch) -> Prediction:
        """Run all chains on every visit on its own."""
        shape, device = batch.target.shape, batch.target.device
        scores, links = self._code_scores(batch), self.links.to(device)
        probs, chosen = torch.zeros_like(scores), torch.zeros_like(scores)
        chain = torch.arange(len(links), device=device)
        for drug in self.order.to(device).T:
            reads = links[chain, drug].unsqueeze(2)
            score = scores[chain, :, drug] + torch.bmm(chosen, reads).squeeze(2)
            probs[chain, :, drug] = torch.sigmoid(score)
            chosen[chain, :, drug] = (score >= 0.0).float()
        constant = self.constant.to(device)
        mean = torch.where(constant < 0, probs.mean(dim=0), constant).reshape(shape)
        if self.model.sets == "votes":
            votes = torch.where(constant < 0, chosen.mean(dim=0), constant).reshape(shape)
            selected = votes >= 0.5
        else:
            selected = mean >= self.threshold.to(device)
        return Prediction(torch.logit(mean, eps=1e-6), mean, selected)

    def _code_scores(self, batch: VisitBatch) -> torch.Tensor:
        """Part of the regressions that reads the codes (C, B * V, D)."""
        n_patients, n_visits = batch.shape
        flat, (n_chains, n_drugs) = n_patients * n_visits, self.bias.shape
        weight = self.weight.to(batch.target.device).flatten(1)
        scores = self.bias.to(weight.device).flatten().repeat(flat, 1)
        for bag, shift in ((batch.diagnoses, 0), (batch.procedures, self.n_diagnoses)):
            scores.index_add_(0, bag.visit, weight[bag.index + shift])
        return scores.reshape(flat, n_chains, n_drugs).transpose(0, 1)

    def state_dict(self) -> dict[str, Any]:
        """Weights, orders and threshold as tensors."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        for name in _STATE:
            setattr(self, name, state[name])
