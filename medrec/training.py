"""The learning half, top to bottom: a loop that knows no files, and the run around it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from medrec.config import TrainConfig
from medrec.data.cohort import Cohort
from medrec.data.dataset import VisitDataset, build_dataset
from medrec.data.schema import Split, Vocabularies
from medrec.evaluation.evaluate import evaluate
from medrec.evaluation.metrics import ddi_rate_chance, summarise
from medrec.models import LEARNED_MODELS, build_model
from medrec.models.base import CountingModel, DrugContext, Predictor, Recommender
from medrec.molecules.drugs import build_drug_molecules, ddi_matrix
from medrec.molecules.features import FeatureTable
from medrec.molecules.structure import build_molecule_tables
from medrec.runs import Home, Run
from quantum.base import InputError, ResourceError

State = dict[str, Any]
Report = Callable[[dict[str, Any], Callable[[], State]], None]
EVALUATION_BATCH = 64


@dataclass
class LearningData:
    """A cohort's split as tensors, and the context that models are built from."""

    dataset: VisitDataset
    split: Split
    context: DrugContext
    ddi: Any


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
) -> LearningData:
    """Vocabularies of the split, encoded visits, interactions and, if wanted, molecules."""
    vocabularies = cohort.vocabularies(split_number)
    ddi = ddi_matrix(cohort, vocabularies.drugs)
    tables = None
    if molecules:
        drugs = build_drug_molecules(cohort, vocabularies.drugs)
        tables = build_molecule_tables(drugs, features, feature_sets)
    context = DrugContext(
        len(vocabularies.diagnoses),
        len(vocabularies.procedures),
        len(vocabularies.drugs),
        torch.from_numpy(ddi.astype(np.float32)),
        tables,
    )
    return LearningData(
        build_dataset(cohort, vocabularies), cohort.split(split_number), context, ddi
    )


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
    optimiser = torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
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
    totals: dict[str, list[float]] = {}
    batches = data.dataset.batches(
        data.split.train, config.optim.batch_patients, shuffle_seed=config.seed + epoch
    )
    for batch in batches:
        moved = batch.to(device)
        prediction = wrapped(moved, model.encode_drugs())
        terms = model.loss(moved, prediction)
        optimiser.zero_grad()
        terms.total.backward()
        if config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimiser.step()
        totals.setdefault("train_loss", []).append(float(terms.total.detach()))
        for name, value in terms.parts.items():
            totals.setdefault(f"train_{name}", []).append(float(value))
    return {name: float(np.mean(values)) for name, values in totals.items()}


def validate(
    model: Predictor, data: LearningData, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Metrics on the validation part, with the prefix ``val_``."""
    batches = data.dataset.batches(data.split.validation, EVALUATION_BATCH)
    rows = evaluate(model.predict, (batch.to(device) for batch in batches), data.ddi)
    summary = summarise(rows)
    names = ("jaccard", "f1", "prauc", "ddi_rate", "mean_n_drugs")
    return {f"val_{name}": summary[name] for name in names}


def choose_device(wanted: str) -> str:
    """Resolve ``auto``; a device that was asked for and is not there is an error."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device 'cuda' was asked for; no CUDA device is visible")
    return wanted


# --------------------------------------------------------------------------- runs


