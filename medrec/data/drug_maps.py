"""Drug maps that the user supplies, in the formats in which the published pipelines keep theirs.

NDC to RxNorm concept: a text file with one Python or JSON dictionary, or a CSV with the columns
NDC and RXCUI. RxNorm concept to ATC: a CSV with RXCUI and one of ATC5, ATC4, ATC3, ATC (deepest
first); other columns (YEAR, MONTH, NDC) are not read.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from medrec.config import DrugMapsConfig
from medrec.data.drug_codes import ndc_candidates
from medrec.data.rxnorm import RXNORM_FILES, RxNorm
from medrec.data.schema import data_root, resolve_path
from medrec.data.tables import header, read_columns, unreadable
from quantum.base import DataError

SHIPPED_NDC_FILE = "ndc11_to_rxcui.csv.gz"
_NDC_COLUMNS = ("ndc11", "ndc")
_ATC_COLUMNS = ("atc5", "atc4", "atc3", "atc")


def map_files(config: DrugMapsConfig) -> dict[str, Path]:
    """Files of the user's maps by their key; the shipped NDC map where none is given.

    Raises
    ------
    InputError
        If a path does not exist or names a variable that is not set.
    """
    if config.rxnorm is not None:
        folder = resolve_path(config.rxnorm)
        return {name: folder / name for name in RXNORM_FILES}
    shipped = data_root() / "codes" / SHIPPED_NDC_FILE
    ndc = resolve_path(config.ndc_to_rxcui) if config.ndc_to_rxcui else shipped
    return {"rxcui_to_atc": resolve_path(str(config.rxcui_to_atc)), "ndc_to_rxcui": ndc}


def user_maps(config: DrugMapsConfig | None) -> DrugMaps | RxNorm | None:
    """Maps of a configuration; None where it has none."""
    if config is None:
        return None
    files = map_files(config)
    if config.rxnorm is not None:
        return RxNorm(*(files[name] for name in RXNORM_FILES))
    return DrugMaps(**files)


@dataclass(frozen=True)
class DrugMaps:
    """The two maps behind the route ``rxcui``.

    Parameters
    ----------
    rxcui_to_atc : pathlib.Path
        CSV of RxNorm concepts and ATC codes.
    ndc_to_rxcui : pathlib.Path
        Dictionary text or CSV.
    """

    rxcui_to_atc: Path
    ndc_to_rxcui: Path

    @cached_property
    def by_ndc(self) -> dict[str, tuple[str, ...]]:
        """NDC of 11 digits to its ATC codes in the order of the file; only NDCs that have one."""
        concepts = read_ndc_to_rxcui(self.ndc_to_rxcui)
        atc = read_rxcui_to_atc(self.rxcui_to_atc)
        return {ndc: atc[rxcui] for ndc, rxcui in concepts.items() if rxcui in atc}


def read_ndc_to_rxcui(path: Path) -> dict[str, str]:
    """NDC of 11 digits to RxNorm concept; entries without one are left out.

    Raises
    ------
    DataError
        If the file is neither a dictionary nor a CSV with the two columns.
    """
    pairs = _dictionary(path) if _is_dictionary(path) else _pairs(path, _NDC_COLUMNS, "rxcui")
    found: dict[str, str] = {}
    for ndc, rxcui in pairs:
        number, concept = ndc_candidates(ndc), _concept(rxcui)
        if number and concept:  # of ten digits a map means the number that lost its first zero
            found.setdefault(number[0], concept)
    if not found:
        raise DataError(
            f"{path}: no pair of an NDC and an RxNorm concept among {len(pairs)} entries; "
            "expected NDCs of 11 digits"
        )
    return found


def read_rxcui_to_atc(path: Path) -> dict[str, tuple[str, ...]]:
    """RxNorm concept to its ATC codes, in the order of the file, without repetition.

    Raises
    ------
    DataError
        If a column is missing or no row has both.
    """
    pairs = _pairs(path, _ATC_COLUMNS, "rxcui")
    found: dict[str, dict[str, None]] = {}
    for atc, rxcui in pairs:
        code, concept = atc.strip().upper(), _concept(rxcui)
        if code and concept:
            found.setdefault(concept, {})[code] = None
    if not found:
        raise DataError(f"{path}: no row has an RXCUI and an ATC code; {len(pairs)} rows read")
    return {concept: tuple(codes) for concept, codes in found.items()}


def _concept(text: str) -> str:
    return text.strip().removesuffix(".0")


def _is_dictionary(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except OSError as error:
        raise unreadable(path, error) from error


def _dictionary(path: Path) -> list[tuple[str, str]]:
    try:
        tree = ast.literal_eval(path.read_text(encoding="utf-8-sig").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(
            f"{path}: begins like a dictionary and does not parse as one; expected "
            "{'NDC': 'RXCUI', ...}"
        ) from error
    return [(str(key), "" if value is None else str(value)) for key, value in tree.items()]


def _pairs(path: Path, first: tuple[str, ...], second: str) -> list[tuple[str, str]]:
    present = {name.strip().lower() for name in header(path)}
    chosen = next((name for name in first if name in present), None)
    if chosen is None:
        raise DataError(
            f"{path}: expected a column {' or '.join(first)} (any case) beside {second}; the "
            f"file has {len(present)} other columns"
        )
    table = read_columns(path, path.name, {chosen: "first", second: "second"})
    return list(table.with_columns(pl.all().fill_null("")).iter_rows())
