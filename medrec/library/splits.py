"""Training, validation and test molecules of a library.

The scaffold split is DeepChem's (``ScaffoldSplitter``), as Hu et al. (ICLR 2020) and the papers
after them use it: groups of equal Bemis-Murcko scaffold, the largest first, fill the training part
up to its size, then the validation part; what fits into neither tests. Of groups of equal size the
one whose first molecule comes last in the table goes first. All molecules without a ring have the
empty scaffold and are one group. Scaffolds ignore stereochemistry, as in DeepChem; Hu et al. keep
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.config_molecules import SplitConfig
from medrec.library.arrays import MoleculeLibrary
from quantum.base import InputError

Rows = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Numbers of the molecules of each part, ascending; no molecule is in two parts."""

    train: Rows
    valid: Rows
    test: Rows


def split_library(library: MoleculeLibrary, config: SplitConfig) -> Split:
    """Divide a library.

    Raises
    ------
    InputError
        If the parts are larger than the library, or no molecule is left to train on.
    """
    n = len(library)
    if config.kind == "none":
        split = Split(np.arange(n), *(np.zeros(0, dtype=np.int64) for _ in range(2)))
    else:
        n_train, n_valid = part_sizes(n, config, library.name)
        if config.kind == "random":
            split = random_split(n, n_train, n_valid, config.seed)
        else:
            split = scaffold_split(library.molecules["scaffold"], n_train, n_valid)
    if not len(split.train):
        raise InputError(
            f"library {library.name} with {n} molecules has none to train on after a "
            f"{config.kind} split with train {config.train:g}; choose a larger split.train"
        )
    return split


def part_sizes(n: int, config: SplitConfig, name: str) -> tuple[int, int]:
    """Numbers of training and validation molecules out of ``n``; shares are rounded down.

    Raises
    ------
    InputError
        If they are more than ``n`` together.
    """
    wanted = [value * n if value <= 1 else value for value in (config.train, config.valid)]
    # 0.8 + 0.1 is a little less than 0.9
    n_train, both = (int(total + 1e-6) for total in (wanted[0], sum(wanted)))
    if both > n:
        raise InputError(
            f"split.train {config.train:g} and split.valid {config.valid:g} are {both} molecules, "
            f"but library {name} has {n}; expected shares that sum to at most 1, or numbers above "
            "1 that sum to at most that"
        )
    return n_train, both - n_train


def random_split(n: int, n_train: int, n_valid: int, seed: int) -> Split:
    """First so many of a permutation train, the next validate, the rest test."""
    order = np.random.default_rng(seed).permutation(n).astype(np.int64)
    parts = np.split(order, [n_train, n_train + n_valid])
    return Split(*(np.sort(part) for part in parts))


def scaffold_split(scaffolds: Sequence[str] | pd.Series[str], n_train: int, n_valid: int) -> Split:
    """Whole groups of molecules with equal scaffold, the largest first.

    Groups are not divided, so the training part may stay smaller than asked for. The validation
    part takes a group if both parts then hold at most ``n_train + n_valid``; as smaller groups may
    still go to training afterwards, it can end up larger than ``n_valid``.

    Parameters
    ----------
    scaffolds : sequence of str (M,)
        SMILES of each molecule's scaffold, empty without a ring.
    """
    group, _ = pd.factorize(np.asarray(scaffolds, dtype=object))  # numbered by first occurrence
    sizes = np.bincount(group)
    part_of_group = np.full(len(sizes), 2)
    taken = [0, 0]
    for number in np.lexsort((-np.arange(len(sizes)), -sizes)):
        size = int(sizes[number])
        if taken[0] + size <= n_train:
            part = 0
        elif sum(taken) + size <= n_train + n_valid:
            part = 1
        else:
            continue
        part_of_group[number] = part
        taken[part] += size
    part_of_molecule = part_of_group[group]
    return Split(*(np.flatnonzero(part_of_molecule == part) for part in range(3)))
