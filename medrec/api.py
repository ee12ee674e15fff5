"""The library's front door: cohorts, feature tables, comparisons and pictures in one call each.

What a command of `medrec` does is done by the same functions here; see `medrec.estimator` for
recommenders and `quantum.api` for molecules.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medrec.config import CohortConfig
from medrec.data.cohort import Cohort, prepare_cohort
from medrec.data.schema import data_root
from medrec.loading import load_config, suggest, validate_config
from medrec.molecules.features import FeatureTable
from medrec.runs import Home, Run
from quantum.base import InputError, ProgramMissingError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from medrec.evaluation.compare import Comparison

HOME_VARIABLE = "MEDREC_HOME"
_CONFIG_SUFFIXES = (".yaml", ".yml")


def _built_in() -> dict[str, dict[str, Any]]:
    """Configurations of cohorts that need no data of one's own."""
    return {
        "synthetic_small": {
            "name": "synthetic_small",
            "source": {"format": "synthetic", "n_patients": 200},
        },
        "mimic4_demo": {
            "name": "mimic4_demo_strict",
            "preset": "strict",
            "source": {
                "format": "mimic4",
                "path": str(data_root() / "mimic4-demo"),
                "restricted": False,
            },
        },
    }


@cache
def _temporary_home(process: int) -> Path:
    """Folder of one process, removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="medrec-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def open_home(home: Home | Path | str | None = None) -> Home:
    """Home folder: the given one, else ``MEDREC_HOME``, else one that ends with this process."""
    if isinstance(home, Home):
        return home
    named = home or os.environ.get(HOME_VARIABLE)
    return Home(Path(named) if named else _temporary_home(os.getpid()))


def adopt(folder: Path, parent: Path, name: str) -> None:
    """Make a folder findable in a home by a link; nothing is copied."""
    place = parent / name
    if place.exists() or folder.resolve() == place.resolve():
        return
    parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder.resolve(), target_is_directory=True)


def home_of(cohort: Cohort, home: Home | Path | str | None = None) -> Home:
    """Home that runs on a cohort belong to: the given one, else the one the cohort lies in."""
    if home is None and cohort.folder.parent.name == "cohorts":
        return Home(cohort.folder.parent.parent)
    found = open_home(home)
    adopt(cohort.folder, found.cohorts, cohort.name)
    return found


def prepare(
    config: CohortConfig | dict[str, Any] | Path | str, home: Home | Path | str | None = None
) -> Cohort:
    """Make a cohort from records, or find it.

    Parameters
    ----------
    config : CohortConfig, dict or path
        Settings as in ``configs/data``; a path is a YAML file.
    home : path, optional
        Where it is kept; else ``MEDREC_HOME``, else a folder that ends with this process.

    Raises
    ------
    ConfigError, InputError, DataError
        Settings, files or tables that are not as expected.
    """
    if isinstance(config, dict):
        config = validate_config(config, CohortConfig, "cohort settings")
    elif not isinstance(config, CohortConfig):
        config = load_config(config, CohortConfig)
    return prepare_cohort(config, open_home(home))


def load_cohort(source: Cohort | Path | str, home: Home | Path | str | None = None) -> Cohort:
    """Open a cohort by whatever names it.

    Parameters
    ----------
    source : path or str
        ``synthetic_small`` (200 made-up patients) or ``mimic4_demo`` (the shipped demo records),
        both prepared when needed; a prepared cohort's folder; a YAML file as in ``configs/data``;
        or the name of a cohort in ``home``, or its beginning.
    home : path, optional
        As in `prepare`.

    Raises
    ------
    InputError
        If it names nothing; the message says what there is.
    """
    if isinstance(source, Cohort):
        return source
    text = str(source)
    built_in = _built_in()
    if text in built_in:
        return prepare(built_in[text], home)
    if text.endswith(_CONFIG_SUFFIXES):
        return prepare(Path(text), home)
    if (Path(text) / "cohort.json").is_file():
        return Cohort.load(Path(text))
    opened = open_home(home)
    try:
        return Cohort.load(opened.find(opened.cohorts, text))
    except InputError as error:
        names = ", ".join(built_in)
        raise InputError(
            f"no cohort '{text}'{suggest(text, built_in)}: {error}; expected a prepared folder, a "
            f"YAML file, a cohort of the home, or one of: {names}"
        ) from error


def load_features(
    source: FeatureTable | Path | str, home: Home | Path | str | None = None
) -> FeatureTable:
    """Open a feature table by its folder, or by its name in a home."""
    if isinstance(source, FeatureTable):
        return source
    if (Path(source) / "manifest.json").is_file():
        return FeatureTable.load(Path(source))
    opened = open_home(home)
    return FeatureTable.load(opened.find(opened.features, str(source)))


def compare(
    models: Sequence[Any], cohort: Cohort | None = None, reference: str | None = None
) -> Comparison:
    """Finished models on one test part: intervals, paired differences, chance and caution.

    Parameters
    ----------
    models : sequence of Recommender or Run
    cohort : Cohort, optional
        Needed where no fitted `Recommender` names it.
    reference : str, optional
        Model or run that differences refer to; the first by default.

    Raises
    ------
    InputError
        If there is no model, one is not fitted, or they belong to different cohorts.
    """
    from medrec.evaluation.compare import compare_runs

    runs: list[Run] = []
    for model in models:
        run = model if isinstance(model, Run) else getattr(model, "run_", None)
        if run is None:
            raise InputError(
                f"{type(model).__name__} is not fitted; expected fitted recommenders or runs"
            )
        runs.append(run)
        cohort = cohort or getattr(model, "cohort_", None)
    if not runs or cohort is None:
        raise InputError(
            f"nothing to compare: {len(runs)} runs, "
            f"{'no cohort' if cohort is None else 'a cohort'}; expected one run at least"
        )
    return compare_runs(runs, cohort, reference)


def show_elf(result: Any, *, slices: bool = False) -> go.Figure:
    """Interactive figure of an ELF map: isosurfaces with a slider, or slices.

    Parameters
    ----------
    result : quantum.Calculation or quantum.Record
        A finished molecule, or the stored record of its ELF map.
    slices : bool
        Planes along the three principal axes in place of isosurfaces.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    InputError
        If there is no ELF map in it.
    ProgramMissingError
        If Plotly or scikit-image is not installed.
    """
    record = getattr(result, "elf_record", result)
    if "elf" not in getattr(record, "arrays", {}):
        raise InputError(
            f"{type(result).__name__} holds no ELF map; expected the result of quantum.calculate"
        )
    try:
        from medrec.report.elf import ElfMap, slice_figure, surface_figure
    except ImportError as error:
        raise ProgramMissingError(
            f"pictures need {error.name}; pip install 'medrec[report]'"
        ) from error
    species = record.request.get("species", {})
    elf = ElfMap.from_record(record, str(species.get("smiles", "")))
    return slice_figure(elf) if slices else surface_figure(elf)
