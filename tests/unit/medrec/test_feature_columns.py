"""Feature sets are found by name, whatever the order of the manifest's keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medrec.molecules.features import FeatureTable
from quantum.base import InputError


def table(manifest: dict[str, object]) -> FeatureTable:
    empty = np.zeros(0)
    return FeatureTable(
        Path("t"),
        manifest,
        pd.DataFrame(),
        np.zeros((0, 6), np.float32),
        empty.astype(bool),
        empty.astype(np.int64),
        empty.astype(np.int16),
        np.zeros((0, 3), np.float32),
    )


def test_without_an_order_sets_stand_alphabetically():
    found = table({"feature_sets": {"esp": 2, "elf": 1, "volume_cnn": 3}})
    assert found.columns(["elf"]).tolist() == [0]
    assert found.columns(["esp"]).tolist() == [1, 2]
    assert found.columns().tolist() == list(range(6))


def test_sets_that_were_added_later_stand_at_the_end():
    manifest = {
        "feature_sets": {"elf": 1, "slice_cnn": 2, "volume_cnn": 3},
        "feature_order": ["elf", "volume_cnn", "slice_cnn"],
    }
    assert table(manifest).columns(["volume_cnn"]).tolist() == [1, 2, 3]
    assert table(manifest).columns(["slice_cnn"]).tolist() == [4, 5]


def test_an_unknown_set_is_named():
    with pytest.raises(InputError, match=r"no sets \['lol'\]"):
        table({"feature_sets": {"elf": 6}}).columns(["lol"])
