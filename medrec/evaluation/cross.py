"""Recommenders by representations of molecules: paired differences on the same test patients.

A run's pair is the run of the same split and seed: of the reference representation, or of the same
representation with shuffled molecules. Runs without a partner do not enter a difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.evaluation.bootstrap import percentile_interval, require_same_visits
from medrec.evaluation.cells import Cells
from medrec.evaluation.significance import holm, patient_differences, wilcoxon_p

METRIC = "jaccard"
BESIDE = ("f1", "prauc", "ddi_rate", "mean_n_drugs")
COMPARISONS = ("reference", "null")

Key = tuple[int, int]
"""Split and seed of a run."""


@dataclass(frozen=True)
class Variant:
    """A recommender with a representation, molecules shuffled or not."""

    recommender: str
    representation: str
    shuffled: bool = False


Rows = Mapping[Variant, Mapping[Key, pd.DataFrame]]


def cross_table(rows: Rows, reference: str, seed: int = 0) -> pd.DataFrame:
    """Compare every representation with the reference and with its own shuffled null.

    Parameters
    ----------
    rows : mapping of Variant to mapping of (split, seed) to pandas.DataFrame
        Per-visit rows of finished runs; a variant without a run is left out.
    reference : str
        Representation that differences refer to, for each recommender its own.
    seed : int
        Of the resamples.

    Returns
    -------
    pandas.DataFrame
        One row per recommender and representation: ``n_runs``, ``jaccard`` (mean over runs) with
        ``_low`` and ``_high`` (95 %, patients resampled), ``jaccard_sd_runs``; ``f1``, ``prauc``,
        ``ddi_rate``, ``mean_n_drugs``; ``jaccard_null``, ``n_runs_null``. For each comparison X of
        ``reference`` and ``null``: ``to_X`` (mean difference of the paired runs), ``to_X_low``,
        ``to_X_high``, ``to_X_sd_runs``, ``to_X_pairs``, ``to_X_above`` (pairs with a positive
        difference), ``to_X_p`` (Wilcoxon, a difference per patient) and ``to_X_p_holm``, corrected
        over all tests of the table. NaN where there is nothing to compare with.

    Raises
    ------
    InputError
        If two runs of a split score different visits.
    """
    rows = {variant: own for variant, own in rows.items() if own}
    _check(rows)
    keys = sorted({key for own in rows.values() for key in own})
    place = {key: number for number, key in enumerate(keys)}
    variants = list(rows)
    cells = Cells(
        {
            (number, place[key]): [table]
            for number, variant in enumerate(variants)
            for key, table in rows[variant].items()
        },
        (METRIC, *BESIDE),
        seed,
    )
    table = [
        _row(rows, variants, variant, reference, cells, place)
        for variant in variants
        if not variant.shuffled
    ]
    frame = pd.DataFrame(table)
    if len(frame):
        corrected = holm(frame[[f"to_{name}_p" for name in COMPARISONS]].to_numpy().ravel())
        for number, name in enumerate(COMPARISONS):
            frame[f"to_{name}_p_holm"] = corrected[number :: len(COMPARISONS)]
    return frame


def _check(rows: Rows) -> None:
    first: dict[int, pd.DataFrame] = {}
    for own in rows.values():
        for (split, _), table in own.items():
            require_same_visits(table, first.setdefault(split, table))


def _row(
    rows: Rows,
    variants: Sequence[Variant],
    variant: Variant,
    reference: str,
    cells: Cells,
    place: Mapping[Key, int],
) -> dict[str, Any]:
    number = variants.index(variant)
    own = [place[key] for key in rows[variant]]
    values = np.array([cells.points[number, key][0][METRIC] for key in own])
    low, high = percentile_interval(cells.drawn(number, own, METRIC))
    row: dict[str, Any] = {
        "recommender": variant.recommender,
        "representation": variant.representation,
        "n_runs": len(own),
        METRIC: float(values.mean()),
        f"{METRIC}_low": low,
        f"{METRIC}_high": high,
        f"{METRIC}_sd_runs": _spread(values),
        **{name: cells.mean(number, own, name) for name in BESIDE},
    }
    others = {
        "reference": Variant(variant.recommender, reference),
        "null": Variant(variant.recommender, variant.representation, shuffled=True),
    }
    null = rows.get(others["null"], {})
    row["n_runs_null"] = len(null)
    row[f"{METRIC}_null"] = (
        cells.mean(variants.index(others["null"]), [place[key] for key in null], METRIC)
        if null
        else float("nan")
    )
    for name, other in others.items():
        common = sorted(set(rows[variant]) & set(rows.get(other, {})))
        paired = _difference(rows, variants, variant, other, common, cells, place)
        row |= {f"to_{name}{suffix}": value for suffix, value in paired.items()}
    return row


def _difference(
    rows: Rows,
    variants: Sequence[Variant],
    ours: Variant,
    theirs: Variant,
    common: Sequence[Key],
    cells: Cells,
    place: Mapping[Key, int],
) -> dict[str, Any]:
    if not common or ours == theirs:
        nothing = dict.fromkeys(("", "_low", "_high", "_sd_runs", "_p"), float("nan"))
        return {**nothing, "_pairs": 0, "_above": 0}
    left, right = variants.index(ours), variants.index(theirs)
    keys = [place[key] for key in common]
    point, low, high = cells.difference(left, right, keys, METRIC)
    per_run = np.array(
        [cells.points[left, k][0][METRIC] - cells.points[right, k][0][METRIC] for k in keys]
    )
    splits = sorted({split for split, _ in common})
    by_split = {
        side: [[rows[side][key] for key in common if key[0] == split] for split in splits]
        for side in (ours, theirs)
    }
    return {
        "": point,
        "_low": low,
        "_high": high,
        "_sd_runs": _spread(per_run),
        "_p": wilcoxon_p(patient_differences(by_split[ours], by_split[theirs], METRIC)),
        "_pairs": len(common),
        "_above": int((per_run > 0).sum()),
    }


def _spread(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
