"""Build ``tests/data/molecules`` from QM9, QM8 and two data sets of MoleculeNet.

The same files give the same molecules::

    python tools/make_molecule_fixtures.py --qm9 qm9.parquet --qm8 qm8.csv.gz \
        --links qm8_to_qm9.csv.gz --bbbp bbbp.csv.gz --tox21 tox21.csv.gz

What is in the folder, from whom and under which licence, is written in its ``NOTICE.md``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor

from medrec.library.readers_tables import conformer

N_QM9, N_QM8, N_GDB9, N_PCQM, N_TABLE = 300, 200, 60, 40, 200
N_V3000 = 10
HARTREE_IN_EV = 27.211386245988
GDB9_COLUMNS = {
    "A": "RotA_GHz",
    "B": "RotB_GHz",
    "C": "RotC_GHz",
    "mu": "Dipole_debye",
    "alpha": "Polarizability_bohr3",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "gap": "HOMO_LUMO_gap_au",
    "r2": "R2_bohr2",
    "zpve": "ZPVE_au",
    "u0": "InternalEnergy_0K_au",
    "u298": "InternalEnergy_298K_au",
    "h298": "Enthalphy_298K_au",
    "g298": "GibbsFreeEnergy_298K_au",
    "cv": "Heatcapacity_Cv_cal_mol_K",
}


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("qm9", "qm8", "links", "bbbp", "tox21"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("tests/data/molecules"))
    options = parser.parse_args()
    rng, out = np.random.default_rng(0), options.out
    (out / "bad").mkdir(parents=True, exist_ok=True)
    full = pq.read_table(options.qm9)
    qm8_rows, numbers = choose(full, pd.read_csv(options.links), rng)
    qm9 = full.filter(pa.compute.is_in(full["index"], pa.array(numbers, pa.int32())))
    pq.write_table(qm9, out / "qm9.parquet", compression="zstd", compression_level=19)
    write_qm8(options, qm8_rows, out)
    molecules = placed_molecules(qm9)
    write_gdb9(qm9, molecules, out)
    write_pcqm(qm9, molecules, out)
    for name in ("bbbp", "tox21"):
        write_table(getattr(options, name), out / f"{name}.csv", rng)
    write_bad(qm9, out / "bad")


def choose(
    qm9: pa.Table, links: pd.DataFrame, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of QM8, two of which share a geometry, and numbers of molecules of QM9.

    QM8 has molecules of up to 8 heavy atoms; the others of QM9 are drawn from those with 9.
    """
    shared = links[links.qm9_index.duplicated(keep=False)].sort_values(["qm9_index", "row"])
    pair = shared.row.to_numpy()[:2]
    rest = np.setdiff1d(links.row.to_numpy()[5:], shared.row)
    drawn = rng.choice(rest, N_QM8 - 5 - len(pair), replace=False)
    rows = np.sort(np.concatenate([links.row.to_numpy()[:5], pair, drawn]))
    small = links.set_index("row").loc[rows, "qm9_index"].unique()
    heavy = np.array([(np.array(z) > 1).sum() for z in qm9["z"].to_pylist()])
    nine = qm9["index"].to_numpy()[heavy == 9]
    large = rng.choice(nine, N_QM9 - len(small), replace=False)
    return rows, np.sort(np.concatenate([small, large]))


def write_qm8(options: argparse.Namespace, rows: np.ndarray, out: Path) -> None:
    """Table and links of some rows, numbered anew."""
    table = pd.read_csv(options.qm8, dtype=str).iloc[rows]
    write_csv(table, out / "qm8.csv.gz")
    links = pd.read_csv(options.links).set_index("row").loc[rows].reset_index(drop=True)
    links.insert(0, "row", np.arange(len(links)))
    write_csv(links, out / "qm8_to_qm9.csv.gz")


def placed_molecules(qm9: pa.Table) -> dict[int, Chem.Mol]:
    """Molecules with hydrogens and coordinates by row, where the order of atoms is the same."""
    periodic, found = Chem.GetPeriodicTable(), {}
    for row, (smiles, z, flat) in enumerate(
        zip(*(qm9[name].to_pylist() for name in ("smiles", "z", "xyz_angstrom")), strict=True)
    ):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        if [atom.GetAtomicNum() for atom in mol.GetAtoms()] != z:
            continue
        xyz = np.array(flat, dtype=np.float64).reshape(-1, 3)
        ends = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()])
        radius = np.array([periodic.GetRcovalent(number) for number in z])
        length = np.linalg.norm(xyz[ends[:, 0]] - xyz[ends[:, 1]], axis=1)
        if (length < 1.3 * radius[ends].sum(axis=1)).all():
            place = Chem.Conformer(len(z))
            place.SetPositions(xyz)
            mol.AddConformer(place)
            found[row] = mol
    return found


