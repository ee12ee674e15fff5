"""Targets with the units of the literature, atomic references, and the trivial prediction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medrec.library.readers_qm import HARTREE_IN_MEV, QM8_TARGETS, QM9_TARGETS

__all__ = ["QM8_TARGETS", "QM9_TARGETS", "atom_reference", "mean_predictor_mae"]

_ATOM_HARTREE: dict[str, dict[int, float]] = {
    "u0": {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730},
    "u": {1: -0.498857, 6: -37.845355, 7: -54.582445, 8: -75.063163, 9: -99.717314},
    "h": {1: -0.497912, 6: -37.844411, 7: -54.581501, 8: -75.062219, 9: -99.716370},
    "g": {1: -0.510927, 6: -37.861317, 7: -54.598897, 8: -75.079532, 9: -99.733544},
}
"""Isolated atoms, B3LYP/6-31G(2df,p): "Atomref" of QM9, figshare doi:10.6084/m9.figshare.1057643.
"""


def atom_reference(target: str, unit: str = "meV") -> dict[int, float] | None:
    """What isolated atoms contribute to a target of QM9, by atomic number, in its unit (meV).

    Subtracted from a total energy, they leave the energy of atomisation, 76 eV on average instead
    of 11,179: what differs between molecules. ``u0``, ``u``, ``h`` and ``g`` have references.
    ``cv`` has none here: the file gives 2.981 cal/(mol K) = 3/2 R for every element, which counts
    atoms and names no chemistry; SchNetPack offers it, PyTorch Geometric has zeros in its place.

    Parameters
    ----------
    unit : str
        Of the library's target; another one than meV has no references, so that somebody else's
        ``g`` is left alone.

    Returns
    -------
    dict of int to float, or None
        Elements H, C, N, O, F.
    """
    values = _ATOM_HARTREE.get(target) if unit == "meV" else None
    return {z: value * HARTREE_IN_MEV for z, value in values.items()} if values else None


def mean_predictor_mae(
    values: npt.ArrayLike, train: npt.ArrayLike | None = None
) -> npt.NDArray[np.float64]:
    """Mean absolute error of predicting the training mean for every molecule.

    Parameters
    ----------
    values : float array (M, T) or (M,)
        True values; NaN is missing.
    train : float array (K, T) or (K,), optional
        Values whose mean is predicted; ``values`` if not given, which makes the result their mean
        absolute deviation.

    Returns
    -------
    float64 array (T,) or ()
        NaN for a target without values.
    """
    test = np.asarray(values, dtype=np.float64)
    known = test if train is None else np.asarray(train, dtype=np.float64)
    return _mean(np.abs(test - _mean(known)))


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the first axis without NaN; NaN where nothing is left."""
    present = ~np.isnan(values)
    counts = present.sum(axis=0)
    total = np.where(present, values, 0.0).sum(axis=0)
    return np.asarray(np.where(counts > 0, total / np.maximum(counts, 1), np.nan))
