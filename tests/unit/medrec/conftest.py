"""Fixtures of the unit tests of `medrec`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from medrec.library.arrays import MoleculeLibrary

TASK_SMILES = (
    "CC(=O)Nc1ccc(O)cc1", "C", "OCC(O)CO", "[Na+].[Cl-]", "CC(C)C#N", "C[C@H](N)C(=O)O",
    "c1ccccc1", "CCCCCCCCCCCC", "F/C=C/F", "CCO.CCC",
)  # fmt: skip


def _load(name: str) -> ModuleType:
    """Module beside this file; the tests' folder is on no import path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def write_library() -> Callable[..., MoleculeLibrary]:
    """``small_library.write_library``."""
    function: Callable[..., MoleculeLibrary] = _load("small_library").write_library
    return function


@pytest.fixture(scope="session")
def small_library(
    write_library: Callable[..., MoleculeLibrary], tmp_path_factory: pytest.TempPathFactory
) -> MoleculeLibrary:
    """Sixteen molecules with conformers, heavy atoms; do not write into its folder."""
    return write_library(tmp_path_factory.mktemp("library") / "small")


@pytest.fixture(scope="session")
def task_smiles() -> tuple[str, ...]:
    """Molecules of ``task_library``, atoms in its order."""
    return TASK_SMILES


@pytest.fixture(scope="session")
def task_library(
    write_library: Callable[..., MoleculeLibrary], tmp_path_factory: pytest.TempPathFactory
) -> MoleculeLibrary:
    """Ten molecules with conformers: rings, a chain, symmetric ones, two in parts; read only."""
    return write_library(tmp_path_factory.mktemp("library") / "tasks", TASK_SMILES)


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """Module ``toy_problem``."""
    return _load("toy_problem")
