"""Memory of code tables against one continuous vector per concept (SCQMed, section IV-C).

Letters: N concepts, V views, L levels, K codes per level, d size of a code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from medrec.concepts.table import KINDS, ConceptTable, index_dtype

PAPER_SIZES = {"MIMIC-III": (1903, 1409, 131), "MIMIC-IV": (2000, 11056, 131)}
"""Diagnoses, procedures, drugs of the paper's Table I."""
PAPER_CODEBOOKS = {"diagnoses": 256, "procedures": 256, "drugs": 32}
PAPER_CLAIM = 5.19
"""Storage overhead is reduced "by up to 5.19x on MIMIC-IV"; how it was counted is not said."""
PAPER_CODE_DIM, PAPER_LEVELS, PAPER_VIEWS = 64, 4, 2
_BYTES_PER_PARAMETER = 4  # float32


@dataclass(frozen=True)
class Memory:
    """What the concepts of one cohort cost as vectors, and as codes.

    Attributes
    ----------
    continuous_parameters : int
        N vectors of V d numbers: the table that the codes replace.
    code_parameters : int
        V L K d numbers, summed over the kinds.
    indices : int
        N V L small integers, which are no parameters but have to be kept.
    continuous_bytes, code_bytes, index_bytes : int
        Of float32 vectors and codes, and of indices of the smallest type that holds K.
    """

    continuous_parameters: int
    code_parameters: int
    indices: int
    continuous_bytes: int
    code_bytes: int
    index_bytes: int

    @property
    def ratio_parameters(self) -> float:
        """Continuous parameters per parameter of the codes; indices are left out."""
        return self.continuous_parameters / max(self.code_parameters, 1)

    @property
    def ratio_bytes(self) -> float:
        """Continuous bytes per byte of codes and indices together."""
        return self.continuous_bytes / max(self.code_bytes + self.index_bytes, 1)

    def as_dict(self) -> dict[str, Any]:
        """Counts and both ratios."""
        return asdict(self) | {
            "ratio_parameters": self.ratio_parameters,
            "ratio_bytes": self.ratio_bytes,
        }


def memory(
    n_concepts: dict[str, int], n_codes: dict[str, int], *, levels: int, code_dim: int, views: int
) -> Memory:
    """Count parameters and bytes.

    Parameters
    ----------
    n_concepts, n_codes : dict of str to int
        N and K per kind of concept.
    """
    n = sum(n_concepts.values())
    continuous = n * views * code_dim
    codes = sum(views * levels * k * code_dim for k in n_codes.values())
    index_bytes = sum(
        n_concepts[kind] * views * levels * index_dtype(k).itemsize for kind, k in n_codes.items()
    )
    return Memory(
        continuous,
        codes,
        n * views * levels,
        continuous * _BYTES_PER_PARAMETER,
        codes * _BYTES_PER_PARAMETER,
        index_bytes,
    )


def memory_of(table: ConceptTable) -> Memory:
    """Count a table's own memory."""
    shapes = {kind: table.codes[kind].books.shape for kind in KINDS}
    views, levels, _, code_dim = shapes[KINDS[0]]
    return memory(
        {kind: len(table.codes[kind].index) for kind in KINDS},
        {kind: shape[2] for kind, shape in shapes.items()},
        levels=levels,
        code_dim=code_dim,
        views=views,
    )


def memory_of_paper(cohort: str) -> Memory:
    """Count the memory at the paper's sizes; ``cohort`` is one of `PAPER_SIZES`."""
    return memory(
        dict(zip(KINDS, PAPER_SIZES[cohort], strict=True)),
        PAPER_CODEBOOKS,
        levels=PAPER_LEVELS,
        code_dim=PAPER_CODE_DIM,
        views=PAPER_VIEWS,
    )


def memory_report(table: ConceptTable) -> dict[str, Any]:
    """Memory of a table and of the paper's two, with the paper's claim, for the manifest."""
    report: dict[str, Any] = {"this cohort": memory_of(table).as_dict()}
    report |= {f"paper, {name}": memory_of_paper(name).as_dict() for name in PAPER_SIZES}
    return report | {"paper_claims_up_to": PAPER_CLAIM}
