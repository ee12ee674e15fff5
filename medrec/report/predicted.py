"""Test-part predictions of a comparison's best runs, for sections that ask which drugs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medrec.evaluation.by_class import RecommendedSets, recommended_sets
from medrec.evaluation.compare import Comparison
from medrec.report.learned import Models
from medrec.report.page import paragraph
from medrec.runs import Home, Run


@dataclass(frozen=True)
class Predicted:
    """Sets of one run.

    Attributes
    ----------
    title : str
        Name of the model on the page.
    sets : RecommendedSets
    split : int
    """

    title: str
    sets: RecommendedSets
    split: int


def predict_best(
    comparison: Comparison, runs: Sequence[Run], n: int, models: Models | None = None
) -> tuple[list[Predicted], list[str]]:
    """Predict the test part with the n best models, best first.

    Parameters
    ----------
    models : Models, optional
        With runs that are loaded already; by default they are loaded from the runs' own home.

    Returns
    -------
    predicted : list of Predicted
        All of the split of the best one.
    notes : list of str
        HTML: what was left out, and why.
    """
    if models is None:
        models = Models(Home(runs[0].folder.parent.parent), comparison, runs)
    found: list[Predicted] = []
    other: list[str] = []
    for title, _, loaded in models:
        split = loaded.config.split
        if found and split != found[0].split:
            other.append(title)
            continue
        sets = recommended_sets(loaded.model.predict, loaded.cohort, loaded.vocabularies, split)
        found.append(Predicted(title, sets, split))
        if len(found) == n:
            break
    notes = [paragraph(text, "note") for text in models.failed]
    if other:
        notes.append(paragraph(f"Tested on another split: {', '.join(other)}.", "note"))
    return found, notes
