"""The shipped files for own machines, on machines made of Linux namespaces.

Each machine has its own network, processes, root folder (an overlay that forgets what is written)
and shared memory; ``ray stop`` sees only its own. When a machine's first process ends, the kernel
ends everything on it. The addresses, user and paths are those of the shipped files.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("unshare", "nsenter", "ip", "ssh", "sshd", "ssh-keygen", "rsync", "ps")
NAMESPACES = ("unshare", "-n", "-m", "-p", "-i", "-u", "--fork", "--kill-child")
ENVIRONMENT = {
    "HOME": "/home/chem",
    "USER": "chem",
    "PATH": f"/home/chem/env/bin:{SYSTEM_PATH}",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}

BUILD = str(Path(__file__).with_name("machine.sh"))
# the first process: takes in orphans, and ends the machine when its standard input is closed
INIT = """
import os, signal, sys
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
os.chdir("/home/chem")
print("up", flush=True)
sys.stdin.buffer.read()
"""
NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
alive = [node for node in ray.nodes() if node["Alive"]]
print(json.dumps([[node["NodeManagerAddress"], node["Labels"]] for node in alive]))
"""
# finished tasks that asked for a core, by the address of their node
TASKS = """
import json
from ray.util.state import list_nodes, list_tasks
where = {node.node_id: node.node_ip for node in list_nodes()}
which = [("type", "=", "NORMAL_TASK"), ("state", "=", "FINISHED")]
tasks = list_tasks(filters=which, detail=True, limit=1000)
asked = [task for task in tasks if (task.required_resources or {}).get("CPU")]
print(json.dumps([where[task.node_id] for task in asked]))
"""


