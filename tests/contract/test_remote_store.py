"""The store on S3: opening it, the cache beside it, merging, and the commands."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from quantum.base import IntegrityError, ProgramMissingError, StoreError
from quantum.merge import merge_stores
from quantum.remote_store import RemoteStore, pack, unpack
from quantum.store import Failure, MemoryStore, Record, Store, open_store

KEY = "ab" + "0" * 62


def record(key: str = KEY, value: float = 1.0, size: int = 6) -> Record:
    return Record(key=key, stage="test", request={"x": 1}, arrays={"a": np.full(size, value)})


def bucket_and_prefix(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# --------------------------------------------------------------------------- bytes


def test_the_bytes_are_a_npz_and_every_flipped_bit_is_found(tmp_path: Path):
    _, data = pack(record())
    (tmp_path / "one.npz").write_bytes(data)
    with np.load(tmp_path / "one.npz") as archive:
        np.testing.assert_array_equal(archive["a"], record().arrays["a"])
    assert unpack(data, KEY).request == {"x": 1}
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1
        with pytest.raises(IntegrityError):
            unpack(bytes(broken), KEY)


def test_importing_the_store_loads_no_client():
    code = (
        "import sys, quantum.store; "
        "print([m for m in ('fsspec', 's3fs', 'botocore', 'aiobotocore') if m in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


# --------------------------------------------------------------------------- opening


def test_the_location_opens_the_same_store(s3_url):
    store = open_store(f"{s3_url}//")
    store.put(record())
    assert store.location == s3_url
    assert open_store(store.location).has(KEY)
    bucket, _ = bucket_and_prefix(s3_url)
    assert not open_store(f"s3://{bucket}").has(KEY)  # another prefix, another store
    assert not open_store(f"{s3_url}-2").has(KEY)


@pytest.mark.parametrize("location", ["s3://", "s3:///x", "gs://bucket/x", "http://host/x"])
def test_a_url_that_names_no_bucket_is_refused(location):
    with pytest.raises(StoreError, match="expected"):
        open_store(location)


def test_a_missing_bucket_is_said(s3):
    with pytest.raises(StoreError, match="no bucket for the store s3://none-such/x"):
        open_store("s3://none-such/x")


def test_a_bucket_that_goes_away_is_not_an_empty_store(s3, s3_url):
    store = open_store(s3_url)
    bucket, _ = bucket_and_prefix(s3_url)
    for item in s3.raw().list_objects_v2(Bucket=bucket)["Contents"]:
        s3.raw().delete_object(Bucket=bucket, Key=item["Key"])
    s3.raw().delete_bucket(Bucket=bucket)
    for question in (
        lambda: store.has(KEY),
        lambda: store.get(KEY),
        lambda: store.failure(KEY),
        lambda: store.present([KEY]),
        lambda: list(store.keys()),
        lambda: store.claim(KEY, "me"),
        lambda: store.put(record()),
    ):
        with pytest.raises(StoreError, match="no bucket"):
            question()


def test_another_format_is_refused(s3, s3_url):
    open_store(s3_url)
    bucket, prefix = bucket_and_prefix(s3_url)
    for text, said in (('{"format": 99}', "format 99"), ("", "damaged"), ("[1]", "damaged")):
        s3.raw().put_object(Bucket=bucket, Key=f"{prefix}/store.json", Body=text.encode())
        with pytest.raises(StoreError, match=said):
            open_store(s3_url)


def test_an_endpoint_that_does_not_answer_is_said(monkeypatch, s3):
    with socket.socket() as free:  # bound and not listening: nobody else gets this port
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"could not be reached.*AWS_ENDPOINT_URL_S3"):
            RemoteStore("s3://some/x", retry_s=0.5)


@pytest.mark.parametrize("endpoint", ["not a url", "http://", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_none_is_said(monkeypatch, s3, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(StoreError, match=r"store s3://some/x") as caught:
        RemoteStore("s3://some/x", retry_s=0.5)
    assert "\n" not in str(caught.value)


def test_no_credentials_are_said(monkeypatch, s3, tmp_path: Path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="no AWS credentials"):
        open_store("s3://some/x")


def test_a_server_that_denies_is_said(monkeypatch, s3, start_s3):
    server = start_s3(INITIAL_NO_AUTH_ACTION_COUNT="1")  # keys are checked after one request
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    server.raw().create_bucket(Bucket="denied")
    with pytest.raises(StoreError, match=r"refuses access \(InvalidAccessKeyId"):
        open_store("s3://denied/x")


@pytest.mark.parametrize("ignored", ["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
def test_a_server_without_conditional_writes_is_refused(monkeypatch, s3, start_s3, ignored):
    server = start_s3(IGNORED_HEADER=ignored)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    server.raw().create_bucket(Bucket="careless")
    with pytest.raises(StoreError, match="lacks conditional writes"):
        open_store("s3://careless/x")
    assert not open_store("s3://careless/x", make=False).has(KEY)  # reading needs no condition


def test_a_missing_package_is_named(s3):
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from quantum.store import open_store\n"
        "from quantum.base import ProgramMissingError\n"
        "try: open_store('s3://some/x')\n"
        "except ProgramMissingError as error: print(error)"
    )
    assert "pip install 'medrec[s3]'" in python(code).stdout
    assert issubclass(ProgramMissingError, ImportError)


FORKED = """
import os, sys
from quantum.store import open_store
store = open_store(sys.argv[1])
assert store.has(sys.argv[2])
for _ in range(2):
    child = os.fork()
    if child == 0:
        assert store.get(sys.argv[2]).key == open_store(sys.argv[1])._fetch(sys.argv[2]).key
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert store.has(sys.argv[2])
"""


def test_a_forked_child_has_a_client_of_its_own(s3_url):
    open_store(s3_url).put(record())
    done = python(FORKED, s3_url, KEY, MEDREC_STORE_CACHE="off")
    assert (done.stdout.split(), done.returncode) == (["7", "7"], 0), done.stderr


# --------------------------------------------------------------------------- large objects


def test_a_large_object_is_published_once(s3, s3_url):
    rng = np.random.default_rng(0)
    big = record().model_copy(update={"arrays": {"a": rng.random(2_600_000)}})  # 20.8 MB
    store = open_store(s3_url)
    assert store.put(big)
    bucket, prefix = bucket_and_prefix(s3_url)
    head = s3.raw().head_object(Bucket=bucket, Key=f"{prefix}/objects/{KEY}.npz")
    assert head["ETag"].strip('"').endswith("-3")  # in three parts
    assert not store._files.create(f"objects/{KEY}.npz", bytes(20_000_000))
    np.testing.assert_array_equal(store._fetch(KEY).arrays["a"], big.arrays["a"])


KILLED = """
import os, sys
import numpy as np
from quantum import s3_files
from quantum.store import Record, open_store
store = open_store(sys.argv[1])
client = s3_files._client(sys.argv[1])
real = client._call_s3
async def call(method, *rest, **more):
    if method == sys.argv[2]:
        os.kill(os.getpid(), 9)
    return await real(method, *rest, **more)
