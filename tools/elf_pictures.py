"""Draw ELF maps: of drugs for `docs/quantum.md`, of small molecules for those who explain ELF.

    python tools/elf_pictures.py HOME OUT NAME=SMILES [NAME=SMILES ...]
    python tools/elf_pictures.py explained OUT

The first computes the standard level (or finds it in HOME), writes one page per drug and lets
headless Chromium photograph it. The second draws `elf-explained-*.png`: B3LYP/def2-TZVP at the
molecules' usual bond lengths, all-electron Hartree-Fock for the atoms, and paracetamol at the fast
level. Needs `chromium` on the path.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from pyscf import dft, gto, scf

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from medrec.report.elf import ElfMap, surface_figure
from medrec.runs import Home
from orchestration.console import Terminal
from orchestration.new_drug import add_drug
from quantum.backends.orbitals import density_on_box
from quantum.elf import compute_elf, total_density
from quantum.molecule import species_from_smiles
from quantum.pipeline import Task, compute_features, plan
from quantum.schema import LEVELS, Resources
from quantum.store import Store
from quantum.units import ANGSTROM_IN_BOHR

WIDTH, HEIGHT = 1280, 680
PARACETAMOL = "CC(=O)Nc1ccc(O)cc1"
HALF = "uniform electron gas: 0.5"
Array = npt.NDArray[np.float64]


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


def photograph(html: str, out: Path, height: int = HEIGHT) -> None:
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
                f"--window-size={WIDTH},{height}",
                "--virtual-time-budget=15000",
                f"--screenshot={out.resolve()}",
                source.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=180,
        )


def solved(atoms: str, method: str = "b3lyp", basis: str = "def2-tzvp") -> scf.hf.SCF:
    """Converged calculation of a closed-shell molecule; positions in Angstrom."""
    mol = gto.M(atom=atoms, basis=basis, verbose=0)
    mean_field = scf.RHF(mol) if method == "hf" else dft.RKS(mol, xc=method).density_fit()
    mean_field.kernel()
    if not mean_field.converged:
        raise SystemExit(f"no convergence: {atoms}")
    return mean_field


def fields_of(mean_field: scf.hf.SCF, axes: tuple[Array, Array, Array]) -> Array:
    """Density quantities (1, 5, nx, ny, nz) on axes in Angstrom."""
    bohr = tuple(axis * ANGSTROM_IN_BOHR for axis in axes)
    orbitals = mean_field.mo_coeff[None], mean_field.mo_occ[None]
    return np.asarray(density_on_box(mean_field.mol, *orbitals, bohr))


def draw_formula(out: Path) -> None:
    """ELF against the ratio of the Pauli excess to that of the uniform gas."""
    chi = np.linspace(0, 4, 400)
    figure, axes = plt.subplots(figsize=(7.4, 3.9), layout="constrained")
    axes.plot(chi, 1 / (1 + chi**2), color="#0072b2", linewidth=2.5)
    for x, text, place in (
        (0, "one electron or one pair alone:\nbonds, lone pairs, cores", (0.35, 0.93)),
        (1, "as in the uniform electron gas", (1.2, 0.52)),
        (3, "between shells: electrons of\nequal spin come close", (2.35, 0.2)),
    ):
        axes.plot(x, 1 / (1 + x**2), "o", color="#d55e00", markersize=8)
        axes.text(*place, text, fontsize=10.5)
    axes.set(
        xlabel="D / D_h: excess kinetic energy density, in units of that of the uniform gas",
        ylabel="ELF",
        ylim=(0, 1.08),
        xlim=(-0.08, 4),
    )
    axes.grid(alpha=0.3)
    save(figure, out, "formula")


def draw_atoms(out: Path) -> None:
    """ELF and radial density of noble gases against the distance from the nucleus."""
    radius = np.geomspace(0.004, 4.0, 700)
    figure, panels = plt.subplots(1, 3, figsize=(10.4, 3.7), layout="constrained", sharey=True)
    for axes, (symbol, shells) in zip(
        panels, (("Ne", "KL"), ("Ar", "KLM"), ("Kr", "KLMN")), strict=True
    ):
        mean_field = solved(f"{symbol} 0 0 0", "hf", "def2-qzvp")
        fields = fields_of(mean_field, (radius, np.zeros(1), np.zeros(1)))
        elf = compute_elf(fields, 0.0).ravel()
        radial = radius**2 * total_density(fields).ravel()
        axes.plot(radius, elf, color="#0072b2", linewidth=2.2, label="ELF")
        axes.fill_between(radius, radial / radial.max(), color="#e69f00", alpha=0.3)
        axes.plot([], [], color="#e69f00", alpha=0.5, linewidth=6, label="r²ρ, largest = 1")
        axes.axhline(0.5, color="#5a6672", linestyle="--", linewidth=1)
        maxima = np.flatnonzero((elf[1:-1] > elf[:-2]) & (elf[1:-1] > elf[2:])) + 1
        tops = [radius[0], *radius[maxima[elf[maxima] > 0.4]]]
        for name, top in zip(shells, tops, strict=False):
            axes.text(max(top, 0.006), 1.04, name, ha="center", color="#0072b2", fontsize=11)
        axes.set(xscale="log", xlabel="distance from the nucleus, Å", title=symbol, ylim=(0, 1.13))
        axes.set_xticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("ELF; radial density")
    panels[0].text(0.0042, 0.515, HALF, fontsize=8.5, color="#5a6672")
    panels[0].legend(loc="lower left", fontsize=8.5, framealpha=0.9)
    save(figure, out, "atoms")


def plane_of(
    axes: Axes,
    mean_field: scf.hf.SCF,
    across: int,
    limits: tuple[float, float, float, float],
) -> AxesImage:
    """ELF in the plane through the origin across an axis, with the atoms that lie in it."""
    first, second = (i for i in range(3) if i != across)
    grid = [np.zeros(1)] * 3
    grid[first] = np.linspace(limits[0], limits[1], 161)
    grid[second] = np.linspace(limits[2], limits[3], 161)
    elf = compute_elf(fields_of(mean_field, (grid[0], grid[1], grid[2])), 1e-5)
    shown = elf.reshape(161, 161).T
    image = axes.imshow(
        shown,
        origin="lower",
        extent=limits,
        vmin=0,
        vmax=1,
        cmap="viridis",
        interpolation="bicubic",
    )
    levels = axes.contour(
        grid[first], grid[second], shown, levels=[0.5, 0.8], colors="white", linewidths=0.8
    )
    axes.clabel(levels, fontsize=6.5, fmt="%.1f")
    mol = mean_field.mol
    for i, xyz in enumerate(mol.atom_coords() / ANGSTROM_IN_BOHR):
        if abs(xyz[across]) < 0.1:
            axes.text(
                xyz[first], xyz[second], mol.atom_pure_symbol(i), ha="center", va="center",
                fontsize=9, fontweight="bold",
                bbox={"boxstyle": "circle,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.8},
            )  # fmt: skip
    axes.set(xlabel=f"{'xyz'[first]}, Å", ylabel=f"{'xyz'[second]}, Å")
    return image


def point_at(axes: Axes, text: str, to: tuple[float, float], start: tuple[float, float]) -> None:
    """A white label with an arrow."""
    axes.annotate(
        text, to, start, color="white", fontsize=9.5, ha="center", va="center",
        arrowprops={"arrowstyle": "->", "color": "white"},
    )  # fmt: skip


def draw_lone_pairs(out: Path) -> None:
    """Formaldehyde in its plane and water across the bisector of its hydrogens."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.7), layout="constrained")
    formaldehyde = solved("C 0 0 -0.53; O 0 0 0.67; H 0 0.935 -1.11; H 0 -0.935 -1.11")
    image = plane_of(left, formaldehyde, 0, (-2.5, 2.5, -2.6, 2.4))
    left.set_title("formaldehyde, plane of the atoms")
    point_at(left, "lone pair of O", (0.66, 1.0), (1.65, 1.9))
    point_at(left, "C=O bond", (0.12, 0.02), (1.7, 0.2))
    point_at(left, "C–H bond", (-0.8, -1.1), (-1.7, -0.1))
    # hydrogens in the plane x = 0; the lone pairs of O stand out of it, in the plane y = 0
    water = solved("O 0 0 0; H 0 0.757 -0.586; H 0 -0.757 -0.586")
    plane_of(right, water, 1, (-2.2, 2.2, -2.2, 2.2))
    right.set_title("water, plane between its hydrogens")
    point_at(right, "lone pairs of O", (0.55, 0.35), (1.25, 1.55))
    point_at(right, "core of O (1s pair)", (0.04, 0.02), (-1.15, 1.2))
    colour_bar(figure, image, [left, right])
    save(figure, out, "lone-pairs")


