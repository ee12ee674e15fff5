"""A recommender with the manners of scikit-learn: ``fit``, ``predict``, ``score``.

One `Recommender` is one training run in a home folder; `medrec.training` trains it, and the
commands ``medrec evaluate``, ``compare`` and ``report`` take the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.api import adopt, home_of, load_cohort, load_features, open_home
from medrec.config import TrainConfig
from medrec.data.cohort import Cohort
from medrec.data.dataset import VisitDataset, build_dataset
from medrec.estimator_parts import (
    Patients,
    Recommendation,
    metric_table,
    patient_batches,
    prediction_frame,
)
from medrec.evaluation.compare import evaluation_table
from medrec.evaluation.evaluate import evaluate
from medrec.evaluation.hard_mode import parse_grade
from medrec.fitting import cpu_threads
from medrec.loading import apply_override, load_config, suggest, validate_config
from medrec.models import COUNTING_MODELS, LEARNED_MODELS
from medrec.molecules.drugs import ddi_matrix, severity_matrix
from medrec.molecules.features import FeatureTable
from medrec.notebook import recommender_html
from medrec.recommend import recommend
from medrec.replication import replicate
from medrec.runs import Home, Run
from medrec.training import LoadedRun, load_predictor, run_training
from quantum.base import ConfigError, InputError

__all__ = ["Recommendation", "Recommender"]

_PARAMETERS = ("model", "epochs", "seed", "split", "settings", "features", "home")


class Recommender:
    """One medication recommender.

    Parameters
    ----------
    model : str, path or TrainConfig
        Name of a model (``molerec``, ``retain``, ``topk``, ... with the defaults of its class), a
        YAML file as in ``configs/train``, or a configuration.
    epochs, seed, split : int, optional
        In place of the configuration's.
    settings : dict, optional
        More of the configuration by key path, such as ``{"model.d_model": 32, "optim.lr": 1e-3}``.
    features : FeatureTable, path or str, optional
        Quantum-chemical features, for models that read them.
    home : path, optional
        Where the run is kept; by default the home of the cohort.

    Attributes
    ----------
    run_ : Run
        After `fit`: the run folder.
    cohort_ : Cohort
        After `fit`: what it was fitted on.
    """

    run_: Run
    cohort_: Cohort

    def __init__(
        self,
        model: str | Path | TrainConfig = "molerec",
        *,
        epochs: int | None = None,
        seed: int | None = None,
        split: int | None = None,
        settings: Mapping[str, Any] | None = None,
        features: FeatureTable | Path | str | None = None,
        home: Home | Path | str | None = None,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.seed = seed
        self.split = split
        self.settings = settings
        self.features = features
        self.home = home

    # ------------------------------------------------------------------ parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the constructor by name."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **parameters: Any) -> Recommender:
        """Set parameters by name; a fitted model stays as it is until the next `fit`.

        Raises
        ------
        InputError
            If there is no such parameter.
        """
        for name in parameters:
            if name not in _PARAMETERS:
                raise InputError(
                    f"Recommender has no parameter '{name}'{suggest(name, _PARAMETERS)}; "
                    f"expected some of: {', '.join(_PARAMETERS)}"
                )
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    @property
    def name(self) -> str:
        """Name of the model, or of its configuration."""
        if isinstance(self.model, TrainConfig):
            return self.model.name
        return Path(self.model).stem if _is_file(self.model) else str(self.model)

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has ended, or `load` found a finished run."""
        return "run_" in self.__dict__

    def config(self) -> TrainConfig:
        """Configuration that `fit` trains.

        Raises
        ------
        ConfigError, InputError
            If the model, a key or a value is not as expected.
        """
        tree = self._tree()
        short = {"optim.epochs": self.epochs, "seed": self.seed, "split": self.split}
        changes = {key: value for key, value in short.items() if value is not None}
        for key, value in {**dict(self.settings or {}), **changes}.items():
            try:
                apply_override(tree, f"{key}={json.dumps(value)}")
            except TypeError as error:
                raise ConfigError(f"setting '{key}' is of type {type(value).__name__}") from error
        return validate_config(tree, TrainConfig, f"Recommender('{self.name}')")

    def _tree(self) -> dict[str, Any]:
        if isinstance(self.model, TrainConfig):
            return self.model.model_dump(mode="json")
        if _is_file(self.model):
            return load_config(self.model, TrainConfig).model_dump(mode="json")
        known = (*COUNTING_MODELS, *LEARNED_MODELS)
        if self.model not in known:
            raise InputError(
                f"unknown model '{self.model}'{suggest(str(self.model), known)}; expected a YAML "
                f"file or one of: {', '.join(known)}"
            )
        return {"name": self.model, "model": {"name": self.model}}

    def __repr__(self) -> str:
        given = {name: value for name, value in self.get_params().items() if value is not None}
        inside = [repr(given.pop("model")), *(f"{name}={value!r}" for name, value in given.items())]
        return f"Recommender({', '.join(inside)})"

    def _repr_html_(self) -> str:
        return recommender_html(self)

    # ------------------------------------------------------------------ fit

    def fit(
        self,
        cohort: Cohort | Path | str,
        y: None = None,
        *,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> Recommender:
        """Train on the training patients, choose on validation, evaluate the test part once.

        A run of the same configuration and cohort that is finished is found, not repeated; one
        that was interrupted goes on.

        Parameters
        ----------
        cohort : Cohort, path or str
            As in `medrec.load_cohort`.
        y : None
            Ignored; targets are the drugs of the visits.
        on_epoch : callable, optional
            Called with each epoch's row.
        """
        config = self.config()
        opened = load_cohort(cohort, self.home)
        home = home_of(opened, self.home)
        features = None if self.features is None else load_features(self.features, home)
        if features is not None:
            adopt(features.folder, home.features, features.folder.name)
        run = run_training(config, opened, home, features=features, on_epoch=on_epoch)
        self._take(run, home, opened)
        return self

    @classmethod
    def load(cls, run: Run | Path | str, home: Home | Path | str | None = None) -> Recommender:
        """Open a finished training run by its folder, or by its name in a home.

        Raises
        ------
        InputError
            If there is no such run, or it is not finished.
        """
        opened = open_home(home)
        if not isinstance(run, Run):
            run = Run.load(Path(run) if (Path(run) / "run.json").is_file() else _in(opened, run))
        if home is None and run.folder.parent.name == "runs":
            opened = Home(run.folder.parent.parent)
        loaded = load_predictor(run, opened)
        found = cls(loaded.config, home=opened)
        found._take(run, opened, loaded.cohort)
        found.__dict__["_loaded"] = loaded
        return found

    def _take(self, run: Run, home: Home, cohort: Cohort) -> None:
        self.run_, self.cohort_, self._home = run, cohort, home
        for name in ("_loaded", "_dataset"):
            self.__dict__.pop(name, None)

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise InputError(f"{self!r} is not fitted; expected fit(cohort) before this call")

    @cached_property
    def _loaded(self) -> LoadedRun:
        return load_predictor(self.run_, self._home)

    @cached_property
    def _dataset(self) -> VisitDataset:
        return build_dataset(self.cohort_, self._loaded.vocabularies)

    @property
    def classes_(self) -> npt.NDArray[np.str_]:
        """ATC codes (D,) in the order of the columns."""
        self._check_fitted()
        return np.array(self._loaded.vocabularies.drugs.codes)

    @property
    def history_(self) -> pd.DataFrame:
        """One row per epoch: losses and validation metrics."""
        self._check_fitted()
        return self.run_.metrics()

    # ------------------------------------------------------------------ predict

    def predict_proba(self, patients: Patients = "test") -> pd.DataFrame:
        """Scores of all drug classes at every visit.

        Parameters
        ----------
        patients : str, sequence of int, document or list of documents
            A part of the split (``train``, ``validation``, ``test``) or numbers of patients of the
            cohort; or new patients, ``{"visits": [{"diagnoses": [...], ...}, ...]}``, oldest visit
            first. The drugs of a visit are used for later visits only.

        Returns
        -------
        pandas.DataFrame
            Index ``patient``, ``visit``; one column per ATC code, values 0 to 1. Scores of models
            that generate lists are no probabilities, see ``docs/protocol.md``.
        """
        return self._predict(patients, "probs").astype(np.float64)

    def predict(self, patients: Patients = "test") -> pd.DataFrame:
        """Recommended sets at every visit; parameters and index as in `predict_proba`.

        Returns
        -------
        pandas.DataFrame
            Of bool, one column per ATC code.
        """
        return self._predict(patients, "selected").astype(bool)

    def _predict(self, patients: Patients, what: str) -> pd.DataFrame:
        self._check_fitted()
        batches = patient_batches(self._loaded, self._dataset, patients)
        return prediction_frame(self._loaded, batches, what)

    def recommend(
        self,
        visits: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        forbid: int | str | None = None,
    ) -> Recommendation:
        """Recommend drugs for the last visit of one patient.

        Parameters
        ----------
        visits : list of dict, or document
            Oldest first, each with ``diagnoses``, ``procedures`` and ``drugs``.
        forbid : int or str, optional
            Grade of severity that no pair in the set may have (hard mode), such as 4 or its name.
        """
        self._check_fitted()
        document = visits if isinstance(visits, Mapping) else {"visits": visits}
        grade = parse_grade(forbid) if isinstance(forbid, str) else forbid
        found = recommend(self.run_, self._home, document, forbid=grade)
        columns = ["atc_a", "name_a", "atc_b", "name_b", "severity", "severity_name"]
        return Recommendation(
            pd.DataFrame(found["drugs"]),
            pd.DataFrame(found["interactions"], columns=columns),
            list(found["warnings"]),
            found["model"]["model"],
            found["caution"],
        )

    # ------------------------------------------------------------------ evaluate

    def evaluate(
        self, cohort: Cohort | Path | str | None = None, part: str = "test"
    ) -> pd.DataFrame:
        """Every metric of the protocol with its 95 % interval.

        Parameters
        ----------
        cohort : Cohort, path or str, optional
            What it was fitted on by default. Another cohort is an external replication: its codes
            are translated, the threshold stays (`medrec.replication`).
        part : str
            ``train``, ``validation`` or ``test``; of another cohort ``test`` or ``all``.

        Returns
        -------
        pandas.DataFrame
            ``metric``, ``value``, ``low``, ``high``.
        """
        self._check_fitted()
        other = None if cohort is None else load_cohort(cohort, self._home)
        if other is not None and other.digest != self.cohort_.digest:
            with cpu_threads(self._loaded.config.threads):
                found = replicate(self.run_, self._home, other, part, self._loaded.config.split)
            return metric_table(found.rows)
        if part == "test":
            return evaluation_table(self.run_)
        return metric_table(self._rows(part))

    def _rows(self, part: str) -> pd.DataFrame:
        drugs = self._loaded.vocabularies.drugs
        matrices = ddi_matrix(self.cohort_, drugs), severity_matrix(self.cohort_, drugs)
        with cpu_threads(self._loaded.config.threads):
            batches = patient_batches(self._loaded, self._dataset, part)
            return evaluate(self._loaded.model.predict, batches, *matrices)

    def score(self, cohort: Cohort | Path | str | None = None, y: None = None) -> float:
        """Mean Jaccard of the test part: over the visits of a patient, then over patients."""
        table = self.evaluate(cohort)
        return float(table["value"][table["metric"] == "jaccard"].iloc[0])


def _in(home: Home, name: Path | str) -> Path:
    return home.find(home.runs, str(name))


def _is_file(model: Any) -> bool:
    return isinstance(model, Path) or str(model).endswith((".yaml", ".yml"))
