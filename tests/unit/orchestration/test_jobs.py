"""Jobs: names, uploads, environments and every message, against a stub of Ray's client."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from ray.exceptions import AuthenticationError
from typer.testing import CliRunner

from orchestration import cli_jobs, job_request
from orchestration.cli_jobs import duration, jobs_app
from orchestration.cluster import ADDRESS_VARIABLE
from orchestration.job_request import (
    Request,
    Upload,
    check_arguments,
    command_name,
    read_pins,
    use_job_environment,
)
from orchestration.jobs import Job, JobServer, check_address, connect, explain, is_exposed
from quantum.base import InputError, MedrecError, TransientError

ADDRESS = "http://127.0.0.1:8265"


class StubClient:
    """Ray's client in memory: a submitted job has at once the status and log set here."""

    def __init__(self, status: str = "RUNNING", log: tuple[str, ...] = ("one\n", "two\n")) -> None:
        self.status, self.log, self.exit_code = status, log, None
        self.submitted: list[dict] = []
        self.details: dict[str, SimpleNamespace] = {}
        self.before_submit = lambda: None

    def add(self, job_id: str, status: str, entrypoint: str = "x", **more) -> None:
        facts = {
            "submission_id": job_id,
            "job_id": None,
            "status": status,
            "entrypoint": entrypoint,
            "start_time": 1_800_000_000_000 + 1000 * len(self.details),
            "end_time": None if status in ("PENDING", "RUNNING") else 1_800_000_100_000,
            "message": "",
            "driver_exit_code": self.exit_code,
            "runtime_env": {"env_vars": {"SECRET": "hunter2"}},
        }
        self.details[job_id] = SimpleNamespace(**(facts | more))

    def submit_job(self, **request) -> str:
        self.before_submit()
        job_id = request["submission_id"]
        if job_id in self.details:
            raise RuntimeError(
                f"Request failed with status code 400: Traceback\nValueError: Job with "
                f"submission_id {job_id} already exists. Please use a different submission_id."
            )
        self.submitted.append(request)
        self.add(job_id, self.status, request["entrypoint"])
        return job_id

    def list_jobs(self) -> list[SimpleNamespace]:
        driver = SimpleNamespace(submission_id=None, job_id="01000000")  # joined by itself
        return [driver, *self.details.values()]

    def get_job_logs(self, job_id: str) -> str:
        return "".join(self.log)

    async def tail_job_logs(self, job_id: str):
        for text in self.log:
            yield text
        self.details[job_id].status = self.details[job_id].status.replace("RUNNING", "SUCCEEDED")

    def stop_job(self, job_id: str) -> bool:
        self.details[job_id].status = "STOPPED"
        return True


@pytest.fixture
def client() -> StubClient:
    return StubClient()


@pytest.fixture
def server(client: StubClient) -> JobServer:
    return JobServer(ADDRESS, client, lambda: {"CPU": 2.0, "driver": 8.0})


def request_of(*arguments: str, **more) -> Request:
    return Request(**({"name": "run", "arguments": arguments or ("demo",), "env": {}} | more))


# --------------------------------------------------------------------------- uploads


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in (
        "orchestration/cli.py",
        "configs/train/a.yaml",
        "requirements.lock",
        "tests/test_a.py",
        "docs/a.md",
        "benchmarks/a.py",
        "benchmarks/results/a.json",
        "medrec-work/store/a",
        "data/codes/table.csv",
        "data/mimic/patients.csv",
        "medrec/__pycache__/a.pyc",
        ".env",
        ".github/a.yml",
        "server.pem",
        "home/cohorts/visits.parquet",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / "link.csv").symlink_to(folder / "server.pem")
    return folder


def test_upload_of_a_folder_leaves_out_secrets_results_and_the_home(project: Path):
    upload = Upload.of(project, [project / "home"])
    assert [str(name) for name in upload.files] == [
        "benchmarks/a.py",
        "configs/train/a.yaml",
        "data/codes/table.csv",
        "data/mimic/patients.csv",
        "orchestration/cli.py",
        "requirements.lock",
    ]
    assert upload.n_bytes == sum(len(str(name)) for name in upload.files)


