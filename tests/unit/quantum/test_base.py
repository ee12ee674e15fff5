"""Digests, atomic files, errors: what everything else rests on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum.base import (
    ConvergenceError,
    InputError,
    MedrecError,
    ProgramMissingError,
    canonical_json,
    digest,
    machine,
    publish_folder,
    read_json,
    write_json_atomic,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_canonical_json_round_trips_and_is_stable(value):
    text = canonical_json(value)
    assert text.isascii()
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_order_of_keys_does_not_matter(value):
    assert digest(value) == digest(dict(reversed(value.items())))


def test_one_and_one_point_zero_differ_and_nan_is_refused():
    assert digest(1) != digest(1.0)
    with pytest.raises(InputError, match="canonical"):
        canonical_json(float("nan"))


def test_atomic_write_leaves_nothing_behind(tmp_path: Path):
    write_json_atomic(tmp_path / "a.json", {"x": 1})
    write_json_atomic(tmp_path / "a.json", {"x": 2})
    assert read_json(tmp_path / "a.json") == {"x": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="not found"):
        read_json(tmp_path / "absent.json")


def test_the_first_publisher_wins(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    assert publish_folder(tmp_path / "one", tmp_path / "final")
    assert not publish_folder(tmp_path / "two", tmp_path / "final")
    assert (tmp_path / "final" / "content").read_text() == "one"
    assert not (tmp_path / "two").exists()


def test_error_kinds_are_distinct_and_carry_exit_codes():
    kinds = {c.kind for c in MedrecError.__subclasses__()}
    assert len(kinds) == len(MedrecError.__subclasses__())
    assert issubclass(ProgramMissingError, ImportError)
    assert ConvergenceError("x", [-1.0]).energies_hartree == [-1.0]
    assert all(c.exit_code != 0 for c in MedrecError.__subclasses__())


def test_machine_names_no_host():
    assert set(machine()) == {"processor", "cores", "memory_gib", "platform", "python"}
