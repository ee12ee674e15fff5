"""Effects of a patient's visits and codes on a drug's score, by leaving them out one at a time.

It works for every model and is exact: each effect is the difference of two predictions. Leaving out
changes what the model sees, not the patient, so an effect is no statement of cause; and effects of
things left out singly need not add up to the effect of leaving them out together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from medrec.data.dataset import PatientVisits, collate
from medrec.models.base import Predictor

BATCH = 256
RESOLUTION = 1e-5
"""Single precision gives a score in different batches to about this; smaller effects are 0."""
KINDS = ("diagnoses", "procedures", "drugs")
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Omission:
    """One thing left out.

    Attributes
    ----------
    visit : int
        From 0.
    kind : str
        ``visit`` for the whole visit, or one of `KINDS`.
    code : int or None
        Position in the vocabulary; None for a visit.
    """

    visit: int
    kind: str
    code: int | None = None

    def apply(self, patient: PatientVisits) -> PatientVisits:
        """Copy of a patient without it."""
        if self.kind == "visit":
            kept = [v for v in range(len(patient)) if v != self.visit]
            names = (*KINDS, "n_unseen")
            return PatientVisits(**{n: tuple(getattr(patient, n)[v] for v in kept) for n in names})
        visits = list(getattr(patient, self.kind))
        visits[self.visit] = visits[self.visit][visits[self.visit] != self.code]
        return replace(patient, **{self.kind: tuple(visits)})


def omissions(patient: PatientVisits) -> list[Omission]:
    """Everything that can be left out of what a prediction of the last visit may read.

    Earlier visits as wholes; each diagnosis and procedure; each drug of earlier visits. The last
    visit's own drugs are no input.
    """
    last = len(patient) - 1
    found = [Omission(visit, "visit") for visit in range(last)]
    for kind in KINDS:
        for visit, codes in enumerate(getattr(patient, kind)):
            if kind != "drugs" or visit < last:
                found += [Omission(visit, kind, int(code)) for code in codes]
    return found


def score_name(model: Predictor) -> str:
    """What an effect is measured in: ``logit``, or ``probability`` for models that decode a set."""
    return "logit" if model.thresholded else "probability"


@torch.no_grad()
def last_scores(model: Predictor, patients: Sequence[PatientVisits], n_drugs: int) -> Float:
    """Scores of all drugs at the last visit of each patient.

    Returns
    -------
    ndarray (n, D)
        Logits, or probabilities; see `score_name`.
    """
    lengths = np.array([len(patient) for patient in patients])
    scores = np.zeros((len(patients), n_drugs))
    # patients of one length at a time: nothing is padded
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            prediction = model.predict(collate([patients[i] for i in part], part.tolist(), n_drugs))
            values = prediction.logits if model.thresholded else prediction.probs
            scores[part] = values[:, -1].double().cpu().numpy()
    return scores


def history_effects(
    model: Predictor, patient: PatientVisits, n_drugs: int
) -> tuple[list[Omission], Float, Float]:
    """Effect of every visit and code on the score of every drug.

    Returns
    -------
    omissions : list of Omission
        E of them.
    effects : ndarray (E, D)
        Score with everything minus score without; positive where its presence raised the score.
    scores : ndarray (D,)
        With everything.
    """
    left_out = omissions(patient)
    scores = last_scores(model, [patient, *(item.apply(patient) for item in left_out)], n_drugs)
    return left_out, settle(scores[0] - scores[1:], scores[0]), scores[0]


def settle(effects: Float, scores: Float) -> Float:
    """Set to 0 what is below the resolution of single precision."""
    return np.where(np.abs(effects) > RESOLUTION * np.maximum(1.0, np.abs(scores)), effects, 0.0)