def test_upload_of_a_checkout_keeps_unknown_tables_here(project: Path):
    git = ("git", "-C", str(project))
    (project / ".gitignore").write_text("home/\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "data/codes", "orchestration", "tests"], check=True)
    (project / "configs/train/ß.yaml").write_text("new and not ignored")
    names = [str(name) for name in Upload.of(project).files]
    assert "data/codes/table.csv" in names
    assert "data/mimic/patients.csv" not in names
    assert "configs/train/ß.yaml" in names
    assert not [name for name in names if name.startswith(("home/", "tests/", "."))]


def test_upload_that_is_too_large_names_what_is_large(project, monkeypatch):
    (project / "configs/huge.bin").write_bytes(bytes(3 * 2**20))
    (project / "data/codes/large.csv").write_bytes(bytes(2 * 2**20))
    monkeypatch.setattr(job_request, "LIMIT_BYTES", 4 * 2**20)
    with pytest.raises(InputError, match=r"holds 5.0 MiB to upload; .* takes 4.0 MiB") as caught:
        Upload.of(project)
    assert "configs/huge.bin (3.0 MiB), data/codes/ (2.0 MiB)" in str(caught.value)
    with pytest.raises(InputError, match="working folder not found"):
        Upload.of(project / "absent")


def test_package_is_the_same_for_the_same_files(project: Path, tmp_path: Path):
    (project / "orchestration/cli.py").chmod(0o755)
    first = Upload.of(project).pack(tmp_path / "a.zip").read_bytes()
    for path in project.rglob("*.py"):
        os.utime(path, (10**9, 10**9))
    packed = Upload.of(project).pack(tmp_path / "b.zip")
    assert packed.read_bytes() == first
    with zipfile.ZipFile(packed) as archive:
        assert archive.read("configs/train/a.yaml") == b"configs/train/a.yaml"
        assert archive.getinfo("orchestration/cli.py").external_attr >> 16 == 0o755
    (project / "configs/train/a.yaml").write_text("changed")
    assert Upload.of(project).pack(tmp_path / "c.zip").read_bytes() != first


def test_configurations_that_would_not_be_there_are_refused(project: Path):
    upload = Upload.of(project)
    fine = ("train", "configs/train/a.yaml", "./configs/train/../train/a.yaml", "/shared/x.yaml")
    check_arguments((*fine, "--set", "file=absent.yaml"), upload)
    with pytest.raises(InputError, match=r"absent.yaml is not in what is uploaded"):
        check_arguments(("train", "absent.yaml"), upload)
    with pytest.raises(InputError, match=r"\.github/a.yml is left out of"):
        check_arguments(("train", ".github/a.yml"), upload)


# --------------------------------------------------------------------------- names, environment


def test_names_follow_command_and_configuration(project: Path):
    arguments = ("features", "run", "configs/train/a.yaml")
    name = command_name(arguments, project)
    assert name.startswith("features-run-")
    assert len(name) == len("features-run-") + 8
    assert command_name(arguments, project) == name
    assert command_name((*arguments, "--quiet"), project) != name
    (project / "configs/train/a.yaml").write_text("changed")
    assert command_name(arguments, project) != name


@pytest.mark.parametrize("name", ["", "a/b", "-a", "a b", "x" * 101])
def test_bad_names_are_refused(name):
    with pytest.raises(InputError, match="job name"):
        request_of(name=name)


def test_entry_point_is_quoted_for_the_shell():
    entrypoint = request_of("molecule", "C[C@H](N)C; rm -rf $HOME").entrypoint
    assert entrypoint == "python -m orchestration molecule 'C[C@H](N)C; rm -rf $HOME'"


def test_environment_joins_the_cluster_and_gives_time_to_save(tmp_path: Path):
    described = request_of(env={"A": "1"}).runtime_env(tmp_path / "x.zip")
    assert described == {
        "env_vars": {ADDRESS_VARIABLE: "auto", "RAY_JOB_STOP_WAIT_TIME_S": "30", "A": "1"},
        "working_dir": str(tmp_path / "x.zip"),
    }
    own = request_of(env={"RAY_JOB_STOP_WAIT_TIME_S": "9"}, pip=("a==1",)).runtime_env(None)
    assert own["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "9"
    assert own["pip"] == {"packages": ["a==1"], "pip_check": False}
    assert "working_dir" not in own


def test_pins_are_read_and_must_be_exact(tmp_path: Path):
    lock = tmp_path / "requirements.lock"
    with pytest.raises(InputError, match="no such file"):
        read_pins(lock)
    lock.write_text("# made by hand\nnumpy==2.4.0\n\nray==2.60.0  # the cluster's\n")
    assert read_pins(lock) == ("numpy==2.4.0", "ray==2.60.0")
    lock.write_text("numpy>=2\n")
    with pytest.raises(InputError, match="'numpy>=2' is not an exact pin"):
        read_pins(lock)


def test_only_jobs_get_the_job_environment(monkeypatch: pytest.MonkeyPatch):
    for name in (ADDRESS_VARIABLE, "MEDREC_HOME", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    use_job_environment()
    assert ADDRESS_VARIABLE not in os.environ
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("MEDREC_HOME", "/shared/work")
    monkeypatch.setenv(ADDRESS_VARIABLE, "")  # so that it is put back after the test
    monkeypatch.delenv(ADDRESS_VARIABLE)
    use_job_environment()
    assert os.environ[ADDRESS_VARIABLE] == "auto"
    assert os.environ["MEDREC_HOME"] == "/shared/work"


# --------------------------------------------------------------------------- submitting


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED"])
def test_a_second_submit_does_not_run_again(client, server, status):
    client.status = status
    job, is_new = server.submit(request_of(), None)
    assert (job.id, is_new) == ("run-1", True)
    assert server.submit(request_of(), None) == (server.find("run-1"), False)
    assert len(client.submitted) == 1


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_what_failed_or_was_stopped_is_the_next_attempt(client, server, status):
    client.status = status
    ids = [server.submit(request_of(), None)[0].id for _ in range(11)]
    assert ids == [f"run-{number}" for number in range(1, 12)]
    assert server.find("run").id == "run-11"
    assert server.find("run-2").id == "run-2"


def test_again_repeats_what_succeeded_but_not_what_runs(client, server):
    client.status = "SUCCEEDED"
    server.submit(request_of(), None)
    client.status = "RUNNING"
    assert server.submit(request_of(), None, again=True)[0].id == "run-2"
    assert server.submit(request_of(), None, again=True)[1] is False


def test_a_name_belongs_to_one_command(client, server):
    server.submit(request_of("demo"), None)
    with pytest.raises(InputError, match="belongs to another command, 'medrec demo'"):
        server.submit(request_of("doctor"), None)


def test_the_faster_of_two_submits_wins(client, server):
    client.before_submit = lambda: client.add("run-1", "RUNNING")
    job, is_new = server.submit(request_of(), None)
    assert (job.id, is_new, client.submitted) == ("run-1", False, [])


@pytest.mark.parametrize(
    ("there", "wanted", "expected"),
    [
        ({"driver": 8.0}, None, {"driver": 1}),
        ({"CPU": 8.0}, None, None),
        ({"driver": 8.0}, {"big": 2.0}, {"big": 2.0}),
    ],
)
def test_a_driver_is_asked_for_where_there_is_one(client, there, wanted, expected):
    JobServer(ADDRESS, client, lambda: there).submit(request_of(resources=wanted, cpus=2), None)
    assert client.submitted[0]["entrypoint_resources"] == expected
    assert client.submitted[0]["entrypoint_num_cpus"] == 2


def test_waiting_gives_up_and_says_so(client, server):
    client.add("run-1", "RUNNING")
    with pytest.raises(TransientError, match="run-1 is still RUNNING after 0 s"):
        server.wait("run-1", timeout_s=0)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 4, 4), ("FAILED", None, 5), ("FAILED", -9, 5)],
)
def test_exit_codes_of_jobs(status, code, expected):
    assert Job("a-1", status, "x", exit_code=code).command_exit_code == expected


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (AuthenticationError("Authentication required: x\n\ny"), InputError, "wants a token: set"),
        (AuthenticationError("Authentication failed: x\n\ny"), InputError, "refuses this token"),
        (
            RuntimeError("Request failed with status code 404: Job a does not exist."),
            InputError,
            f"not found at {ADDRESS}: Job a does not exist",
        ),
        (RuntimeError("Request failed with status code 413: big."), InputError, "of this size"),
        (
            RuntimeError("Request failed with status code 400: Traceback\n  x\nValueError: bad."),
            InputError,
            "refuses the request: ValueError: bad",
        ),
        (
            RuntimeError("Request failed with status code 500: Traceback\nKeyError: 'a'."),
            TransientError,
            "failed with status 500: KeyError: 'a'",
        ),
        (RuntimeError("Request failed with status code 500: ."), TransientError, "status 500: "),
        (ConnectionError("Failed to connect"), TransientError, "no Ray job server at"),
        (RuntimeError("WebSocket connection closed unexpectedly"), TransientError, "jobs go on"),
        (TimeoutError("slow"), TransientError, "no answer"),
        (ValueError("a\nb"), TransientError, "failed: ValueError: b"),
        (RuntimeError(""), TransientError, "failed: RuntimeError: "),
    ],
)
def test_errors_of_the_client_become_one_line(client, server, error, kind, message):
    def fail() -> None:
        raise error

    client.list_jobs = fail
    with pytest.raises(MedrecError) as caught:
        server.jobs()
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert ADDRESS in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defects_are_not_hidden(client, server):
    client.list_jobs = lambda: [SimpleNamespace(submission_id="a")]
    with pytest.raises(AttributeError):
        server.jobs()


