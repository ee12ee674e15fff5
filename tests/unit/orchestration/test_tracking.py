"""Event files and MLflow hold what metrics.jsonl holds, also after a kill; links to dashboards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from medrec.config import TrainConfig, TuneConfig
from medrec.runs import Home, Run
from orchestration import tracking_tensorboard
from orchestration.console import Terminal
from orchestration.tracking import MetricsFile, dashboard_line, tracking
from orchestration.tracking_mlflow import DIGEST_TAG, VARIABLE
from orchestration.tracking_tensorboard import flatten
from quantum.base import InputError, ProgramMissingError

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

WAIT_S = 120
CONFIG = {"name": "tracked", "model": {"name": "topk"}}

# a run that is killed when its numbers have reached the event file; metrics.jsonl is two rows on
KILLED = """
import os, signal, sys, time
from pathlib import Path
from medrec.config import TrainConfig
from medrec.runs import Home, Run
from orchestration.tracking import tracking

home, seen = Home(Path(sys.argv[1])), sys.argv[2]
config = TrainConfig.model_validate({"name": "tracked", "model": {"name": "topk"}})
run = Run.open(home, "train", "tracked", config, {"cohort": "c" * 64})
with run.recording(), tracking(run):
    for epoch in range(4):
        run.append_metrics({"epoch": epoch, "train_loss": 9.0 - epoch, "seconds": 0.1})
    while not Path(seen).exists():
        time.sleep(0.05)
    run.append_metrics({"epoch": 4, "train_loss": 5.0, "seconds": 0.1})
    run.append_metrics({"epoch": 5, "train_loss": 4.0, "seconds": 0.1})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def new_run(home: Path) -> Run:
    config = TrainConfig.model_validate(CONFIG)
    return Run.open(Home(home), "train", "tracked", config, {"cohort": "c" * 64})


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of all event files of a folder, nothing purged, nothing thinned out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        reader = accumulator.EventAccumulator(
            str(path), size_guidance={"scalars": 0}, purge_orphaned_data=False
        )
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            found.setdefault(tag, []).extend(
                (item.step, item.value) for item in reader.Scalars(tag)
            )
    return found


def expected(run: Run) -> dict[str, list[tuple[int, float]]]:
    table = run.metrics()
    return {
        name: [(int(e), pytest.approx(v)) for e, v in zip(table["epoch"], table[name], strict=True)]
        for name in table.columns
        if name != "epoch"
    }


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {WAIT_S} s"
        time.sleep(0.1)


def killed_run(home: Path, ready) -> Run:
    """Start a run, wait until its numbers are outside, and let it kill itself."""
    seen = home / "seen"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(home), str(seen)])
    try:
        wait_for(lambda: process.poll() is not None or ready(), "the first numbers")
        seen.touch()
        assert process.wait(WAIT_S) == -signal.SIGKILL
    finally:
        process.kill()
    return new_run(home)


def go_on(run: Run, first: int, epochs: int) -> None:
    """Resume from a checkpoint that lies before the last rows."""
    with run.recording(), tracking(run):
        run.keep_metrics_until(first - 1)
        for epoch in range(first, epochs):
            run.append_metrics({"epoch": epoch, "train_loss": 8.5 - epoch, "seconds": 0.1})
        run.finish({"val_jaccard": 0.5, "test": {"jaccard": 0.4}, "name": "text"})


def test_event_files_equal_the_metrics(tmp_path: Path):
    run = new_run(tmp_path)
    rows = [
        {"epoch": i, "train_loss": 3.0 / (i + 1), "val_jaccard": 0.1 * i, "note": "x"}
        for i in range(7)
    ]
    with run.recording(), tracking(run):
        for row in rows:
            run.append_metrics(row)
        run.finish({"val_jaccard": 0.6, "test": {"jaccard": 0.5}})
    found = events_of(run.folder / "tensorboard")
    assert found.pop("report/val_jaccard") == [(6, pytest.approx(0.6))]
    assert found.pop("report/test.jaccard") == [(6, pytest.approx(0.5))]
    wanted = expected(run)
    wanted.pop("note")
    assert found == wanted


def test_numbers_are_there_while_a_run_goes_on(tmp_path: Path):
    run = new_run(tmp_path)
    folder = run.folder / "tensorboard"
    with run.recording(), tracking(run):
        run.append_metrics({"epoch": 0, "train_loss": 1.0})
        wait_for(lambda: "train_loss" in events_of(folder), "the first epoch")
        assert events_of(folder) == {"train_loss": [(0, 1.0)]}


