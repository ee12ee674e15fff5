"""Which concepts share their whole code sequence, and which of them a second view tells apart.

The paper's collision rate is the share of concepts whose code sequence another concept has too; the
released code computes another quantity, one minus the number of different sequences per concept,
which is smaller (two concepts with one sequence: 1 and 0.5). Both are reported under their own
names. With two views a concept's code is the *pair* of its sequences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrec.concepts.table import KINDS, ConceptCodes, ConceptTable
from quantum.base import InputError

JOINT = "joint"
PAPER_PAIR = ("5859", "5849")
"""Chronic kidney disease and acute kidney failure, unspecified: the paper's Fig. 4 (ICD-9-CM)."""

Sequences = npt.NDArray[np.integer[Any]]


def sequences(codes: ConceptCodes, view: str = JOINT) -> Sequences:
    """Code sequences (N, L) of a view, or (N, V L) of all views together.

    Raises
    ------
    InputError
        If the codes lack the view.
    """
    if view == JOINT:
        n, n_views, n_levels = codes.index.shape
        return codes.index.reshape(n, n_views * n_levels)
    if view not in codes.views:
        raise InputError(
            f"no view '{view}' among the codes; expected one of {', '.join((*codes.views, JOINT))}"
        )
    return codes.index[:, codes.views.index(view)]


def group_numbers(index: Sequences) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Number of each row's group of equal rows (N,), and how many rows its group has (N,)."""
    if not len(index):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, group, counts = np.unique(index, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1).astype(np.int64)
    return group, counts[group].astype(np.int64)


def collision_rate(index: Sequences) -> float:
    """Share of rows (N, n) that another row equals: the paper's definition; 0 without rows."""
    _, size = group_numbers(index)
    return float((size > 1).mean()) if len(size) else 0.0


def repeated_share(index: Sequences) -> float:
    """One minus different rows per row: the released code's definition; 0 without rows."""
    return 1.0 - len(np.unique(index, axis=0)) / len(index) if len(index) else 0.0


def collision_table(table: ConceptTable) -> pd.DataFrame:
    """Collisions per kind and view.

    Returns
    -------
    DataFrame
        ``kind``, ``codes`` (a view or ``joint``), ``concepts``, ``different``, ``collision_rate``
        (the paper's) and ``one_minus_different`` (the released code's).
    """
    rows = []
    for kind in KINDS:
        codes = table.codes[kind]
        for view in (*codes.views, JOINT) if len(codes.views) > 1 else codes.views:
            index = sequences(codes, view)
            rows.append(
                {
                    "kind": kind,
                    "codes": view,
                    "concepts": len(index),
                    "different": len(np.unique(index, axis=0)),
                    "collision_rate": collision_rate(index),
                    "one_minus_different": repeated_share(index),
                }
            )
    return pd.DataFrame(rows)


def colliding_groups(table: ConceptTable, kind: str, view: str = JOINT) -> pd.DataFrame:
    """Concepts that share their code sequence, largest groups first.

    Returns
    -------
    DataFrame
        ``kind``, ``group`` (from 0), ``size``, ``code``, ``title``.
    """
    number, size = group_numbers(sequences(table.codes[kind], view))
    frame = pd.DataFrame(
        {
            "kind": kind,
            "group": number,
            "size": size,
            "code": list(table.views[kind].codes),
            "title": list(table.titles(kind)),
        }
    )
    frame = frame[frame["size"] > 1].sort_values(
        ["size", "group", "code"], ascending=[False, True, True]
    )
    frame["group"] = pd.factorize(frame["group"])[0]
    return frame.reset_index(drop=True)


def told_apart(
    table: ConceptTable, kind: str, without: ConceptTable | None = None, n_neighbours: int = 4
) -> pd.DataFrame:
    """Concepts that collide without structure and not with it, and their place in the graph.

    Parameters
    ----------
    without : ConceptTable, optional
        A table of the same cohort whose codes are of the semantic view alone, trained without the
        structural one: the paper's w/o SE. By default the semantic sequences of ``table`` itself.
    n_neighbours : int
        Neighbours that are listed; those that the group's members do not all have come first.

    Returns
    -------
    DataFrame
        ``kind``, ``group`` (concepts that were one), ``code``, ``title``, ``still_with`` (members
        that have the same codes with structure too), ``neighbours``.
    """
    before = _semantic(table if without is None else without, kind, table.views[kind].codes)
    after, _ = group_numbers(sequences(table.codes[kind]))
    group, _ = group_numbers(before)
    frame = pd.DataFrame({"group": group, "after": after})
    by_group = frame.groupby("group")["after"]
    frame["still_with"] = frame.groupby(["group", "after"])["after"].transform("size") - 1
    split = by_group.transform("nunique") > 1
    codes, titles = table.views[kind].codes, table.titles(kind)
    rows: list[dict[str, Any]] = []
    for number, (_, members) in enumerate(frame[split].groupby("group")):
        near = {i: table.neighbours(kind, codes[i]) for i in members.index}
        shared = set.intersection(*(set(found) for found in near.values()))
        rows += [
            {
                "kind": kind,
                "group": number,
                "code": codes[i],
                "title": titles[i],
                "still_with": int(members.loc[i, "still_with"]),
                "neighbours": "; ".join(
                    f"{relation} {label}"
                    for relation, label in sorted(near[i], key=lambda edge: edge in shared)[
                        :n_neighbours
                    ]
                ),
            }
            for i in members.index
        ]
    columns = ["kind", "group", "code", "title", "still_with", "neighbours"]
    return pd.DataFrame(rows, columns=columns)


def _semantic(table: ConceptTable, kind: str, codes: tuple[str, ...]) -> Sequences:
    """Semantic sequences of a table, rows in the order of ``codes``."""
    place = {code: row for row, code in enumerate(table.views[kind].codes)}
    missing = [code for code in codes if code not in place]
    if missing:
        raise InputError(
            f"concept table {table.folder.name} lacks {len(missing)} of {len(codes)} {kind} codes "
            f"(first: {missing[0]}); expected a table of the same cohort"
        )
    return sequences(table.codes[kind], "semantic")[[place[code] for code in codes]]


def pair_codes(table: ConceptTable, pair: tuple[str, str] = PAPER_PAIR) -> list[dict[str, Any]]:
    """Codes of two ICD-9-CM diagnoses side by side; empty if one is not in the table.

    Returns
    -------
    list of dict
        Per view: ``codes``, the sequences ``first`` and ``second``, ``shared_levels`` (how many
        codes agree before the first that does not) and ``collide``.
    """
    place = {
        code.removeprefix("icd9:"): row for row, code in enumerate(table.views["diagnoses"].codes)
    }
    if not all(code in place for code in pair):
        return []
    codes = table.codes["diagnoses"]
    rows = []
    for view in codes.views:
        first, second = (sequences(codes, view)[place[code]] for code in pair)
        agree = first == second
        rows.append(
            {
                "codes": view,
                "first": " ".join(map(str, first)),
                "second": " ".join(map(str, second)),
                "shared_levels": int(np.cumprod(agree).sum()),
                "collide": bool(agree.all()),
            }
        )
    return rows