def test_unknown_jobs_name_the_latest(client, server):
    with pytest.raises(InputError, match=r"no job 'a' at .*: none yet"):
        server.find("a")
    client.add("old-1", "FAILED")
    client.add("new-1", "RUNNING")
    with pytest.raises(InputError, match="the latest are: new-1, old-1"):
        server.find("old-2")


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((404, b"nothing"), InputError, "is no Ray job server"),
        ((502, b"bad gateway"), InputError, "is no Ray job server"),
        ((200, b"<html>hello</html>"), InputError, "is no Ray job server"),
        ((200, b'{"version": 1}'), InputError, "is no Ray job server"),
        ((401, b"Unauthorized"), InputError, "wants a token"),
        ((403, b"Forbidden"), InputError, "refuses this token"),
        (None, TransientError, "is the cluster up"),
    ],
)
def test_connecting_to_the_wrong_place(monkeypatch, answer, kind, message):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer[0])
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # must not win
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with HTTPServer(("127.0.0.1", 0), Handler) as web:
        address = f"http://127.0.0.1:{web.server_port}"
        if answer is None:
            web.server_close()
        else:
            Thread(target=web.handle_request, daemon=True).start()
        with pytest.raises(kind, match=message) as caught:
            connect(address)
    assert address in str(caught.value)


