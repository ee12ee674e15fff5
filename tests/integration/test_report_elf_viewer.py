"""The viewer of maps in a real browser: surface against geometry, escaping, no WebGL."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from medrec.molecules.features import FeatureTable
from medrec.report.elf_viewer import elf_section
from medrec.report.page import Page
from medrec.runs import Home
from orchestration.features import cohort_species
from quantum.export import export_features
from quantum.pipeline import Task, compute_features
from quantum.schema import CalculationSpec, GridSpec, PipelineSpec
from quantum.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>document.body.dataset.error='run'</script>"
SPEC = PipelineSpec(
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=0.5, margin_bohr=4.5, extra_fields=("gradient", "esp_surface")),
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")


def body_of(page: Path, profile: Path, *switches: str) -> dict[str, str]:
    """Data attributes of the body after the page has run; fails on an error in the console."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            *(switches or ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")),
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            "--window-size=1280,900",
            "--virtual-time-budget=60000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert not re.search(r"CONSOLE.*(?:Error|error)", done.stderr), done.stderr[-2000:]
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body is not None
    return dict(re.findall(r'data-([\w-]+)="([^"]*)"', body.group()))


@pytest.fixture(scope="module")
def section(synthetic, tmp_path_factory) -> tuple[Page, list[str]]:
    """A page of two maps, one with a potential; every class has an evil name."""
    home = Home(tmp_path_factory.mktemp("viewer"))
    _, cohort = synthetic
    cohort = replace(cohort)  # tables are cached per object
    cohort.__dict__["drugs"] = cohort.drugs.assign(name=EVIL)
    store = Store(home.store)
    species = sorted(cohort_species([cohort]), key=lambda s: (s.n_atoms, s.smiles))
    species = [item for item in species if item.n_atoms > 3][:3]
    for item in species[:2]:
        compute_features(Task(species=item, spec=SPEC), store)
    features = FeatureTable.load(export_features(species, SPEC, store, home.features, "t"))
    page = Page("t", "s")
    return page, elf_section(page, home, cohort, features)


@pytest.fixture(scope="module")
def page(section, tmp_path_factory) -> Path:
    made, parts = section
    made.add("ELF map", *parts)
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(made.render(), encoding="utf-8")
    return path


def test_every_drug_with_a_map_is_in_the_page(section):
    page, parts = section
    assert "2 of the 2 molecules" in "".join(parts)
    assert "elf-maps" in page.documents
    assert EVIL not in page.documents["elf-maps"]
    assert "3Dmol-min.js" in page.assets


def test_without_features_a_sentence_says_so(synthetic, tmp_path: Path):
    page = Page("t", "s")
    parts = elf_section(page, Home(tmp_path), synthetic[1], None)
    assert parts == ["<p>No ELF map is in the feature table.</p>"]
    assert page.assets == []


def test_the_vendored_build_keeps_its_licences():
    text = (files("medrec.report") / "assets" / "3Dmol-LICENSE.txt").read_text(encoding="utf-8")
    assert "University of Pittsburgh" in text
    for name in ("GLmol", "Three.js", "jQuery", "pako", "upng-js", "netcdfjs", "iobuffer"):
        assert name in text


AT_ONCE = """<script>
window.requestAnimationFrame = (draw) => { draw(0); return 0; };
window.IntersectionObserver = class {
  constructor(seen) { this.seen = seen; }
  observe() { this.seen([{ isIntersecting: IN_VIEW }]); }
  disconnect() {}
};
</script></head>"""  # no frame to wait for: the test does not depend on the load of the machine


def prepared(page: Path, folder: Path, *, in_view: bool, steps: str = "</body>") -> Path:
    """The page whose frames come at once, and whose viewer is in view or is not."""
    head = AT_ONCE.replace("IN_VIEW", str(in_view).lower())
    text = page.read_text(encoding="utf-8").replace("</head>", head, 1)
    path = folder / "prepared.html"
    path.write_text(text.replace("</body>", steps), encoding="utf-8")
    return path


@pytest.mark.browser
@needs_browser
def test_the_viewer_draws_and_names_stay_text(page: Path, tmp_path: Path):
    data = body_of(prepared(page, tmp_path, in_view=True), tmp_path / "profile")
    assert "error" not in data, data
    assert data["elf-viewer"] == "drawn"
    assert int(data["elf-triangles"]) > 100
    assert data["elf-slices"] == "3"


@pytest.mark.browser
@needs_browser
def test_the_viewer_waits_until_it_is_in_view(page: Path, tmp_path: Path):
    data = body_of(prepared(page, tmp_path, in_view=False), tmp_path / "profile")
    assert "error" not in data, data
    assert "elf-viewer" not in data


