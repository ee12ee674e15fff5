"""One ELF map as a 3D isosurface over the molecule, and as slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rdkit import Chem
from skimage.measure import marching_cubes

from medrec.report.figures import style
from quantum.store import Record
from quantum.units import BOHR_IN_ANGSTROM

_ISOVALUES = (0.5, 0.6, 0.7, 0.8, 0.9)
_SHOWN = 0.8
_COLOURS = {1: "#d9dee3", 6: "#5b6570", 7: "#3b6fd4", 8: "#d8433b", 9: "#4caf50", 16: "#d9a521"}
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ElfMap:
    """ELF values on a grid with the molecule, in Angstrom."""

    title: str
    values: Array
    axes: tuple[Array, Array, Array]
    atomic_numbers: npt.NDArray[np.int16]
    coords: Array

    @classmethod
    def from_record(cls, record: Record, title: str) -> ElfMap:
        """Read a stored map."""
        origin = np.array(record.scalars["origin_bohr"])
        spacing = float(record.scalars["spacing_bohr"])
        axes = [
            (origin[i] + spacing * np.arange(n)) * BOHR_IN_ANGSTROM
            for i, n in enumerate(record.arrays["elf"].shape)
        ]
        return cls(
            title,
            record.arrays["elf"].astype(np.float64),
            (axes[0], axes[1], axes[2]),
            record.arrays["atomic_numbers"],
            record.arrays["coords_bohr"] * BOHR_IN_ANGSTROM,
        )


def surface_figure(elf: ElfMap) -> go.Figure:
    """Isosurfaces with a slider for the value, balls and sticks inside."""
    figure = go.Figure()
    shown = []
    for value in _ISOVALUES:
        trace = _isosurface(elf, value)
        if trace is not None:
            trace.visible = bool(np.isclose(value, _SHOWN))
            figure.add_trace(trace)
            shown.append(value)
    n_surfaces = len(shown)
    for trace in _skeleton(elf):
        figure.add_trace(trace)
    n_others = len(figure.data) - n_surfaces
    if n_surfaces and not any(np.isclose(value, _SHOWN) for value in shown):
        figure.data[-n_others - 1].visible = True
    steps = [
        {
            "label": f"{value:.1f}",
            "method": "restyle",
            "args": [{"visible": [i == j for j in range(n_surfaces)] + [True] * n_others}],
        }
        for i, value in enumerate(shown)
    ]
    hidden = {"visible": False, "showbackground": False}
    style(figure, 520).update_layout(
        margin={"l": 0, "r": 0, "t": 8, "b": 90},
        showlegend=False,
        scene={
            "xaxis": hidden,
            "yaxis": hidden,
            "zaxis": hidden,
            "aspectmode": "data",
            "camera": {"eye": {"x": 0.6, "y": -1.1, "z": 0.9}},
        },
        sliders=[
            {
                "active": shown.index(_SHOWN) if _SHOWN in shown else max(n_surfaces - 1, 0),
                "currentvalue": {"prefix": "ELF isosurface "},
                "steps": steps,
                "pad": {"t": 4},
                "len": 0.9,
                "x": 0.05,
            }
        ],
    )
    return figure


def _isosurface(elf: ElfMap, value: float) -> go.Mesh3d | None:
    if not elf.values.min() < value < elf.values.max():
        return None
    spacing = [axis[1] - axis[0] for axis in elf.axes]
    vertices, faces, _, _ = marching_cubes(elf.values, value, spacing=spacing)
    vertices = vertices + [axis[0] for axis in elf.axes]
    return go.Mesh3d(
        x=np.round(vertices[:, 0], 2).tolist(),
        y=np.round(vertices[:, 1], 2).tolist(),
        z=np.round(vertices[:, 2], 2).tolist(),
        i=faces[:, 0].tolist(),
        j=faces[:, 1].tolist(),
        k=faces[:, 2].tolist(),
        color="#2f7fc1",
        opacity=0.42,
        flatshading=False,
        lighting={"ambient": 0.6, "diffuse": 0.7, "specular": 0.25, "roughness": 0.6},
        hoverinfo="skip",
    )


def _skeleton(elf: ElfMap) -> list[go.Scatter3d]:
    table = Chem.GetPeriodicTable()
    radii = np.array([table.GetRcovalent(int(z)) for z in elf.atomic_numbers])
    gap = np.linalg.norm(elf.coords[:, None] - elf.coords[None], axis=-1)
    bonded = np.argwhere(np.triu(gap < 1.25 * (radii[:, None] + radii[None]), k=1))
    lines: list[list[float | None]] = [[], [], []]
    for i, j in bonded:
        for axis in range(3):
            lines[axis] += [float(elf.coords[i, axis]), float(elf.coords[j, axis]), None]
    symbols = [table.GetElementSymbol(int(z)) for z in elf.atomic_numbers]
    return [
        go.Scatter3d(
            x=lines[0],
            y=lines[1],
            z=lines[2],
            mode="lines",
            line={"color": "#5b6570", "width": 7},
            hoverinfo="skip",
        ),
        go.Scatter3d(
            x=elf.coords[:, 0].tolist(),
            y=elf.coords[:, 1].tolist(),
            z=elf.coords[:, 2].tolist(),
            mode="markers",
            text=symbols,
            hovertemplate="%{text}<extra></extra>",
            marker={
                "size": [7 if z == 1 else 13 for z in elf.atomic_numbers],
                "color": [_COLOURS.get(int(z), "#a667c9") for z in elf.atomic_numbers],
                "line": {"color": "#2b3036", "width": 1},
                "opacity": 1.0,
            },
        ),
    ]


def slice_figure(elf: ElfMap, n: int = 9) -> go.Figure:
    """Planes through the box along the three principal axes, with a slider for the depth."""
    names = ("x", "y", "z")
    figure = make_subplots(
        cols=3,
        horizontal_spacing=0.11,
        subplot_titles=[f"across {name}" for name in names],
    )
    index = [np.linspace(0, size - 1, n + 2).round().astype(int)[1:-1] for size in elf.values.shape]
    for step in range(n):
        for axis in range(3):
            across = [i for i in range(3) if i != axis]
            plane = np.take(elf.values, index[axis][step], axis=axis)
            figure.add_heatmap(
                z=np.round(plane.T, 3).tolist(),
                x=np.round(elf.axes[across[0]], 2).tolist(),
                y=np.round(elf.axes[across[1]], 2).tolist(),
                zmin=0.0,
                zmax=1.0,
                colorscale="Viridis",
                visible=step == n // 2,
                showscale=axis == 2,
                colorbar={"title": "ELF", "thickness": 12},
                hovertemplate="ELF %{z:.2f}<extra></extra>",
                row=1,
                col=axis + 1,
            )
            figure.update_xaxes(title=f"{names[across[0]]}, Å", row=1, col=axis + 1)
            figure.update_yaxes(title=f"{names[across[1]]}, Å", row=1, col=axis + 1)
    for axis in range(1, 4):
        anchor = "x" if axis == 1 else f"x{axis}"
        figure.update_yaxes(scaleanchor=anchor, constrain="domain", row=1, col=axis)
        figure.update_xaxes(constrain="domain", row=1, col=axis)
    steps = [
        {
            "label": f"{100 * (step + 1) / (n + 1):.0f} %",
            "method": "restyle",
            "args": [{"visible": [i // 3 == step for i in range(3 * n)]}],
        }
        for step in range(n)
    ]
    style(figure, 470).update_layout(
        margin={"b": 110},
        sliders=[
            {
                "active": n // 2,
                "currentvalue": {"prefix": "depth of the plane in the box: "},
                "steps": steps,
                "pad": {"t": 64},
            }
        ],
    )
    return figure
