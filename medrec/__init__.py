"""Patients and molecules to recommendations: records, visits, recommenders, metrics.

`medrec` may read `quantum`'s identities, schemas and store, and never a quantum-chemistry
program; it knows nothing of Ray. Start reading at `medrec.data.schema` (the nouns and the rule
of what a model may see), then `medrec.training` (the learning half, top to bottom), then one
model in `medrec.models`.

``medrec.Recommender("molerec").fit(medrec.load_cohort("synthetic_small"))`` is the shortest way in;
names of the package load on first use.

Shape letters used throughout: B batch (patients), V visits, D drugs, A atoms, K features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medrec.api import compare, load_cohort, load_features, prepare, show_elf
    from medrec.config import CohortConfig, TrainConfig
    from medrec.data.cohort import Cohort
    from medrec.estimator import Recommendation, Recommender
    from medrec.evaluation.compare import Comparison
    from medrec.molecules.features import FeatureTable
    from medrec.runs import Home, Run
    from quantum.base import MedrecError

__all__ = [
    "Cohort",
    "CohortConfig",
    "Comparison",
    "FeatureTable",
    "Home",
    "MedrecError",
    "Recommendation",
    "Recommender",
    "Run",
    "TrainConfig",
    "compare",
    "load_cohort",
    "load_features",
    "prepare",
    "show_elf",
]

if not TYPE_CHECKING:
    _HOMES = {
        "compare": "medrec.api",
        "load_cohort": "medrec.api",
        "load_features": "medrec.api",
        "prepare": "medrec.api",
        "show_elf": "medrec.api",
        "CohortConfig": "medrec.config",
        "TrainConfig": "medrec.config",
        "Cohort": "medrec.data.cohort",
        "Recommendation": "medrec.estimator",
        "Recommender": "medrec.estimator",
        "Comparison": "medrec.evaluation.compare",
        "FeatureTable": "medrec.molecules.features",
        "Home": "medrec.runs",
        "Run": "medrec.runs",
        "MedrecError": "quantum.base",
    }

    def __getattr__(name):
        """Load a public name on first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        """Public names and what is loaded."""
        return sorted({*globals(), *__all__})
