"""Finished runs decoded anew: without forbidden pairs, or with a penalty on interactions.

The weights stay as they are, so this costs one prediction. Letters: n visits, D drugs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.data.dataset import build_dataset
from medrec.evaluation.bootstrap import bootstrap_intervals, paired_bootstrap
from medrec.evaluation.evaluate import evaluate
from medrec.evaluation.frontier import Curve, Setting, penalised_logits
from medrec.evaluation.groups import load_rows
from medrec.evaluation.hard_mode import allowed_sets, forbidden_pairs
from medrec.evaluation.metrics import SEVERITIES, count_pairs, summarise, visit_rows
from medrec.evaluation.threshold import best_threshold
from medrec.fitting import EVALUATION_BATCH
from medrec.molecules.drugs import ddi_matrix, severity_matrix
from medrec.runs import Home, Run
from medrec.training import LoadedRun, load_predictor
from quantum.base import InputError

Part = Literal["validation", "test"]
STRENGTHS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.2, 1.6)
"""Of the penalty at decoding, in logits per interacting drug that is sure to be given.

Close together, because straight lines between settings lie below a bent curve: with eight of them
differences of 0.01 in Jaccard appeared that thirteen did not show.
"""


@dataclass(frozen=True)
class Predictions:
    """All visits of a part of the split, by patient and visit.

    Attributes
    ----------
    target, selected : ndarray (n, D) of bool
    logits, probs : ndarray (n, D)
    patient, visit, n_unseen : ndarray (n,)
    """

    target: npt.NDArray[np.bool_]
    selected: npt.NDArray[np.bool_]
    logits: npt.NDArray[np.float32]
    probs: npt.NDArray[np.float32]
    patient: npt.NDArray[np.int64]
    visit: npt.NDArray[np.int64]
    n_unseen: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Redecoder:
    """A finished run with the interactions of its drug vocabulary.

    Attributes
    ----------
    ddi, severity : ndarray (D, D)
        Interactions 0/1; grades 0 to 4.
    """

    run: Run
    loaded: LoadedRun
    ddi: npt.NDArray[Any]
    severity: npt.NDArray[Any]

    @classmethod
    def of(cls, run: Run, home: Home) -> Redecoder:
        """Load a finished training run.

        Raises
        ------
        InputError
            If the run is not finished or something it was made of is gone.
        """
        loaded = load_predictor(run, home)
        drugs = loaded.vocabularies.drugs
        matrices = (make(loaded.cohort, drugs) for make in (ddi_matrix, severity_matrix))
        return cls(run, loaded, *matrices)

    def _batches(self, part: Part) -> Any:
        dataset = build_dataset(self.loaded.cohort, self.loaded.vocabularies)
        patients = getattr(self.loaded.cohort.split(self.loaded.config.split), part)
        return dataset.batches(patients, EVALUATION_BATCH)

    def plain_rows(self, part: Part) -> pd.DataFrame:
        """Rows of the run's own predictions."""
        return evaluate(self.loaded.model.predict, self._batches(part), self.ddi, self.severity)

    @torch.no_grad()
    def predictions(self, part: Part) -> Predictions:
        """Predict every visit of a part of the run's split."""
        found: list[tuple[torch.Tensor, ...]] = []
        for batch in self._batches(part):
            own, mask = self.loaded.model.predict(batch), batch.mask
            patient = batch.patient.unsqueeze(1).expand(mask.shape)
            visit = torch.arange(mask.shape[1]).expand(mask.shape)
            columns = (batch.target > 0.5, own.selected, own.logits, own.probs)
            found.append(tuple(item[mask] for item in (*columns, patient, visit, batch.n_unseen)))
        if not found:
            raise InputError(f"the {part} part of the split holds no patient")
        stacked = [torch.cat(column).numpy() for column in zip(*found, strict=True)]
        order = np.lexsort((stacked[5], stacked[4]))
        return Predictions(*(column[order] for column in stacked))

    def rows(
        self, of: Predictions, selected: npt.NDArray[np.bool_], probs: npt.NDArray[np.floating]
    ) -> pd.DataFrame:
        """Per-visit rows of other sets for the same visits."""
        scores = probs.astype(np.float64)
        return visit_rows(
            of.target, selected, scores, self.ddi, of.patient, of.visit, of.n_unseen, self.severity
        )


# --------------------------------------------------------------------------- hard mode


@dataclass(frozen=True)
class HardResult:
    """What forbidding pairs of a grade or worse does to a run's test predictions.

    Attributes
    ----------
    rows : pandas.DataFrame
        Per-visit rows of the sets without forbidden pairs.
    table : pandas.DataFrame
        One row per metric: ``before``, ``after``, ``difference`` with ``low`` and ``high``
        (paired), and ``truth`` where the true sets have the metric.
    facts : dict
        ``grade``, ``visits``, ``visits_changed``, ``dropped_per_visit``, ``dropped``,
        ``dropped_true`` (of these, drugs that were given), ``visits_greedy``; the rate of
        forbidden pairs ``forbidden_before``, ``forbidden_after``, ``forbidden_truth`` with
        ``_low`` and ``_high``, and ``visits_truth``: share of visits whose true set has one.
    """

    rows: pd.DataFrame
    table: pd.DataFrame
    facts: dict[str, Any]