def draw_bonds(out: Path) -> None:
    """Single, double and triple carbon bonds along and across the bond."""
    molecules = {
        "ethane, C–C": "C 0 0 0.765; C 0 0 -0.765; H 1.02 0 1.16; H -0.51 0.883 1.16;"
        "H -0.51 -0.883 1.16; H -1.02 0 -1.16; H 0.51 0.883 -1.16; H 0.51 -0.883 -1.16",
        "ethene, C=C": "C 0 0 0.667; C 0 0 -0.667; H 0 0.923 1.238; H 0 -0.923 1.238;"
        "H 0 0.923 -1.238; H 0 -0.923 -1.238",
        "ethyne, C≡C": "C 0 0 0.602; C 0 0 -0.602; H 0 0 1.665; H 0 0 -1.665",
    }
    figure, panels = plt.subplots(2, 3, figsize=(10, 6.6), layout="constrained")
    for column, (name, atoms) in enumerate(molecules.items()):
        mean_field = solved(atoms)
        plane_of(panels[0, column], mean_field, 1, (-2.3, 2.3, -2.3, 2.3))
        image = plane_of(panels[1, column], mean_field, 2, (-2.3, 2.3, -2.3, 2.3))
        panels[0, column].set_title(f"{name}: along the bond")
        panels[1, column].set_title("across its middle")
    colour_bar(figure, image, list(panels.ravel()))
    save(figure, out, "bonds")


