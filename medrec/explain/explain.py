"""One patient in; for each drug the visits, codes, substructures and interactions that moved it.

Research use only. Nothing of the patient is stored or logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medrec.data.dataset import PatientVisits, collate, encode_patient
from medrec.evaluation.metrics import count_pairs
from medrec.explain.atoms import atom_effects, fragment_places
from medrec.explain.fragments import fragment_effects, fragment_masks, has_own_molecules
from medrec.explain.occlusion import Omission, history_effects, score_name
from medrec.models.base import Recommender
from medrec.molecules.drugs import build_drug_molecules, ddi_matrix
from medrec.recommend import (
    CAUTION,
    interacting_pairs,
    parse_document,
    resolve_codes,
)
from medrec.runs import Home, Run
from medrec.training import LoadedRun, load_predictor
from quantum.base import InputError

METHOD = (
    "Each effect is the model's score with everything minus its score with one thing left out "
    "(occlusion). It says what the model used, not what caused or would change an outcome. Effects "
    "of single things need not add up."
)
SHOWN_MOLECULES = 4
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Case:
    """What the parts of an explanation share."""

    loaded: LoadedRun
    patient: PatientVisits
    names: dict[str, str]
    titles: dict[tuple[str, str], str]
    chosen: Bool

    @property
    def codes(self) -> tuple[str, ...]:
        """ATC codes of the D drug classes."""
        return self.loaded.vocabularies.drugs.codes


def explain(
    run: Run, home: Home, document: Any, drugs: Sequence[str] = (), top: int = 5
) -> dict[str, Any]:
    """Explain a run's recommendation for the last visit of a patient.

    Parameters
    ----------
    document : dict
        As of `medrec.recommend.recommend`.
    drugs : sequence of str
        ATC codes of the classes to explain, recommended or not; by default the most probable of
        the recommended ones.
    top : int
        How many, where ``drugs`` is empty.

    Returns
    -------
    dict
        ``drugs``: per class ``atc``, ``name``, ``probability``, ``selected``, ``score``,
        ``history`` (entries with ``visit`` from 1, ``kind``, ``code``, ``title``, ``effect``;
        strongest first), ``substructures`` and ``interactions``; ``recommended``, ``score`` (what
        effects are measured in), ``visits``, ``method``, ``warnings``, ``model``, ``caution``.

    Raises
    ------
    InputError
        If the document is not as expected, a drug is not in the run's vocabulary, or the run is
        not finished.
    """
    parsed = parse_document(document)
    loaded = load_predictor(run, home)
    vocabularies, cohort = loaded.vocabularies, loaded.cohort
    (diagnoses, procedures, given), warnings = resolve_codes(parsed, vocabularies)
    given[-1] = []
    patient = encode_patient(vocabularies, diagnoses, procedures, given)
    n_drugs = len(vocabularies.drugs)
    left_out, effects, scores = history_effects(loaded.model, patient, n_drugs)
    probabilities, chosen = _prediction(loaded, patient)
    codes = cohort.codes
    case = _Case(
        loaded,
        patient,
        dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True)),
        dict(zip(zip(codes["system"], codes["code"], strict=True), codes["title"], strict=True)),
        chosen,
    )
    wanted = _wanted(case, drugs, probabilities, top)
    if not drugs and not chosen.any():
        warnings.append("the model recommends nothing for this visit; the most probable are shown")
    return {
        "drugs": [
            {
                "atc": case.codes[drug],
                "name": case.names.get(case.codes[drug], ""),
                "probability": round(float(probabilities[drug]), 4),
                "selected": bool(chosen[drug]),
                "score": float(scores[drug]),
                "history": _history(case, left_out, effects[:, drug]),
                "substructures": _substructures(case, drug),
                "interactions": _interactions(case, drug),
            }
            for drug in wanted
        ],
        "recommended": [case.codes[i] for i in np.flatnonzero(chosen)],
        "score": score_name(loaded.model),
        "visits": len(patient),
        "method": METHOD,
        "warnings": warnings,
        "model": {"run": run.name, "model": loaded.config.model.name, "cohort": cohort.name},
        "caution": CAUTION,
    }


def _prediction(loaded: LoadedRun, patient: PatientVisits) -> tuple[Any, Bool]:
    """Probabilities and recommended set (D,) at the last visit."""
    n_drugs = len(loaded.vocabularies.drugs)
    prediction = loaded.model.predict(collate([patient], [0], n_drugs))
    return prediction.probs[0, -1].double().numpy(), prediction.selected[0, -1].numpy()


def _wanted(case: _Case, drugs: Sequence[str], probabilities: Any, top: int) -> list[int]:
    """Positions of the classes to explain."""
    if not drugs:
        order = np.lexsort((np.arange(len(probabilities)), -probabilities))
        return [int(i) for i in order if case.chosen[i] or not case.chosen.any()][:top]
    found = []
    for code in drugs:
        position = case.loaded.vocabularies.drugs.index(code.strip().upper())
        if position is None:
            raise InputError(
                f"drug class '{code}' is not among the {len(case.codes)} of the run "
                f"(such as {', '.join(case.codes[:5])}); expected an ATC code of its level"
            )
        found.append(position)
    return list(dict.fromkeys(found))


# --------------------------------------------------------------------------- history


def _history(case: _Case, left_out: Sequence[Omission], effects: Any) -> list[dict[str, Any]]:
    """Entries of one drug, strongest first; ties in order of the visits."""
    order = np.argsort(-np.abs(effects), kind="stable")
    return [_entry(case, left_out[i], float(effects[i])) for i in order]


def _entry(case: _Case, omission: Omission, effect: float) -> dict[str, Any]:
    code = title = ""
    if omission.code is not None:
        code = getattr(case.loaded.vocabularies, omission.kind).codes[omission.code]
        system = {"diagnoses": "diagnosis", "procedures": "procedure"}.get(omission.kind)
        title = case.names.get(code, "") if system is None else case.titles.get((system, code), "")
    return {
        "visit": omission.visit + 1,
        "kind": omission.kind,
        "code": code,
        "title": title,
        "effect": effect,
    }


# --------------------------------------------------------------------------- molecules


def _substructures(case: _Case, drug: int) -> dict[str, Any]:
    """Effects of the class's fragments, and its molecules with effects per atom; or why not."""
    model = case.loaded.model
    if not fragment_masks(model):
        return {"fragments": [], "molecules": [], "note": _why_not(model)}
    assert isinstance(model, Recommender)
    assert model.context.molecules is not None
    names = model.context.molecules.fragment_smiles
    effects = {names[i]: e for i, e in fragment_effects(model, case.patient, drug).items()}
    if not effects:
        return {"fragments": [], "molecules": [], "note": "This class has no known molecule."}
    table = build_drug_molecules(case.loaded.cohort, case.loaded.vocabularies.drugs)
    members = [table.smiles[i] for i in np.flatnonzero(table.projection[drug])]
    coloured = [(smiles, atom_effects(smiles, effects)) for smiles in members]
    coloured.sort(key=lambda pair: (-float(np.abs(pair[1]).max(initial=0.0)), pair[0]))
    return {
        "fragments": [
            {
                "smiles": smiles,
                "effect": effect,
                "molecules": sum(bool(fragment_places(item, smiles)) for item in members),
            }
            for smiles, effect in sorted(effects.items(), key=lambda pair: (-abs(pair[1]), pair[0]))
        ],
        "molecules": [
            {"smiles": smiles, "atom_effects": [float(value) for value in values]}
            for smiles, values in coloured[:SHOWN_MOLECULES]
        ],
        "note": f"{min(len(members), SHOWN_MOLECULES)} of {len(members)} molecules of the class",
    }


