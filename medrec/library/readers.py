"""Readers of all sources of molecules."""

from __future__ import annotations

from medrec.config_molecules import (
    LibraryConfig,
    MoleculeNetSource,
    QM8Source,
    QM9Source,
    SDFSource,
)
from medrec.library.readers_qm import QM8Reader, QM9ParquetReader
from medrec.library.readers_sdf import ENDINGS, open_gdb9, open_sdf
from medrec.library.readers_tables import open_moleculenet, open_smiles
from medrec.library.records import MoleculeReader


def open_source(config: LibraryConfig) -> MoleculeReader:
    """Open the source of a library.

    The reader gives the first ``config.limit`` records. It holds no open file that another process
    could not open again by the same call.

    Raises
    ------
    InputError, DataError
        If a file or column is missing, or a file cannot be read; naming both.
    """
    source, limit = config.source, config.limit
    if isinstance(source, QM9Source):
        is_sdf = source.path.name.lower().endswith(ENDINGS)
        return open_gdb9(source, limit) if is_sdf else QM9ParquetReader(source, limit)
    if isinstance(source, QM8Source):
        return QM8Reader(source, limit)
    if isinstance(source, MoleculeNetSource):
        return open_moleculenet(source, limit)
    if isinstance(source, SDFSource):
        return open_sdf(source, limit)
    return open_smiles(source, limit, config.max_atoms)
