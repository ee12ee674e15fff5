"""Every source of records behind two calls: which files decide it, and its events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medrec.config import EicuSource, MedsSource, Mimic3Source, Mimic4Source
from medrec.data import eicu, meds, mimic
from medrec.data.schema import Events

FileSource = Mimic3Source | Mimic4Source | EicuSource | MedsSource


def source_files(source: FileSource, *, with_admissions: bool = True) -> dict[str, Path]:
    """Files that will be read, by a label.

    Parameters
    ----------
    with_admissions : bool
        MIMIC needs the table of admissions only where visits are ordered by time.

    Raises
    ------
    InputError, DataError
        Folder, variable or table that is not there.
    """
    if source.format == "eicu":
        return eicu.source_files(source)
    if source.format == "meds":
        return meds.source_files(source)
    return mimic.source_files(source, with_admissions=with_admissions)


def read_source(
    source: FileSource,
    files: Mapping[str, Path],
    *,
    with_route: bool = False,
    with_times: bool = False,
) -> Events:
    """Events of the files that `source_files` found.

    Parameters
    ----------
    with_route : bool
        Also the route of each order, where the table has it.
    with_times : bool
        Also the times of orders and procedures, where the tables have them.

    Raises
    ------
    DataError
        See the readers.
    """
    if source.format == "eicu":
        return eicu.read_eicu(source, dict(files))
    if source.format == "meds":
        return meds.read_meds(source, files, with_times=with_times)
    return mimic.read_mimic(source, dict(files), with_route=with_route, with_times=with_times)
