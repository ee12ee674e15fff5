"""`medrec synth`: made-up records, as raw tables in a hospital's format or as a cohort."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.options import JsonOption, QuietOption

HELP = """Made-up records with a planted structure whose best possible prediction is known.

`medrec synth raw --like mimic4 --scale 0.01 --out FOLDER` writes raw tables in MIMIC's own format,
with the counts after every filter known in advance.

`medrec prepare configs/data/synthetic_mimic3.yaml` makes a synthetic cohort without raw tables; it
carries the planted probability of every drug, so each model's distance from the best is known.
"""
synth_app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")


class Like(StrEnum):
    """Formats of raw tables."""

    MIMIC3 = "mimic3"
    MIMIC4 = "mimic4"


@synth_app.callback()
def about() -> None:
    """Keep `raw` a sub-command of its own, with the help above."""


@synth_app.command("raw")
def raw(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the tables.")],
    like: Annotated[Like, typer.Option(help="Format and size of which data set.")] = Like.MIMIC4,
    scale: Annotated[float, typer.Option(help="1 is the full number of patients.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same tables.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write gzip CSV tables as MIMIC-III or MIMIC-IV has them, and the funnel they must give.

    Scale 1 of MIMIC-IV is about 16 million prescription rows, 0.5 GB and a minute or two.
    """
    import pandas as pd

    from medrec.data.raw_tables import FUNNEL_FILE, write_raw_tables

    terminal = Terminal(as_json=as_json, quiet=quiet)
    with terminal.progress("write tables", None) as step:
        expected = write_raw_tables(
            like.value, scale, out, seed, lambda done, total, note: step.at(done, total, note)
        )
    facts = [("tables", out), ("prepare with", _prepare_line(like.value, out))]
    terminal.result(
        expected | {"folder": str(out)},
        pairs_table(expected["tables"].items(), "rows"),
        frame_table(pd.DataFrame(expected["funnel"]), f"expected funnel ({FUNNEL_FILE})"),
        pairs_table(facts),
    )


def _prepare_line(like: str, out: Path) -> str:
    return f"medrec prepare configs/data/{like}_full_strict.yaml --set source.path={out}"
