"""Cluster files: what ships passes, and every rule can fail.

A mutation is a text that stands in a shipped file and what it is replaced with; it must be found
with its own message, and with nothing else unless stated.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medrec.config import (
    FeatureRunConfig,
    MoleculePretrainRunConfig,
    PretrainRunConfig,
    PropertyRunConfig,
    PropertyTuneConfig,
    TuneConfig,
)
from medrec.loading import load_config
from orchestration import cluster_check
from orchestration.cli_cluster import cluster_app
from orchestration.cluster_check import RULES, check_cluster_file
from orchestration.cluster_files import read_cluster_file
from orchestration.cluster_starts import Start, slurm_bytes
from orchestration.cluster_workloads import (
    MIB,
    WORKLOADS,
    Pool,
    Workload,
    idle_cores,
    obstacle,
    serving,
    slots,
    unmet,
)
from orchestration.configs import check_folder
from quantum.base import ConfigError

ROOT = Path(__file__).resolve().parents[3]
AWS = ROOT / "cluster.yaml"
FOLDER = ROOT / "configs" / "cluster"
SHIPPED = [AWS, *sorted(FOLDER.iterdir())]
FILES = {path.name: path for path in SHIPPED}


def mutated(folder: Path, name: str, old: str, new: str, count: int = -1) -> Path:
    text = FILES[name].read_text()
    assert old in text
    path = folder / name
    path.write_text(text.replace(old, new, count))
    return path


def problems_of(path: Path) -> list[str]:
    return check_cluster_file(path).problems


# --------------------------------------------------------------------------- shipped files


def test_all_kinds_ship():
    kinds = {path.name: read_cluster_file(path).kind for path in SHIPPED}
    assert kinds == {
        "cluster.yaml": "ray up",
        "gcp.yaml": "ray up",
        "onprem.yaml": "ray up",
        "kuberay.yaml": "KubeRay",
        "onprem-head.service": "systemd",
        "onprem-worker.service": "systemd",
        "slurm.sbatch": "Slurm",
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_pass(path):
    assert problems_of(path) == []


def test_shipped_folder_passes_check_configs():
    checked, problems = check_folder(FOLDER)
    assert problems == []
    assert {(path.name, kind) for path, kind in checked} == {
        ("gcp.yaml", "cluster file (ray up)"),
        ("kuberay.yaml", "cluster file (KubeRay)"),
        ("onprem.yaml", "cluster file (ray up)"),
    }


def test_check_configs_reports_a_bad_cluster_file(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    path = mutated(folder, "gcp.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0")
    checked, problems = check_folder(tmp_path)
    assert checked == []
    assert problems == [f"{path}: head: dashboard listens on 0.0.0.0, expected 127.0.0.1"]


def test_shipped_clusters_serve_every_workload_between_them():
    for name in ("cluster.yaml", "gcp.yaml", "kuberay.yaml"):
        assert read_cluster_file(FILES[name]).workloads == tuple(WORKLOADS)
    units = [read_cluster_file(FILES[f"onprem-{side}.service"]) for side in ("head", "worker")]
    over_ssh = read_cluster_file(FILES["onprem.yaml"])
    assert {name for unit in units for name in unit.workloads} == set(over_ssh.workloads)


# --------------------------------------------------------------------------- Ray's own checks


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("upscaling_speed:", "upscalling_speed:", "'upscalling_speed' was unexpected"),
        ("    max_workers: 10\n", '    max_workers: "10"\n', "'10' is not of type 'integer'"),
        ("head_node_type: head", "head_node_type: boss", "`head_node_type` must be one of"),
        ("market: spot, pool: dft", "market: 1, pool: dft", "1 is not of type 'string'"),
        ('"CPU": 16, "memory"', '"CPU": 15.5, "memory"', "15.5 is not of type 'integer'"),
        ("provider:\n  type: aws\n", "provider:\n", "type"),
        ("    min_workers: 0\n", "    min_workers: 60\n", "sum of `min_workers`"),
    ],
)
def test_ray_refuses(tmp_path, old, new, message):
    found = problems_of(mutated(tmp_path, "cluster.yaml", old, new))
    assert len(found) == 1
    assert found[0].startswith("Ray")
    assert message in found[0]


def test_ray_names_the_place_of_a_mistake(tmp_path):
    path = mutated(tmp_path, "cluster.yaml", '"GPU": 1', '"GPU": "one"')
    assert problems_of(path) == [
        "Ray's schema: available_node_types.gpu_train.resources.GPU: 'one' is not of type 'integer'"
    ]


def test_ray_refuses_a_local_file_with_node_types(tmp_path, capfd):
    path = mutated(tmp_path, "onprem.yaml", "provider:", "available_node_types: {a: {}}\nprovider:")
    found = problems_of(path)
    assert len(found) == 1
    assert "available_node_types is not supported for on-premise clusters" in found[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('cpu: "16"', 'cpu: "many"', "many"),
        ("groupName: dft-spot", "groupname: dft-spot", "groupName"),
        ("kind: RayCluster", "kind: RayJob", "no document of kind RayCluster"),
        (
            "        containers:\n          - name: ray-head",
            "        boxes:\n          - name: ray-head",
            "containers",
        ),
        ("market: spot", "market: a b", "a b"),
        ("      maxReplicas: 60\n", "", "maxReplicas"),
    ],
)
def test_kuberay_resource_is_read_by_ray(tmp_path, old, new, message):
    found = problems_of(mutated(tmp_path, "kuberay.yaml", old, new))
    assert len(found) == 1
    assert message in found[0]


# --------------------------------------------------------------------------- our rules

UNSET = "unset OMP_NUM_THREADS; "
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
CPU_ONLY = ("conformers", "dft", "libraries", "recommenders", "pretrain-cpu", "tune")
MUTATIONS = [
    # rule, file, old, new, every message that must come out
    ("ray_version", "cluster.yaml", "'2.60.0'", "'2.59.1'", ["Ray 2.59.1 in the file, "]),
    ("ray_version", "kuberay.yaml", "ray2.60.0", "ray2.61.0", ["Ray 2.61.0 in the file, "]),
    ("ray_version", "kuberay.yaml", '"2.60.0"', '"2.58.0"', ["Ray 2.58.0 in the file, "]),
    ("ray_version", "slurm.sbatch", "'2.60.0'", "'2.0.0'", ["Ray 2.0.0 in the file, "]),
    ("ray_version", "onprem.yaml", "ray.__version__", "ray.version", ["no version of Ray"]),
    ("head_runs_no_tasks", "cluster.yaml", '"CPU": 0', '"CPU": 8', ["head has 8 CPUs, expected 0"]),
    (
        "head_runs_no_tasks",
        "onprem-head.service",
        "--num-cpus=0",
        "",
        ["head has unstated CPUs, expected 0"],
    ),
    (
        "head_runs_no_tasks",
        "slurm.sbatch",
        '"driver":8',
        '"driven":8',
        ["head has no 'driver' resource", "workload 'driver' needs 1 driver; no pool has one"],
    ),
    (
        "head_runs_no_tasks",
        "gcp.yaml",
        "ray start --head",
        "ray begin --head",
        ["nothing starts Ray on the head"],
    ),
    (
        "cores_are_stated",
        "onprem-worker.service",
        "--num-cpus=${MEDREC_CORES}",
        "",
        ["pool worker does not state its CPUs"]
        + [f"workload '{name}' needs 1 CPU; no pool has one" for name in CPU_ONLY],
    ),
    (
        "threads_not_inherited",
        "cluster.yaml",
        UNSET,
        "",
        ["head start inherits OMP_NUM_THREADS (Ray's", "worker start inherits OMP_NUM_THREADS"],
    ),
    (
        "threads_not_inherited",
        "slurm.sbatch",
        "unset OMP_NUM_THREADS\n",
        "",
        ["head start inherits OMP_NUM_THREADS (sbatch", "worker start inherits OMP_NUM_THREADS"],
    ),
    (
        "threads_not_inherited",
        "onprem-worker.service",
        "Environment=RAY_AUTH_MODE",
        "Environment=OMP_NUM_THREADS=4\nEnvironment=RAY_AUTH_MODE",
        ["worker start sets OMP_NUM_THREADS=4"],
    ),
    (
        "drains_before_it_goes",
        "gcp.yaml",
        f"{DRAIN}=18",
        f"{DRAIN}=30",
        [
            f"spot pool {name}: drain time 30 s is not shorter than the notice of 30 s"
            for name in ("dft_spot", "conformers_spot")
        ],
    ),
    (
        "drains_before_it_goes",
        "cluster.yaml",
        f" {DRAIN}=75",
        "",
        [
            f"spot pool {name}: no {DRAIN} above 0"
            for name in ("dft_spot_a", "dft_spot_b", "conformers_spot")
        ],
    ),
    (
        "drains_before_it_goes",
        "gcp.yaml",
        f"{DRAIN}=18",
        f"{DRAIN}=0",
        [f"spot pool {name}: no {DRAIN} above 0" for name in ("dft_spot", "conformers_spot")],
    ),
    (
        "drains_before_it_goes",
        "gcp.yaml",
        "6379 --block",
        "6379",
        [
            f"spot pool {name}: 'ray start' without --block"
            for name in ("dft_spot", "conformers_spot")
        ],
    ),
    (
        "drains_before_it_goes",
        "cluster.yaml",
        "spot-watch --cloud aws",
        "spot-watch --cloud gcp",
        ["spot pools, but no 'medrec spot-watch --cloud aws'"],
    ),
    (
        "drains_before_it_goes",
        "kuberay.yaml",
        "terminationGracePeriodSeconds: 100\n          nodeSelector: {karpenter.sh/",
        "nodeSelector: {karpenter.sh/",
        ["spot pool dft-spot: drain time 75 s is not shorter than the notice of 30 s"],
    ),
    (
        "drains_before_it_goes",
        "kuberay.yaml",
        "pkill -TERM",
        "pkill -KILL",
        ["spot pool dft-spot: no preStop hook sends SIGTERM"],
    ),
    (
        "drains_before_it_goes",
        "slurm.sbatch",
        "B:TERM@120",
        "B:TERM@60",
        ["spot pool worker: drain time 75 s is not shorter than the notice of 60 s"],
    ),
    (
        "drains_before_it_goes",
        "slurm.sbatch",
        "#SBATCH --signal=B:TERM@120\n",
        "",
        ["spot pool worker: drain time 75 s is not shorter than the notice of 0 s"],
    ),
    (
        "unit_lets_ray_drain",
        "onprem-worker.service",
        "KillMode=mixed\n",
        "",
        ["worker unit: KillMode is not 'mixed'"],
    ),
    (
        "unit_lets_ray_drain",
        "onprem-worker.service",
        "TimeoutStopSec=90",
        "TimeoutStopSec=60s",
        ["worker unit: drain time 75 s is not shorter than TimeoutStopSec 60 s"],
    ),
    (
        "unit_lets_ray_drain",
        "onprem-worker.service",
        f"Environment={DRAIN}=75\n",
        "",
        [f"worker unit: no {DRAIN}"],
    ),
    (
        "unit_lets_ray_drain",
        "onprem-head.service",
        " --block",
        "",
        ["head unit: 'ray start' without --block"],
    ),
    (
        "token_mode",
        "cluster.yaml",
        "RAY_AUTH_MODE=token RAY_task",
        "RAY_AUTH_MODE=disabled RAY_task",
        ["head start does not set RAY_AUTH_MODE=token", "worker start does not set RAY_AUTH_MODE"],
    ),
    (
        "token_mode",
        "onprem-worker.service",
        "Environment=RAY_AUTH_MODE=token\n",
        "",
        ["worker start does not set RAY_AUTH_MODE=token"],
    ),
    (
        "dashboard_on_loopback",
        "onprem-head.service",
        "--dashboard-host=127.0.0.1",
        "--dashboard-host=0.0.0.0",
        ["head: dashboard listens on 0.0.0.0"],
    ),
    (
        "dashboard_on_loopback",
        "kuberay.yaml",
        '      dashboard-host: "127.0.0.1"\n',
        "",
        ["head: no dashboard-host: the operator's default is 0.0.0.0"],
    ),
    (
        "budget_cap",
        "cluster.yaml",
        "    max_workers: 4\n",
        "",
        ["no budget cap: available_node_types.gpu_train.max_workers is missing"],
    ),
    (
        "budget_cap",
        "cluster.yaml",
        "\nmax_workers: 100 ",
        "\n# max_workers: 100 ",
        ["no budget cap: max_workers is missing"],
    ),
    (
        "budget_cap",
        "slurm.sbatch",
        "#SBATCH --time=12:00:00\n",
        "",
        ["no budget cap: #SBATCH --time is missing"],
    ),
    (
        "budget_cap",
        "gcp.yaml",
        "idle_timeout_minutes: 8\n",
        "",
        ["no idle_timeout_minutes"],
    ),
    (
        "known_labels",
        "gcp.yaml",
        "pool: train",
        "pool: training",
        ["pool gpu_train: label pool is training, expected one of: head, dft, conformers, train"],
    ),
    (
        "known_labels",
        "onprem.yaml",
        "--labels=pool=dft,market=on-demand",
        "--labels=pool=dft",
        ["pool worker: label market is missing, expected one of: spot, on-demand"],
    ),
    (
        "known_labels",
        "gcp.yaml",
        ", scheduling: [{provisioningModel: SPOT}, {instanceTerminationAction: DELETE}], disks: "
        "[{boot: true, autoDelete: true, type: PERSISTENT, initializeParams: {diskSizeGb: 100, "
        "sourceImage: projects/REPLACE}}]}\n  gpu",
        "}\n  gpu",
        ["pool conformers_spot: label market is not on-demand, as its machines are"],
    ),
    (
        "memory_errors_end",
        "cluster.yaml",
        "RAY_task_oom_retries=1 ",
        "",
        ["head start does not set RAY_task_oom_retries", "worker start does not set RAY_task_oom"],
    ),
    (
        "shared_home",
        "cluster.yaml",
        "MEDREC_HOME=/shared/medrec",
        "MEDREC_HOME=s3://bucket/medrec",
        ["head start: MEDREC_HOME is s3://bucket/medrec", "worker start: MEDREC_HOME is s3://"],
    ),
    (
        "shared_home",
        "onprem-head.service",
        "MEDREC_HOME=/shared",
        "MEDREC_HOME=shared",
        ["head start: MEDREC_HOME is shared/medrec, expected an absolute path"],
    ),
    (
        "shared_home",
        "gcp.yaml",
        "MEDREC_HOME=/shared/medrec RAY_GRACE",
        "MEDREC_HOME=/scratch/medrec RAY_GRACE",
        ["MEDREC_HOME differs between machines: /scratch/medrec, /shared/medrec"],
    ),
    (
        "shared_home",
        "kuberay.yaml",
        "{name: MEDREC_HOME, value: /shared/medrec}\n              - {name: MEDREC_RAY",
        "{name: OTHER, value: /shared/medrec}\n              - {name: MEDREC_RAY",
        ["head start does not set MEDREC_HOME"],
    ),
    (
        "shared_home",
        "cluster.yaml",
        " MEDREC_RAY_ADDRESS=auto",
        "",
        ["head start does not set MEDREC_RAY_ADDRESS"],
    ),
    (
        "workloads_fit",
        "cluster.yaml",
        '"CPU": 8, "GPU": 1',
        '"CPU": 8',
        [
            "workload 'pretrain-gpu' needs 1 GPU; no pool has one",
            "workload 'tune-gpu' needs 0.25 GPU; no pool has one",
        ],
    ),
    (
        "workloads_fit",
        "onprem.yaml",
        "--memory=206158430208",
        "--memory=8589934592",
        ["workload 'dft' no pool can run it: worker needs 9,000 MiB, has 8,192 MiB"],
    ),
    (
        "workloads_fit",
        "gcp.yaml",
        "51539607552}\n    labels: {market: spot, pool: conformers}",
        "8589934592}\n    labels: {market: spot, pool: conformers}",
        ["pool conformers_spot: memory holds 2 'conformers' tasks (4,000 MiB each), so 2 of 4"],
    ),
    (
        "memory_is_stated",
        "gcp.yaml",
        '"CPU": 4, "memory": 51539607552',
        '"CPU": 4',
        ["pool conformers_spot does not state its memory: no machine of it would be started"],
    ),
    (
        "local_head_starts_workers",
        "onprem.yaml",
        "RAY_enable_autoscaler_v2=0 RAY_AUTH",
        "RAY_AUTH",
        ["head start does not set RAY_enable_autoscaler_v2=0: with provider 'local'"],
    ),
    (
        "local_head_starts_workers",
        "onprem.yaml",
        "export RAY_enable_autoscaler_v2=0",
        "export RAY_enable_autoscaler_v2=1",
        ["head start does not set RAY_enable_autoscaler_v2=0: with provider 'local'"],
    ),
    (
        "local_head_starts_workers",
        "onprem.yaml",
        " --node-ip-address=10.0.0.1",
        "",
        ["head start: --node-ip-address is missing, provider.head_ip is 10.0.0.1"],
    ),
    (
        "local_head_starts_workers",
        "onprem.yaml",
        "head_ip: 10.0.0.1",
        "head_ip: 10.1.0.1",
        ["head start: --node-ip-address is 10.0.0.1, provider.head_ip is 10.1.0.1"],
    ),
    (
        "workloads_fit",
        "gcp.yaml",
        '"CPU": 6, "GPU": 1',
        '"CPU": 2, "GPU": 1',
        ["workload 'pretrain-gpu' no pool can run it: dft_spot needs 1 GPU, has 0; "],
    ),
    (
        "workloads_fit",
        "slurm.sbatch",
        "--mem=190G",
        "--mem=90G",
        [
            "pool worker: memory holds 10 'dft' tasks (9,000 MiB each), so 6 of 16 cores would "
            "idle; give fewer CPUs or more memory"
        ],
    ),
    (
        "workloads_fit",
        "onprem.yaml",
        "pretrain-cpu, tune",
        "pretrain-cpu, pretrain-gpu, tune",
        ["workload 'pretrain-gpu' needs 1 GPU; no pool has one"],
    ),
]


@pytest.mark.parametrize(
    ("rule", "name", "old", "new", "expected"),
    MUTATIONS,
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)
def test_mutation_is_found(tmp_path, rule, name, old, new, expected):
    path = mutated(tmp_path, name, old, new)
    own = getattr(cluster_check, rule)
    assert own in RULES
    found = problems_of(path)
    assert list(own(read_cluster_file(path))), "found by another rule than its own"
    for message in expected:
        assert any(line.startswith(message) for line in found), found
    assert [line for line in found if not any(line.startswith(m) for m in expected)] == []


def test_every_rule_has_a_mutation():
    assert {case[0] for case in MUTATIONS} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("  - export RAY_AUTH_TOKEN=0123456789abcdef", "a Ray token"),
        ("  - export AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE", "a key of AWS"),
        ("  - git clone https://someone:hunter2@host/medrec.git", "a password"),
        ("  - echo '-----BEGIN RSA PRIVATE KEY-----' > k", "a private key"),
        ("  - export HF=hf_abcdefghijklmnopqrstuv", "a token of a code or model server"),
        ("# RAY_AUTH_TOKEN: 0123456789abcdef", "a Ray token"),
    ],
)
def test_secrets_are_found_and_not_printed(tmp_path, line, what):
    path = mutated(tmp_path, "cluster.yaml", "setup_commands:\n", f"setup_commands:\n{line}\n", 1)
    found = problems_of(path)
    assert len(found) == 1
    assert found[0].startswith(f"the file holds {what}")
    assert re.search(r"0123456789|AKIA|hunter2|BEGIN|hf_a", found[0]) is None


def test_a_token_in_a_pod_is_found_and_a_reference_is_not(tmp_path):
    there = "env: &worker_env\n"
    reference = "- {name: RAY_AUTH_TOKEN, valueFrom: {secretKeyRef: {name: t, key: auth_token}}}"
    plain = "- {name: RAY_AUTH_TOKEN, value: 0123abcd}"
    indent = " " * 16
    path = mutated(tmp_path, "kuberay.yaml", there, f"{there}{indent}{reference}\n")
    assert problems_of(path) == []
    path = mutated(tmp_path, "kuberay.yaml", there, f"{there}{indent}{plain}\n")
    assert [line[:28] for line in problems_of(path)] == ["the file holds a Ray token ("]


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"", "holds no mapping"),
        ("a.yaml", b"- 1\n- 2\n", "holds no mapping"),
        ("a.yaml", b"a: [", "no YAML"),
        ("a.yaml", b"\xff\xfe\x00", "not text"),
        ("a.yaml", b"a: 1\n", "neither a launcher file (no 'provider') nor a RayCluster"),
        ("a.yaml", b"cluster_name: a\nprovider: 3\n", "Ray refuses it"),
        ("a.yaml", b"cluster_name: a\nprovider: {type: moon}\n", "Ray refuses it"),
        ("a.yaml", b"apiVersion: v1\nkind: Pod\n", "no document of kind RayCluster"),
        ("a.yaml", b"kind: RayCluster\n", "Ray refuses it"),
        ("a.txt", b"hello\n", "no known kind of cluster file"),
        ("a.service", b"[Service]\nExecStart=/bin/true\n", "no 'ray start' in ExecStart"),
        ("a.sbatch", b"#!/bin/bash\n#SBATCH --mem=lots\nray start --address=a\n", "not built as"),
        ("a.sbatch", b"# medrec-workloads: dft, dtf\n", "unknown workload 'dtf'"),
    ],
)
def test_bad_files_are_problems_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    found = problems_of(path)
    assert len(found) == 1
    assert message in found[0]
    assert "\n" not in found[0]
    assert not found[0].startswith(str(path))


def test_missing_file_and_folder(tmp_path):
    assert "No such file" in problems_of(tmp_path / "no.yaml")[0]
    assert "Is a directory" in problems_of(tmp_path)[0]


# --------------------------------------------------------------------------- parts


def test_start_reads_settings_and_options():
    start = Start(
        "A=1; export B=\"two\" C='3' CORES=16; B=four",
        "ray start --head --num-cpus=$CORES --labels a=b,c=d --memory ${MEM:-5} --block",
    )
    assert [start.setting(name) for name in "ABCD"] == ["1", "four", "3", None]
    assert start.flag("--num-cpus") == "16"
    assert start.flag("--labels") == "a=b,c=d"
    assert start.flag("--memory") == "5"
    assert start.flag("--num") is None
    assert start.has("--block")
    assert not start.has("--bl")


@pytest.mark.parametrize(
    ("text", "value"), [("180G", 180 * 2**30), ("500", 500 * 2**20), ("1T", 2**40), ("4K", 4096)]
)
def test_sizes_of_slurm(text, value):
    assert slurm_bytes(text) == value


def _pool(**resources: float) -> Pool:
    return Pool("a", False, dict(resources), {}, 2)


def test_fit_of_tasks():
    task = Workload("t", "", {"CPU": 4, "memory": 1024 * MIB}, pool="own")
    assert obstacle(task, _pool(CPU=4)) is None
    assert obstacle(task, _pool(CPU=3)) == "needs 4 CPU, has 3"
    assert obstacle(task, _pool(CPU=4, memory=512 * MIB)) == "needs 1,024 MiB, has 512 MiB"
    assert slots(task, _pool(CPU=11)) == 2
    assert slots(task, _pool(CPU=11, memory=2047 * MIB)) == 1
    assert slots(task, _pool(CPU=3)) == 0
    assert unmet(task, [_pool(CPU=3)]) == "needs 4 CPU on one machine; the largest pool has 3"
    assert unmet(task, [_pool(CPU=4, memory=MIB)]) == (
        "needs 1,024 MiB on one machine; the largest pool has 1 MiB"
    )
    group = Workload("g", "", {"CPU": 4}, count=5)
    assert unmet(group, [_pool(CPU=8)]) == "needs 5 at a time; at most 4 fit into a"
    assert unmet(group, [_pool(CPU=12)]) is None


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.3, 1.0])
def test_shares_of_a_gpu(share):
    trial = Workload("t", "", {"CPU": 1, "GPU": share})
    expected = {0.1: 10, 0.2: 5, 0.25: 4, 0.3: 3, 1.0: 1}[share]
    assert slots(trial, _pool(CPU=16, GPU=1)) == expected
    assert slots(trial, _pool(CPU=2, GPU=1)) == min(expected, 2)


def test_own_pool_comes_first_and_any_other_will_do():
    task = Workload("t", "", {"CPU": 1, "memory": MIB}, pool="own")
    own, other = Pool("b", False, {"CPU": 1}, {"pool": "own"}), _pool(CPU=1)
    assert [pool.name for pool in serving(task, [other, own])] == ["b", "a"]
    assert unmet(task, [other]) is None
    small = Pool("b", False, {"CPU": 8, "memory": 4 * MIB}, {"pool": "own"})
    assert "4 of 8 cores would idle" in str(idle_cores(task, small))
    assert idle_cores(task, Pool("b", False, {"CPU": 8}, {"pool": "own"})) is None
    assert idle_cores(task, Pool("b", False, {"CPU": 8, "memory": 4 * MIB}, {})) is None


def test_workloads_cover_the_shipped_configurations():
    """The table says at least what the largest shipped configuration asks for."""
    configs = ROOT / "configs"
    runs = [load_config(path, FeatureRunConfig) for path in (configs / "quantum").glob("*.yaml")]
    most_mb = max(run.resources.memory_mb for run in runs)
    assert most_mb * MIB == WORKLOADS["dft"].resources["memory"]
    assert max(run.resources.threads for run in runs) == WORKLOADS["dft"].resources["CPU"]
    fits = [
        load_config(path, kind).scaling
        for folder, kind in (
            ("encoders", MoleculePretrainRunConfig),
            ("pretrain", PretrainRunConfig),
            ("properties", PropertyRunConfig),
        )
        for path in (configs / folder).glob("*.yaml")
    ]
    for name, use_gpu in (("pretrain-gpu", True), ("pretrain-cpu", False)):
        own = [item for item in fits if item.use_gpu == use_gpu]
        assert own
        assert max(item.cpus_per_worker for item in own) <= WORKLOADS[name].resources["CPU"]
        assert max(item.num_workers for item in own) <= WORKLOADS[name].count
    searches = [load_config(path, TuneConfig) for path in (configs / "tune").glob("*.yaml")]
    searches += [
        load_config(path, PropertyTuneConfig) for path in (configs / "searches").glob("*.yaml")
    ]
    assert max(item.cpus_per_trial for item in searches) <= WORKLOADS["tune"].resources["CPU"]
    assert max(item.gpus_per_trial for item in searches) <= WORKLOADS["tune-gpu"].resources["GPU"]


def test_files_name_the_ray_that_the_lock_pins():
    pin = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert pin is not None
    for path in SHIPPED:
        assert pin[1] in path.read_text()


def test_pods_of_all_groups_have_the_same_settings():
    groups = yaml.safe_load(FILES["kuberay.yaml"].read_text())["spec"]["workerGroupSpecs"]
    pods = [group["template"]["spec"]["containers"][0] for group in groups]
    for key in ("env", "image", "lifecycle", "volumeMounts"):
        assert all(pod[key] == pods[0][key] for pod in pods)


def test_unreadable_raises_for_callers(tmp_path):
    with pytest.raises(ConfigError, match="not readable"):
        read_cluster_file(tmp_path / "no.yaml")


# --------------------------------------------------------------------------- command


def run(*arguments: object):
    return CliRunner().invoke(cluster_app, ["check", *map(str, arguments)])


def test_command_shows_tables_when_fine():
    done = run(AWS, FOLDER / "slurm.sbatch")
    assert done.exit_code == 0
    assert "(ray up): fine, 9 REPLACE to fill in first" in done.stdout
    assert "(Slurm): fine" in done.stdout
    assert "gpu_train (1)" in done.stdout


def test_command_never_cuts_a_long_path(tmp_path):
    folder = tmp_path / ("a-folder-with-a-long-name" * 4)
    folder.mkdir()
    path = folder / "slurm.sbatch"
    path.write_text((FOLDER / "slurm.sbatch").read_text())
    assert f"{path} (Slurm): fine" in run(path).stdout


def test_command_prints_a_line_per_problem(tmp_path):
    path = mutated(tmp_path, "cluster.yaml", UNSET, "")
    done = run(path, AWS)
    assert done.exit_code == 2
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_command_gives_json(tmp_path):
    path = mutated(tmp_path, "gcp.yaml", '"GPU": 1, ', "")
    done = run(AWS, path, "--json")
    assert done.exit_code == 2
    fine, bad = json.loads(done.stdout)
    assert fine["problems"] == []
    assert [row["pool"] for row in fine["pools"]][:2] == ["head", "dft_spot_a"]
    assert {row["workload"] for row in fine["workloads"]} == set(WORKLOADS)
    assert "workload 'pretrain-gpu' needs 1 GPU; no pool has one" in bad["problems"]