def test_the_configuration_is_there_as_hyperparameters(tmp_path: Path):
    from tensorboard.plugins.hparams import plugin_data_pb2

    run = new_run(tmp_path)
    with run.recording(), tracking(run):
        pass
    reader = accumulator.EventAccumulator(str(run.folder / "tensorboard"))
    reader.Reload()
    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    found = data.session_start_info.hparams
    assert found["model.name"].string_value == "topk"
    assert found["optim.lr"].number_value == pytest.approx(run.config()["optim"]["lr"])
    assert set(found) == set(flatten(run.config()))


def test_a_killed_and_resumed_run_has_every_step_once(tmp_path: Path):
    def four_steps() -> bool:
        found = [events_of(path) for path in tmp_path.glob("runs/*/tensorboard")]
        return any(len(item.get("train_loss", [])) == 4 for item in found)

    run = killed_run(tmp_path, four_steps)
    assert len(run.metrics()) == 6
    go_on(run, first=3, epochs=8)
    found = events_of(run.folder / "tensorboard")
    assert [step for step, _ in found["train_loss"]] == list(range(8))
    assert found["train_loss"] == expected(run)["train_loss"]
    assert found["train_loss"][3] == (3, pytest.approx(5.5))  # done again with another value


def test_rows_taken_back_while_followed_are_written_again(tmp_path: Path):
    run = new_run(tmp_path)
    folder = run.folder / "tensorboard"
    with run.recording(), tracking(run):
        for epoch in range(5):
            run.append_metrics({"epoch": epoch, "loss": 1.0})
        wait_for(lambda: len(events_of(folder).get("loss", [])) == 5, "five epochs")
        run.keep_metrics_until(1)  # what a worker does that starts again
        run.append_metrics({"epoch": 2, "loss": 0.5})
        wait_for(lambda: len(events_of(folder).get("loss", [])) == 3, "the shorter file")
    assert events_of(folder)["loss"] == [(0, 1.0), (1, 1.0), (2, 0.5)]


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    assert not file.read()
    path.write_text('{"epoch": 0}\n{"epo')
    assert file.read()
    assert file.rows == [{"epoch": 0}]
    with path.open("a") as handle:
        handle.write('ch": 1}\n')
    assert file.read()
    assert file.rows == [{"epoch": 0}, {"epoch": 1}]
    assert not file.read()


def test_without_tensorboardx_there_are_no_files_and_no_complaint(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tracking_tensorboard, "available", lambda: False)
    run = new_run(tmp_path)
    with run.recording(), tracking(run):
        run.append_metrics({"epoch": 0, "loss": 1.0})
        run.finish({})
    assert run.is_finished
    assert not (run.folder / "tensorboard").exists()


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path: Path, capfd):
    run = new_run(tmp_path)
    (run.folder / "tensorboard").write_text("in the way")
    with run.recording(), tracking(run, Terminal()):
        run.append_metrics({"epoch": 0, "loss": 1.0})
        run.finish({})
    assert run.is_finished
    assert "no event files for TensorBoard" in capfd.readouterr().err


def test_a_search_has_one_folder_of_events_per_trial(tmp_path: Path):
    config = TuneConfig.model_validate(
        {
            "name": "s",
            "base": CONFIG | {"model": {"name": "molerec"}},
            "space": {"model.d_model": {"type": "int", "low": 8, "high": 9}},
        }
    )
    run = Run.open(Home(tmp_path), "tune", "s", config, {})
    table = {
        "number": [0, 1],
        "params.model.d_model": [8.0, None],
        "jaccard": [0.3, 0.4],
        "epochs": [2, 3],
        "pareto": [False, True],
    }
    with run.recording(), tracking(run):
        pd.DataFrame(table).to_parquet(run.folder / "trials.parquet")
        run.finish({"n_trials": 2})
    folder = run.folder / "tensorboard"
    assert events_of(folder / "trial-00001") == {"jaccard": [(3, pytest.approx(0.4))]}
    rows = {"number": [0, 0, 1], "epoch": [1, 2, 1], "jaccard": [0.1, 0.3, 0.4]}
    pd.DataFrame(rows).to_parquet(run.folder / "trials_history.parquet")
    assert tracking_tensorboard.write_trials(run) == 2
    found = events_of(folder / "trial-00000")
    assert found == {"jaccard": [(1, pytest.approx(0.1)), (2, pytest.approx(0.3))]}


# --------------------------------------------------------------------------- MLflow


