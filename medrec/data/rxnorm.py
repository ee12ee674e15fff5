"""A user's RxNorm release as a drug map: NDC to ingredients to ATC level 5.

Three files of the release's ``rrf/`` folder are read (fields parted by ``|``, no heading; RxNorm
Technical Documentation, sections 12.4, 12.7 and 12.8):

============  =====================================================================================
RXNSAT.RRF    NDCs of products: RXCUI in field 1, attribute name NDC in field 9, value in field 11.
RXNREL.RRF    Which concept is made of which: RXCUI1 in field 1, RXCUI2 in field 5, RELA in field 8.
RXNCONSO.RRF  Term types in field 13 (SBD, SCD, SCDC, PIN, IN) of the source in field 12; the ATC
              code of an ingredient in field 14 where the source is ATC.
============  =====================================================================================

A product (SBD, SCD, BPCK, GPCK) leads to its generic product, that to its components (SCDC), those
to their ingredients (PIN, IN). Every step goes to a term type further along that line, so it does
not matter in which direction a relation is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from medrec.data.drug_codes import ndc_candidates
from medrec.data.schema import ATC_CHARACTERS
from quantum.base import DataError

RXNORM_FILES = ("RXNCONSO.RRF", "RXNREL.RRF", "RXNSAT.RRF")
_RANKS = {"BPCK": 0, "GPCK": 1, "SBD": 2, "SCD": 3, "SCDC": 4, "PIN": 5, "IN": 6}
_MADE_OF = (
    "contains", "contained_in", "tradename_of", "has_tradename", "consists_of", "constitutes",
    "has_ingredient", "ingredient_of", "has_precise_ingredient", "precise_ingredient_of",
    "form_of", "has_form",
)  # fmt: skip


@dataclass(frozen=True)
class RxNorm:
    """The three files.

    Parameters
    ----------
    conso, rel, sat : pathlib.Path
        RXNCONSO.RRF, RXNREL.RRF and RXNSAT.RRF.
    """

    conso: Path
    rel: Path
    sat: Path

    @cached_property
    def by_ndc(self) -> dict[str, tuple[str, ...]]:
        """NDC of 11 digits to the ATC level-5 codes of its ingredients, in code order.

        Raises
        ------
        DataError
            File that is not in this format, or nothing that leads from an NDC to an ATC code.
        """
        concepts = read_rrf(self.conso, {0: "rxcui", 11: "source", 12: "type", 13: "code"})
        atc = concepts.filter(
            pl.col("source") == "ATC", pl.col("code").str.len_chars() == ATC_CHARACTERS[5]
        )
        products = self._ndcs()
        pairs = (
            products.join(self._ingredients(concepts), on="rxcui")
            .join(atc.select("code", ingredient="rxcui"), on="ingredient")
            .group_by("ndc")
            .agg(pl.col("code").unique().sort())
        )
        if pairs.is_empty():
            raise DataError(
                f"{self.sat}: none of {len(products)} NDCs leads to an ATC code; expected the "
                "files of one RxNorm release, with the source ATC"
            )
        return {ndc: tuple(codes) for ndc, codes in pairs.iter_rows()}

    def _ndcs(self) -> pl.DataFrame:
        rows = read_rrf(self.sat, {0: "rxcui", 8: "name", 10: "ndc"})
        rows = rows.filter(pl.col("name") == "NDC").drop_nulls("ndc")
        texts = rows["ndc"].unique().to_list()
        plain = [next(iter(ndc_candidates(text)), None) for text in texts]
        number = pl.col("ndc").replace_strict(texts, plain, return_dtype=pl.String)
        return rows.select("rxcui", ndc=number).drop_nulls().unique()

    def _ingredients(self, concepts: pl.DataFrame) -> pl.DataFrame:
        """``rxcui`` of a product or ingredient to ``ingredient``; an ingredient is its own."""
        types = concepts.filter(pl.col("source") == "RXNORM", pl.col("type").is_in(list(_RANKS)))
        rank = types.select(
            "rxcui", rank=pl.col("type").replace_strict(_RANKS, return_dtype=pl.Int8)
        )
        rank = rank.unique("rxcui")
        edges = read_rrf(self.rel, {0: "a", 4: "b", 7: "rela"})
        edges = edges.filter(pl.col("rela").is_in(list(_MADE_OF))).select("a", "b")
        both = pl.concat([edges, edges.select(a="b", b="a")]).unique()
        ranked = both.join(rank, left_on="a", right_on="rxcui").join(
            rank, left_on="b", right_on="rxcui", suffix="_b"
        )
        steps = ranked.filter(pl.col("rank_b") > pl.col("rank")).select(at="a", to="b")
        reached = rank.select("rxcui", at="rxcui")
        found = [reached]
        for _ in _RANKS:
            reached = reached.join(steps, on="at").select("rxcui", at="to").unique()
            found.append(reached)
        ends = rank.filter(pl.col("rank") >= _RANKS["PIN"])
        every = pl.concat(found).unique()
        return every.join(ends, left_on="at", right_on="rxcui").select("rxcui", ingredient="at")


def read_rrf(path: Path, fields: dict[int, str]) -> pl.DataFrame:
    """Some fields of an RRF file as text, by their position from 0; empty ones are null.

    Raises
    ------
    DataError
        If the file is missing, has too few fields or is no UTF-8 text.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; expected {', '.join(RXNORM_FILES)} in one folder")
    try:
        lazy = pl.scan_csv(
            path, separator="|", has_header=False, quote_char=None, infer_schema=False
        )
        names = lazy.collect_schema().names()
        if len(names) > max(fields):
            return lazy.select(
                pl.col(names[place]).replace("", None).alias(name) for place, name in fields.items()
            ).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path}: not readable as RRF ({type(error).__name__}); expected fields parted by |"
        ) from error
    raise DataError(
        f"{path}: {len(names)} fields in a row; expected more than {max(fields)}, parted by |"
    )
