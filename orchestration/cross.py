"""`medrec cross`: every recommender with every representation of molecules, and the null test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medrec.config import CrossConfig, CrossRepresentation, TrainConfig
from medrec.config_cross import READ_FEATURES
from medrec.evaluation.cross import COMPARISONS, Variant, cross_table
from medrec.loading import load_config, validate_config
from medrec.runs import Home, Run
from orchestration.console import frame_table, pairs_table
from orchestration.evidence import records
from orchestration.many import Job, try_many
from orchestration.stages import Stages
from quantum.base import ConfigError, InputError, MedrecError, ResourceError, write_text_atomic

if TYPE_CHECKING:
    from medrec.data.cohort import Cohort
    from medrec.molecules.features import FeatureTable


@dataclass(frozen=True)
class CrossCell:
    """One training run of the table."""

    variant: Variant
    config: TrainConfig
    pretrained: bool

    @property
    def key(self) -> tuple[int, int]:
        """Split and seed."""
        return self.config.split, self.config.seed


@dataclass(frozen=True)
class CrossResult:
    """The table, what it rests on, and what is not in it.

    Attributes
    ----------
    table : pandas.DataFrame
        See `medrec.evaluation.cross.cross_table`.
    header : dict of str to str
    runs : dict of str to Variant
        Finished runs by name.
    failed : dict of str to str
        Why a cell has no run, by the name of its configuration, split and seed.
    """

    table: pd.DataFrame
    header: dict[str, str]
    runs: dict[str, Variant]
    failed: dict[str, str] = field(default_factory=dict)


# --------------------------------------------------------------------------- what to run


def load_cross(
    path: Path,
    seeds: Sequence[int] = (),
    splits: Sequence[int] = (),
    overrides: Sequence[str] = (),
) -> tuple[CrossConfig, list[TrainConfig]]:
    """Read a cross table's file and the recommenders that it names.

    Parameters
    ----------
    seeds, splits : sequence of int
        In place of the file's own, where given.
    overrides : sequence of str
        ``key.path=value`` for every recommender that is named by a path.

    Raises
    ------
    ConfigError
        If a file does not validate, two recommenders have one name, or one reads no molecules.
    """
    config = load_config(path, CrossConfig)
    changed = {"seeds": tuple(seeds), "splits": tuple(splits)}
    config = config.model_copy(update={key: value for key, value in changed.items() if value})
    bases = [
        item
        if isinstance(item, TrainConfig)
        else load_config(path.parent / item, TrainConfig, tuple(overrides))
        for item in config.recommenders
    ]
    names = [base.name for base in bases]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: two recommenders have one name: {', '.join(sorted(names))}")
    for base in bases:
        if not hasattr(base.model, "representation"):
            raise ConfigError(
                f"{path}: recommender '{base.name}' ({base.model.name}) has no representation of "
                "molecules to exchange; expected molerec, bimorec or mmm"
            )
    return config, bases


def plan_cells(config: CrossConfig, bases: Sequence[TrainConfig]) -> list[CrossCell]:
    """Every run of the table, those of one recommender together.

    Raises
    ------
    ConfigError
        If a recommender does not take a representation.
    """
    return [
        _cell(base, item, shuffled, split, seed)
        for base in bases
        for item in config.representations
        for shuffled in (False, True)[: 2 if _has_null(config, item) else 1]
        for split in config.splits
        for seed in config.seeds
    ]


def _has_null(config: CrossConfig, item: CrossRepresentation) -> bool:
    return config.shuffled_null and item.representation.kind != "none"


def _cell(
    base: TrainConfig, item: CrossRepresentation, shuffled: bool, split: int, seed: int
) -> CrossCell:
    name = f"{base.name}_{item.label}" + ("_shuffled" if shuffled else "")
    tree = base.model_dump(mode="json")
    # each seed draws an assignment of its own, so that one lucky draw decides nothing
    tree["model"]["representation"] |= item.changes() | {"shuffle_seed": seed if shuffled else None}
    tree |= {"name": name, "split": split, "seed": seed}
    return CrossCell(
        Variant(base.name, item.label, shuffled),
        validate_config(tree, TrainConfig, name),
        item.pretrained,
    )


# --------------------------------------------------------------------------- running


def run_cross(
    config: CrossConfig,
    bases: Sequence[TrainConfig],
    stages: Stages,
    cohort: Cohort,
    features: FeatureTable | None,
    pretrained: Run | None,
    workers: int = 1,
) -> CrossResult:
    """Train every cell, or find it finished, and compare; a failing cell does not stop the others.

    Raises
    ------
    InputError
        If a representation reads a feature table and none is given.
    ResourceError
        If every cell failed.
    """
    cells = plan_cells(config, bases)
    reads = sorted(
        item.label for item in config.representations if item.representation.kind in READ_FEATURES
    )
    if reads and features is None:
        raise InputError(
            f"representations {', '.join(reads)} read a feature table, and none was given; "
            "expected --features NAME"
        )
    wanted = [cell for cell in cells if not cell.pretrained or pretrained is not None]
    left_out = sorted({cell.variant.representation for cell in cells if cell not in wanted})
    if left_out:
        stages.terminal.warn(f"without --pretrained these rows are left out: {', '.join(left_out)}")
    runs, failed = _train(wanted, stages, cohort, features, pretrained, workers)
    if not runs:
        name, text = next(iter(failed.items()))
        raise ResourceError(f"all {len(failed)} runs failed; the first: {name}: {text}")
    table = cross_table(_rows(runs), config.reference)
    header = _header(config, cohort, features, pretrained, wanted, left_out, failed, table)
    found = {run.name: cell.variant for cell, run in runs.items()}
    return CrossResult(table, header, found, failed)


def _train(
    cells: Sequence[CrossCell],
    stages: Stages,
    cohort: Cohort,
    features: FeatureTable | None,
    pretrained: Run | None,
    workers: int,
) -> tuple[dict[CrossCell, Run], dict[str, str]]:
    """Runs of the cells that finished, and why the others did not."""
    if workers > 1:
        return _train_side_by_side(cells, stages, cohort, features, pretrained, workers)
    runs: dict[CrossCell, Run] = {}
    failed: dict[str, str] = {}
    for cell in cells:
        start = pretrained if cell.pretrained else None
        try:
            runs[cell] = stages.train(cell.config, cohort, features, start)
        except MedrecError as error:
            failed[_name(cell)] = f"{error.kind}: {error}"
        except Exception as error:  # noqa: BLE001 - one cell must not lose the others
            failed[_name(cell)] = f"unknown: {type(error).__name__}: {error}"
        if _name(cell) in failed:
            stages.terminal.warn(f"{_name(cell)} failed: {failed[_name(cell)]}")
    return runs, failed


def _train_side_by_side(
    cells: Sequence[CrossCell],
    stages: Stages,
    cohort: Cohort,
    features: FeatureTable | None,
    pretrained: Run | None,
    workers: int,
) -> tuple[dict[CrossCell, Run], dict[str, str]]:
    folder, home = cohort.folder.resolve(), stages.home.root.resolve()
    table = str(features.folder.resolve()) if features is not None else None
    start = str(pretrained.folder.resolve()) if pretrained is not None else None
    of_job = {
        Job(cell.config, str(folder), str(home), table, start if cell.pretrained else None): cell
        for cell in cells
    }
    found, failed = try_many(list(of_job), workers, stages.terminal)
    runs = {
        cell: Run.load(Home(home).runs / found[job]) for job, cell in of_job.items() if job in found
    }
    return runs, {_name(of_job[job]): f"{kind}: {text}" for job, (kind, text) in failed.items()}


def _name(cell: CrossCell) -> str:
    return f"{cell.config.name} split {cell.config.split} seed {cell.config.seed}"


def _rows(runs: Mapping[CrossCell, Run]) -> dict[Variant, dict[tuple[int, int], pd.DataFrame]]:
    from medrec.evaluation.groups import load_rows

    rows: dict[Variant, dict[tuple[int, int], pd.DataFrame]] = {}
    for cell, run in runs.items():
        rows.setdefault(cell.variant, {})[cell.key] = load_rows(run)
    return rows


# --------------------------------------------------------------------------- header


def coverage(cohort: Cohort, features: FeatureTable | None, split: int) -> dict[str, int]:
    """How many molecules of a split's drug classes have an ELF map and a conformer.

    Returns
    -------
    dict of str to int
        ``classes``, ``molecules``, ``with_elf_map``, ``with_conformer``, and
        ``classes_with_elf_map``: those with one such molecule or more.
    """
    from medrec.molecules.drugs import build_drug_molecules
    from medrec.molecules.structure import conformer_geometries

    drugs = build_drug_molecules(cohort, cohort.vocabularies(split).drugs)
    counts = {"classes": len(drugs.projection), "molecules": len(drugs)}
    if features is None:
        return counts | {"with_elf_map": 0, "with_conformer": 0, "classes_with_elf_map": 0}
    _, with_elf = features.align(drugs.species)
    _, with_conformer = conformer_geometries(drugs, features)
    return counts | {
        "with_elf_map": int(with_elf.sum()),
        "with_conformer": int(with_conformer.sum()),
        "classes_with_elf_map": int((drugs.projection[:, with_elf] > 0).any(axis=1).sum()),
    }


def _header(
    config: CrossConfig,
    cohort: Cohort,
    features: FeatureTable | None,
    pretrained: Run | None,
    wanted: Sequence[CrossCell],
    left_out: Sequence[str],
    failed: Mapping[str, str],
    table: pd.DataFrame,
) -> dict[str, str]:
    from medrec.evaluation.compare import caution

    tested = {split: len(cohort.split(split).test) for split in config.splits}
    n = coverage(cohort, features, config.splits[0])
    n_tests = sum(int(table[f"to_{name}_p"].notna().sum()) for name in COMPARISONS)
    header = {
        "cohort": f"{cohort.folder.name} ({cohort.config.preset})",
        "test patients": ", ".join(f"{count} in split {split}" for split, count in tested.items()),
        "runs": f"{len(wanted) - len(failed)} of {len(wanted)} finished; "
        f"{len(config.seeds)} seeds, {len(config.splits)} splits",
        "ELF maps": f"{n['with_elf_map']} of {n['molecules']} molecules, in "
        f"{n['classes_with_elf_map']} of {n['classes']} drug classes; the others have one "
        "learned vector in common",
        "conformers": f"{n['with_conformer']} of {n['molecules']} molecules",
        "differences": "on the same test patients, runs of one split and seed paired; intervals "
        "(95 %) are over patients, of the mean over runs, and hold nothing of what another seed "
        "would change: see the spread over runs",
        "tests": f"{n_tests} (Wilcoxon, one difference per patient); p is Holm's over all of them. "
        "It compares the trained runs at hand and not the representations: with few seeds a small "
        "p can be the luck of a seed",
        "caution": caution(min(tested.values())),
    }
    if config.shuffled_null:
        header["null"] = (
            "every drug class with the molecules and fragments of another one, drawn anew for "
            "every seed"
        )
    if pretrained is not None:
        header["pre-training"] = pretrained.name
    if left_out:
        header["left out"] = f"{', '.join(left_out)}: no --pretrained"
    return header


# --------------------------------------------------------------------------- showing


def display(table: pd.DataFrame) -> pd.DataFrame:
    """Text table of one recommender, for a terminal."""
    rows = table.to_dict("records")
    shown = pd.DataFrame({"representation": [row["representation"] for row in rows]})
    shown["runs"] = [row["n_runs"] for row in rows]
    shown["jaccard"] = [
        f"{row['jaccard']:.4f}\n{_bare(row['jaccard_low'])}–{_bare(row['jaccard_high'])}"
        for row in rows
    ]
    for name, title in (("reference", "ref"), ("null", "null")):
        shown[f"Δ {title}"] = [_difference(row, name) for row in rows]
        shown[f"p\n{title}"] = [_plain_p(row[f"to_{name}_p_holm"]) for row in rows]
        shown[f"Δ>0\n{title}"] = [
            f"{row[f'to_{name}_above']}/{row[f'to_{name}_pairs']}"
            if row[f"to_{name}_pairs"]
            else "-"
            for row in rows
        ]
    return shown


def _difference(row: Mapping[Any, Any], name: str) -> str:
    if not row[f"to_{name}_pairs"]:
        return "-"
    low, high = row[f"to_{name}_low"], row[f"to_{name}_high"]
    return f"{row[f'to_{name}']:+.4f}\n{_bare(low, '+')} to {_bare(high, '+')}"


def _bare(value: float, sign: str = "") -> str:
    """Three digits without the zero before the point, so that the table fits 80 columns."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def _plain_p(p: float) -> str:
    if p != p:
        return "-"
    return "<.001" if p < 0.001 else f"{p:.3f}"


