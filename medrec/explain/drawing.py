"""Drawings of an explanation as SVG text: molecules with their atoms' effects, interactions.

Colours are Okabe and Ito's, which any colour vision tells apart: blue raised the score, orange
lowered it; strength is the depth of the colour.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

RAISED, LOWERED = (0.0, 0.447, 0.698), (0.902, 0.624, 0.0)
SEVERITY_COLOURS = ("#7f8c99", "#56B4E9", "#E69F00", "#D55E00", "#CC3311")
"""By grade from 0 (listed without a grade) to 4 (contraindicated); width grows with it too."""
_DASHES = ("1 4", "2 4", "6 4", "", "")


def molecule_svg(
    smiles: str,
    effects: npt.NDArray[np.float64] | Sequence[float],
    scale: float | None = None,
    size: tuple[int, int] = (320, 220),
) -> str:
    """Draw a molecule with its atoms coloured by effect.

    Parameters
    ----------
    effects : sequence of float (n_atoms,)
    scale : float, optional
        Effect with the deepest colour; the largest of the molecule by default.

    Returns
    -------
    str
        One ``<svg>`` element on a transparent ground, without an XML declaration.
    """
    mol = Chem.MolFromSmiles(smiles)
    rdDepictor.Compute2DCoords(mol)
    values = np.asarray(effects, dtype=np.float64)
    largest = scale or float(np.abs(values).max(initial=0.0)) or 1.0
    atoms = [i for i in range(mol.GetNumAtoms()) if values[i] != 0.0]
    colours = {i: shade(values[i] / largest) for i in atoms}
    bonds = {
        bond.GetIdx(): colours[bond.GetBeginAtomIdx()]
        for bond in mol.GetBonds()
        if bond.GetBeginAtomIdx() in colours
        and bond.GetEndAtomIdx() in colours
        and values[bond.GetBeginAtomIdx()] == values[bond.GetEndAtomIdx()]
    }
    drawer = rdMolDraw2D.MolDraw2DSVG(*size)
    options: Any = drawer.drawOptions()
    options.clearBackground = False
    options.fillHighlights = True
    options.useBWAtomPalette()
    options.highlightRadius = 0.36
    options.padding = 0.08
    rdMolDraw2D.PrepareAndDrawMolecule(
        drawer,
        mol,
        highlightAtoms=atoms,
        highlightAtomColors=colours,
        highlightBonds=list(bonds),
        highlightBondColors=bonds,
    )
    drawer.FinishDrawing()
    text: str = drawer.GetDrawingText()
    return text[text.index("<svg") :].strip()


def shade(share: float) -> tuple[float, float, float]:
    """Colour of an effect between -1 and 1: white at 0, `RAISED` or `LOWERED` at the ends."""
    end = RAISED if share > 0 else LOWERED
    # dark blue under black letters would hide them: the deepest colour is three quarters of it
    depth = 0.75 * min(abs(share), 1.0)
    return tuple(1.0 - depth * (1.0 - part) for part in end)  # type: ignore[return-value]


def fragment_svg(fragment: str, effect: float, scale: float) -> str:
    """Draw one fragment, all of it in the colour of its effect; dummies show where it was cut."""
    mol = Chem.MolFromSmiles(fragment)
    values = [0.0 if atom.GetAtomicNum() == 0 else effect for atom in mol.GetAtoms()]
    return molecule_svg(fragment, values, scale, (150, 100))


def interaction_svg(
    centre: tuple[str, str], partners: Sequence[Mapping[str, Any]], width: int = 840
) -> str:
    """Draw a drug and those of the set that it interacts with, as nodes and links.

    Parameters
    ----------
    centre : tuple of str
        Code and name of the drug.
    partners : sequence of mapping
        With ``atc``, ``name`` and ``severity`` (0 to 4).

    Returns
    -------
    str
        One ``<svg>`` element; text takes the colour of the page.
    """
    n = len(partners)
    rows = max(math.ceil(n / 2), 1)
    height = 40 + 34 * rows
    middle = (width / 2, height / 2)
    parts = []
    for number, partner in enumerate(partners):
        left = number % 2 == 1
        x = 270.0 if left else width - 270.0
        of_side = n // 2 if left else (n + 1) // 2
        y = height * (number // 2 + 1) / (of_side + 1)
        grade = int(partner["severity"])
        dash = f' stroke-dasharray="{_DASHES[grade]}"' if _DASHES[grade] else ""
        parts.append(
            f'<line x1="{middle[0]:.0f}" y1="{middle[1]:.0f}" x2="{x:.0f}" y2="{y:.0f}" '
            f'stroke="{SEVERITY_COLOURS[grade]}" stroke-width="{1.5 + grade}"{dash}/>'
        )
        parts.append(_node(x, y, str(partner["atc"]), str(partner["name"]), left=left))
    parts.append(_node(*middle, *centre, left=None))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12">'
        f"{''.join(parts)}</svg>"
    )


def _node(x: float, y: float, code: str, name: str, *, left: bool | None) -> str:
    """A box with the code, and the name on its outer side; the page names the drug itself."""
    title = html.escape(f"{code} {name}".strip())
    short = name if len(name) <= 36 else name[:35] + "…"
    side = ""
    if left is not None:
        place, anchor = (x - 38, "end") if left else (x + 38, "start")
        side = (
            f'<text x="{place:.0f}" y="{y + 4:.0f}" text-anchor="{anchor}" fill="currentColor">'
            f"{html.escape(short)}</text>"
        )
    fill = "#0072B2" if left is None else "#5a6672"
    return (
        f'<g><title>{title}</title><rect x="{x - 30:.0f}" y="{y - 11:.0f}" width="60" height="22" '
        f'rx="6" fill="{fill}"/><text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" '
        f'fill="#ffffff" font-weight="600">{html.escape(code)}</text>{side}</g>'
    )
