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
    """Share of the best possible Jaccard."""
    from record import Figure

    row = table.loc[system]
    share = row["jaccard"] / row["jaccard_optimum"]
    low, high = (row[f"jaccard_{end}"] / row["jaccard_optimum"] for end in ("low", "high"))
    interval = f"of the best Jaccard {row['jaccard_optimum']:.3f} [{low:.3f}, {high:.3f}]"
    return Figure(
        f"{system}{note}, Jaccard",
        round(float(share), 4),
        interval,
        round(float(row["jaccard"]), 4),
        None,
        GOAL,
        bool(share >= GOAL),
    )


def difference_figure(name: str, row: Any, reference: str, *, wanted: bool | None) -> Any:
    """Difference in Jaccard with its interval; ``met`` says whether it leaves out 0 upwards."""
    from record import Figure

    # the table has other minus reference; a lead of the reference is the negative
    value, low, high = (
        -row["jaccard_difference"],
        -row["jaccard_difference_high"],
        -row["jaccard_difference_low"],
    )
    return Figure(
        name,
        round(float(value), 4),
        f"Jaccard of {reference} more [{low:.4f}, {high:.4f}]",
        round(float(row["jaccard"]), 4),
        None,
        0.0 if wanted else None,
        bool(low > 0.0) if wanted else None,
    )


def figures_of(runs: list[Any], cohort: Any) -> list[Any]:
    figures: list[Any] = []
    for system, ablations in ABLATIONS.items():
        table = compare(runs, cohort, system)
        if system not in table.index:
            continue
        figures.append(distance_figure(table, system))
        for name in BASELINES:
            figures.append(
                difference_figure(f"{system} over {name}", table.loc[name], system, wanted=True)
            )
        for name, meets in ablations.items():
            label = f"{name} ({meets})"
            figures.append(difference_figure(label, table.loc[name], system, wanted=True))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path("medrec-work"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="also with five times the patients")
    chosen = parser.parse_args()
    from record import publish

    from medrec.runs import Home
    from orchestration.console import Terminal
    from orchestration.stages import Stages
    from orchestration.study import load_plan, run_study

    stages = Stages(Home(chosen.home), Terminal())
    runs = run_study(load_plan(STUDY), stages, chosen.workers, report=False)
    figures = figures_of(runs, stages.cohort_of(runs[0]))
    if chosen.large:
        large = run_study(load_plan(STUDY_LARGE), stages, chosen.workers, report=False)
        table = compare(large, stages.cohort_of(large[0]), "scqmed")
        figures += [distance_figure(table, name, ", 12,000 patients") for name in table.index]
    publish("planted", figures)


if __name__ == "__main__":
    main()
