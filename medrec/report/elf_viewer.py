"""Section with a viewer of ELF, density and potential maps, in the browser and offline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.colors
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from medrec.data.cohort import Cohort
from medrec.data.molecule_table import ATC_NAMES_FILE, read_substances
from medrec.data.schema import data_root
from medrec.data.tables import read_table
from medrec.molecules.features import FeatureTable
from medrec.report.elf_volumes import (
    BUDGET_BYTES,
    DENSITY_SCALE,
    ELF_SCALE,
    Volume,
    fit,
    volume_of_cube,
    volume_of_record,
)
from medrec.report.page import Page, paragraph
from medrec.runs import Home
from quantum.base import InputError, IntegrityError, MedrecError
from quantum.molecule import Species, species_from_smiles
from quantum.schema import GridSpec
from quantum.store import StoreLike

MOST_MAPS = 400
"""Of a larger cohort the smallest molecules are read; more would not fit the page."""

_WIDE = 0.3  # Angstrom; bond maxima of ELF are about that wide at their top
_NO_POTENTIAL = {
    "computed": "The potential was not computed with this map (grid.extra_fields: esp_surface).",
    "volume": "Of this map the feature table keeps ELF and density; the potential was not kept.",
}


@dataclass
class _Drug:
    """One molecule with a map, and where it is used."""

    species: Species
    row: int
    names: set[str] = field(default_factory=set)
    also: set[str] = field(default_factory=set)
    classes: dict[str, str] = field(default_factory=dict)


def elf_section(page: Page, home: Home, cohort: Cohort, features: FeatureTable | None) -> list[str]:
    """HTML of the section; puts scripts, styles and maps into ``page``.

    Every molecule of the cohort with a map in the store, or with a volume in the feature table,
    can be chosen, as far as `BUDGET_BYTES` allow.

    Returns
    -------
    list of str
        Parts for `Page.add`; a sentence where there is no map.
    """
    if features is None:
        return [paragraph("No ELF map is in the feature table.")]
    drugs = _drugs(cohort, features)
    chosen = sorted(drugs, key=lambda item: (item.species.n_atoms, item.species.smiles))[:MOST_MAPS]
    found = list(_volumes(chosen, home.open_store(), features))
    if not found:
        return [paragraph("No ELF map is in the feature table.")]
    fitted = fit([volume for _, volume, _ in found], BUDGET_BYTES)
    level = _level(features)
    maps = [
        {**document, **_described(drug, source, volume, document, level)}
        for (drug, volume, source), document in zip(found, fitted.documents, strict=True)
        if document is not None
    ]
    if not maps:
        return [paragraph(f"No ELF map fits the {BUDGET_BYTES / 1e6:.0f} MB of a page.")]
    maps.sort(key=lambda item: (str(item["name"] or item["formula"]).lower(), item["smiles"]))
    page.use("elf_viewer.css", "3Dmol-min.js", "elf_mesh.js", "elf_viewer.js")
    page.data(
        "elf-maps",
        {
            "maps": maps,
            "first": _first(maps),
            "scales": {
                "elf": [ELF_SCALE.low, ELF_SCALE.high],
                "rho": [DENSITY_SCALE.low, DENSITY_SCALE.high],
            },
            "colours": {"sequential": _stops("viridis"), "diverging": _stops("rdbu")},
        },
    )
    return [
        paragraph(_summary(len(maps), len(drugs), fitted.spacing)),
        paragraph(
            "In this page a point has eight bits: ELF in steps of 1/255, ρ in steps of 4.6 %. "
            "Grids wider than 0.25 Å are drawn on twice as many points along each "
            "axis, by cubic interpolation.",
            "note",
        ),
        _SKELETON,
    ]


def _drugs(cohort: Cohort, features: FeatureTable) -> list[_Drug]:
    """Molecules of the cohort whose features rest on a map."""
    titles = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
    names = _names()
    known: dict[str, Species | None] = {}
    found: dict[Species, _Drug] = {}
    for atc, smiles in zip(cohort.molecules["atc"], cohort.molecules["smiles"], strict=True):
        if smiles not in known:
            known[smiles] = _species(smiles)
        species = known[smiles]
        if species is None:
            continue
        drug = found.setdefault(species, _Drug(species, -1))
        drug.classes[str(atc)] = str(titles.get(atc, ""))
        for code, name, other in names.get(smiles, ()):
            if code.startswith(atc):
                drug.names.add(name)
                drug.also.add(other)
    for drug, row in zip(found.values(), features.rows(list(found)), strict=True):
        drug.row = int(row)
    with_map = features.species["has_elf"].to_numpy()
    return [drug for drug in found.values() if drug.row >= 0 and with_map[drug.row]]


def _species(smiles: str) -> Species | None:
    try:
        return species_from_smiles(smiles)
    except InputError:  # counted where the cohort's molecules are made
        return None


def _names() -> dict[str, list[tuple[str, str, str]]]:
    """ATC level-5 code, its name in ATC and ChEMBL's name of shipped structures, by SMILES."""
    try:
        table = read_substances(data_root() / "molecules")
        atc = read_table(data_root() / "codes" / ATC_NAMES_FILE, ("atc_code", "atc_name"))
    except MedrecError:  # without the shipped tables, formulas stand for names
        return {}
    titles = dict(atc.select("atc_code", "atc_name").iter_rows())
    found: dict[str, list[tuple[str, str, str]]] = {}
    for code, name, smiles in table.select("atc5", "name", "smiles").iter_rows():
        row = code, str(titles.get(code, name)).lower(), str(name).lower()
        found.setdefault(smiles, []).append(row)
    return found


