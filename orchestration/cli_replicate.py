"""The command `medrec replicate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestration.options import (
    DEFAULT_HOME,
    RUNS,
    CohortOption,
    HomeOption,
    JsonOption,
    QuietOption,
    one_of,
    open_stages,
)


def replicate(
    runs: Annotated[
        list[str], typer.Argument(help="Runs trained on other records.", autocompletion=RUNS)
    ],
    cohort: CohortOption,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Run trained on this cohort, to compare on the same patients.",
            autocompletion=RUNS,
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            help="test: its test patients; all: every patient.",
            autocompletion=one_of("test", "all"),
        ),
    ] = "test",
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Judge finished runs on the patients of another cohort.

    Drugs meet in ATC; diagnoses and procedures are brought to the run's vocabulary by the ICD-9 to
    ICD-10 crosswalks and by category, with the shares stated. Nothing is trained or tuned there.
    """
    import pandas as pd

    from medrec.evaluation.compare import caution, load_rows
    from medrec.replication import replicate as judge
    from medrec.replication import replication_row
    from orchestration.console import frame_table
    from orchestration.evidence import records
    from quantum.base import InputError

    stages = open_stages(home, as_json, quiet)
    if against and part != "test":
        raise InputError("--against compares on test patients; expected --part test")
    other = stages.cohort(cohort)
    inside = [stages.run(name) for name in against or ()]
    wrong = [run.name for run in inside if run.inputs["cohort"] != other.digest]
    if wrong:
        raise InputError(f"--against {wrong[0]} was not trained on cohort {other.name}")
    split = int(inside[0].report()["split"]) if inside else 0
    reference = load_rows(inside[0]) if inside else None
    rows: list[dict[str, Any]] = [
        replication_row(str(run.config()["name"]), "this cohort", load_rows(run), None)
        for run in inside
    ]
    coverage, notes = [], []
    with stages.terminal.summary():
        judged = [stages.run(name) for name in runs]
        with stages.terminal.progress("replicate", len(judged)) as step:
            for run in judged:
                found = judge(run, stages.home, other, part, split)
                source = stages.cohort_of(run)
                name = str(run.config()["name"])
                rows.append(replication_row(name, source.config.name, found.rows, reference))
                coverage.append(found.coverage.assign(model=name, trained_on=source.config.name))
                notes += [note for note in found.notes if note not in notes]
                step.advance(name)
        with stages.terminal.timed("tables"):
            table, shares = pd.DataFrame(rows), pd.concat(coverage, ignore_index=True)
            notes.append(caution(int(table["patients"].min())))
            stages.terminal.result(
                {
                    "cohort": other.name,
                    "rows": records(table),
                    "codes": records(shares),
                    "notes": notes,
                },
                frame_table(_shown(table), f"patients of {other.name}, {part} part"),
                frame_table(
                    _shown_shares(shares), "codes found in the run's vocabulary, % of entries"
                ),
                *notes,
            )


def _shown(table: Any) -> Any:
    """Value with interval per metric, in narrow cells."""
    import pandas as pd

    shown = table[["model", "trained_on"]].rename(columns={"trained_on": "trained on"})
    shown = pd.DataFrame(shown)
    for name, digits in (("jaccard", 3), ("f1", 3), ("prauc", 3), ("ddi_rate", 3)):
        shown[name] = [
            f"{row[name]:.{digits}f}\n{row[f'{name}_low']:.2f}–{row[f'{name}_high']:.2f}"
            for row in table.to_dict("records")
        ]
    shown["drugs"] = table["mean_n_drugs"].round(1)
    if "jaccard_difference" in table:
        shown["Δ jaccard"] = [
            "reference" if value != value else f"{value:+.3f}\n{low:+.2f} to {high:+.2f}"
            for value, low, high in zip(
                table["jaccard_difference"],
                table["jaccard_difference_low"],
                table["jaccard_difference_high"],
                strict=True,
            )
        ]
    return shown


def _shown_shares(shares: Any) -> Any:
    from medrec.data.crosswalk import WAYS

    shown = shares[["model", "trained_on", "kind", "codes"]].copy()
    for way in WAYS:
        shown[way] = (100 * shares.get(way, 0.0)).round(1)
    return shown
