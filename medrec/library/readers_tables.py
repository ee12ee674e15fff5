"""Tables of SMILES: the data sets of MoleculeNet, and one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom

from medrec.config_molecules import MoleculeNetSource, SmilesSource
from medrec.library.readers_files import (
    Geometry,
    SourceReader,
    SourceTable,
    check_units,
    is_label,
    number_columns,
    smiles_record,
    text_column,
)
from medrec.library.records import Record, Target
from quantum.base import DataError

REPEATED = "SMILES of an earlier row"
CONFORMER_SEED = 42
CONFORMER_ATTEMPTS = 50
CONFORMER_SECONDS = 60
"""A guard against molecules whose embedding does not end; the attempts end first otherwise."""
PART_GAP_ANGSTROM = 12.0
"""Between parts of a mixture: beyond the cut-off of encoders, as their arrangement is unknown."""


@dataclass(frozen=True)
class TableLayout:
    """How a data set of MoleculeNet is laid out as CSV.

    Attributes
    ----------
    columns : tuple of tuple of str, or int
        Names that a target column may have, the library's name first; or the number of target
        columns: then all are targets but ``not_targets``.
    unique : bool
        Rows whose SMILES stood in an earlier row are rejected.
    """

    columns: tuple[tuple[str, ...], ...] | int
    smiles: str = "smiles"
    kind: Literal["regression", "classification"] = "classification"
    unit: str = ""
    unique: bool = False
    not_targets: tuple[str, ...] = ("mol_id", "num", "name")


DATASETS: dict[str, TableLayout] = {
    "bace": TableLayout((("Class",),), smiles="mol"),
    "bbbp": TableLayout((("p_np",),)),
    "clintox": TableLayout((("FDA_APPROVED",), ("CT_TOX",))),
    "esol": TableLayout(
        (("logSolubility", "measured log solubility in mols per litre"),),
        kind="regression",
        unit="log10(mol/L)",
    ),
    "freesolv": TableLayout((("freesolv", "expt"),), kind="regression", unit="kcal/mol"),
    # the screening table has 41,913 rows of 41,127 different SMILES; the data set has the latter
    "hiv": TableLayout((("HIV_active",),), unique=True),
    "lipo": TableLayout((("lipo", "exp"),), kind="regression", unit="logD (pH 7.4)"),
    "muv": TableLayout(17),
    "sider": TableLayout(27),
    "tox21": TableLayout(12),
    "toxcast": TableLayout(617),
}
"""Wu et al., Chem. Sci. 9, 513 (2018), as DeepChem and GROVER distribute the tables."""


class TableReader(SourceReader):
    """Records of a table of SMILES, held in memory as text and numbers.

    Parameters
    ----------
    values : float64 array (rows, T)
    max_atoms : int or None
        Make one conformer for molecules of up to so many heavy atoms; None makes none.
    """

    def __init__(
        self,
        table: SourceTable,
        smiles: Sequence[str],
        targets: Sequence[Target],
        values: npt.NDArray[np.float64],
        *,
        limit: int | None = None,
        unique: bool = False,
        max_atoms: int | None = None,
    ) -> None:
        super().__init__([table.path], targets, len(smiles), limit)
        self._smiles, self._values, self._max_atoms = smiles, values, max_atoms
        self._repeated = _repeats(smiles) if unique else np.zeros(len(smiles), dtype=bool)

    def read(self, start: int, stop: int) -> Iterator[Record]:
        """Yield records; the identifier is the row, from 0."""
        for row in self._range(start, stop):
            reason = REPEATED if self._repeated[row] else ""
            record = smiles_record(
                str(row), self._smiles[row], self._values[row].copy(), reason=reason
            )
            if self._max_atoms is not None and record.mol is not None:
                geometry = conformer(record.mol, self._max_atoms)
                record = record._replace(element=geometry.element, position=geometry.position)
            yield record


def _repeats(smiles: Sequence[str]) -> npt.NDArray[np.bool_]:
    return ~pl.Series(smiles).is_first_distinct().to_numpy()


def open_moleculenet(source: MoleculeNetSource, limit: int | None = None) -> TableReader:
    """Open one data set of MoleculeNet.

    Raises
    ------
    InputError, DataError
        No file, no such column, another number of target columns, labels other than 0 and 1.
    """
    layout = DATASETS[source.dataset]
    table = SourceTable(source.path, "source.path")
    table.require([layout.smiles])
    columns = _target_columns(table, layout, source.dataset)
    frame = table.read([layout.smiles, *columns])
    labels = layout.kind == "classification"
    values = number_columns(frame, list(columns), table.path, labels=labels)
    targets = [Target(name, layout.unit, layout.kind) for name in columns.values()]
    smiles = text_column(frame, layout.smiles)
    return TableReader(table, smiles, targets, values, limit=limit, unique=layout.unique)


def _target_columns(table: SourceTable, layout: TableLayout, dataset: str) -> dict[str, str]:
    """Column of the file to name of the target."""
    if isinstance(layout.columns, int):
        others = {layout.smiles.lower(), *layout.not_targets}
        found = {name: name for name in table.names if name.lower() not in others}
        if len(found) != layout.columns:
            raise DataError(
                f"{table.path}: {len(found)} target columns; data set {dataset} has "
                f"{layout.columns} beside '{layout.smiles}'"
            )
        return found
    found = {}
    for names in layout.columns:
        present = [name for name in names if table.has(name)]
        if not present:
            table.require(names[:1])
        found[present[0]] = names[0]
    return found


def open_smiles(source: SmilesSource, limit: int | None, max_atoms: int) -> TableReader:
    """Open one's own table of SMILES.

    A target column of nothing but 0 and 1 is a classification.

    Raises
    ------
    InputError, DataError
        No file, no such column, text in a target column, another number of units than targets.
    """
    units = check_units(source.target_columns, source.units)
    table = SourceTable(source.path, "source.path")
    frame = table.read([source.smiles_column, *source.target_columns])
    values = number_columns(frame, source.target_columns, table.path)
    return TableReader(
        table,
        text_column(frame, source.smiles_column),
        table_targets(source.target_columns, units, values),
        values,
        limit=limit,
        max_atoms=max_atoms if source.conformers else None,
    )


def table_targets(
    names: Sequence[str], units: Sequence[str], values: npt.NDArray[np.float64]
) -> list[Target]:
    """Targets of one's own table; columns of nothing but 0 and 1 are labels."""
    labels = is_label(values) & ~np.isnan(values).all(axis=0)
    return [
        Target(name, unit, "classification" if label else "regression")
        for name, unit, label in zip(names, units, labels, strict=True)
    ]


