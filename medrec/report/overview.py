"""First sections of a report: what came out in plain words, and which records it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medrec.data.cohort import Cohort
from medrec.evaluation.compare import Comparison, compare_runs
from medrec.molecules.features import FeatureTable
from medrec.report import figures
from medrec.report.page import Page, facts, findings, paragraph, tiles
from medrec.runs import Run
from quantum.base import InputError

BASELINES = frozenset({"topk", "copy_last", "copy_frequency", "logistic_regression", "ecc"})
"""Models without a neural network."""
NO_RUN = "No training run was given."


@dataclass(frozen=True)
class Contest:
    """All models against the one with the highest Jaccard, on the same resamples.

    Attributes
    ----------
    table : pandas.DataFrame
        Of `medrec.evaluation.compare.compare_runs` with the best model as reference, best first,
        with a column ``title``.
    """

    table: pd.DataFrame

    @classmethod
    def of(cls, comparison: Comparison, runs: list[Run], cohort: Cohort) -> Contest | None:
        """Compare again, to the best; None if the models have no split in common with it."""
        table = comparison.table.assign(title=comparison.titles())
        best = str(table.sort_values("jaccard", ascending=False)["run"].iloc[0])
        if best != comparison.reference:
            try:
                again = compare_runs(runs, cohort, reference=best)
            except InputError:
                return None
            table = again.table.assign(title=again.titles())
        return cls(table.sort_values("jaccard", ascending=False, ignore_index=True))

    @property
    def best(self) -> dict[Any, Any]:
        """Row of the highest Jaccard."""
        return dict(self.table.iloc[0])

    def others(self, established: bool) -> list[str]:
        """Titles whose interval of the difference to the best is below 0, or is not."""
        rest = self.table.iloc[1:]
        apart = rest["jaccard_difference_high"] < 0
        return [str(title) for title in rest.loc[apart == established, "title"]]

    def gain(self) -> tuple[dict[Any, Any], dict[Any, Any], tuple[float, float, float]] | None:
        """Best model with a neural network, best baseline, and first minus second with interval.

        One of the two is the best of all, so their difference stands in the table. None if there
        are only models of one of the two kinds.
        """
        simple = self.table["model"].isin(BASELINES)
        if simple.all() or not simple.any():
            return None
        learned, baseline = dict(self.table[~simple].iloc[0]), dict(self.table[simple].iloc[0])
        if simple.iloc[0]:
            value, low, high = (
                learned[f"jaccard_difference{end}"] for end in ("", "_low", "_high")
            )
        else:
            value, high, low = (
                -baseline[f"jaccard_difference{end}"] for end in ("", "_low", "_high")
            )
        return learned, baseline, (value, low, high)


def summary_section(
    cohort: Cohort,
    comparison: Comparison | None,
    contest: Contest | None,
    runs: Sequence[Run] = (),
    pretrain_run: Run | None = None,
    features: FeatureTable | None = None,
) -> list[str]:
    """HTML parts: cards, and what was done, found and not found, in sentences."""
    if comparison is None:
        return [
            paragraph("No training run was given; this page shows the cohort alone."),
            tiles(_cohort_tiles(cohort, features)),
            findings([("What to know", cohort.notes)] if cohort.notes else []),
        ]
    return [
        paragraph(str(comparison.header["caution"]), "caution"),
        tiles([*_result_tiles(comparison, contest), *_molecule_tile(features)]),
        findings(
            [
                ("What was done", _done(cohort, comparison, runs, pretrain_run)),
                ("Which model is best", _best(comparison, contest)),
                ("Against baselines", _against_baseline(contest)),
                ("Interactions", _interactions(cohort, comparison)),
                ("What cannot be concluded", _limits(cohort, comparison)),
            ]
        ),
    ]


# --------------------------------------------------------------------------- cards


def _cohort_tiles(cohort: Cohort, features: FeatureTable | None) -> list[tuple[str, ...]]:
    counts = cohort.counts
    return [
        (f"{cohort.n_patients:,}", "patients"),
        (f"{len(cohort.visits):,}", "visits"),
        (f"{len(cohort.drugs):,}", "drug classes"),
        (f"{counts['mean_drugs_per_visit']:.1f}", "drug classes per visit"),
        *_molecule_tile(features),
    ]


def _molecule_tile(features: FeatureTable | None) -> list[tuple[str, ...]]:
    if features is None:
        return []
    counts = features.coverage()
    return [(f"{counts['with ELF map']:,}", "molecules with ELF map", f"of {counts['species']:,}")]


def _result_tiles(comparison: Comparison, contest: Contest | None) -> list[tuple[str, ...]]:
    table = comparison.table.assign(title=comparison.titles())
    best = table.sort_values("jaccard", ascending=False).iloc[0]
    known = comparison.facts
    items: list[tuple[str, ...]] = [
        (
            f"{best['jaccard']:.3f}",
            f"highest Jaccard, {best['title']}",
            f"95 % interval {interval(best, 'jaccard')}",
        )
    ]
    found = contest.gain() if contest is not None else None
    if found is not None:
        learned, baseline, (value, low, high) = found
        text = f"{learned['title']} minus {baseline['title']}, Jaccard"
        items.append((f"{value:+.3f}", text, f"paired 95 % interval {low:+.3f} to {high:+.3f}"))
    items += [
        (
            f"{100 * known['ddi_rate_true']:.1f} %",
            "DDI rate of the sets that were given",
            f"random sets {100 * known['ddi_rate_chance']:.1f} %",
        ),
        (
            _sum(known["n_test_patients"]),
            "test patients",
            f"{_sum(known['n_test_visits'])} visits",
        ),
    ]
    return items


def _sum(counts: Sequence[int]) -> str:
    """Count of one split, or of each."""
    return ", ".join(f"{count:,}" for count in counts)


# --------------------------------------------------------------------------- sentences


def interval(row: Any, name: str, digits: int = 3) -> str:
    """Interval of a metric as text."""
    return f"{row[f'{name}_low']:.{digits}f} to {row[f'{name}_high']:.{digits}f}"


def listed(names: Sequence[str]) -> str:
    """Names joined with commas and a last *and*."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _models(n: int) -> str:
    return f"{n} model" + ("" if n == 1 else "s")


