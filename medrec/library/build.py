"""Import of molecule libraries: records to shards, shards to one folder of arrays.

Records are encoded in slices; each becomes one file in ``<home>/molecules/.partial-<digest8>``.
Slices do not depend on each other, so that several processes can share them, and an interrupted
import goes on with those that are there. What comes out does not depend on how records were sliced.
"""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem, rdBase

from medrec.config_molecules import LibraryConfig, SmilesSource
from medrec.library.arrays import ARRAYS, FORMAT, RAGGED, MoleculeLibrary, library_digest
from medrec.library.readers import open_source
from medrec.library.readers_tables import conformer
from medrec.library.records import MoleculeReader, Record
from medrec.library.shards import FACTS, Shard, encode_records
from medrec.runs import Home
from quantum.base import (
    DataError,
    InputError,
    StoreError,
    provenance,
    publish_folder,
    write_json_atomic,
)

SHARD_RECORDS = 5000
_GROUP_ROWS = 65_536
_LARGEST = 1024
_MOLECULES = pa.schema(
    [
        ("identifier", pa.string()),
        ("smiles", pa.string()),
        ("scaffold", pa.string()),
        ("n_atoms", pa.int32()),
        ("n_bonds", pa.int32()),
    ]
)
_REJECTED = pa.schema(
    [("identifier", pa.string()), ("smiles", pa.string()), ("reason", pa.string())]
)


def _silent(done: int, total: int) -> None:
    """Show no progress."""


# --------------------------------------------------------------------------- whole import


def import_library(
    config: LibraryConfig,
    home: Home,
    progress: Callable[[int, int], None] = _silent,
    shard_records: int = SHARD_RECORDS,
) -> MoleculeLibrary:
    """Import a library in this process, go on with an unfinished one, or find a finished one.

    Parameters
    ----------
    progress : callable
        Told how many records of how many are encoded.

    Raises
    ------
    InputError, DataError
        If the source cannot be read, or none of its records can be used.
    """
    reader = open_source(config)
    folder = library_folder(config, reader, home)
    if folder.is_dir():
        return MoleculeLibrary.load(folder)
    shards = []
    for start, stop in slices(len(reader), shard_records):
        shards.append(_encode_slice(config, reader, start, stop, partial_folder(folder)))
        progress(stop, len(reader))
    return finish_library(config, shards, folder, reader)


def library_folder(config: LibraryConfig, reader: MoleculeReader, home: Home) -> Path:
    """Where the finished library is, ``<home>/molecules/<name>-<digest8>``."""
    return home.molecules / f"{config.name}-{_digest(config, reader)[:8]}"


def partial_folder(folder: Path) -> Path:
    """Where the shards of a library are until it is finished."""
    return folder.parent / f".partial-{folder.name.rpartition('-')[2]}"


def slices(n_records: int, shard_records: int = SHARD_RECORDS) -> list[tuple[int, int]]:
    """First record, and the one after the last, of every shard."""
    starts = range(0, n_records, shard_records)
    return [(start, min(start + shard_records, n_records)) for start in starts]


def encode_slice(config: LibraryConfig, start: int, stop: int, folder: Path) -> Path:
    """Encode records ``start`` to ``stop``, or find them encoded.

    Parameters
    ----------
    folder : Path
        `partial_folder`.

    Returns
    -------
    Path
        The shard, written atomically.
    """
    path = shard_path(folder, start, stop)
    return (
        path if path.is_file() else _encode_slice(config, open_source(config), start, stop, folder)
    )


def shard_path(folder: Path, start: int, stop: int) -> Path:
    """File of a slice."""
    return folder / f"{start:09d}-{stop:09d}.npz"


def _encode_slice(
    config: LibraryConfig, reader: MoleculeReader, start: int, stop: int, folder: Path
) -> Path:
    path = shard_path(folder, start, stop)
    if not path.is_file():
        encode_records(reader.read(start, stop), config, len(reader.targets)).save(path)
    return path


def _settings(config: LibraryConfig) -> dict[str, Any]:
    """All that decides about the arrays, but for the bytes of files."""
    source = {name: value for name, value in config.source if not isinstance(value, Path | None)}
    return {**config.model_dump(mode="json", exclude={"name", "source"}), "source": source}