STEPS = """
<script>
(async () => {
  const body = document.body.dataset, out = [];
  const box = document.getElementById("elf-viewer");
  const part = (name) => box.querySelector(`[data-elf="${name}"]`);
  const wait = () => new Promise((done) => setTimeout(done, 0));
  const field = async (name) => {
    const button = box.querySelector(`input[name=elf-field][value=${name}]`);
    button.click();
    await wait();
    out.push(`${name}:${body.elfViewer}:${body.elfTriangles > 0}`);
  };
  await field("rho");
  await field("esp");
  await field("elf");
  const before = body.elfTriangles;
  part("value").value = 0.6;
  part("value").dispatchEvent(new Event("input"));
  await wait();
  out.push(`moved:${body.elfTriangles !== before}:${part("value-text").textContent}`);
  part("value").value = part("value").max;
  part("search").value = "zzzz";
  part("search").dispatchEvent(new Event("input"));
  out.push(`none:${part("list").options.length}`);
  part("search").value = "document.body";
  part("search").dispatchEvent(new Event("input"));
  out.push(`all:${part("list").options.length}`);
  document.documentElement.dataset.theme = "dark";
  await wait();
  out.push(`dark:${body.elfViewer}`);
  body.steps = out.join(" ");
})();
</script></body>
"""


@pytest.mark.browser
@needs_browser
def test_fields_isovalue_search_and_theme(page: Path, tmp_path: Path):
    driven = prepared(page, tmp_path, in_view=True, steps=STEPS)
    data = body_of(driven, tmp_path / "profile")
    assert "error" not in data, data
    assert data["steps"].split(" ") == [
        "rho:drawn:true",
        "esp:drawn:true",
        "elf:drawn:true",
        "moved:true:0.600",
        "none:0",
        "all:2",
        "dark:drawn",
    ]


@pytest.mark.browser
@needs_browser
def test_without_webgl_the_slices_still_work(page: Path, tmp_path: Path):
    still = prepared(page, tmp_path, in_view=True)
    data = body_of(still, tmp_path / "profile", "--disable-gpu", "--disable-3d-apis")
    assert data["elf-viewer"].startswith("failed: WebGL is not available")
    assert data["elf-slices"] == "3"
    assert "error" not in data, data


GAUSSIAN = """<!doctype html><html><body><script>%s</script><script>
(() => {
  const [n, step] = [41, 0.2], centre = [0.3, 0.2, -0.1], origin = [-4, -4.1, -3.9];
  const shape = [n, n + 2, n + 4], data = new Float32Array(shape[0] * shape[1] * shape[2]);
  let at = 0;
  for (let i = 0; i < shape[0]; i++) for (let j = 0; j < shape[1]; j++)
    for (let k = 0; k < shape[2]; k++) {
      const p = [i, j, k].map((x, a) => origin[a] + step * x - centre[a]);
      data[at++] = Math.exp(-(p[0] ** 2 + p[1] ** 2 + p[2] ** 2) / 2);
    }
  const out = [];
  for (const volume of [{ data, shape, origin, step }, null]) {
    const field = volume || elfMesh.refine({ data, shape, origin, step });
    const mesh = elfMesh.surface(field, 0.4);
    const radii = mesh.vertices.map((p) =>
      Math.hypot(p.x - centre[0], p.y - centre[1], p.z - centre[2]));
    let solid = 0;
    for (let f = 0; f < mesh.faces.length; f += 3) {
      const [a, b, c] = [0, 1, 2].map((t) => mesh.vertices[mesh.faces[f + t]])
        .map((p) => [p.x - centre[0], p.y - centre[1], p.z - centre[2]]);
      solid += (a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2])
        + a[2] * (b[0] * c[1] - b[1] * c[0])) / 6;
    }
    const outward = mesh.vertices.every((p, i) => (p.x - centre[0]) * mesh.normals[i].x
      + (p.y - centre[1]) * mesh.normals[i].y + (p.z - centre[2]) * mesh.normals[i].z > 0);
    const inPieces = elfMesh.chunks(mesh, 100).reduce((n, m) => n + m.faces.length, 0);
    out.push([Math.min(...radii), Math.max(...radii), solid,
      mesh.vertices.length - mesh.faces.length / 6, outward, inPieces === mesh.faces.length]);
  }
  const slope = [0, 0, 0], volume = { data, shape, origin, step };
  out.push([elfMesh.sample(volume, origin[0] + 3 * step, origin[1] + 5 * step,
    origin[2] + 7 * step) - data[(3 * shape[1] + 5) * shape[2] + 7],
    elfMesh.sample(volume, 1.3, 0.2, -0.1, slope), ...slope]);
  document.body.dataset.mesh = JSON.stringify(out);
})();
</script></body></html>"""


@pytest.mark.browser
@needs_browser
def test_the_surface_of_a_gaussian_is_its_sphere(tmp_path: Path):
    """Radius sqrt(-2 ln 0.4) about the given centre; one closed surface, normals outward."""
    code = (files("medrec.report") / "assets" / "elf_mesh.js").read_text(encoding="utf-8")
    path = tmp_path / "mesh.html"
    path.write_text(GAUSSIAN % code, encoding="utf-8")
    plain, fine, points = json.loads(html.unescape(body_of(path, tmp_path / "p")["mesh"]))
    radius = np.sqrt(-2 * np.log(0.4))
    for (low, high, solid, euler, outward, whole), tolerance in ((plain, 0.008), (fine, 0.006)):
        assert radius - tolerance < low < high < radius + tolerance
        assert solid == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
        assert euler == 2  # V - E + F of a sphere
        assert outward
        assert whole
    assert points[0] == pytest.approx(0.0, abs=1e-6)
    # one width off the centre along x: value e^-1/2, slope -e^-1/2 along x and 0 else
    np.testing.assert_allclose(points[1:], np.exp(-0.5) * np.array([1, -1, 0, 0]), atol=0.07)
