"""QM9 as Parquet and QM8: targets with units, geometries.

QM9: Ramakrishnan et al., Sci. Data 1, 140022 (2014), B3LYP/6-31G(2df,p). QM8: Ramakrishnan et al.,
J. Chem. Phys. 143, 084111 (2015).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from medrec.config_molecules import QM8Source, QM9Source
from medrec.library.readers_files import (
    EXCLUDED,
    Geometry,
    SourceReader,
    SourceTable,
    number_columns,
    smiles_record,
    source_file,
    text_column,
)
from medrec.library.records import Record, Target
from medrec.loading import suggest
from quantum.base import DataError, InputError

HARTREE_IN_MEV = 27211.386245988
"""CODATA 2018."""

MISPLACED = "3D coordinates of another number of atoms"


class QM9Column(NamedTuple):
    """A property of QM9: column in Parquet, column in gdb9.sdf.csv, unit and factor to it."""

    parquet: str
    csv: str
    unit: str
    factor: float = 1.0


QM9_COLUMNS: dict[str, QM9Column] = {
    "alpha": QM9Column("Polarizability_bohr3", "alpha", "a0^3"),
    "gap": QM9Column("HOMO_LUMO_gap_au", "gap", "meV", HARTREE_IN_MEV),
    "homo": QM9Column("HOMO_au", "homo", "meV", HARTREE_IN_MEV),
    "lumo": QM9Column("LUMO_au", "lumo", "meV", HARTREE_IN_MEV),
    "mu": QM9Column("Dipole_debye", "mu", "D"),
    "cv": QM9Column("Heatcapacity_Cv_cal_mol_K", "cv", "cal/(mol K)"),
    "g": QM9Column("GibbsFreeEnergy_298K_au", "g298", "meV", HARTREE_IN_MEV),
    "h": QM9Column("Enthalphy_298K_au", "h298", "meV", HARTREE_IN_MEV),
    "r2": QM9Column("R2_bohr2", "r2", "a0^2"),
    "u": QM9Column("InternalEnergy_298K_au", "u298", "meV", HARTREE_IN_MEV),
    "u0": QM9Column("InternalEnergy_0K_au", "u0", "meV", HARTREE_IN_MEV),
    "zpve": QM9Column("ZPVE_au", "zpve", "meV", HARTREE_IN_MEV),
}
"""In the order, and to the units, in which papers quote errors. ``u0``, ``u``, ``h`` and ``g`` are
total energies, as in the files; `medrec.properties.targets.atom_reference` leads to energies of
atomisation."""

QM9_TARGETS: tuple[Target, ...] = tuple(
    Target(name, column.unit, "regression") for name, column in QM9_COLUMNS.items()
)
QM9_FACTORS = np.array([column.factor for column in QM9_COLUMNS.values()])

QM8_TARGETS: tuple[Target, ...] = tuple(
    Target(f"{what}-{method}", unit, "regression")
    for method in ("CC2", "PBE0", "CAM")
    for what, unit in (("E1", "Hartree"), ("E2", "Hartree"), ("f1", ""), ("f2", ""))
)
"""Two excitation energies and oscillator strengths by three methods. Energies stay in atomic units
(Hartree), in which MoleculeNet and papers after it average them with oscillator strengths."""


class ParquetGeometries:
    """Random access to a Parquet file of molecules with ``z`` and ``xyz_angstrom`` lists.

    One row group is held at a time.

    Parameters
    ----------
    columns : sequence of str
        Further columns.

    Raises
    ------
    InputError, DataError
        No file, not Parquet, or a column is missing.
    """

    def __init__(self, path: Path, key: str, columns: Sequence[str]) -> None:
        self.path = source_file(path, key)
        self.columns = ["index", "z", "xyz_angstrom", *columns]
        names = self._file.schema_arrow.names
        for name in self.columns:
            if name not in names:
                raise DataError(
                    f"{self.path}: no column '{name}'{suggest(name, names)}; the file has "
                    f"{', '.join(names)}"
                )
        for name in ("z", "xyz_angstrom"):
            kind = self._file.schema_arrow.field(name).type
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                raise DataError(
                    f"{self.path}: column '{name}' is {kind}; expected lists of numbers"
                )
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._held: tuple[int, pa.Table] | None = None

    @cached_property
    def _file(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path}: not readable as Parquet: truncated, damaged or another format; "
                "expected QM9 as Parquet, or gdb9.sdf"
            ) from error

    def __len__(self) -> int:
        return int(self.first[-1])

    def require_numbers(self, columns: Sequence[str]) -> None:
        """Complain about columns of another kind."""
        for name in columns:
            kind = self._file.schema_arrow.field(name).type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise DataError(f"{self.path}: column '{name}' is {kind}; expected numbers")

    @cached_property
    def index(self) -> npt.NDArray[np.int64]:
        """Numbers of the molecules in GDB-9, from 1, one per row."""
        try:
            column = self._file.read(columns=["index"])["index"]
            return np.asarray(column.to_numpy(), dtype=np.int64)
        except (OSError, pa.ArrowException, ValueError, TypeError) as error:
            raise self._unreadable(error) from error

    def slices(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Rows ``start`` to ``stop`` as tables, each from one row group."""
        while start < stop:
            group = int(np.searchsorted(self.first, start, side="right")) - 1
            end = min(stop, int(self.first[group + 1]))
            yield self._group(group).slice(start - int(self.first[group]), end - start)
            start = end

    def geometry(self, row: int) -> Geometry:
        """Geometry of one row."""
        return next(geometries(next(self.slices(row, row + 1))))

    def _group(self, number: int) -> pa.Table:
        if self._held is None or self._held[0] != number:
            try:
                table = self._file.read_row_group(number, columns=self.columns)
            except (OSError, pa.ArrowException) as error:
                raise self._unreadable(error) from error
            self._held = number, table.combine_chunks()
        return self._held[1]

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: rows not readable ({type(error).__name__}); expected a complete Parquet "
            "file"
        )


