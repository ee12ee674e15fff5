"""Fine-tuning as a problem for `medrec.pretrain.engine.fit`, and the verdict on the test part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.config_molecules import PropertyConfig
from medrec.library.arrays import MoleculeLibrary
from medrec.library.records import Target
from medrec.library.splits import split_library
from medrec.loading import suggest
from medrec.pretrain.encoders import build_encoder
from medrec.pretrain.problem import LossModel, Problem, State
from medrec.properties.metrics import (
    N_RESAMPLES,
    Metric,
    intervals,
    measure,
    resample,
    with_mean,
)
from medrec.properties.model import PropertyModel, map_molecules, target_scale, target_values
from quantum.base import InputError

Rows = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
MEAN = "mean over targets"
"""Row of a summary that holds the mean over the targets."""
SD_UNIT = "training SD"
"""Unit of standardised errors."""
_ROUNDING = 1e-12
"""Relative to the largest value: a smaller standard deviation is that of a constant."""


def property_problem(
    config: PropertyConfig, library: MoleculeLibrary, start: State | None = None
) -> Problem:
    """Encoder, head, training molecules and validation.

    Parameters
    ----------
    start : dict, optional
        Export of a pre-training or of another property run; weights at random without.

    Returns
    -------
    Problem
        Its model's ``notes`` say which targets and molecules were left out. The score is the mean
        over the targets of the validation part: MAE in standard deviations of the training part, or
        ROC-AUC. Without a validation part there is none.

    Raises
    ------
    InputError
        If targets are unknown, constant, without labels or of both kinds; if the encoder needs
        positions that the library lacks; if ``start`` has another kind or size; if a part has no
        molecule or no label to judge by.
    """
    columns = _choose_columns(config.targets, library)
    rows, valid, test, notes = _parts(config, library)
    columns, dropped = _learnable(library, rows, columns)
    targets = [library.targets_info[column] for column in columns]
    scale = target_scale(library, rows, columns)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.fit.seed)
        encoder = build_encoder(config.encoder, config.modality)
        if start is not None:
            encoder.load_pretrained(start)
        model = PropertyModel(
            encoder,
            targets,
            columns,
            scale,
            head_dropout=config.head_dropout,
            freeze_encoder=config.freeze_encoder,
            notes=(*notes, *dropped),
        )
    for part, molecules in (("validation", valid), ("test", test)):
        if len(molecules) or part == "test":
            _require_judgeable(library, molecules, columns, part)
    if not len(valid):
        return Problem(library, rows, model)
    validate = _Validation(library, valid)
    metric = metrics_of(targets[0])[0]
    better: Literal["min", "max"] = "max" if metric == "roc_auc" else "min"
    return Problem(library, rows, model, validate, f"valid_{metric}", better)


def evaluate_property(
    problem: Problem,
    config: PropertyConfig,
    weights: State,
    device: torch.device | str = "cpu",
    n_resamples: int = N_RESAMPLES,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict the test part.

    Parameters
    ----------
    problem : Problem
        As `property_problem` made it.
    weights : dict
        Of its model: the best ones of a fit.

    Returns
    -------
    predictions : pandas.DataFrame
        ``row`` in the library, ``identifier``, ``target``, ``value`` (NaN where missing),
        ``prediction``.
    summary : pandas.DataFrame
        ``target``, ``unit``, ``metric``, ``value``, ``low``, ``high`` (95 %, molecules resampled),
        ``n``: labels of a target, or targets that the row `MEAN` is over. Regression has MAE and
        RMSE in the units of the library, the mean MAE in `SD_UNIT` and, if the targets have one
        unit or none, in that. Classification has ROC-AUC.
    """
    model, library = _model(problem.model), problem.library
    model.load_state_dict(weights)
    rows = _parts(config, library)[2]
    predictions = predict(model, library, rows, device)
    labels = _labels(model, library, rows)
    n, t = predictions.shape
    identifiers = library.molecules["identifier"].to_numpy()[rows]
    frame = pd.DataFrame(
        {
            "row": np.repeat(rows, t),
            "identifier": np.repeat(identifiers, t),
            "target": np.tile([target.name for target in model.targets], n),
            "value": labels.ravel(),
            "prediction": predictions.ravel(),
        }
    )
    scale = model.sd.cpu().numpy()
    return frame, _summary(model.targets, labels, predictions, scale, n_resamples)