def _done(
    cohort: Cohort, comparison: Comparison, runs: Sequence[Run], pretrain_run: Run | None
) -> str:
    known = comparison.facts
    titles = comparison.titles()
    splits = listed([str(number) for number in known["split_digests"]])
    n_splits = len(known["split_digests"])
    text = (
        f"{_models(len(titles))} ({listed(titles)}) learned from the training part of "
        f"{known['n_patients']:,} patients with {known['n_visits']:,} visits and "
        f"{known['n_drugs']:,} drug classes ({cohort.name}, preset {known['preset']}), and were "
        f"scored once on the test part{'' if n_splits == 1 else 's'} of split"
        f"{'' if n_splits == 1 else 's'} {splits} ({_sum(known['n_test_patients'])} patients, "
        f"{_sum(known['n_test_visits'])} visits)."
    )
    began = [run.name for run in runs if "pretrained" in run.inputs]
    if began:
        text += f" Molecule encoders of {listed(began)} were pre-trained"
        report = pretrain_run.report() if pretrain_run is not None else {}
        text += f" on {report['n_molecules']:,} molecules." if "n_molecules" in report else "."
    return text


def _best(comparison: Comparison, contest: Contest | None) -> str:
    table = comparison.table.assign(title=comparison.titles())
    best = table.sort_values("jaccard", ascending=False).iloc[0]
    text = (
        f"The highest Jaccard is {best['jaccard']:.3f} (95 % interval "
        f"{interval(best, 'jaccard')}), of {best['title']}."
    )
    if len(table) == 1:
        return text
    if contest is None:
        return f"{text} Others were not tested on the same splits, so no paired difference exists."
    close, apart = contest.others(established=False), contest.others(established=True)
    if not apart:
        return (
            f"{text} None of the others ({listed(close)}) is established to be worse: the paired "
            "95 % interval of every difference to it holds 0."
        )
    if not close:
        return f"{text} The paired 95 % interval of every difference to it leaves out 0."
    return (
        f"{text} By the paired 95 % interval {listed(apart)} {_verb(apart)} below it; "
        f"{listed(close)} cannot be told from it."
    )