client._call_s3 = call
size = int(sys.argv[3])
store.put(Record(key="ab" + "0" * 62, stage="t", request={}, arrays={"a": np.ones(size)}))
"""


@pytest.mark.parametrize(
    ("before", "size"), [("put_object", 100), ("complete_multipart_upload", 2_500_000)]
)
def test_a_killed_writer_leaves_nothing_visible(s3_url, before, size):
    store = open_store(s3_url)
    assert python(KILLED, s3_url, before, str(size)).returncode == -signal.SIGKILL
    assert not store.has(KEY)
    assert list(store.keys()) == []
    assert store.put(record())


# --------------------------------------------------------------------------- cache


def test_an_object_is_fetched_once_and_own_objects_never(s3, s3_url, monkeypatch, tmp_path):
    store = open_store(s3_url)
    store.put(record())
    bucket, prefix = bucket_and_prefix(s3_url)
    monkeypatch.setenv("MEDREC_STORE_CACHE", str(tmp_path / "other"))
    other = open_store(s3_url)
    other.get(KEY)
    s3.raw().delete_object(Bucket=bucket, Key=f"{prefix}/objects/{KEY}.npz")
    for each in (store, other, open_store(s3_url)):
        assert each.get(KEY).request == {"x": 1}
        assert not each.has(KEY)  # the server is asked, the cache does not answer for it
    monkeypatch.setenv("MEDREC_STORE_CACHE", "off")
    with pytest.raises(StoreError, match="no object"):
        open_store(s3_url).get(KEY)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other key"])
def test_a_damaged_copy_is_fetched_again_and_not_blamed_on_the_store(s3_url, tmp_path, damage):
    store = open_store(s3_url)
    store.put(record())
    (copy,) = (tmp_path / "cache").rglob("*.npz")
    data = bytearray(copy.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "other key":
        data = pack(record("cd" * 32))[1]
    copy.write_bytes(bytes(data[: {"truncate": 50, "empty": 0}.get(damage, len(data))]))
    assert store.get(KEY).request == {"x": 1}
    assert store.has(KEY)
    assert store.verify() == (1, [])
    assert unpack(copy.read_bytes(), KEY).request == {"x": 1}


def test_a_store_made_anew_in_its_place_does_not_see_old_copies(s3, s3_url):
    open_store(s3_url).put(record(value=1.0))
    bucket, _ = bucket_and_prefix(s3_url)
    for item in s3.raw().list_objects_v2(Bucket=bucket)["Contents"]:
        s3.raw().delete_object(Bucket=bucket, Key=item["Key"])
    again = open_store(s3_url)
    with pytest.raises(StoreError, match="no object"):
        again.get(KEY)
    again.put(record(value=2.0))
    assert open_store(s3_url).get(KEY).arrays["a"][0] == 2.0


# --------------------------------------------------------------------------- merge


@pytest.fixture(params=["folder to folder", "folder to s3", "s3 to folder", "memory to s3"])
def two_stores(request, tmp_path: Path):
    """Source and target of a merge."""

    def make(kind: str):
        if kind == "memory":
            return MemoryStore()
        if kind == "folder":
            return Store(tmp_path / uuid.uuid4().hex)
        return open_store(request.getfixturevalue("s3_url"))

    source, _, target = request.param.split()
    return make(source), make(target)


def test_stores_merge_unless_their_numbers_differ(two_stores):
    theirs, mine = two_stores
    for store, letters in ((mine, "ab"), (theirs, "bc")):
        for letter in letters:
            store.put(record(letter * 64))
    theirs.claim("d" * 64, "them")
    seen = []
    report = merge_stores(theirs, mine, progress=lambda done, total: seen.append((done, total)))
    assert (report.copied, report.present, report.conflicts) == (1, 1, 0)
    assert seen == [(1, 2), (2, 2)]
    assert sorted(key[0] for key in mine.keys()) == ["a", "b", "c"]  # noqa: SIM118
    assert mine.claim("d" * 64, "me") is None  # claims stay where they are
    assert merge_stores(theirs, mine).copied == 0
    other = record("d" * 64)
    mine.put(other)
    theirs.put(other.model_copy(update={"arrays": {"a": np.zeros(7)}}))
    theirs.put(record("e" * 64))
    with pytest.raises(IntegrityError, match=r"1 objects have other numbers.*dddddddd"):
        merge_stores(theirs, mine)
    assert not mine.has("e" * 64)
    before = mine.digest_of("d" * 64)
    assert merge_stores(theirs, mine, keep_mine=True).conflicts == 1
    assert mine.has("e" * 64)
    assert mine.digest_of("d" * 64) == before


def test_failures_are_merged_where_nothing_is_known(two_stores):
    theirs, mine = two_stores
    for letter in "abc":
        theirs.put_failure(Failure(key=letter * 64, stage="t", kind="input", message="theirs"))
    mine.put(record("a" * 64))
    mine.put_failure(Failure(key="b" * 64, stage="t", kind="resource", message="mine"))
    assert merge_stores(theirs, mine).failures == 1
    assert mine.failure("a" * 64) is None
    assert (mine.failure("b" * 64).message, mine.failure("b" * 64).attempts) == ("mine", 1)
    assert (mine.failure("c" * 64).message, mine.failure("c" * 64).kind) == ("theirs", "input")
    assert merge_stores(theirs, mine).failures == 0


# --------------------------------------------------------------------------- commands


def command(capsys, *arguments: str) -> tuple[int, dict, str]:
    from orchestration.cli import main

    with (
        mock.patch.object(sys, "argv", ["medrec", *arguments, "--json"]),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), json.loads(out) if out else {}, err


def test_verify_and_merge_from_the_command_line(s3, s3_url, tmp_path: Path, capsys, monkeypatch):
    home = tmp_path / "home"
    for letter in "abc":
        Store(home / "store").put(record(letter * 64))
    code, found, _ = command(capsys, "features", "merge", str(home), "--store", s3_url)
    assert (code, found["copied"]) == (0, 3)
    code, found, _ = command(capsys, "features", "verify", "--store", s3_url)
    assert (code, found["checked"], found["damaged"]) == (0, 3, [])
    bucket, prefix = bucket_and_prefix(s3_url)
    place = {"Bucket": bucket, "Key": f"{prefix}/objects/{'b' * 64}.npz"}
    data = bytearray(s3.raw().get_object(**place)["Body"].read())
    data[200] ^= 4
    s3.raw().put_object(**place, Body=bytes(data))
    monkeypatch.setenv("MEDREC_STORE", s3_url)  # names the store for every command
    code, found, said = command(capsys, "features", "verify", "--home", str(tmp_path / "none"))
    assert (code, found["damaged"]) == (6, ["b" * 64])
    assert "set aside" in said
    code, found, _ = command(capsys, "features", "verify")
    assert (code, found["checked"]) == (0, 2)
    code, found, _ = command(capsys, "features", "merge", str(home / "store"))  # a store's folder
    assert (code, found["copied"], found["present"]) == (0, 1, 2)
    monkeypatch.delenv("MEDREC_STORE")
    code, found, _ = command(capsys, "features", "merge", s3_url, "--home", str(tmp_path / "new"))
    assert (code, found["copied"]) == (0, 3)
    assert Store(tmp_path / "new" / "store").verify() == (3, [])


def test_merging_what_is_no_store_is_said_and_makes_none(s3, s3_url, tmp_path: Path, capsys):
    code, _, said = command(capsys, "features", "merge", str(tmp_path), "--home", str(tmp_path))
    assert code == 2
    assert "expected a home folder" in said
    code, _, said = command(capsys, "features", "merge", s3_url, "--home", str(tmp_path))
    assert code == 6
    assert "no store at" in said
    bucket, _ = bucket_and_prefix(s3_url)
    assert s3.raw().list_objects_v2(Bucket=bucket)["KeyCount"] == 0
