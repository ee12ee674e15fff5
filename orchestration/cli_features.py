"""`medrec features`: run, status, verify, add, coverage, encode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.options import (
    DEFAULT_HOME,
    ConfigArgument,
    HomeOption,
    JsonOption,
    QuietOption,
    SetOption,
    open_stages,
)
from quantum.base import InputError

features_app = typer.Typer(help="Conformers, DFT and ELF features of drugs.", no_args_is_help=True)
CohortsOption = Annotated[
    list[str],
    typer.Option("--cohort", help="Cohort name, as `prepare` printed; may be given again."),
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
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute what is missing for a cohort's molecules, as Ray tasks, and export the table."""
    from medrec.config import FeatureRunConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    table = stages.run_features(
        load_config(config, FeatureRunConfig, overrides or ()),
        [stages.cohort(name) for name in cohort],
        retry=tuple(retry or ()),
        workers=workers,
    )
    stages.show_features(table)


@features_app.command("status")
def features_status(
    config: ConfigArgument,
    cohort: CohortsOption,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count what is present, failed (by kind) and missing, stage by stage."""
    from medrec.config import FeatureRunConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json)
    stages.show_feature_status(
        load_config(config, FeatureRunConfig, overrides or ()),
        [stages.cohort(name) for name in cohort],
    )


@features_app.command("verify")
def features_verify(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Recompute every digest in the store; exit code 6 if one does not match."""
    open_stages(home, as_json).verify_store()


@features_app.command("add")
def features_add(
    smiles: Annotated[str | None, typer.Argument(help="SMILES of a drug, salts and all.")] = None,
    level: Annotated[str, typer.Option(help="fast, standard or tight.")] = "standard",
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
) -> None:
    """Compute the features of one new drug, here and now: SMILES or geometry to stored numbers."""
    from orchestration.new_drug import add_drug, show_drug
    from quantum.schema import Resources

    resources = Resources(threads=threads, memory_mb=memory_mb, time_limit_s=time_limit_s)
    terminal = Terminal(as_json=as_json)
    stages = open_stages(home, as_json)
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
) -> None:
    """Say for each ATC code which drugs have a defined species, and why the others have none."""
    from orchestration.new_drug import read_drugs
    from quantum.coverage import coverage_table

    rows = coverage_table(read_drugs(table))
    summary = rows.assign(state=rows["reason"].where(~rows["defined"], "defined"))
    counts = summary["state"].value_counts().rename("drugs").rename_axis("state").reset_index()
    codes = rows.groupby("atc")["defined"].any()
    if out is not None:
        rows.to_csv(out, index=False)
    shown = rows[~rows["defined"]] if missing or not as_json else rows
    terminal = Terminal(as_json=as_json)
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
    table: Annotated[str, typer.Argument(help="Feature table name, as `features run` printed.")],
    encoder: Annotated[
        str, typer.Option(help="volume: our 3D CNN; slices: a 2D CNN over slices.")
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
    other: Annotated[Path, typer.Argument(help="Home folder whose store is brought in.")],
    keep_mine: Annotated[
        bool, typer.Option("--keep-mine", help="Where numbers differ, keep this store's.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Bring what another machine computed into this store; refuse if numbers differ."""
    from medrec.runs import Home
    from quantum.merge import merge_stores
    from quantum.store import Store

    source = Home(other).store
    if not (source / "store.json").exists():
        raise InputError(f"no store in {other}; expected a home folder of medrec")
    report = merge_stores(Store(source), Store(Home(home).store), keep_mine=keep_mine)
    Terminal(as_json=as_json).result(vars(report), pairs_table(vars(report).items()))
