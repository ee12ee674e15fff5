from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrec.data.splits import (
    file_order_split,
    make_splits,
    random_split,
    split_from_frame,
    splits_to_frame,
)
from quantum.base import DataError

SHARES = (2 / 3, 1 / 6, 1 / 6)
shares = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.05, 1)).map(
    lambda raw: tuple(value / sum(raw) for value in raw)
)


@given(st.integers(3, 400), shares, st.sampled_from(["random", "file_order"]), st.integers(0, 9))
def test_every_patient_is_in_exactly_one_part(n, fractions, rule, seed):
    for split in make_splits(n, rule, fractions, seed, 2):
        together = np.concatenate(list(split.parts().values()))
        assert sorted(together) == list(range(n))
        assert all(len(part) > 0 for part in split.parts().values())


def test_published_sizes_of_the_file_order_rule():
    # 6,350 patients: 4,233 train, then 1,058 TEST, then 1,059 validation
    split = file_order_split(6350, SHARES)
    assert split.train.tolist() == list(range(4233))
    assert split.test.tolist() == list(range(4233, 5291))
    assert split.validation.tolist() == list(range(5291, 6350))


def test_two_thirds_of_three_patients_are_two():
    # floor(2/3 * 3) must not fall to 1 by rounding; no part may be empty, so one train patient goes
    assert len(file_order_split(12, SHARES).train) == 8
    assert [len(part) for part in file_order_split(3, SHARES).parts().values()] == [1, 1, 1]


def test_random_split_is_seeded_and_numbers_differ():
    assert random_split(60, SHARES, 1, 0).digest == random_split(60, SHARES, 1, 0).digest
    digests = {
        random_split(60, SHARES, seed, number).digest for seed in (1, 2) for number in (0, 1)
    }
    assert len(digests) == 4
    sizes = [len(part) for part in random_split(60, SHARES, 1, 0).parts().values()]
    assert sizes == [40, 10, 10]


def test_a_split_does_not_depend_on_how_many_are_made():
    few, many = (make_splits(50, "random", SHARES, 3, n) for n in (2, 5))
    assert few[1].digest == many[1].digest


def test_frame_round_trip():
    splits = make_splits(20, "random", SHARES, 0, 3)
    frame = splits_to_frame(splits)
    assert len(frame) == 60
    assert [split_from_frame(frame, n).digest for n in range(3)] == [s.digest for s in splits]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_patients_are_refused(n):
    with pytest.raises(DataError, match=f"cohort has {n} patients; expected at least 3"):
        make_splits(n, "random", SHARES, 0, 1)
