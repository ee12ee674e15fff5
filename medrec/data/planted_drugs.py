"""Drugs of simulated visits: calibrated weights, the formula, and drawing in order of time.

Letters: n visits, D drugs, K conditions, U patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medrec.config import SyntheticSource
from medrec.data.planted import (
    SECOND_LINE_BIAS,
    SECOND_LINE_CONDITION,
    W_EARLIER,
    W_INDICATED,
    W_INTERACTION,
    W_PAST,
    W_PREVIOUS,
    W_SECOND_LINE,
    Bool,
    Float,
    Int,
    Plan,
)

COVER = 1.2
"""Share of visits in which a drug has an active indication, over its popularity."""
_CALIBRATION_PATIENTS, _CALIBRATION_ROUNDS, _CALIBRATION_SEED = 2_000, 20, 4


@dataclass(frozen=True)
class Rules:
    """The formula of `medrec.data.planted` with its numbers.

    Parameters
    ----------
    indicated_by : numpy.ndarray
        Bool, shape (D, K).
    bias, weight : numpy.ndarray
        Shape (D,): of each drug, and of its indication.
    """

    plan: Plan
    indicated_by: Bool
    bias: Float
    weight: Float
    history: bool
    interactions: bool

    def indicated(self, active: Bool) -> Bool:
        """Which drugs are called for by active conditions (n, K): shape (n, D)."""
        plan = self.plan
        wanted = (active.astype(np.float32) @ self.indicated_by.T.astype(np.float32)) > 0
        wanted &= ~(active[:, plan.contraindication] & (plan.contraindication >= 0))
        second = np.flatnonzero(plan.first_line >= 0)
        first = plan.first_line[second]
        now = active[:, [SECOND_LINE_CONDITION]]
        wanted[:, second] = wanted[:, first] & now
        wanted[:, first] &= ~now
        return wanted

    def logits(self, indicated: Bool, past: Past) -> NDArray[np.float32]:
        """Log odds of each drug, shape (n, D)."""
        logit = (self.bias + self.weight * indicated).astype(np.float32)
        if self.history:
            logit += np.float32(W_PREVIOUS) * past.previous
            logit += np.float32(W_EARLIER) * (past.earlier & ~past.previous)
            logit += np.float32(W_PAST) * (past.indicated & ~indicated)
        if self.interactions:
            met = past.previous.astype(np.float32) @ self.plan.interacts.astype(np.float32) > 0
            logit -= np.float32(W_INTERACTION) * met
        return logit


@dataclass
class Past:
    """What happened to some patients before a visit; all Bool, shape (n, D).

    Parameters
    ----------
    previous : numpy.ndarray
        Given at the previous visit.
    earlier : numpy.ndarray
        Given at a visit before that one.
    indicated : numpy.ndarray
        Indicated at any visit before.
    """

    previous: Bool
    earlier: Bool
    indicated: Bool

    def of(self, patients: Int) -> Past:
        """Rows of some patients."""
        return Past(self.previous[patients], self.earlier[patients], self.indicated[patients])

    def note(self, patients: Int, given: Bool, indicated: Bool) -> None:
        """Move on by one visit."""
        self.earlier[patients] |= self.previous[patients]
        self.previous[patients] = given
        self.indicated[patients] |= indicated


def no_past(n: int, n_drugs: int) -> Past:
    """Past of patients at their first visit."""
    return Past(*(np.zeros((n, n_drugs), dtype=bool) for _ in range(3)))


def logistic(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of log odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-logit)), dtype=np.float32)


def build_rules(
    plan: Plan, source: SyntheticSource, patient: Int, visit: Int, active: Bool
) -> Rules:
    """Indications by how often conditions are active, then biases that give the popularity.

    Parameters
    ----------
    patient, visit : numpy.ndarray
        Int, shape (n,), sorted.
    active : numpy.ndarray
        Bool, shape (n, K).
    """
    rules = Rules(
        plan,
        _indications(plan, active.mean(axis=0)),
        bias=_log_odds(plan.popularity) - W_INDICATED * plan.popularity,
        weight=np.where(plan.first_line >= 0, W_SECOND_LINE, W_INDICATED),
        history="history" in source.planted,
        interactions="interactions" in source.planted,
    )
    n = int(np.searchsorted(patient, _CALIBRATION_PATIENTS))
    sample = patient[:n], visit[:n], active[:n]
    for _ in range(_CALIBRATION_ROUNDS):
        rng = np.random.default_rng([source.seed, _CALIBRATION_SEED])
        frequency = draw_drugs(rules, *sample, rng)[1].mean(axis=0, dtype=np.float64)
        step = _log_odds(plan.popularity) - _log_odds(frequency)
        rules = replace(rules, bias=_fixed_second_lines(plan, rules.bias + 0.8 * step))
    return rules


def _log_odds(share: Float) -> Float:
    share = np.clip(share, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(share / (1 - share)))


def _fixed_second_lines(plan: Plan, bias: Float) -> Float:
    return np.where(plan.first_line >= 0, SECOND_LINE_BIAS, bias)


def _indications(plan: Plan, prevalence: Float) -> Bool:
    """Conditions by affinity, as many as it takes to cover the drug's popularity."""
    indicated = np.zeros(plan.affinity.shape, dtype=bool)
    for drug, affinity in enumerate(plan.affinity):
        order = np.argsort(-affinity, kind="stable")
        order = order[(order != plan.contraindication[drug]) & (order != SECOND_LINE_CONDITION)]
        covered = np.cumsum(prevalence[order])
        n = 1 + int(np.searchsorted(covered, COVER * plan.popularity[drug]))
        indicated[drug, order[:n]] = True
    return indicated


def draw_drugs(
    rules: Rules, patient: Int, visit: Int, active: Bool, rng: np.random.Generator
) -> tuple[Bool, NDArray[np.float32]]:
    """Drugs of all visits, first visits of all patients first.

    A visit without any drug is drawn again, so drugs are independent only given that there is one;
    the probabilities returned are those of this rule, exact drug by drug.

    Returns
    -------
    given, probability : numpy.ndarray
        Shape (n, D).
    """
    n_drugs = len(rules.bias)
    given = np.zeros((len(patient), n_drugs), dtype=bool)
    probability = np.zeros((len(patient), n_drugs), dtype=np.float32)
    past = no_past(int(patient[-1]) + 1, n_drugs)
    indicated = rules.indicated(active)
    order = np.argsort(visit, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(visit[order])) + 1):
        who = patient[rows]
        chance = logistic(rules.logits(indicated[rows], past.of(who)))
        drawn = rng.random(chance.shape, dtype=np.float32) < chance
        while (empty := np.flatnonzero(~drawn.any(axis=1))).size:
            drawn[empty] = rng.random((empty.size, n_drugs), dtype=np.float32) < chance[empty]
        past.note(who, drawn, indicated[rows])
        given[rows] = drawn
        probability[rows] = chance / (1 - np.prod(1 - chance, axis=1, keepdims=True))
    return given, probability