def _why_not(model: Any) -> str:
    if not isinstance(model, Recommender) or not model.needs_molecules:
        return "This model reads no molecules, so no substructure moved its score."
    if not has_own_molecules(model):
        return (
            "This run was set up without the classes' own molecules, so substructures say nothing."
        )
    return "This model reads molecules as wholes and has no fragments that could be left out."


# --------------------------------------------------------------------------- interactions


def _interactions(case: _Case, drug: int) -> dict[str, Any]:
    """Interactions of a class with the rest of the set, and the set's DDI rate with and without."""
    cohort, vocabulary = case.loaded.cohort, case.loaded.vocabularies.drugs
    code = case.codes[drug]
    with_it, without = case.chosen.copy(), case.chosen.copy()
    with_it[drug], without[drug] = True, False
    pairs = [
        _partner(pair, code)
        for pair in interacting_pairs(cohort, vocabulary, np.flatnonzero(with_it), case.names)
        if code in (pair["atc_a"], pair["atc_b"])
    ]
    interacting, n_pairs = count_pairs(np.stack([with_it, without]), ddi_matrix(cohort, vocabulary))
    rates = np.where(n_pairs > 0, interacting / np.maximum(n_pairs, 1.0), 0.0)
    return {
        "pairs": pairs,
        "set_size": int(with_it.sum()),
        "ddi_rate_with": float(rates[0]),
        "ddi_rate_without": float(rates[1]),
        "least_severity": int(cohort.config.ddi.min_severity),
    }


def _partner(pair: dict[str, Any], code: str) -> dict[str, Any]:
    other = "b" if pair["atc_a"] == code else "a"
    return {
        "atc": pair[f"atc_{other}"],
        "name": pair[f"name_{other}"],
        "severity": pair["severity"],
        "severity_name": pair["severity_name"],
    }
