"""`medrec features`: run, status, verify, add, coverage, encode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.options import (
    COHORTS,
    DEFAULT_HOME,
    FEATURES,
    ConfigArgument,
    HomeOption,
    JsonOption,
    QuietOption,
    SetOption,
    one_of,
    open_stages,
)

if TYPE_CHECKING:
    from quantum.store import StoreLike

STORE_VARIABLE = "MEDREC_STORE"
features_app = typer.Typer(help="Conformers, DFT and ELF features of drugs.", no_args_is_help=True)
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", envvar=STORE_VARIABLE, help="Folder or s3:// URL, in place of the home's store."
    ),
]
CohortsOption = Annotated[
    list[str],
    typer.Option(
        "--cohort",
        help="Cohort name, as `prepare` printed; may be given again.",
        autocompletion=COHORTS,
    ),
]


@features_app.command("run")
def features_run(
    config: ConfigArgument,
    cohort: CohortsOption,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    retry: Annotated[
        list[str] | None, typer.Option(help="Try failures of this kind again.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="CPU cores for Ray; default all.")] = None,
    export_every: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds between exports of what is there while work goes on."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute what is missing for a cohort's molecules, as Ray tasks, and export the table."""
    from medrec.config import FeatureRunConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    settings = load_config(config, FeatureRunConfig, overrides or ())
    with stages.terminal.summary():
        table = stages.run_features(
            settings,
            [stages.cohort(name) for name in cohort],
            retry=tuple(retry or ()),
            workers=workers,
            export_every_s=export_every,
        )
        stages.show_features(table)


