"""The learning half: a loop over epochs that knows no files, no Ray and no ranks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from medrec.concepts.table import ConceptTable
from medrec.config import TrainConfig
from medrec.data.cohort import Cohort
from medrec.data.dataset import VisitDataset, build_dataset
from medrec.data.schema import Split
from medrec.evaluation.evaluate import evaluate
from medrec.evaluation.metrics import summarise
from medrec.evaluation.threshold import best_threshold
from medrec.models import LEARNED_MODELS
from medrec.models.base import DrugContext, FittingData, Predictor, Recommender
from medrec.models.encoding import SharedEncoding
from medrec.molecules.drugs import (
    DrugMolecules,
    build_drug_molecules,
    ddi_matrix,
    severity_matrix,
)
from medrec.molecules.features import FeatureTable
from medrec.molecules.structure import build_molecule_tables
from quantum.base import ResourceError

State = dict[str, Any]
Report = Callable[[dict[str, Any], Callable[[], State]], None]
EVALUATION_BATCH = 64


@dataclass
class LearningData:
    """A cohort's split as tensors, and the context that models are built from.

    Attributes
    ----------
    ddi : ndarray (D, D) of 0 and 1
    severity : ndarray (D, D)
        Highest severity of each pair of classes, 0 for none.
    drugs : DrugMolecules or None
        Molecules of the classes, for models that need them.
    """

    dataset: VisitDataset
    split: Split
    context: DrugContext
    ddi: Any
    severity: Any = None
    drugs: DrugMolecules | None = None

    def fitting(self) -> FittingData:
        """What a model's `fit_context` may read."""
        return FittingData(self.dataset, self.split.train, self.context, self.drugs)


@dataclass
class FitResult:
    """Best weights (copied), when they were reached, and one row of metrics per epoch."""

    best_state: State
    best_epoch: int
    best_score: float
    history: list[dict[str, Any]] = field(default_factory=list)


def build_learning_data(
    cohort: Cohort,
    split_number: int,
    features: FeatureTable | None,
    *,
    molecules: bool,
    feature_sets: tuple[str, ...] | None = None,
    concepts: ConceptTable | None = None,
) -> LearningData:
    """Vocabularies of the split, encoded visits, interactions and, if wanted, molecules."""
    vocabularies = cohort.vocabularies(split_number)
    severity = severity_matrix(cohort, vocabularies.drugs)
    ddi = ddi_matrix(cohort, vocabularies.drugs)
    tables = drugs = None
    if molecules:
        drugs = build_drug_molecules(cohort, vocabularies.drugs)
        tables = build_molecule_tables(drugs, features, feature_sets)
    context = DrugContext(
        len(vocabularies.diagnoses),
        len(vocabularies.procedures),
        len(vocabularies.drugs),
        torch.from_numpy(ddi.astype(np.float32)),
        tables,
        severity=torch.from_numpy(severity.astype(np.float32)),
        concepts=concepts.align(vocabularies) if concepts is not None else {},
    )
    return LearningData(
        build_dataset(cohort, vocabularies),
        cohort.split(split_number),
        context,
        ddi,
        severity,
        drugs,
    )


def fit_context(config: TrainConfig, data: LearningData) -> LearningData:
    """Let the model of a configuration fit what it needs before it is built."""
    kind = LEARNED_MODELS.get(config.model.name)
    if kind is None:
        return data
    fitted = kind.fit_context(config, data.fitting())
    return replace(data, context=replace(data.context, fitted=fitted))


