"""Batches from a library: every molecule once, every number where it belongs."""

from __future__ import annotations

import gc
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medrec.library import loader
from medrec.library.arrays import UNREACHABLE
from medrec.library.loader import WINDOW_BATCHES, collate, plan_epoch, stream


def sizes_only(n_atoms):
    return SimpleNamespace(n_atoms=np.asarray(n_atoms))


def n_loaders() -> int:
    return sum(thread.name == "medrec-loader" for thread in threading.enumerate())


# --------------------------------------------------------------------------- plan


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_every_molecule_once_in_ceil_batches(n, size, epoch, shuffle):
    rows = np.arange(n) * 3 + 1
    library = sizes_only(np.random.default_rng(0).integers(1, 60, 3 * n + 2))
    plan = plan_epoch(library, rows, size, 7, epoch, shuffle)
    assert sorted(np.concatenate([np.zeros(0, int), *plan]).tolist()) == rows.tolist()
    assert len(plan) == -(-n // size)
    assert sorted(map(len, plan))[1:] == [size] * (len(plan) - 1)
    again = plan_epoch(library, rows, size, 7, epoch, shuffle)
    assert all(np.array_equal(a, b) for a, b in zip(plan, again, strict=True))


def test_order_follows_from_seed_and_epoch_and_unshuffled_is_kept():
    library, rows = sizes_only(np.full(200, 9)), np.arange(200)
    orders = {
        tuple(np.concatenate(plan_epoch(library, rows, 16, seed, epoch)))
        for seed in (1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6
    kept = plan_epoch(library, rows[::-1], 16, 1, 0, shuffle=False)
    assert np.array_equal(np.concatenate(kept), rows[::-1])


def test_a_batch_holds_molecules_of_similar_size():
    n_atoms = np.random.default_rng(0).integers(1, 100, 50 * 32)
    plan = plan_epoch(sizes_only(n_atoms), np.arange(len(n_atoms)), 32, 0, 0)
    spread = np.mean([np.ptp(n_atoms[batch]) for batch in plan])
    assert spread < 2.5 * 100 / WINDOW_BATCHES  # about 100 without sorting
    means = [n_atoms[batch].mean() for batch in plan]
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.5  # near 1 were they in order


def test_windows_and_the_smaller_batch_are_random():
    """Molecules of one size do not always meet the same others, nor always the smaller batch."""
    n_atoms = np.arange(1, 101)
    mates, smallest = set(), []
    for epoch in range(60):
        plan = plan_epoch(sizes_only(n_atoms), np.arange(100), 3, 0, epoch)
        mates |= set(next(batch for batch in plan if 50 in batch))
        smallest.append(int(next(batch for batch in plan if len(batch) == 1)[0]))
    assert len(mates) > 15
    # it lies in the last window, whose four molecules are random ones
    assert min(smallest) < 25
    assert max(smallest) > 75
    assert 30 < np.mean(smallest) < 70


# --------------------------------------------------------------------------- collate


def test_collate_is_a_loop_over_molecules(small_library):
    """Against plain slices of the arrays of one molecule after the other."""
    rows = np.array([12, 3, 6, 11, 3, 0])
    batch = collate(small_library, rows)
    arrays, starts = small_library.arrays, small_library.starts
    n = int(small_library.n_atoms[rows].max())
    assert batch.n_slots == n
    assert batch.n_molecules == len(rows)
    edges, attributes, angles, torsions = [], [], [], []
    for b, row in enumerate(rows):
        atom, bond, angle, torsion, pair, _ = (
            slice(starts[row, k], starts[row + 1, k]) for k in range(6)
        )
        m = atom.stop - atom.start
        assert batch.mask[b].tolist() == [i < m for i in range(n)]
        for name in ("x", "position", "centrality"):
            values = getattr(batch, name)[b].numpy()
            assert np.array_equal(values[:m], arrays[name][atom]), name
            assert not values[m:].any(), name
        spd = np.full((n, n), UNREACHABLE)
        spd[:m, :m] = arrays["spd"][pair].reshape(m, m)
        assert np.array_equal(batch.spd[b], spd)
        assert bool(batch.placed[b]) == bool(arrays["placed"][row])
        assert np.array_equal(batch.targets[b], small_library.targets[row])
        for (i, j), kind in zip(arrays["bond"][bond], arrays["bond_attr"][bond], strict=True):
            edges += [(b * n + int(i), b * n + int(j)), (b * n + int(j), b * n + int(i))]
            attributes += [kind.tolist()] * 2
        angles += [[b * n + int(i) for i in item] for item in arrays["angle"][angle]]
        torsions += [[b * n + int(i) for i in item] for item in arrays["torsion"][torsion]]
    assert batch.edge_index.T.tolist() == [list(edge) for edge in edges]
    assert batch.edge_attr.tolist() == attributes
    assert batch.angle.tolist() == angles
    assert batch.torsion.tolist() == torsions
    assert batch.rows.tolist() == rows.tolist()


def test_flat_numbers_name_the_right_atoms(small_library):
    """Bonded atoms are one bond apart, the ends of an angle two or less, of a torsion three."""
    batch = collate(small_library, np.arange(len(small_library)))
    n = batch.n_slots

    def path(first, last):
        assert torch.equal(first // n, last // n)
        return batch.spd[first // n, first % n, last % n]

    assert batch.mask.flatten()[batch.edge_index].all()
    assert (path(*batch.edge_index) == 1).all()
    assert torch.equal(batch.edge_index[:, ::2], batch.edge_index[:, 1::2].flip(0))
    anchor, source, target = batch.angle.T
    assert len(anchor) > 20
    assert (path(anchor, source) == 1).all()
    assert (path(anchor, target) == 1).all()
    assert (source != target).all()
    assert len(batch.torsion) > 20
    for a, b in zip(batch.torsion.T, batch.torsion.T[1:], strict=False):
        assert (path(a, b) == 1).all()
    i, j = batch.position.flatten(0, 1)[batch.edge_index]
    bond_lengths = (i - j).norm(dim=1)[batch.placed[batch.edge_index[0] // n]]
    assert bond_lengths.min() > 1.0
    assert bond_lengths.max() < 1.8


def test_dtypes_and_a_batch_of_nothing(small_library):
    full, empty = collate(small_library, np.arange(3)), collate(small_library, np.arange(0))
    expected = {
        "x": torch.int64, "mask": torch.bool, "position": torch.float32, "placed": torch.bool,
        "edge_index": torch.int64, "edge_attr": torch.int64, "angle": torch.int64,
        "torsion": torch.int64, "spd": torch.uint8, "centrality": torch.float32,
        "targets": torch.float64, "rows": torch.int64,
    }  # fmt: skip
    for name, dtype in expected.items():
        for batch in (full, empty):
            assert getattr(batch, name).dtype == dtype, name
            assert getattr(batch, name).is_contiguous(), name
    assert empty.n_molecules == 0
    assert empty.x.shape == (0, 1, 9)
    assert empty.edge_index.shape == (2, 0)
    assert empty.targets.shape == (0, 1)


def test_changing_a_batch_does_not_change_the_library(small_library):
    collate(small_library, np.arange(4)).targets.fill_(0.0)
    assert (collate(small_library, np.arange(4)).targets > 0).all()


# --------------------------------------------------------------------------- stream


def test_stream_yields_the_batches_in_order(small_library):
    plan = plan_epoch(small_library, np.arange(16), 3, 0, 0)
    with stream(small_library, plan, prefetch=2) as batches:
        got = list(batches)
        assert [batch.rows.tolist() for batch in got] == [batch.tolist() for batch in plan]
        assert torch.equal(got[1].x, collate(small_library, plan[1]).x)
        assert next(batches, None) is None
    assert batches.waited_s > 0
    assert n_loaders() == 0


def test_an_error_of_the_thread_reaches_the_consumer(small_library):
    with stream(small_library, [np.arange(3), np.array([99]), np.arange(2)]) as batches:
        assert next(batches).n_molecules == 3
        with pytest.raises(IndexError, match="99"):
            next(batches)
    assert next(batches, None) is None
    assert n_loaders() == 0


def test_a_consumer_that_stops_early_leaves_no_thread(small_library):
    plan = [np.arange(2)] * 50
    with stream(small_library, plan, prefetch=1) as batches:
        next(batches)
        assert n_loaders() == 1
    assert n_loaders() == 0
    forgotten = stream(small_library, plan, prefetch=1)
    next(forgotten)
    thread = forgotten._thread
    del forgotten
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_no_more_is_prepared_than_asked_for_and_waiting_is_counted(small_library, monkeypatch):
    made = []

    def slow(library, rows):
        time.sleep(0.02)
        made.append(rows)
        return collate(library, rows)

    monkeypatch.setattr(loader, "collate", slow)
    with stream(small_library, [np.arange(2)] * 20, prefetch=3) as batches:
        next(batches)
        assert batches.waited_s > 0.01
        most = 1 + 3 + 1  # taken, ready, and one in hand
        deadline = time.monotonic() + 20
        while len(made) < most and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(made) == most
