"""What stands behind `medrec molecules`: import, show, pre-train, fine-tune, embed.

Each finds finished work by name, or does it. Heavy modules load inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from medrec.config import MoleculePretrainRunConfig, PropertyRunConfig
from medrec.config_molecules import LibraryConfig, MoleculeEncoderConfig
from medrec.runs import Home, Run
from orchestration.console import Terminal, frame_table, pairs_table
from quantum.base import InputError, TransientError

if TYPE_CHECKING:
    from medrec.library.arrays import MoleculeLibrary

Progress = Callable[[int, int], None]
Slice = tuple[int, int]

RESEARCH_ONLY = "Predicted by a model; research use only, not for clinical decisions."
_LOST_WORKERS = 3
_FEWEST_RECORDS = 100
_SHOWN_ROWS = 12
_SHOWN_FAILURES = 3
_SHOWN_NUMBERS = 4


def find_library(home: Home, name: str) -> MoleculeLibrary:
    """Open a molecule library by name or unique beginning."""
    from medrec.library.arrays import MoleculeLibrary

    return MoleculeLibrary.load(home.find(home.molecules, name))


def find_run(home: Home, name: str) -> Run:
    """Open a run by name or unique beginning."""
    return Run.load(home.find(home.runs, name))


# --------------------------------------------------------------------------- import


def import_molecules(
    config: LibraryConfig, home: Home, terminal: Terminal, workers: int | None = None
) -> MoleculeLibrary:
    """Import a library, go on from its finished parts, or find it.

    Parameters
    ----------
    workers : int, optional
        Cores of a local cluster; without it the work is done in this process, without Ray.
    """
    from medrec.library.build import import_library

    with terminal.progress("import", None) as step:

        def progress(done: int, total: int) -> None:
            step.at(done, total, "records")

        if workers is None:
            return import_library(config, home, progress)
        shard_records = _encode_with_ray(config, home, workers, progress)
        return import_library(config, home, shard_records=shard_records)


def _encode_with_ray(config: LibraryConfig, home: Home, workers: int, progress: Progress) -> int:
    """Encode the missing slices of a library as Ray tasks; returns the size of a slice."""
    from medrec.library import build
    from medrec.library.readers import open_source
    from orchestration.cluster import check_shared, local_ray, require

    reader = open_source(config)
    folder = build.library_folder(config, reader, home)
    # four slices for each core, so that none has long to wait for the last one
    size = min(build.SHARD_RECORDS, max(_FEWEST_RECORDS, -(-len(reader) // (4 * workers))))
    slices = build.slices(len(reader), size)
    partial = build.partial_folder(folder).resolve()
    missing = [item for item in slices if not build.shard_path(partial, *item).is_file()]
    if folder.is_dir() or not missing:
        return size
    done = len(reader) - sum(stop - start for start, stop in missing)
    progress(done, len(reader))
    with local_ray(workers) as ray:
        require(ray, cpus=workers)
        check_shared(ray, partial)
        for start, stop in _finished(ray, _with_whole_paths(config), missing, partial, workers):
            done += stop - start
            progress(done, len(reader))
    return size


def _with_whole_paths(config: LibraryConfig) -> LibraryConfig:
    """Paths that depend neither on the folder that a process works in nor on its environment."""
    from medrec.data.schema import resolve_path

    source = config.source
    paths = {
        name: resolve_path(str(value)).resolve()
        for name, value in source
        if isinstance(value, Path)
    }
    return config.model_copy(update={"source": source.model_copy(update=paths)})


def _finished(
    ray: Any, config: LibraryConfig, missing: Sequence[Slice], partial: Path, workers: int
) -> Iterator[Slice]:
    """Yield slices as tasks finish them; a lost worker's slice is tried again elsewhere."""
    remote = ray.remote(num_cpus=1, max_retries=_LOST_WORKERS, retry_exceptions=False)(_encode)
    waiting = list(missing)[::-1]
    running: dict[Any, Slice] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                item = waiting.pop()
                running[remote.remote(config, *item, partial)] = item
            done, _ = ray.wait(list(running), num_returns=1, timeout=5)
            for reference in done:
                item = running.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause or error from None
                except ray.exceptions.RayError as error:
                    raise TransientError(
                        f"records {item[0]} to {item[1]} lost {_LOST_WORKERS + 1} workers "
                        f"({type(error).__name__}); the same command goes on from there"
                    ) from error
                yield item
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _encode(config: LibraryConfig, start: int, stop: int, folder: Path) -> None:
    """Body of a Ray task; a reused worker keeps its native thread pools, so they are set here."""
    from threadpoolctl import threadpool_limits

    from medrec.library.build import encode_slice

    with threadpool_limits(1):
        encode_slice(config, start, stop, folder)


