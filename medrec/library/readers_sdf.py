"""SDF files: PCQM4Mv2, the original distribution of QM9, and one's own.

Records are found by their ``$$$$`` lines, so that any of millions is read without those before it.
A gzipped file has to be unpacked up to the record: unpack large ones once.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from rdkit import Chem, rdBase

from medrec.config_molecules import QM9Source, SDFSource
from medrec.data.tables import unreadable
from medrec.library.readers_files import (
    EXCLUDED,
    Geometry,
    SourceReader,
    SourceTable,
    check_units,
    number_columns,
    source_file,
    source_path,
    text_column,
)
from medrec.library.readers_qm import QM9_COLUMNS, QM9_FACTORS, QM9_TARGETS, excluded_numbers
from medrec.library.readers_tables import table_targets
from medrec.library.records import Record, Target
from quantum.base import DataError, InputError

ENDINGS = (".sdf", ".sdf.gz")
UNREADABLE = "RDKit cannot read the SDF record"
OTHER_MOLECULE = "SDF record and row of the table are different molecules"
NO_NUMBER = "a target of the SDF record is no number"
_BLOCK_BYTES = 16 << 20
_LARGEST_RECORD_BYTES = 256 << 20
# begins with a literal, which the search skips to: ten times as fast as ^ with MULTILINE
_DELIMITER = re.compile(rb"\n\$\$\$\$[^\n]*(?=\n)")


@dataclass(frozen=True)
class RecordTable:
    """What a table says about the records of an SDF, row by row.

    Attributes
    ----------
    values : float64 array (rows, T)
    names : list of str or None
        Titles that the records should have.
    smiles : list of str or None
        Of the same molecules, heavy atoms to be compared.
    """

    path: Path
    values: npt.NDArray[np.float64]
    names: list[str] | None = None
    smiles: list[str] | None = None


class SDFReader(SourceReader):
    """Records of SDF files, one file after the other (V2000 or V3000).

    The molecular graph is that of the record, so that atoms of both views come in one order. A
    record without a third dimension (all z are 0, and not marked as 3D) has no positions.

    Parameters
    ----------
    table : RecordTable or None
        Targets; without it they are data fields of the records.
    excluded : collection of int
        Numbers in titles (``gdb_7``) to leave out.
    """

    def __init__(
        self,
        sdf: Sequence[Path],
        targets: Sequence[Target],
        *,
        table: RecordTable | None = None,
        more_files: Sequence[Path] = (),
        excluded: frozenset[int] = frozenset(),
        limit: int | None = None,
    ) -> None:
        self._sdf = tuple(sdf)
        self._starts = [_record_starts(path, *_state(path), limit) for path in sdf]
        self._first = np.cumsum([0, *(len(starts) - 1 for starts in self._starts)])
        n_records = int(self._first[-1])
        files = [*sdf, *([table.path] if table else []), *more_files]
        super().__init__(files, targets, n_records, limit)
        self._table, self._excluded = table, excluded
        if table is not None and len(table.values) < len(self):
            raise DataError(
                f"{table.path}: {len(table.values)} rows for {len(self)} records of "
                f"{self._sdf[0].name}; expected a row for each record, in the same order"
            )

    def read(self, start: int, stop: int) -> Iterator[Record]:
        """Yield records; the identifier is the title, or the number from 0 if there is none."""
        rows = self._range(start, stop)
        for file, path in enumerate(self._sdf):
            first, last = int(self._first[file]), int(self._first[file + 1])
            a, b = max(rows.start, first), min(rows.stop, last)
            if a < b:
                texts = _record_texts(path, self._starts[file][a - first : b - first + 1])
                for number, text in enumerate(texts, start=a):
                    yield self._record(number, text)

    def _record(self, number: int, text: str) -> Record:
        title = text.partition("\n")[0].strip()
        smiles, mol, geometry = read_mol_block(text)
        targets, reason = self._targets(number, text)
        if _trailing_number(title) in self._excluded:
            reason = EXCLUDED
        elif mol is None:
            reason = UNREADABLE
        elif self._table is not None and not reason:
            reason = "" if self._same(number, title, mol) else OTHER_MOLECULE
        if self._table is not None and self._table.smiles is not None:
            smiles = self._table.smiles[number] or smiles
        return Record(title or str(number), smiles, mol, *geometry, targets, reason)

    def _targets(self, number: int, text: str) -> tuple[npt.NDArray[np.float64], str]:
        if self._table is not None:
            return self._table.values[number].copy(), ""
        if not self.targets:
            return np.zeros(0), ""
        fields = data_fields(text)
        targets, reason = np.full(len(self.targets), np.nan), ""
        for position, target in enumerate(self.targets):
            value = fields.get(target.name, "")
            try:
                targets[position] = float(value) if value else np.nan
            except ValueError:
                reason = NO_NUMBER
        return targets, reason

    def _same(self, number: int, title: str, mol: Chem.Mol) -> bool:
        assert self._table is not None
        names, smiles = self._table.names, self._table.smiles
        if names is not None and title and title != names[number]:
            return False
        if smiles is None or not smiles[number]:
            return True
        with rdBase.BlockLogs():
            other = Chem.MolFromSmiles(smiles[number], sanitize=False)
        return other is None or _heavy_atoms(other) == _heavy_atoms(mol)


def read_mol_block(text: str) -> tuple[str, Chem.Mol | None, Geometry]:
    """SMILES, molecule without hydrogens as atoms, and geometry with all atoms of a record.

    Returns
    -------
    smiles : str
        Empty if RDKit does not read the record.
    mol : Chem.Mol or None
    geometry : Geometry
        In the order of the record; none if the record is flat.
    """
    with rdBase.BlockLogs():
        try:
            full = Chem.MolFromMolBlock(text, sanitize=True, removeHs=False)
            if full is None or not full.GetNumAtoms():
                return "", None, Geometry()
            plain = Chem.RemoveHs(full)
            smiles: str = Chem.MolToSmiles(plain)
        except (RuntimeError, ValueError):
            return "", None, Geometry()
    return smiles, plain, _geometry(full)


def _geometry(mol: Chem.Mol) -> Geometry:
    conformer = mol.GetConformer()
    if not conformer.Is3D():  # neither marked as 3D nor with a z: a planar molecule may be marked
        return Geometry()
    position = conformer.GetPositions().astype(np.float32)
    element = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
    return Geometry(element, position)


def data_fields(text: str) -> dict[str, str]:
    """Data fields of a record: name to its first line, stripped."""
    pattern = re.compile(r"^>[^\n<]*<([^>\n]*)>[^\n]*\n([^\n]*)", re.MULTILINE)
    return {match[1].strip(): match[2].strip() for match in pattern.finditer(text)}


def _heavy_atoms(mol: Chem.Mol) -> list[int]:
    return sorted(n for atom in mol.GetAtoms() if (n := atom.GetAtomicNum()) > 1)


def _trailing_number(title: str) -> int:
    match = re.search(r"(\d+)$", title)
    return int(match[1]) if match else -1


# --------------------------------------------------------------------------- places of records


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


@lru_cache(maxsize=32)
def _record_starts(
    path: Path, _size: int, _mtime_ns: int, limit: int | None
) -> npt.NDArray[np.int64]:
    """First bytes of the records, and the end of the last one: int64 (R + 1,)."""
    try:
        with _opened(path) as handle:
            starts = _scan(handle, limit)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    if len(starts) < 2:
        raise DataError(f"{path}: no records; expected an SDF file with at least one")
    return starts


def _scan(handle: IO[bytes], limit: int | None) -> npt.NDArray[np.int64]:
    # the rest begins with the line end before a record, which a delimiter begins with
    starts, rest, offset = [0], b"\n", -1
    while block := handle.read(_BLOCK_BYTES):
        data, end = rest + block, 0
        for match in _DELIMITER.finditer(data):
            end = match.end()
            starts.append(offset + end + 1)
            if limit is not None and len(starts) > limit:
                return np.array(starts, dtype=np.int64)
        rest, offset = data[end:], offset + end
        if len(rest) > _LARGEST_RECORD_BYTES:
            raise OSError("no end of a record")
    if rest.strip().strip(b"$"):  # the last record may lack its delimiter
        starts.append(offset + len(rest))
    return np.array(starts, dtype=np.int64)


def _record_texts(path: Path, starts: npt.NDArray[np.int64]) -> Iterator[str]:
    try:
        with _opened(path) as handle:
            handle.seek(int(starts[0]))
            for size in np.diff(starts).tolist():
                yield handle.read(size).decode("utf-8", errors="replace").replace("\r\n", "\n")
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


# --------------------------------------------------------------------------- sources


def open_sdf(source: SDFSource, limit: int | None = None) -> SDFReader:
    """Open SDF files, with targets from a table or from their data fields.

    The table may go on after the last record: PCQM4Mv2's lists molecules without coordinates there.

    Raises
    ------
    InputError, DataError
        No file, no such column, fewer rows than records, another number of units than targets.
    """
    units = check_units(source.target_columns, source.units)
    sdf = sdf_files(source.path)
    names = source.target_columns
    if source.targets is None:
        targets = [
            Target(name, unit, "regression") for name, unit in zip(names, units, strict=True)
        ]
        return SDFReader(sdf, targets, limit=limit)
    if not names:
        raise InputError(
            "source.target_columns is empty although source.targets is given; expected the names "
            f"of columns of {source.targets}"
        )
    table = SourceTable(source.targets, "source.targets")
    with_smiles = ["smiles"] if table.has("smiles") and "smiles" not in names else []
    frame = table.read([*names, *with_smiles])
    values = number_columns(frame, names, table.path)
    smiles = text_column(frame, "smiles") if with_smiles else None
    rows = RecordTable(table.path, values, smiles=smiles)
    return SDFReader(sdf, table_targets(names, units, values), table=rows, limit=limit)


def sdf_files(path: Path) -> list[Path]:
    """The SDF file at a path, or those in the folder there, by name.

    Raises
    ------
    InputError
        If there is none.
    """
    found = source_path(path, "source.path")
    if found.is_file():
        return [found]
    files = sorted(item for item in found.iterdir() if item.name.lower().endswith(ENDINGS))
    if not files:
        raise InputError(f"source.path: folder {found} has no file that ends in .sdf or .sdf.gz")
    return files


def open_gdb9(source: QM9Source, limit: int | None = None) -> SDFReader:
    """Open QM9 as distributed with MoleculeNet: gdb9.sdf and, beside it, gdb9.sdf.csv.

    Raises
    ------
    InputError, DataError
        As `open_sdf`.
    """
    sdf = source_file(source.path, "source.path")
    beside = [sdf.with_name(f"{sdf.name.removesuffix('.gz')}.csv{end}") for end in ("", ".gz")]
    table = SourceTable(next((p for p in beside if p.is_file()), beside[0]), "source.path")
    columns = [column.csv for column in QM9_COLUMNS.values()]
    frame = table.read(["mol_id", *columns])
    values = number_columns(frame, columns, table.path) * QM9_FACTORS
    rows = RecordTable(table.path, values, names=text_column(frame, "mol_id"))
    more, excluded = [], frozenset[int]()
    if source.exclude is not None:
        more = [source_file(source.exclude, "source.exclude")]
        excluded = excluded_numbers(more[0])
    return SDFReader(
        [sdf], QM9_TARGETS, table=rows, more_files=more, excluded=excluded, limit=limit
    )
