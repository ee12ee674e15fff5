"""Checks without a result to keep: doctor, molecule, check-configs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.options import DEFAULT_HOME, HomeOption, JsonOption, QuietOption


def doctor(
    home: HomeOption = DEFAULT_HOME,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at every node of the joined Ray cluster, too.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print what is on this machine and what to do about what is missing."""
    import pandas as pd

    from medrec.runs import Home
    from orchestration.doctor import as_rows, examine, examine_cluster

    checks = examine(Home(home))
    checks += examine_cluster(Home(home)) if cluster else []
    rows = as_rows(checks)
    terminal = Terminal(as_json=as_json, quiet=quiet)
    terminal.result(rows, frame_table(pd.DataFrame(rows).rename(columns={"what": ""})))
    if any(check.level == "problem" for check in checks):
        raise typer.Exit(3)


def molecule(
    smiles: Annotated[str, typer.Argument(help="SMILES of a drug, salts and all.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the species that is calculated for a SMILES: salts stripped, charge and spin stated."""
    from quantum.molecule import species_from_smiles

    species = species_from_smiles(smiles)
    facts = {
        **species.model_dump(),
        "formula": species.formula,
        "atoms": species.n_atoms,
        "key": species.key,
    }
    Terminal(as_json=as_json, quiet=quiet).result(facts, pairs_table(facts.items()))


def check_configs(
    folder: Annotated[Path, typer.Argument(help="Folder with YAML files.")] = Path("configs"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Load every configuration file of a folder; exit code 2 if one does not validate."""
    from orchestration.configs import check_folder

    terminal = Terminal(as_json=as_json, quiet=quiet)
    with terminal.progress("check", None):
        checked, problems = check_folder(folder)
    files = {str(path): kind for path, kind in checked}
    terminal.result({"files": files, "problems": problems}, pairs_table(files.items()))
    for problem in problems:
        terminal.complain(problem)
    if problems:
        raise typer.Exit(2)