def _verb(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _against_baseline(contest: Contest | None) -> str:
    found = contest.gain() if contest is not None else None
    if found is None:
        return "The page needs a model with a neural network and one without, on a common split."
    learned, baseline, (value, low, high) = found
    text = (
        f"The best model with a neural network is {learned['title']}, the best without one is "
        f"{baseline['title']}. Difference of Jaccard on the same patients: {value:+.3f} (paired "
        f"95 % interval {low:+.3f} to {high:+.3f})."
    )
    if low > 0:
        return f"{text} The interval leaves out 0: the neural network is better on this test part."
    if high < 0:
        return f"{text} The interval leaves out 0: the baseline is better on this test part."
    return f"{text} The interval holds 0, so no gain over the baseline is shown."


def _interactions(cohort: Cohort, comparison: Comparison) -> str:
    known, ddi = comparison.facts, cohort.ddi
    table = comparison.table.assign(title=comparison.titles()).sort_values("ddi_rate")
    low, high = table.iloc[0], table.iloc[-1]
    text = (
        f"Of all pairs in the sets that were given, {100 * known['ddi_rate_true']:.1f} % are "
        f"listed as interacting ({ddi['source']}, severity {ddi['min_severity']} or worse); in "
        f"random sets {100 * known['ddi_rate_chance']:.1f} %, in random sets of drugs as frequent "
        f"as given {100 * known['ddi_rate_chance_by_frequency']:.1f} %. "
    )
    if len(table) == 1:
        text += f"{low['title']} has {_percent(low)}."
    else:
        text += f"Models lie between {_percent(low)} ({low['title']}) and "
        text += f"{_percent(high)} ({high['title']})."
    true = known["ddi_rate_true"]
    hold = int(((table["ddi_rate_low"] <= true) & (table["ddi_rate_high"] >= true)).sum())
    return f"{text} Intervals of {hold} of {_models(len(table))} hold the rate of what was given."


def _percent(row: Any) -> str:
    low, high = 100 * row["ddi_rate_low"], 100 * row["ddi_rate_high"]
    return f"{100 * row['ddi_rate']:.1f} % [{low:.1f}, {high:.1f}]"


def _limits(cohort: Cohort, comparison: Comparison) -> list[str]:
    table = comparison.table
    lines = []
    if (table["n_splits"] == 1).all():
        lines.append("Results of one split: another split would give other numbers.")
    if (table["n_seeds"] == 1).all() and not table["model"].isin(BASELINES).all():
        lines.append("One seed per model: how much a result varies with it was not measured.")
    if len(table) > 1:
        lines.append(
            "The highest of several numbers is partly luck: the best model on this test part need "
            "not be the best on other patients."
        )
    lines.append(
        "Jaccard measures agreement with what was given, not whether it was right; a lower DDI "
        "rate means fewer listed pairs of classes, not fewer harmed patients."
    )
    return [*lines, *cohort.notes]


# --------------------------------------------------------------------------- cohort


def cohort_section(page: Page, cohort: Cohort) -> list[str]:
    """HTML parts: funnel, coverage of the code maps, interactions, notes."""
    ddi, counts = cohort.ddi, cohort.counts
    first, last = cohort.funnel.iloc[0], cohort.funnel.iloc[-1]
    unmapped = cohort.coverage.loc[cohort.coverage["route"] == "unmapped", "share"].sum()
    return [
        paragraph(
            f"Of {first['visits']:,} visits of {first['patients']:,} patients, "
            f"{last['visits']:,} visits of {last['patients']:,} patients are left."
        ),
        "<h3>What each filter removed</h3>",
        page.figure(figures.funnel(cohort.funnel), "cohort funnel"),
        paragraph("Dark: left after the filter. Light: removed by it.", "note"),
        "<h3>Prescriptions mapped to ATC</h3>",
        paragraph(f"{100 * (1 - unmapped):.1f} % of the prescription rows have an ATC class."),
        page.figure(figures.coverage(cohort.coverage), "coverage of the code maps"),
        "<h3>What is in the cohort</h3>",
        facts(
            [
                ("diagnoses, procedures", f"{counts['diagnoses']:,}, {counts['procedures']:,}"),
                ("visits per patient", f"{counts['mean_visits_per_patient']:.2f}"),
                ("drug classes per visit", f"{counts['mean_drugs_per_visit']:.2f}"),
                ("interactions", f"{ddi['source']}, severity {ddi['min_severity']} or worse"),
                ("interacting pairs of classes", f"{100 * ddi['density']:.1f} %"),
                *((f"note {i}", note) for i, note in enumerate(cohort.notes, start=1)),
            ]
        ),
    ]