def predict(
    model: PropertyModel, library: MoleculeLibrary, rows: Rows, device: torch.device | str = "cpu"
) -> Float:
    """Values of molecules in the units of the library, or probabilities (M, T)."""
    training = model.training
    model.to(device).eval()
    try:
        return map_molecules(library, rows, model.predict, device)
    finally:
        model.train(training)


def metrics_of(target: Target) -> tuple[Metric, ...]:
    """What a target is judged by; the first decides."""
    return ("mae", "rmse") if target.kind == "regression" else ("roc_auc",)


# --------------------------------------------------------------------------- what is learned


def _choose_columns(wanted: Sequence[str] | None, library: MoleculeLibrary) -> list[int]:
    known = [target.name for target in library.targets_info]
    if not known:
        raise InputError(f"library {library.name} has no targets; expected one or more to learn")
    names = list(dict.fromkeys(known if wanted is None else wanted))
    for name in names:
        if name not in known:
            raise InputError(
                f"library {library.name} has no target '{name}'{suggest(name, known)}; "
                f"it has: {_some(known)}"
            )
    kinds = {library.targets_info[known.index(name)].kind for name in names}
    if len(kinds) != 1:
        raise InputError(
            f"targets {_some(names)} are of {len(kinds)} kinds ({', '.join(sorted(kinds))}); "
            "expected regression or classification alone: choose them with targets"
        )
    return [known.index(name) for name in names]


def _learnable(
    library: MoleculeLibrary, rows: Rows, columns: Sequence[int]
) -> tuple[list[int], list[str]]:
    """Refuse constant regression targets; drop one-class targets, and say so."""
    names = np.array([library.targets_info[column].name for column in columns])
    values = target_values(library, rows, columns)
    where = f"among the {len(rows)} training molecules of library {library.name}"
    if library.targets_info[columns[0]].kind == "classification":
        both = _two_classes(values)
        if not both.any():
            raise InputError(f"{_some(names)}: no target has both classes {where}")
        note = f"left out, without both classes in the training part: {_some(names[~both])}"
        return list(np.asarray(columns)[both]), [] if both.all() else [note]
    present = ~np.isnan(values)
    largest = np.where(present, np.abs(values), 0.0).max(axis=0, initial=0.0)
    constant = target_scale(library, rows, columns).sd <= _ROUNDING * largest
    for bad, what in ((~present.any(axis=0), "no label"), (constant, "the same value for all")):
        if bad.any():
            raise InputError(f"{_some(names[bad])}: {what} {where}; expected values that differ")
    return list(columns), []


def _two_classes(values: Float) -> npt.NDArray[np.bool_]:
    """Targets with a positive and a negative label (T,)."""
    return np.any(values > 0.5, axis=0) & np.any(values <= 0.5, axis=0)


def _some(names: Iterable[str], limit: int = 12) -> str:
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


# --------------------------------------------------------------------------- which molecules


def _parts(config: PropertyConfig, library: MoleculeLibrary) -> tuple[Rows, Rows, Rows, list[str]]:
    """Training (cut to its limit), validation and test molecules; those left out as notes."""
    split = split_library(library, config.split)
    parts = [np.asarray(rows, dtype=np.int64) for rows in (split.train, split.valid, split.test)]
    notes = []
    if config.modality != "2d":
        placed = np.asarray(library.arrays["placed"])
        if not placed.any():
            raise InputError(
                f"no molecule of library {library.name} has 3D coordinates, and modality "
                f"{config.modality} needs them; expected modality 2d"
            )
        if config.modality == "3d" and not placed.all():
            notes.append(f"{int((~placed).sum())} molecules without 3D coordinates are left out")
            parts = [rows[placed[rows]] for rows in parts]
    for rows, part in ((parts[0], "training"), (parts[2], "test")):
        if not len(rows):
            raise InputError(
                f"the {part} part of library {library.name} ({len(library)} molecules, split "
                f"{config.split.kind} {config.split.train:g}/{config.split.valid:g}) is empty; "
                "expected one molecule or more"
            )
    return _limited(parts[0], config), parts[1], parts[2], notes


