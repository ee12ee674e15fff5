"""The command `medrec explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.options import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    QuietOption,
    RunArgument,
    open_stages,
)

_SHOWN = 8


def explain(
    run: RunArgument,
    visits: Annotated[Path, typer.Argument(help="Patient's visits as JSON; - for standard input.")],
    drug: Annotated[
        list[str] | None, typer.Option(help="ATC class to explain; may be given several times.")
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="Without --drug: how many of the recommended.")
    ] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML page with drawings to write.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show which visits, codes, substructures and interactions moved a recommendation.

    Effects are differences of the model's score with one thing left out; they are no statement of
    cause. Research use only, not for clinical decisions.
    """
    from medrec.explain.explain import explain as make
    from orchestration.stages import read_document

    stages = open_stages(home, as_json, quiet)
    found, patient = stages.run(run), read_document(visits)
    with stages.terminal.progress("explain", None):
        result = make(found, stages.home, patient, drug or (), top)
    for text in result["warnings"]:
        stages.terminal.warn(text)
    closing = [result["method"], result["caution"]]
    document = dict(result)
    if out is not None:
        from medrec.report.explanation import write_explanation

        document["page"] = str(write_explanation(result, out))
        closing.append(f"page with drawings: {out} (it holds the patient's codes)")
    tables = [item for entry in result["drugs"] for item in _tables(entry, result["score"])]
    stages.terminal.result(document, *tables, *closing)


def _tables(drug: dict[str, Any], score: str) -> list[Any]:
    """Strongest effects of one drug, as tables for a terminal."""
    import pandas as pd

    from medrec.report.explanation import entry_text
    from orchestration.console import frame_table

    head = f"{drug['atc']} {drug['name']}, probability {drug['probability']:.3f}"
    history = [entry for entry in drug["history"] if entry["effect"] != 0.0][:_SHOWN]
    fragments = [item for item in drug["substructures"]["fragments"] if item["effect"] != 0.0]
    rows = [(entry_text(entry), f"{entry['effect']:+.3g}") for entry in history]
    rows += [
        (f"fragment {item['smiles']}", f"{item['effect']:+.3g}") for item in fragments[:_SHOWN]
    ]
    rows = rows or [("no visit, code or fragment changed the score", "0")]
    found = drug["interactions"]
    pairs = ", ".join(
        f"{pair['atc']} ({pair['severity_name']})" for pair in found["pairs"][:_SHOWN]
    )
    more = len(found["pairs"]) - _SHOWN
    lines = [
        frame_table(pd.DataFrame(rows, columns=["left out", f"effect on {score}"]), head),
        f"interacts in the set with: {pairs or 'nothing'}"
        + (f" and {more} more" if more > 0 else ""),
        f"DDI rate of the set with it {found['ddi_rate_with']:.3f}, without it "
        f"{found['ddi_rate_without']:.3f}",
    ]
    if not drug["substructures"]["fragments"]:
        lines.append(drug["substructures"]["note"])
    return [*lines, ""]