@features_app.command("export")
def features_export(
    config: ConfigArgument,
    cohort: CohortsOption,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export what is there now, also while a `features run` is at work elsewhere."""
    from medrec.config import FeatureRunConfig
    from medrec.loading import load_config
    from medrec.molecules.features import FeatureTable
    from orchestration.features import export_now

    stages = open_stages(home, as_json, quiet)
    settings = load_config(config, FeatureRunConfig, overrides or ())
    folder = export_now(settings, [stages.cohort(name) for name in cohort], stages.home)
    stages.show_features(FeatureTable.load(folder))


@features_app.command("attempts")
def features_attempts(
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write every single attempt here.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count what was tried in this home, by stage and kind of failure, with core-hours."""
    from medrec.runs import Home
    from orchestration.ledger import LEDGER, Ledger
    from quantum.base import InputError

    path = Home(home).root / LEDGER
    if not path.exists():
        raise InputError(f"nothing was computed in {home}: there is no {LEDGER}")
    ledger = Ledger(path)
    summary = ledger.summary()
    if csv is not None:
        ledger.table().to_csv(csv, index=False)
    ledger.close()
    Terminal(as_json=as_json, quiet=quiet).result(
        summary.to_dict("records"), frame_table(summary, "attempts")
    )


@features_app.command("status")
def features_status(
    config: ConfigArgument,
    cohort: CohortsOption,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count what is present, failed (by kind) and missing, stage by stage."""
    from medrec.config import FeatureRunConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    stages.show_feature_status(
        load_config(config, FeatureRunConfig, overrides or ()),
        [stages.cohort(name) for name in cohort],
    )


@features_app.command("verify")
def features_verify(
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Recompute every digest in the store; exit code 6 if one does not match."""
    open_stages(home, as_json, quiet).verify_store(store)


@features_app.command("add")
def features_add(
    smiles: Annotated[str | None, typer.Argument(help="SMILES of a drug, salts and all.")] = None,
    level: Annotated[
        str,
        typer.Option(
            help="fast, standard or tight.", autocompletion=one_of("fast", "standard", "tight")
        ),
    ] = "standard",
    structure: Annotated[
        Path | None, typer.Option(help="SDF or XYZ file with a 3D geometry, in place of a SMILES.")
    ] = None,
    charge: Annotated[int, typer.Option(help="Total charge; only an XYZ file needs it.")] = 0,
    cube: Annotated[
        Path | None, typer.Option(help="Folder to write cube files of ELF, rho and more into.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores for the calculation.")] = 1,
    memory_mb: Annotated[int, typer.Option(min=500, help="Memory limit.")] = 6000,
    time_limit_s: Annotated[float, typer.Option(min=1, help="Time limit.")] = 3600.0,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute the features of one new drug, here and now: SMILES or geometry to stored numbers."""
    from orchestration.new_drug import add_drug, show_drug
    from quantum.schema import Resources

    resources = Resources(threads=threads, memory_mb=memory_mb, time_limit_s=time_limit_s)
    stages = open_stages(home, as_json, quiet)
    terminal = stages.terminal
    with terminal.progress("calculate", None):
        done = add_drug(stages.home, smiles, structure, charge, level, resources, terminal)
    show_drug(done, terminal, cube)


@features_app.command("coverage")
def features_coverage(
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV or parquet with columns atc, name, identifier, smiles; "
            "without it the shipped molecules."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the whole table here (CSV).")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only undefined drugs.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say for each ATC code which drugs have a defined species, and why the others have none."""
    from orchestration.new_drug import read_drugs
    from quantum.base import InputError
    from quantum.coverage import coverage_table

    rows = coverage_table(read_drugs(table))
    summary = rows.assign(state=rows["reason"].where(~rows["defined"], "defined"))
    counts = summary["state"].value_counts().rename("drugs").rename_axis("state").reset_index()
    codes = rows.groupby("atc")["defined"].any()
    if out is not None:
        rows.to_csv(out, index=False)
    shown = rows[~rows["defined"]] if missing or not as_json else rows
    terminal = Terminal(as_json=as_json, quiet=quiet)
    terminal.result(
        {"counts": counts.to_dict("records"), "drugs": shown.to_dict("records")},
        frame_table(counts, "drugs by state"),
        pairs_table([("ATC codes with a defined drug", f"{codes.sum()} of {len(codes)}")]),
        frame_table(
            shown[["atc", "name", "reason", "detail"]].head(60),
            "drugs without a species (first 60)",
        ),
    )
    if not len(rows):
        raise InputError("the table of drugs is empty")


@features_app.command("encode")
def features_encode(
    table: Annotated[
        str,
        typer.Argument(
            help="Feature table name, as `features run` printed.", autocompletion=FEATURES
        ),
    ],
    encoder: Annotated[
        str,
        typer.Option(
            help="volume: our 3D CNN; slices: a 2D CNN over slices.",
            autocompletion=one_of("volume", "slices"),
        ),
    ] = "volume",
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of the 2D CNN (timm's names), .pth or .safetensors."),
    ] = None,
    architecture: Annotated[str, typer.Option(help="timm's name.")] = "tf_efficientnetv2_l",
    epochs: Annotated[int, typer.Option(min=1, help="Of the 3D CNN's pre-training.")] = 30,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode the ELF volumes of a table as images: a new table with one feature set more."""
    from medrec.molecules.encode import EncodeConfig, encode_table
    from quantum.base import InputError

    if encoder not in ("volume", "slices"):
        raise InputError(f"unknown encoder '{encoder}', expected one of: volume, slices")
    stages = open_stages(home, as_json, quiet)
    settings = {
        "encoder": encoder,
        "architecture": architecture,
        "seed": seed,
        "volume": {"dim": 64, "epochs": epochs},
    }
    config = EncodeConfig.model_validate(settings)
    with stages.terminal.progress("encode", None) as step:
        folder = encode_table(
            stages.feature_table(table),
            config,
            stages.home.features,
            weights,
            on_step=lambda done, total: step.at(done, total, ""),
        )
    stages.show_features(stages.feature_table(folder.name))


@features_app.command("merge")
def features_merge(
    source: Annotated[
        str, typer.Argument(help="What is brought in: a home folder, a store's folder or URL.")
    ],
    store: StoreOption = None,
    keep_mine: Annotated[
        bool, typer.Option("--keep-mine", help="Where numbers differ, keep this store's.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Bring what another machine computed into this store; refuse if numbers differ."""
    from quantum.merge import merge_stores
    from quantum.store import open_store

    stages = open_stages(home, as_json, quiet)
    theirs = open_existing(source)
    mine = stages.home.open_store() if store is None else open_store(store)
    with stages.terminal.progress("merge", None) as step:
        report = merge_stores(
            theirs,
            mine,
            keep_mine=keep_mine,
            progress=lambda done, total: step.at(done, total),
        )
    stages.terminal.result(vars(report), pairs_table(vars(report).items()))


def open_existing(source: str) -> StoreLike:
    """Open a store by its home folder, its own folder or its URL; a folder must hold one.

    Raises
    ------
    InputError
        If there is no store in the folder.
    """
    from medrec.runs import Home
    from quantum.base import InputError
    from quantum.store import is_url, open_store

    if is_url(source):
        return open_store(source, make=False)
    for folder in (Home(Path(source)).store, Path(source)):
        if (folder / "store.json").exists():
            return open_store(folder, make=False)
    raise InputError(
        f"no store in {source}; expected a home folder of medrec, a store's folder or its URL"
    )