def _limited(rows: Rows, config: PropertyConfig) -> Rows:
    """A random subset that follows from the split's seed; a smaller one lies within a larger."""
    if config.limit_train is None or config.limit_train >= len(rows):
        return rows
    order = np.random.default_rng([config.split.seed, len(rows)]).permutation(len(rows))
    chosen: Rows = np.sort(rows[order[: config.limit_train]])
    return chosen


# --------------------------------------------------------------------------- how it is judged


def _require_judgeable(
    library: MoleculeLibrary, rows: Rows, columns: Sequence[int], part: str
) -> None:
    values = target_values(library, rows, columns)
    if library.targets_info[columns[0]].kind == "classification":
        enough, what = _two_classes(values), "has both classes"
    else:
        enough, what = np.any(~np.isnan(values), axis=0), "has a label"
    if not enough.any():
        raise InputError(
            f"no target {what} among the {len(rows)} molecules of the {part} part of library "
            f"{library.name}; expected one or more: give the part a larger share"
        )


@dataclass(frozen=True)
class _Validation:
    """Scores of a model on some molecules; a class, so that it can go to another process."""

    library: MoleculeLibrary
    rows: Rows

    def __call__(self, model: LossModel, device: torch.device | str) -> dict[str, float]:
        """Numbers by name; targets that cannot be judged are left out."""
        ours = _model(model)
        metric = metrics_of(ours.targets[0])[0]
        predictions = predict(ours, self.library, self.rows, device)
        values = measure(metric, _labels(ours, self.library, self.rows), predictions)
        found = {f"valid_{metric}": float(with_mean(values, ours.sd.cpu().numpy())[-1])}
        found["valid_targets"] = float((~np.isnan(values)).sum())
        if metric == "mae":
            found |= {
                f"valid_mae_{target.name}": float(value)
                for target, value in zip(ours.targets, values, strict=True)
                if not np.isnan(value)
            }
        return found


def _summary(
    targets: Sequence[Target], labels: Float, predictions: Float, scale: Float, n_resamples: int
) -> pd.DataFrame:
    names = [target.name for target in targets]
    counts = (~np.isnan(labels)).sum(axis=0)
    frames = []
    for metric in metrics_of(targets[0]):
        point = measure(metric, labels, predictions)
        values = np.vstack([point, resample(metric, labels, [predictions], n_resamples)])
        units = ["" if metric == "roc_auc" else target.unit for target in targets]
        frames.append(_summary_rows(metric, names, units, values, counts))
        means: dict[str, Float | None] = {}
        if metric == "mae":
            means = {SD_UNIT: scale}
            shared = set(units) - {""}  # papers average QM8's energies and oscillator strengths
            if len(shared) <= 1:
                means["".join(shared)] = None
        elif metric == "roc_auc":
            means = {"": None}
        for unit, divisor in means.items():
            mean = with_mean(values, divisor)[:, -1:]
            frames.append(
                _summary_rows(metric, [MEAN], [unit], mean, [int((~np.isnan(point)).sum())])
            )
    return pd.concat(frames, ignore_index=True)


def _summary_rows(
    metric: Metric, names: list[str], units: list[str], values: Float, counts: Sequence[int]
) -> pd.DataFrame:
    """Rows of a summary; the first row of ``values`` (1 + R, k) is the metric, the rest draws."""
    bounds = intervals(values[1:])
    return pd.DataFrame(
        {
            "target": names,
            "unit": units,
            "metric": metric,
            "value": values[0],
            "low": bounds[:, 0],
            "high": bounds[:, 1],
            "n": np.asarray(counts, dtype=np.int64),
        }
    )


def _labels(model: PropertyModel, library: MoleculeLibrary, rows: Rows) -> Float:
    return target_values(library, rows, model.columns.tolist())


def _model(model: LossModel) -> PropertyModel:
    if not isinstance(model, PropertyModel):
        raise TypeError(f"{type(model).__name__} predicts no properties; expected PropertyModel")
    return model