def conformer(mol: Chem.Mol, max_atoms: int) -> Geometry:
    """One conformer with all hydrogens (ETKDGv3, seed 42, no force field), or none.

    Parts of a mixture, which RDKit puts on top of each other, are lined up along x.

    Parameters
    ----------
    max_atoms : int
        Molecules with more heavy atoms get none.
    """
    if not 0 < mol.GetNumAtoms() <= max_atoms:
        return Geometry()
    parameters: Any = rdDistGeom.ETKDGv3()  # its stubs lack the attributes
    parameters.randomSeed = CONFORMER_SEED
    parameters.maxIterations = CONFORMER_ATTEMPTS
    parameters.timeout = CONFORMER_SECONDS
    with rdBase.BlockLogs():
        full = Chem.AddHs(mol)
        try:
            number = rdDistGeom.EmbedMolecule(full, parameters)
        except (RuntimeError, ValueError):
            number = -1
    if number < 0:
        return Geometry()
    element = np.array([atom.GetAtomicNum() for atom in full.GetAtoms()], dtype=np.uint8)
    position = full.GetConformer(number).GetPositions()
    _line_up(position, Chem.GetMolFrags(full))
    return Geometry(element, position.astype(np.float32))


def _line_up(position: npt.NDArray[np.float64], parts: Sequence[Sequence[int]]) -> None:
    """Shift parts (numbers of their atoms) along x, in place, so that none is near another."""
    for before, part in pairwise(list(part) for part in parts):
        shift = position[before, 0].max() + PART_GAP_ANGSTROM - position[part, 0].min()
        position[part, 0] += shift