def geometries(table: pa.Table) -> Iterator[Geometry]:
    """Geometry of every row of a table; none where its lists do not fit each other."""
    z, xyz = (_lists(table[name]) for name in ("z", "xyz_angstrom"))
    for elements, flat in zip(z, xyz, strict=True):
        if not len(elements) or len(flat) != 3 * len(elements):
            yield Geometry()
        else:
            yield Geometry(elements.astype(np.uint8), flat.reshape(-1, 3).astype(np.float32))


def _lists(column: pa.ChunkedArray) -> Iterator[npt.NDArray[np.generic]]:
    for chunk in column.chunks:
        offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy(zero_copy_only=False)
        yield from (values[first:last] for first, last in pairwise(offsets))


class QM9ParquetReader(SourceReader):
    """QM9 as Parquet: index, smiles, z, xyz_angstrom and one column per property."""

    def __init__(self, source: QM9Source, limit: int | None = None) -> None:
        wanted = ["smiles", *(column.parquet for column in QM9_COLUMNS.values())]
        self._rows = ParquetGeometries(source.path, "source.path", wanted)
        self._rows.require_numbers([column.parquet for column in QM9_COLUMNS.values()])
        files = [self._rows.path]
        self._excluded: frozenset[int] = frozenset()
        if source.exclude is not None:
            files.append(source_file(source.exclude, "source.exclude"))
            self._excluded = excluded_numbers(files[-1])
        super().__init__(files, QM9_TARGETS, len(self._rows), limit)

    def read(self, start: int, stop: int) -> Iterator[Record]:
        """Yield records; the identifier is ``gdb_`` with the number in GDB-9."""
        rows = self._range(start, stop)
        for table in self._rows.slices(rows.start, rows.stop):
            numbers, smiles = (table[name].to_pylist() for name in ("index", "smiles"))
            values = np.column_stack(
                [table[c.parquet].to_numpy().astype(np.float64) for c in QM9_COLUMNS.values()]
            )
            for items in zip(numbers, smiles, values * QM9_FACTORS, geometries(table), strict=True):
                yield self._record(*items)

    def _record(
        self, number: int, smiles: str | None, targets: npt.NDArray[np.float64], geometry: Geometry
    ) -> Record:
        if number in self._excluded:
            reason = EXCLUDED
        else:
            reason = "" if geometry.position is not None else MISPLACED
        return smiles_record(f"gdb_{number}", smiles or "", targets, geometry, reason)