def test_addresses():
    assert check_address("127.0.0.1:8265/") == ADDRESS
    assert check_address("https://head.example:8265") == "https://head.example:8265"
    for bad in ("ray://head:10001", "http://", "auto://x"):
        with pytest.raises(InputError, match="expected the dashboard's"):
            check_address(bad)
    with pytest.raises(InputError) as caught:
        check_address("http://me:hunter2@head:8265")
    assert "hunter2" not in str(caught.value)
    exposed = {"http://10.0.0.1:8265": True, "http://head:8265": True, "https://head": False}
    exposed |= {ADDRESS: False, "http://localhost:8265": False, "http://[::1]:8265": False}
    assert {address: is_exposed(address) for address in exposed} == exposed


def test_explain_cuts_long_text():
    assert len(str(explain(RuntimeError("x" * 10_000), ADDRESS))) < 500


# --------------------------------------------------------------------------- the commands


@pytest.fixture
def medrec(server, project, monkeypatch):
    """``medrec jobs`` on the stub, in the project folder."""
    monkeypatch.setattr(cli_jobs, "connect", lambda address: server)
    monkeypatch.chdir(project)
    monkeypatch.setenv("SECRET", "hunter2")

    def run(*arguments: str):
        result = CliRunner().invoke(jobs_app, list(arguments))
        assert "hunter2" not in result.output + result.stderr
        return result

    return run


def test_submit_says_what_it_uploads_and_where_the_log_is(medrec, client):
    done = medrec("submit", "--name", "a", "--", "medrec", "train", "configs/train/a.yaml", "--x")
    assert done.exit_code == 0
    assert "upload: 7 files, 0.0 MiB" in done.stderr
    assert "submitted as a-1; log: medrec jobs logs a-1 --follow" in done.stderr
    (request,) = client.submitted
    assert request["entrypoint"] == "python -m orchestration train configs/train/a.yaml --x"
    assert request["runtime_env"]["working_dir"].endswith(".zip")


