"""Files from elsewhere are read as data: nothing in them runs, no name in them leads elsewhere."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medrec.concepts.table import KINDS, ConceptTable
from medrec.config import CohortConfig, TrainConfig
from medrec.data.cohort import Cohort
from medrec.library.arrays import MoleculeLibrary
from medrec.library.shards import Shard
from medrec.loading import apply_override, load_config
from medrec.molecules.encoders_slices import load_weights
from medrec.molecules.features import FeatureTable
from medrec.runs import Home, Run
from orchestration.cluster_files import read_cluster_file
from orchestration.job_request import Upload
from orchestration.workers import ray_folder, states_on_disk
from quantum.base import ConfigError, InputError, IntegrityError, MedrecError, StoreError
from quantum.export import Atlas
from quantum.memory_store import MemoryStore
from quantum.merge import merge_stores
from quantum.remote_store import pack, unpack
from quantum.store import Failure, Record, Store
from quantum.store_base import canonical_json, encode
from quantum.store_cache import ObjectCache

PACKAGES = ("medrec", "quantum", "orchestration")
KEY = "ab" * 32


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path):
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "a file that was loaded has run code"


def object_array(marker: Path) -> np.ndarray:
    return np.array([Payload(marker)], dtype=object)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


# --------------------------------------------------------------------------- the source itself

_FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads",
    "shelve.open", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load",
    "cloudpickle.loads", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.load_all",
    "yaml.full_load", "yaml.unsafe_load", "eval", "exec", "os.system", "os.popen",
    "shutil.unpack_archive",
}  # fmt: skip


def problems_of(source: str) -> list[str]:
    """Calls of a source text that read a file as a program, or unpack names as they stand."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {item.arg: ast.unparse(item.value) for item in node.keywords}
        if name in _FORBIDDEN or name.endswith((".extractall", ".extract")):
            found.append(f"line {node.lineno}: {name}")
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if options.get("allow_pickle", "False") != "False":
            found.append(f"line {node.lineno}: allow_pickle")
        shell = name.startswith("subprocess.") and options.get("shell", "False") != "False"
        if shell or options.get("trust_remote_code") == "True":
            found.append(f"line {node.lineno}: runs text of others")
    return found


