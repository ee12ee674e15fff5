"""The ELF viewer of the report for one molecule, as a document of its own in a frame.

The frame has no origin and can reach nothing, so the viewer's scripts stand inside the document.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd

from medrec.runs import Home
from medrec.view.molecules import Molecules
from medrec.view.replies import folder_of

_STYLE = (
    "body { display: block; margin: 0; padding: 2px; background: var(--card); } "
    ".elf-choice > label, .elf-choice > input, .elf-choice > select, "
    ".elf-choice > [data-elf=found] { display: none; }"
)
# a frame out of view is not laid out again, so its height is told at once, too
_TELL_HEIGHT = (
    "const tell = () => parent.postMessage({ medrecHeight: document.body.scrollHeight }, '*');"
    "tell(); setInterval(tell, 1000); new ResizeObserver(tell).observe(document.body);"
)


@dataclass(frozen=True)
class _OneMolecule:
    """What the viewer reads of a cohort, for one molecule."""

    drugs: pd.DataFrame
    molecules: pd.DataFrame


def viewer_document(home: Home, molecules: Molecules, key: str, theme: str) -> str:
    """HTML of the viewer of one molecule.

    Parameters
    ----------
    theme : str
        ``dark``; anything else is light.

    Raises
    ------
    NotThereError
        If there is no such molecule.
    """
    from medrec.molecules.features import FeatureTable
    from medrec.report.elf_viewer import elf_section
    from medrec.report.page import Page

    index = molecules.index()
    entry = index.entry(key)
    structures = entry.structures or [("", entry.smiles)]
    cohort: Any = _OneMolecule(
        pd.DataFrame(
            [(atc, index.class_names.get(atc, "")) for atc in dict(structures)],
            columns=["atc", "name"],
        ),
        pd.DataFrame(structures, columns=["atc", "smiles"]),
    )
    page = Page("", "")
    for name in entry.tables:
        features = FeatureTable.load(folder_of(home.features, name, "feature table"))
        parts = elf_section(page, home, cohort, features)
        if page.documents:
            # the sentences before it count the maps of a page; here there is one
            return _document(page, parts[-1:], theme)
    return _document(page, ['<p class="note">No ELF map of this molecule is stored.</p>'], theme)


def _document(page: Any, parts: list[str], theme: str) -> str:
    assets = files("medrec.report") / "assets"
    texts = {name: (assets / name).read_text(encoding="utf-8") for name in page.assets}
    css = (assets / "report.css").read_text(encoding="utf-8")
    styles = "".join(text for name, text in texts.items() if name.endswith(".css"))
    scripts = "".join(
        f"<script>{text}</script>" for name, text in texts.items() if name.endswith(".js")
    )
    documents = "".join(
        f'<script type="application/json" id="{html.escape(name)}">{text}</script>'
        for name, text in page.documents.items()
    )
    return (
        f'<!doctype html><html lang="en" data-theme="{"dark" if theme == "dark" else "light"}">'
        f'<head><meta charset="utf-8"><title>ELF viewer</title><style>{css}{styles}{_STYLE}</style>'
        f"</head><body>{''.join(parts)}{documents}{scripts}<script>{_TELL_HEIGHT}</script></body>"
        "</html>"
    )