def show_library(library: MoleculeLibrary, terminal: Terminal) -> None:
    """Print counts, targets with units, rejected records by reason, and size."""
    import numpy as np

    targets = pd.DataFrame(
        [
            {**item._asdict(), "labels": int(np.isfinite(library.targets[:, number]).sum())}
            for number, item in enumerate(library.targets_info)
        ],
        columns=["name", "unit", "kind", "labels"],
    )
    rejected = library.rejected["reason"].value_counts().rename_axis("reason")
    reasons = rejected.rename("records").reset_index()
    facts = {
        "library": library.name,
        "molecules": len(library),
        "with 3D coordinates": int(library.arrays["placed"].sum()),
        "left out": len(library.rejected),
        "atoms": "all" if library.hydrogens else "heavy atoms",
        "atoms of a molecule": f"{library.n_atoms.min()} to {library.n_atoms.max()}, "
        f"mean {library.n_atoms.mean():.1f}",
        "MB on disk": round(_size_on_disk(library.folder) / 1e6, 1),
        "folder": str(library.folder),
    }
    document = {
        **facts,
        "digest": library.digest,
        "targets": targets.to_dict("records"),
        "rejected": reasons.to_dict("records"),
        "manifest": library.manifest,
    }
    tables: list[Any] = [pairs_table(facts.items())]
    tables += [frame_table(targets.head(_SHOWN_ROWS), "targets")] if len(targets) else []
    if len(targets) > _SHOWN_ROWS:
        tables.append(f"and {len(targets) - _SHOWN_ROWS} more targets; --json lists all")
    tables += [frame_table(reasons, "left out")] if len(reasons) else []
    terminal.result(document, *tables)


def _size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --------------------------------------------------------------------------- fit


def pretrain(
    config: MoleculePretrainRunConfig, library: MoleculeLibrary, home: Home, terminal: Terminal
) -> Run:
    """Pre-train an encoder, or find the finished run."""
    from orchestration.fits import run_fit

    with terminal.progress("pretrain", None) as step:
        return run_fit(config, library, home, on_step=step.at)


def finetune(
    config: PropertyRunConfig,
    library: MoleculeLibrary,
    home: Home,
    terminal: Terminal,
    start: Run | None = None,
    seeds: Sequence[int] = (),
) -> list[Run]:
    """Fine-tune once for each seed (the configuration's own without any), or find the runs."""
    from orchestration.fits import run_fit

    runs = []
    for seed in seeds or (config.task.fit.seed,):
        fit = config.task.fit.model_copy(update={"seed": seed})
        seeded = config.model_copy(update={"task": config.task.model_copy(update={"fit": fit})})
        with terminal.progress(f"finetune seed {seed}", None) as step:
            runs.append(run_fit(seeded, library, home, start, on_step=step.at))
    return runs


def show_fit(run: Run, terminal: Terminal) -> None:
    """Print a run's name and its numbers."""
    report = run.report()
    flat = {key: value for key, value in report.items() if isinstance(value, int | float | str)}
    terminal.result({"run": run.name, **report}, pairs_table([("run", run.name), *flat.items()]))


def show_properties(runs: Sequence[Run], terminal: Terminal) -> None:
    """Print the test metrics of every run, and their mean and SD over runs if there are several."""
    from orchestration.fits import PROPERTIES

    reports = [{"run": run.name, **run.report()} for run in runs]
    rows = pd.concat(
        [pd.read_parquet(run.folder / PROPERTIES).assign(run=run.name) for run in runs],
        ignore_index=True,
    )
    several = len(runs) > 1
    keys = ["target", "unit", "metric"]
    values = rows.groupby(keys, sort=False, dropna=False)["value"]
    shown = values.agg(mean="mean", sd="std").reset_index() if several else rows.drop(columns="run")
    facts = ("n_train", "parameters", "epochs", "molecules_per_s", "seconds")
    runs_shown = pd.DataFrame(reports)[["run", *facts]]
    title = f"test part, mean and SD over {len(runs)} runs" if several else "test part"
    plain = shown.astype(object).where(shown.notna(), None)  # JSON has no NaN
    terminal.result(
        {"runs": reports, "test": plain.to_dict("records"), "note": RESEARCH_ONLY},
        frame_table(runs_shown, "runs"),
        frame_table(shown, title),
        *dict.fromkeys(f"note: {note}" for report in reports for note in report["notes"]),
        RESEARCH_ONLY,
    )