def _digest(config: LibraryConfig, reader: MoleculeReader) -> str:
    return library_digest(reader.digest(), _settings(config))


# --------------------------------------------------------------------------- merging


def finish_library(
    config: LibraryConfig, shards: Sequence[Path], folder: Path, reader: MoleculeReader
) -> MoleculeLibrary:
    """Join shards to the library, publish it, and remove them.

    Never more than one shard is in memory.

    Parameters
    ----------
    shards : sequence of Path
        In the order of the records.
    folder : Path
        `library_folder`.

    Raises
    ------
    DataError
        If all records were rejected; naming the reasons.
    """
    temporary = partial_folder(folder) / f"merged-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    try:
        _merge(config, shards, temporary, reader)
    except (StoreError, OSError):  # another process may have finished, and cleaned up
        if not folder.is_dir():
            raise
    else:
        publish_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(partial_folder(folder), ignore_errors=True)
    return MoleculeLibrary.load(folder)


def _merge(
    config: LibraryConfig, shards: Sequence[Path], folder: Path, reader: MoleculeReader
) -> None:
    totals = np.zeros(len(RAGGED), dtype=np.int64)
    reasons: Counter[str] = Counter()
    facts: Counter[str] = Counter(dict.fromkeys(FACTS, 0))
    for path in shards:
        shard = Shard.load(path)
        totals += [*shard.counts.sum(axis=0), len(shard.counts)]
        reasons.update(reason for *_, reason in shard.texts["rejected"])
        facts.update(shard.texts["facts"])
    _check_not_empty(config, int(totals[-1]), reasons)
    n_placed = _write(shards, folder, totals, len(reader.targets))
    size = sum(path.stat().st_size for path in folder.iterdir())
    counts = dict(zip((f"{name}s" for name in RAGGED), totals.tolist(), strict=True))
    manifest = {
        "name": config.name,
        "format": FORMAT,
        "digest": _digest(config, reader),
        "hydrogens": config.hydrogens,
        "settings": _settings(config),
        "source": config.source.path.name,
        "notes": list(getattr(reader, "notes", ())),
        "targets": [target._asdict() for target in reader.targets],
        "counts": {"records": len(reader), **counts, "placed": n_placed},
        **facts,
        "rejected": dict(sorted(reasons.items())),
        "bytes": size,
        "provenance": provenance("rdkit", "torch-geometric", "scipy", "pyarrow"),
    }
    write_json_atomic(folder / "manifest.json", manifest)


def _check_not_empty(config: LibraryConfig, n_molecules: int, reasons: Counter[str]) -> None:
    if n_molecules:
        return
    found = "; ".join(f"{reason}: {n}" for reason, n in reasons.most_common(5))
    raise DataError(
        f"no molecule of library '{config.name}' can be used ({found or 'the source is empty'}); "
        f"expected at least one in {config.source.path}"
    )


def _write(
    shards: Sequence[Path], folder: Path, totals: npt.NDArray[np.int64], n_targets: int
) -> int:
    """Write all arrays and tables; number of molecules with positions."""
    total = dict(zip(RAGGED, totals.tolist(), strict=True))

    def create(name: str, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.dtype(dtype), shape=shape
        )

    arrays = {n: create(n, dtype, (total[of], *tail)) for n, (of, dtype, tail) in ARRAYS.items()}
    arrays["targets"] = create("targets", "float64", (total["molecule"], n_targets))
    starts = create("starts", "int64", (total["molecule"] + 1, len(RAGGED)))
    starts[0] = 0
    written = dict.fromkeys(RAGGED, 0)
    with (
        _Table(folder / "molecules.parquet", _MOLECULES) as molecules,
        _Table(folder / "rejected.parquet", _REJECTED) as rejected,
    ):
        for path in shards:
            shard = Shard.load(path)
            first = written["molecule"]
            last = first + len(shard.counts)
            starts[first + 1 : last + 1] = starts[first] + _ends(shard)
            for name, values in shard.arrays.items():
                of = ARRAYS[name][0] if name in ARRAYS else "molecule"
                arrays[name][written[of] : written[of] + len(values)] = values
            written = dict(zip(RAGGED, starts[last].tolist(), strict=True))
            molecules.add(_molecule_rows(shard))
            rejected.add(_rejected_rows(shard))
    for array in (*arrays.values(), starts):
        array.flush()  # type: ignore[attr-defined]
    return int(np.count_nonzero(arrays["placed"]))


