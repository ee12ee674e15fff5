"""What a made-up pharmacy sells: products whose ATC class is known whatever route finds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from medrec.data.codes import CodeMaps
from medrec.data.drug_codes import normalise_ndc
from medrec.data.molecule_table import class_molecules
from medrec.data.planted import Int, Plan, Substance
from medrec.data.schema import ATC_CHARACTERS, data_root
from medrec.data.tables import read_table

_CLASS = ATC_CHARACTERS[3]
_PER_CLASS, _WITHOUT_MOLECULE = 30, 40
_NOTHING = (
    "Bag", "Syringe", "Vial", "Soln", "Sterile Diluent", "Empty Cassette", "Study Protocol Item",
    "Kit", "Lumen Lock Volume", "Empty Bag (Pharmacy Use)", "Mini-Bag Plus", "Excel Container",
    "Own Supply, Not Listed", "Flush Bag", "Premixed Base", "Diluent (Vial)",
)  # fmt: skip
_STRENGTHS = ("5mg", "10mg", "20 mg", "40mg", "100mg", "250 mg", "500mg", "1g/50mL", "2mg/mL")
_ENDINGS = ("Tab", "Tablet", "Cap", "Vial", "Syringe", "Soln", "UDCup", "Bag")

Product = tuple[str, str | None, str]
"""Name, GSN, NDC."""


@dataclass(frozen=True)
class Products:
    """All products; those of a class, and those of each other sort, stand next to each other.

    Parameters
    ----------
    table : polars.DataFrame
        ``drug``, ``gsn``, ``ndc``, ``strength``, ``form``, ``code``.
    start, count : numpy.ndarray
        First row and number of rows, shape (n_drugs + 2,): the planted classes, then products of
        a class without molecule, then products without any ATC code.
    """

    table: pl.DataFrame
    start: Int
    count: Int


def build_products(plan: Plan) -> Products:
    """Products by class, checked one by one against the code maps."""
    root = data_root()
    maps = CodeMaps(root / "codes")
    formulary: dict[str, list[tuple[str, str]]] = {}
    table = read_table(root / "codes" / "gsn_atc_ndc_mapping.csv.gz", ("gsn", "atc", "ndc"))
    for gsn, atc, ndc in table.fill_null("").iter_rows():
        formulary.setdefault(atc[:_CLASS], []).append((gsn, ndc))
    groups = [_of_class(drug, formulary.get(drug.atc5[:_CLASS], []), maps) for drug in plan.drugs]
    with_molecule = set(class_molecules(root / "molecules", "formulary", 3, ())["atc"])
    groups.append(_without_molecule(maps, with_molecule))
    groups.append([(name, None, "0") for name in _NOTHING if not _classes(maps, name, None, "0")])
    count = np.array([len(group) for group in groups])
    flat = [product for group in groups for product in group]
    rng = np.random.default_rng(0)  # looks only
    looks = {
        "strength": pl.Series(_STRENGTHS).gather(rng.integers(0, len(_STRENGTHS), len(flat))),
        "form": pl.Series(_ENDINGS).gather(rng.integers(0, len(_ENDINGS), len(flat))),
    }
    frame = pl.DataFrame(
        flat, schema={"drug": pl.String, "gsn": pl.String, "ndc": pl.String}, orient="row"
    ).with_columns(**looks)
    code = pl.col("drug").str.to_uppercase().str.replace_all("[^A-Z]", "").str.slice(0, 4)
    code = pl.concat_str(code, pl.int_range(pl.len()).cast(pl.String)).alias("code")
    return Products(frame.with_columns(code), np.cumsum(count) - count, count)


def _classes(maps: CodeMaps, name: str, gsn: str | None, ndc: str) -> set[str]:
    """ATC level-3 classes by the first route that knows the product."""
    for route in ("gsn", "ndc", "name"):
        found = {code[:_CLASS] for code in maps.look_up(route, gsn, ndc, name)}
        if found := {code for code in found if len(code) == _CLASS}:
            return found
    return set()


def _of_class(drug: Substance, codes: list[tuple[str, str]], maps: CodeMaps) -> list[Product]:
    """Products by name alone, with GSN and NDC, and with NDC alone."""
    name = drug.name.capitalize()
    candidates: list[Product] = [(name, None, "0")]
    for gsn, text in codes[:_PER_CLASS]:
        ndc = normalise_ndc(text) or "0"
        candidates += [(name, gsn, ndc), (name, None, ndc)]
    kept = dict.fromkeys(item for item in candidates if _classes(maps, *item) == {drug.atc5[:4]})
    return list(kept)


def _without_molecule(maps: CodeMaps, with_molecule: Iterable[str]) -> list[Product]:
    """Substances by name whose class has no molecule, such as insulins."""
    known = set(with_molecule)
    found: list[Product] = []
    for code, name in maps.atc_names.items():
        if len(code) == ATC_CHARACTERS[5] and code[:_CLASS] not in known:
            classes = _classes(maps, name, None, "0")
            if classes and not classes & known:
                found.append((name.capitalize(), None, "0"))
        if len(found) == _WITHOUT_MOLECULE:
            break
    return found
