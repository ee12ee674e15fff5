"""The exported cohort in PyHealth's form, and our molecules and interactions in its code maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PARTS = ("train", "validation", "test")
COLUMNS = {
    "visits.parquet": {"patient", "visit", "diagnoses", "procedures", "drugs", "part"},
    "molecules.parquet": {"atc", "smiles"},
    "ddi.parquet": {"atc_a", "atc_b"},
}
LEVEL3 = 4  # characters of an ATC level-3 code, the only level that PyHealth's models take


def read_cohort(folder: Path) -> dict[str, Any]:
    """The three tables, checked: rows of visits, one SMILES a class, pairs of classes."""
    import pyarrow.parquet as pq

    tables = {}
    for name, wanted in COLUMNS.items():
        path = folder / name
        if not path.is_file():
            raise SystemExit(f"{path} is missing; expected a folder with {', '.join(COLUMNS)}")
        table = pq.read_table(path)
        if missing := wanted - set(table.column_names):
            raise SystemExit(f"{path} lacks columns {sorted(missing)}; expected {sorted(wanted)}")
        tables[name] = table.to_pylist()
    visits = sorted(tables["visits.parquet"], key=lambda row: (row["patient"], row["visit"]))
    if wrong := {row["part"] for row in visits} - set(PARTS):
        raise SystemExit(f"{folder}/visits.parquet: parts {sorted(wrong)}; expected {PARTS}")
    codes = {code for row in visits for code in row["drugs"]}
    if wrong := sorted(code for code in codes if len(code) != LEVEL3):
        raise SystemExit(
            f"{folder}/visits.parquet: {len(wrong)} drug codes are not ATC level 3 "
            f"({wrong[0]!r} is one); PyHealth's models expect {LEVEL3} characters"
        )
    smiles: dict[str, str] = {}
    for row in tables["molecules.parquet"]:
        smiles.setdefault(row["atc"], row["smiles"])
    pairs = [[row["atc_a"], row["atc_b"]] for row in tables["ddi.parquet"]]
    return {"visits": visits, "smiles": smiles, "pairs": pairs}


def samples_of(visits: list[dict]) -> tuple[list[dict], dict[str, list[int]]]:
    """Samples in the form of PyHealth's drug-recommendation task, and the samples of each part.

    One sample a visit: histories up to and with this visit, drugs up to the visit before it and
    an empty list for this one.
    """
    samples: list[dict] = []
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    last, history = None, {"conditions": [], "procedures": [], "drugs": []}
    for row in visits:
        if row["patient"] != last:
            last, history = row["patient"], {"conditions": [], "procedures": [], "drugs": []}
        conditions = [*history["conditions"], list(row["diagnoses"])]
        procedures = [*history["procedures"], list(row["procedures"])]
        parts[row["part"]].append(len(samples))
        samples.append(
            {
                "patient_id": str(row["patient"]),
                "visit_id": f"{row['patient']}-{row['visit']}",
                "conditions": conditions,
                "procedures": procedures,
                "drugs_hist": [*history["drugs"], []],
                "drugs": list(row["drugs"]),
            }
        )
        drugs = [*history["drugs"], list(row["drugs"])]
        history = {"conditions": conditions, "procedures": procedures, "drugs": drugs}
    return samples, parts


def supply_code_maps(smiles: dict[str, str], pairs: list[list[str]]) -> None:
    """Give PyHealth's ATC object our molecules and interactions in place of its downloads.

    PyHealth reads SMILES from the 7-character nodes of its ATC graph and cuts their codes to level
    3, so each class gets one such node under it. Interacting pairs are cut the same way.
    """
    import networkx as nx
    from pyhealth.medcode import ATC

    graph = nx.DiGraph()
    for code, text in smiles.items():
        graph.add_node(f"{code}A01", smiles=text)

    def local_init(self: Any, **_: Any) -> None:
        self.vocabulary, self.graph = "ATC", graph
        self.ddi = {"DDI_GAMENet.csv": pairs, "DDI.csv": pairs}

    ATC.__init__ = local_init


def atoms_of(smiles: dict[str, str], classes: set[str]) -> int:
    """Atoms, hydrogens included, of the molecules of these classes.

    PyHealth's SafeDrug multiplies by one dense matrix of this many rows and columns in every
    update, so its cost follows the square of this number.
    """
    from rdkit import Chem

    molecules = (Chem.MolFromSmiles(smiles[code]) for code in classes & set(smiles))
    return sum(Chem.AddHs(mol).GetNumAtoms() for mol in molecules if mol is not None)
