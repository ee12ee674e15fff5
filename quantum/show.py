"""Small HTML views of molecules and calculations for notebooks: facts, a drawing, a plane of ELF.

Everything is escaped, pictures are inline ``data:`` images, and no colour of text or background is
set, so that a view follows a light or a dark theme. No plotting package is needed.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

Array = npt.NDArray[Any]

_LINE = "border-top:1px solid rgba(128,128,128,.35)"
_CELL = "padding:1px 10px 1px 0;text-align:left;vertical-align:top"
_GREY = "#808a94"  # readable on white and on black
# colours of atoms that are readable on white and on black; -1 is every other element
_PALETTE = {
    -1: (0.50, 0.54, 0.58),
    1: (0.50, 0.54, 0.58),
    7: (0.30, 0.52, 0.95),
    8: (0.88, 0.30, 0.26),
    9: (0.30, 0.68, 0.33),
    15: (0.88, 0.50, 0.15),
    16: (0.75, 0.60, 0.10),
    17: (0.30, 0.68, 0.33),
    35: (0.70, 0.35, 0.25),
    53: (0.60, 0.35, 0.75),
}
# viridis at 0, 1/4, 1/2, 3/4 and 1 (matplotlib, CC0)
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def number(value: Any, digits: int = 4) -> str:
    """A value as text: a few digits of a float, a dash for nothing, separators of thousands."""
    if value is None or value != value:
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        return f"{float(value):.{digits}g}"
    return str(value)


def facts_html(
    title: str, rows: Iterable[tuple[str, Any]], *, beside: Sequence[str] = (), below: str = ""
) -> str:
    """Title and a table of name and value, with HTML fragments beside and below.

    Parameters
    ----------
    beside, below : HTML
        Already escaped, such as pictures and tables of this module.
    """
    lines = "".join(
        f"<tr><td style='{_CELL};opacity:.7'>{escape(str(name))}</td>"
        f"<td style='{_CELL};word-break:break-word'>{escape(number(value))}</td></tr>"
        for name, value in rows
    )
    table = f"<table style='border-collapse:collapse;font-size:90%;color:inherit'>{lines}</table>"
    parts = "".join(f"<div>{part}</div>" for part in (table, *beside))
    return (
        f"<div style='max-width:960px;padding-bottom:8px'><div style='padding-bottom:2px'>"
        f"<strong>{escape(title)}</strong></div>"
        f"<div style='display:flex;flex-wrap:wrap;gap:18px;align-items:flex-start;{_LINE};"
        f"padding-top:6px'>{parts}</div>{below}</div>"
    )


def table_html(columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """Compact table; numbers of a row are shortened, texts escaped."""
    head = "".join(f"<th style='{_CELL}'>{escape(str(name))}</th>" for name in columns)
    body = "".join(
        f"<tr style='{_LINE}'>"
        + "".join(f"<td style='{_CELL}'>{escape(number(value))}</td>" for value in row)
        + "</tr>"
        for row in rows
    )
    said = f"<caption style='text-align:left;opacity:.7'>{escape(caption)}</caption>"
    return (
        f"<table style='border-collapse:collapse;font-size:90%;color:inherit;margin-top:8px'>"
        f"{said if caption else ''}<tr>{head}</tr>{body}</table>"
    )


def note_html(text: str) -> str:
    """One line of small print."""
    return f"<div style='font-size:85%;opacity:.75;padding-top:6px'>{escape(text)}</div>"


# --------------------------------------------------------------------------- pictures


def svg_image(svg: str, alt: str) -> str:
    """An SVG as an image element, which viewers that remove inline SVG keep."""
    data = base64.b64encode(svg.encode()).decode("ascii")
    return f"<img alt='{escape(alt)}' src='data:image/svg+xml;base64,{data}'>"


def drawing_html(smiles: str, width: int = 260, height: int = 180) -> str:
    """2D drawing of a molecule on no background, in colours for light and dark themes."""
    drawer = rdMolDraw2D.MolDraw2DSVG(width, height)
    options: Any = drawer.drawOptions()
    options.clearBackground = False
    options.setAtomPalette(_PALETTE)
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, Chem.MolFromSmiles(smiles))
    drawer.FinishDrawing()
    return svg_image(drawer.GetDrawingText(), f"structure of {smiles}")


def flattest_plane(values: Array, axes: Sequence[Array], numbers: Array, coords: Array) -> Plane:
    """The plane of a box that runs through most of a molecule.

    Parameters
    ----------
    values : ndarray (nx, ny, nz)
    axes : three ndarrays
        Coordinates of the points, Angstrom.
    numbers, coords : ndarray (A,), (A, 3)
        Atomic numbers and positions in Angstrom.

    Returns
    -------
    Plane
        Across the axis along which the heavy atoms extend least, at their median.
    """
    heavy = coords[numbers > 1] if (numbers > 1).any() else coords
    extent = heavy.max(axis=0) - heavy.min(axis=0)
    normal = int(np.argmin(extent))
    across = sorted((i for i in range(3) if i != normal), key=lambda i: -extent[i])
    depth = float(np.median(heavy[:, normal]))
    at = int(np.abs(np.asarray(axes[normal]) - depth).argmin())
    cut = np.take(values, at, axis=normal)
    picture = cut if across[0] < across[1] else cut.T  # rows follow the longer axis
    shown = np.abs(coords[:, normal] - axes[normal][at]) < 0.6
    return Plane(
        picture, axes[across[0]], axes[across[1]], numbers[shown], coords[shown][:, across]
    )


class Plane:
    """A plane of a field with the atoms near it.

    Attributes
    ----------
    values : ndarray (n, m)
        First index along ``x``, second along ``y``.
    x, y : ndarray (n,), (m,)
        Coordinates, Angstrom.
    numbers, coords : ndarray (A,), (A, 2)
        Atoms within 0.6 Angstrom of the plane.
    """

    def __init__(self, values: Array, x: Array, y: Array, numbers: Array, coords: Array) -> None:
        self.values, self.x, self.y = values, np.asarray(x), np.asarray(y)
        self.numbers, self.coords = numbers, coords

    def html(self, name: str, width: int = 340) -> str:
        """Picture with atoms, a bar of 2 Angstrom and the scale of colours from 0 to 1."""
        span_x, span_y = np.ptp(self.x), np.ptp(self.y)
        scale = width / span_x
        height = float(scale * span_y)
        image = base64.b64encode(png_bytes(self.values.T[::-1])).decode("ascii")
        colours = base64.b64encode(png_bytes(np.linspace(0.0, 1.0, 128)[None])).decode("ascii")
        base = height + 8.0
        text = f"font-family='sans-serif' font-size='11' fill='{_GREY}'"
        parts = [
            f"<image href='data:image/png;base64,{image}' width='{width}' height='{height:.1f}' "
            "preserveAspectRatio='none'/>",
            *self._atoms(scale, height),
            f"<rect x='0' y='{base:.1f}' width='{2 * scale:.1f}' height='3' fill='{_GREY}'/>",
            f"<text x='0' y='{base + 16:.1f}' {text}>2 Å</text>",
            f"<image href='data:image/png;base64,{colours}' x='{width - 130}' y='{base:.1f}' "
            "width='130' height='7' preserveAspectRatio='none'/>",
            f"<text x='{width - 130}' y='{base + 19:.1f}' {text}>0</text>",
            f"<text x='{width - 65}' y='{base + 19:.1f}' {text} text-anchor='middle'>"
            f"{escape(name)}</text>",
            f"<text x='{width}' y='{base + 19:.1f}' {text} text-anchor='end'>1</text>",
        ]
        svg = (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{base + 24:.0f}'>"
            f"{''.join(parts)}</svg>"
        )
        return svg_image(svg, f"{name} in the plane through most atoms")

    def _atoms(self, scale: float, height: float) -> list[str]:
        table = Chem.GetPeriodicTable()
        parts = []
        for z, (x, y) in zip(self.numbers, self.coords, strict=True):
            left, top = (x - self.x[0]) * scale, height - (y - self.y[0]) * scale
            parts.append(
                f"<text x='{left:.1f}' y='{top + 4:.1f}' text-anchor='middle' font-size='12' "
                "font-family='sans-serif' font-weight='bold' fill='#ffffff' stroke='#000000' "
                f"stroke-width='2.5' paint-order='stroke'>{table.GetElementSymbol(int(z))}</text>"
            )
        return parts


def png_bytes(values: Array) -> bytes:
    """A field from 0 to 1 as a PNG file in viridis, one byte per point.

    Parameters
    ----------
    values : ndarray (rows, columns)
        First row on top; values outside 0 to 1 take the colour of the end.
    """
    levels = np.clip(np.nan_to_num(np.asarray(values)) * 255.0, 0, 255).round().astype(np.uint8)
    rows, columns = levels.shape
    stops = np.linspace(0.0, 255.0, len(_VIRIDIS))
    palette = np.stack(
        [np.interp(np.arange(256), stops, [c[i] for c in _VIRIDIS]) for i in range(3)], axis=1
    )
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), levels], axis=1).tobytes()
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette.round().astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --------------------------------------------------------------------------- objects


def species_html(species: Any) -> str:
    """View of a `quantum.molecule.Species`."""
    rows = [
        ("SMILES", species.smiles),
        ("formula", species.formula),
        ("charge", species.charge),
        ("multiplicity", species.multiplicity),
        ("atoms", f"{species.n_atoms} ({species.n_heavy_atoms} heavy)"),
        ("InChIKey", species.inchikey or None),
    ]
    return facts_html(f"Species {species.formula}", rows, beside=[drawing_html(species.smiles)])


def record_html(record: Any) -> str:
    """View of a `quantum.store.Record`: its scalars, and shapes of its arrays."""
    plain = (str, int, float, bool, type(None))
    rows = [(name, value) for name, value in record.scalars.items() if isinstance(value, plain)]
    arrays = [
        (name, " x ".join(map(str, array.shape)), str(array.dtype))
        for name, array in record.arrays.items()
    ]
    rows = [("key", record.key[:16] or None), *rows]
    below = "".join(note_html(text) for text in record.warnings)
    tables = [table_html(("array", "shape", "type"), arrays)] if arrays else []
    return facts_html(f"Record of the stage {record.stage}", rows, beside=tables, below=below)