def _volumes(
    drugs: list[_Drug], store: StoreLike, features: FeatureTable
) -> Iterator[tuple[_Drug, Volume, str]]:
    """Volumes of the drugs that have one: the stored map, else the cube of the feature table."""
    cubes, present = _cubes(drugs, features)
    grid = GridSpec.model_validate(features.manifest["spec"]["grid"])
    for i, drug in enumerate(drugs):
        key = features.species["elf_key"].iloc[drug.row]
        volume = _stored(store, key) if isinstance(key, str) else None
        if volume is not None:
            yield drug, volume, "computed"
            continue
        conformer = features.conformer(drug.row)
        if not present[i] or conformer is None:
            continue
        try:
            yield drug, volume_of_cube(cubes[i], *conformer, grid), "volume"
        except IntegrityError:  # another geometry than the map's: nothing can be drawn over it
            continue


def _stored(store: StoreLike, key: str) -> Volume | None:
    try:
        return volume_of_record(store.get(key))
    except (IntegrityError, InputError, KeyError):
        return None


def _cubes(drugs: list[_Drug], features: FeatureTable) -> tuple[Any, Any]:
    try:
        return features.volumes([drug.species for drug in drugs])
    except InputError:  # a table without volumes
        return None, np.zeros(len(drugs), dtype=bool)


def _described(
    drug: _Drug, source: str, volume: Volume, document: dict[str, Any], level: str
) -> dict[str, Any]:
    smiles = drug.species.smiles
    origin = {
        "computed": f"Map of the store, grid {volume.spacing:.2f} Å",
        "volume": f"Volume of the feature table, grid {volume.spacing:.2f} Å",
    }[source]
    if document["spacing"] > 1.001 * volume.spacing:
        origin += f", here {document['spacing']:.2f} Å"
    charge = (
        f" (ion, charge {drug.species.charge:+d})" if drug.names and drug.species.charge else ""
    )
    classes = "; ".join(f"{atc} {name}".strip() for atc, name in sorted(drug.classes.items()))
    return {
        "name": ", ".join(_without_salts(drug.names)) + charge,
        "also": ", ".join(sorted(drug.also)),
        "formula": CalcMolFormula(Chem.AddHs(Chem.MolFromSmiles(smiles))),
        "smiles": smiles,
        "classes": [[atc, name] for atc, name in sorted(drug.classes.items())],
        "text": f"{classes}. {level}. {origin}. {smiles}",
        "esp_reason": "" if document["esp"] else _NO_POTENTIAL[source],
    }


def _without_salts(names: set[str]) -> list[str]:
    """Names in order, without those that only add words to another ("x sodium" beside "x")."""
    return sorted(
        name for name in names if not any(name.startswith(f"{other} ") for other in names)
    )


def _level(features: FeatureTable) -> str:
    settings = features.manifest["spec"].get("calculation", {})
    return f"{str(settings.get('method', '')).upper()}/{settings.get('basis', '')}"


def _first(maps: list[dict[str, Any]]) -> int:
    """A map with a potential if there is one, and of those on the finest grid the largest."""
    return max(
        range(len(maps)),
        key=lambda i: (bool(maps[i]["esp"]), -maps[i]["spacing"], len(maps[i]["atoms"])),
    )


