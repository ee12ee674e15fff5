"""`medrec records`: check, export-meds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.options import ConfigArgument, JsonOption, QuietOption, SetOption

if TYPE_CHECKING:
    from medrec.config import CohortConfig
    from medrec.data.schema import Events

records_app = typer.Typer(help="Tables of health records as they are read.", no_args_is_help=True)


@records_app.command("check")
def records_check(
    config: ConfigArgument,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read the tables of a configuration and list what is wrong with them, without a cohort."""
    import pandas as pd

    from medrec.data.build import table_problems

    loaded = _load(config, overrides)
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with terminal.progress("read tables", None):
        events = _events(loaded)
        problems = table_problems(events, loaded)
    sizes = {
        table: len(frame)
        for table in ("prescriptions", "diagnoses", "procedures", "admissions")
        if (frame := getattr(events, table)) is not None
    }
    terminal.result(
        {"rows": sizes, "problems": problems, "notes": list(events.notes)},
        pairs_table([(f"rows of {table}", rows) for table, rows in sizes.items()]),
        frame_table(pd.DataFrame(problems), "problems of the tables")
        if problems
        else "nothing is wrong with the tables",
        pairs_table([("note", note) for note in events.notes]),
    )


@records_app.command("export-meds")
def records_export_meds(
    config: ConfigArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the events of a configuration as a MEDS dataset (Medical Event Data Standard 0.4).

    What is written is as restricted as its source.
    """
    from medrec.data.codes import CodeMaps
    from medrec.data.meds_export import code_title, export_meds
    from medrec.data.schema import data_root

    loaded = _load(config, overrides)
    maps = CodeMaps(data_root() / "codes")
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with terminal.progress("export", None):
        counts = export_meds(
            _events(loaded, with_times=True), out, loaded.name, lambda code: code_title(maps, code)
        )
    terminal.result(
        {"meds": str(out), **counts}, pairs_table([("meds", str(out)), *counts.items()])
    )


def _load(path: Path, overrides: list[str] | None) -> CohortConfig:
    from medrec.config import CohortConfig
    from medrec.loading import load_config
    from quantum.base import InputError

    loaded = load_config(path, CohortConfig, overrides or ())
    if loaded.source.format == "synthetic":
        raise InputError(
            "source.format 'synthetic' has no tables; expected mimic3, mimic4, eicu or meds: "
            f"{path}"
        )
    return loaded


def _events(config: CohortConfig, *, with_times: bool = False) -> Events:
    from medrec.data.sources import read_source, source_files

    source = config.source
    assert source.format != "synthetic", "refused by _load"
    files = source_files(source, with_admissions=True)
    return read_source(source, files, with_route=True, with_times=with_times)