@pytest.fixture
def mlflow_at(tmp_path: Path, monkeypatch):
    pytest.importorskip("mlflow")
    folder = tmp_path / "mlflow"
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def mlflow_runs(folder: Path):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("medrec")
    return client, client.search_runs([experiment.experiment_id]) if experiment else []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_has_one_run_however_often_it_is_resumed(tmp_path: Path, mlflow_at: Path):
    def four_steps() -> bool:
        if not (mlflow_at / "mlflow.db").exists():
            return False
        try:
            client, runs = mlflow_runs(mlflow_at)
            return (
                bool(runs) and len(client.get_metric_history(runs[0].info.run_id, "train_loss")) > 3
            )
        except Exception:  # noqa: BLE001 - the other process is still making its tables
            return False

    run = killed_run(tmp_path, four_steps)
    run.keep_metrics_until(2)
    run.append_metrics({"epoch": 3, "train_loss": 5.5, "seconds": 0.1})
    with pytest.raises(KeyboardInterrupt), run.recording(), tracking(run):
        raise KeyboardInterrupt
    client, runs = mlflow_runs(mlflow_at)
    assert [item.info.status for item in runs] == ["KILLED"]
    (run.folder / "visits.parquet").write_bytes(b"rows of patients")
    go_on(run, first=4, epochs=7)
    client, runs = mlflow_runs(mlflow_at)
    assert len(runs) == 1
    found, identity = runs[0], runs[0].info.run_id
    assert found.info.status == "FINISHED"
    assert found.info.run_name == run.name
    assert found.data.tags[DIGEST_TAG] == run.digest
    assert found.data.tags["medrec.cohort_digest"] == "c" * 64
    assert found.data.tags["medrec.code.version"]
    assert found.data.params == {k: str(v) for k, v in flatten(run.config()).items()}
    history = client.get_metric_history(identity, "train_loss")
    assert sorted(item.step for item in history) == list(range(7))
    assert found.data.metrics["report.test.jaccard"] == 0.4
    files = sorted(path.name for path in mlflow_at.rglob("artifacts/*") if path.is_file())
    assert files == ["config.yaml", "report.json"]
    content = next(mlflow_at.rglob("config.yaml")).read_text()
    assert yaml.safe_load(content) == run.config()
    assert not any(
        b"rows of patients" in p.read_bytes() for p in mlflow_at.rglob("*") if p.is_file()
    )


def test_a_missing_mlflow_says_what_to_install(tmp_path: Path, monkeypatch):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mlflow" else there(name)
    )
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mlflow"))
    run = new_run(tmp_path)
    with pytest.raises(ProgramMissingError, match=r"pip install 'medrec\[mlflow\]'"), tracking(run):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "below"))
    with (
        pytest.raises(InputError, match="expected a folder or an address"),
        tracking(new_run(tmp_path)),
    ):
        pass


# --------------------------------------------------------------------------- dashboards


def ray_like(url: str | None, own: str) -> SimpleNamespace:
    """Stand-in with what Ray 2.60 answered on a head and on another node of a cluster."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}, "NodeManagerAddress": "10.0.0.7"},
        {
            "Alive": True,
            "Resources": {"CPU": 2.0, "node:__internal_head__": 1.0},
            "NodeManagerAddress": "10.0.0.1",
        },
    ]
    return SimpleNamespace(
        init=lambda **_: SimpleNamespace(address_info={"webui_url": url}),
        nodes=lambda: nodes,
        util=SimpleNamespace(get_node_ip_address=lambda: own),
    )


@pytest.mark.parametrize(
    ("url", "own", "wanted"),
    [
        (None, "10.0.0.1", None),
        ("", "10.0.0.1", None),
        ("127.0.0.1:8270", "10.0.0.1", "Ray dashboard: http://127.0.0.1:8270"),
        (
            "10.0.0.1:8265",
            "10.0.0.7",
            "Ray dashboard: http://127.0.0.1:8265 after: ssh -N -L 8265:127.0.0.1:8265 10.0.0.1",
        ),
    ],
)
def test_the_dashboard_is_named_where_there_is_one(url, own, wanted):
    assert dashboard_line(ray_like(url, own)) == wanted


REAL = """
import json, sys
import ray
ray.init(address="local", num_cpus=1, include_dashboard=sys.argv[1] == "yes", dashboard_port=0,
         log_to_driver=False, object_store_memory=80 * 2**20)
from orchestration.tracking import dashboard_line
print(json.dumps([dashboard_line(ray), ray.init(ignore_reinit_error=True).dashboard_url]))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("with_dashboard", ["yes", "no"])
def test_a_real_cluster_names_its_dashboard_or_has_none(with_dashboard: str):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL, with_dashboard],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stderr
    line, url = json.loads(done.stdout.splitlines()[-1])
    if with_dashboard == "no":
        assert line is None
    else:
        assert line == f"Ray dashboard: http://127.0.0.1:{url.rpartition(':')[2]}"
