"""The map of molecules and the brush of the parallel axes, in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from medrec.config import TuneConfig
from medrec.report.learned import Models
from medrec.report.page import Page
from medrec.report.space import space_section
from medrec.report.space_subjects import describe
from medrec.report.sweep import sweep_section
from medrec.runs import Home, Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
JACCARD = [0.1, 0.2, 0.3, 0.4, 0.5]
ACTIONS = """
<script>addEventListener("load", () => setTimeout(async () => {
  const seen = document.body.dataset, pause = () => new Promise((done) => setTimeout(done, 400));
  const map = document.querySelector(".space-map"), figure = map.querySelector(".figure");
  const card = document.querySelector(".space-card"), title = () => card.querySelector("h4");
  map.scrollIntoView({ behavior: "instant" });
  await pause();
  const trace = figure.data.findIndex((one) => one.x.length > 1);
  const area = figure.querySelector(".nsewdrag"), box = area.getBoundingClientRect();
  const { xaxis, yaxis } = figure._fullLayout, point = figure.calcdata[trace][1];
  const at = { clientX: box.left + xaxis.d2p(point.x), clientY: box.top + yaxis.d2p(point.y),
    bubbles: true, view: window };
  area.dispatchEvent(new MouseEvent("mouseover", at));
  area.dispatchEvent(new MouseEvent("mousemove", at));
  await pause();
  seen.hovered = title() ? title().textContent : "";
  seen.drawings = card.querySelectorAll("svg path, svg text").length;
  seen.neighbours = card.querySelectorAll("li button").length;
  map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  seen.stepped = title().textContent;
  const finder = document.querySelector(".space-find");
  finder.value = seen.hovered.slice(0, 6);
  finder.dispatchEvent(new Event("input"));
  seen.hits = document.querySelector(".space-found").textContent;
  finder.value = "";
  finder.dispatchEvent(new Event("input"));
  const group = document.querySelectorAll(".space-legend button")[trace];
  group.click();
  await pause();
  seen.hidden = figure.data[trace].visible;
  document.querySelector("[data-projection=pca]").click();
  await pause();
  seen.axis = figure.layout.xaxis.title.text;
  const lines = [...document.querySelectorAll(".figure")].find((one) => one.layout &&
    one.layout.meta && one.layout.meta.brush);
  lines.scrollIntoView({ behavior: "instant" });
  await pause();
  const last = lines.layout.meta.brush - 1;
  await Plotly.relayout(lines, { selections: [{ type: "rect", xref: "x", yref: "y",
    x0: last - 0.2, x1: last + 0.2, y0: 0.4, y1: 1.1 }] });
  lines.emit("plotly_selected", {});
  await pause();
  seen.kept = lines.dataset.kept;
}, 3000));</script></body>"""


def search_run(home: Path) -> Run:
    space = {"model.d_model": {"type": "int", "low": 8, "high": 12}}
    goals = [{"metric": "jaccard", "mode": "max"}]
    base = {"name": "b", "model": {"name": "molerec"}}
    config = TuneConfig.model_validate(
        {"name": "s", "base": base, "space": space, "objectives": goals}
    )
    run = Run.open(Home(home), "tune", "s", config, {"cohort": "c" * 64})
    table = pd.DataFrame({"number": range(5), "params.model.d_model": range(8, 13)})
    with run.recording(seeds={"optuna": 0}):
        table.assign(jaccard=JACCARD).to_parquet(run.folder / "trials.parquet")
        run.finish({"objectives": goals, "n_trials": 5, "best": []})
    return run


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
def test_a_pointer_on_the_map_shows_the_structure(synthetic, tmp_path: Path):
    cohort = synthetic[1]
    page = Page("p", "q")
    page.add("Molecule space", *space_section(page, cohort, Models(Home(tmp_path), None, [])))
    page.add("Search", *sweep_section(page, search_run(tmp_path)))
    path = tmp_path / "page.html"
    path.write_text(page.render().replace("</body>", ACTIONS), encoding="utf-8")
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
            "--window-size=1280,900",
            "--virtual-time-budget=20000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    body = re.search(r"<body[^>]*>", done.stdout).group()
    seen = dict(re.findall(r'data-([\w-]+)="([^"]*)"', body))
    assert "error" not in seen, seen
    assert not re.search(r"CONSOLE.*(?:Error|error)", done.stderr)
    subjects = describe(cohort, None)
    assert int(seen["space-cards"]) == subjects.n_drawn > 0
    names = {item["name"] for item in subjects.molecules}
    assert seen["hovered"] in names
    assert int(seen["drawings"]) > 0
    assert int(seen["neighbours"]) == 5
    assert seen["stepped"] in names - {seen["hovered"]}
    assert re.fullmatch(rf"[1-9]\d* of {len(subjects.molecules)}", seen["hits"])
    assert seen["hidden"] == "legendonly"
    assert "of variance" in seen["axis"]
    # from 0.4 of the way up the last axis: 0.3, 0.4 and 0.5
    assert int(seen["kept"]) == 3