def run_training(
    config: TrainConfig,
    cohort: Cohort,
    home: Home,
    *,
    features: FeatureTable | None = None,
    pretrained: Run | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Train one recommender in its run folder, or find it finished there.

    The best epoch on validation is evaluated once on the test part; its per-visit rows are stored.

    Parameters
    ----------
    pretrained : Run, optional
        Pre-training run whose encoder the model starts from.
    on_epoch : callable, optional
        Called with each epoch's row, for progress.
    """
    if not uses_molecules(config):
        features = pretrained = None  # they would not change the result, so not the name either
    inputs = {"cohort": cohort.digest}
    inputs |= {"features": features.digest} if features is not None else {}
    inputs |= {"pretrained": pretrained.digest} if pretrained is not None else {}
    run = Run.open(home, "train", config.name, config, inputs)
    if run.is_finished:
        return run
    with run.recording(seeds={"torch": config.seed, "split": cohort.config.split_seed}):
        start = time.perf_counter()
        torch.manual_seed(config.seed)
        data = learning_data_of(config, cohort, features)
        device = choose_device(config.device)
        data.context = data.context.to(device)
        model = build_model(config, data.context)
        extra: dict[str, Any]
        if isinstance(model, Recommender):
            extra = _learn(run, config, data, model.to(device), pretrained, on_epoch, device)
        else:
            extra = _count(run, data, model)
        _finish(run, config, cohort, data, model, extra, time.perf_counter() - start, device)
    return run


def learning_data_of(
    config: TrainConfig, cohort: Cohort, features: FeatureTable | None
) -> LearningData:
    """Learning data that a configuration asks for."""
    return build_learning_data(
        cohort,
        config.split,
        features,
        molecules=uses_molecules(config),
        feature_sets=getattr(config.model, "feature_sets", None),
    )


def uses_molecules(config: TrainConfig) -> bool:
    """Tell whether a model reads molecules."""
    learned = LEARNED_MODELS.get(config.model.name)
    return learned is not None and learned.needs_molecules


def _learn(
    run: Run,
    config: TrainConfig,
    data: LearningData,
    model: Recommender,
    pretrained: Run | None,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    device: str,
) -> dict[str, Any]:
    if pretrained is not None:
        state = pretrained.load_checkpoint("best")
        if state is None:
            raise InputError(f"pre-training run {pretrained.name} has no finished checkpoint")
        model.load_pretrained(state)
    resume = run.load_checkpoint("last")
    run.keep_metrics_until(resume["epoch"] if resume else -1)

    def report(row: dict[str, Any], make_state: Callable[[], State]) -> None:
        run.save_checkpoint("last", make_state())
        run.append_metrics(row)
        if on_epoch is not None:
            on_epoch(row)

    result = fit(config, data, model, report=report, resume=resume, device=device)
    model.load_state_dict(result.best_state)
    return {
        "best_epoch": result.best_epoch,
        "val_jaccard": result.best_score,
        "n_parameters": sum(p.numel() for p in model.parameters()),
    }


def _count(run: Run, data: LearningData, model: CountingModel) -> dict[str, Any]:
    model.fit(data.dataset, data.split.train)
    metrics = validate(model, data)
    run.append_metrics({"epoch": 0, **metrics})
    extra: dict[str, Any] = {
        "val_jaccard": metrics["val_jaccard"],
        "n_parameters": sum(t.numel() for t in model.state_dict().values()),
    }
    if getattr(model, "n_not_converged", 0):
        extra["regressions_not_converged"] = model.n_not_converged  # type: ignore[attr-defined]
    return extra


def _finish(
    run: Run,
    config: TrainConfig,
    cohort: Cohort,
    data: LearningData,
    model: Recommender | CountingModel,
    extra: dict[str, Any],
    seconds: float,
    device: str,
) -> None:
    run.save_checkpoint("best", {"model": model.state_dict()})
    batches = data.dataset.batches(data.split.test, EVALUATION_BATCH)
    rows = evaluate(model.predict, (batch.to(device) for batch in batches), data.ddi)
    temporary = run.folder / ".visits.parquet.tmp"
    rows.to_parquet(temporary, index=False)
    temporary.replace(run.folder / "visits.parquet")
    run.finish(
        {
            "model": config.model.name,
            "cohort": cohort.digest,
            "preset": cohort.config.preset,
            "split": config.split,
            "split_digest": data.split.digest,
            "ddi_rate_chance": ddi_rate_chance(data.ddi),
            "test": {k: None if v != v else v for k, v in summarise(rows).items()},
            "seconds": round(seconds, 2),
            **extra,
        }
    )


@dataclass
class LoadedRun:
    """A finished run, ready to predict."""

    model: Predictor
    cohort: Cohort
    vocabularies: Vocabularies
    config: TrainConfig


def load_predictor(run: Run, home: Home) -> LoadedRun:
    """Rebuild the model of a finished run from its folder, its cohort and its features.

    Raises
    ------
    InputError
        If the run is not finished or something it was made of is gone.
    """
    state = run.load_checkpoint("best") if run.kind == "train" and run.is_finished else None
    if state is None:
        raise InputError(
            f"run {run.name} is no finished training run (kind {run.kind}, status "
            f"{run.record()['status']})"
        )
    config = TrainConfig.model_validate(run.config())
    cohort = Cohort.load(home.by_digest(home.cohorts, run.inputs["cohort"]))
    features = None
    if "features" in run.inputs:
        features = FeatureTable.load(home.by_digest(home.features, run.inputs["features"]))
    data = learning_data_of(config, cohort, features)
    model = build_model(config, data.context)
    model.load_state_dict(state["model"])
    return LoadedRun(model, cohort, data.dataset.vocabularies, config)
