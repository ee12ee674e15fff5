"""How much of the differences between trials each setting explains: functional ANOVA on a forest.

A random forest learns an objective from the settings. In a tree, the mean over all other settings
is exact, because its leaves are boxes; the variance of that mean along one setting, as a share of
all variance, is its importance (Hutter, Hoos, Leyton-Brown: An efficient approach for assessing
hyperparameter importance, ICML 2014). Each tree sees another bootstrap sample of the trials, so the
spread over trees says how far the number can be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.report.search_table import SearchTrials

FEWEST = 4
PER_SETTING = 10
_N_TREES = 96
_OUTSIDE = -2.0
_LOW, _HIGH = 10, 90

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Boxes:
    """Leaves of a tree: lower and upper ends per setting, and the value inside."""

    low: Array
    high: Array
    value: Array


def importance(search: SearchTrials, seed: int = 0) -> pd.DataFrame:
    """Share of the variance that each setting explains alone.

    Returns
    -------
    pandas.DataFrame
        ``objective``, ``path``, ``label``, ``importance`` (mean over trees, 0 to 1), ``low``,
        ``high`` (10 % and 90 % of the trees), the largest first; what is missing to 1 are joint
        effects. Empty with fewer than four trials.

    Notes
    -----
    A setting that some trials do not have counts the lack as a value, weighted by how often it
    occurs.
    """
    rows: list[dict[str, Any]] = []
    if len(search.trials) >= FEWEST:
        places = np.stack([d.positions(search.trials[d.column]) for d in search.dimensions], axis=1)
        for goal in search.objectives:
            shares = _shares(places, search.trials[goal.metric].to_numpy(dtype=np.float64), seed)
            low, high = np.percentile(shares, [_LOW, _HIGH], axis=0)
            own = [
                {
                    "objective": goal.metric,
                    "path": dim.path,
                    "label": dim.label,
                    "importance": float(shares[:, i].mean()),
                    "low": float(low[i]),
                    "high": float(high[i]),
                }
                for i, dim in enumerate(search.dimensions)
            ]
            rows += sorted(own, key=lambda row: -row["importance"])
    columns = ["objective", "path", "label", "importance", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def is_few(search: SearchTrials) -> bool:
    """Whether there are too few trials to trust an order of settings."""
    return len(search.trials) < PER_SETTING * len(search.dimensions)


def _shares(places: Array, target: Array, seed: int) -> Array:
    """Importance per tree and setting, (n_trees, n_settings); zeros if nothing varies."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(_N_TREES, bootstrap=True, random_state=seed)
    forest.fit(places, target)
    absent = (places < 0).mean(axis=0)
    trees = [_boxes(tree.tree_, places.shape[1]) for tree in forest.estimators_]
    return np.stack([_tree_shares(boxes, absent) for boxes in trees])


def _boxes(tree: Any, n_settings: int) -> _Boxes:
    lows, highs, values = [], [], []
    start = (0, np.full(n_settings, _OUTSIDE), np.full(n_settings, np.inf))
    waiting = [start]
    while waiting:
        node, low, high = waiting.pop()
        left, right = tree.children_left[node], tree.children_right[node]
        if left == right:
            lows.append(low)
            highs.append(high)
            values.append(float(tree.value[node].ravel()[0]))
            continue
        setting, cut = tree.feature[node], tree.threshold[node]
        below, above = high.copy(), low.copy()
        below[setting] = above[setting] = cut
        waiting += [(left, low, below), (right, above, high)]
    return _Boxes(np.array(lows), np.array(highs), np.array(values))


def _below(place: Array, absent: float | Array) -> Array:
    """Share of a setting's space below a place: its lack at -1, then values from 0 to 1."""
    return np.where(place >= -1.0, absent, 0.0) + (1.0 - absent) * np.clip(place, 0.0, 1.0)


def _tree_shares(boxes: _Boxes, absent: Array) -> Array:
    widths = _below(boxes.high, absent) - _below(boxes.low, absent)
    volume = widths.prod(axis=1)
    mean = float(volume @ boxes.value)
    total = float(volume @ (boxes.value - mean) ** 2)
    n_settings = widths.shape[1]
    if total <= 1e-12 * max(mean * mean, 1e-12):
        return np.zeros(n_settings)
    shares = np.zeros(n_settings)
    for i in range(n_settings):
        others = np.delete(widths, i, axis=1).prod(axis=1)
        cuts = np.unique(np.concatenate([boxes.low[:, i], boxes.high[:, i]]))
        inside = (boxes.low[:, i] <= cuts[:-1, None]) & (boxes.high[:, i] >= cuts[1:, None])
        along = inside @ (others * boxes.value)
        lengths = np.diff(_below(cuts, float(absent[i])))
        shares[i] = float(lengths @ (along - mean) ** 2) / total
    return shares
