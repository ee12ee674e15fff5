"""Configurations x splits x seeds."""

from __future__ import annotations

import pytest

from medrec.config import TrainConfig
from orchestration.many import parse_numbers, variants
from quantum.base import InputError


def test_numbers_and_ranges_in_order_without_repetition():
    assert parse_numbers("0-2, 1,7", "--splits") == [0, 1, 2, 7]
    assert parse_numbers(None, "--splits") == []


@pytest.mark.parametrize("text", ["a", "1-b", "-1", "1--2"])
def test_anything_else_is_refused_with_the_option_and_the_part(text):
    with pytest.raises(InputError, match="--seeds has"):
        parse_numbers(text, "--seeds")


def test_every_configuration_runs_on_every_split_with_every_seed():
    base = TrainConfig.model_validate({"name": "t", "model": {"name": "topk"}, "seed": 5})
    found = [(c.split, c.seed) for c in variants([base], [0, 1], [7, 8])]
    assert found == [(0, 7), (0, 8), (1, 7), (1, 8)]
    assert [(c.split, c.seed) for c in variants([base], [], [])] == [(0, 5)]