def decode_hard(redecoder: Redecoder, grade: int) -> HardResult:
    """Decode the test part without pairs of ``grade`` or worse.

    Thresholds and probabilities stay, so PRAUC and calibration do too.

    Raises
    ------
    InputError
        If no interaction has a grade.
    """
    forbidden = forbidden_pairs(redecoder.severity, grade)
    found = redecoder.predictions("test")
    allowed, n_greedy = allowed_sets(found.probs, found.selected, forbidden)
    before = redecoder.rows(found, found.selected, found.probs)
    after = redecoder.rows(found, allowed, found.probs)
    dropped = found.selected & ~allowed
    facts = {
        "grade": grade,
        "visits": len(dropped),
        "visits_changed": int(dropped.any(axis=1).sum()),
        "visits_greedy": n_greedy,
        "dropped": int(dropped.sum()),
        "dropped_per_visit": float(dropped.sum(axis=1).mean()),
        "dropped_true": int((dropped & found.target).sum()),
        "visits_truth": float((count_pairs(found.target, forbidden)[0] > 0).mean()),
    }
    for name, sets in (("before", found.selected), ("after", allowed), ("truth", found.target)):
        facts |= _forbidden_rate(name, sets, forbidden, before)
    return HardResult(after, _hard_table(before, after), facts)


def _forbidden_rate(
    name: str,
    sets: npt.NDArray[np.bool_],
    forbidden: npt.NDArray[np.bool_],
    rows: pd.DataFrame,
) -> dict[str, float]:
    """Forbidden pairs among all pairs of some sets, with the interval over patients."""
    pairs, total = count_pairs(sets, forbidden)
    counted = rows.assign(ddi_pairs=pairs, pairs=total)
    low, high = bootstrap_intervals(counted)["ddi_rate"]
    key = f"forbidden_{name}"
    return {key: summarise(counted)["ddi_rate"], f"{key}_low": low, f"{key}_high": high}


def _hard_table(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    grades = [f"ddi_rate_severity_{grade}" for grade in SEVERITIES]
    names = ["jaccard", "f1", "micro_precision", "micro_recall", "mean_n_drugs", "ddi_rate"]
    old, new = summarise(before), summarise(after)
    paired = paired_bootstrap(after, before)
    table = [
        {
            "metric": name,
            "before": old[name],
            "after": new[name],
            **paired[name],
            "truth": old.get(f"{name}_true", float("nan")),
        }
        for name in [*names, *grades]
    ]
    return pd.DataFrame(table)


# --------------------------------------------------------------------------- curves


def trained_setting(runs: Sequence[Run], home: Home, value: float) -> Setting:
    """Runs of one configuration, at one DDI target, as a point of a curve; one run per seed."""
    return Setting(
        value,
        tuple(Redecoder.of(run, home).plain_rows("validation") for run in runs),
        tuple(load_rows(run) for run in runs),
        tuple(run.name for run in runs),
        tuple(run.report().get("threshold") for run in runs),
    )


def post_hoc_curve(
    name: str,
    runs: Sequence[Run],
    home: Home,
    strengths: Sequence[float] = STRENGTHS,
    grade: int | None = None,
) -> Curve:
    """Curve of a training without training again: a penalty on interactions at decoding.

    For every strength the threshold is chosen on validation anew; strength 0 is the run's own
    prediction with its own threshold.

    Parameters
    ----------
    runs : sequence of Run
        They differ in seed alone.
    grade : int, optional
        Penalise pairs of this severity alone, in place of all interactions.

    Raises
    ------
    InputError
        If a model decodes its sets by other means than a threshold.
    """
    settings = [_penalised(Redecoder.of(run, home), strengths, grade) for run in runs]
    return Curve(
        name,
        "penalty at decoding",
        tuple(
            Setting(
                strength,
                tuple(own[k].validation[0] for own in settings),
                tuple(own[k].test[0] for own in settings),
                tuple(run.name for run in runs),
                tuple(own[k].thresholds[0] for own in settings),
            )
            for k, strength in enumerate(strengths)
        ),
    )


def _penalised(
    redecoder: Redecoder, strengths: Sequence[float], grade: int | None
) -> list[Setting]:
    model = redecoder.loaded.model
    if not model.thresholded:
        raise InputError(
            f"run {redecoder.run.name}: {redecoder.loaded.config.model.name} decodes its sets "
            "itself; expected a model whose sets are probabilities above a threshold for a "
            "penalty at decoding"
        )
    parts = {part: redecoder.predictions(part) for part in ("validation", "test")}
    threshold = float(getattr(model, "threshold", redecoder.loaded.config.optim.threshold))
    penalty = redecoder.ddi if grade is None else redecoder.severity == grade
    return [
        _setting(redecoder, parts, penalty.astype(np.float64), strength, threshold)
        for strength in strengths
    ]


def _setting(
    redecoder: Redecoder,
    parts: dict[Any, Predictions],
    penalty: npt.NDArray[np.float64],
    strength: float,
    threshold: float,
) -> Setting:
    if strength == 0:
        plain = {k: redecoder.rows(p, p.selected, p.probs) for k, p in parts.items()}
        return Setting(0.0, (plain["validation"],), (plain["test"],), (), (threshold,))
    probs = {
        part: torch.sigmoid(
            torch.from_numpy(penalised_logits(found.logits.astype(np.float64), penalty, strength))
        ).numpy()
        for part, found in parts.items()
    }
    own = parts["validation"]
    cut, _ = best_threshold(probs["validation"], own.target, own.n_unseen, own.patient)
    rows = {k: redecoder.rows(p, probs[k] >= cut, probs[k]) for k, p in parts.items()}
    return Setting(strength, (rows["validation"],), (rows["test"],), (), (cut,))
