"""The spot watcher against a metadata server on loopback, with a clock that tests move."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import typer
from typer.testing import CliRunner

from orchestration import spot_node, spot_watch
from orchestration.cli_spot import spot_app
from orchestration.spot_node import RayNode, announce_drain, find_ray_node
from orchestration.spot_notices import Auto, Aws, Azure, Gcp, Metadata, Notice
from orchestration.spot_watch import SpotWatch, terminate
from quantum.base import InputError, ResourceError, TransientError

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


class Cloud:
    """Answers by path; a path without an answer is 404, an integer is a status."""

    def __init__(self) -> None:
        self.answers: dict[str, str | int] = {}
        self.asked: list[tuple[str, str]] = []
        self.kind, self.tokens, self.token_life = "aws", 0, 10**9
        self.hang: threading.Event | None = None
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                cloud.reply(self, "GET")

            def do_PUT(self) -> None:
                cloud.reply(self, "PUT")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        if self.hang:
            self.hang.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def reply(self, request: BaseHTTPRequestHandler, method: str) -> None:
        self.asked.append((method, request.path))
        if self.hang:
            self.hang.wait(10)
        status, text = self.answer(request, method)
        try:
            request.send_response(status)
            if self.kind == "gcp":
                request.send_header("Metadata-Flavor", "Google")
            if status == 302:
                request.send_header("Location", "/elsewhere")
            request.end_headers()
            request.wfile.write(text.encode())
        except OSError:
            pass  # the client did not wait

    def answer(self, request: BaseHTTPRequestHandler, method: str) -> tuple[int, str]:
        if self.kind == "aws":
            if (method, request.path) == ("PUT", "/latest/api/token"):
                if request.headers["X-aws-ec2-metadata-token-ttl-seconds"] != "21600":
                    return 400, ""
                self.tokens, self.uses = self.tokens + 1, 0
                return 200, f"token-{self.tokens}"
            self.uses = getattr(self, "uses", 0) + 1
            valid = request.headers["X-aws-ec2-metadata-token"] == f"token-{self.tokens}"
            if not valid or self.uses > self.token_life:
                return 401, ""
        elif method != "GET":
            return 405, ""
        elif self.kind == "gcp" and request.headers["Metadata-Flavor"] != "Google":
            return 403, ""
        elif self.kind == "azure" and request.headers["Metadata"] != "true":
            return 400, ""
        found = self.answers.get(request.path, 404)
        return (found, "") if isinstance(found, int) else (200, found)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    server = Cloud()
    yield server
    server.close()


class Clock:
    """Sleeping moves the time at once and makes what is due happen."""

    def __init__(self) -> None:
        self.time, self.sleeps, self.due = NOW, [], []

    def at(self, seconds: float, happen: Callable[[], object]) -> None:
        self.due.append((NOW + seconds, happen))

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        assert len(self.sleeps) < 500, "the watch does not end"
        self.sleeps.append(seconds)
        self.time += seconds
        for item in [item for item in self.due if item[0] <= self.time]:
            self.due.remove(item)
            item[1]()


class Ray:
    """Stands for the node: what was announced when, and when SIGTERM came."""

    def __init__(self, clock: Clock, drain_s: float = 75.0, leaves_after: float = 3.0) -> None:
        self.clock, self.leaves_after = clock, leaves_after
        self.announced: list[tuple[float, float]] = []
        self.ended: float | None = None
        self.there = True
        self.errors = 0
        ray = self

        class Node(RayNode):
            def is_alive(self) -> bool:
                gone = ray.ended is not None and clock.time >= ray.ended + ray.leaves_after
                return ray.there and not gone

        self.node = Node("ab" * 28, "127.0.0.1:6379", 0, "0", drain_s)

    def find(self) -> RayNode:
        if not self.there:
            raise TransientError("no Ray node runs on this machine")
        return self.node

    def announce(self, node: RayNode, deadline: float, message: str, timeout_s: float) -> None:
        assert 0 < timeout_s <= 10
        if self.errors:
            self.errors -= 1
            raise TransientError("Ray's control plane is away")
        self.announced.append((self.clock.time - NOW, deadline - NOW))

    def terminate(self, node: RayNode) -> None:
        assert self.ended is None, "SIGTERM twice"
        self.ended = self.clock.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ray(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Ray:
    node = Ray(clock)
    monkeypatch.setattr(spot_watch, "terminate", node.terminate)
    return node


def watch(source, ray: Ray, lines: list[str] | None = None, **settings: object) -> SpotWatch:
    say = (lines if lines is not None else []).append
    return SpotWatch(source, ray.find, ray.announce, ray.clock, say, **settings)


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(NOW + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def action(seconds: float, kind: str = "terminate") -> str:
    return json.dumps({"action": kind, "time": iso(seconds)})


def http_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)


def event(kind: str, not_before: str, *machines: str, key: str = "1") -> dict:
    return {
        "EventId": key,
        "EventType": kind,
        "Resources": list(machines),
        "NotBefore": not_before,
    }


# --------------------------------------------------------------------------- AWS


def test_aws_without_a_notice_asks_both_paths_with_one_token(cloud):
    source = Aws(Metadata(cloud.url))
    assert source.poll(NOW, NOW) == source.poll(NOW, NOW) == []
    assert cloud.asked == [
        ("PUT", "/latest/api/token"),
        *2 * [("GET", ACTION), ("GET", REBALANCE)],
    ]


def test_aws_renews_an_expired_token(cloud):
    cloud.token_life = 3
    source = Aws(Metadata(cloud.url))
    for _ in range(4):
        assert source.poll(NOW, NOW) == []
    assert cloud.tokens == 3


@pytest.mark.parametrize("kind", ["terminate", "stop", "hibernate"])
def test_aws_notice_has_the_clouds_own_time(cloud, kind):
    cloud.answers[ACTION] = action(120, kind)
    (notice,) = Aws(Metadata(cloud.url)).poll(NOW, NOW)
    assert notice.deadline == NOW + 120
    assert kind in notice.reason


def test_aws_rebalance_is_advice(cloud):
    cloud.answers[REBALANCE] = json.dumps({"noticeTime": iso(-9)})
    (notice,) = Aws(Metadata(cloud.url)).poll(NOW, NOW)
    assert notice.deadline is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "[]",
        '"terminate"',
        '{"action": "terminate"}',
        '{"action": "terminate", "time": "soon"}',
        '{"action": "terminate", "time": 5}',
    ],
)
def test_aws_unreadable_notice_is_an_error_that_can_be_waited_out(cloud, text):
    cloud.answers[ACTION] = text
    with pytest.raises(TransientError, match="unreadable"):
        Aws(Metadata(cloud.url)).poll(NOW, NOW)


# --------------------------------------------------------------------------- GCP


def test_gcp_counts_from_when_it_was_last_clear(cloud):
    cloud.kind = "gcp"
    cloud.answers |= {PREEMPTED: "FALSE", MAINTENANCE: "NONE"}
    source = Gcp(Metadata(cloud.url))
    assert source.poll(NOW, NOW) == []
    cloud.answers[MAINTENANCE] = "MIGRATE_ON_HOST_MAINTENANCE"
    assert source.poll(NOW, NOW) == []
    cloud.answers[PREEMPTED] = "TRUE"
    assert [n.deadline for n in source.poll(NOW + 5, NOW)] == [NOW + 30]
    cloud.answers |= {PREEMPTED: "FALSE", MAINTENANCE: "TERMINATE_ON_HOST_MAINTENANCE"}
    assert [n.deadline for n in source.poll(NOW + 5, NOW)] == [NOW + 60]


def test_gcp_refuses_an_unknown_value(cloud):
    cloud.kind = "gcp"
    cloud.answers[PREEMPTED] = "<html>"
    with pytest.raises(TransientError, match="expected TRUE or FALSE"):
        Gcp(Metadata(cloud.url)).poll(NOW, NOW)


# --------------------------------------------------------------------------- Azure


def azure(cloud: Cloud, *events: object) -> list[Notice]:
    cloud.kind = "azure"
    cloud.answers[NAME] = "pool_3"
    cloud.answers[EVENTS] = json.dumps({"DocumentIncarnation": 1, "Events": list(events)})
    return Azure(Metadata(cloud.url)).poll(NOW, NOW)


def test_azure_takes_what_ends_this_machine_only(cloud):
    assert azure(cloud) == []
    assert azure(cloud, event("Preempt", http_date(30), "pool_1")) == []
    assert azure(cloud, event("Freeze", http_date(30), "pool_3")) == []
    for kind in ("Preempt", "Terminate", "Reboot", "Redeploy"):
        (notice,) = azure(cloud, event(kind, http_date(30), "pool_1", "POOL_3"))
        assert notice.deadline == NOW + 30
        assert kind in notice.reason


def test_azure_event_that_has_started_ends_now(cloud):
    (notice,) = azure(cloud, event("Preempt", "", "pool_3"))
    assert notice.deadline == NOW


@pytest.mark.parametrize(
    "item", [7, {"EventType": "Preempt"}, event("Preempt", "some day", "pool_3")]
)
def test_azure_unreadable_event(cloud, item):
    with pytest.raises(TransientError, match="unreadable"):
        azure(cloud, item)


def test_azure_document_without_a_list(cloud):
    cloud.kind = "azure"
    cloud.answers |= {NAME: "pool_3", EVENTS: '{"Events": {}}'}
    with pytest.raises(TransientError, match="unreadable scheduled events"):
        Azure(Metadata(cloud.url)).poll(NOW, NOW)


# --------------------------------------------------------------------------- any cloud


def fill(cloud: Cloud, kind: str) -> None:
    cloud.kind = kind
    cloud.answers |= {
        "/computeMetadata/v1/instance/id": "17" if kind == "gcp" else 404,
        PREEMPTED: "FALSE",
        NAME: "vm",
        EVENTS: '{"Events": []}',
    }
    if kind == "azure":
        where = "/metadata/instance/compute/azEnvironment?api-version=2021-02-01&format=text"
        cloud.answers[where] = "AzurePublicCloud"


@pytest.mark.parametrize("kind", ["aws", "gcp", "azure"])
def test_auto_finds_the_cloud_once(cloud, kind):
    fill(cloud, kind)
    source = Auto(Metadata(cloud.url))
    assert (source.name, source.notice_s) == ("auto", 0)
    assert source.poll(NOW, NOW) == []
    assert source.name == kind
    assert source.notice_s == (120 if kind == "aws" else 30)
    first = len(cloud.asked)
    source.poll(NOW, NOW)
    assert len(cloud.asked) - first <= 2


def test_auto_says_that_it_is_none_of_them(cloud):
    cloud.kind = "other"
    with pytest.raises(TransientError, match="none of AWS, GCP, Azure"):
        Auto(Metadata(cloud.url)).poll(NOW, NOW)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_other_answers_are_errors(cloud, status):
    cloud.answers[ACTION] = status
    with pytest.raises(TransientError, match=f"answered {status}"):
        Aws(Metadata(cloud.url)).poll(NOW, NOW)


def test_a_redirect_is_not_followed(cloud):
    cloud.answers |= {ACTION: 302, "/elsewhere": action(120)}
    with pytest.raises(TransientError, match="answered 302"):
        Aws(Metadata(cloud.url)).poll(NOW, NOW)


def test_a_server_that_hangs_or_is_away_is_an_error(cloud):
    cloud.hang = threading.Event()
    with pytest.raises(TransientError, match="no answer"):
        Aws(Metadata(cloud.url, timeout_s=0.1)).poll(NOW, NOW)
    with pytest.raises(TransientError, match="no answer"):
        Aws(Metadata("http://127.0.0.1:9")).poll(NOW, NOW)


def test_a_proxy_of_the_environment_is_not_used(cloud, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Aws(Metadata(cloud.url)).poll(NOW, NOW) == []


@pytest.mark.parametrize("address", ["http://10.0.0.1", "https://127.0.0.1", "127.0.0.1:80"])
def test_only_a_loopback_address_is_taken(address):
    with pytest.raises(InputError, match="loopback"):
        Metadata(address)


# --------------------------------------------------------------------------- the watch


def test_a_notice_is_announced_at_once_and_sigterm_comes_lead_seconds_before_the_end(
    cloud, clock, ray
):
    clock.at(12, lambda: cloud.answers.update({ACTION: action(132)}))
    lines: list[str] = []
    assert watch(Aws(Metadata(cloud.url)), ray, lines, lead=100).run()
    assert ray.announced == [(15, 31)]  # polls at 0, 5, 10, 15; a second before SIGTERM
    assert ray.ended == NOW + 32
    assert [line.split(":")[0].split(" ")[0] for line in lines] == [
        "watching",
        "notice",
        "drain",
        "SIGTERM",
        "Ray",
    ]


def test_the_default_lead_is_rays_drain_time_and_a_margin(cloud, clock, ray):
    cloud.answers[ACTION] = action(120)
    watch(Aws(Metadata(cloud.url)), ray).run()
    assert ray.ended == NOW + 120 - 75 - 10


def test_a_repeated_notice_acts_once_and_an_earlier_end_counts(cloud, clock, ray):
    cloud.answers[ACTION] = action(400)
    clock.at(50, lambda: cloud.answers.update({ACTION: action(200)}))
    clock.at(60, lambda: cloud.answers.update({ACTION: action(900)}))
    watch(Aws(Metadata(cloud.url)), ray, lead=100).run()
    assert ray.announced == [(0, 299), (50, 99)]
    assert ray.ended == NOW + 100


def test_an_end_without_a_time_counts_from_the_last_clear_answer(cloud, clock, ray):
    cloud.kind = "gcp"
    cloud.answers[PREEMPTED] = "FALSE"
    clock.at(5.5, lambda: cloud.answers.update({PREEMPTED: "TRUE"}))
    watch(Gcp(Metadata(cloud.url)), ray, lead=15).run()
    assert ray.announced == [(10, 19)]
    assert ray.ended == NOW + 5 + 30 - 15


@pytest.mark.parametrize(("lead", "ended"), [(28, 2), (40, 0)])
def test_a_notice_too_short_for_an_announcement_means_sigterm_alone(cloud, ray, lead, ended):
    cloud.kind = "gcp"
    cloud.answers[PREEMPTED] = "TRUE"
    lines: list[str] = []
    watch(Gcp(Metadata(cloud.url)), ray, lines, lead=lead).run()
    assert (ray.announced, ray.ended) == ([], NOW + ended)
    assert any("too late" in line for line in lines)


def test_errors_back_off_and_are_said_once(cloud, clock, ray):
    cloud.answers[ACTION] = 500
    clock.at(200, lambda: cloud.answers.update({ACTION: action(400)}))
    lines: list[str] = []
    watch(Aws(Metadata(cloud.url)), ray, lines, lead=100).run()
    assert clock.sleeps[:4] == [10, 20, 30, 30]  # never longer than a quarter of the notice
    assert sum("answered 500" in line for line in lines) == 1
    assert sum("answers again" in line for line in lines) == 1
    assert ray.ended == NOW + 300


def test_metadata_that_breaks_after_the_notice_does_not_delay_the_end(cloud, clock, ray):
    cloud.answers[ACTION] = action(150)
    clock.at(5, lambda: cloud.answers.update({ACTION: 500}))
    watch(Aws(Metadata(cloud.url)), ray, lead=100).run()
    assert ray.ended == NOW + 50
    assert len(ray.announced) == 1


def test_an_announcement_that_fails_is_tried_again_and_the_end_comes_anyway(cloud, clock, ray):
    cloud.answers[ACTION] = action(150)
    ray.errors = 2
    watch(Aws(Metadata(cloud.url)), ray, lead=100).run()
    assert ray.announced == [(10, 49)]
    ray.ended, ray.errors, clock.time = None, 10**6, NOW
    lines: list[str] = []
    watch(Aws(Metadata(cloud.url)), ray, lines, lead=100).run()
    assert ray.ended == NOW + 50
    assert sum("not announced" in line for line in lines) == 1


@pytest.mark.parametrize("drain", [False, True])
def test_advice_drains_only_if_asked_and_the_notice_after_it_counts(cloud, clock, ray, drain):
    cloud.answers[REBALANCE] = json.dumps({"noticeTime": iso(-9)})
    clock.at(40, lambda: cloud.answers.update({ACTION: action(160)}))
    watch(Aws(Metadata(cloud.url)), ray, lead=100, drain_on_advice=drain).run()
    assert ray.announced == [(0, 5)] * drain + [(40, 59)]
    assert ray.ended == NOW + 60


def test_sigterm_waits_for_the_deadline_of_a_drain_on_advice(cloud, clock, ray):
    cloud.answers[REBALANCE] = json.dumps({"noticeTime": iso(-9)})
    clock.at(1, lambda: cloud.answers.update({ACTION: action(121)}))
    watch(Aws(Metadata(cloud.url)), ray, lead=120, interval=1, drain_on_advice=True).run()
    assert ray.announced[0] == (0, 5)  # the raylet goes by its first drain
    assert ray.ended == NOW + 6


def test_a_node_without_ray_is_no_error(cloud, clock, ray):
    ray.there = False
    cloud.answers[ACTION] = action(120)
    lines: list[str] = []
    watch(Aws(Metadata(cloud.url)), ray, lines).run()
    assert ray.ended is None
    assert lines[-1].endswith("nothing to stop")


def test_ray_that_starts_after_the_watcher_is_found(cloud, clock, ray):
    ray.there = False
    clock.at(20, lambda: setattr(ray, "there", True))
    clock.at(20, lambda: cloud.answers.update({ACTION: action(140)}))
    watch(Aws(Metadata(cloud.url)), ray).run()
    assert ray.announced == [(20, 54)]
    assert ray.ended == NOW + 55


def test_ray_that_does_not_leave_is_reported(cloud, clock, ray):
    cloud.answers[ACTION] = action(120)
    ray.leaves_after = 10**6
    with pytest.raises(ResourceError, match="still there"):
        watch(Aws(Metadata(cloud.url)), ray).run()


def test_a_drain_time_that_does_not_fit_is_said_before_any_notice(cloud, clock, ray):
    cloud.kind = "gcp"
    cloud.answers[PREEMPTED] = "FALSE"
    clock.at(60, lambda: cloud.answers.update({PREEMPTED: "TRUE"}))
    lines: list[str] = []
    watch(Gcp(Metadata(cloud.url)), ray, lines).run()
    assert sum("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S to 20 or less" in ln for ln in lines) == 1


def test_once_polls_once(cloud, clock, ray):
    source = Aws(Metadata(cloud.url))
    assert watch(source, ray).run(once=True) is False
    assert clock.sleeps == []
    cloud.answers[ACTION] = 500
    with pytest.raises(TransientError):
        watch(source, ray).run(once=True)
    cloud.answers[ACTION] = action(120)
    assert watch(source, ray).run(once=True) is True
    assert ray.ended is not None


# --------------------------------------------------------------------------- this machine's Ray

RAYLET = "import time; print(flush=True); time.sleep(60)"
START = """
import subprocess, sys
child = subprocess.Popen(
    ["raylet", "-c", sys.argv[1], f"--node_id={sys.argv[2]}", "--gcs-address=127.0.0.1:1"],
    executable=sys.executable, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
try:
    child.wait()
finally:
    child.kill()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[subprocess.Popen, int]]]:
    """Start something that looks like `ray start` with a raylet; returns it and the raylet's id."""
    started: list[tuple[subprocess.Popen, int]] = []

    def make(node_id: str, *flags: str, **env: str) -> tuple[subprocess.Popen, int]:
        process = subprocess.Popen(
            [sys.executable, "-c", START, RAYLET, node_id, "start", *flags],
            stdout=subprocess.PIPE,
            env=os.environ | env,
        )
        assert process.stdout is not None
        started.append((process, int(process.stdout.readline())))
        return started[-1]

    yield make
    for process, child in started:
        process.kill()
        process.wait()
        process.stdout.close()
        if spot_node._stat(child):
            os.kill(child, signal.SIGKILL)


