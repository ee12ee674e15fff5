"""Shipped tables from drug classes to SMILES."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from medrec.data.schema import ATC_CHARACTERS
from medrec.data.tables import read_table
from quantum.base import ConfigError, DataError

CHEMBL_FILE = "atc5_to_smiles.chembl.csv.gz"
MOLEREC_FILE = "atc3_to_smiles.molerec.json"
_SCHEMA = {"atc": pl.String, "smiles": pl.String, "source": pl.String}


def read_substances(folder: Path) -> pl.DataFrame:
    """ChEMBL's approved drugs with an ATC level-5 code: ``atc5``, ``name``, ``smiles``."""
    table = read_table(folder / CHEMBL_FILE, ("atc5", "name", "smiles"))
    return table.drop_nulls(["atc5", "smiles"]).sort("atc5", "smiles")


def read_molerec(folder: Path) -> dict[str, list[str]]:
    """MoleRec's published table: 131 ATC level-3 classes, one to three SMILES each."""
    path = folder / MOLEREC_FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"shipped table not readable: {path} ({type(error).__name__})") from error
    return {atc: list(smiles) for atc, smiles in sorted(table.items())}


def class_molecules(
    folder: Path, source: str, level: int, prescribed: Iterable[str]
) -> pl.DataFrame:
    """SMILES of every drug class: ``atc``, ``smiles``, ``source``; sorted, no repetition.

    Parameters
    ----------
    source : {"formulary", "class", "molerec"}
        ``formulary``: the substances of a class that the hospital prescribed at all; where none of
        those has a structure, all of the class. ``class``: every approved substance of the class.
        ``molerec``: the published table (ATC level 3 only).
    prescribed : iterable of str
        ATC level-5 codes that occur in the prescriptions.
    """
    if source == "molerec":
        if level != 3:
            raise ConfigError(f"molecules 'molerec' are ATC level 3 classes, got atc_level {level}")
        pairs = [(atc, smiles) for atc, many in read_molerec(folder).items() for smiles in many]
        table = pl.DataFrame(pairs, schema={"atc": pl.String, "smiles": pl.String}, orient="row")
        return table.with_columns(source=pl.lit("molerec")).unique().sort("atc", "smiles")
    substances = read_substances(folder).with_columns(
        atc=pl.col("atc5").str.slice(0, ATC_CHARACTERS[level])
    )
    if source == "formulary":
        on_list = pl.col("atc5").is_in(sorted(set(prescribed)))
        substances = substances.filter(on_list | ~on_list.any().over("atc"))
    return (
        substances.select("atc", "smiles", pl.lit("chembl").alias("source"))
        .unique()
        .sort("atc", "smiles")
        .cast(_SCHEMA)  # type: ignore[arg-type]
    )