def _stops(name: str) -> list[str]:
    """Colours of a scale as #rrggbb."""
    scale = plotly.colors.get_colorscale(name)
    shown = []
    for _, colour in scale:
        if not colour.startswith("#"):
            numbers = [int(float(x)) for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
            colour = "#{:02x}{:02x}{:02x}".format(*numbers)
        shown.append(colour)
    return shown


def _summary(n_shown: int, n_maps: int, spacing: float) -> str:
    text = f"{n_shown} of the {n_maps} molecules of this cohort with an ELF map are here. "
    if n_shown < n_maps:
        text += (
            f"{n_maps - n_shown} are left out: for size (this page keeps "
            f"{BUDGET_BYTES / 1e6:.0f} MB of maps), or because their map is not stored. "
        )
    if spacing:
        text += f"Grids finer than {spacing:.2f} Å were made as wide as that, to fit the page. "
    return text + (
        "Drag to turn, pinch to zoom; after a click the wheel zooms and the arrow keys turn."
    )


def _slice(axis: int) -> str:
    name = "xyz"[axis]
    return (
        f'<figure><canvas data-elf="slice-{axis}" role="img"></canvas><figcaption>'
        f'<label for="elf-at-{axis}">across {name}</label>'
        f'<input type="range" id="elf-at-{axis}" data-elf="at-{axis}" min="0" max="1" step="0.005" '
        f'value="0.5"><output data-elf="where-{axis}" for="elf-at-{axis}"></output>'
        "</figcaption></figure>"
    )


def _field(value: str, text: str) -> str:
    checked = " checked" if value == "elf" else ""
    return (
        f'<label><input type="radio" name="elf-field" value="{value}"{checked}> '
        f"<span>{text}</span></label>"
    )


_SKELETON = (
    '<div class="elf" id="elf-viewer"><div class="elf-choice">'
    '<label for="elf-search">Find a drug: name, ATC code, class, formula</label>'
    '<input type="search" id="elf-search" data-elf="search" autocomplete="off">'
    '<select size="9" data-elf="list" aria-label="drugs with a map"></select>'
    '<p class="note" data-elf="found" aria-live="polite"></p>'
    "<fieldset><legend>Field</legend>"
    + _field("elf", "ELF")
    + _field("rho", "electron density ρ")
    + _field("esp", "electrostatic potential")
    + '<p class="note" data-elf="why"></p></fieldset>'
    '<p class="note" data-elf-of="elf">ELF is near 1 where electrons are paired (bonds, lone '
    "pairs, cores), and one half in the uniform electron gas.</p>"
    '<p class="note" data-elf-of="rho" hidden>Surfaces of high density lie around the nuclei; '
    "ρ = 0.001 e/Bohr³ is the usual outline of a molecule.</p>"
    '<p class="note" data-elf-of="esp" hidden>Potential of nuclei and electrons, from the density '
    "of the same calculation, at stored points around the surface ρ = 0.001 e/Bohr³. Red: a "
    "positive charge is attracted. Elsewhere it is not stored, so the slices show a ring.</p>"
    '</div><div class="elf-view">'
    '<h3 data-elf="title">The viewer starts when it comes into view</h3>'
    '<p class="note" data-elf="facts"></p>'
    '<p class="elf-message" data-elf="message" role="status" hidden></p>'
    '<div class="elf-stage" data-elf="stage" tabindex="0" role="application" '
    'aria-label="molecule in 3D: arrow keys turn, plus and minus zoom, 0 resets"></div>'
    '<img class="elf-still" data-elf="still" alt="molecule with the isosurface">'
    '<div class="elf-tools"><label class="wide" for="elf-value"><span data-elf="value-name">'
    'Isosurface of ELF =</span><output data-elf="value-text" for="elf-value"></output>'
    '<input type="range" id="elf-value" data-elf="value" min="0.05" max="0.98" step="0.005">'
    "</label>"
    '<label for="elf-opacity">opacity<input type="range" id="elf-opacity" data-elf="opacity" '
    'min="0.1" max="1" step="0.02"></label>'
    '<span><button type="button" data-elf="closer" aria-label="zoom in">+</button> '
    '<button type="button" data-elf="farther" aria-label="zoom out">−</button> '
    '<button type="button" data-elf="reset">reset view</button></span></div></div>'
    '<div class="elf-bar"><canvas data-elf="bar" role="img"></canvas></div>'
    '<div class="elf-slices" data-elf="slices">' + "".join(map(_slice, range(3))) + "</div></div>"
    '<p class="note">Slices: the white line is the isosurface; atoms within 0.5 Å of the plane '
    "carry their symbol, the others are small dots.</p>"
)
