"""`medrec concepts`: descriptions of medical concepts, and their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.console import Terminal, frame_table, pairs_table
from orchestration.options import (
    CONCEPTS,
    DEFAULT_HOME,
    CohortOption,
    ConfigArgument,
    HomeOption,
    JsonOption,
    QuietOption,
    SetOption,
    open_stages,
)

if TYPE_CHECKING:
    import pandas as pd

    from medrec.concepts.table import ConceptTable

_SHOWN_GROUPS, _SHOWN_CHARACTERS = 3, 80
_COLUMNS = ["kind", "codes", "concepts", "different", "collision_rate", "one_minus_different"]


def concepts(
    config: ConfigArgument,
    cohort: CohortOption,
    without: Annotated[
        str | None,
        typer.Option(
            "--without",
            help="Concept table w/o SE of the same cohort, to compare with.",
            autocompletion=CONCEPTS,
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn the diagnoses, procedures and drugs of a cohort into discrete codes (SCQMed, stage 1).

    Prints how many concepts collide, which ones the knowledge graph tells apart, and the memory
    of the codes.
    """
    from medrec.config import ConceptConfig
    from medrec.loading import load_config

    stages = open_stages(home, as_json, quiet)
    loaded = load_config(config, ConceptConfig, overrides or ())
    prepared, other = stages.cohort(cohort), stages.concepts(without)
    stages.show_concepts(stages.build_concepts(loaded, prepared), other)


def show_concepts(terminal: Terminal, table: ConceptTable, without: ConceptTable | None) -> None:
    """Print collisions, groups that were told apart, the paper's example and memory."""
    import pandas as pd

    from medrec.concepts.collisions import colliding_groups, told_apart
    from medrec.concepts.table import KINDS

    manifest = table.manifest
    groups = {kind: colliding_groups(table, kind) for kind in KINDS}
    apart = pd.concat([told_apart(table, kind, without) for kind in KINDS], ignore_index=True)
    baseline = (without or table).folder.name
    facts = [
        ("concepts", table.folder.name),
        ("views", ", ".join(manifest["views"])),
        *((f"seconds, {name}", value) for name, value in manifest["seconds"].items()),
        *(("in place of", text) for text in manifest["notes"].get("replaced", ())),
        ("paper's claim", f"up to {manifest['memory']['paper_claims_up_to']} times less memory"),
    ]
    document: dict[str, Any] = {
        "concepts": table.folder.name,
        "digest": table.digest,
        "collisions": manifest["collisions"],
        "colliding": {kind: frame.to_dict("records") for kind, frame in groups.items()},
        "told_apart_from": baseline,
        "told_apart": apart.to_dict("records"),
        "paper_pair": manifest["paper_pair"],
        "memory": manifest["memory"],
        "training": manifest["training"],
        "seconds": manifest["seconds"],
        "notes": manifest["notes"],
    }
    terminal.result(
        document,
        frame_table(pd.DataFrame(manifest["collisions"])[_COLUMNS], "collisions"),
        *_examples(groups, apart, baseline),
        frame_table(pd.DataFrame(manifest["paper_pair"]), "585.9 against 584.9")
        if manifest["paper_pair"]
        else "585.9 and 584.9, the paper's example, are not both in the cohort",
        frame_table(_megabytes(manifest["memory"]), "memory, MB"),
        pairs_table(facts),
    )


def _examples(groups: dict[str, pd.DataFrame], apart: pd.DataFrame, baseline: str) -> list[Any]:
    """Tables of a few groups; --json has all."""
    import pandas as pd

    lines: list[Any] = []
    colliding = pd.concat(
        [frame[frame["group"] < _SHOWN_GROUPS] for frame in groups.values()], ignore_index=True
    )
    if len(colliding):
        title = f"concepts with equal codes (first {_SHOWN_GROUPS} groups of each kind)"
        lines.append(frame_table(colliding[["kind", "group", "code", "title"]], title))
    else:
        lines.append("no two concepts have equal codes")
    if len(apart):
        shown = apart[apart["group"] < _SHOWN_GROUPS].drop(columns="still_with")
        shown["neighbours"] = shown["neighbours"].map(_shortened)
        lines.append(frame_table(shown, f"equal by the semantic codes of {baseline}, not here"))
    else:
        lines.append(f"no concepts are equal by the semantic codes of {baseline} and differ here")
    return lines


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _megabytes(memory: dict[str, Any]) -> pd.DataFrame:
    """Vectors against codes and indices, with both ratios."""
    import pandas as pd

    rows = [
        {
            "of": name,
            "vectors": facts["continuous_bytes"] / 1e6,
            "codes": facts["code_bytes"] / 1e6,
            "indices": facts["index_bytes"] / 1e6,
            "ratio": facts["ratio_bytes"],
            "parameters alone": facts["ratio_parameters"],
        }
        for name, facts in memory.items()
        if isinstance(facts, dict)
    ]
    return pd.DataFrame(rows)