def test_submit_passes_environment_home_and_pins(medrec, client, project):
    (project / "requirements.lock").write_text("ray==2.60.0\n")
    done = medrec(
        *("submit", "--name", "a", "--env", "SECRET", "--env", "B=x=y", "--home", "/shared/work"),
        *("--install", "--cpus", "1", "--resources", "big=2", "--", "demo"),
    )
    assert done.exit_code == 0, done.stderr
    (request,) = client.submitted
    env = request["runtime_env"]["env_vars"]
    assert (env["SECRET"], env["B"], env["MEDREC_HOME"]) == ("hunter2", "x=y", "/shared/work")
    assert request["runtime_env"]["pip"]["packages"] == ["ray==2.60.0"]
    assert (request["entrypoint_num_cpus"], request["entrypoint_resources"]) == (1, {"big": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--env", "1A=x"), "--env with the name '1A'"),
        (("--env", "ABSENT_HERE"), "there is no such variable here"),
        (("--env", "RAY_JOB_STOP_WAIT_TIME_S=soon"), "takes whole seconds"),
        (("--home", "work"), "expected an absolute path on the cluster's nodes"),
        (("--resources", "driver"), "expected NAME=AMOUNT"),
        (("--resources", "driver=nan"), "expected NAME=AMOUNT"),
        (("--resources", "=1"), "expected NAME=AMOUNT"),
        (("--name", "a/b"), "job name 'a/b'"),
        (("--working-dir", "absent"), "working folder not found: absent"),
        (("--address", "ray://x:10001"), "expected the dashboard's"),
    ],
)
def test_submit_refuses_bad_input(medrec, client, options, message):
    done = medrec("submit", *options, "--", "demo")
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert client.submitted == []


def test_submit_without_a_command(medrec):
    done = medrec("submit", "--", "medrec")
    assert "no command to run" in str(done.exception)


def test_submit_and_wait_shows_the_log_and_takes_over_the_exit_code(medrec, client):
    done = medrec("submit", "--name", "a", "--wait", "--json", "--", "demo")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["status"] == "SUCCEEDED"
    assert "one\ntwo\n" in done.stderr
    assert "a-1 has SUCCEEDED already" in medrec("submit", "--name", "a", "--", "demo").stderr
    client.status, client.exit_code = "FAILED", 4
    failed = medrec("submit", "--name", "b", "--wait", "--", "demo")
    assert failed.exit_code == 4
    assert "one\ntwo\n" in failed.stdout


def test_ctrl_c_leaves_the_job_and_says_so(medrec, client):
    async def interrupted(job_id: str):
        raise KeyboardInterrupt
        yield ""

    client.tail_job_logs = interrupted
    done = medrec("submit", "--name", "a", "--wait", "--", "demo")
    assert done.exit_code == 130
    assert "a-1 goes on; medrec jobs stop a-1 ends it" in done.stderr


def test_exposed_addresses_are_warned_of(medrec):
    assert "travel in clear" in medrec("list", "--address", "http://10.0.0.1:8265").stderr
    assert "travel in clear" not in medrec("list").stderr


def test_list_and_status(medrec, client):
    assert "no jobs at" in medrec("list").stdout
    client.add("a-1", "FAILED", "medrec a", message="first\nsecond", driver_exit_code=2)
    client.add("b-1", "RUNNING", "medrec b")
    client.add("a-much-longer-name-of-a-job-1", "PENDING", "python -m orchestration a -x")
    assert "a-much-longer-name-of-a-job-1" in medrec("list").stdout
    assert json.loads(medrec("list", "--json").stdout)[0]["command"] == "medrec a -x"
    del client.details["a-much-longer-name-of-a-job-1"]
    rows = [line.split() for line in medrec("list").stdout.splitlines()]
    assert [row[0] for row in rows if row[0] in ("a-1", "b-1")] == ["b-1", "a-1"]
    assert "2027-01-15 08:00:00  1 min 40 s  medrec a" in medrec("list").stdout
    shown = medrec("status", "a").stdout
    assert "first" in shown
    assert "second" not in shown
    assert json.loads(medrec("status", "a-1", "--json").stdout)["exit_code"] == 2
    assert [job["job"] for job in json.loads(medrec("list", "--json").stdout)] == ["b-1", "a-1"]


def test_logs_are_passed_on_as_they_are(medrec, client):
    client.add("a-1", "RUNNING")
    client.log = ("[bold]C[C@H]\n", "x" * 300 + "\n")
    for options in ((), ("--follow",)):
        assert medrec("logs", "a-1", *options).stdout == "".join(client.log)


def test_stop_waits_for_the_end(medrec, client):
    client.add("a-1", "RUNNING")
    done = medrec("stop", "a", "--json")
    assert json.loads(done.stdout)["status"] == "STOPPED"
    assert "stopping a-1" in done.stderr
    assert "a-1 had ended before" in medrec("stop", "a").stderr
    client.add("b-1", "RUNNING")
    client.stop_job = lambda job_id: True
    late = medrec("stop", "b-1", "--timeout", "1")
    assert "b-1 is still RUNNING after 1 s" in str(late.exception)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (18420, "5 h 07 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