def write_gdb9(qm9: pa.Table, molecules: dict[int, Chem.Mol], out: Path) -> None:
    """QM9's original layout: gdb9.sdf, gdb9.sdf.csv, and a list of molecules to leave out."""
    rows = list(molecules)[:: len(molecules) // N_GDB9][:N_GDB9]
    names = [f"gdb_{qm9['index'][row]}" for row in rows]
    blocks = [mol_block(molecules[row], name) for row, name in zip(rows, names, strict=True)]
    (out / "gdb9.sdf").write_text("".join(f"{block}$$$$\n" for block in blocks))
    frame = qm9.select(list(GDB9_COLUMNS.values())).to_pandas().iloc[rows]
    frame.columns = list(GDB9_COLUMNS)
    frame.insert(0, "mol_id", names)
    frame.to_csv(out / "gdb9.sdf.csv", index=False, lineterminator="\n")
    left_out = [names[7].removeprefix("gdb_"), names[30].removeprefix("gdb_")]
    lines = ["Made-up list in the layout of uncharacterized.txt", "=" * 40, "  Index   SMILES"]
    lines += [f"{number:>7}   -" for number in left_out] + ["2 compounds", ""]
    (out / "uncharacterized.txt").write_text("\n".join(lines))


def write_pcqm(qm9: pa.Table, molecules: dict[int, Chem.Mol], out: Path) -> None:
    """PCQM4Mv2's layout: heavy atoms alone, further rows of the table without a gap."""
    rows = list(molecules)[-N_PCQM:]
    blocks = []
    for number, row in enumerate(rows):
        heavy = Chem.RemoveHs(molecules[row])
        blocks.append(mol_block(heavy, "", v3000=number >= N_PCQM - N_V3000))
    text = "".join(f"{block}$$$$\n" for block in blocks)
    write_gzip(text, out / "pcqm4m-v2-train.sdf.gz")
    more = [row for row in range(5) if row not in rows]
    smiles, gap = (qm9[name].to_pylist() for name in ("smiles", "HOMO_LUMO_gap_au"))
    frame = pd.DataFrame(
        {
            "idx": range(len(rows) + len(more)),
            "smiles": [smiles[row] for row in rows + more],
            "homolumogap": [round(gap[row] * HARTREE_IN_EV, 6) for row in rows]
            + [None] * len(more),
        }
    )
    write_csv(frame, out / "pcqm4m-v2.csv.gz")


def write_table(source: Path, target: Path, rng: np.random.Generator) -> None:
    """Some rows of a table, with two that RDKit does not read if there are such."""
    table = pd.read_csv(source, dtype=str, keep_default_na=False)
    with rdBase.BlockLogs():
        readable = np.array([Chem.MolFromSmiles(text) is not None for text in table.smiles])
    bad = np.flatnonzero(~readable)[:2]
    good = rng.choice(np.flatnonzero(readable), N_TABLE - len(bad), replace=False)
    table.iloc[np.sort(np.concatenate([bad, good]))].to_csv(
        target, index=False, lineterminator="\n"
    )


def write_bad(qm9: pa.Table, out: Path) -> None:
    """Input that must be refused, or taken with care."""
    ethanol = embedded("CCO")
    flat = Chem.MolFromSmiles("CCO")
    rdDepictor.Compute2DCoords(flat)
    broken = mol_block(ethanol, "broken").splitlines()
    del broken[6:9]  # fewer atoms than the counts line says
    records: dict[str, list[str]] = {
        "flat": [mol_block(flat, "flat")],
        "dummy_atom": [mol_block(embedded("*CC"), "dummy")],
        "mixture": [mol_block(embedded("CCO.Cl"), "mixture")],
        "single_atom": [mol_block(embedded("[He]"), "helium")],
        "broken": [
            mol_block(ethanol, "before"),
            "\n".join(broken) + "\n",
            "",
            mol_block(ethanol, "after"),
        ],
        "other_molecule": [mol_block(ethanol, "ethanol"), mol_block(ethanol, "ethanol")],
    }
    for name, blocks in records.items():
        (out / f"{name}.sdf").write_text("".join(f"{block}$$$$\n" for block in blocks))
    (out / "other_molecule.csv").write_text("smiles,y\nCCO,1.5\nCCN,2.5\n")
    (out / "smiles.csv").write_text(
        "smiles,y,label\nCCO,1.5,1\nC1CC,2.0,0\n,3.0,1\n*CC,4.0,0\nCCO.Cl,5.0,1\n[He],6.0,\n"
        "CCN,,0\nCCC,inf,1\n"
    )
    pq.write_table(bad_qm9(qm9), out / "qm9.parquet", compression="zstd")


def bad_qm9(qm9: pa.Table) -> pa.Table:
    """Good row, other geometry, coordinates too short, NaN, two atoms at one place, no target."""
    rows: list[dict[str, Any]] = qm9.slice(10, 6).to_pylist()
    rows[1] |= {name: rows[0][name] for name in ("z", "xyz_angstrom")}
    rows[2]["xyz_angstrom"] = rows[2]["xyz_angstrom"][:-3]
    rows[3]["xyz_angstrom"][4] = float("nan")
    rows[4]["xyz_angstrom"][3:6] = rows[4]["xyz_angstrom"][:3]
    rows[5]["HOMO_au"] = float("nan")
    return pa.Table.from_pylist(rows, schema=qm9.schema)


def embedded(smiles: str) -> Chem.Mol:
    """A molecule with hydrogens and a conformer; a zigzag of atoms if RDKit makes none."""
    plain = Chem.MolFromSmiles(smiles)
    mol, position = Chem.AddHs(plain), conformer(plain, 99).position
    if position is None:
        steps = np.arange(mol.GetNumAtoms())
        position = np.column_stack([0.9 * steps, 0.9 * (steps % 2), 1.0 * steps])
    place = Chem.Conformer(mol.GetNumAtoms())
    place.SetPositions(position.astype(np.float64))
    mol.AddConformer(place)
    return mol


def mol_block(mol: Chem.Mol, title: str, *, v3000: bool = False) -> str:
    """Record without its delimiter."""
    mol = Chem.Mol(mol)
    mol.SetProp("_Name", title)
    block: str = Chem.MolToMolBlock(mol, forceV3000=v3000)
    return block


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Gzipped CSV; the same frame gives the same bytes."""
    write_gzip(frame.to_csv(index=False, lineterminator="\n"), path)


def write_gzip(text: str, path: Path) -> None:
    """Gzipped text without a time stamp."""
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