def test_the_node_is_found_with_its_starter_and_drain_time(start):
    process, _ = start("a1" * 28, "--block", RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="17.5")
    node = find_ray_node("a1" * 28)
    assert (node.target, node.drain_s, node.address) == (process.pid, 17.5, "127.0.0.1:1")
    assert node.is_alive()
    terminate(node)
    process.wait(timeout=10)
    assert not node.is_alive()
    terminate(node)  # gone already: no error


def test_without_block_the_raylet_itself_is_meant(start):
    _, raylet = start("b2" * 28)
    node = find_ray_node("b2" * 28)
    assert (node.target, node.drain_s) == (raylet, 0)


@pytest.mark.parametrize(
    ("name", "value", "seconds"), [("c3", "", 30), ("c4", "soon", 30), ("c5", "-1", 0)]
)
def test_odd_drain_times(start, name, value, seconds):
    start(name * 28, "--block", RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=value)
    assert find_ray_node(name * 28).drain_s == seconds


def test_several_nodes_must_be_told_apart(start):
    start("d4" * 28, "--block")
    start("e5" * 28, "--block")
    with pytest.raises(InputError, match="name one"):
        find_ray_node()
    with pytest.raises(TransientError, match="no Ray node with node id f6"):
        find_ray_node("f6" * 28)