def fit(
    config: TrainConfig,
    data: LearningData,
    model: Recommender,
    *,
    report: Report,
    wrap_model: Callable[[nn.Module], nn.Module] = lambda model: model,
    resume: State | None = None,
    device: torch.device | str = "cpu",
) -> FitResult:
    """Train with early stopping on validation Jaccard.

    Parameters
    ----------
    report : callable
        Called once per epoch with a row of metrics and a function that makes the resumable state.
    wrap_model : callable
        Makes the model distributed; the identity for one process.
    resume : dict or None
        A state from ``report``; training goes on after its epoch and ends as if it had never
        stopped.
    """
    optim = config.optim
    # one kernel for all parameters: several times faster than the default, on a CPU as well
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True
    )
    result = FitResult(copy.deepcopy(model.state_dict()), -1, -1.0)
    first = 0
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimiser.load_state_dict(resume["optimiser"])
        result = FitResult(resume["best"], resume["best_epoch"], resume["best_score"])
        first = resume["epoch"] + 1
    wrapped = wrap_model(model)
    for epoch in range(first, optim.epochs):
        if epoch - result.best_epoch > optim.patience and result.best_epoch >= 0:
            break
        start = time.perf_counter()
        losses = _train_epoch(config, data, model, wrapped, optimiser, epoch, device)
        seconds = time.perf_counter() - start
        metrics = validate(model, data, device)
        row = {
            "epoch": epoch,
            **losses,
            **metrics,
            "seconds": seconds,
            "visits_per_s": data.dataset.n_visits(data.split.train) / max(seconds, 1e-9),
        }
        if metrics["val_jaccard"] > result.best_score:
            result.best_state = copy.deepcopy(model.state_dict())
            result.best_epoch, result.best_score = epoch, metrics["val_jaccard"]
        result.history.append(row)
        state = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "epoch": epoch,
            "best": result.best_state,
            "best_epoch": result.best_epoch,
            "best_score": result.best_score,
        }
        report(row, partial(copy.deepcopy, state))
    return result


def _train_epoch(
    config: TrainConfig,
    data: LearningData,
    model: Recommender,
    wrapped: nn.Module,
    optimiser: torch.optim.Optimizer,
    epoch: int,
    device: torch.device | str,
) -> dict[str, float]:
    """One pass over the training patients; mean loss and its parts."""
    # one generator per epoch: dropout and order do not depend on whether a run was resumed
    torch.manual_seed(hash((config.seed, epoch)) % 2**31)
    wrapped.train()
    model.begin_epoch(epoch)
    totals: dict[str, list[torch.Tensor]] = {}
    encoding = SharedEncoding(model, config.optim.encode_every)
    size = config.optim.batch_patients
    n_batches = -(-len(data.split.train) // size)
    batches = data.dataset.batches(data.split.train, size, shuffle_seed=config.seed + epoch)
    for number, batch in enumerate(batches, start=1):
        moved = batch.to(device)
        terms = model.loss(moved, wrapped(moved, encoding.current()))
        optimiser.zero_grad()
        terms.total.backward()
        encoding.backward(last=number == n_batches)
        if config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimiser.step()
        for name, value in ({"loss": terms.total.detach()} | terms.parts).items():
            totals.setdefault(f"train_{name}", []).append(value)
    # one transfer per epoch: reading a number inside the loop would wait for the device
    return {name: float(torch.stack(values).double().mean()) for name, values in totals.items()}


def predict_rows(
    model: Predictor,
    data: LearningData,
    patients: npt.NDArray[np.int64],
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Per-visit rows of some patients; see `medrec.evaluation.evaluate.evaluate`."""
    batches = data.dataset.batches(patients, EVALUATION_BATCH)
    return evaluate(model.predict, (batch.to(device) for batch in batches), data.ddi, data.severity)


def validate(
    model: Predictor, data: LearningData, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Metrics on the validation part, with the prefix ``val_``."""
    summary = summarise(predict_rows(model, data, data.split.validation, device))
    names = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")
    return {f"val_{name}": summary[name] for name in names}


@torch.no_grad()
def tune_threshold(
    model: Predictor, data: LearningData, device: torch.device | str = "cpu"
) -> float | None:
    """Set a model's threshold to the one with the best validation Jaccard.

    Returns
    -------
    float or None
        The threshold; None for a model that decodes its sets.
    """
    if not model.thresholded:
        return None
    parts = []
    for batch in data.dataset.batches(data.split.validation, EVALUATION_BATCH):
        mask = batch.mask
        probs = model.predict(batch.to(device)).probs.cpu()[mask]
        patient = batch.patient.unsqueeze(1).expand(mask.shape)[mask]
        parts.append((probs, batch.target[mask] > 0.5, batch.n_unseen[mask], patient))
    columns = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    found, _ = best_threshold(*columns)
    settable: Any = model
    settable.threshold = torch.tensor(found, device=device)
    return found


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """Let PyTorch use ``n`` threads inside the block.

    The matrices of these models are small: a second thread mostly waits, and waiting costs the
    core that another run could use.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(wanted: str) -> str:
    """Resolve ``auto``; a device that was asked for and is not there is an error."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device 'cuda' was asked for; no CUDA device is visible")
    return wanted
