"""Training runs: a recommender in its run folder, found again, resumed, and loaded to predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from medrec.concepts.table import ConceptTable
from medrec.config import TrainConfig
from medrec.data.cohort import Cohort
from medrec.data.dataset import VisitBatch
from medrec.data.schema import Vocabularies
from medrec.evaluation.atc_classes import LEVEL as CLASS_LEVEL
from medrec.evaluation.atc_classes import class_rows, true_classes
from medrec.evaluation.coverage import DrugCounts, map_coverage
from medrec.evaluation.metrics import ddi_rate_chance, summarise
from medrec.fitting import (
    EVALUATION_BATCH,
    FitResult,
    LearningData,
    State,
    build_learning_data,
    choose_device,
    cpu_threads,
    fit,
    fit_context,
    predict_rows,
    tune_threshold,
    validate,
)
from medrec.models import LEARNED_MODELS, build_model
from medrec.models.base import CountingModel, Predictor, Recommender
from medrec.models.representations import FeatureInput, Representation
from medrec.molecules.features import FeatureTable
from medrec.runs import Home, Run
from quantum.base import InputError, read_json, write_json_atomic

_OTHER_VERSION = "run {} was made by another version of medrec and has to be trained again"
VOCABULARY_FILE = "vocabulary.json"

# --------------------------------------------------------------------------- runs


def _alone(run: Run) -> AbstractContextManager[None]:
    """Nothing goes on beside the training of a run."""
    return nullcontext()


def run_training(
    config: TrainConfig,
    cohort: Cohort,
    home: Home,
    *,
    features: FeatureTable | None = None,
    pretrained: Run | None = None,
    concepts: ConceptTable | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    during: Callable[[Run], AbstractContextManager[None]] = _alone,
) -> Run:
    """Train one recommender in its run folder, or find it finished there.

    The best epoch on validation is evaluated once on the test part; its per-visit rows are stored.

    Parameters
    ----------
    pretrained : Run, optional
        Pre-training run whose encoder the model starts from.
    concepts : ConceptTable, optional
        Discrete codes of the cohort's concepts, for models that read them.
    on_epoch : callable, optional
        Called with each epoch's row, for progress.
    during : callable, optional
        Gives a context around the work on a run that is not finished yet.
    """
    if not uses_molecules(config):
        features = pretrained = None  # they would not change the result, so not the name either
    if not uses_concepts(config):
        concepts = None
    inputs = {"cohort": cohort.digest}
    inputs |= {"features": features.digest} if features is not None else {}
    inputs |= {"pretrained": pretrained.digest} if pretrained is not None else {}
    inputs |= {"concepts": concepts.digest} if concepts is not None else {}
    run = Run.open(home, "train", config.name, config, inputs)
    if run.is_finished:
        return run
    seeds = {"torch": config.seed, "split": cohort.config.split_seed}
    with run.recording(seeds=seeds), during(run), cpu_threads(config.threads):
        start = time.perf_counter()
        torch.manual_seed(config.seed)
        data = fit_context(config, learning_data_of(config, cohort, features, concepts))
        device = choose_device(config.device)
        data.context = data.context.to(device)
        model = build_model(config, data.context)
        extra: dict[str, Any]
        if isinstance(model, Recommender):
            extra = _learn(run, config, data, model.to(device), pretrained, on_epoch, device)
        else:
            extra = _count(run, config, data, model)
        _finish(run, config, cohort, data, model, extra, time.perf_counter() - start, device)
    return run


def learning_data_of(
    config: TrainConfig,
    cohort: Cohort,
    features: FeatureTable | None,
    concepts: ConceptTable | None = None,
) -> LearningData:
    """Learning data that a configuration asks for."""
    return build_learning_data(
        cohort,
        config.split,
        features,
        molecules=uses_molecules(config),
        feature_sets=feature_sets_of(config),
        concepts=concepts,
    )


def feature_sets_of(config: TrainConfig) -> tuple[str, ...] | None:
    """Sets of the feature table that a model reads; None means all."""
    representation = getattr(config.model, "representation", config.model)
    sets: tuple[str, ...] | None = getattr(representation, "feature_sets", None)
    return sets


def uses_concepts(config: TrainConfig) -> bool:
    """Tell whether a model reads the codes of medical concepts."""
    learned = LEARNED_MODELS.get(config.model.name)
    if learned is None or not learned.needs_concepts:
        return False
    # a free vector per concept, an ablation, needs no codes
    return getattr(config.model, "concepts", "codes") == "codes"


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
        if pretrained.report().get("hydrogens"):
            raise InputError(
                f"pre-training run {pretrained.name} read hydrogens as atoms; recommenders read "
                "heavy atoms: expected a library imported with hydrogens: false"
            )
        model.load_pretrained(state)
    resume = run.load_checkpoint("last")
    run.keep_metrics_until(resume["epoch"] if resume else -1)

    def report(row: dict[str, Any], make_state: Callable[[], State]) -> None:
        run.save_checkpoint("last", make_state())
        run.append_metrics(row)
        if on_epoch is not None:
            on_epoch(row)

    result = fit(config, data, model, report=report, resume=resume, device=device)
    return {
        **_settle(config, data, model, result, device),
        "n_parameters": sum(p.numel() for p in model.parameters()),
    }


def _settle(
    config: TrainConfig, data: LearningData, model: Recommender, result: FitResult, device: str
) -> dict[str, Any]:
    """Take the best weights, and choose on validation what is chosen after training."""
    model.load_state_dict(result.best_state)
    model.eval()
    model.tune(data.dataset, data.split.validation)
    facts = _tuned(config, data, model, device)
    return {
        "best_epoch": result.best_epoch,
        "val_jaccard_at_best_epoch": result.best_score,
        **facts,
    }


def _tuned(
    config: TrainConfig, data: LearningData, model: Recommender | CountingModel, device: str
) -> dict[str, Any]:
    threshold = config.optim.threshold if model.thresholded else None
    if config.optim.tune_threshold:
        threshold = tune_threshold(model, data, device)
    score = validate(model, data, device)["val_jaccard"]
    return {
        "threshold": threshold,
        "threshold_tuned": config.optim.tune_threshold and threshold is not None,
        "val_jaccard": score,
    }


def _count(
    run: Run, config: TrainConfig, data: LearningData, model: CountingModel
) -> dict[str, Any]:
    model.fit(data.dataset, data.split.train)
    facts = _tuned(config, data, model, "cpu")
    run.append_metrics({"epoch": 0, **validate(model, data)})
    extra: dict[str, Any] = {
        **facts,
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
    fitted = {name: tensor.cpu() for name, tensor in data.context.fitted.items()}
    run.save_checkpoint("best", {"model": model.state_dict(), "fitted": fitted})
    _save_vocabulary(run, data)
    rows = predict_rows(model, data, data.split.test, device)
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
            "seed": config.seed,
            "ddi_rate_chance": ddi_rate_chance(data.ddi),
            "test": _numbers(rows),
            "seconds": round(seconds, 2),
            **_beside_the_result(cohort, data, model, device),
            **extra,
        }
    )


def _numbers(rows: pd.DataFrame) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in summarise(rows).items()}


def _beside_the_result(
    cohort: Cohort, data: LearningData, model: Recommender | CountingModel, device: str
) -> dict[str, Any]:
    """Coverage of a model that reads maps; metrics of ATC level 3 for a finer cohort."""
    found: dict[str, Any] = {}
    test = data.split.test

    def batches() -> Iterator[VisitBatch]:
        return (batch.to(device) for batch in data.dataset.batches(test, EVALUATION_BATCH))

    if cohort.config.atc_level > CLASS_LEVEL:
        codes, truth = data.dataset.vocabularies.drugs.codes, true_classes(cohort, test)
        found["test_atc3"] = _numbers(class_rows(model.predict, batches(), codes, truth, data.ddi))
    modules = list(model.modules()) if isinstance(model, Recommender) else []
    parts = [part for part in modules if isinstance(part, Representation)]
    readers = [part for part in modules if isinstance(part, FeatureInput)]
    if parts and readers:
        counts = DrugCounts.of(model.predict, batches())
        present = readers[0].present(parts[0].tables)
        found["map_coverage"] = map_coverage(counts, parts[0].projection, present)
    return found


def _save_vocabulary(run: Run, data: LearningData) -> None:
    """Store what the model's columns mean, and the interactions that belong to these columns."""
    vocabularies = data.dataset.vocabularies
    codes = {
        kind: list(getattr(vocabularies, kind).codes)
        for kind in ("diagnoses", "procedures", "drugs")
    }
    drugs = codes["drugs"]
    pairs = [
        {"a": drugs[i], "b": drugs[j], "severity": int(data.severity[i, j])}
        for i, j in zip(*np.nonzero(np.triu(data.ddi)), strict=True)
    ]
    write_json_atomic(run.folder / VOCABULARY_FILE, codes | {"interactions": pairs})


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
    config = _config_of(run)
    cohort = Cohort.load(home.by_digest(home.cohorts, run.inputs["cohort"]))
    features = None
    if "features" in run.inputs:
        features = FeatureTable.load(home.by_digest(home.features, run.inputs["features"]))
    concepts = None
    if "concepts" in run.inputs:
        concepts = ConceptTable.load(home.by_digest(home.concepts, run.inputs["concepts"]))
    data = learning_data_of(config, cohort, features, concepts)
    _check_vocabulary(run, data.dataset.vocabularies)
    context = replace(data.context, fitted=state.get("fitted", {}))
    model = build_model(config, context)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise InputError(f"{_OTHER_VERSION.format(run.name)}: other weights") from error
    return LoadedRun(model, cohort, data.dataset.vocabularies, config)


def _config_of(run: Run) -> TrainConfig:
    """Configuration of a training run.

    Raises
    ------
    InputError
        If this version does not know its fields.
    """
    try:
        return TrainConfig.model_validate(run.config())
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{_OTHER_VERSION.format(run.name)}: field {place}") from error


def _check_vocabulary(run: Run, vocabularies: Vocabularies) -> None:
    """Refuse weights whose columns mean other codes than the cohort's now do."""
    file = run.folder / VOCABULARY_FILE
    if not file.is_file():
        return
    stored = read_json(file)
    for kind in ("diagnoses", "procedures", "drugs"):
        now = list(getattr(vocabularies, kind).codes)
        if stored[kind] != now:
            raise InputError(
                f"run {run.name} was trained with {len(stored[kind])} {kind} codes, its cohort now "
                f"gives {len(now)} or another order; expected the same; train again"
            )
