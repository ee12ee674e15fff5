"""Read an exported feature table; align it to molecules; say what is missing.

The format is written by the quantum half (``species.parquet``, ``elf_features.npy``,
``elf_mask.npy``, ``conformers.npz``, ``manifest.json``). Nothing here knows a quantum-chemistry
program.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from quantum.base import InputError, read_json
from quantum.molecule import Species

# what a damaged file, or one with Python objects in place of numbers, may raise
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class FeatureTable:
    """Features and conformers of n species.

    Attributes
    ----------
    species : pandas.DataFrame
        One row per species: key, SMILES, what it has, and the reason for what it has not.
    elf : ndarray (n, K) of float32
        Zero where missing.
    elf_mask : ndarray (n,) of bool
        Where ``elf`` holds a feature.
    offsets, atomic_numbers, coords_angstrom : ndarray
        Conformer i is ``coords_angstrom[offsets[i]:offsets[i + 1]]``; an empty range is missing.
    """

    folder: Path
    manifest: dict[str, Any]
    species: pd.DataFrame
    elf: npt.NDArray[np.float32]
    elf_mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    atomic_numbers: npt.NDArray[np.int16]
    coords_angstrom: npt.NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path) -> FeatureTable:
        """Open an export folder; arrays are memory-mapped.

        Raises
        ------
        InputError
            If a file is missing or the parts disagree about the number of species.
        """
        manifest = read_json(folder / "manifest.json")
        try:
            species = pd.read_parquet(folder / "species.parquet")
            elf = np.load(folder / "elf_features.npy", mmap_mode="r", allow_pickle=False)
            mask = np.load(folder / "elf_mask.npy", allow_pickle=False)
            with np.load(folder / "conformers.npz", allow_pickle=False) as packed:
                parts = {name: packed[name] for name in packed.files}
            lengths = {len(species), len(elf), len(mask), len(parts["offsets"]) - 1}
            n = manifest["n_species"]
            table = cls(folder, manifest, species, elf, mask, **parts)
        except _DAMAGE as error:
            raise InputError(
                f"feature table is incomplete or damaged: {folder} ({type(error).__name__}); "
                "export it again with `medrec features run`"
            ) from error
        if lengths != {n}:
            raise InputError(
                f"feature table parts hold {sorted(lengths)} rows, expected {n}: {folder}"
            )
        return table

    def _repr_html_(self) -> str:
        from medrec.notebook import features_html

        return features_html(self)

    @property
    def digest(self) -> str:
        """Digest of everything that went into the table."""
        return str(self.manifest["digest"])

    @property
    def n_features(self) -> int:
        """Number of features K."""
        return int(self.elf.shape[1])

    def coverage(self) -> dict[str, int]:
        """How many species have what, and why others have not."""
        return dict(self.manifest["coverage"])

    def rows(self, species: Sequence[Species]) -> npt.NDArray[np.int64]:
        """Row of each species in this table; -1 where it has none."""
        index = {key: i for i, key in enumerate(self.species["species_key"])}
        return np.array([index.get(item.key, -1) for item in species], dtype=np.int64)

    def columns(self, sets: Sequence[str] | None = None) -> npt.NDArray[np.int64]:
        """Columns of some feature sets, in the order of the table; None means all.

        Raises
        ------
        InputError
            If the table has no set of that name.
        """
        sizes: dict[str, int] = self.manifest["feature_sets"]
        unknown = sorted(set(sets or ()) - set(sizes))
        if unknown:
            raise InputError(
                f"feature table {self.folder.name} has no sets {unknown}, "
                f"expected some of: {', '.join(sizes)}"
            )
        # JSON files of this project have sorted keys, so the order of a dict in them says nothing
        order: list[str] = self.manifest.get("feature_order", sorted(sizes))
        owner = np.repeat(order, [sizes[name] for name in order])
        return np.flatnonzero(np.isin(owner, list(sizes if sets is None else sets)))

    def volumes(
        self, species: Sequence[Species]
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
        """Volumes (len(species), 3, p, p, p) of ELF, rho and |grad rho|; zero where missing."""
        try:
            with np.load(self.folder / "elf_volumes.npz", allow_pickle=False) as packed:
                stored, owner = packed["volumes"], packed["rows"]
        except _DAMAGE as error:
            raise InputError(
                f"feature table has no readable volumes: {self.folder} ({type(error).__name__})"
            ) from error
        place = {int(row): i for i, row in enumerate(owner)}
        rows = self.rows(species)
        mask = np.array([int(row) in place for row in rows], dtype=bool)
        out = np.zeros((len(rows), *stored.shape[1:]), dtype=np.float16)
        for i in np.flatnonzero(mask):
            out[i] = stored[place[int(rows[i])]]
        return out, mask

    def align(
        self, species: Sequence[Species], sets: Sequence[str] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """ELF features in the order of ``species``, standardised over the species that have them.

        Parameters
        ----------
        sets : sequence of str, optional
            Feature sets to use; all if not given.

        Returns
        -------
        values : ndarray (len(species), K)
            Mean 0 and standard deviation 1 per feature over present rows; 0 where missing.
        mask : ndarray (len(species),)
            True where present.
        """
        rows = self.rows(species)
        mask = (rows >= 0) & self.elf_mask[np.maximum(rows, 0)]
        columns = self.columns(sets)
        values = np.zeros((len(rows), len(columns)), dtype=np.float32)
        if mask.any():
            present = np.asarray(self.elf[rows[mask]])[:, columns]
            spread = present.std(axis=0)
            values[mask] = (present - present.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)
        return values, mask

    def conformer(self, row: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]] | None:
        """Atomic numbers and coordinates (Angstrom) of a row; None where missing."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        if row < 0 or part.start == part.stop:
            return None
        return self.atomic_numbers[part], self.coords_angstrom[part]
