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
        try:
            kind = kind_of(path)
            load_config(path, kind)
            checked.append((path, kind.__name__))
        except MedrecError as error:
            problems.append(str(error))
    return checked, problems