# --------------------------------------------------------------------------- embed


def read_smiles(smiles: Sequence[str], file: Path | None, column: str) -> list[str]:
    """SMILES of the command line and of a table.

    Raises
    ------
    InputError
        If there are none, or the table cannot be read or lacks the column.
    """
    found = list(smiles)
    if file is not None:
        try:
            table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
        except (OSError, ValueError) as error:
            raise InputError(f"not readable as a table: {file} ({type(error).__name__})") from error
        if column not in table.columns:
            names = ", ".join(map(str, table.columns))
            raise InputError(f"{file} has no column '{column}'; it has: {names}")
        found += table[column].fillna("").astype(str).tolist()
    if not found:
        raise InputError("no SMILES given; expected some as arguments, or a table with --file")
    return found


def encoder_run(home: Home, name: str | None) -> Run:
    """Run whose encoder is asked for; without a name the only one that there is.

    Raises
    ------
    InputError
        If there is none, or several to choose from.
    """
    if name is not None:
        return find_run(home, name)
    folders = sorted(home.runs.glob("*/run.json"))
    runs = [run for run in (Run.load(path.parent) for path in folders) if _has_library(run)]
    if len(runs) == 1:
        return runs[0]
    names = ", ".join(run.name for run in runs) or "nothing yet"
    raise InputError(f"--pretrained is missing; there is: {names}")


def _has_library(run: Run) -> bool:
    return run.kind == "pretrain" and "library" in run.inputs and run.is_finished


def embed_molecules(smiles: Sequence[str], run: Run, conformers: bool) -> pd.DataFrame:
    """Vectors of molecules, see `medrec.properties.embed`; read as in the run's library."""
    from medrec.properties.embed import embed
    from orchestration.fits import start_state

    state = start_state(run)
    if "library" not in run.inputs:
        raise InputError(
            f"run {run.name} was not made on a molecule library; expected one of "
            "`molecules pretrain` or `molecules finetune`"
        )
    return embed(
        smiles,
        state,
        conformers=conformers,
        hydrogens=run.report()["hydrogens"],
        encoder=MoleculeEncoderConfig.model_validate(run.config()["encoder"]),
    )


def check_table_file(path: Path | None) -> None:
    """Refuse a file of another kind before there is anything to write.

    Raises
    ------
    InputError
        If it ends in neither .parquet nor .csv.
    """
    if path is not None and path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{path} ends in neither .parquet nor .csv")


def show_vectors(vectors: pd.DataFrame, run: Run, terminal: Terminal, out: Path | None) -> None:
    """Write vectors to a file, or print them; molecules without one are named."""
    texts = [name for name in vectors.columns if not is_numeric_dtype(vectors[name])]
    numbers = vectors.drop(columns=texts)
    failed = numbers.isna().any(axis=1)
    for row in vectors[failed].head(_SHOWN_FAILURES).itertuples():
        terminal.warn(f"{row.smiles}: {row.reason}")
    facts: dict[str, Any] = {
        "run": run.name,
        "molecules": len(vectors),
        "without a vector": int(failed.sum()),
        "note": RESEARCH_ONLY,
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write = vectors.to_parquet if out.suffix == ".parquet" else vectors.to_csv
        write(out, index=False)
        facts["file"] = str(out)
        terminal.result(facts, pairs_table(facts.items()))
        return
    rows = zip(vectors[texts].to_dict("records"), numbers.to_numpy(), failed, strict=True)
    document = [{**row, "vector": None if bad else vector.tolist()} for row, vector, bad in rows]
    shown = vectors.head(_SHOWN_ROWS)[[*texts, *numbers.columns[:_SHOWN_NUMBERS]]]
    terminal.result(
        {**facts, "vectors": document},
        frame_table(shown, f"first {_SHOWN_NUMBERS} of {numbers.shape[1]} dimensions"),
        pairs_table(facts.items()),
    )
