"""Draw the ELF maps of `docs/quantum.md`: an isosurface and three slices of each drug.

    python tools/elf_pictures.py HOME OUT NAME=SMILES [NAME=SMILES ...]

Computes the standard level (or finds it in HOME), writes one page per drug and lets headless
Chromium photograph it. Needs `chromium` on the path.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from medrec.report.elf import ElfMap, surface_figure
from medrec.runs import Home
from orchestration.console import Terminal
from orchestration.new_drug import add_drug
from quantum.schema import Resources

WIDTH, HEIGHT = 1280, 680


def still(figure: go.Figure, width: int, height: int) -> str:
    """Drawing code of a figure without its sliders."""
    figure.layout.sliders = ()
    figure.update_layout(width=width, height=height)
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})


def middle_slices(elf: ElfMap) -> go.Figure:
    """Planes through the middle of the box: the widest in full, the others below it."""
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        row_heights=[0.62, 0.38],
        subplot_titles=["across z", "across y", "across x"],
        vertical_spacing=0.14,
    )
    for place, axis in (((1, 1), 2), ((2, 1), 1), ((2, 2), 0)):
        first, second = (i for i in range(3) if i != axis)
        plane = np.take(elf.values, elf.values.shape[axis] // 2, axis=axis)
        figure.add_heatmap(
            z=plane.T,
            x=elf.axes[first],
            y=elf.axes[second],
            zmin=0.0,
            zmax=1.0,
            zsmooth="best",
            colorscale="Viridis",
            showscale=axis == 2,
            colorbar={"title": "ELF", "thickness": 12},
            row=place[0],
            col=place[1],
        )
        figure.update_xaxes(
            title=f"{'xyz'[first]}, Å", constrain="domain", row=place[0], col=place[1]
        )
        figure.update_yaxes(
            title=f"{'xyz'[second]}, Å", constrain="domain", row=place[0], col=place[1]
        )
    for i in range(1, 4):
        figure.layout[f"yaxis{i if i > 1 else ''}"].scaleanchor = f"x{i if i > 1 else ''}"
    return figure.update_layout(margin={"l": 50, "r": 10, "t": 30, "b": 40})


def page(elf: ElfMap) -> str:
    """HTML of one drug."""
    shape = surface_figure(elf)
    shape.layout.scene.camera.eye = {"x": 0.85, "y": -1.6, "z": 1.3}
    surface = still(shape, 520, 560)
    slices = still(middle_slices(elf), 740, 620)
    return (
        "<!doctype html><meta charset=utf-8><style>body{margin:0;font:16px sans-serif;"
        "background:#fff;color:#222}main{display:flex;align-items:center}h1{font-size:20px;"
        f"margin:12px 0 0 24px}}</style><script>{get_plotlyjs()}</script>"
        f"<h1>{elf.title}</h1><main><div>{surface}</div><div>{slices}</div></main>"
    )


def photograph(html: str, out: Path) -> None:
    """Let Chromium draw a page into a PNG file."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise SystemExit("chromium is not on the path; apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.html"
        source.write_text(html, encoding="utf-8")
        subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--use-gl=angle",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
                "--hide-scrollbars",
                "--force-device-scale-factor=1",
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH},{HEIGHT}",
                "--virtual-time-budget=15000",
                f"--screenshot={out.resolve()}",
                source.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=180,
        )


def main() -> None:
    """Compute and draw."""
    home, out = Home(Path(sys.argv[1])), Path(sys.argv[2])
    for pair in sys.argv[3:]:
        name, smiles = pair.split("=", 1)
        done = add_drug(home, smiles, None, 0, "standard", Resources(memory_mb=6000), Terminal())
        title = f"{name}, {done.task.species.formula}: ELF at B3LYP/def2-SVP"
        photograph(page(ElfMap.from_record(done.elf, title)), out / f"elf-{name}.png")
        print(out / f"elf-{name}.png")


if __name__ == "__main__":
    main()