def _ends(shard: Shard) -> npt.NDArray[np.int64]:
    """Rows of `starts` after every molecule, counted from the shard's beginning."""
    own = np.ones(len(shard.counts), dtype=np.int64)
    return np.cumsum(np.column_stack([shard.counts, own]), axis=0)


def _molecule_rows(shard: Shard) -> pa.Table:
    columns = {name: shard.texts[name] for name in ("identifier", "smiles", "scaffold")}
    columns |= {"n_atoms": shard.counts[:, 0], "n_bonds": shard.counts[:, 1]}
    return pa.table(columns, schema=_MOLECULES)


def _rejected_rows(shard: Shard) -> pa.Table:
    rows = shard.texts["rejected"]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_REJECTED)
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=_REJECTED)


class _Table:
    """A Parquet file whose row groups do not depend on how its rows came in."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema)
        self._rest = schema.empty_table()

    def add(self, rows: pa.Table) -> None:
        """Append rows."""
        self._rest = pa.concat_tables([self._rest, rows])
        while len(self._rest) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._rest.slice(0, _GROUP_ROWS).combine_chunks())
        self._rest = self._rest.slice(_GROUP_ROWS)

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and len(self._rest):
            self._flush()
        self._writer.close()


# --------------------------------------------------------------------------- in memory


@dataclass(frozen=True)
class _MemoryLibrary(MoleculeLibrary):
    """A library that was never written."""

    shard: Shard

    @cached_property
    def molecules(self) -> pd.DataFrame:
        """One row per molecule."""
        return _molecule_rows(self.shard).to_pandas()

    @cached_property
    def rejected(self) -> pd.DataFrame:
        """Molecules that were left out."""
        return _rejected_rows(self.shard).to_pandas()

    def _read(self, name: str) -> npt.NDArray[Any]:
        if name != "starts":
            return self.shard.arrays[name]
        return np.concatenate([np.zeros((1, len(RAGGED)), np.int64), _ends(self.shard)])


def encode_smiles(
    smiles: Sequence[str], hydrogens: bool = False, conformers: bool = False
) -> MoleculeLibrary:
    """Encode some molecules in memory, to embed them.

    Parameters
    ----------
    conformers : bool
        Make one conformer each (ETKDGv3, fixed seed).

    Returns
    -------
    MoleculeLibrary
        Without targets. ``molecules`` and ``rejected`` have the number in ``smiles`` as identifier;
        unreadable molecules, and those without a conformer if there should be one, are rejected.

    Raises
    ------
    InputError
        If there are none.
    """
    if not smiles:
        raise InputError("no SMILES given; expected at least one")
    config = LibraryConfig(
        name="smiles",
        source=SmilesSource(path=Path("memory"), conformers=conformers),
        hydrogens=hydrogens,
        max_atoms=_LARGEST,
        need_positions=conformers,
    )
    shard = encode_records(_records(smiles, conformers), config, 0)
    manifest = {
        "name": config.name,
        "format": FORMAT,
        "digest": library_digest("", {**_settings(config), "smiles": list(smiles)}),
        "hydrogens": hydrogens,
        "targets": [],
        **shard.texts["facts"],
        "rejected": dict(Counter(reason for *_, reason in shard.texts["rejected"])),
    }
    return _MemoryLibrary(Path(config.name), manifest, shard)


def _records(smiles: Iterable[str], conformers: bool) -> Iterator[Record]:
    for number, text in enumerate(smiles):
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(text)
        record = Record(str(number), text, mol, None, None, np.zeros(0))
        if conformers and mol is not None:
            element, position = conformer(mol, _LARGEST)
            record = record._replace(element=element, position=position)
        yield record
