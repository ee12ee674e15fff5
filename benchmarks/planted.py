"""The papers' systems on made-up records: distance from the best possible Jaccard, and ablations.

Drugs of these records follow from the visit's codes, from earlier visits and from the drugs'
molecules by a formula (`medrec.data.planted`), so that the best Jaccard that any model can reach is
known. Every system and ablation is trained with five seeds on one split; figures are means over
seeds, with 95 % intervals from resampled test patients, differences on the same resamples.

An ablation moves as planted if the full system is better by an interval that leaves out 0. Which
part of a system meets which part of the formula stands beside each figure. With ``--large`` the
systems are trained once more, with one seed, on five times as many patients of the same rules: what
they gain there was a lack of patients, what is left is more than that.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STUDY = HERE.parent / "configs/studies/planted.yaml"
STUDY_LARGE = HERE.parent / "configs/studies/planted_large.yaml"
STUDY_SPARSE = HERE.parent / "configs/studies/planted_sparse.yaml"
BASELINES = ("logistic_regression", "copy_last")
GOAL = 0.9
ABLATIONS = {
    "bimorec": {
        "bimorec_wo_t": "pre-trained molecules; planted: similar molecules share indications",
        "bimorec_wo_e": "attention and gate over history; planted: earlier drugs come again",
        "bimorec_wo_te": "both",
    },
    "scqmed": {
        "scqmed_wo_se": "graph of codes; planted: neighbouring codes share a condition",
        "scqmed_wo_rqvae": "shared codes; planted: neighbouring codes share a condition",
    },
    "mmm": {
        "mmm_wo_elf": "ELF of molecules; planted: similar molecules share indications",
        "mmm_wo_bipartite": "fragments; planted: similar molecules share indications",
    },
}


def compare(runs: list[Any], cohort: Any, reference: str) -> Any:
    """Table by configuration name, differences to one of them."""
    from medrec.evaluation.compare import compare_runs

    chosen = next(run for run in runs if run.config()["name"] == reference)
    table = compare_runs(runs, cohort, reference=chosen.name).table
    first = {run.name: run.config()["name"] for run in runs}
    names = [first[str(item).split(", ")[0]] for item in table["runs"]]
    return table.assign(system=names).set_index("system")


def distance_figure(table: Any, system: str, note: str = "") -> Any:
    """Jaccard beside the best possible one; the ratio is the share of it."""
    from record import Figure

    row = table.loc[system]
    share = float(row["jaccard"] / row["jaccard_optimum"])
    return Figure(
        f"{system}{note}, peer: best possible",
        round(float(row["jaccard"]), 4),
        f"Jaccard [{row['jaccard_low']:.4f}, {row['jaccard_high']:.4f}]",
        round(float(row["jaccard_optimum"]), 4),
        round(share, 4),
        GOAL,
        share >= GOAL,
    )


def lead_figure(table: Any, system: str, other: str, note: str, where: str) -> Any:
    """Lead of a system over another; met if the interval of the difference leaves out 0 upwards."""
    from record import Figure

    row = table.loc[other]
    # the table has other minus system
    lead, low, high = (-float(row[f"jaccard_difference{end}"]) for end in ("", "_high", "_low"))
    ours, theirs = (float(table.loc[name]["jaccard"]) for name in (system, other))
    return Figure(
        f"{system}{where}, peer: {other}" + (f" ({note})" if note else ""),
        round(ours, 4),
        f"Jaccard, difference {lead:+.4f} [{low:+.4f}, {high:+.4f}]",
        round(theirs, 4),
        round(ours / theirs, 4),
        1.0,
        low > 0.0,
    )


def figures_of(runs: list[Any], cohort: Any, systems: list[str], where: str = "") -> list[Any]:
    """Distance from the best, lead over the baselines and over each ablation."""
    figures: list[Any] = []
    for system in systems:
        table = compare(runs, cohort, system)
        figures.append(distance_figure(table, system, where))
        others = dict.fromkeys(BASELINES, "") | ABLATIONS[system]
        figures += [lead_figure(table, system, name, note, where) for name, note in others.items()]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path("medrec-work"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sparse", action="store_true", help="also SCQMed where codes are rare")
    parser.add_argument("--large", action="store_true", help="also with five times the patients")
    chosen = parser.parse_args()
    from record import publish

    from medrec.runs import Home
    from orchestration.console import Terminal
    from orchestration.stages import Stages
    from orchestration.study import load_plan, run_study

    stages = Stages(Home(chosen.home), Terminal())
    runs = run_study(load_plan(STUDY), stages, chosen.workers, report=False)
    figures = figures_of(runs, stages.cohort_of(runs[0]), list(ABLATIONS))
    if chosen.sparse:
        sparse = run_study(load_plan(STUDY_SPARSE), stages, chosen.workers, report=False)
        cohort = stages.cohort_of(sparse[0])
        figures += figures_of(sparse, cohort, ["scqmed"], ", rare codes")
    if chosen.large:
        large = run_study(load_plan(STUDY_LARGE), stages, chosen.workers, report=False)
        table = compare(large, stages.cohort_of(large[0]), "scqmed")
        figures += [distance_figure(table, name, ", 12,000 patients") for name in table.index]
    publish("planted", figures)


if __name__ == "__main__":
    main()