def document(config: CrossConfig, result: CrossResult) -> dict[str, Any]:
    """Everything as plain values, for JSON."""
    return {
        "name": config.name,
        "reference": config.reference,
        "header": result.header,
        "rows": records(result.table),
        "runs": {
            name: {
                "recommender": variant.recommender,
                "representation": variant.representation,
                "shuffled": variant.shuffled,
            }
            for name, variant in result.runs.items()
        },
        "failed": result.failed,
    }


def write_cross(config: CrossConfig, result: CrossResult, folder: Path) -> list[Path]:
    """Write the table as CSV and JSON and the differences as a figure; returns the files."""
    from medrec.report.cross import forest

    title = {"null": "to its own molecules shuffled", "reference": f"to '{config.reference}'"}
    figure = forest(result.table, title)
    content = {
        "table.csv": result.table.to_csv(index=False),
        "cross.json": json.dumps(document(config, result), indent=1, default=float),
        "forest.html": figure.to_html(include_plotlyjs=True, full_html=True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        write_text_atomic(folder / name, text)
    return [folder / name for name in content]


def show_cross(config: CrossConfig, result: CrossResult, stages: Stages, folder: Path) -> None:
    """Print header and tables, and write the files."""
    for path in write_cross(config, result, folder):
        stages.terminal.say(f"written: {path}")
    tables = [
        frame_table(
            display(own), f"{name}: Δ to '{config.reference}' (ref), to shuffled molecules (null)"
        )
        for name, own in result.table.groupby("recommender", sort=False)
    ]
    failures = [f"failed: {name}: {text}" for name, text in result.failed.items()]
    stages.terminal.result(
        document(config, result), pairs_table(result.header.items()), *tables, *failures
    )