def draw_isosurfaces(out: Path) -> None:
    """Paracetamol at three values."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        task = Task(species=species_from_smiles(PARACETAMOL), spec=LEVELS["fast"])
        compute_features(task, store)
        elf = ElfMap.from_record(store.get(plan(task.species, task.spec)["elf"]), "paracetamol")
    scenes = []
    for value in (0.5, 0.7, 0.9):
        figure = surface_figure(elf)
        shown = [step.label for step in figure.layout.sliders[0].steps].index(f"{value:.1f}")
        for i in range(len(figure.layout.sliders[0].steps)):
            figure.data[i].visible = i == shown
        figure.layout.scene.camera.eye = {"x": 0.1, "y": -0.4, "z": 1.5}
        figure.update_layout(margin={"b": 0})
        scenes.append(f"<figure>{still(figure, 420, 330)}<b>ELF = {value:.1f}</b></figure>")
    photograph(
        "<!doctype html><meta charset=utf-8><style>body{margin:0;font:17px sans-serif;color:#222}"
        "main{display:flex}figure{margin:0;text-align:center}</style>"
        f"<script>{get_plotlyjs()}</script><main>{''.join(scenes)}</main>",
        out / "elf-explained-isosurfaces.png",
        370,
    )


def colour_bar(figure: plt.Figure, image: AxesImage, panels: list[Axes]) -> None:
    """One bar for all panels, with the uniform gas marked."""
    bar = figure.colorbar(image, ax=panels, shrink=0.85, label="ELF")
    bar.ax.axhline(0.5, color="white", linewidth=2)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5: uniform gas", "0.75", "1"])


def save(figure: plt.Figure, out: Path, name: str) -> None:
    """Write one picture."""
    path = out / f"elf-explained-{name}.png"
    figure.savefig(path, dpi=115)
    plt.close(figure)
    with Image.open(path) as picture:  # 256 colours are enough, and a third of the bytes
        picture.convert("RGB").quantize(256).save(path, optimize=True)
    print(path, flush=True)


def explained(out: Path) -> None:
    """All pictures for those who do not know ELF."""
    out.mkdir(parents=True, exist_ok=True)
    for draw in (draw_formula, draw_atoms, draw_lone_pairs, draw_bonds, draw_isosurfaces):
        draw(out)


def main() -> None:
    """Compute and draw."""
    if sys.argv[1] == "explained":
        explained(Path(sys.argv[2]))
        return
    home, out = Home(Path(sys.argv[1])), Path(sys.argv[2])
    for pair in sys.argv[3:]:
        name, smiles = pair.split("=", 1)
        done = add_drug(home, smiles, None, 0, "standard", Resources(memory_mb=6000), Terminal())
        title = f"{name}, {done.task.species.formula}: ELF at B3LYP/def2-SVP"
        photograph(page(ElfMap.from_record(done.elf, title)), out / f"elf-{name}.png")
        print(out / f"elf-{name}.png")


if __name__ == "__main__":
    main()
