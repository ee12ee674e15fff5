"""The `medrec` command.

Only light modules are imported here; PyTorch, Ray and the rest load inside the command that
needs them, so that ``medrec --help`` answers at once and local work never starts Ray.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from medrec.runs import Home
from orchestration.cli_cluster import cluster_app
from orchestration.cli_concepts import concepts
from orchestration.cli_cross import cross
from orchestration.cli_evaluate import compare, evaluate
from orchestration.cli_explain import explain
from orchestration.cli_features import features_app
from orchestration.cli_frontier import frontier
from orchestration.cli_jobs import jobs_app
from orchestration.cli_molecules import molecules_app
from orchestration.cli_records import records_app
from orchestration.cli_replicate import replicate
from orchestration.cli_search import tune
from orchestration.cli_spot import spot_app
from orchestration.cli_study import study
from orchestration.cli_sweep import sweep_report
from orchestration.cli_synth import synth_app
from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.job_request import use_job_environment
from orchestration.options import (
    DEFAULT_HOME,
    CohortOption,
    ConceptsOption,
    ConfigArgument,
    FeaturesOption,
    HardOption,
    HomeOption,
    JsonOption,
    QuietOption,
    SeedsOption,
    SetOption,
    SplitsOption,
    WorkersOption,
    open_stages,
)
from quantum.base import InputError, MedrecError

app = typer.Typer(
    name="medrec",
    help="Medication recommendation from health records and drug molecules.\n\n"
    "Research use only, not for clinical decisions.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(features_app, name="features")
app.add_typer(synth_app, name="synth")
app.add_typer(records_app, name="records")
app.add_typer(molecules_app, name="molecules")
app.add_typer(cluster_app, name="cluster")
app.add_typer(jobs_app, name="jobs")
app.add_typer(spot_app)

_INTERRUPTED = "interrupted; finished work is kept, the same command goes on from there"


@app.command()
def doctor(
    home: HomeOption = DEFAULT_HOME,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at every node of the joined Ray cluster, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what is on this machine and what to do about what is missing."""
    import pandas as pd

    from orchestration.doctor import as_rows, examine, examine_cluster

    checks = examine(Home(home))
    checks += examine_cluster(Home(home)) if cluster else []
    rows = as_rows(checks)
    terminal = Terminal(as_json=as_json)
    terminal.result(rows, frame_table(pd.DataFrame(rows).rename(columns={"what": ""})))
    if any(check.level == "problem" for check in checks):
        raise typer.Exit(3)


@app.command()
def demo(
    config: Annotated[Path, typer.Argument(help="Which files the demo runs.")] = Path(
        "configs/demo.yaml"
    ),
    home: HomeOption = DEFAULT_HOME,
    quiet: QuietOption = False,
) -> None:
    """Run the whole chain on the open MIMIC demo: records, molecules, models, report.

    Everything is found by name: a second call finishes in seconds, and an interrupted one goes on
    where it stopped.
    """
    from orchestration.demo import run_demo

    run_demo(config, open_stages(home, quiet=quiet))


