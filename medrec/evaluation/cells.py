"""Points and resampled values of every model on every split, and their means and differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.evaluation.bootstrap import (
    N_RESAMPLES,
    PatientSums,
    percentile_interval,
    resample_together,
)
from medrec.evaluation.metrics import summarise

Values = dict[str, float]
Draws = dict[str, npt.NDArray[np.float64]]


class Cells:
    """Points and draws of every model on every split; a cell is one model on one split.

    Parameters
    ----------
    rows : dict of (model, split) to tables of rows
        One table per run.
    names : sequence of str
        Metrics to resample.
    seed : int
        Of the resamples.
    """

    def __init__(
        self,
        rows: dict[tuple[int, int], Sequence[pd.DataFrame]],
        names: Sequence[str],
        seed: int,
    ) -> None:
        self.points: dict[tuple[int, int], list[Values]] = {
            cell: [summarise(table) for table in tables] for cell, tables in rows.items()
        }
        sums = [[PatientSums.of(table, names) for table in tables] for tables in rows.values()]
        self.draws: dict[tuple[int, int], Draws] = dict(
            zip(rows, resample_together(sums, N_RESAMPLES, seed), strict=True)
        )

    def names(self, group: int) -> list[str]:
        """Metrics that all runs of a model have."""
        own = [draws for (number, _), draws in self.draws.items() if number == group]
        return [name for name in own[0] if all(name in draws for draws in own)]

    def mean(self, group: int, splits: Iterable[int], name: str) -> float:
        """Mean over the runs of a split, then over splits."""
        per_split = [np.mean([run[name] for run in self.points[group, s]]) for s in splits]
        return float(np.mean(per_split))

    def drawn(self, group: int, splits: Iterable[int], name: str) -> npt.NDArray[np.float64]:
        """`mean` on every resample."""
        return np.asarray(np.mean([self.draws[group, s][name] for s in splits], axis=0))

    def difference(
        self, ours: int, theirs: int, splits: Sequence[int], name: str
    ) -> tuple[float, float, float]:
        """Paired difference over the given splits, with its interval."""
        point = self.mean(ours, splits, name) - self.mean(theirs, splits, name)
        draws = self.drawn(ours, splits, name) - self.drawn(theirs, splits, name)
        return (point, *percentile_interval(draws))
