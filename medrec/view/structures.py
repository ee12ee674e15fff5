"""One molecule for the page: facts, drawing, features, recorded failures, figures in 3D."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from medrec.runs import STORE_VARIABLE, Home
from medrec.view.molecules import Entry, Molecules, interactions
from medrec.view.replies import NotThereError, folder_of
from quantum.base import MedrecError
from quantum.molecule import species_from_smiles
from quantum.store import StoreLike, open_store

if TYPE_CHECKING:
    from medrec.molecules.features import FeatureTable

_BONDED = 1.25
"""Atoms nearer than this times the sum of their covalent radii are drawn as bonded."""
_STAGES = ("conformer_key", "elf_key", "features_key")


def molecule_detail(home: Home, molecules: Molecules, key: str) -> dict[str, Any]:
    """Facts of one species, where it occurs, what was computed and what failed.

    Raises
    ------
    NotThereError
        If no cohort and no feature table has it.
    """
    index = molecules.index()
    entry = index.entry(key)
    return {
        "key": key,
        "title": entry.title,
        "smiles": entry.smiles,
        "names": [{"name": name, "atc": atc} for name, atc in entry.names.items()],
        "facts": _facts(entry),
        "classes": [
            {"cohort": cohort, "atc": atc, "name": index.class_names.get(atc, "")}
            for cohort, codes in entry.classes.items()
            for atc in codes
        ],
        "interactions": interactions(home, entry, index.class_names),
        "tables": [_table_row(home, name, row) for name, row in entry.tables.items()],
    }


def _facts(entry: Entry) -> list[tuple[str, Any]]:
    from rdkit import Chem
    from rdkit.Chem import Descriptors

    species = entry.species or species_from_smiles(entry.smiles)
    mass = Descriptors.MolWt(Chem.MolFromSmiles(species.smiles))  # type: ignore[attr-defined]
    return [
        ("formula", species.formula),
        ("molar mass, g/mol", f"{mass:.2f}"),
        ("atoms", species.n_atoms),
        ("heavy atoms", species.n_heavy_atoms),
        ("charge, e", species.charge),
        ("multiplicity", species.multiplicity),
        ("InChIKey", species.inchikey),
        ("SMILES", species.smiles),
        ("species key", species.key),
    ]


def _load(home: Home, name: str) -> FeatureTable:
    from medrec.molecules.features import FeatureTable

    return FeatureTable.load(folder_of(home.features, name, "feature table"))


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _table_row(home: Home, name: str, row: int) -> dict[str, Any]:
    """What one feature table has of the species, and the failures that its store recorded."""
    try:
        table = _load(home, name)
    except MedrecError as error:
        return {"table": name, "error": str(error)}
    item = table.species.iloc[row].to_dict()
    keys = [str(item[stage]) for stage in _STAGES if _text(item.get(stage))]
    calculation = table.manifest.get("spec", {}).get("calculation", {})
    level = "/".join(_text(calculation.get(part)) for part in ("method", "basis"))
    return {
        "table": name,
        "conformer": _text(item.get("conformer_method")) or "none",
        "elf": bool(item["has_elf"]),
        "source": _text(item.get("source")) or "none",
        "level": level.strip("/"),
        "reason": _text(item.get("reason")),
        "has_map": bool(_text(item.get("elf_key"))),
        "failures": _failures(home, keys),
    }


def _failures(home: Home, keys: list[str]) -> list[dict[str, Any]]:
    try:
        found = _store(home).failures(keys)
    except MedrecError as error:
        return [{"stage": "store", "kind": error.kind, "message": str(error), "attempts": 0}]
    return [
        {"stage": f.stage, "kind": f.kind, "message": f.message, "attempts": f.attempts}
        for f in found.values()
    ]


def _store(home: Home) -> StoreLike:
    """The home's store, opened without writing."""
    return open_store(os.environ.get(STORE_VARIABLE) or home.store, make=False)


# --------------------------------------------------------------------------- features


def molecule_features(home: Home, molecules: Molecules, key: str, table: str) -> dict[str, Any]:
    """Features of one species in one table, by set, and how they stand among the others.

    Raises
    ------
    NotThereError
        If the table does not hold the species.
    """
    row, features = _row_of(home, molecules, key, table)
    if not features.elf_mask[row]:
        return {"table": table, "sets": [], "n_species": int(features.elf_mask.sum())}
    names = features.manifest["feature_names"]
    known = np.asarray(features.elf[features.elf_mask])
    own = np.asarray(features.elf[row])
    below = (known < own).mean(axis=0) + 0.5 * (known == own).mean(axis=0)
    sizes: dict[str, int] = features.manifest["feature_sets"]
    sets = [
        {
            "set": name,
            "rows": [
                {"name": names[i], "value": float(own[i]), "percentile": 100 * float(below[i])}
                for i in features.columns([name])
            ],
        }
        for name in features.manifest.get("feature_order", sorted(sizes))
        if sizes[name]
    ]
    return {"table": table, "sets": sets, "n_species": len(known)}


def _row_of(home: Home, molecules: Molecules, key: str, table: str) -> tuple[int, FeatureTable]:
    entry = molecules.index().entry(key)
    if table not in entry.tables:
        raise NotThereError("no feature table of that name holds this molecule")
    return entry.tables[table], _load(home, table)


# --------------------------------------------------------------------------- pictures


def drawing(molecules: Molecules, key: str, width: int = 420, height: int = 300) -> str:
    """Structure formula as SVG text on a transparent ground."""
    from rdkit import Chem
    from rdkit.Chem import rdDepictor
    from rdkit.Chem.Draw import rdMolDraw2D

    mol = Chem.MolFromSmiles(molecules.index().entry(key).smiles)
    rdDepictor.Compute2DCoords(mol)
    drawer = rdMolDraw2D.MolDraw2DSVG(width, height)
    options: Any = drawer.drawOptions()
    options.clearBackground = False
    options.padding = 0.06
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
    drawer.FinishDrawing()
    return str(drawer.GetDrawingText())


def conformer(home: Home, molecules: Molecules, key: str) -> dict[str, Any]:
    """Atoms (symbol and position in Angstrom) and bonds of the first conformer there is.

    Raises
    ------
    NotThereError
        If no table has one.
    """
    from rdkit import Chem

    table = Chem.GetPeriodicTable()
    for name in molecules.index().entry(key).tables:
        row, features = _row_of(home, molecules, key, name)
        found = features.conformer(row)
        if found is None:
            continue
        coords = np.asarray(found[1], dtype=np.float64)
        radii = np.array([table.GetRcovalent(int(z)) for z in found[0]])
        gap = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
        bonded = np.triu(gap < _BONDED * (radii[:, None] + radii[None]), k=1)
        return {
            "table": name,
            "symbols": [table.GetElementSymbol(int(z)) for z in found[0]],
            "coords": np.round(coords, 4),
            "bonds": np.argwhere(bonded),
        }
    raise NotThereError("no conformer of this molecule is in a feature table")
