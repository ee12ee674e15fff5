"""A molecule library: flat arrays in one folder, opened through memory maps.

::

    <home>/molecules/<name>-<digest8>/
        manifest.json       format, counts, targets, rejected records by reason, provenance
        molecules.parquet   identifier, smiles (canonical), scaffold, n_atoms, n_bonds
        rejected.parquet    identifier, smiles, reason
        <array>.npy         see `ARRAYS`

Ragged arrays lie one molecule after another; ``starts`` (M + 1, 6) says where. Atom numbers inside
a molecule are local, from 0. Letters: M molecules, N atoms, E bonds (each once), A angles, R
torsions, P = sum of n^2 ordered atom pairs, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.library.records import Target
from quantum.base import InputError, StoreError, digest, read_json

FORMAT = 1
UNREACHABLE = 255
"""Path entry of atoms in different parts of a molecule, and of paths of 255 bonds and more."""

RAGGED = ("atom", "bond", "angle", "torsion", "pair", "molecule")
"""Columns of ``starts``, in this order; the last one is 0, 1, 2, ..."""

ARRAYS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    # name: (what a row belongs to, dtype, shape of a row)
    "x": ("atom", "uint8", (9,)),  # OGB-style categories of `medrec.molecules.structure`
    "position": ("atom", "float32", (3,)),  # Angstrom, 0 without a conformer
    "centrality": ("atom", "float32", (2,)),  # eigenvector, betweenness
    "bond": ("bond", "uint16", (2,)),  # local atom numbers
    "bond_attr": ("bond", "uint8", (3,)),  # type, stereo, conjugated
    "angle": ("angle", "uint16", (3,)),  # anchor, source, destination
    "torsion": ("torsion", "uint16", (4,)),  # proper, over rotatable and ring bonds
    "spd": ("pair", "uint8", ()),  # bonds on the shortest path, row by row
    "placed": ("molecule", "bool", ()),  # has 3D coordinates
}
"""``targets`` (M, T) float64 comes on top; NaN is missing."""


@dataclass(frozen=True)
class MoleculeLibrary:
    """An opened library. Cheap to open and to hand to another process by its folder."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> MoleculeLibrary:
        """Open a library.

        Raises
        ------
        InputError
            If the folder is no library, or of another format.
        """
        if not (folder / "manifest.json").is_file():
            raise InputError(f"{folder} is no molecule library: it has no manifest.json")
        manifest = read_json(folder / "manifest.json")
        stated = manifest.get("format") if isinstance(manifest, dict) else None
        if stated != FORMAT:
            raise InputError(
                f"{folder} has library format {stated}; expected {FORMAT}. Import it again"
            )
        return cls(folder, manifest)

    @property
    def digest(self) -> str:
        """SHA-256 over source, settings and format (64 hexadecimal digits)."""
        value: str = self.manifest["digest"]
        return value

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def hydrogens(self) -> bool:
        """Whether hydrogens are atoms."""
        return bool(self.manifest["hydrogens"])

    @property
    def targets_info(self) -> tuple[Target, ...]:
        """Columns of `targets`."""
        return tuple(Target(**item) for item in self.manifest["targets"])

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First rows (M + 1, 6) of every molecule; columns as in `RAGGED`."""
        return np.asarray(self._open("starts", "int64", None, (len(RAGGED),)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def n_atoms(self) -> npt.NDArray[np.int64]:
        """Atoms of each molecule (M,)."""
        return np.diff(self.starts[:, 0])

    @cached_property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Memory-mapped arrays by name."""
        rows = dict(zip(RAGGED, self.starts[-1].tolist(), strict=True))
        return {
            name: self._open(name, dtype, rows[of], tail)
            for name, (of, dtype, tail) in ARRAYS.items()
        }

    @cached_property
    def targets(self) -> npt.NDArray[np.float64]:
        """Targets (M, T) in the units of `targets_info`; NaN is missing."""
        n_targets = len(self.manifest["targets"])
        return np.asarray(self._open("targets", "float64", len(self), (n_targets,)))

    @cached_property
    def molecules(self) -> pd.DataFrame:
        """One row per molecule: identifier, smiles, scaffold, n_atoms, n_bonds."""
        return self._table("molecules")

    @cached_property
    def rejected(self) -> pd.DataFrame:
        """Records that were left out: identifier, smiles, reason."""
        return self._table("rejected")

    def rows_of(
        self, what: str, molecules: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows of a ragged array for some molecules, without a loop over them.

        Parameters
        ----------
        what : str
            One of `RAGGED`.
        molecules : int array (B,)

        Returns
        -------
        rows : int array (S,)
            Rows of the flat array, molecule after molecule.
        counts : int array (B,)
            How many of them each molecule has.
        """
        column = RAGGED.index(what)
        first = self.starts[molecules, column]
        counts = self.starts[np.asarray(molecules) + 1, column] - first
        before = np.cumsum(counts) - counts
        rows = np.arange(int(counts.sum())) + np.repeat(first - before, counts)
        return rows, counts

    def _open(
        self, name: str, dtype: str, rows: int | None, tail: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Array with as many rows as expected; None stands for one or more."""
        array = self._read(name)
        expected = (max(len(array), 1) if rows is None else rows, *tail)
        if array.dtype != dtype or array.shape != expected:
            raise StoreError(
                f"array {self._path(name)} of a molecule library is {array.dtype} {array.shape}; "
                f"expected {dtype} {expected}. Delete the library and import it again"
            )
        return array

    def _read(self, name: str) -> npt.NDArray[Any]:
        path = self._path(name)
        try:
            return np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise StoreError(
                f"array {path} of a molecule library cannot be read: {error}"
            ) from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _table(self, name: str) -> pd.DataFrame:
        path = self.folder / f"{name}.parquet"
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"table {path} of a molecule library cannot be read ({type(error).__name__})"
            ) from error


def library_digest(source: str, settings: dict[str, Any]) -> str:
    """Digest of a library: bytes of the source, settings without paths, format."""
    return digest({"source": source, "settings": settings, "format": FORMAT})