def test_a_watcher_of_another_user_says_so_before_any_notice(start, monkeypatch):
    start("a7" * 28, "--block")

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(spot_node.os, "kill", refuse)
        with pytest.raises(InputError, match="the user that runs Ray"):
            find_ray_node("a7" * 28)


def test_a_later_process_of_the_same_id_is_not_taken_for_the_node():
    mine = spot_node._stat(os.getpid())
    assert mine is not None
    assert RayNode("", "", os.getpid(), mine.started, 0).is_alive()
    assert not RayNode("", "", os.getpid(), "1", 0).is_alive()


def test_an_announcement_to_nobody_ends_in_time():
    node = RayNode("ab" * 28, "127.0.0.1:9", 0, "0", 0)
    with pytest.raises(TransientError, match="did not answer in 1 s"):
        announce_drain(node, NOW, "test", 1.0)


# --------------------------------------------------------------------------- the command


def run_command(*arguments: str) -> tuple[object, str]:
    app = typer.Typer()
    app.command()(lambda: None)
    app.add_typer(spot_app)
    nobody = ["--node-id", "ff" * 28]  # other tests may run Ray on this machine at the same time
    result = CliRunner().invoke(app, ["spot-watch", *nobody, *arguments])
    return result.exception, result.stderr


def test_the_command_polls_once(cloud):
    error, text = run_command("--cloud", "aws", "--once", "--metadata", cloud.url)
    assert error is None
    assert "watching aws" in text
    assert text.strip().endswith("no notice")


def test_the_commands_errors_are_for_people(cloud):
    cloud.kind = "other"
    error, _ = run_command("--once", "--metadata", cloud.url)
    assert isinstance(error, TransientError)
    error, _ = run_command("--once", "--metadata", "http://example.org")
    assert isinstance(error, InputError)
