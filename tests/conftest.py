"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# a developer's own folders must not reach the tests
for _name in (
    "MEDREC_HOME",
    "MEDREC_DATA",
    "MEDREC_RAY_ADDRESS",
    "MEDREC_MLFLOW",
    "MEDREC_STORE",
    "MEDREC_STORE_CACHE",
    "MEDREC_STORE_RETRY_S",
):
    os.environ.pop(_name, None)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process for all Ray tests, which share a cluster, and one for every other file.

    The Ray tests take longest and come first.
    """
    ray_tests = ROOT / "tests" / "ray"
    for item in items:
        group = "ray" if item.path.is_relative_to(ray_tests) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not item.path.is_relative_to(ray_tests))


@pytest.fixture(scope="session")
def root() -> Path:
    """Top folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory):
    """Home folder with a small synthetic cohort; shared, do not write into its runs."""
    from medrec.config import CohortConfig
    from medrec.data.cohort import prepare_cohort
    from medrec.runs import Home

    home = Home(tmp_path_factory.mktemp("synthetic"))
    config = CohortConfig.model_validate(
        {
            "name": "tiny",
            "source": {
                "format": "synthetic",
                "n_patients": 60,
                "n_diagnoses": 30,
                "n_procedures": 12,
                "n_drugs": 12,
            },
        }
    )
    return home, prepare_cohort(config, home)


@pytest.fixture(scope="session")
def concept_table(synthetic, tmp_path_factory: pytest.TempPathFactory):
    """Concept table of the synthetic cohort with random views and codes; written nowhere."""
    import numpy as np

    from medrec.concepts.table import KINDS, VIEWS, ConceptCodes, ConceptTable, ConceptViews

    _, cohort = synthetic
    rng = np.random.default_rng(0)
    views, codes = {}, {}
    for kind in KINDS:
        names = tuple(sorted({code for visit in cohort.visits[kind] for code in visit}))
        n, n_codes = len(names), 4
        views[kind] = ConceptViews(
            names,
            rng.normal(size=(n, 10)).astype(np.float32),
            rng.normal(size=(n, 6)).astype(np.float32),
        )
        codes[kind] = ConceptCodes(
            rng.integers(0, n_codes, (n, len(VIEWS), 3)).astype(np.int16),
            rng.normal(scale=0.3, size=(len(VIEWS), 3, n_codes, 8)).astype(np.float32),
        )
    manifest = {"digest": "0" * 64, "views": list(VIEWS)}
    return ConceptTable(tmp_path_factory.mktemp("concepts"), manifest, views, codes)
