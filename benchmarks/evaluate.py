"""A full evaluation with 10,000 resamples of patients, and the published way of evaluating.

Ours, on one thread: predictions of a test part of MIMIC-III's size (1,058 patients, about 2,500
visits, 131 drugs) to per-visit rows, all metrics, their 95 % intervals from 10,000 resamples, and
the paired difference with its interval to one reference of which the rows are stored.

The published way, written anew from its description: the metrics are computed in loops over
patients and visits, average precision by scikit-learn, interactions by a loop over the pairs of a
set; all of it again for each of ten draws of 80 % of the patients. Predicting again for each draw
is not counted. It gives a mean and a standard deviation, no interval and no difference.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import resource
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from record import Figure, publish
from sklearn.metrics import average_precision_score

from medrec.evaluation.bootstrap import (
    PatientSums,
    bootstrap_intervals,
    paired_bootstrap,
    percentile_interval,
    resample_together,
)
from medrec.evaluation.metrics import summarise, visit_columns

GOAL_S = 5.0
N_DRUGS, DDI_DENSITY, MEAN_DRUGS = 131, 0.0526, 19.0


@dataclass
class Predictions:
    """Truths, scores and interactions of a test part."""

    target: np.ndarray
    probs: np.ndarray
    patient: np.ndarray
    visit: np.ndarray
    ddi: np.ndarray
    severity: np.ndarray

    @property
    def selected(self) -> np.ndarray:
        """Recommended sets."""
        return self.probs >= 0.5

    def rows(self) -> pd.DataFrame:
        """Rows in batches of 64 patients, as `medrec.evaluation.evaluate` makes them."""
        cuts = np.searchsorted(self.patient, np.arange(0, self.patient[-1] + 65, 64))
        blocks = [self._block(slice(*ends)) for ends in itertools.pairwise(cuts)]
        return pd.DataFrame({name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]})

    def _block(self, part: slice) -> dict[str, np.ndarray]:
        probs = self.probs[part]
        return visit_columns(
            self.target[part],
            probs >= 0.5,
            probs.astype(np.float64),
            self.ddi,
            self.patient[part],
            self.visit[part],
            np.zeros(len(probs), np.int64),
            self.severity,
        )


def make(n_patients: int, skill: float, seed: int) -> Predictions:
    """Made-up truths with the published marginals, and scores that know something of them."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng([seed, 1])
    n_visits = np.minimum(1 + fixed.poisson(1.37, n_patients), 29)
    patient = np.repeat(np.arange(n_patients), n_visits)
    visit = np.arange(len(patient)) - np.repeat(np.cumsum(n_visits) - n_visits, n_visits)
    frequency = fixed.beta(0.5, 2.8, N_DRUGS)
    frequency *= MEAN_DRUGS / frequency.sum()
    target = fixed.random((len(patient), N_DRUGS)) < np.clip(frequency, 0, 1)
    noise = rng.random(target.shape)
    probs = (skill * target + (1 - skill) * np.clip(frequency + noise - 0.4, 0, 1)).astype("f4")
    upper = np.triu(fixed.random((N_DRUGS, N_DRUGS)) < DDI_DENSITY, 1)
    ddi = (upper | upper.T).astype(np.uint8)
    return Predictions(target, probs, patient, visit, ddi, ddi * 3)


def ours(model: Predictions, reference: pd.DataFrame) -> dict[str, float]:
    """Every step of an evaluation, as `medrec compare` does it: one set of draws for both."""
    rows = model.rows()
    summary, theirs = summarise(rows), summarise(reference)
    drawn = resample_together([[PatientSums.of(rows)], [PatientSums.of(reference)]])
    result = dict(summary)
    for name in drawn[0]:
        result[f"{name}_low"], result[f"{name}_high"] = percentile_interval(drawn[0][name])
        result[f"{name}_difference"] = summary[name] - theirs[name]
        percentile_interval(drawn[0][name] - drawn[1][name])
    return result


