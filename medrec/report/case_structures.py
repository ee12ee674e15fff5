"""Molecules of recommended classes, with the fragments that raised the class's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from rdkit import Chem

from medrec.data.dataset import PatientVisits
from medrec.explain.atoms import atom_effects
from medrec.explain.drawing import fragment_svg, molecule_svg
from medrec.explain.fragments import fragment_effects, fragment_masks
from medrec.explain.occlusion import score_name
from medrec.models.base import Recommender
from medrec.molecules.drugs import DrugMolecules, build_drug_molecules
from medrec.report.case_view import RunCase
from medrec.report.page import escape, paragraph
from medrec.training import LoadedRun

SHOWN_DRUGS, SHOWN_FRAGMENTS = 3, 3
MIN_HEAVY_ATOMS = 10
"""Ions and the like say nothing as drawings; classes of nothing else come last."""
_SIZE = (300, 210)
NO_FRAGMENTS = (
    "None of these models tells the fragments of a class's molecules apart, so nothing is "
    "highlighted: the drawings show one molecule of each of the recommended classes with the "
    "highest scores at the last visit."
)
Effects = npt.NDArray[np.float64]
Item = tuple[str, LoadedRun, PatientVisits]


def structures(
    items: Sequence[Item], cases: Sequence[RunCase], names: Mapping[str, str]
) -> list[str]:
    """HTML parts: up to three recommended classes of the last visit, drawn.

    Parameters
    ----------
    items : sequence of (title, loaded run, encoded patient)
        The first whose model can leave out fragments explains; without one the first is drawn
        plainly.
    cases : sequence of RunCase
        Predictions of the same runs.
    """
    number = next((i for i, item in enumerate(items) if fragment_masks(item[1].model)), None)
    case, item = (cases[number or 0], items[number or 0])
    title, loaded, patient = item
    table = build_drug_molecules(loaded.cohort, loaded.vocabularies.drugs)
    chosen = _with_molecules(case, table, loaded.vocabularies.drugs.codes)
    if not chosen:
        return [
            "<h3>Structures</h3>",
            paragraph(f"{title} recommends no class with a known molecule at the last visit."),
        ]
    shown = chosen[:SHOWN_DRUGS]
    if number is None:
        cards = [_plain_card(drug, loaded, table, case, names) for drug in shown]
        return ["<h3>Structures</h3>", paragraph(NO_FRAGMENTS), _deck(cards)]
    cards = [_card(drug, loaded, patient, table, case, names) for drug in shown]
    return [
        f"<h3>Structures that moved {escape(title)}</h3>",
        paragraph(
            f"Of the classes that {title} recommends at the last visit with a molecule of "
            f"{MIN_HEAVY_ATOMS} or more heavy atoms those with the highest scores; of each the "
            "molecule with the fragment that raised the score most. Blue fragments raised the "
            f"{score_name(loaded.model)} of the class, orange ones lowered it: the model's score "
            "with a fragment minus its score without. It says what the model used, not what "
            "causes an effect.",
            "note",
        ),
        _deck(cards),
    ]


def _with_molecules(case: RunCase, table: DrugMolecules, codes: Sequence[str]) -> list[int]:
    """Positions of the recommended classes with a molecule at the last visit, to be drawn first."""
    scores = case.scores[-1]
    found = [
        i for i, code in enumerate(codes) if code in case.sets[-1] and table.projection[i].any()
    ]
    small = {i for i in found if max(map(_heavy_atoms, _members(table, i))) < MIN_HEAVY_ATOMS}
    return sorted(found, key=lambda i: (i in small, -scores[codes[i]], codes[i]))


def _members(table: DrugMolecules, drug: int) -> list[str]:
    """SMILES of a class's molecules."""
    return [table.smiles[i] for i in np.flatnonzero(table.projection[drug])]


def _heavy_atoms(smiles: str) -> int:
    return int(Chem.MolFromSmiles(smiles).GetNumHeavyAtoms())


def _card(
    drug: int,
    loaded: LoadedRun,
    patient: PatientVisits,
    table: DrugMolecules,
    case: RunCase,
    names: Mapping[str, str],
) -> str:
    """A class with the molecule and the fragments that raised its score most."""
    model = loaded.model
    assert isinstance(model, Recommender)
    assert model.context.molecules is not None
    fragments = model.context.molecules.fragment_smiles
    effects = {fragments[i]: e for i, e in fragment_effects(model, patient, drug).items()}
    members = _members(table, drug)
    smiles, atoms = _most_raised([(item, atom_effects(item, effects)) for item in members])
    scale = max((abs(effect) for effect in effects.values()), default=0.0) or 1.0
    drawing = _plate(molecule_svg(smiles, atoms, scale, _SIZE), smiles, len(members))
    raised = sorted((pair for pair in effects.items() if pair[1] > 0), key=lambda p: (-p[1], p[0]))
    plates = "".join(
        f'<figure class="plate">{fragment_svg(text, effect, scale)}'
        f"<figcaption>{effect:+.3g}</figcaption></figure>"
        for text, effect in raised[:SHOWN_FRAGMENTS]
    )
    if raised:
        line = f"{len(raised)} of {len(effects)} fragments raised the score; the strongest:"
    else:
        line = f"None of {len(effects)} fragments raised the score."
    return _frame(drug, loaded, case, names, f"{drawing}{paragraph(line, 'note')}", plates)


def _most_raised(coloured: Sequence[tuple[str, Effects]]) -> tuple[str, Effects]:
    """Molecule whose fragments raised the score most; without one, whose moved it most."""

    def place(pair: tuple[str, Effects]) -> tuple[float, float, str]:
        smiles, atoms = pair
        return -float(atoms.max(initial=0.0)), -float(np.abs(atoms).max(initial=0.0)), smiles

    return min(coloured, key=place)


def _plain_card(
    drug: int, loaded: LoadedRun, table: DrugMolecules, case: RunCase, names: Mapping[str, str]
) -> str:
    members = _members(table, drug)
    large = [item for item in members if _heavy_atoms(item) >= MIN_HEAVY_ATOMS]
    # the smallest is the easiest to read
    smiles = min(large or members, key=lambda text: (_heavy_atoms(text), text))
    svg = molecule_svg(smiles, atom_effects(smiles, {}), 1.0, _SIZE)
    return _frame(drug, loaded, case, names, _plate(svg, smiles, len(members)), "")


def _plate(svg: str, smiles: str, n_members: int) -> str:
    of = f", one of {n_members} molecules" if n_members > 1 else ""
    return (
        f'<figure class="plate" role="img" aria-label="{escape(f"structure {smiles}")}">{svg}'
        f"<figcaption>{escape(smiles)}{of}</figcaption></figure>"
    )


def _frame(
    drug: int,
    loaded: LoadedRun,
    case: RunCase,
    names: Mapping[str, str],
    drawing: str,
    fragments: str,
) -> str:
    code = loaded.vocabularies.drugs.codes[drug]
    heading = escape(f"{code} {names.get(code, '')}".strip())
    plates = f'<div class="plates">{fragments}</div>' if fragments else ""
    return (
        f'<div class="molecule-card"><h4>{heading}</h4>'
        f'<p class="note">score {case.scores[-1][code]:.2f}</p>{drawing}{plates}</div>'
    )


def _deck(cards: Sequence[str]) -> str:
    return f'<div class="molecule-deck">{"".join(cards)}</div>'