@app.command()
def prepare(
    config: ConfigArgument,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn raw tables into a cohort, with a count after every filter."""
    from medrec.config import CohortConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    cohort = stages.prepare(load_config(config, CohortConfig, overrides or ()))
    stages.show_cohort(cohort)


@app.command()
def molecule(
    smiles: Annotated[str, typer.Argument(help="SMILES of a drug, salts and all.")],
    as_json: JsonOption = False,
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
    Terminal(as_json=as_json).result(facts, pairs_table(facts.items()))


@app.command()
def pretrain(
    config: ConfigArgument,
    cohort: CohortOption,
    features: Annotated[str, typer.Option("--features", help="Feature table with conformers.")],
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pre-train the 2D and 3D molecule encoders through Ray Train."""
    from medrec.config import PretrainRunConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    run = stages.pretrain(
        load_config(config, PretrainRunConfig, overrides or ()),
        stages.cohort(cohort),
        stages.feature_table(features),
    )
    stages.show_run(run)


app.command()(tune)


@app.command()
def train(
    configs: Annotated[list[Path], typer.Argument(help="One or more training configurations.")],
    cohort: CohortOption,
    features: FeaturesOption = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Pre-training run whose encoder starts the model.")
    ] = None,
    concepts: ConceptsOption = None,
    splits: SplitsOption = None,
    seeds: SeedsOption = None,
    workers: WorkersOption = 1,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train recommenders, select on validation, evaluate once on the test part.

    With --splits and --seeds every configuration runs on every split with every seed.
    """
    from medrec.config import TrainConfig
    from medrec.loading import load_config
    from orchestration.many import parse_numbers, variants

    stages = open_stages(home, as_json, quiet)
    loaded = [load_config(path, TrainConfig, overrides or ()) for path in configs]
    wanted = variants(loaded, parse_numbers(splits, "--splits"), parse_numbers(seeds, "--seeds"))
    prepared, table = stages.cohort(cohort), stages.features(features)
    start = stages.run(pretrained) if pretrained else None
    codes = stages.concepts(concepts)
    runs = stages.train_all(wanted, prepared, table, start, workers, codes)
    stages.show_comparison(runs, prepared, stages.usual_reference(runs))


app.command()(concepts)
app.command()(study)
app.command()(replicate)
app.command()(explain)
app.command()(cross)
app.command()(evaluate)
app.command()(compare)
app.command()(frontier)
app.command("sweep-report")(sweep_report)


@app.command()
def recommend(
    run: Annotated[str, typer.Argument(help="Training run.")],
    visits: Annotated[Path, typer.Argument(help="Patient's visits as JSON; - for standard input.")],
    top: Annotated[int, typer.Option(min=1, help="How many drugs to print.")] = 20,
    hard: HardOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Rank drugs for one patient's latest visit and name the interacting pairs.

    Research use only, not for clinical decisions.
    """
    stages = open_stages(home, as_json)
    stages.recommend(stages.run(run), visits, top, hard)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Training, tuning and pre-training runs.")],
    features: FeaturesOption = None,
    with_patient: Annotated[
        bool, typer.Option(help="Show one test patient of restricted records too.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file to write.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page about runs, their cohort and their molecules."""
    stages = open_stages(home, as_json)
    opened = [stages.run(name) for name in runs]
    path = stages.report(opened, stages.features(features), out, with_patient)
    stages.terminal.result({"report": str(path)}, f"report: {path}")


@app.command("check-configs")
def check_configs(
    folder: Annotated[Path, typer.Argument(help="Folder with YAML files.")] = Path("configs"),
) -> None:
    """Load every configuration file of a folder; exit code 2 if one does not validate."""
    from orchestration.configs import check_folder

    checked, problems = check_folder(folder)
    terminal = Terminal()
    terminal.result({}, pairs_table([(str(path), kind) for path, kind in checked]))
    for problem in problems:
        terminal.err.print(problem, markup=False, style="red")
    if problems:
        raise typer.Exit(2)


def main() -> None:
    """Entry point: run the command; errors become one message and an exit code."""
    _use_environment()
    try:
        code = app(standalone_mode=False)
    except MedrecError as error:
        _complain(str(error))
        code = error.exit_code
    except typer.Exit as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:  # noqa: BLE001 - the boundary of the program
        code = _unexpected(error)
    if code == 130:  # the command library turns Ctrl-C into this exit code on some paths
        _complain(_INTERRUPTED)
        _leave_at_once(code)
    sys.exit(code if isinstance(code, int) else 0)


def _leave_at_once(code: int) -> None:
    """End without the interpreter's tear-down, which can crash while Ray's threads are at work.

    A local cluster goes with its driver, as after a kill; a joined one drops the driver's tasks.
    """
    if "ray" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _use_environment() -> None:
    """Only the command line reads the environment."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    use_job_environment()
    folder = os.environ.get("MEDREC_DATA")
    if folder:
        from medrec.data.schema import set_data_root

        set_data_root(Path(folder))


def _complain(message: str) -> None:
    Terminal().err.print(f"medrec: {message}", markup=False, soft_wrap=True)


def _unexpected(error: Exception) -> int:
    """Usage errors are shown by their own class; anything else is a defect of the program."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    if type(error).__name__ == "Abort":
        return 130
    if os.environ.get("MEDREC_TRACEBACK"):
        raise error
    if isinstance(error, OSError):
        wrapped = InputError(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
        _complain(str(wrapped))
        return wrapped.exit_code
    _complain(
        f"defect in medrec: {type(error).__name__}: {error}. "
        "Set MEDREC_TRACEBACK=1 to see where, and please report it."
    )
    return 70
