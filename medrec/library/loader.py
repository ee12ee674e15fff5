"""From a library on disk to batches on a device.

`plan_epoch` says which molecules share a batch, `collate` reads a batch from the memory maps
without a loop over molecules, and `stream` does so in a background thread, ahead of the network.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medrec.library.arrays import UNREACHABLE, MoleculeLibrary
from medrec.library.batches import MoleculeBatch

Rows = npt.NDArray[np.int64]

WINDOW_BATCHES = 16
"""Molecules are sorted by size within so many batches, at random otherwise."""

# --------------------------------------------------------------------------- which molecules


def plan_epoch(
    library: MoleculeLibrary,
    rows: Rows,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
) -> list[Rows]:
    """Cut molecules into batches; the same on every worker, each molecule exactly once.

    Shuffled, molecules of similar size meet in a batch, so that little of it is padding: all are
    permuted, windows of `WINDOW_BATCHES` batches are sorted by number of atoms, cut, and the
    batches permuted. Which molecules share a window is random in every epoch, and the one batch
    that may be smaller lies anywhere in its window rather than always at the largest molecules.

    Parameters
    ----------
    rows : int array (M,)
        Numbers of molecules in the library.
    batch_size : int
        Of the whole run; a worker takes ``batch[rank::world_size]``.
    seed, epoch : int
        What the order follows from.
    shuffle : bool
        False keeps the order of ``rows``, for predictions.

    Returns
    -------
    list of int arrays
        ceil(M / batch_size) batches.
    """
    if not shuffle:
        return np.split(rows, np.arange(batch_size, len(rows), batch_size)) if len(rows) else []
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(rows)
    batches: list[Rows] = []
    width = WINDOW_BATCHES * batch_size
    for start in range(0, len(rows), width):
        window = shuffled[start : start + width]
        # stable, so that molecules of equal size stay in random order
        window = window[np.argsort(library.n_atoms[window], kind="stable")]
        sizes = np.full(-(-len(window) // batch_size), batch_size)
        sizes[-1] = len(window) - (len(sizes) - 1) * batch_size
        batches += np.split(window, np.cumsum(rng.permutation(sizes))[:-1])
    return [batches[i] for i in rng.permutation(len(batches))]


# --------------------------------------------------------------------------- one batch


def collate(library: MoleculeLibrary, rows: Rows) -> MoleculeBatch:
    """Read molecules into padded tensors on the CPU.

    Ragged arrays hold molecules row after row, and so does a padded array under its mask: one
    boolean assignment puts everything into its place.

    Parameters
    ----------
    rows : int array (B,)
        Numbers of molecules; none gives a batch of no molecules with one slot.
    """
    arrays = {name: np.asarray(values) for name, values in library.arrays.items()}
    atoms, n_atoms = library.rows_of("atom", rows)
    n_slots = int(n_atoms.max(initial=1))
    mask = np.arange(n_slots) < n_atoms[:, None]
    pair_mask = mask[:, :, None] & mask[:, None, :]
    pairs, _ = library.rows_of("pair", rows)

    bonds, n_bonds = library.rows_of("bond", rows)
    bond = _flat(arrays["bond"][bonds], n_bonds, n_slots)
    angles, n_angles = library.rows_of("angle", rows)
    torsions, n_torsions = library.rows_of("torsion", rows)
    fields: dict[str, npt.NDArray[Any]] = {
        "x": _padded(mask, arrays["x"][atoms].astype(np.int64), 0),
        "mask": mask,
        "position": _padded(mask, arrays["position"][atoms], 0),
        "placed": arrays["placed"][rows],
        # columns 2 e and 2 e + 1 are the two directions of bond e
        "edge_index": np.stack([bond, bond[:, ::-1]], axis=1).reshape(-1, 2).T,
        "edge_attr": arrays["bond_attr"][bonds].astype(np.int64).repeat(2, axis=0),
        "angle": _flat(arrays["angle"][angles], n_angles, n_slots),
        "torsion": _flat(arrays["torsion"][torsions], n_torsions, n_slots),
        "spd": _padded(pair_mask, arrays["spd"][pairs], UNREACHABLE),
        "centrality": _padded(mask, arrays["centrality"][atoms], 0),
        "targets": library.targets[rows],
        "rows": np.array(rows, dtype=np.int64),
    }
    return MoleculeBatch(
        **{name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in fields.items()}
    )


def _padded(
    mask: npt.NDArray[np.bool_], values: npt.NDArray[Any], padding: int
) -> npt.NDArray[Any]:
    """Values (S, ...), molecule after molecule, at the true places of a mask."""
    out = np.full(mask.shape + values.shape[1:], padding, dtype=values.dtype)
    out[mask] = values
    return out


def _flat(local: npt.NDArray[np.uint16], counts: Rows, n_slots: int) -> npt.NDArray[np.int64]:
    """Atom numbers inside molecules (S, k) to flat numbers ``b * n_slots + i``."""
    offsets = np.repeat(np.arange(len(counts)) * n_slots, counts)
    return local + offsets[:, None]


# --------------------------------------------------------------------------- many batches


class BatchStream(Iterator[MoleculeBatch]):
    """Batches made by a background thread. Use it as a context manager, or exhaust it.

    Attributes
    ----------
    waited_s : float
        Seconds for which the consumer waited for batches so far.
    """

    def __init__(
        self,
        library: MoleculeLibrary,
        batches: Sequence[Rows],
        device: torch.device | str,
        prefetch: int,
        pin: bool,
    ) -> None:
        self._stop = threading.Event()
        self.waited_s = 0.0
        self._left = len(batches)
        self._device = torch.device(device)
        self._queue: queue.Queue[MoleculeBatch | Exception] = queue.Queue(prefetch)
        self._thread = threading.Thread(
            # no reference to this object, so that one forgotten half-way is collected and stops
            target=_produce,
            args=(library, batches, pin, self._queue, self._stop),
            name="medrec-loader",
            daemon=True,
        )
        self._thread.start()

    def __next__(self) -> MoleculeBatch:
        if not self._left or self._stop.is_set():
            raise StopIteration
        start = time.perf_counter()
        item = self._queue.get()
        self.waited_s += time.perf_counter() - start
        if isinstance(item, Exception):
            self.close()
            raise item
        self._left -= 1
        return item.to(self._device, non_blocking=True)

    def close(self) -> None:
        """Stop the thread and forget what it has prepared."""
        self._stop.set()
        with suppress(queue.Empty):  # wakes a thread that waits for a free place
            while True:
                self._queue.get_nowait()
        self._thread.join()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._stop.set()


def stream(
    library: MoleculeLibrary,
    batches: Sequence[Rows],
    device: torch.device | str = "cpu",
    prefetch: int = 4,
    pin: bool | None = None,
) -> BatchStream:
    """Collate batches in a background thread, a few ahead, and copy them to a device.

    Parameters
    ----------
    prefetch : int
        Batches that may wait ready.
    pin : bool, optional
        Page-locked memory, from which a GPU copies while it computes; by default on CUDA.

    Returns
    -------
    BatchStream
        Yields the batches in order. An error of the thread is raised in the consumer in place of
        the batch that failed.
    """
    if pin is None:
        pin = torch.device(device).type == "cuda"
    return BatchStream(library, batches, device, prefetch, pin)


def _produce(
    library: MoleculeLibrary,
    batches: Sequence[Rows],
    pin: bool,
    ready: queue.Queue[MoleculeBatch | Exception],
    stop: threading.Event,
) -> None:
    """Body of the background thread."""
    for rows in batches:
        try:
            batch = collate(library, rows)
            item: MoleculeBatch | Exception = batch.pin_memory() if pin else batch
        except Exception as error:  # noqa: BLE001 - any error belongs to the consumer
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.5)  # looks at `stop` now and then
                break
            except queue.Full:
                continue
        if stop.is_set() or isinstance(item, Exception):
            return