class Machine:
    """A host of its own, with the user ``chem`` (who is root) and the virtual environment."""

    def __init__(self, name: str, folder: Path, place: str, keys: Path) -> None:
        self.name = name
        settings = {
            "NAME": name,
            "FOLDER": str(folder),
            "PLACE": place,
            "KEYS": str(keys),
            "VENV": sys.prefix,
            "PYTHON": sys.executable,
            "INIT": INIT,
            "KEEP": " ".join(sorted({sys.prefix, sys.base_prefix, str(ROOT)})),
            "SETTINGS": " ".join(f"{key}={value}" for key, value in ENVIRONMENT.items()),
            "PATH": SYSTEM_PATH,
        }
        self.process = subprocess.Popen(
            [*NAMESPACES, "bash", BUILD],
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout.readline() == b"up\n", f"{name} did not come up"
        pid = self.process.pid
        self.pid = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]

    def command(self, *command: str, env: dict[str, str] | None = None) -> list[str]:
        """What runs a command on this machine."""
        settings = [f"{key}={value}" for key, value in {**ENVIRONMENT, **(env or {})}.items()]
        return ["nsenter", "-t", self.pid, "-a", "-r", "-w", "env", "-i", *settings, *command]

    def run(
        self, *command: str, env: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*command, env=env),
            capture_output=True,
            text=True,
            timeout=400,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def python(self, code: str) -> list:
        """What a program that joins the cluster prints as JSON; [] while there is none."""
        done = self.run("python", "-c", code, env={"RAY_AUTH_MODE": "token"}, check=False)
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []

    def ray_processes(self) -> list[str]:
        """Everything of Ray; a machine sees only its own processes."""
        listed = self.run("ps", "-axww", "-o", "stat=,args=").stdout.splitlines()
        mark = re.compile(r"raylet|gcs_server|ray start|ray::|/ray/|ray-dashboard")
        return [line for line in listed if mark.search(line) and line[0] != "Z"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Lan:
    """A laptop, a head and two workers in one network; only the last three share a folder."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.shared, self.checkout = folder / "shared", folder / "checkout"
        self.shared.mkdir()
        for package in ("orchestration", "medrec", "quantum", "configs", "data"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, self.checkout / package, ignore=ignored)
        self.laptop, *self.hosts = (
            self._machine(name, stack) for name in ("laptop", "head", "worker1", "worker2")
        )
        self.head, *self.workers = self.hosts
        self._connect()

    def _machine(self, name: str, stack: ExitStack) -> Machine:
        keys, user = self.folder / "keys" / name, self.folder / "keys" / "laptop" / "id_ed25519"
        keys.mkdir(parents=True)
        own = user if name == "laptop" else keys / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", own], check=True)
        if name != "laptop":
            shutil.copy(user.with_suffix(".pub"), keys / "authorized_keys")
        place = ("checkout", "/home/chem/medrec") if name == "laptop" else ("shared", "/shared")
        machine = Machine(name, self.folder / place[0], place[1], keys)
        stack.callback(machine.close)
        return machine

    def _connect(self) -> None:
        def ip(machine: Machine, *arguments: str) -> None:
            where = ("nsenter", "-t", machine.pid, "-n")
            subprocess.run([*where, "ip", *arguments], check=True)

        ip(self.laptop, "link", "add", "lan", "type", "bridge")
        ip(self.laptop, "addr", "add", "10.0.0.254/24", "dev", "lan")
        ip(self.laptop, "link", "set", "lan", "up")
        for number, host in enumerate(self.hosts, 1):
            port = f"port{number}"
            peer = ("type", "veth", "peer", "name", "eth0", "netns", host.pid)
            ip(self.laptop, "link", "add", port, *peer)
            ip(self.laptop, "link", "set", port, "master", "lan", "up")
            ip(host, "addr", "add", f"10.0.0.{number}/24", "dev", "eth0")
            ip(host, "link", "set", "eth0", "up")
            ip(host, "route", "add", "default", "via", "10.0.0.254")
            options = ("-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PermitRootLogin=yes")
            host.run(
                shutil.which("sshd", path=SYSTEM_PATH), "-h", "/home/chem/.ssh/host_key", *options
            )

    def addresses(self) -> set[str]:
        """Nodes that the head knows to be alive."""
        return {address for address, _ in self.head.python(NODES)}

    def complaint(self) -> str:
        """For failures: what every machine of Ray says."""
        show = "tail -n 40 /tmp/medrec-ray.log /tmp/ray/session_latest/logs/monitor.log"
        return "\n".join(host.run("bash", "-c", show, check=False).stdout for host in self.hosts)


def missing() -> str | None:
    """Why machines cannot be made here; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "machines made of namespaces need root on Linux"
    lost = [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]
    if lost:
        return f"not installed: {', '.join(lost)}"
    tried = subprocess.run(
        [*NAMESPACES, "bash", BUILD],
        env={"PATH": SYSTEM_PATH, "NAME": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces or overlays here: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture
def lan() -> Iterator[Lan]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with ExitStack() as stack:
        # not pytest's folder: its path is long, and Ray's sockets are not in here anyway
        folder = Path(tempfile.mkdtemp(prefix="medrec-lan-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield Lan(folder, stack)


def wait_for(condition: Callable[[], object], seconds: float, say: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, say()
        time.sleep(1)


# --------------------------------------------------------------------------- ray up


def shipped_launcher(lan: Lan) -> None:
    """Put the shipped file into the laptop's checkout; one core per worker is all that changes."""
    path = lan.checkout / "configs" / "cluster" / "onprem.yaml"
    text, changed = re.subn(r"--num-cpus=[1-9]\d*", "--num-cpus=1", path.read_text())
    assert changed == 1
    path.write_text(text)
    cohort = {
        "name": "tiny",
        "source": {
            "format": "synthetic",
            "n_patients": 40,
            "n_diagnoses": 20,
            "n_procedures": 10,
            "n_drugs": 8,
        },
    }
    (lan.checkout / "configs" / "data" / "tiny.yaml").write_text(yaml.safe_dump(cohort))


def on_laptop(lan: Lan, command: str, check: bool = True) -> str:
    """What a user types, in the checkout, as docs/cluster.md says."""
    line = f"cd ~/medrec && export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 && {command}"
    done = lan.laptop.run("bash", "-c", line, check=check)
    return done.stdout + done.stderr


def test_ray_up_submits_computes_on_the_workers_and_goes_down(lan):
    shipped_launcher(lan)
    on_laptop(lan, "ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
    assert "fine" in on_laptop(lan, "medrec cluster check configs/cluster/onprem.yaml")
    on_laptop(lan, "ray up -y configs/cluster/onprem.yaml")
    wait_for(lambda: len(lan.addresses()) == 3, 300, lan.complaint)
    pools = {address: labels["pool"] for address, labels in lan.head.python(NODES)}
    assert pools == {"10.0.0.1": "head", "10.0.0.2": "dft", "10.0.0.3": "dft"}
    for host in lan.workers:
        assert host.run("stat", "-c", "%a", "/home/chem/.ray/auth_token").stdout == "600\n"

    ssh = "ssh -o StrictHostKeyChecking=no -o BatchMode=yes"
    tunnel = subprocess.Popen(
        lan.laptop.command("bash", "-c", f"exec {ssh} -N -L 8265:127.0.0.1:8265 chem@10.0.0.1"),
        stderr=subprocess.DEVNULL,
    )
    listening = "exec 3<>/dev/tcp/127.0.0.1/8265"
    through = ("bash", "-c", listening)
    wait_for(lambda: not lan.laptop.run(*through, check=False).returncode, 300, lan.complaint)
    text = on_laptop(lan, "medrec jobs submit --wait -- prepare configs/data/tiny.yaml")
    assert (lan.shared / "medrec").is_dir(), text
    features = "features run configs/quantum/smoke.yaml --cohort tiny"
    features += " --set max_atoms=24 --set scf_budget_cpu_s=25"
    text = on_laptop(
        lan,
        "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265; ray job submit --working-dir . "
        f"--entrypoint-resources '{{\"driver\": 1}}' -- python -m orchestration {features}",
    )
    assert "succeeded" in text
    records = [
        json.loads(path.read_text())
        for path in (lan.shared / "medrec").glob("store/objects/*/*/record.json")
    ]
    assert {"conformer", "scf", "features"} <= {record["stage"] for record in records}, text
    ran_on = lan.head.python(TASKS)
    assert ran_on
    assert set(ran_on) <= {"10.0.0.2", "10.0.0.3"}
    assert "SUCCEEDED" in on_laptop(lan, "medrec jobs list")
    tunnel.terminate()

    on_laptop(lan, "ray down -y configs/cluster/onprem.yaml")
    tunnel.wait(timeout=300)
    assert lan.head.ray_processes() == []
    # the launcher stops the head alone; workers go by themselves a minute after they lost it
    for host in lan.workers:
        wait_for(lambda host=host: host.ray_processes() == [], 300, host.ray_processes)


# --------------------------------------------------------------------------- units


def unit_text(name: str) -> str:
    return (ROOT / "configs" / "cluster" / f"{name}.service").read_text()


class Service:
    """What systemd would do with a shipped unit: its commands, environment and way to stop."""

    def __init__(self, machine: Machine, name: str, overrides: dict[str, str]) -> None:
        self.machine, self.name = machine, name
        text = unit_text(name).replace("\\\n", " ")
        lines = [line.partition("=") for line in text.splitlines() if not line.startswith("#")]
        section = [(key, value) for key, found, value in lines if found]
        self.settings = dict(section)
        variables = [value.partition("=") for key, value in section if key == "Environment"]
        self.env = {key: value for key, _, value in variables} | overrides
        assert self.settings["KillMode"] == "mixed"
        machine.run(*self._words("ExecStartPre"), env=self.env)
        # the first process of the service is the one that SIGTERM goes to
        remember = ("sh", "-c", 'echo $$ > /run/main; exec "$@" > /run/log 2>&1', "sh")
        command = machine.command(*remember, *self._words("ExecStart"), env=self.env)
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def _words(self, key: str) -> list[str]:
        """A command as systemd splits it; a variable in braces is one word."""
        words = shlex.split(self.settings[key])
        return [re.sub(r"\$\{(\w+)\}", lambda name: self.env[name[1]], word) for word in words]

    def log(self) -> str:
        return self.machine.run("cat", "/run/log", check=False).stdout

    def terminate(self) -> None:
        self.machine.run("sh", "-c", 'kill -TERM "$(cat /run/main)"')


# `work` has no retries: it ends well only if the node waits for it
DRIVER = """
import pathlib, time, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1, max_retries=0, memory=2**30, label_selector={"pool": "dft"})
def work():
    pathlib.Path("/shared/begun").touch()
    while not pathlib.Path("/shared/told").exists():
        time.sleep(0.2)
    time.sleep(3)
    return ray.util.get_node_ip_address()

print(ray.get(work.remote()))
"""


def test_units_start_a_cluster_and_a_stopped_worker_finishes_its_task(lan):
    for host, name in ((lan.head, "onprem-head"), (lan.workers[0], "onprem-worker")):
        unit = f"/etc/systemd/system/{name}.service"
        host.run("sh", "-c", f"cat > {unit} <<'EOF'\n{unit_text(name)}\nEOF")
        if shutil.which("systemd-analyze", path=SYSTEM_PATH):
            said = host.run("systemd-analyze", "verify", unit)
            assert f"{name}.service" not in said.stdout + said.stderr
    lan.head.run("bash", "-c", "RAY_AUTH_MODE=token ray get-auth-token --generate > /dev/null")
    token = lan.head.run("cat", "/home/chem/.ray/auth_token").stdout
    lan.workers[0].run("sh", "-c", f"umask 077 && printf %s '{token}' > ~/.ray/auth_token")

    head = Service(lan.head, "onprem-head", {})
    wait_for(lambda: lan.addresses() == {"10.0.0.1"}, 300, head.log)
    worker = Service(lan.workers[0], "onprem-worker", {"MEDREC_CORES": "1"})
    wait_for(lambda: lan.addresses() == {"10.0.0.1", "10.0.0.2"}, 300, worker.log)

    token_mode = {"RAY_AUTH_MODE": "token"}
    driver = subprocess.Popen(
        lan.head.command("python", "-c", DRIVER, env=token_mode), stdout=subprocess.PIPE, text=True
    )
    wait_for((lan.shared / "begun").exists, 300, worker.log)
    worker.terminate()
    (lan.shared / "told").touch()
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, worker.log()
    assert said.split()[-1] == "10.0.0.2"
    worker.process.wait(timeout=300)
    wait_for(lambda: lan.addresses() == {"10.0.0.1"}, 300, worker.log)
    # nothing is left for KillMode=mixed to kill
    wait_for(lambda: lan.workers[0].ray_processes() == [], 300, lan.workers[0].ray_processes)
    head.terminate()
    head.process.wait(timeout=300)
    wait_for(lambda: lan.head.ray_processes() == [], 300, lan.head.ray_processes)