def test_no_source_file_reads_a_file_as_a_program(root: Path):
    found = {
        str(path.relative_to(root)): problems
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        if (problems := problems_of(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
    ],
)
def test_the_audit_sees(line: str):
    assert problems_of(line)


def test_the_payload_is_live(tmp_path: Path):
    path = tmp_path / "made"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.unlink()
    torch.save({"model": Payload(path)}, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert path.exists()


# --------------------------------------------------------------------------- checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = TrainConfig.model_validate({"name": "x", "model": {"name": "topk"}})
    return Run.open(Home(tmp_path / "home"), "train", "x", config, {})


def test_a_checkpoint_with_an_object_is_refused(run: Run, marker: Path):
    path = run.checkpoint_file("best")
    path.parent.mkdir()
    torch.save({"model": Payload(marker), "run_digest": run.digest}, path)
    with pytest.raises(InputError, match="checkpoint is unreadable"):
        run.load_checkpoint("best")
    path.write_bytes(pickle.dumps(Payload(marker), protocol=2))
    with pytest.raises(InputError, match="checkpoint is unreadable"):
        run.load_checkpoint("best")
    torch.save(torch.zeros(2), path)
    with pytest.raises(InputError, match="another configuration"):
        run.load_checkpoint("best")


def test_a_workers_state_with_an_object_is_no_checkpoint(run: Run, marker: Path):
    folder = ray_folder(run) / "x" / "checkpoint_000000"
    folder.mkdir(parents=True)
    torch.save({"epoch": 1, "step": 0, "model": Payload(marker)}, folder / "state.pt")
    assert list(states_on_disk(run)) == []
    torch.save({"epoch": 1, "step": 0}, folder / "state.pt")
    assert [state["epoch"] for state in states_on_disk(run)] == [1]


def test_weights_with_an_object_are_refused(tmp_path: Path, marker: Path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": Payload(marker)}, path)
    with pytest.raises(InputError, match="tensors only"):
        load_weights(torch.nn.Linear(1, 1), path, "linear")


# --------------------------------------------------------------------------- arrays


def feature_folder(folder: Path, **arrays: np.ndarray) -> Path:
    """Table of one species; some arrays are others than they should be."""
    folder.mkdir()
    plain = {
        "elf_features": np.zeros((1, 2), np.float32),
        "elf_mask": np.ones(1, bool),
        "offsets": np.array([0, 1]),
        "atomic_numbers": np.array([8], np.int16),
        "coords_angstrom": np.zeros((1, 3), np.float32),
        "rows": np.array([0]),
        "volumes": np.zeros((1, 3, 2, 2, 2), np.float16),
        **arrays,
    }
    for name in ("elf_features", "elf_mask"):
        (folder / f"{name}.npy").write_bytes(npy(plain.pop(name)))
    volumes = {name: plain.pop(name) for name in ("rows", "volumes")}
    np.savez(folder / "elf_volumes.npz", **volumes)
    np.savez(folder / "conformers.npz", **plain)
    table = {"species_key": ["k"], "features_key": ["f"], "has_elf": [True]}
    more = {"has_conformer": [True], "conformer_key": ["c"], "conformer_method": ["m"]}
    pd.DataFrame(table | more).to_parquet(folder / "species.parquet")
    manifest = {"digest": KEY, "n_species": 1, "program_versions": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_sound_feature_table_is_read(tmp_path: Path):
    folder = feature_folder(tmp_path / "sound")
    assert FeatureTable.load(folder).n_features == 2
    assert set(Atlas.load(folder).vectors) == {"f"}


@pytest.mark.parametrize("name", ["elf_features", "elf_mask", "coords_angstrom", "volumes"])
def test_object_arrays_of_a_feature_table_are_refused(tmp_path: Path, marker: Path, name: str):
    folder = feature_folder(tmp_path / "table", **{name: object_array(marker)})
    with pytest.raises(InputError, match=r"damaged|no readable volumes"):
        FeatureTable.load(folder).volumes([])
    if name != "elf_mask":  # an atlas reads no mask
        with pytest.raises(InputError, match="damaged"):
            Atlas.load(folder)


def test_a_torn_archive_of_a_feature_table_is_refused(tmp_path: Path):
    folder = feature_folder(tmp_path / "table")
    data = (folder / "conformers.npz").read_bytes()
    (folder / "conformers.npz").write_bytes(data[: len(data) // 2])
    for load in (FeatureTable.load, Atlas.load):
        with pytest.raises(InputError, match="damaged"):
            load(folder)


def test_object_arrays_of_a_concept_table_are_refused(tmp_path: Path, marker: Path):
    folder = tmp_path / "concepts"
    folder.mkdir()
    names = ("codes", "semantic", "structural", "index", "books")
    arrays = {f"{kind}.{name}": object_array(marker) for kind in KINDS for name in names}
    np.savez(folder / "concepts.npz", **arrays)
    (folder / "manifest.json").write_text('{"views": []}')
    with pytest.raises(InputError, match="damaged"):
        ConceptTable.load(folder)


def test_object_arrays_of_a_molecule_library_are_refused(tmp_path: Path, marker: Path):
    np.savez(tmp_path / "part.npz", texts=object_array(marker), counts=object_array(marker))
    with pytest.raises(StoreError, match="cannot be read"):
        Shard.load(tmp_path / "part.npz")
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    (tmp_path / "starts.npy").write_bytes(npy(object_array(marker)))
    with pytest.raises(StoreError, match="cannot be read"):
        len(MoleculeLibrary.load(tmp_path))


def test_an_object_array_as_oracle_is_refused(synthetic, tmp_path: Path, marker: Path):
    cohort = Cohort(tmp_path, synthetic[1].record)
    (tmp_path / "oracle.npy").write_bytes(npy(object_array(marker)))
    with pytest.raises(InputError, match="prepare the cohort again"):
        _ = cohort.oracle


# --------------------------------------------------------------------------- objects of a store


def forged(key: str = KEY, name: str = "a", data: bytes = b"") -> tuple[dict, dict[str, bytes]]:
    """A record whose digests fit its content, whatever that is."""
    data = data or npy(np.ones(2))
    body = Record.model_construct(key=key, stage="t", request={}).model_dump(exclude={"arrays"})
    body["arrays"] = {
        name: {"shape": [2], "dtype": "float64", "sha256": hashlib.sha256(data).hexdigest()}
    }
    body["digest"] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    return body, {name: data}


def place(store: Store, key: str, body: dict, files: dict[str, bytes]) -> Path:
    folder = store.root / "objects" / key[:2] / key
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(body))
    for name, data in files.items():
        (folder / f"{name}.npy").write_bytes(data)
    return folder


def test_a_forged_record_with_plain_names_is_read(tmp_path: Path):
    store = Store(tmp_path / "store")
    place(store, KEY, *forged())
    assert store.get(KEY).arrays["a"].tolist() == [1.0, 1.0]


def test_an_object_array_in_a_store_is_refused(tmp_path: Path, marker: Path):
    store = Store(tmp_path / "store")
    place(store, KEY, *forged(data=npy(object_array(marker))))
    with pytest.raises(IntegrityError, match="set aside"):
        store.get(KEY)


@pytest.mark.parametrize("name", ["../../../../outside", "/outside", "x/y", "..", "a.b"])
def test_an_arrays_name_leads_nowhere(tmp_path: Path, name: str):
    source = Store(tmp_path / "source")
    body, files = forged(name=name)
    folder = place(source, KEY, body, {})
    (folder / "x").mkdir()
    for place_of in (folder / f"{name}.npy", tmp_path / "outside.npy"):
        if place_of.is_relative_to(tmp_path):
            place_of.resolve().write_bytes(files[name])
    before = sorted(tmp_path.rglob("*.npy"))
    with pytest.raises(IntegrityError, match="expected letters"):
        source.get(KEY)
    record = Record.model_construct(
        key=KEY, stage="t", request={}, scalars={}, warnings=[], provenance={},
        arrays={name: np.ones(2)},
    )  # fmt: skip
    target = Store(tmp_path / "target")
    with pytest.raises(IntegrityError, match="expected letters"):
        target.put(record)
    with pytest.raises(IntegrityError, match="expected letters"):
        encode(record)
    assert len(sorted(tmp_path.rglob("*.npy"))) == len(before)
    assert list(target.keys()) == []


def test_merging_an_object_with_a_name_that_leads_out_copies_nothing(tmp_path: Path):
    source, target = Store(tmp_path / "source"), Store(tmp_path / "deep" / "target")
    place(source, KEY, forged(name="../../../outside")[0], {})
    with pytest.raises(IntegrityError):
        merge_stores(source, target)
    assert list(target.keys()) == []
    assert not (tmp_path / "deep" / "outside.npy").exists()


def test_a_failure_with_a_key_that_leads_out_is_none(tmp_path: Path):
    source, target = Store(tmp_path / "source"), Store(tmp_path / "target")
    folder = source.root / "failures" / KEY[:2]
    folder.mkdir(parents=True)
    text = {"key": "../../../outside", "stage": "scf", "kind": "input", "message": "m"}
    (folder / f"{KEY}.json").write_text(json.dumps(text))
    assert source.failure(KEY) is None
    assert merge_stores(source, target).failures == 0
    assert not (tmp_path / "outside.json").exists()
    with pytest.raises(ValueError, match="pattern"):
        Failure(**text)
    (folder / f"{KEY}.json").write_text(json.dumps({**text, "key": KEY}))
    assert merge_stores(source, target).failures == 1


@pytest.mark.parametrize("key", ["../../../outside", "/outside", "ab/../../../outside"])
def test_a_key_of_a_bucket_leads_nowhere(tmp_path: Path, key: str):
    body, files = forged(key=key)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("record.json", json.dumps(body))
        archive.writestr("a.npy", files["a"])
        archive.comment = b"0" * 64
    data = buffer.getvalue()[:-64]
    data += hashlib.sha256(data).hexdigest().encode()
    with pytest.raises(IntegrityError, match="expected letters"):
        unpack(data, key)
    cache = ObjectCache(tmp_path / "a" / "b" / "cache", "part", 10**6)
    cache.write(KEY, data)
    assert [path.name for path in tmp_path.rglob("*.npz")] == [f"{KEY}.npz"]


def test_names_inside_a_packed_object_are_checked():
    record = Record(key=KEY, stage="t", request={}, arrays={"a": np.ones(2)})
    _, data = pack(record)
    assert unpack(data, KEY).arrays["a"].tolist() == [1.0, 1.0]
    with pytest.raises(IntegrityError):
        pack(record.model_copy(update={"arrays": {"../a": np.ones(2)}}))
    with pytest.raises(ValueError, match="pattern"):
        Record(key="../../a", stage="t", request={})


def test_a_link_in_a_store_is_no_way_to_another_file(tmp_path: Path):
    secret = tmp_path / "secret.npy"
    secret.write_bytes(npy(np.array([42.0])))
    store, target = Store(tmp_path / "store"), MemoryStore()
    folder = place(store, KEY, *forged())
    (folder / "a.npy").unlink()
    (folder / "a.npy").symlink_to(secret)
    with pytest.raises(IntegrityError, match="does not match its digest"):
        merge_stores(store, target)
    assert secret.exists()
    assert list(target.keys()) == []


# --------------------------------------------------------------------------- configurations


def yaml_of(marker: Path) -> str:
    apply = "!!python/object/apply:pathlib.Path"
    return f"{apply}.touch [{apply} ['{marker}']]"


def test_tags_of_yaml_files_are_refused(tmp_path: Path, marker: Path):
    path = tmp_path / "cohort.yaml"
    path.write_text(f"name: x\nsource: {yaml_of(marker)}\n")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_config(path, CohortConfig)
    with pytest.raises(ConfigError, match="no YAML"):
        read_cluster_file(path)
    with pytest.raises(ConfigError, match="not YAML"):
        apply_override({}, f"name={yaml_of(marker)}")


def test_tags_of_a_runs_configuration_are_refused(run: Run, marker: Path):
    (run.folder / "config.yaml").write_text(f"name: {yaml_of(marker)}\n")
    with pytest.raises(InputError, match="not readable"):
        run.config()
    (run.folder / "config.yaml").write_text("plain text")
    with pytest.raises(InputError, match="not readable"):
        run.config()


# --------------------------------------------------------------------------- folders


@pytest.mark.parametrize("digest", ["../../..", "*", "????????", "/etc", ""])
def test_a_digest_of_a_record_is_no_path_and_no_pattern(tmp_path: Path, digest: str):
    home = Home(tmp_path)
    (home.cohorts / "x-12345678").mkdir(parents=True)
    assert home.by_digest(home.cohorts, "12345678" * 8).name == "x-12345678"
    with pytest.raises(InputError, match="nothing with digest"):
        home.by_digest(home.cohorts, digest)


@pytest.mark.parametrize("name", ["..", "../x", ".", "~"])
def test_a_name_is_looked_up_among_what_is_there(tmp_path: Path, name: str):
    home = Home(tmp_path)
    home.cohorts.mkdir()
    with pytest.raises(MedrecError):
        home.find(home.cohorts, name)


def test_what_a_job_uploads_follows_no_link(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "patients.csv").write_text("subject_id\n1\n")
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "code.py").write_text("x = 1\n")
    (folder / "file.csv").symlink_to(outside / "patients.csv")
    (folder / "tables").symlink_to(outside, target_is_directory=True)
    upload = Upload.of(folder)
    assert [str(name) for name in upload.files] == ["code.py"]
    with zipfile.ZipFile(upload.pack(tmp_path / "upload.zip")) as archive:
        assert archive.namelist() == ["code.py"]
