"""Hard mode: no forbidden pair in a recommended set, at the least loss of expected true drugs.

Of a visit's selected drugs, those that are in a forbidden pair form a conflict graph. The drugs
to keep are the independent set of that graph with the largest sum of probabilities, which is the
set that keeps most true drugs on average. Nothing is added and drugs without a conflict stay.
Connected parts of up to `EXACT_DRUGS` drugs are solved exactly, larger ones greedily.

Letters: n visits, D drugs.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components

from medrec.data.ddi import SEVERITY_NAMES
from medrec.evaluation.metrics import SEVERITIES
from quantum.base import InputError

EXACT_DRUGS = 30
_SMALLEST = 1e-12
"""Weight of a drug with probability 0, so that it is not dropped for nothing."""

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.floating]


def parse_grade(text: str) -> int:
    """Grade by name or number: ``contraindicated``, ``not-recommended``, ``4``.

    Raises
    ------
    InputError
        With the grades that there are.
    """
    plain = text.strip().lower().replace("-", " ").replace("_", " ")
    for grade in SEVERITIES:
        if plain in (str(grade), SEVERITY_NAMES[grade]):
            return grade
    names = ", ".join(
        f"{SEVERITY_NAMES[grade].replace(' ', '-')} ({grade})" for grade in SEVERITIES
    )
    raise InputError(f"severity is '{text}'; expected one of {names}")


def forbidden_pairs(severity: npt.NDArray[np.generic], grade: int) -> Bool:
    """Pairs of a grade or worse, (D, D).

    Raises
    ------
    InputError
        If no interaction has a grade: forbidding nothing would look like safety.
    """
    if not severity.any():
        raise InputError(
            "no interaction of the cohort has a grade (TWOSIDES has none), so none can be "
            "forbidden; expected a cohort with ddi.source: ansm"
        )
    return np.asarray(severity, dtype=np.int64) >= grade


def allowed_sets(probs: Float, selected: Bool, forbidden: Bool) -> tuple[Bool, int]:
    """Drop drugs until no forbidden pair is left.

    Parameters
    ----------
    probs : ndarray (n, D)
        Probabilities, at least 0.
    selected : ndarray (n, D) of bool
    forbidden : ndarray (D, D) of bool
        Symmetric, zero diagonal.

    Returns
    -------
    allowed : ndarray (n, D) of bool
        Subsets of ``selected``.
    n_greedy : int
        Visits with a part too large for the exact search.
    """
    allowed = selected.copy()
    chosen = selected.astype(np.float32)
    conflicting = ((chosen @ forbidden.astype(np.float32)) * chosen).any(axis=1)
    n_greedy = 0
    for row in np.flatnonzero(conflicting):
        members = np.flatnonzero(selected[row])
        members = members[forbidden[np.ix_(members, members)].any(axis=1)]
        graph = forbidden[np.ix_(members, members)]
        weights = np.maximum(probs[row, members].astype(np.float64), _SMALLEST)
        kept, exact = heaviest_independent_set(weights, graph)
        allowed[row, members[~kept]] = False
        n_greedy += int(not exact)
    return allowed, n_greedy


def heaviest_independent_set(weights: Float, graph: Bool) -> tuple[Bool, bool]:
    """Vertices without an edge between them and with the largest sum of weights.

    Parameters
    ----------
    weights : ndarray (k,)
        Above 0.
    graph : ndarray (k, k) of bool
        Symmetric, zero diagonal.

    Returns
    -------
    kept : ndarray (k,) of bool
    exact : bool
        False if a connected part was larger than `EXACT_DRUGS` and solved greedily.
    """
    kept, exact = np.zeros(len(weights), dtype=bool), True
    _, part = connected_components(graph, directed=False)
    for label in range(int(part.max(initial=-1)) + 1):
        own = np.flatnonzero(part == label)
        small = len(own) <= EXACT_DRUGS
        solve = _exact if small else _greedy
        kept[own[solve(weights[own], graph[np.ix_(own, own)])]] = True
        exact &= small
    return kept, exact


def _exact(weights: Float, graph: Bool) -> list[int]:
    """Branch on the vertex with most neighbours; a vertex that outweighs its own is taken."""
    k = len(weights)
    weight = [float(value) for value in weights]
    neighbours = [sum(1 << int(j) for j in np.flatnonzero(graph[i])) for i in range(k)]

    def bits(mask: int) -> list[int]:
        return [i for i in range(k) if mask >> i & 1]

    @cache
    def best(left: int) -> tuple[float, int]:
        if not left:
            return 0.0, 0
        vertices = bits(left)
        for v in vertices:
            if weight[v] >= sum(weight[u] for u in bits(left & neighbours[v])):
                value, taken = best(left & ~neighbours[v] & ~(1 << v))
                return value + weight[v], taken | 1 << v
        v = max(vertices, key=lambda u: (left & neighbours[u]).bit_count())
        value, taken = best(left & ~neighbours[v] & ~(1 << v))
        with_v = value + weight[v], taken | 1 << v
        return max(with_v, best(left & ~(1 << v)), key=lambda found: found[0])

    return bits(best((1 << k) - 1)[1])


def _greedy(weights: Float, graph: Bool) -> list[int]:
    """Take the vertex with the largest weight / (neighbours + 1) (Sakai et al. 2003, GWMIN)."""
    left, taken = np.ones(len(weights), dtype=bool), []
    while left.any():
        degree = (graph & left).sum(axis=1)
        v = int(np.argmax(np.where(left, weights / (degree + 1), -1.0)))
        taken.append(v)
        left &= ~graph[v]
        left[v] = False
    return taken
