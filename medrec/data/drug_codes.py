"""NDC in its several spellings, and the place in the body that an order or an ATC class names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

V = TypeVar("V", bound=Collection[str])

# labeller-product-package as printed; 11 digits are 5-4-2
_DASHED: dict[tuple[int, ...], str] = {
    (5, 4, 2): "5-4-2",
    (4, 4, 2): "4-4-2",
    (5, 3, 2): "5-3-2",
    (5, 4, 1): "5-4-1",
}


def ndc_candidates(text: str) -> tuple[str, ...]:
    """Every NDC of 11 digits (5-4-2) that a spelling may stand for; empty if it is none.

    Dashes say which part lacks its zero. Ten digits without dashes do not: the zero may belong in
    front (4-4-2, or a number that lost its first zero), before the product (5-3-2) or before the
    package (5-4-1); all three are returned, in this order. Fewer digits lost zeros in front. 0 is
    a placeholder.

    >>> ndc_candidates("0002-7597-01")
    ('00002759701',)
    >>> ndc_candidates("1234567890")
    ('01234567890', '12345067890', '12345678900')
    """
    plain = re.sub(r"\.0+$", "", text.strip())
    if "-" in plain:
        parts = [part.strip() for part in plain.split("-")]
        lengths = tuple(len(part) for part in parts)
        if lengths not in _DASHED or not all(part.isascii() and part.isdigit() for part in parts):
            return ()
        return (parts[0].zfill(5) + parts[1].zfill(4) + parts[2].zfill(2),)
    if not (plain.isascii() and plain.isdigit()) or len(plain) > 11 or int(plain) == 0:
        return ()
    if len(plain) == 10:
        spellings = ("0" + plain, plain[:5] + "0" + plain[5:], plain[:9] + "0" + plain[9:])
        return tuple(dict.fromkeys(spellings))
    return (plain.zfill(11),)


def normalise_ndc(text: str) -> str | None:
    """NDC as 11 digits, or None for the placeholder 0 and for anything that is no number.

    Of ten digits without dashes the first reading is taken; `find_ndc` asks a map instead.
    """
    return next(iter(ndc_candidates(text)), None)


def find_ndc(text: str, known: Mapping[str, V]) -> V | None:
    """Entry of a map for an NDC in any spelling.

    Ten digits without dashes are looked up in each reading: the entry counts if one reading is
    known, or if all known readings have the same entry; otherwise nothing is guessed.
    """
    found = [known[ndc] for ndc in ndc_candidates(text) if known.get(ndc)]
    if found and all(item == found[0] for item in found):
        return found[0]
    return None


def ndc_spelling(text: str, known: Mapping[str, Collection[str]]) -> tuple[str, str] | None:
    """What is unusual about an NDC and what is done about it; None for 11 plain digits."""
    plain = re.sub(r"\.0+$", "", text.strip())
    candidates = ndc_candidates(text)
    if not candidates:
        if re.fullmatch(r"0*", plain):
            return "no NDC (empty or 0)", "left to the other routes"
        return "NDC in no known form", "not used; left to the other routes"
    if "-" in plain:
        form = _DASHED[tuple(len(part.strip()) for part in plain.split("-"))]
        return f"NDC with dashes ({form})", "read as 11 digits"
    if len(plain) < 10:
        return "NDC of fewer than 10 digits", "zeros restored in front"
    if len(plain) == 11:
        return None
    return _ten_digits(candidates, known)


def _ten_digits(candidates: Sequence[str], known: Mapping[str, Collection[str]]) -> tuple[str, str]:
    found = [ndc for ndc in candidates if known.get(ndc)]
    problem = "NDC of 10 digits without dashes"
    if len(found) == 1:
        return f"{problem}, one reading known", "read as 11 digits"
    if not found:
        return f"{problem}, no reading known", "not used; left to the other routes"
    if all(known[ndc] == known[found[0]] for ndc in found):
        return f"{problem}, readings agree", "read as 11 digits"
    return f"{problem}, readings differ", "not used; left to the other routes"


# --------------------------------------------------------------------------- place in the body

_ROUTE_PLACES = (
    ("eye", r"EYE|OPHTH|\b(OD|OS|OU)\b"),
    ("ear", r"\bEARS?\b|OTIC|\b(AU|AS|AD)\b"),
    ("nose", r"NASAL|NOSTRIL|\b(NU|NAS|IN)\b"),
    ("lung", r"INHAL|NEB|\b(IH|INH|SVN|MDI|ET)\b"),
    ("vagina", r"VAGIN|\b(VG|VAG)\b"),
    ("mouth", r"MUCOUS|BUCCAL SWISH|SWISH|DENTAL|\bMM\b"),
    ("systemic", r"TRANSDERM|\bTD\b"),
    ("skin", r"TOPIC|DERM|SKIN|\b(TP|TOP|EX)\b"),
    (
        "systemic",
        r"INTRAV|ORAL|\bIV|SUB ?-?(CUT|Q)|INTRAMUSC|TUBE|SUBLING|RECT"
        r"|\b(PO|IM|SC|SQ|SL|PR|NG|NGT|OG|PEG|TF|JT|GT|IJ|PB|INJ|IP|ED|EPIDURAL|IT)\b",
    ),
)
_ATC_PLACES = (
    ("systemic", ("D01B", "D05B", "D10B", "R01B", "R03C", "R03D")),
    ("skin", ("D", "M02", "P03")),
    ("eye", ("S01", "S03")),
    ("ear", ("S02", "S03")),
    ("nose", ("R01A",)),
    ("lung", ("R03A", "R03B")),
    ("vagina", ("G01",)),
    ("mouth", ("A01", "R02")),
)


def place_of_route(route: str) -> str | None:
    """Where an order's route puts the drug: ``systemic``, ``skin``, ``eye``...; None if unknown.

    >>> place_of_route("PO/NG"), place_of_route("BOTH EYES"), place_of_route("TP")
    ('systemic', 'eye', 'skin')
    """
    text = route.upper()
    return next((place for place, form in _ROUTE_PLACES if re.search(form, text)), None)


def places_of_class(atc: str) -> frozenset[str]:
    """Where the products of an ATC class are used; ``systemic`` if it names no place."""
    if atc.startswith(_ATC_PLACES[0][1]):
        return frozenset({"systemic"})
    places = {place for place, heads in _ATC_PLACES[1:] if atc.startswith(heads)}
    return frozenset(places or {"systemic"})


def fitting(codes: Iterable[str], route: str) -> list[str]:
    """Codes whose place is that of the route; all of them if none fits or the route is unknown."""
    every = list(codes)
    place = place_of_route(route)
    kept = [code for code in every if place in places_of_class(code)]
    return kept or every
