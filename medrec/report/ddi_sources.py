"""What stands behind an interaction between two drug classes: its source, its worst substances."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import product

from medrec.data.cohort import Cohort
from medrec.data.ddi import ANSM_FILE
from medrec.data.schema import data_root
from medrec.data.tables import read_table
from quantum.base import MedrecError

_COLUMNS = ("substance_a", "substance_b", "atc_a", "atc_b", "severity")
Pair = tuple[str, str]


def source_title(cohort: Cohort) -> str:
    """Heading of a column of `pair_sources`."""
    name = "ANSM thesaurus" if cohort.config.ddi.source == "ansm" else "TWOSIDES"
    return f"source: {name}"


def pair_sources(cohort: Cohort, pairs: Iterable[Pair]) -> dict[Pair, str]:
    """Say for pairs of classes where their grade comes from.

    Parameters
    ----------
    pairs : iterable of (str, str)
        ATC codes of classes, the smaller first.

    Returns
    -------
    dict of (str, str) to str
        Number of substance pairs, and for ANSM one of them (French names) with the class pair's
        grade, where the shipped table is at hand.
    """
    counts = {
        (a, b): int(n)
        for a, b, n in cohort.ddi_pairs[["atc_a", "atc_b", "n_pairs"]].itertuples(index=False)
    }
    graded = cohort.config.ddi.source == "ansm"
    texts = {}
    for a, b in pairs:
        n = counts.get((a, b), 0)
        text = f"{n:,} substance {'pair' if n == 1 else 'pairs'}"
        worst = _worst_substances(len(a)).get((a, b)) if graded else None
        join = ": " if n == 1 else ", such as "
        texts[a, b] = f"{text}{join}{worst}" if worst else text
    return texts


@lru_cache(maxsize=4)
def _worst_substances(length: int) -> dict[Pair, str]:
    """For classes of so many characters the first pair of substances with their highest grade.

    Empty where the shipped thesaurus is not at hand.
    """
    try:
        table = read_table(data_root() / "ddi" / ANSM_FILE, _COLUMNS)
    except MedrecError:
        return {}
    best: dict[Pair, tuple[int, str]] = {}
    for name_a, name_b, atc_a, atc_b, severity in table.select(_COLUMNS).iter_rows():
        if atc_a is None or atc_b is None:
            continue
        grade = int(severity)
        classes_a, classes_b = ({c[:length] for c in text.split("|")} for text in (atc_a, atc_b))
        for a, b in product(classes_a, classes_b):
            straight = a < b
            key = (a, b) if straight else (b, a)
            if key not in best or grade > best[key][0]:
                names = (name_a, name_b) if straight else (name_b, name_a)
                best[key] = (grade, " × ".join(names))
    return {key: text for key, (_, text) in best.items()}
