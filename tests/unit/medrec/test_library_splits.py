"""Random and scaffold splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from medrec.config_molecules import SplitConfig
from medrec.library.arrays import FORMAT, MoleculeLibrary
from medrec.library.splits import Split, part_sizes, random_split, scaffold_split, split_library
from quantum.base import InputError


def library(folder: Path, scaffolds: list[str]) -> MoleculeLibrary:
    """What a split needs of a library."""
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    np.save(folder / "starts.npy", np.zeros((len(scaffolds) + 1, 6), dtype=np.int64))
    pd.DataFrame({"scaffold": scaffolds}).to_parquet(folder / "molecules.parquet")
    return MoleculeLibrary.load(folder)


def is_partition(split: Split, n: int) -> bool:
    together = np.concatenate(split)
    ascending = all((np.diff(part) > 0).all() for part in split)
    return ascending and together.dtype == np.int64 and sorted(together) == list(range(n))


def by_definition(scaffolds: list[str], n_train: int, n_valid: int) -> tuple[list[int], ...]:
    """DeepChem's rule, group by group."""
    groups: dict[str, list[int]] = {}
    for number, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(number)
    parts: tuple[list[int], ...] = ([], [], [])
    for group in sorted(groups.values(), key=lambda g: (len(g), g[0]), reverse=True):
        if len(parts[0]) + len(group) <= n_train:
            parts[0].extend(group)
        elif len(parts[0]) + len(parts[1]) + len(group) <= n_train + n_valid:
            parts[1].extend(group)
        else:
            parts[2].extend(group)
    return tuple(sorted(part) for part in parts)


scaffold_lists = st.lists(
    st.sampled_from(["", "c1ccccc1", "C1CC1", "C1CCC1", "x", "y"]), max_size=60
)


@given(scaffold_lists, st.integers(0, 60), st.integers(0, 20))
def test_scaffold_split_follows_the_definition(
    scaffolds: list[str], n_train: int, n_valid: int
) -> None:
    split = scaffold_split(scaffolds, n_train, n_valid)
    assert is_partition(split, len(scaffolds))
    assert tuple(part.tolist() for part in split) == by_definition(scaffolds, n_train, n_valid)
    kinds = [{scaffolds[number] for number in part} for part in split]
    assert not (kinds[0] & kinds[1] | kinds[0] & kinds[2] | kinds[1] & kinds[2])
    assert len(split.train) <= n_train
    assert len(split.valid) <= n_train + n_valid


@given(scaffold_lists.filter(bool))
def test_the_largest_group_trains_if_it_fits(scaffolds: list[str]) -> None:
    largest = pd.Series(scaffolds).value_counts().iloc[0]
    split = scaffold_split(scaffolds, int(largest), 0)
    assert len(split.train) == largest
    assert len({scaffolds[number] for number in split.train}) == 1


@given(
    st.integers(1, 300),
    st.floats(0.05, 0.9),
    st.floats(0.0, 0.1),
    st.integers(0, 5),
)
def test_sizes_of_a_random_split(n: int, train: float, valid: float, seed: int) -> None:
    n_train, n_valid = int(n * train), int(n * valid)
    split = random_split(n, n_train, n_valid, seed)
    assert is_partition(split, n)
    assert [len(part) for part in split] == [n_train, n_valid, n - n_train - n_valid]
    again = random_split(n, n_train, n_valid, seed)
    assert all(np.array_equal(a, b) for a, b in zip(split, again, strict=True))


def test_random_split_is_a_permutation_of_numpy(tmp_path: Path) -> None:
    order = np.random.default_rng(7).permutation(50)
    split = split_library(library(tmp_path / "a", [""] * 50), SplitConfig(seed=7))
    assert split.train.tolist() == sorted(order[:40])
    assert split.valid.tolist() == sorted(order[40:45])
    assert split.test.tolist() == sorted(order[45:])
    other = split_library(library(tmp_path / "a", [""] * 50), SplitConfig(seed=8))
    assert not np.array_equal(split.test, other.test)


@pytest.mark.parametrize(
    ("train", "valid", "sizes"),
    [
        (0.8, 0.1, [104664, 13083, 13084]),
        (110_000, 10_000, [110_000, 10_000, 10_831]),
        (110_000, 0.0, [110_000, 0, 20_831]),
        (0.9, 0.1, [117747, 13084, 0]),
        (1.0, 0.0, [130_831, 0, 0]),
    ],
)
def test_shares_and_numbers(tmp_path: Path, train: float, valid: float, sizes: list[int]) -> None:
    made = library(tmp_path / "a", [""] * 130_831)
    split = split_library(made, SplitConfig(train=train, valid=valid))
    assert [len(part) for part in split] == sizes


def test_shares_that_floats_miss() -> None:
    for n in range(10, 2000, 10):  # 0.7 * n + 0.1 * n is not always 0.8 * n
        assert part_sizes(n, SplitConfig(train=0.7, valid=0.1), "a") == (7 * n // 10, n // 10)


def test_none_trains_on_everything(tmp_path: Path) -> None:
    split = split_library(library(tmp_path / "a", ["", "x"]), SplitConfig(kind="none"))
    assert [part.tolist() for part in split] == [[0, 1], [], []]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 110_000, "valid": 10_000}, "are 120000 molecules, but library a has 30"),
        ({"train": 0.9, "valid": 0.2}, r"0\.9 and split\.valid 0\.2 are 33 molecules"),
        ({"kind": "scaffold", "train": 0.3}, "library a with 30 molecules has none to train on"),
        ({"train": 0.01}, "has none to train on"),
    ],
)
def test_impossible_splits(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_library(library(tmp_path / "a", [""] * 30), SplitConfig.model_validate(settings))


def test_empty_library(tmp_path: Path) -> None:
    for kind in ("random", "scaffold", "none"):
        with pytest.raises(InputError, match="with 0 molecules"):
            split_library(library(tmp_path / "a", []), SplitConfig.model_validate({"kind": kind}))


def test_scaffolds_of_real_molecules(tmp_path: Path, root: Path) -> None:
    smiles = pd.read_csv(root / "tests/data/molecules/bbbp.csv").smiles
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    # the framework as a molecule, not through MurckoScaffoldSmiles
    frames = [MurckoScaffold.GetScaffoldForMol(mol) for mol in mols]
    flat = [Chem.MolToSmiles(frame, isomericSmiles=False) for frame in frames]
    stored = [MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False) for mol in mols]
    split = split_library(library(tmp_path / "a", stored), SplitConfig(kind="scaffold"))
    assert tuple(part.tolist() for part in split) == by_definition(flat, 160, 20)
    acyclic = [number for number, mol in enumerate(mols) if not mol.GetRingInfo().NumRings()]
    assert len(acyclic) > 3
    assert set(acyclic) <= set(split.train.tolist())  # one group, one of the largest
    assert [len(part) for part in split] == [160, 20, 20]
