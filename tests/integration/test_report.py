"""The page: escaped, self-contained, drawn by a real browser without errors."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medrec.config import PretrainRunConfig, TrainConfig, TuneConfig
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.features import FeatureTable
from medrec.report import build_report
from medrec.report.page import Page, script_json, table
from medrec.runs import Home, Run
from medrec.training import run_training
from orchestration.features import cohort_species
from quantum.export import export_features
from quantum.pipeline import Task, compute_features
from quantum.schema import CalculationSpec, GridSpec, PipelineSpec
from quantum.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>document.body.dataset.error='run'</script>"
SECTIONS = [
    "Summary",
    "Cohort",
    "Comparison",
    "Jaccard and DDI",
    "Training",
    "Pre-training",
    "Calibration",
    "DDI by severity",
    "Drug classes",
    "Molecules",
    "Molecule space",
    "ELF maps",
    "Search",
    "A patient",
    "Provenance",
]
MEASURE = """
  setTimeout(() => {
    const d = document.body.dataset;
    d.page = document.documentElement.scrollWidth;
    d.window = innerWidth;
    d.current = document.querySelector("nav [aria-current]").textContent;
  }, 15000);
"""
SPEC = PipelineSpec(
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=0.6, margin_bohr=3.5),
)


def test_text_cannot_become_markup():
    page = Page(EVIL, EVIL)
    page.add(EVIL, table([EVIL], [[EVIL]]))
    text = page.render()
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "<" not in script_json('{"a": "</script>"}')


def finished(run: Run, report: dict, metrics: list[dict]) -> Run:
    with run.recording():
        for row in metrics:
            run.append_metrics(row)
        run.finish(report)
    return run


@pytest.fixture(scope="module")
def page(synthetic, tmp_path_factory) -> Path:
    """A report with every section, from real runs; search and pre-training in stored form."""
    home = Home(tmp_path_factory.mktemp("report"))
    home.cohorts.symlink_to(synthetic[0].cohorts)
    cohort = synthetic[1]
    store = Store(home.store)
    species = sorted(cohort_species([cohort]), key=lambda s: s.n_atoms)[:6]
    compute_features(Task(species=species[0], spec=SPEC), store)
    for item in species[1:]:
        compute_features(Task(species=item, spec=SPEC, stages=("conformer",)), store)
    features = FeatureTable.load(export_features(species, SPEC, store, home.features, "t"))
    small = {"name": "molerec", "d_model": 8, "representation": {"layers": 1}}
    configs = [
        {"name": "topk", "model": {"name": "topk"}},
        {"name": "molerec", "model": small, "optim": {"epochs": 3}},
        {"name": "retain", "model": {"name": "retain", "d_model": 8}, "optim": {"epochs": 3}},
    ]
    runs = [run_training(TrainConfig.model_validate(c), cohort, home) for c in configs]
    tune = TuneConfig.model_validate(
        {
            "name": "s",
            "base": configs[1],
            "space": {"model.d_model": {"type": "int", "low": 8, "high": 9}},
        }
    )
    search = Run.open(home, "tune", "s", tune, {"cohort": cohort.digest})
    pd.DataFrame(
        {
            "number": [0, 1],
            "params.model.d_model": [8, 9],
            "jaccard": [0.4, 0.3],
            "ddi_rate": [0.1, 0.2],
            "epochs": [3.0, np.nan],
            "full_budget": [True, False],
            "seconds": [1.0, np.nan],
            "pareto": [True, False],
        }
    ).to_parquet(search.folder / "trials.parquet")
    finished(search, {"n_trials": 2}, [])
    task = PretrainRunConfig.model_validate({"task": {"name": "p"}}).task
    curve = [{"epoch": i, "loss": 3.0 - i, "retrieval_accuracy": 0.1 * i} for i in range(3)]
    pretrain = finished(
        Run.open(home, "pretrain", "p", task, {"cohort": cohort.digest}), {"best_loss": 1.0}, curve
    )
    torch.manual_seed(5)
    encoder = {"d_model": 8, "gin_layers": 1}
    weights = GINEncoder(8, 1, 0.0).state_dict()
    pretrain.save_checkpoint("best", {"gin_molecule": weights, "encoder": encoder})
    return build_report(
        home,
        cohort=cohort,
        runs=runs,
        tune_run=search,
        pretrain_run=pretrain,
        features=features,
        out=home.reports / "page.html",
    )


def test_the_page_is_one_file_without_addresses(page: Path, synthetic):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 15e6
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']https?:""", text)
    assert "support no claim about accuracy" in text
    assert re.findall(r"<h2>([^<]+)</h2>", text) == SECTIONS  # no concepts: no run reads them
    preset, split = re.search(r"<caption><span>[^<]*preset (\w+) · split ([^·<]+) ·", text).groups()
    assert preset == synthetic[1].config.preset
    assert split == f"0 ({synthetic[1].split(0).digest[:8]})"
    for title in ("ground truth", "random sets"):
        assert f"<td>{title}</td>" in text
    assert "rows of the output layer" in text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
@pytest.mark.parametrize("width", [1280, 800])
def test_a_browser_draws_every_figure(page: Path, tmp_path: Path, width: int):
    copy = tmp_path / "page.html"
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", f"<script>{MEASURE}</script></body>"), "utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--window-size={width},900",
            "--virtual-time-budget=20000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    body = re.search(r"<body[^>]*>", done.stdout).group()
    counts = dict(re.findall(r'data-(\w+)="([^"]*)"', body))
    assert "error" not in counts, counts
    assert int(counts["figures"]) >= 10
    assert counts["drawn"] == counts["figures"]
    assert int(counts["page"]) <= int(counts["window"]) == width  # nothing stands out at the side
    assert counts["current"] == "Summary"
    assert not re.search(r"CONSOLE.*(?:Error|error|violates|Refused)", done.stderr)
    assert "Share chart" not in done.stdout.partition("</main>")[0]


def test_missing_pieces_are_said(synthetic, tmp_path: Path):
    _, cohort = synthetic
    path = build_report(Home(tmp_path), cohort=cohort, runs=[], out=tmp_path / "empty.html")
    text = path.read_text(encoding="utf-8")
    for sentence in (
        "No training run was given",
        "No pre-training run was given",
        "No feature table was given",
        "No ELF map is in the feature table",
        "No search was given",
    ):
        assert sentence in text
    assert re.findall(r"<h2>([^<]+)</h2>", text) == SECTIONS
    assert f"<b>{cohort.n_patients:,}</b><span>patients</span>" in text
