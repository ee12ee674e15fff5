"""Structure drawings small enough for hundreds in one page: RDKit's, without what is not drawn."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

SIZE = (260, 180)
_LARGEST_LETTER, _LONGEST_BOND = 15, 26.0
_SVG = "{http://www.w3.org/2000/svg}"


def structure_svg(smiles: str, size: tuple[int, int] = SIZE) -> str:
    """Draw a molecule in the colour of the text around it.

    All strokes of one width become one path, letters stay text, and coordinates have one decimal:
    about a tenth of RDKit's own text.

    Parameters
    ----------
    size : tuple of int
        Width and height of the view box; small molecules do not fill it.

    Returns
    -------
    str
        One ``<svg>`` element of ``path`` and ``text`` elements, without ids, styles or scripts.
    """
    mol = Chem.MolFromSmiles(smiles)
    rdDepictor.Compute2DCoords(mol)
    rdDepictor.StraightenDepiction(mol)
    drawer = rdMolDraw2D.MolDraw2DSVG(*size, -1, -1, True)
    options: Any = drawer.drawOptions()
    options.clearBackground = False
    options.useBWAtomPalette()
    options.bondLineWidth = 1.4
    options.scaleBondWidth = False
    options.fixedBondLength = _LONGEST_BOND
    options.maxFontSize = _LARGEST_LETTER
    options.padding = 0.04
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
    drawer.FinishDrawing()
    return compact_svg(drawer.GetDrawingText())


def compact_svg(text: str) -> str:
    """Keep strokes, filled shapes and letters of an RDKit drawing of one colour.

    Parameters
    ----------
    text : str
        SVG of ``MolDraw2DSVG`` without FreeType, black on nothing.
    """
    tree = ElementTree.fromstring(text[text.index("<svg") :])
    strokes: dict[str, list[str]] = {}
    shapes: list[str] = []
    letters: dict[str, list[str]] = {}
    for part in tree.iter():
        style = _style(part.get("style", ""))
        if part.tag == f"{_SVG}path":
            line = _numbers(part.get("d", ""))
            if style.get("fill", "none") == "none":
                strokes.setdefault(style.get("stroke-width", "1px"), []).append(line)
            else:
                shapes.append(line)
        elif part.tag == f"{_SVG}text":
            place = f'x="{_short(part.get("x", "0"))}" y="{_short(part.get("y", "0"))}"'
            letter = f"<text {place}>{_escaped(part.text or '')}</text>"
            letters.setdefault(style.get("font-size", "15px"), []).append(letter)
    drawn = [
        f'<path d="{"".join(lines)}" fill="none" stroke="currentColor" '
        f'stroke-width="{_short(width.removesuffix("px"))}"/>'
        for width, lines in strokes.items()
    ]
    if shapes:
        drawn.append(f'<path d="{"".join(shapes)}" fill="currentColor"/>')
    drawn += [
        f'<g font-size="{_short(size.removesuffix("px"))}" fill="currentColor">{"".join(group)}</g>'
        for size, group in letters.items()
    ]
    box = tree.get("viewBox", "0 0 1 1")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{_numbers(box)}" '
        f'font-family="sans-serif">{"".join(drawn)}</svg>'
    )


def _style(text: str) -> dict[str, str]:
    pairs = (item.partition(":") for item in text.split(";") if ":" in item)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _numbers(text: str) -> str:
    """Path data with short numbers and no needless blanks."""
    rounded = re.sub(r"-?\d+\.?\d*", lambda found: _short(found.group()), text)
    return re.sub(r"\s*([MLQCZ])\s*", r"\1", rounded.replace(",", " ")).strip()


def _short(number: str) -> str:
    value = round(float(number), 1)
    return f"{value:g}" if value else "0"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
