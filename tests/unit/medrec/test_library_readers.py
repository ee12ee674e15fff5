"""Readers of QM9, QM8, MoleculeNet, SDF and tables of SMILES."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.constants
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, rdBase
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from medrec.config_molecules import MOLECULENET, LibraryConfig
from medrec.library import readers_sdf
from medrec.library.readers import open_source
from medrec.library.readers_qm import HARTREE_IN_MEV, QM8_TARGETS, QM9_COLUMNS, excluded_numbers
from medrec.library.readers_tables import DATASETS, conformer
from medrec.library.records import MoleculeReader, Record
from medrec.loading import load_config
from quantum import units
from quantum.base import DataError, InputError, MedrecError, file_digest


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    return root / "tests/data/molecules"


def config(source: dict[str, Any], **settings: Any) -> LibraryConfig:
    return LibraryConfig.model_validate({"name": "x", "source": source, **settings})


def opened(source: dict[str, Any], **settings: Any) -> MoleculeReader:
    return open_source(config(source, **settings))


def records(source: dict[str, Any], **settings: Any) -> list[Record]:
    reader = opened(source, **settings)
    return list(reader.read(0, len(reader)))


def equal(one: Record, other: Record) -> bool:
    """Whether two records say the same; molecules by their SMILES."""
    return all(
        np.array_equal(a, b, equal_nan=True)
        if isinstance(a, np.ndarray) and a.dtype.kind == "f" and isinstance(b, np.ndarray)
        else np.array_equal(a, b)
        for a, b in zip(one._replace(mol=None), other._replace(mol=None), strict=True)
    ) and (one.mol and Chem.MolToSmiles(one.mol)) == (other.mol and Chem.MolToSmiles(other.mol))


def formula(elements: Sequence[int]) -> list[int]:
    return sorted(int(z) for z in elements)


def all_atoms(mol: Chem.Mol) -> list[int]:
    return formula([atom.GetAtomicNum() for atom in Chem.AddHs(mol).GetAtoms()])


def mol_block(smiles: str, title: str = "") -> str:
    mol = Chem.MolFromSmiles(smiles)
    geometry = conformer(mol, 99)
    full = Chem.AddHs(mol)
    place = Chem.Conformer(full.GetNumAtoms())
    place.SetPositions(geometry.position.astype(np.float64))
    full.AddConformer(place)
    full.SetProp("_Name", title)
    return Chem.MolToMolBlock(full)


# --------------------------------------------------------------------------- QM9


def test_energies_of_qm9_are_in_mev() -> None:
    hartree = scipy.constants.physical_constants["Hartree energy in eV"][0]
    assert pytest.approx(1000 * hartree, rel=1e-10) == HARTREE_IN_MEV
    assert pytest.approx(1000 * units.HARTREE_IN_EV, rel=1e-15) == HARTREE_IN_MEV


def test_qm9_records_are_the_rows_of_the_file(data: Path) -> None:
    path = data / "qm9.parquet"
    frame, found = pd.read_parquet(path), records({"format": "qm9", "path": path})
    assert [r.identifier for r in found] == [f"gdb_{n}" for n in frame["index"]]
    assert [r.smiles for r in found] == frame.smiles.tolist()
    for record, z, xyz in zip(found, frame.z, frame.xyz_angstrom, strict=True):
        assert record.element.dtype == np.uint8
        assert record.position.dtype == np.float32
        assert np.array_equal(record.element, z)
        assert np.array_equal(record.position, np.reshape(xyz, (-1, 3)))
        assert not record.reason
        assert all_atoms(record.mol) == formula(z)
    targets = np.array([r.targets for r in found])
    names = [t.name for t in opened({"format": "qm9", "path": path}).targets]
    assert " ".join(names) == "alpha gap homo lumo mu cv g h r2 u u0 zpve"
    for column, name in enumerate(names):
        unit = 27211.386245988 if QM9_COLUMNS[name].unit == "meV" else 1.0
        expected = frame[QM9_COLUMNS[name].parquet] * unit
        assert targets[:, column] == pytest.approx(expected, rel=1e-14)
    methane = dict(zip(names, targets[0], strict=True))
    assert methane["gap"] == pytest.approx(13736.3, abs=0.1)  # 13.74 eV
    assert methane["alpha"] == 13.21


def test_slices_of_any_row_groups_are_parts_of_the_whole(data: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(data / "qm9.parquet"), tmp_path / "q.parquet", row_group_size=37)
    whole = records({"format": "qm9", "path": data / "qm9.parquet"})
    reader = opened({"format": "qm9", "path": tmp_path / "q.parquet"})
    for start, stop in ((0, 300), (36, 38), (37, 74), (290, 999), (100, 100), (299, 300)):
        part = list(reader.read(start, stop))
        assert len(part) == len(whole[start:stop])
        assert all(equal(a, b) for a, b in zip(part, whole[start:stop], strict=True))


def test_limit_gives_the_first_records(data: Path) -> None:
    source = {"format": "qm9", "path": data / "qm9.parquet"}
    reader = opened(source, limit=7)
    assert len(reader) == 7
    assert len(list(reader.read(0, 100))) == 7
    assert len(opened(source, limit=1000)) == 300


def test_both_forms_of_qm9_agree(data: Path) -> None:
    parquet = {r.identifier: r for r in records({"format": "qm9", "path": data / "qm9.parquet"})}
    sdf = records({"format": "qm9", "path": data / "gdb9.sdf"})
    assert len(sdf) == 60
    for record in sdf:
        other = parquet[record.identifier]
        assert record.targets == pytest.approx(other.targets, rel=1e-12)
        assert np.array_equal(record.element, other.element)
        assert record.position == pytest.approx(other.position, abs=6e-5)
        assert CalcMolFormula(record.mol) == CalcMolFormula(other.mol)
    assert len({Chem.MolToSmiles(r.mol, isomericSmiles=False) for r in sdf}) == 60


@pytest.mark.parametrize("name", ["qm9.parquet", "gdb9.sdf"])
def test_inconsistent_molecules_are_left_out_by_name(data: Path, name: str) -> None:
    source = {"format": "qm9", "path": data / name}
    numbers = excluded_numbers(data / "uncharacterized.txt")
    assert len(numbers) == 2
    found = records(source | {"exclude": data / "uncharacterized.txt"})
    left_out = {r.identifier for r in found if r.reason}
    assert left_out == {f"gdb_{n}" for n in numbers}
    assert (
        opened(source).digest()
        != opened(source | {"exclude": data / "uncharacterized.txt"}).digest()
    )


def test_a_list_of_exclusions_has_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("heading 7\n---\n  21 C#N C#N 1\n58\n3054 compounds\n")
    assert excluded_numbers(tmp_path / "a.txt") == {21, 58}
    (tmp_path / "b.txt").write_text("nothing\n")
    with pytest.raises(DataError, match=r"b\.txt: no numbers"):
        excluded_numbers(tmp_path / "b.txt")


def test_spoilt_rows_of_qm9_come_as_they_are_or_with_a_reason(data: Path) -> None:
    good, other, short, nan, same, missing = records(
        {"format": "qm9", "path": data / "bad/qm9.parquet"}
    )
    assert not good.reason
    assert all_atoms(other.mol) != formula(other.element)
    assert short.reason == "3D coordinates of another number of atoms"
    assert short.position is None
    assert np.isnan(nan.position).sum() == 1
    assert np.array_equal(same.position[0], same.position[1])
    assert np.flatnonzero(np.isnan(missing.targets)).tolist() == [2]


# --------------------------------------------------------------------------- QM8


def test_qm8_has_the_geometries_of_qm9(data: Path) -> None:
    source = {"format": "qm8", "path": data / "qm8.csv.gz"}
    links = {"qm9": data / "qm9.parquet", "links": data / "qm8_to_qm9.csv.gz"}
    reader = opened(source | links)
    frame = pd.read_csv(data / "qm8.csv.gz")
    of_qm9 = pd.read_parquet(data / "qm9.parquet").set_index("index")
    linked = pd.read_csv(data / "qm8_to_qm9.csv.gz").qm9_index
    assert [t.name for t in QM8_TARGETS] == frame.columns[1:].tolist()
    assert {t.unit for t in QM8_TARGETS} == {"Hartree", ""}
    for row, record in enumerate(reader.read(0, 200)):
        assert record.targets == pytest.approx(frame.iloc[row, 1:].astype(float))
        assert np.array_equal(record.position.ravel(), of_qm9.xyz_angstrom[linked[row]])
        assert all_atoms(record.mol) == formula(record.element)
        assert all(atom.GetAtomicNum() > 1 for atom in record.mol.GetAtoms())
    assert reader.notes[0].startswith("2 rows share")
    flat = records(source)
    assert all(r.position is None and r.mol is not None for r in flat)


def test_rows_without_a_link_have_no_geometry(data: Path, tmp_path: Path) -> None:
    links = pd.read_csv(data / "qm8_to_qm9.csv.gz").iloc[10:]
    links.to_csv(tmp_path / "links.csv", index=False)
    source = {"format": "qm8", "path": data / "qm8.csv.gz", "qm9": data / "qm9.parquet"}
    reader = opened(source | {"links": tmp_path / "links.csv"})
    assert [r.position is None for r in reader.read(0, 12)] == [True] * 10 + [False] * 2
    assert reader.notes[1] == "10 rows have no geometry"
    with pytest.raises(InputError, match=r"source\.links is missing"):
        opened(source)
    links.assign(row=links.row + 100).to_csv(tmp_path / "links.csv", index=False)
    with pytest.raises(DataError, match=r"links\.csv: column 'row': 100 of 190 .* has 200"):
        opened(source | {"links": tmp_path / "links.csv"})


# --------------------------------------------------------------------------- tables


@pytest.mark.parametrize(("name", "unreadable"), [("bbbp", 0), ("tox21", 2)])
def test_moleculenet_tables(data: Path, name: str, unreadable: int) -> None:
    path = data / f"{name}.csv"
    frame = pd.read_csv(path)
    source = {"format": "moleculenet", "dataset": name, "path": path}
    found, targets = records(source), opened(source).targets
    assert [r.smiles for r in found] == frame.smiles.tolist()
    expected = frame.drop(columns="smiles")
    assert [t.name for t in targets] == expected.columns.tolist()
    assert {t.kind for t in targets} == {"classification"}
    values = np.array([r.targets for r in found])
    assert np.array_equal(values, expected.to_numpy(np.float64), equal_nan=True)
    refused = [r for r in found if r.reason]
    assert [r.reason for r in refused] == ["RDKit cannot read the SMILES"] * unreadable
    assert all(r.mol is None for r in refused)


def test_every_data_set_of_moleculenet_is_known() -> None:
    assert set(DATASETS) == set(MOLECULENET)


@pytest.mark.parametrize("header", ["smiles,lipo", "CMPD_CHEMBLID,exp,smiles", "SMILES,LIPO"])
def test_common_names_of_columns_are_taken(tmp_path: Path, header: str) -> None:
    values = {"smiles": "CCO", "lipo": "1.5", "exp": "1.5", "cmpd_chemblid": "x"}
    row = ",".join(values[name.lower()] for name in header.split(","))
    (tmp_path / "lipo.csv").write_text(f"{header}\n{row}\n")
    source = {"format": "moleculenet", "dataset": "lipo", "path": tmp_path / "lipo.csv"}
    reader = opened(source)
    assert reader.targets[0][:3] == ("lipo", "logD (pH 7.4)", "regression")
    assert [(r.smiles, r.targets.tolist()) for r in reader.read(0, 9)] == [("CCO", [1.5])]


def test_repeated_rows_of_hiv_are_refused(tmp_path: Path) -> None:
    text = "smiles,activity,HIV_active\nCCO,CI,0\nCC,CM,1\nCCO,CA,1\n"
    (tmp_path / "hiv.csv").write_text(text)
    found = records({"format": "moleculenet", "dataset": "hiv", "path": tmp_path / "hiv.csv"})
    assert [r.reason for r in found] == ["", "", "SMILES of an earlier row"]


def test_labels_are_0_and_1(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("smiles,p_np\nCCO,0\nCC,2\nC,\nN,-1\n")
    source = {"format": "moleculenet", "dataset": "bbbp", "path": tmp_path / "t.csv"}
    with pytest.raises(DataError, match=r"t\.csv: column 'p_np': 2 of 4 labels"):
        opened(source)


def test_tables_of_ones_own(data: Path) -> None:
    source = {
        "format": "smiles",
        "path": data / "bad/smiles.csv",
        "target_columns": ["y", "label"],
        "units": ["eV", ""],
    }
    assert [tuple(t) for t in opened(source).targets] == [
        ("y", "eV", "regression"),
        ("label", "", "classification"),
    ]
    found = records(source)
    assert [r.reason for r in found] == [
        "", "RDKit cannot read the SMILES", "no SMILES", "", "", "", "", "",
    ]  # fmt: skip
    assert np.isnan(found[6].targets[0])
    assert np.isnan(found[5].targets[1])
    assert np.isinf(found[7].targets[0])
    assert all(r.position is None for r in found)


def test_conformers_are_the_same_in_every_slice(data: Path) -> None:
    source = {"format": "smiles", "path": data / "bad/smiles.csv", "conformers": True}
    found = records(source)
    alone = next(iter(opened(source).read(6, 7)))
    assert equal(found[6], alone)
    for record in found:
        if record.position is not None:
            full = Chem.AddHs(record.mol)
            assert record.element.tolist() == [a.GetAtomicNum() for a in full.GetAtoms()]
            assert np.isfinite(record.position).all()
    assert [r.position is None for r in found[:3]] == [False, True, True]
    small = records(source, max_atoms=2)
    assert small[0].position is None
    assert small[0].mol is not None
    assert small[5].position is not None  # one atom


def test_parts_of_a_mixture_are_apart() -> None:
    mol = Chem.MolFromSmiles("CCO.[Na+].[Cl-].c1ccccc1")
    position = conformer(mol, 99).position
    parts = [list(part) for part in Chem.GetMolFrags(Chem.AddHs(mol))]
    for number, part in enumerate(parts):
        other = [atom for atoms in parts[:number] for atom in atoms]
        between = np.linalg.norm(position[part][:, None] - position[other][None], axis=-1)
        assert between.min(initial=np.inf) >= 11.99


def test_a_molecule_that_cannot_be_embedded_has_no_positions() -> None:
    # two carbons joined by six bridges of one atom do not fit into three dimensions
    mol = Chem.MolFromSmiles("C1(C2)(C3)C45C6C1C4C2C5C36", sanitize=False)
    mol.UpdatePropertyCache(strict=False)
    Chem.GetSymmSSSR(mol)
    assert conformer(mol, 99).position is None
    assert conformer(Chem.MolFromSmiles(""), 99).position is None


# --------------------------------------------------------------------------- SDF


def pcqm(data: Path) -> dict[str, Any]:
    return {
        "format": "sdf",
        "path": data / "pcqm4m-v2-train.sdf.gz",
        "targets": data / "pcqm4m-v2.csv.gz",
        "target_columns": ["homolumogap"],
        "units": ["eV"],
    }


def test_records_of_pcqm_are_those_of_rdkit(data: Path) -> None:
    found, frame = records(pcqm(data)), pd.read_csv(data / "pcqm4m-v2.csv.gz")
    assert len(frame) > len(found) == 40
    with gzip.open(data / "pcqm4m-v2-train.sdf.gz") as handle:
        text = handle.read()
    assert text.count(b"V3000\n") == 10
    supplier = Chem.ForwardSDMolSupplier(io.BytesIO(text))
    for row, (record, mol) in enumerate(zip(found, supplier, strict=True)):
        assert not record.reason
        assert record.identifier == str(row)
        assert record.smiles == frame.smiles[row]
        assert record.targets == pytest.approx([frame.homolumogap[row]])
        assert Chem.MolToSmiles(record.mol) == Chem.MolToSmiles(mol)
        assert record.position == pytest.approx(mol.GetConformer().GetPositions(), abs=1e-6)
        assert record.element.tolist() == [atom.GetAtomicNum() for atom in mol.GetAtoms()]


def test_slices_across_files_of_a_folder(data: Path, tmp_path: Path) -> None:
    blocks = (data / "gdb9.sdf").read_text().split("$$$$\n")[:-1]
    (tmp_path / "a.sdf").write_text("".join(f"{block}$$$$\n" for block in blocks[:25]))
    text = "".join(f"{block}$$$$\n" for block in blocks[25:]).removesuffix("$$$$\n")
    with gzip.open(tmp_path / "b.sdf.gz", "wb") as handle:
        handle.write(text.replace("\n", "\r\n").encode())
    (tmp_path / "notes.txt").write_text("ignored")
    whole = records({"format": "sdf", "path": data / "gdb9.sdf"})
    reader = opened({"format": "sdf", "path": tmp_path})
    for start, stop in ((0, 60), (20, 30), (24, 26), (25, 60), (59, 99), (3, 3)):
        part = list(reader.read(start, stop))
        assert len(part) == len(whole[start:stop])
        assert all(equal(a, b) for a, b in zip(part, whole[start:stop], strict=True))
    assert len(opened({"format": "sdf", "path": tmp_path}, limit=30)) == 30


@given(
    bodies=st.lists(st.text("ab$ \n", max_size=9), min_size=1, max_size=6),
    block=st.integers(1, 12),
    ends=st.sampled_from(["$$$$\n", "$$$$ \n", "$$$$"]),
)
def test_places_of_records_are_those_of_a_search_by_line(
    bodies: list[str], block: int, ends: str
) -> None:
    text = "".join(f"{body}\n$$$$\n" for body in bodies[:-1]) + f"{bodies[-1]}\n{ends}"
    expected, offset = [0], 0
    for line in text.splitlines(keepends=True):
        offset += len(line)
        if line.startswith("$$$$") and line.endswith("\n"):
            expected.append(offset)
    if text[expected[-1] :].strip().strip("$"):
        expected.append(offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers_sdf, "_BLOCK_BYTES", block)
        found = readers_sdf._scan(io.BytesIO(text.encode()), None)
        few = readers_sdf._scan(io.BytesIO(text.encode()), 2)
    assert found.tolist() == expected
    assert few.tolist() == expected[:3]


def test_broken_and_empty_records_do_not_hide_the_next(data: Path) -> None:
    found = records({"format": "sdf", "path": data / "bad/broken.sdf"})
    bad = "RDKit cannot read the SDF record"
    assert [r.reason for r in found] == ["", bad, bad, ""]
    assert [r.identifier for r in found] == ["before", "broken", "$$$$", "after"]


@pytest.mark.parametrize(
    ("name", "placed", "atoms", "smiles"),
    [
        ("flat", False, 3, "CCO"),
        ("single_atom", True, 1, "[He]"),
        ("dummy_atom", True, 3, "*CC"),
        ("mixture", True, 4, "CCO.Cl"),
    ],
)
def test_unusual_records(data: Path, name: str, placed: bool, atoms: int, smiles: str) -> None:
    (record,) = records({"format": "sdf", "path": data / f"bad/{name}.sdf"})
    assert not record.reason
    assert (record.position is not None) == placed
    assert record.mol.GetNumAtoms() == atoms
    assert record.smiles == smiles


def test_a_row_about_another_molecule_is_refused(data: Path) -> None:
    found = records(
        {
            "format": "sdf",
            "path": data / "bad/other_molecule.sdf",
            "targets": data / "bad/other_molecule.csv",
            "target_columns": ["y"],
        }
    )
    assert [r.reason for r in found] == [
        "",
        "SDF record and row of the table are different molecules",
    ]


def test_titles_of_gdb9_are_compared(data: Path, tmp_path: Path) -> None:
    (tmp_path / "gdb9.sdf").write_text((data / "gdb9.sdf").read_text())
    frame = pd.read_csv(data / "gdb9.sdf.csv")
    frame.iloc[[1, 0, *range(2, 60)]].to_csv(tmp_path / "gdb9.sdf.csv", index=False)
    found = records({"format": "qm9", "path": tmp_path / "gdb9.sdf"})
    assert [bool(r.reason) for r in found] == [True, True] + [False] * 58


def test_data_fields_are_targets(tmp_path: Path) -> None:
    fields = [">  <y>\n1.5\n\n", ">  <z>\n2\n\n> <y> (7)\n-3e-1\n\n", "", "> <y>\nhigh\n\n"]
    blocks = [mol_block("CCO") + field for field in fields]
    (tmp_path / "m.sdf").write_text("".join(f"{block}$$$$\n" for block in blocks))
    source = {"format": "sdf", "path": tmp_path / "m.sdf", "target_columns": ["y"]}
    found = records(source)
    assert [r.targets[0] for r in found] == pytest.approx([1.5, -0.3, np.nan, np.nan], nan_ok=True)
    assert [r.reason for r in found] == ["", "", "", "a target of the SDF record is no number"]


def test_readers_are_silent(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rdBase.EnableLog("rdApp.error")
    records({"format": "sdf", "path": data / "bad/broken.sdf"})
    records({"format": "smiles", "path": data / "bad/smiles.csv"})
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------- complaints


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def complaints(data: Path, tmp: Path) -> dict[str, tuple[dict[str, Any], type[MedrecError], str]]:
    own, sdf = {"format": "smiles"}, {"format": "sdf", "path": data / "gdb9.sdf"}
    esol = {"format": "moleculenet", "dataset": "esol"}
    qm9 = {"format": "qm9"}
    table = write(tmp / "table.csv", "smiles,y\nCCO,1\n")
    (tmp / "empty").mkdir()
    renamed = pq.read_table(data / "qm9.parquet").rename_columns({"R2_bohr2": "R2_bohr"})
    pq.write_table(renamed, tmp / "renamed.parquet")
    text = pq.read_table(data / "qm9.parquet").drop_columns("HOMO_au")
    pq.write_table(text.append_column("HOMO_au", text["smiles"]), tmp / "text.parquet")
    zipped = gzip.compress(b"smiles,y\n" + b"CCO,1\n" * 9999)
    return {
        "missing file": (
            qm9 | {"path": data / "qm9.parq"},
            InputError,
            r"source\.path: file not found: .*did you mean 'qm9\.parquet'.*--set source\.path",
        ),
        "unset variable": (qm9 | {"path": "$NO_SUCH_VARIABLE/q.parquet"}, InputError, "not set"),
        "folder": (qm9 | {"path": data}, InputError, "is a folder"),
        "column of a table": (
            own | {"path": table, "smiles_column": "smile"},
            DataError,
            r"table\.csv: no column 'smile' \(did you mean 'smiles'\?\)",
        ),
        "target of a table": (
            own | {"path": table, "target_columns": ["z"]},
            DataError,
            r"table\.csv: no column 'z'; the file has smiles, y",
        ),
        "column of MoleculeNet": (esol | {"path": table}, DataError, "'logSolubility'"),
        "column of Parquet": (
            qm9 | {"path": tmp / "renamed.parquet"},
            DataError,
            r"renamed\.parquet: no column 'R2_bohr2' \(did you mean 'R2_bohr'\?\)",
        ),
        "kind of a column": (
            qm9 | {"path": tmp / "text.parquet"},
            DataError,
            r"text\.parquet: column 'HOMO_au' is .*string; expected numbers",
        ),
        "header alone": (
            own | {"path": write(tmp / "header.csv", "smiles,y\n")},
            DataError,
            r"header\.csv: the table has no rows",
        ),
        "nothing": (own | {"path": write(tmp / "none.csv", "")}, DataError, "file is empty"),
        "text as number": (
            own
            | {"path": write(tmp / "t.csv", "smiles,y\nC,low\nN,NA\n"), "target_columns": ["y"]},
            DataError,
            r"t\.csv: column 'y': 1 of 2 values are no numbers",
        ),
        "column twice": (
            own | {"path": write(tmp / "twice.csv", "smiles,y,y\nC,1,2\n")},
            DataError,
            r"twice\.csv: column y stands there twice",
        ),
        "no Parquet": (
            qm9 | {"path": write(tmp / "q.parquet", b"PAR1 no")},
            DataError,
            r"q\.parquet: not readable as Parquet",
        ),
        "cut gzip": (
            own | {"path": write(tmp / "cut.csv.gz", zipped[: len(zipped) // 2])},
            DataError,
            r"cut\.csv\.gz: gzip ends too early",
        ),
        "cut SDF": (
            {"format": "sdf", "path": write(tmp / "cut.sdf.gz", gzip.compress(b"a\n" * 9999)[:30])},
            DataError,
            r"cut\.sdf\.gz: gzip ends too early",
        ),
        "units": (
            own | {"path": table, "target_columns": ["y"], "units": ["eV", "D"]},
            InputError,
            r"source\.units has 2 entries \(eV, D\) for 1 target_columns \(y\)",
        ),
        "target twice": (
            own | {"path": table, "target_columns": ["y", "y"]},
            InputError,
            "twice",
        ),
        "no SDF in a folder": (sdf | {"path": tmp / "empty"}, InputError, "no file that ends in"),
        "empty SDF": (
            sdf | {"path": write(tmp / "e.sdf", "\n")},
            DataError,
            r"e\.sdf: no records",
        ),
        "targets without names": (sdf | {"targets": table}, InputError, "target_columns is empty"),
        "fewer rows than records": (
            sdf | {"targets": table, "target_columns": ["y"]},
            DataError,
            r"table\.csv: 1 rows for 60 records of gdb9\.sdf",
        ),
        "no table of gdb9": (
            qm9 | {"path": write(tmp / "gdb9.sdf", (data / "gdb9.sdf").read_bytes())},
            InputError,
            r"gdb9\.sdf\.csv",
        ),
        "number of targets": (
            {"format": "moleculenet", "dataset": "tox21", "path": data / "bbbp.csv"},
            DataError,
            r"bbbp\.csv: 1 target columns; data set tox21 has 12",
        ),
    }


def test_complaints_name_file_and_column(data: Path, tmp_path: Path) -> None:
    for name, (source, kind, pattern) in complaints(data, tmp_path).items():
        with pytest.raises(MedrecError) as caught:
            opened(source)
        assert isinstance(caught.value, kind), name
        assert re.search(pattern, str(caught.value)), f"{name}: {caught.value}"


# --------------------------------------------------------------------------- libraries


def test_digests_are_of_the_bytes(data: Path, tmp_path: Path) -> None:
    source = {"format": "moleculenet", "dataset": "bbbp", "path": data / "bbbp.csv"}
    assert opened(source).digest() == file_digest(data / "bbbp.csv")
    text = (data / "bbbp.csv").read_text()
    changed = write(tmp_path / "bbbp.csv", text.replace(",1\n", ",0\n", 1))
    assert opened(source | {"path": changed}).digest() != opened(source).digest()
    copy = write(tmp_path / "copy.csv", text)
    assert opened(source | {"path": copy}).digest() == opened(source).digest()


def test_shipped_configurations(root: Path) -> None:
    paths = sorted((root / "configs/molecules").glob("*.yaml"))
    names = {path.stem for path in paths}
    assert names >= {"qm9", "qm8", "pcqm4mv2", "fixture_qm9", *MOLECULENET}
    for path in paths:
        shipped = load_config(path, LibraryConfig)
        assert shipped.name == path.stem
        if path.stem == "fixture_qm9":
            assert len(open_source(shipped)) == 300
