"""`medrec molecules`: import, info, pretrain, finetune, tune, embed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli_search import PickOption, ResumeOption, TrialsOption, WarmStartOption
from orchestration.console import Terminal
from orchestration.options import (
    DEFAULT_HOME,
    LIBRARIES,
    RUNS,
    ConfigArgument,
    HomeOption,
    JsonOption,
    QuietOption,
    SeedsOption,
    SetOption,
)

molecules_app = typer.Typer(
    help="Molecule libraries, molecular pre-training, property prediction.", no_args_is_help=True
)
LibraryOption = Annotated[
    str,
    typer.Option(
        "--library",
        help="Molecule library, as `molecules import` printed.",
        autocompletion=LIBRARIES,
    ),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        "--pretrained", help="Run whose encoder the model starts from.", autocompletion=RUNS
    ),
]


@molecules_app.command("import")
def molecules_import(
    config: ConfigArgument,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="CPU cores for Ray; without it no Ray, one core."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Import a set of molecules into a library; records that do not fit are counted by reason.

    The same command goes on where an interrupted import stopped, and finds a finished library.
    """
    from medrec.config import LibraryConfig
    from medrec.loading import load_config
    from medrec.runs import Home
    from orchestration.molecules import import_molecules, show_library

    terminal = Terminal(as_json=as_json, quiet=quiet)
    settings = load_config(config, LibraryConfig, overrides or ())
    show_library(import_molecules(settings, Home(home), terminal, workers), terminal)


@molecules_app.command("info")
def molecules_info(
    library: Annotated[
        str,
        typer.Argument(help="Library, as `molecules import` printed.", autocompletion=LIBRARIES),
    ],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show a library: counts, targets with units, what was left out and why, size on disk."""
    from medrec.runs import Home
    from orchestration.molecules import find_library, show_library

    show_library(find_library(Home(home), library), Terminal(as_json=as_json, quiet=quiet))


@molecules_app.command("pretrain")
def molecules_pretrain(
    config: ConfigArgument,
    library: LibraryOption,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pre-train an encoder on a library.

    One worker on the CPU runs in this process; several workers, or GPUs, run through Ray Train.
    The same command goes on from the last checkpoint.
    """
    from medrec.config import MoleculePretrainRunConfig
    from medrec.loading import load_config
    from medrec.runs import Home
    from orchestration.molecules import find_library, pretrain, show_fit

    terminal = Terminal(as_json=as_json, quiet=quiet)
    settings = load_config(config, MoleculePretrainRunConfig, overrides or ())
    show_fit(pretrain(settings, find_library(Home(home), library), Home(home), terminal), terminal)


@molecules_app.command("finetune")
def molecules_finetune(
    config: ConfigArgument,
    library: LibraryOption,
    pretrained: StartOption = None,
    seeds: SeedsOption = None,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune an encoder on a library's targets and evaluate it once on the test part.

    Research use only, not for clinical decisions.
    """
    from medrec.config import PropertyRunConfig
    from medrec.loading import load_config
    from medrec.runs import Home
    from orchestration.many import parse_numbers
    from orchestration.molecules import find_library, find_run, finetune, show_properties

    terminal, place = Terminal(as_json=as_json, quiet=quiet), Home(home)
    settings = load_config(config, PropertyRunConfig, overrides or ())
    start = find_run(place, pretrained) if pretrained else None
    numbers = parse_numbers(seeds, "--seeds")
    show_properties(
        finetune(settings, find_library(place, library), place, terminal, start, numbers), terminal
    )


@molecules_app.command("tune")
def molecules_tune(
    config: ConfigArgument,
    library: LibraryOption,
    pretrained: StartOption = None,
    resume: ResumeOption = False,
    trials: TrialsOption = None,
    warm_start: WarmStartOption = None,
    pick: PickOption = None,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search settings of a fine-tuning with Ray Tune and Optuna, by the validation score.

    The best configuration is fine-tuned once more and evaluated once on the test part. The same
    command resumes a search. Research use only, not for clinical decisions.
    """
    from medrec.config import PropertyTuneConfig
    from medrec.loading import load_config
    from medrec.runs import Home
    from orchestration.molecules import find_library, find_run

    terminal, place = Terminal(as_json=as_json, quiet=quiet), Home(home)
    settings = load_config(config, PropertyTuneConfig, overrides or ())
    found = find_library(place, library)
    start = find_run(place, pretrained) if pretrained else None
    # takes seconds, so that a wrong name is not found last
    from orchestration.molecule_tune import show_search, tune_properties
    from orchestration.search import SearchRequest

    warm = tuple(find_run(place, name) for name in warm_start or ())
    request = SearchRequest(resume, trials, warm, terminal.warn)
    show_search(tune_properties(settings, found, place, terminal, start, request, pick), terminal)


@molecules_app.command("embed")
def molecules_embed(
    smiles: Annotated[list[str] | None, typer.Argument(help="SMILES of molecules.")] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            help="Run with the encoder; may be left out if it is alone.",
            autocompletion=RUNS,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Table (CSV or Parquet) with a column of SMILES.")
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Its column.")] = "smiles",
    conformers: Annotated[
        bool, typer.Option("--conformers", help="Make one conformer each and read it too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: .parquet or .csv.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn molecules into vectors with a pre-trained encoder.

    Research use only, not for clinical decisions.
    """
    from medrec.runs import Home
    from orchestration.molecules import (
        check_table_file,
        embed_molecules,
        encoder_run,
        read_smiles,
        show_vectors,
    )

    terminal = Terminal(as_json=as_json, quiet=quiet)
    check_table_file(out)
    texts = read_smiles(smiles or [], file, column)
    run = encoder_run(Home(home), pretrained)
    show_vectors(embed_molecules(texts, run, conformers), run, terminal, out)
