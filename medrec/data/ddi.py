"""Drug-drug interactions between drug classes, from ANSM's thesaurus or from TWOSIDES.

A pair of classes interacts if *any* pair of their member substances does; interactions inside one
class are dropped, as the matrix has a zero diagonal.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from medrec.config import DdiConfig
from medrec.data.schema import ATC_CHARACTERS
from medrec.data.tables import read_columns, read_table
from quantum.base import DataError

ANSM_FILE = "ansm_pairs.csv.gz"
CID_FILE = "stitch_cid_to_atc.csv"
SEVERITY_NAMES = {
    0: "not graded",
    1: "take into account",
    2: "precaution",
    3: "not recommended",
    4: "contraindicated",
}
TWOSIDES_COLUMNS = ("STITCH 1", "STITCH 2", "Polypharmacy Side Effect", "Side Effect Name")
_PAIRS = {"atc_a": pl.String, "atc_b": pl.String, "severity": pl.Int64, "n_pairs": pl.Int64}


def class_interactions(
    config: DdiConfig, classes: Iterable[str], level: int, folder: Path, user_file: Path | None
) -> pl.DataFrame:
    """Interacting pairs among some drug classes: ``atc_a < atc_b``, ``severity``, ``n_pairs``.

    Parameters
    ----------
    folder : pathlib.Path
        Shipped ``data/ddi``.
    user_file : pathlib.Path or None
        The user's TWOSIDES ``drug-DDI.csv``, if that is the source.

    Returns
    -------
    polars.DataFrame
        Severity is the highest of the member pairs (0 for TWOSIDES, which has no grades);
        ``n_pairs`` counts the member pairs of any severity. Sorted.
    """
    if config.source == "ansm":
        pairs = read_ansm(folder / ANSM_FILE)
    else:
        assert user_file is not None, "DdiConfig refuses twosides without a path"
        pairs = read_twosides(user_file, folder / CID_FILE, config.n_rarest_types)
    return _to_classes(pairs, sorted(set(classes)), level)


def read_ansm(path: Path) -> pl.DataFrame:
    """ANSM substance pairs with ATC codes: ``atcs_a``, ``atcs_b`` (lists), ``severity``."""
    table = read_table(path, ("substance_a", "substance_b", "atc_a", "atc_b", "severity"))
    return table.drop_nulls(["atc_a", "atc_b"]).select(
        pl.col("atc_a").str.split("|").alias("atcs_a"),
        pl.col("atc_b").str.split("|").alias("atcs_b"),
        pl.col("severity").cast(pl.Int64),
    )


def read_cid_to_atc(path: Path) -> dict[str, list[str]]:
    """STITCH compound to ATC level-5 codes; ragged lines without a heading."""
    with path.open(encoding="utf-8", newline="") as handle:
        rows = [[field.strip() for field in row if field.strip()] for row in csv.reader(handle)]
    return {row[0]: sorted(set(row[1:])) for row in rows if len(row) > 1}


def rarest_types(table: pl.DataFrame, n: int) -> list[str]:
    """Names of the side-effect types with the fewest rows.

    Types are (code, name) pairs in ascending order of their number of rows; ties go by code, then
    by name, so that the choice does not depend on a sort algorithm.
    """
    counts = table.group_by("code", "name").len("n").sort("n", "code", "name")
    return counts["name"].head(n).to_list()


def read_twosides(path: Path, cid_file: Path, n_rarest: int) -> pl.DataFrame:
    """Pairs of a TWOSIDES ``drug-DDI.csv`` that have one of the rarest side-effect types.

    Raises
    ------
    DataError
        Wrong columns, unreadable file, or no row whose compounds have ATC codes.
    """
    columns = dict(zip(TWOSIDES_COLUMNS, ("cid_a", "cid_b", "code", "name"), strict=True))
    table = read_columns(path, "drug-DDI", columns).drop_nulls()
    # the published rule joins on the name, so two codes of one name count together
    kept = table.filter(pl.col("name").is_in(rarest_types(table, n_rarest)))
    atc_of = read_cid_to_atc(cid_file)
    codes = pl.DataFrame(
        {"cid": list(atc_of), "atcs": list(atc_of.values())},
        schema={"cid": pl.String, "atcs": pl.List(pl.String)},
    )
    pairs = (
        kept.select(
            pl.min_horizontal("cid_a", "cid_b").alias("cid_a"),
            pl.max_horizontal("cid_a", "cid_b").alias("cid_b"),
        )
        .unique()
        .join(codes.rename({"cid": "cid_a", "atcs": "atcs_a"}), on="cid_a")
        .join(codes.rename({"cid": "cid_b", "atcs": "atcs_b"}), on="cid_b")
    )
    if pairs.is_empty():
        raise DataError(
            f"{path}: none of the {len(table)} rows has two compounds with an ATC code; expected "
            f"STITCH numbers such as CID000003015 in the columns "
            f"{TWOSIDES_COLUMNS[0]} and {TWOSIDES_COLUMNS[1]}"
        )
    return pairs.select("atcs_a", "atcs_b", pl.lit(0, dtype=pl.Int64).alias("severity"))


def _to_classes(pairs: pl.DataFrame, classes: list[str], level: int) -> pl.DataFrame:
    length = ATC_CHARACTERS[level]
    numbered = pairs.with_row_index("pair").explode("atcs_a").explode("atcs_b")
    a, b = (pl.col(column).str.slice(0, length) for column in ("atcs_a", "atcs_b"))
    return (
        numbered.with_columns(pl.min_horizontal(a, b).alias("atc_a"))
        .with_columns(pl.max_horizontal(a, b).alias("atc_b"))
        .filter(
            pl.col("atc_a").is_in(classes)
            & pl.col("atc_b").is_in(classes)
            & (pl.col("atc_a") != pl.col("atc_b"))
        )
        .group_by("atc_a", "atc_b")
        .agg(pl.col("severity").max(), pl.col("pair").n_unique().alias("n_pairs"))
        .sort("atc_a", "atc_b")
        .cast(_PAIRS)  # type: ignore[arg-type]
    )


def density(interactions: pl.DataFrame, n_classes: int, min_severity: int) -> float:
    """Share of class pairs that interact at the least severity asked for (0 counts as graded)."""
    possible = n_classes * (n_classes - 1) // 2
    severity = interactions["severity"]
    n_interacting = int(((severity >= min_severity) | (severity == 0)).sum())
    return n_interacting / possible if possible else 0.0
