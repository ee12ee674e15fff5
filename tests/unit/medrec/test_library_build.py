"""Import of molecule libraries."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom
from rdkit.Chem.Scaffolds import MurckoScaffold
from torch_geometric.utils.smiles import from_rdmol

from medrec.config_molecules import LibraryConfig, SmilesSource
from medrec.library import build, shards
from medrec.library.arrays import ARRAYS, RAGGED, UNREACHABLE, MoleculeLibrary
from medrec.library.build import encode_slice, encode_smiles, import_library
from medrec.library.records import MoleculeReader, Record, Target
from medrec.runs import Home
from quantum.base import DataError, InputError, StoreError, file_digest

SMILES = (
    "CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "C", "C[C@H](N)C(=O)O", "F/C=C/F",
    "O=C(O)CCC(=O)NCC#N", "CC.OC", "[He]", "OCC1CC1c1ccncc1", "C1C2CC1C2", "CC(C)(C)O", "C#N",
)  # fmt: skip
ODD = (
    "[Na+].[Cl-]", "C[N+](=O)[O-]", "[CH3]", "[O][O]", "O=[N+]([O-])c1ccccc1", "CS(C)(=O)=O",
    "FS(F)(F)(F)(F)F", "F[P-](F)(F)(F)(F)F", "[2H]C([2H])Cl", "[H][H]", "C[Si](C)(C)C", "[Fe+2]",
    "C/C=C\\C", "CC=NO", "N[Pt@SP1](N)(Cl)Cl", "C1=CC=CN1", "c1ccsc1", "[nH]1cccc1", "C[Hg]C",
    "OB(O)c1ccccc1", "[Se]1C=CC=C1", "N->[Cu]", "C=C=C", "[O-][Cl+3]([O-])([O-])[O-]", "[U]",
    "C[N+](C)(C)C", "CC[C@@H](C)[C@H]1OC1", "[Al+3].[Cl-].[Cl-].[Cl-]", "S1SSSSSSS1", "I[I-]I",
    "[Xe](F)(F)(F)F",
)  # fmt: skip


def record(smiles: str, number: int = 0, spatial: bool = True, **changes: Any) -> Record:
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    element = position = None
    if mol is not None and spatial:
        full = Chem.AddHs(mol)
        assert rdDistGeom.EmbedMolecule(full, randomSeed=5) == 0
        element = np.array([atom.GetAtomicNum() for atom in full.GetAtoms()], dtype=np.uint8)
        position = full.GetConformer().GetPositions().astype(np.float32)
        for shift, part in enumerate(Chem.GetMolFrags(full)):  # which RDKit puts at one place
            position[list(part)] += [6.0 * shift, 0, 0]
    targets = np.array([float(number), np.nan])
    return Record(str(number), smiles, mol, element, position, targets)._replace(**changes)


class ListReader(MoleculeReader):
    """Records in memory."""

    targets = (Target("number", "1", "regression"), Target("label", "", "classification"))

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def read(self, start: int, stop: int) -> Iterator[Record]:
        yield from self.records[start:stop]

    def digest(self) -> str:
        return "0" * 64


def config(**changes: Any) -> LibraryConfig:
    return LibraryConfig(
        name="small", source=SmilesSource(path=Path("small.csv"))
    ).model_copy(update=changes)  # fmt: skip


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> ListReader:
    items = [record(smiles, number) for number, smiles in enumerate(SMILES)]
    items.insert(4, record("C1CC", 99))
    found = ListReader(items)
    monkeypatch.setattr(build, "open_source", lambda config: found)
    return found


# --------------------------------------------------------------------------- categories


@pytest.mark.parametrize("hydrogens", [False, True])
def test_categories_are_those_of_pytorch_geometric(hydrogens: bool) -> None:
    n_refused = 0
    for smiles in SMILES + ODD:
        mol = Chem.MolFromSmiles(smiles)
        mol = Chem.AddHs(mol) if hydrogens else mol
        try:
            expected = from_rdmol(mol)
        except ValueError:
            n_refused += 1
            with pytest.raises(shards.Rejected, match="outside the known categories"):
                shards.atom_categories(mol), shards.bond_categories(mol)
            continue
        assert np.array_equal(shards.atom_categories(mol), expected.x.numpy()), smiles
        bond, attributes, in_ring = shards.bond_categories(mol)
        both = np.concatenate([bond, bond[:, ::-1]])
        order = np.lexsort((both[:, 1], both[:, 0]))
        assert np.array_equal(both[order].T, expected.edge_index.numpy()), smiles
        assert np.array_equal(np.tile(attributes, (2, 1))[order], expected.edge_attr.numpy())
        assert in_ring.tolist() == [item.IsInRing() for item in mol.GetBonds()]
    assert n_refused == 1  # the square planar platinum


# --------------------------------------------------------------------------- rejections


def moved(change: Any) -> Record:
    item = record("CCO")
    assert item.position is not None
    position = item.position.copy()
    change(position)
    return item._replace(position=position)


def set_at(number: int, value: Any) -> Any:
    return lambda position: position.__setitem__(number, value)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (record("C1CC"), "RDKit cannot read the SMILES"),
        (record("CC", reason="broken record"), "broken record"),
        (record("", spatial=False), "no atoms"),
        (record("C" * 21, spatial=False), "more than 20 atoms"),
        (record("*CC", spatial=False), "unknown element"),
        (record("CC", spatial=False), "no 3D coordinates"),
        (moved(set_at(1, np.nan)), "NaN or infinite coordinates"),
        (moved(set_at((2, 0), np.inf)), "NaN or infinite coordinates"),
        (moved(lambda p: p.__setitem__(3, p[4] + 0.05)), "two atoms at the same place"),
        (moved(set_at(2, 9.0)), "2D and 3D atoms do not match"),
        (record("CCO", mol=Chem.MolFromSmiles("COC")), "2D and 3D atoms do not match"),
        (record("CC", element=np.zeros(8, np.uint8)), "unknown element"),
        (record("CC", element=np.full(8, 119, np.uint8)), "unknown element"),
        (record("CC", element=np.full(7, 6, np.uint8)), "2D and 3D atoms do not match"),
        (record("CC", element=None), "2D and 3D atoms do not match"),
        (record("CC", targets=np.array([np.inf, 0])), "infinite targets"),
        (record("CC", targets=np.zeros(3)), "not as many targets as the source declares"),
        (
            record("N[Pt@SP1](N)(Cl)Cl", spatial=False),
            "an atom or bond outside the known categories",
        ),
    ],
)
@pytest.mark.parametrize("hydrogens", [False, True])
def test_every_reason(
    item: Record, reason: str, hydrogens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = reason == "no 3D coordinates"
    settings = config(max_atoms=20, hydrogens=hydrogens, need_positions=needs)
    found = ListReader([record("CCO", 1), item._replace(identifier="bad")])
    monkeypatch.setattr(build, "open_source", lambda config: found)
    library = import_library(settings, Home(tmp_path))
    assert library.molecules["identifier"].tolist() == ["1"]
    assert library.rejected.to_dict("records") == [
        {"identifier": "bad", "smiles": item.smiles, "reason": reason}
    ]
    assert library.manifest["rejected"] == {reason: 1}


def test_a_failure_inside_rdkit_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(mol: Chem.Mol) -> str:
        raise RuntimeError("Invariant Violation")

    monkeypatch.setattr(shards, "_scaffold", fail)
    shard = shards.encode_records([record("C1CC1"), record("CC")], config(), 2)
    assert shard.texts["rejected"] == [("0", "C1CC1", "RDKit fails (RuntimeError)")]
    assert shard.texts["smiles"] == ["CC"]


def test_nothing_usable_names_the_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for items, message in (
        ([record("C1CC"), record("*C", spatial=False)], "unknown element: 1"),
        ([], "the source is empty"),
    ):
        monkeypatch.setattr(build, "open_source", lambda config, items=items: ListReader(items))
        with pytest.raises(DataError, match=message):
            import_library(config(), Home(tmp_path))
    assert not list(tmp_path.glob("molecules/small-*"))


# --------------------------------------------------------------------------- contents


@pytest.mark.parametrize("hydrogens", [False, True])
def test_round_trip(reader: ListReader, tmp_path: Path, hydrogens: bool) -> None:
    library = import_library(config(hydrogens=hydrogens), Home(tmp_path))
    assert len(library) == len(SMILES)
    assert library.molecules["smiles"].tolist() == [Chem.CanonSmiles(smiles) for smiles in SMILES]
    assert library.targets[:, 0].tolist() == list(range(len(SMILES)))
    assert np.isnan(library.targets[:, 1]).all()
    assert library.arrays["placed"].all()
    order = np.random.default_rng(0).permutation(len(library))
    parts = {
        what: np.split(rows, np.cumsum(counts)[:-1])
        for what in RAGGED
        for rows, counts in [library.rows_of(what, order)]
    }
    for slot, number in enumerate(order):
        item = {n: library.arrays[n][parts[of][slot]] for n, (of, *_) in ARRAYS.items()}
        check_molecule(SMILES[number], hydrogens, item, reader)


def check_molecule(smiles: str, hydrogens: bool, item: dict[str, Any], reader: ListReader) -> None:
    mol = Chem.MolFromSmiles(smiles)
    mol = Chem.AddHs(mol) if hydrogens else mol
    n = mol.GetNumAtoms()
    assert np.array_equal(item["x"], from_rdmol(mol).x.numpy())
    source = next(entry for entry in reader.records if entry.smiles == smiles)
    assert source.position is not None
    assert np.array_equal(item["position"], source.position[:n])
    bonds = [[b.GetBeginAtomIdx(), b.GetEndAtomIdx()] for b in mol.GetBonds()]
    assert item["bond"].tolist() == bonds
    lengths = np.minimum(Chem.GetDistanceMatrix(mol), UNREACHABLE)
    assert np.array_equal(item["spd"].reshape(n, n), lengths)
    linked = lengths == 1
    for anchor, source_atom, destination in item["angle"]:
        assert linked[anchor, source_atom]
        assert linked[anchor, destination]
    degree = linked.sum(axis=0)
    assert len(item["angle"]) == (degree * (degree - 1) // 2).sum()
    for torsion in item["torsion"].tolist():
        assert all(linked[i, j] for i, j in pairwise(torsion))
    assert item["centrality"].max(initial=0) <= 1


def test_tables_and_manifest(reader: ListReader, tmp_path: Path) -> None:
    library = import_library(config(), Home(tmp_path))
    for smiles, scaffold in library.molecules[["smiles", "scaffold"]].itertuples(index=False):
        assert scaffold == MurckoScaffold.MurckoScaffoldSmiles(smiles)
    assert library.molecules["n_atoms"].tolist() == library.n_atoms.tolist()
    assert library.molecules["n_bonds"].sum() == len(library.arrays["bond"])
    manifest = library.manifest
    assert manifest["counts"]["records"] == len(SMILES) + 1
    assert manifest["counts"]["molecules"] == manifest["counts"]["placed"] == len(SMILES)
    assert manifest["counts"]["atoms"] == len(library.arrays["x"])
    assert (manifest["mixtures"], manifest["reordered"]) == (1, 0)
    assert manifest["rejected"] == {"RDKit cannot read the SMILES": 1}
    assert library.targets_info == reader.targets
    assert manifest["source"] == "small.csv"
    assert str(tmp_path) not in (library.folder / "manifest.json").read_text()
    files = [path for path in library.folder.iterdir() if path.name != "manifest.json"]
    assert manifest["bytes"] == sum(path.stat().st_size for path in files)
    assert library.name == f"small-{library.digest[:8]}"


def test_a_large_molecule_is_kept_if_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    item = record("C" * 1000, spatial=False)
    shard = shards.encode_records([item], config(max_atoms=1024), 2)
    assert shard.arrays["bond"].max() == 999
    spd = shard.arrays["spd"].reshape(1000, 1000)
    assert spd[0, 254] == 254
    assert spd[0, 255:].min() == UNREACHABLE


def test_hydrogens_of_a_record_are_atoms_only_if_wanted() -> None:
    plain = record("CCO")
    full = plain._replace(mol=Chem.AddHs(plain.mol))
    for hydrogens, n in ((False, 3), (True, 9)):
        one, other = (
            shards.encode_records([item], config(hydrogens=hydrogens), 2) for item in (plain, full)
        )
        assert one.counts[0, 0] == n
        for name in ARRAYS:
            assert np.array_equal(one.arrays[name], other.arrays[name])


# --------------------------------------------------------------------------- shards and resuming


def content(library: MoleculeLibrary) -> dict[str, str]:
    return {
        path.name: file_digest(path)
        for path in library.folder.iterdir()
        if path.name != "manifest.json"
    }


def test_shards_leave_no_trace(
    reader: ListReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_GROUP_ROWS", 5)
    one = import_library(config(), Home(tmp_path / "one"))
    several = import_library(config(), Home(tmp_path / "several"), shard_records=3)
    monkeypatch.setattr(shards, "_PAIRS_AT_ONCE", 1)
    pieces = import_library(config(), Home(tmp_path / "pieces"), shard_records=1)
    assert content(one) == content(several) == content(pieces)
    assert len(content(one)) == len(ARRAYS) + 4
    drop = ("provenance",)
    assert {k: v for k, v in one.manifest.items() if k not in drop} == {
        k: v for k, v in several.manifest.items() if k not in drop
    }
    assert [path.name for path in (tmp_path / "several" / "molecules").iterdir()] == [several.name]


def test_slices_made_elsewhere_are_found(
    reader: ListReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(import_library(config(), Home(tmp_path / "whole")))
    home = Home(tmp_path)
    folder = build.library_folder(config(), reader, home)
    for start, stop in build.slices(len(reader), 4):
        encode_slice(config(), start, stop, build.partial_folder(folder))
    monkeypatch.setattr(build, "encode_records", None)
    assert content(import_library(config(), home, shard_records=4)) == whole


def test_interrupted_import_goes_on(
    reader: ListReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(import_library(config(), Home(tmp_path / "whole")))
    encode, calls = build.encode_records, []

    def failing(*arguments: Any) -> shards.Shard:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(build, "encode_records", failing)
    with pytest.raises(KeyboardInterrupt):
        import_library(config(), Home(tmp_path), shard_records=3)
    assert not list(tmp_path.glob("molecules/small-*"))
    seen: list[tuple[int, int]] = []
    library = import_library(
        config(), Home(tmp_path), lambda done, total: seen.append((done, total)), shard_records=3
    )
    assert len(calls) == 3 + 3  # of five shards, two were there
    assert seen[-1] == (13, 13)
    assert content(library) == whole
    import_library(config(), Home(tmp_path), shard_records=3)
    assert len(calls) == 6


def test_killed_import_goes_on(reader: ListReader, tmp_path: Path) -> None:
    whole = content(import_library(config(), Home(tmp_path / "whole")))

    def wait(done: int, total: int) -> None:
        if done >= 6:
            time.sleep(60)

    child = multiprocessing.get_context("fork").Process(
        target=import_library, args=(config(), Home(tmp_path), wait, 3)
    )
    child.start()
    for _ in range(1000):
        present = sorted(tmp_path.glob("molecules/.partial-*/*.npz"))
        if len(present) == 2:
            break
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(present) == 2
    stamps = [path.stat().st_mtime_ns for path in present]
    seen: list[list[int]] = []
    library = import_library(
        config(),
        Home(tmp_path),
        lambda done, total: seen.append([path.stat().st_mtime_ns for path in present]),
        shard_records=3,
    )
    assert seen[0] == seen[-1] == stamps
    assert content(library) == whole


def test_damaged_shard_is_named(reader: ListReader, tmp_path: Path) -> None:
    folder = build.partial_folder(build.library_folder(config(), reader, Home(tmp_path)))
    path = encode_slice(config(), 0, 13, folder)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StoreError, match=r"000000000-000000013\.npz"):
        import_library(config(), Home(tmp_path))


def test_library_is_named_by_content_and_settings_not_by_place(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        frame = pd.DataFrame({"smiles": ["CCO", "c1ccccc1"], "y": [0.5, np.nan]})
        frame.to_csv(tmp_path / name / f"{name}.csv", index=False)

    def folder(where: str, **changes: Any) -> Path:
        path = tmp_path / where / f"{where}.csv"
        source = SmilesSource(path=path, target_columns=("y",), units=("eV",))
        return import_library(config(source=source, **changes), home).folder

    assert folder("a") == folder("b")
    assert len({folder("a"), folder("a", hydrogens=True), folder("a", max_atoms=10)}) == 3


# --------------------------------------------------------------------------- in memory


@pytest.mark.parametrize("conformers", [False, True])
def test_smiles_in_memory(conformers: bool, tmp_path: Path) -> None:
    smiles = ["OCC", "C1CC", "*", "c1ccccc1", ""]
    library = encode_smiles(smiles, conformers=conformers)
    assert library.molecules["identifier"].tolist() == ["0", "3"]
    assert library.molecules["smiles"].tolist() == ["CCO", "c1ccccc1"]
    assert library.rejected["identifier"].tolist() == ["1", "2", "4"]
    assert library.rejected["reason"].tolist() == [
        "RDKit cannot read the SMILES", "unknown element", "no atoms"
    ]  # fmt: skip
    rows, counts = library.rows_of("atom", np.array([1, 0]))
    assert counts.tolist() == [6, 3]
    assert library.arrays["x"][rows, 0].tolist() == [6] * 6 + [8, 6, 6]
    assert library.arrays["placed"].tolist() == [conformers, conformers]
    assert library.arrays["position"].any() == conformers
    assert library.targets.shape == (2, 0)


@pytest.mark.parametrize(
    ("smiles", "n_torsions"),
    [("CCCC", 1), ("CC=CC", 0), ("CC#CC", 0), ("CC(=O)NC", 2), ("C1CCCCC1", 6), ("CC(C)(C)C", 0)],
)
def test_torsions_turn_around_rotatable_and_ring_bonds(smiles: str, n_torsions: int) -> None:
    assert len(encode_smiles([smiles]).arrays["torsion"]) == n_torsions


def test_columns_of_centrality() -> None:
    rows = encode_smiles(["CCC"]).arrays["centrality"]
    np.testing.assert_allclose(rows, [[0.5, 0], [np.sqrt(0.5), 1], [0.5, 0]], atol=1e-6)


def test_no_smiles() -> None:
    with pytest.raises(InputError, match="at least one"):
        encode_smiles([])
    library = encode_smiles(["C1CC"])
    assert len(library) == 0
    assert library.arrays["bond"].shape == (0, 2)