def excluded_numbers(path: Path) -> frozenset[int]:
    """Numbers of molecules to leave out: the first word of a line, as in uncharacterized.txt.

    Lines that do not begin with a number are headings; ``3054 compounds`` ends that file.

    Raises
    ------
    DataError
        If there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path}: not readable ({type(error).__name__})") from error
    found = [re.match(r"\s*(\d+)(?!\S)(?!\s+compounds)", line) for line in lines]
    numbers = frozenset(int(match[1]) for match in found if match)
    if not numbers:
        raise DataError(
            f"{path}: no numbers of molecules; expected lines that begin with a number in GDB-9"
        )
    return numbers


class QM8Reader(SourceReader):
    """QM8 as a table, with geometries of QM9 through a table of links.

    QM8 used the geometries of QM9. Two rows whose links lead to the same molecule of QM9 share its
    geometry although their targets differ; they are kept and counted in ``notes``.
    """

    def __init__(self, source: QM8Source, limit: int | None = None) -> None:
        if (source.qm9 is None) != (source.links is None):
            missing = "source.qm9" if source.qm9 is None else "source.links"
            raise InputError(f"{missing} is missing: geometries need both source.qm9 and links")
        table = SourceTable(source.path, "source.path")
        names = [target.name for target in QM8_TARGETS]
        frame = table.read(["smiles", *names])
        self._smiles = text_column(frame, "smiles")
        self._values = number_columns(frame, names, table.path)
        self._geometries: ParquetGeometries | None = None
        files = [table.path]
        self._row_in_qm9 = np.full(len(frame), -1, dtype=np.int64)
        if source.qm9 is not None and source.links is not None:
            self._geometries = ParquetGeometries(source.qm9, "source.qm9", ())
            links = SourceTable(source.links, "source.links")
            self._link(links)
            files += [self._geometries.path, links.path]
        super().__init__(files, QM8_TARGETS, len(frame), limit)

    def _link(self, links: SourceTable) -> None:
        assert self._geometries is not None
        pairs = number_columns(links.read(["row", "qm9_index"]), ["row", "qm9_index"], links.path)
        pairs = pairs[~np.isnan(pairs).any(axis=1)].astype(np.int64)
        outside = (pairs[:, 0] < 0) | (pairs[:, 0] >= len(self._smiles))
        if outside.any():
            raise DataError(
                f"{links.path}: column 'row': {outside.sum()} of {len(pairs)} values are no rows "
                f"of the table, which has {len(self._smiles)}; expected numbers from 0"
            )
        order = np.argsort(self._geometries.index, kind="stable")
        index = self._geometries.index[order]
        place = np.searchsorted(index, pairs[:, 1]).clip(max=len(index) - 1)
        known = index[place] == pairs[:, 1]
        self._row_in_qm9[pairs[known, 0]] = order[place[known]]
        linked = self._row_in_qm9[self._row_in_qm9 >= 0]
        shared = int((np.bincount(linked, minlength=1)[linked] > 1).sum())
        without = len(self._smiles) - len(linked)
        self.notes = (
            f"{shared} rows share the geometry of a molecule of QM9 with another row",
            f"{without} rows have no geometry",
        )

    def read(self, start: int, stop: int) -> Iterator[Record]:
        """Yield records; the identifier is the row, from 0."""
        for row in self._range(start, stop):
            geometry = Geometry()
            if self._geometries is not None and self._row_in_qm9[row] >= 0:
                geometry = self._geometries.geometry(int(self._row_in_qm9[row]))
            yield smiles_record(str(row), self._smiles[row], self._values[row].copy(), geometry)
