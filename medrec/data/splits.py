"""Patient-level splits. They are made once per cohort, saved, and never made again."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medrec.data.schema import Split
from quantum.base import DataError, digest

PARTS = ("train", "validation", "test")
Fractions = tuple[float, float, float]


def _rounding_down(value: float) -> int:
    # 2/3 * 3 is 2.0 only up to rounding; a shortfall of 1e-9 patients is not a patient
    return math.floor(value + 1e-9)


def random_split(n_patients: int, fractions: Fractions, seed: int, number: int) -> Split:
    """Shuffle the patients and cut: train, validation, test.

    The generator is seeded with ``(seed, number)``, so split 3 does not depend on how many splits
    are made. Validation and test get their share rounded to the nearest patient, at least one.
    """
    _check_size(n_patients)
    order = np.random.default_rng([seed, number]).permutation(n_patients)
    n_validation = max(1, round(n_patients * fractions[1]))
    n_test = max(1, round(n_patients * fractions[2]))
    n_train = max(1, n_patients - n_validation - n_test)
    n_validation = min(n_validation, n_patients - n_train - 1)
    cuts = (n_train, n_train + n_validation)
    train, validation, test = np.split(order, cuts)
    return _split(train, validation, test)


def file_order_split(n_patients: int, fractions: Fractions) -> Split:
    """Cut without shuffling: first the training patients, then TEST, last validation.

    This is the rule of the published GAMENet, SafeDrug and MoleRec scripts: the first two thirds
    train, the next half of the rest is the test part, the last half the validation part, each
    rounded down in turn. Patients are in ascending order of their identifier.
    """
    _check_size(n_patients)
    n_train = max(1, _rounding_down(n_patients * fractions[0]))
    n_train = min(n_train, n_patients - 2)
    share_of_test = fractions[2] / (fractions[1] + fractions[2])
    n_test = max(1, _rounding_down((n_patients - n_train) * share_of_test))
    n_test = min(n_test, n_patients - n_train - 1)
    order = np.arange(n_patients)
    train, test, validation = np.split(order, (n_train, n_train + n_test))
    return _split(train, validation, test)


def make_splits(
    n_patients: int, rule: str, fractions: Fractions, seed: int, n_splits: int
) -> list[Split]:
    """All splits of a cohort; the file-order rule has exactly one.

    Raises
    ------
    DataError
        With fewer than three patients, as no part may be empty.
    """
    if rule == "file_order":
        return [file_order_split(n_patients, fractions)]
    return [random_split(n_patients, fractions, seed, number) for number in range(n_splits)]


def splits_to_frame(splits: list[Split]) -> pd.DataFrame:
    """One row per split and patient: ``split``, ``patient``, ``part``; sorted."""
    frames = []
    for number, split in enumerate(splits):
        parts = split.parts()
        patients = np.concatenate(list(parts.values()))
        names = np.repeat(list(parts), [len(part) for part in parts.values()])
        frames.append(pd.DataFrame({"split": number, "patient": patients, "part": names}))
    frame = pd.concat(frames, ignore_index=True)
    return frame.sort_values(["split", "patient"], ignore_index=True)


def split_from_frame(frame: pd.DataFrame, number: int) -> Split:
    """Inverse of `splits_to_frame` for one split."""
    chosen = frame[frame["split"] == number]
    parts = (chosen.loc[chosen["part"] == part, "patient"].to_numpy(np.int64) for part in PARTS)
    return _split(*parts)


def _split(
    train: NDArray[np.int64], validation: NDArray[np.int64], test: NDArray[np.int64]
) -> Split:
    train, validation, test = (np.sort(part).astype(np.int64) for part in (train, validation, test))
    key = digest([part.tolist() for part in (train, validation, test)])
    return Split(train, validation, test, key)


def _check_size(n_patients: int) -> None:
    if n_patients < len(PARTS):
        raise DataError(
            f"cohort has {n_patients} patients; expected at least {len(PARTS)}, one for each of "
            f"{', '.join(PARTS)}"
        )
