"""How much of a result rests on molecules that have a map, and what their absence costs.

A recommender that reads the feature table knows a drug class by its molecules. Where a molecule has
no map, it shares one learned vector with all others without one. A result is therefore read beside
two shares: of drug classes, and of the drugs that were truly given in the test part.

Letters: D drug classes, K molecules, n visits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.data.dataset import VisitBatch
from medrec.evaluation.evaluate import PredictionLike

Bool = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DrugCounts:
    """How often each drug class was given, recommended, and both, over some visits.

    Attributes
    ----------
    true, selected, hit : ndarray (D,) of int64
    n_unseen : int
        True drugs outside the vocabulary; a model has no vector for them.
    """

    true: Counts
    selected: Counts
    hit: Counts
    n_unseen: int

    @classmethod
    @torch.no_grad()
    def of(
        cls, predict: Callable[[VisitBatch], PredictionLike], batches: Iterable[VisitBatch]
    ) -> DrugCounts:
        """Predict every visit and count by class."""
        tables: list[torch.Tensor] = []
        n_unseen = 0
        for batch in batches:
            true = batch.target[batch.mask] > 0.5
            selected = predict(batch).selected[batch.mask]
            tables.append(torch.stack([true.sum(0), selected.sum(0), (true & selected).sum(0)]))
            n_unseen += int(batch.n_unseen[batch.mask].sum())
        sums = torch.stack(tables).sum(dim=0).cpu().numpy()
        return cls(sums[0], sums[1], sums[2], n_unseen)


def class_maps(projection: torch.Tensor, present: torch.Tensor) -> tuple[Bool, Bool]:
    """Which classes have a map for any, and for all of their molecules.

    Parameters
    ----------
    projection : Tensor (D, K)
        Above 0 where a molecule belongs to a class.
    present : BoolTensor (K,)
        Molecules with a map.

    Returns
    -------
    tuple of ndarray (D,) of bool
        Both false for a class without a molecule.
    """
    member = (projection > 0).cpu().numpy()
    mapped = (member & present.cpu().numpy()).sum(axis=1)
    return mapped > 0, (mapped > 0) & (mapped == member.sum(axis=1))


def map_coverage(
    counts: DrugCounts, projection: torch.Tensor, present: torch.Tensor
) -> dict[str, Any]:
    """Coverage of classes and prescriptions, and the scores of classes with and without a map.

    The classes that have a map are no random choice (small molecules come first), so a difference
    between both groups is not yet an effect of the map: train with ``representation.hide_share``
    for that.

    Parameters
    ----------
    counts : DrugCounts
        Of the test part.
    projection, present
        See `class_maps`.

    Returns
    -------
    dict
        ``molecules``, ``molecules_with_map``; ``classes``; ``prescriptions`` (true drugs of the
        visits, those outside the vocabulary included, which have no map); for ``any`` and ``all``:
        ``classes_any``, ``share_classes_any``, ``share_prescriptions_any`` and so on; and
        ``with_map``, ``without_map``: `group_scores` of classes with a map for any molecule.
    """
    n_classes = len(counts.true)
    given = int(counts.true.sum()) + counts.n_unseen
    found: dict[str, Any] = {
        "molecules": len(present),
        "molecules_with_map": int(present.sum()),
        "classes": n_classes,
        "prescriptions": given,
    }
    groups = dict(zip(("any", "all"), class_maps(projection, present), strict=True))
    for name, group in groups.items():
        found[f"classes_{name}"] = int(group.sum())
        found[f"share_classes_{name}"] = float(group.sum() / max(n_classes, 1))
        found[f"share_prescriptions_{name}"] = float(counts.true[group].sum() / max(given, 1))
    found["with_map"] = group_scores(counts, groups["any"])
    found["without_map"] = group_scores(counts, ~groups["any"])
    return found


def group_scores(counts: DrugCounts, group: Bool) -> dict[str, float | int | None]:
    """Scores of some drug classes (D,).

    Returns
    -------
    dict
        ``classes``; ``prescriptions``; ``recall``, ``precision``, ``f1``: pooled over the group's
        drugs of all visits; ``recall_class_mean``, ``f1_class_mean``: mean over those of its
        classes that were given. None where nothing can be divided.
    """
    true, selected, hit = (part[group] for part in (counts.true, counts.selected, counts.hit))
    given = true > 0
    recall = hit[given] / true[given]
    f1 = 2.0 * hit[given] / (true + selected)[given]
    return {
        "classes": int(group.sum()),
        "prescriptions": int(true.sum()),
        "recall": _share(hit.sum(), true.sum()),
        "precision": _share(hit.sum(), selected.sum()),
        "f1": _share(2 * hit.sum(), true.sum() + selected.sum()),
        "recall_class_mean": float(recall.mean()) if given.any() else None,
        "f1_class_mean": float(f1.mean()) if given.any() else None,
    }


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole > 0 else None


def coverage_note(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """One line about the maps behind one model's runs; None if it reads no map.

    Parameters
    ----------
    reports : sequence of dict
        Of runs of one model; shares are averaged over them.
    """
    found = [report["map_coverage"] for report in reports if report.get("map_coverage")]
    if not found:
        return None
    classes, prescriptions = (
        100.0 * float(np.mean([item[f"share_{kind}_any"] for item in found]))
        for kind in ("classes", "prescriptions")
    )
    return f"{classes:.0f} % of classes, {prescriptions:.0f} % of prescriptions"


def coverage_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """Scores of drug classes with and without a map; empty for a run that reads none."""
    found = report.get("map_coverage")
    if not found:
        return pd.DataFrame()
    names = {"with_map": "with a map", "without_map": "without"}
    return pd.DataFrame([{"drugs": text, **found[key]} for key, text in names.items()])