def published(model: Predictions) -> list[tuple[float, float, float, float]]:
    """Jaccard, F1, PRAUC and DDI rate of ten draws of 80 % of the patients."""
    selected = model.selected
    visits = [np.flatnonzero(model.patient == p) for p in range(model.patient[-1] + 1)]
    rng = np.random.RandomState(0)
    n_drawn = round(0.8 * len(visits))
    return [
        plain_metrics(model, selected, [visits[p] for p in rng.choice(len(visits), n_drawn)])
        for _ in range(10)
    ]


def plain_metrics(model, selected, patients) -> tuple[float, float, float, float]:
    jaccards, f1s, precisions = [], [], []
    n_interacting = n_pairs = 0
    for visits in patients:
        jaccard, f1, precision = [], [], []
        for v in visits:
            truth, chosen = np.flatnonzero(model.target[v]), np.flatnonzero(selected[v])
            both = set(truth) & set(chosen)
            union = set(truth) | set(chosen)
            jaccard.append(len(both) / len(union) if union else 1.0)
            p = len(both) / len(chosen) if len(chosen) else 0.0
            r = len(both) / len(truth) if len(truth) else 0.0
            f1.append(2 * p * r / (p + r) if p + r else 0.0)
            precision.append(average_precision_score(model.target[v], model.probs[v]))
            for i, a in enumerate(chosen):
                for j, b in enumerate(chosen):
                    if j <= i:
                        continue
                    n_pairs += 1
                    if model.ddi[a, b] == 1 or model.ddi[b, a] == 1:
                        n_interacting += 1
        jaccards.append(np.mean(jaccard))
        f1s.append(np.mean(f1))
        precisions.append(np.mean(precision))
    rate = n_interacting / n_pairs if n_pairs else 0.0
    return float(np.mean(jaccards)), float(np.mean(f1s)), float(np.mean(precisions)), rate


def check(model: Predictions) -> None:
    """Both ways agree on the whole test part."""
    visits = [np.flatnonzero(model.patient == p) for p in range(model.patient[-1] + 1)]
    plain = plain_metrics(model, model.selected, visits)
    summary = summarise(model.rows())
    mine = [summary[name] for name in ("jaccard", "f1", "prauc", "ddi_rate")]
    if not np.allclose(plain, mine, atol=1e-12, rtol=0):
        raise SystemExit(f"the two ways disagree: {plain} and {mine}")


def timed(function, *arguments) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function(*arguments)
    return time.process_time() - cpu, time.perf_counter() - wall


def peak_mb() -> float:
    """Peak memory of the process so far, libraries and predictions with it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    start_mb = peak_mb()
    model, reference = make(1_058, 0.3, 1), make(1_058, 0.2, 2).rows()
    cpu, wall = timed(ours, model, reference)
    small_mb = peak_mb()
    apart, _ = timed(
        lambda: (bootstrap_intervals(reference), paired_bootstrap(reference, reference))
    )
    check(model)
    peer_cpu, peer_wall = timed(published, model)
    before_mb = peak_mb()
    large = make(11_400, 0.3, 1)  # a sixth of MIMIC-IV
    large_reference = make(11_400, 0.2, 2).rows()
    predictions_mb = peak_mb()
    large_cpu, large_wall = timed(ours, large, large_reference)
    size, large_size = (f"{len(item.target):,} visits" for item in (model, large))
    publish(
        "evaluate",
        [
            Figure(f"evaluation, {size}, wall", wall, "s", None, None, GOAL_S, wall <= GOAL_S),
            Figure(f"evaluation, {size}, CPU", cpu, "CPU s", peer_cpu, peer_cpu / cpu),
            Figure("published way, ten draws, wall", peer_wall, "s"),
            Figure("intervals, then paired difference, by two calls", apart, "CPU s"),
            Figure("peak memory at start (libraries)", start_mb, "MB"),
            Figure(f"peak memory, {size}", small_mb, "MB"),
            Figure(f"evaluation, {large_size}, wall", large_wall, "s"),
            Figure(f"evaluation, {large_size}, CPU", large_cpu, "CPU s"),
            Figure("peak memory before", before_mb, "MB"),
            Figure("peak memory with the larger predictions made", predictions_mb, "MB"),
            Figure(f"peak memory, {large_size}", peak_mb(), "MB"),
        ],
    )


if __name__ == "__main__":
    main()
