"""Which configuration class belongs to which file under ``configs/``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from medrec.config import (
    CohortConfig,
    ConceptConfig,
    CrossConfig,
    DemoConfig,
    FeatureRunConfig,
    LibraryConfig,
    MoleculePretrainRunConfig,
    PretrainRunConfig,
    PropertyRunConfig,
    PropertyTuneConfig,
    StudyConfig,
    TrainConfig,
    TuneConfig,
)
from medrec.loading import load_config
from quantum.base import InputError, MedrecError

KIND_OF_FOLDER: dict[str, type[BaseModel]] = {
    "data": CohortConfig,
    "quantum": FeatureRunConfig,
    "pretrain": PretrainRunConfig,
    "tune": TuneConfig,
    "train": TrainConfig,
    "papers": TrainConfig,
    "studies": StudyConfig,
    "cross": CrossConfig,
    "concepts": ConceptConfig,
    "demo": TrainConfig,
    "molecules": LibraryConfig,
    "encoders": MoleculePretrainRunConfig,
    "properties": PropertyRunConfig,
    "searches": PropertyTuneConfig,
}


CLUSTER_FOLDER = "cluster"  # Ray's files, not ours: see `orchestration.cluster_check`


def kind_of(path: Path) -> type[BaseModel]:
    """Class of a shipped configuration file, by its folder.

    Raises
    ------
    InputError
        If the folder is none of the known ones.
    """
    if path.stem == "demo" and path.parent.name == "configs":
        return DemoConfig
    try:
        return KIND_OF_FOLDER[path.parent.name]
    except KeyError:
        known = ", ".join(sorted(KIND_OF_FOLDER))
        raise InputError(
            f"no configuration class for {path}: expected a file in one of the folders {known}"
        ) from None


def check_folder(folder: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Load every YAML file below a folder.

    Returns
    -------
    checked : list of (Path, str)
        Files that validated, with the name of their class.
    problems : list of str
        One message for each file that did not.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    checked, problems = [], []
    for path in sorted(folder.rglob("*.yaml")):
        if path.parent.name == CLUSTER_FOLDER:
            kind, complaints = _check_cluster(path)
            checked += [] if complaints else [(path, kind)]
            problems += complaints
            continue
        try:
            model = kind_of(path)
            load_config(path, model)
            checked.append((path, model.__name__))
        except MedrecError as error:
            problems.append(str(error))
    return checked, problems


def _check_cluster(path: Path) -> tuple[str, list[str]]:
    """Kind of a cluster file and its problems."""
    from orchestration.cluster_check import check_cluster_file

    try:
        report = check_cluster_file(path)
    except MedrecError as error:  # Ray is not installed
        return "", [f"{path}: {error}"]
    return f"cluster file ({report.kind})", [f"{path}: {line}" for line in report.problems]
